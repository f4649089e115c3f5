"""Connections to one Redis server."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.asyncio import Connection, SSLConnection
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from ._pool import Pool
from ._port_probe import Place
from ._redis_replies import WrongReplyError, number_of, without_arguments

try:
    from hiredis import pack_command
except ImportError:  # redis-py works without it; packing is then several times slower
    pack_command = None  # type: ignore[assignment]

_can_read = getattr(Connection, "can_read", None) or Connection.can_read_destructive  # its name before redis-py 8

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Sequence

    Command = tuple[Any, ...]

__all__ = ["PROTOCOL", "Connections", "LostError", "understood"]

PROTOCOL = "Redis's protocol"
_DEMOTED = re.compile(r"^NOREPLICAS|-(READONLY|NOREPLICAS)\b")
"""As of a primary that was cut off from all others. Before Redis 7, a script's error follows the number of its line."""


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
    def place(self) -> Place | None:
        """Where a server should listen; `None` for a socket's path."""
        host = self.settings.get("host")
        return (
            None
            if host is None
            else Place(host, self.settings["port"], PROTOCOL, self.context is not None, self.context)
        )

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
            with understood():
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
        if number_of(confirmed) < self.replicas:
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


class UnconfirmedError(RedisError):
    """A change was made, but is not on as many replicas as were asked for."""


class _DemotedError(Exception):
    """The server is not, or not any more, one to write to; the name may lead to another now."""


def _pack(*command: Any) -> tuple[bytes]:
    return (pack_command(command),)


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """Raise whatever the driver raises at a reply that it does not understand as a `WrongReplyError`."""
    try:
        yield
    except (RedisError, OSError):
        raise
    except Exception as error:
        raise _not_understood(error) from error


def _not_understood(error: Exception) -> WrongReplyError:
    return WrongReplyError(f"a reply cannot be read: {type(error).__name__}")


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ReadOnlyError as error:
        raise _DemotedError(f"READONLY {error}") from error
    except ResponseError as error:
        if _DEMOTED.search(str(error)):
            raise _DemotedError(str(error)) from error
        return without_arguments(error)
    except (RedisError, OSError):
        raise
    except Exception as error:
        raise _not_understood(error) from error


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
