"""Connections to one Redis server, or to the one that the sentinels name the primary."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.asyncio import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from ._pool import Pool

try:
    from hiredis import pack_command
except ImportError:  # redis-py works without it; packing is then several times slower
    pack_command = None  # type: ignore[assignment]

_can_read = getattr(Connection, "can_read", None) or Connection.can_read_destructive  # its name before redis-py 8

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from ..url import Host

    Command = tuple[Any, ...]

__all__ = ["Connections", "LostError", "SentinelConnections"]


class _Link(NamedTuple):
    """A connection of the driver's, which forgets its transport when a cancelled command disconnects it."""

    connection: Any
    transport: asyncio.WriteTransport


class Connections:
    """The part of `redis.asyncio.Redis` that is needed here, for less time per command.

    redis-py's ConnectionPool raises when it is full, and its BlockingConnectionPool waits on an
    asyncio.Condition, which in Python 3.11 forgets a wake-up when the task that got it is
    cancelled.
    """

    kinds: tuple[type[Any], type[Any]] = (Connection, SSLConnection)
    """Without TLS, and with it."""

    def __init__(
        self,
        size: int,
        context: ssl.SSLContext | None = None,
        *,
        kind: type[Any] | None = None,
        timeout: float,
        replicas: int = 0,
        **settings: Any,
    ) -> None:
        """Describe a pool of `size` connections, made of `settings` as the driver knows them when they are needed.

        `timeout` is of a whole verb, in seconds; `replicas` is how many must confirm a change.
        """
        self.size, self.context = size, context
        self.kind = kind or self.kinds[context is not None]
        self.replicas = replicas
        # A share of the verb's, so that it is told which replicas are missing.
        self._wait = ("WAIT", replicas, max(1, int(timeout * 500)))
        # RESP2: no HELLO to wait for. No retry and no socket timeout: the storage has its own, over the whole verb.
        fixed = {"protocol": 2, "retry": None, "socket_timeout": None, "socket_connect_timeout": timeout}
        self.settings = {**settings, **fixed}
        self._pool: Pool[_Link] | None = None

    def __str__(self) -> str:
        place = self.settings.get("path") or "{host}:{port}".format(**self.settings)
        return f"{place} db={self.settings['db']}"

    @property
    def is_open(self) -> bool:
        return self._pool is not None

    def open(self) -> None:
        if self._pool is None:
            self._pool = Pool(self.size, connect=self._connect, is_alive=_is_alive, abort=_abort)

    async def _connect(self) -> _Link:
        connection = self.kind(**self.settings)
        if self.context is not None:
            connection.ssl_context.context = self.context  # else each connection reads the files again
        try:
            await connection.connect()
            await self.check(connection)
            return _Link(connection, connection._writer.transport)  # noqa: SLF001  (redis-py has no other way)
        except BaseException:
            if connection.is_connected:
                _abort(_Link(connection, connection._writer.transport))  # noqa: SLF001  (redis-py has no other way)
            raise

    async def check(self, connection: Any) -> None:
        """Refuse a server that is not the one that is wanted.

        Raises:
            LostError: it is not.
        """

    def forget(self) -> None:
        """Abort the connections that no call uses at this time."""
        if self._pool is not None:
            self._pool.forget()

    async def execute_command(self, *command: Any) -> Any:
        """Do what the method of `redis.asyncio.Redis` does."""
        (reply,) = await self.execute((command,))
        if isinstance(reply, ResponseError):
            raise reply
        return reply

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands over one connection, in one piece, and give their replies; a refusal is a reply.

        Raises:
            LostError: the connection was lost, or leads to a server that is no primary any more.
        """
        pool = self._pool
        if pool is None:
            raise LostError("it is closed")
        link, is_clean = await pool.acquire(), False
        try:
            connection = link.connection
            pack = connection.pack_command if pack_command is None else _pack
            await connection.send_packed_command([part for command in commands for part in pack(*command)])
            replies = [await _reply(connection) for _ in commands]
            is_clean = True
        except (LostError, OSError, _DemotedError) as error:
            self.forget()
            if isinstance(error, _DemotedError):
                raise LostError(*error.args) from error
            raise
        finally:
            pool.release(link, is_clean=is_clean)
        return replies

    async def change(self, commands: Sequence[Command]) -> list[Any]:
        """Do what `execute` does, and wait for the replicas that must have what these commands wrote.

        Raises:
            UnconfirmedError: too few of them answered; what was written stands where it was written.
        """
        if not self.replicas:
            return await self.execute(commands)
        *replies, confirmed = await self.execute((*commands, self._wait))
        if all(isinstance(reply, ResponseError) for reply in replies):
            return replies  # nothing was written; a replica refuses WAIT as well
        if isinstance(confirmed, ResponseError):
            raise confirmed
        if confirmed < self.replicas:
            raise UnconfirmedError(f"{confirmed} of {self.replicas} replicas confirmed a change")
        return replies

    async def aclose(self) -> None:
        """Disconnect, when the calls under way have ended."""
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                await pool.drain()
            finally:
                await pool.close()


class SentinelConnections(Connections):
    """Connections to the server that the sentinels name as the primary of a service.

    Also what redis-py's SentinelManagedConnection asks of its pool.
    """

    kinds = (SentinelManagedConnection, SentinelManagedSSLConnection)
    is_master = True
    check_connection = False

    def __init__(
        self,
        sentinels: Sequence[Host],
        service: str,
        size: int,
        context: ssl.SSLContext | None = None,
        *,
        timeout: float,
        sentinel_settings: dict[str, Any],
        **settings: Any,
    ) -> None:
        super().__init__(size, context, timeout=timeout, connection_pool=self, **settings)
        self._addresses, self._service = [(host.name, host.port) for host in sentinels], service
        # They are asked one after the other, so that a silent one must leave time for the others.
        share = timeout / (len(sentinels) + 2)
        self._sentinel_settings = {
            **sentinel_settings,
            **dict.fromkeys(("socket_timeout", "socket_connect_timeout"), share),
            "retry": Retry(NoBackoff(), 0),  # redis-py's own ten take seconds
        }
        self._address: tuple[str, int] | None = None
        self._asking: asyncio.Task[tuple[str, int]] | None = None

    def __str__(self) -> str:
        sentinels = ",".join(f"{name}:{port}" for name, port in self._addresses)
        return f"{self._service!r} of the sentinels {sentinels} db={self.settings['db']}"

    def open(self) -> None:
        if not self.is_open:
            self._sentinel = Sentinel(self._addresses, sentinel_kwargs=self._sentinel_settings)  # type: ignore[no-untyped-call]
        super().open()

    async def check(self, connection: Any) -> None:
        """Refuse a server that does not think itself the primary: a sentinel may be late."""
        await connection.send_command("ROLE")
        role = (await connection.read_response())[0].decode()
        if role != "master":
            raise LostError(f"{connection.host}:{connection.port} has the role {role!r}, and not 'master'")

    async def get_master_address(self) -> tuple[str, int]:
        """Give what the sentinels say, who are asked for all connections at once.

        redis-py reorders its list of them at each answer, and loses one of them where two ask at the same time.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_sentinels())
            self._asking.add_done_callback(_look_at)
        asking = self._asking  # whoever goes on first may ask again
        await asyncio.wait({asking})
        return asking.result()

    async def _ask_sentinels(self) -> tuple[str, int]:
        try:
            address: tuple[str, int] = await self._sentinel.discover_master(self._service)
        except MasterNotFoundError as error:  # which shows each client with all its settings
            raise LostError(re.sub(r"<redis\.asyncio\.client\.Redis\(.*?\)>\)>\)> - ", "", str(error))) from error
        if address != self._address:
            self._address = address
            self.forget()  # they lead to the old one, which may not know yet
        return address

    async def aclose(self) -> None:
        was_open = self.is_open
        await super().aclose()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})
            self._asking = None
        if was_open:
            for client in self._sentinel.sentinels:  # Sentinel.aclose is new in redis-py 8
                await client.aclose()


class UnconfirmedError(RedisError):
    """A change was made, but is not on as many replicas as were asked for."""


class _DemotedError(Exception):
    """The server is not, or not any more, one to write to; the name may lead to another now."""


def _pack(*command: Any) -> tuple[bytes]:
    return (pack_command(command),)


def _look_at(task: asyncio.Task[Any]) -> None:
    """Know of its failure, also where all who waited for it have left."""
    if not task.cancelled():
        task.exception()


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ReadOnlyError as error:
        raise _DemotedError(f"READONLY {error}") from error
    except ResponseError as error:
        if str(error).startswith("NOREPLICAS"):  # as of a primary that was cut off from all others
            raise _DemotedError(str(error)) from error
        return error


async def _is_alive(link: _Link) -> bool:
    """Whether the server has neither ended nor reset it, nor sent what nobody asked for.

    redis-py's own check sees no reset, and before version 8 it raises at an end.
    """
    if link.transport.is_closing() or link.connection._reader.at_eof():  # noqa: SLF001  (redis-py has no other way)
        return False
    try:
        return not await _can_read(link.connection)
    except RedisError:
        return False


def _abort(link: _Link) -> None:
    """Disconnect without waiting for a peer that may hang.

    redis-py only closes: the socket then stays until the peer has read what is unsent, and answered TLS's goodbye.
    """
    link.transport.abort()
    connection = link.connection
    connection._reader = connection._writer = None  # noqa: SLF001  (as it would, or it warns of a connection left open)
