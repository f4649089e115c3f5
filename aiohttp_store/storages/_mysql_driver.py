"""What aiomysql is told, and what is mended in it: connections that end at once, and many statements in one packet."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import aiomysql  # type: ignore[import-untyped]
from pymysql.constants import CLIENT, CR, ER  # type: ignore[import-untyped]

from ..errors import ConfigError, StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from ..url import Host

__all__ = [
    "LOCKED",
    "LOST",
    "NOT_WRITABLE",
    "OUTAGES",
    "OUTDATED",
    "UNREACHABLE",
    "Connection",
    "GivenConnections",
    "Result",
    "error_code",
    "execute",
]

# aiomysql asserts what it expects of the protocol, and its pool says RuntimeError once it is closed.
OUTAGES = (aiomysql.MySQLError, AssertionError, RuntimeError)
_CONNECTION_KILLED, _IDLE_TOO_LONG = 1927, 4031  # PyMySQL has no names for MariaDB's and MySQL 8's
_READ_ONLY_MODE = 1836  # nor for this one
_LOST_TO_ANOTHER_PRIMARY = 3101  # nor for MySQL's group replication, where several are written
LOST = {
    *(CR.CR_SERVER_GONE_ERROR, CR.CR_SERVER_LOST, ER.SERVER_SHUTDOWN, _CONNECTION_KILLED, _IDLE_TOO_LONG),
    # A Galera node that is cut off from its cluster, or still catches up with it, calls every command unknown. Behind a
    # balancer, another connection leads to another node.
    ER.UNKNOWN_COM_ERROR,
}
UNREACHABLE = {CR.CR_CONN_HOST_ERROR, CR.CR_SERVER_HANDSHAKE_ERR}
NOT_WRITABLE = {ER.OPTION_PREVENTS_STATEMENT, ER.OPEN_AS_READONLY, _READ_ONLY_MODE}
LOCKED = {ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT, _LOST_TO_ANOTHER_PRIMARY}
OUTDATED = {ER.NO_SUCH_TABLE, ER.NET_PACKET_TOO_LARGE}
"""The errors that show that the table or the server's limits have changed."""


class Connection(aiomysql.Connection):  # type: ignore[misc]
    """A connection to one host; `guard` is a statement that goes ahead of all others."""

    def __init__(self, place: Host, guard: str, **settings: Any) -> None:
        super().__init__(host=place.name, port=place.port, **settings)
        self.place = place
        self.guard = guard

    async def connect(self) -> None:
        await self._connect()

    def close(self) -> None:
        if self._writer:  # close() would wait up to 30 s for the server's end of TLS
            self._writer.transport.abort()
        super().close()

    async def _request_authentication(self) -> None:
        try:
            # aiomysql would go on without encryption, and whoever is in between decides what the server seems to offer.
            if self._ssl_context and not self.server_capabilities & CLIENT.SSL:
                raise aiomysql.OperationalError(CR.CR_SSL_CONNECTION_ERROR, "the server offers no TLS")
            await super()._request_authentication()
        except BaseException:  # aiomysql leaves it open where this is cancelled during TLS's handshake
            self.close()
            raise


class _Cursor(aiomysql.Cursor):  # type: ignore[misc]
    async def _show_warnings(self, connection: Any) -> None:
        """Spare the round trip: what warns is a table made by two at once, and MySQL 8 of `VALUES()`."""


class Result(NamedTuple):
    """What one statement did: how many rows it changed, and those that it selected."""

    changed: int
    rows: Sequence[Any]


async def execute(connection: Any, sql: str, *others: str) -> list[Result]:
    """Send statements in one packet, and return what each of them did.

    The guard goes ahead of them if the connection has one. `others` follow in packets of their own, without it.
    """
    guard = connection.guard if isinstance(connection, Connection) else ""
    cursor = await connection.cursor(_Cursor)
    results: list[Result] = []
    for packet in (guard + sql, *others):
        try:
            await cursor.execute(packet)
        except aiomysql.MySQLError as error:
            if guard and error_code(error) == ER.SUBQUERY_NO_1_ROW:
                raise aiomysql.OperationalError(ER.OPTION_PREVENTS_STATEMENT, "the server is read-only") from None
            raise
        results.append(Result(cursor.rowcount, await cursor.fetchall()))
        while await cursor.nextset():
            results.append(Result(cursor.rowcount, await cursor.fetchall()))
    return results[bool(guard) :]


def error_code(error: BaseException) -> int | None:
    return error.args[0] if isinstance(error, aiomysql.MySQLError) and error.args else None


class GivenConnections:
    """The connections of an application's own `aiomysql.Pool`, which is used as it is and never closed."""

    leaving = LOST
    """The errors after which a statement is sent once more."""
    host: Host | None = None

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._places: asyncio.Semaphore | None = None

    def __repr__(self) -> str:
        return "a given pool"

    @property
    def is_open(self) -> bool:
        return self._places is not None

    @property
    def are_all_lent(self) -> bool:
        """Whether requests may wait for a connection that the sweep has."""
        return self._places is not None and self._places.locked()

    def open(self) -> None:
        # aiomysql's pool does not wake up those who wait for a connection when one is closed: nobody shall wait in it.
        self._places = asyncio.Semaphore(self._pool.maxsize or sys.maxsize)

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Any]:
        """Lend a connection; after anything but success it is closed, which also undoes an open transaction."""
        if self._places is None:
            raise StorageUnavailable(f"{self!r} is not open")
        async with self._places:
            connection = await self._pool.acquire()
            try:
                _refuse_unfit(connection)
                yield connection
            except BaseException:
                connection.close()
                raise
            finally:
                self._pool.release(connection)  # not awaited: aiomysql's waits while someone else connects

    lend_to_sweep = lend

    async def close(self) -> None:
        self._places = None


def _refuse_unfit(connection: Any) -> None:
    if not connection.get_autocommit():
        raise ConfigError("MySQLStorage needs connections that commit; make the pool with autocommit=True")
    if connection.client_flag & CLIENT.FOUND_ROWS:
        raise ConfigError("MySQLStorage must count changed rows; make the pool without CLIENT.FOUND_ROWS")
