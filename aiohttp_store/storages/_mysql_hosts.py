"""Connections to the one of several MySQL hosts that is writable, and the search for it."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiomysql  # type: ignore[import-untyped]
from pymysql.constants import CR  # type: ignore[import-untyped]

from ..errors import StorageRefused, StorageUnavailable
from ._mysql_driver import LOST, NOT_WRITABLE, UNREACHABLE, Connection, error_code, execute
from ._mysql_refusals import advice
from ._pool import Pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from ..url import Host

__all__ = ["HostConnections"]

# Ahead of all that is sent where there are several hosts, and fails on one that is read-only: also for a user who may
# write nevertheless, and for a load, which would read what is out of date. MySQL's super_read_only implies read_only.
_GUARD = (
    "SET @writable=IF(CONCAT(@@GLOBAL.read_only) IN ('0','OFF') AND NOT @@GLOBAL.innodb_read_only,0,"
    "(SELECT 1 UNION ALL SELECT 2));"
)
_STAGGER = 0.25
_PATIENCE = 0.75  # of the time that a new connection has, within which a server says something
_SEARCH_PAUSE = 0.1  # so that an outage is no storm of reconnects
_IDLE = 45.0  # proxies and firewalls drop what was silent for 60 s, often without a word


class HostConnections:
    """Connections of one storage, all of which lead to one host.

    If there are several, it is the first that was found writable, until it is not any more, refuses, or is silent for
    too long. They are made without a lock: in aiomysql's own pool a slow one holds up those that are free.
    """

    are_all_lent = False
    """Whether requests may wait for a connection that the sweep has; it has one of its own."""

    def __init__(self, size: int, hosts: Sequence[Host], timeout: float, **settings: Any) -> None:
        several = len(hosts) > 1
        self.leaving = LOST | UNREACHABLE | NOT_WRITABLE if several else LOST
        """The errors after which the host is left, and a statement sent once more."""
        self.host: Host | None = None if several else hosts[0]
        """Where the connections lead; `None` while that is to be found out."""
        self._size = size
        self._hosts = hosts
        # A call has the time to leave a host that is silent, and to learn that another one is as well.
        self._share = timeout / 3 if several else None
        self._patience = _PATIENCE * (self._share or timeout)
        self._stagger = min(_STAGGER, timeout / (4 * len(hosts)))
        self._settings = settings
        self._pool: Pool[Connection] | None = None
        self._found: Connection | None = None  # the one with which the search ended, for the first call that asks
        self._search: asyncio.Task[dict[Host, aiomysql.MySQLError]] | None = None
        self._next_search = 0.0

    def __repr__(self) -> str:
        where = self._settings["unix_socket"] or ",".join(map(_address, self._hosts))
        return f"{where}/{self._settings['db']}"

    @property
    def is_open(self) -> bool:
        return self._pool is not None

    def open(self) -> None:
        self._pool = Pool(self._size, connect=self._connect, is_alive=_is_alive, abort=Connection.close)

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Connection]:
        """Lend a connection; after anything but success it is closed, which also undoes an open transaction."""
        pool = self._opened()
        connection, is_clean = await pool.acquire(), False
        try:
            yield connection
            is_clean = connection.place == self.host
        except BaseException as error:
            self._blame(connection.place, error)
            raise
        finally:
            pool.release(connection, is_clean=is_clean)

    @asynccontextmanager
    async def lend_to_sweep(self) -> AsyncIterator[Connection]:
        """Lend one more, beside those that serve requests."""
        self._opened()
        connection = await self._connect()
        try:
            yield connection
            await _say_goodbye(connection)
        except BaseException as error:
            self._blame(connection.place, error)
            raise
        finally:
            connection.close()

    def forget(self) -> None:
        """Close the connections that no call uses at this time."""
        if self._pool is not None:
            self._pool.forget()
        if self._found is not None:
            self._found.close()
            self._found = None

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if self._search is not None and not self._search.done():
            self._search.cancel()
            await asyncio.wait({self._search})
        if self._found is not None:
            await _say_goodbye(self._found)
        self.forget()
        if pool is not None:
            await pool.close(_say_goodbye)

    def _opened(self) -> Pool[Connection]:
        if self._pool is None:
            raise StorageUnavailable(f"{self!r} is not open")
        return self._pool

    def _blame(self, place: Host, error: BaseException) -> None:
        """Forget the idle connections if what ended one has likely ended them all, and a host that must be left.

        With several hosts, a call that was stopped counts as one that a silent server has kept waiting.
        """
        several = len(self._hosts) > 1
        if place == self.host and (
            error_code(error) in self.leaving or (several and isinstance(error, asyncio.CancelledError))
        ):
            self.forget()
            if several:
                self.host = None

    async def _connect(self) -> Connection:
        while True:
            place = self.host
            if place is None:
                await self._find_host()
                continue
            found, self._found = self._found, None
            if found is not None and await _is_alive(found):
                return found
            try:
                return await self._connect_to(place)
            except aiomysql.MySQLError as error:
                self._blame(place, error)
                if len(self._hosts) > 1 and advice(error) and place == self.host:
                    self.host = None  # another one may let us in
                if self.host is not None:
                    raise

    async def _connect_to(self, place: Host) -> Connection:
        """Open a connection: if there are several hosts, within a share of the deadline and to a writable one."""
        connection = Connection(place, _GUARD if len(self._hosts) > 1 else "", self._patience, **self._settings)
        try:
            async with asyncio.timeout(self._share):
                await connection.connect()
                if connection.guard:
                    await execute(connection, "DO 0")
        except BaseException as error:
            connection.close()
            if isinstance(error, TimeoutError):
                reason = f"{_address(place)} was silent for {self._share:.2g} s"
                raise aiomysql.OperationalError(CR.CR_CONN_HOST_ERROR, reason) from error
            if isinstance(error, aiomysql.MySQLError):
                why = [str(error.__cause__)] if error.__cause__ else []  # aiomysql leaves it out
                raise type(error)(*error.args, *why) from error
            if isinstance(error, Exception):  # whatever its parser says of bytes that are not MySQL's
                reason = f"the handshake failed: {error!r}"
                raise aiomysql.OperationalError(CR.CR_SERVER_HANDSHAKE_ERR, reason) from error
            raise
        return connection

    async def _find_host(self) -> None:
        """Wait for the search that all share, and that goes on if one of them gives up."""
        self._opened()
        if self._search is None or self._search.done():
            self._search = asyncio.create_task(self._look_for_host())
        search = self._search
        await asyncio.wait({search})
        if search.cancelled():
            raise StorageUnavailable(f"{self!r} is not open")
        if failures := search.result():
            ways_out = {place: advice(error) for place, error in failures.items()}
            said = "; ".join(
                f"{_address(place)}: {error}{f' ({ways_out[place]})' if ways_out[place] else ''}"
                for place, error in failures.items()
            )
            if all(ways_out.values()):
                raise StorageRefused(f"every host of {self!r} refuses: {said}")
            raise StorageUnavailable(f"no host of {self!r} is writable: {said}")

    async def _look_for_host(self) -> dict[Host, aiomysql.MySQLError]:
        """Find the first host that is writable and return nothing, or return what each of them said."""
        loop = asyncio.get_running_loop()
        attempts: dict[Host, asyncio.Task[Connection]] = {}
        failures: dict[Host, aiomysql.MySQLError] = {}
        try:
            await asyncio.sleep(self._next_search - loop.time())
            for place in self._hosts:  # each begins when the one before has failed, or was silent for a moment
                attempts[place] = asyncio.create_task(self._connect_to(place))
                waiting = [attempt for attempt in attempts.values() if not attempt.done()]
                done, _ = await asyncio.wait(waiting, timeout=self._stagger, return_when=asyncio.FIRST_COMPLETED)
                if any(attempt.exception() is None for attempt in done):
                    break
            for place, attempt in attempts.items():
                try:
                    connection = await attempt
                except aiomysql.MySQLError as error:
                    failures[place] = error
                else:
                    del attempts[place]
                    self.host, self._found = place, connection
                    return {}
            return failures
        finally:
            self._next_search = loop.time() + _SEARCH_PAUSE
            for attempt in attempts.values():
                if not attempt.cancel() and not attempt.cancelled() and attempt.exception() is None:
                    attempt.result().close()  # it came too late
            await asyncio.gather(*attempts.values(), return_exceptions=True)


async def _is_alive(connection: Connection) -> bool:
    return not connection.closed and asyncio.get_running_loop().time() - connection.last_usage < _IDLE


async def _say_goodbye(connection: Connection) -> None:
    with contextlib.suppress(OSError):
        await connection.ensure_closed()  # so that the server does not log an abort


def _address(place: Host) -> str:
    return f"[{place.name}]:{place.port}" if ":" in place.name else f"{place.name}:{place.port}"
