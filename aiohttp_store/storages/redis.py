"""`redis://`: Redis, Valkey and whatever else speaks their protocol and runs Lua."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from redis.asyncio import Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.client import Pipeline
from redis.exceptions import AuthenticationError, NoScriptError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import TimeoutError as SilentError

from ..errors import ConfigError, SessionTooLarge
from ..storage import VERSION_SIZE, Conflict, Gone, Outcome, Record, Saved, Storage, Write, new_version
from ..url import TLSOptions, positive

try:
    from hiredis import pack_command
except ImportError:  # redis-py works without it; packing is then several times slower
    pack_command = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..url import StorageURL

__all__ = ["RedisStorage"]

_REMOVED = b"-"  # stands for the version that a removal left, which no value has; '' in the script is "none expected"
_LARGEST = 512 << 20  # of a string, by the server's proto-max-bulk-len

# Each write is GET, a comparison, then SET or DEL, and a script runs alone: so each is atomic. A script that fails
# half-way keeps what it has written, hence pcall: the other keys' writes are carried out first, then the error is told.
_SAVE = """
local replies, failed = {}, nil
for i, key in ipairs(KEYS) do
  local expected, value, ttl = ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
  local found, reply = redis.pcall('GET', key), 1
  if type(found) == 'table' then
    if not string.find(found.err, 'WRONGTYPE', 1, true) then failed = failed or found end
    found = false
  end
  local version = found and #found >= VERSION_SIZE and string.sub(found, 1, VERSION_SIZE) or ''
  if version ~= '' and version == string.sub(value, 1, VERSION_SIZE) then
    reply = 1
  elseif version ~= expected then
    reply = version ~= '' and found or 0
  else
    local done = value == '' and redis.pcall('DEL', key) or value ~= '' and redis.pcall('SET', key, value, 'EX', ttl)
    if type(done) == 'table' and done.err then failed = failed or done end
  end
  replies[i] = reply
end
return failed or replies
""".replace("VERSION_SIZE", str(VERSION_SIZE))
_SAVE_SHA = hashlib.sha1(_SAVE.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Common:
    prefix: str = "session:"
    """What each key begins with."""
    timeout: float = 2.0
    """Seconds within which every call is answered or fails."""
    pool_size: int = 16
    """How many connections are opened at most; further calls wait for a free one."""

    def __post_init__(self) -> None:
        positive("timeout", self.timeout)
        positive("pool_size", self.pool_size)


@dataclass(frozen=True, kw_only=True)
class Options(_Common, TLSOptions):
    """The parameters of `redis://`, `rediss://` and `valkey://`; `rediss://` implies `tls`."""


@dataclass(frozen=True, kw_only=True)
class UnixOptions(_Common):
    """The parameters of `redis+unix://`."""

    db: int = 0
    """The number of the database."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.db < 0:
            raise ConfigError(f"db={self.db} is not the number of a database; write 0, 1, …")


class _Connections:
    """The part of `redis.asyncio.Redis` that is needed here, for less time per command.

    redis-py's ConnectionPool raises when it is full, and its BlockingConnectionPool waits on an
    asyncio.Condition, which in Python 3.11 forgets a wake-up when the task that got it is
    cancelled. Here nothing is awaited while a connection changes hands.
    """

    def __init__(self, kind: type[Any], size: int, context: Any = None, **settings: Any) -> None:
        self.kind, self.size, self.context = kind, size, context
        # RESP2: no HELLO to wait for. No retry and no socket timeout: the storage has its own, over the whole verb.
        self.settings = {**settings, "protocol": 2, "retry": None, "socket_timeout": None}
        self.slots: asyncio.Semaphore | None = None
        self.free: list[Any] = []

    def open(self) -> None:
        if self.slots is None:
            self.slots = asyncio.Semaphore(self.size)
            self.free = [self._make() for _ in range(self.size)]  # not connected before its first command

    def _make(self) -> Any:
        connection = self.kind(**self.settings)
        if self.context is not None:
            connection.ssl_context.context = self.context  # else each connection reads the files again
        return connection

    async def execute_command(self, *args: Any) -> Any:
        slots, free = self.slots, self.free
        if slots is None:
            raise LostError("it is closed")
        async with slots:
            connection, transport = free.pop(), None  # the one used last
            try:
                if connection.is_connected and await connection.can_read():
                    await _drop(connection)  # closed by the server
                if not connection.is_connected:
                    await connection.connect()
                transport = connection._writer.transport
                packed = connection.pack_command(*args) if pack_command is None else pack_command(args)
                # Both calls disconnect when they are cancelled, so no answer is left for the next caller.
                await connection.send_packed_command(packed)
                return await connection.read_response()
            except ReadOnlyError as error:  # after a failover the name may lead to the new primary
                await _drop(connection)
                raise LostError(f"READONLY {error}") from error
            finally:
                if transport is not None and not connection.is_connected:
                    transport.abort()  # see _drop
                free.append(connection)

    async def aclose(self) -> None:
        """Disconnect, when the calls under way have ended."""
        slots, free, self.slots = self.slots, self.free, None
        if slots is not None:
            try:
                for _ in range(self.size):
                    await slots.acquire()
            finally:
                for connection in free:
                    await _drop(connection)


async def _drop(connection: Any) -> None:
    """Disconnect without waiting for a peer that may hang.

    redis-py only closes: the socket then stays until the peer has read what is unsent, and answered TLS's goodbye.
    """
    if connection.is_connected:
        connection._writer.transport.abort()
    await connection.disconnect()


class RedisStorage(Storage):
    """Sessions in Redis or Valkey: one string per session, its version first, expired by the server."""

    def __init__(self, client: Redis | _Connections, *, prefix: str = "session:", timeout: float = 2.0) -> None:
        if isinstance(client, Redis) and not isinstance(client, Pipeline):
            if client.get_encoder().decode_responses:  # type: ignore[no-untyped-call]
                raise ConfigError("the Redis client has decode_responses=True, but sessions are bytes; make it without")
            settings = client.connection_pool.connection_kwargs
        elif isinstance(client, _Connections):
            settings = client.settings
        else:
            given = f"{type(client).__module__}.{type(client).__qualname__}"
            raise ConfigError(f"RedisStorage takes a redis.asyncio.Redis, and was given a {given}")
        options = _Common(prefix=prefix, timeout=timeout)
        self.prefix, self.timeout = options.prefix, options.timeout
        self._client = client
        server = settings.get("path") or f"{settings.get('host', 'localhost')}:{settings.get('port', 6379)}"
        self._name = f"<RedisStorage {server} db={settings.get('db') or 0}>"

    @classmethod
    def from_url(cls, url: StorageURL) -> Self:
        """Read `redis://user:password@host:port/db?…`, or `redis+unix:///path.sock?db=0&…`."""
        login = {"username": url.user, "password": url.password}
        if url.scheme == "redis+unix":
            if url.hosts or not url.path.strip("/"):
                raise ConfigError(f"{url} must name a socket and no host; write redis+unix:///path.sock?db=0")
            unix = url.options(UnixOptions)
            settings = {**login, "path": url.path, "db": unix.db, "socket_connect_timeout": unix.timeout}
            connections = _Connections(UnixDomainSocketConnection, unix.pool_size, **settings)
            return cls(connections, prefix=unix.prefix, timeout=unix.timeout)
        options = url.options(Options)
        if url.scheme == "rediss":
            if not options.tls and any(name == "tls" for name, _ in url.query):
                raise ConfigError(f"{url} turns off what rediss:// stands for; write redis:// or leave tls= out")
            options = dataclasses.replace(options, tls=True)
        number = url.path.strip("/") or "0"
        if not (number.isascii() and number.isdecimal()):
            raise ConfigError(f"{number!r} in {url} is not the number of a database; write {url.scheme}://host:port/0")
        host, context = url.host(6379), options.context()
        settings = {**login, "host": host.name, "port": host.port, "db": int(number)}
        settings["socket_connect_timeout"] = options.timeout
        connections = _Connections(SSLConnection if context else Connection, options.pool_size, context, **settings)
        return cls(connections, prefix=options.prefix, timeout=options.timeout)

    def __repr__(self) -> str:
        return self._name

    async def open(self) -> None:
        if isinstance(self._client, _Connections):
            self._client.open()

    async def close(self) -> None:
        if isinstance(self._client, _Connections):
            await self._client.aclose()

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        if not keys:
            return []
        async with self.answering(RedisError):
            # MGET gives nil for a key of another type.
            return [_record(value) for value in await self._ask("MGET", *[self.prefix + key for key in keys])]

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        if not writes:
            return []
        versions = [b"" if write.data is None else new_version() for write in writes]
        args: list[Any] = [len(writes), *[self.prefix + write.key for write in writes]]
        for write, version in zip(writes, versions, strict=True):
            size = VERSION_SIZE + len(write.data or b"")
            if size > _LARGEST:
                raise SessionTooLarge(size, _LARGEST, "a Redis string")
            expected = b"" if write.expected is None else write.expected or _REMOVED
            args += (expected, version + (write.data or b""), write.ttl)
        async with self.answering(RedisError):
            try:
                replies = await self._ask("EVALSHA", _SAVE_SHA, *args)
            except NoScriptError:  # a restarted server has forgotten it; EVAL also keeps it for the next EVALSHA
                replies = await self._ask("EVAL", _SAVE, *args)
        return [_outcome(reply, version) for reply, version in zip(replies, versions, strict=True)]

    async def delete(self, keys: Sequence[str]) -> None:
        if keys:
            async with self.answering(RedisError):
                await self._ask("DEL", *[self.prefix + key for key in keys])

    async def _ask(self, *args: Any) -> Any:
        """Send one command, and once more where the connection was lost.

        It may have been carried out already. A write then finds its own version and is `Saved`;
        a removal finds nothing and is `Gone`, which ends the same way.
        """
        try:
            return await self._client.execute_command(*args)
        except AuthenticationError:  # redis-py counts it among the lost connections
            raise
        except (LostError, SilentError):
            return await self._client.execute_command(*args)


def _record(value: bytes | None) -> Record | None:
    if value is None or len(value) < VERSION_SIZE:
        return None
    return Record(value[:VERSION_SIZE], value[VERSION_SIZE:])


def _outcome(reply: int | bytes, version: bytes) -> Outcome:
    if isinstance(reply, bytes):
        return Conflict(Record(reply[:VERSION_SIZE], reply[VERSION_SIZE:]))
    return Saved(version) if reply else Gone()
