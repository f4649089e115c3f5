"""`redis://`: Redis, Valkey and whatever else speaks their protocol and runs Lua; with sentinels as well."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from redis._parsers.helpers import parse_info
from redis.asyncio import Redis, UnixDomainSocketConnection
from redis.asyncio.client import Pipeline
from redis.exceptions import AuthenticationError, NoScriptError, RedisError
from redis.exceptions import TimeoutError as SilentError

from .._log import log_once, logger
from .._takeover.legacy import Legacy, LegacyOptions
from ..errors import ConfigError, SessionTooLarge, StorageUnavailable
from ..storage import VERSION_SIZE, Conflict, Gone, Outcome, Record, Saved, Storage, Write, new_version
from ..url import TLSOptions, positive
from ._redis_connections import Connections, LostError, SentinelConnections

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ..url import StorageURL

__all__ = ["RedisStorage"]

_REMOVED = b"-"  # stands for the version that a removal left, which no value has; '' in the script is "none expected"
_LARGEST = 512 << 20  # of a string, by the server's proto-max-bulk-len

# Each write is GET, a comparison, then SET or DEL, and a script runs alone: so each is atomic. A script that fails
# half-way keeps what it has written, hence pcall: the other keys' writes are carried out first, then the error is told.
SAVE = """
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
SAVE_SHA = hashlib.sha1(SAVE.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Common:
    prefix: str = "session:"
    """What each key begins with; apps that share a database need different ones."""
    timeout: float = 2.0
    """Seconds within which each call answers or raises `StorageUnavailable`."""
    pool_size: int = 16
    """How many connections to a server are opened at most; further calls wait for a free one."""
    replicas: int = 0
    """How many replicas must have a change before it counts as made (`WAIT`)."""

    def __post_init__(self) -> None:
        positive("timeout", self.timeout)
        positive("pool_size", self.pool_size)
        if self.replicas < 0:
            raise ConfigError(f"replicas={self.replicas} is no number of replicas; write 0, 1, …")


@dataclass(frozen=True, kw_only=True)
class Options(_Common, TLSOptions):
    """The parameters of `redis+cluster://`."""


@dataclass(frozen=True, kw_only=True)
class TCPOptions(Options, LegacyOptions):
    """The parameters of `redis://`, `rediss://` and `valkey://`; `rediss://` implies `tls`."""


@dataclass(frozen=True, kw_only=True)
class SentinelOptions(TCPOptions):
    """The parameters of `redis+sentinel://`; `tls` is for the sentinels as well."""

    sentinel_user: str | None = None
    """The user who logs in to the sentinels; the one of the URL logs in to the server."""
    sentinel_password: str | None = None
    """The password for the sentinels."""


@dataclass(frozen=True, kw_only=True)
class UnixOptions(_Common, LegacyOptions):
    """The parameters of `redis+unix://`."""

    db: int = 0
    """The number of the database, of `redis+unix://` only; other URLs have it in their path."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.db < 0:
            raise ConfigError(f"db={self.db} is not the number of a database; write 0, 1, …")


class RedisStorage(Storage):
    """Sessions in Redis or Valkey: one string per session, its version first, expired by the server.

    Args:
        client: a `redis.asyncio.Redis` without `decode_responses`; it is used as it is, and not closed.
        prefix: what each key begins with.
        timeout: seconds within which every verb answers or raises `StorageUnavailable`.
        former: whose sessions are taken over, as `migrate=` in a URL says.

    Raises:
        ConfigError: another client, or a value that cannot work.
    """

    def __init__(
        self,
        client: Redis | Connections,
        *,
        prefix: str = "session:",
        timeout: float = 2.0,
        legacy: Legacy | None = None,
    ) -> None:
        if isinstance(client, Redis) and not isinstance(client, Pipeline):
            if client.get_encoder().decode_responses:  # type: ignore[no-untyped-call]
                raise ConfigError("the Redis client has decode_responses=True, but sessions are bytes; make it without")
            settings = client.connection_pool.connection_kwargs
            server = settings.get("path") or f"{settings.get('host', 'localhost')}:{settings.get('port', 6379)}"
            name = f"{server} db={settings.get('db') or 0}"
        elif isinstance(client, Connections):
            name = str(client)
        else:
            given = f"{type(client).__module__}.{type(client).__qualname__}"
            raise ConfigError(f"RedisStorage takes a redis.asyncio.Redis, and was given a {given}")
        options = _Common(prefix=prefix, timeout=timeout)
        self.prefix, self.timeout = options.prefix, options.timeout
        self.legacy = legacy
        self._client = client
        self._name = name

    @classmethod
    def from_url(cls, url: StorageURL) -> Self:
        """Read `redis://user:password@host:port/db?…` and what is like it.

        `redis+unix:///path.sock?db=0&…`, and `redis+sentinel://user:password@host:port,host:port/service/db?…`,
        where the hosts are the sentinels.
        """
        connections, options = _WAYS.get(url.scheme, _by_tcp)(url)
        return cls(connections, prefix=options.prefix, timeout=options.timeout, legacy=options.legacy())

    def __repr__(self) -> str:
        return f"<RedisStorage {self._name}>"

    async def open(self) -> None:
        """Make ready to connect, and warn where the server is down, or may throw sessions away."""
        if isinstance(self._client, Connections):
            self._client.open()
        await warn_of_eviction(self, self._client.execute_command)

    async def close(self) -> None:
        if isinstance(self._client, Connections):
            await self._client.aclose()

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        if not keys:
            return []
        async with self.answering(RedisError):
            # MGET gives nil for a key of another type.
            values = await self._ask("MGET", *[self.prefix + key for key in keys])
        return [record_of(value) for value in values]

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        if not writes:
            return []
        versions = [version_for(write) for write in writes]
        names = [self.prefix + write.key for write in writes]
        arguments: list[Any] = []
        for write, version in zip(writes, versions, strict=True):
            arguments += script_of(write, version)
        async with self.answering(RedisError):
            try:
                replies = await self._change("EVALSHA", SAVE_SHA, len(names), *names, *arguments)
            except NoScriptError:  # a restarted server has forgotten it; EVAL also keeps it for the next EVALSHA
                replies = await self._change("EVAL", SAVE, len(names), *names, *arguments)
        return [outcome_of(reply, version) for reply, version in zip(replies, versions, strict=True)]

    async def delete(self, keys: Sequence[str]) -> None:
        if keys:
            async with self.answering(RedisError):
                await self._change("DEL", *[self.prefix + key for key in keys])

    async def read_legacy(self, key: str) -> bytes | None:
        async with self.answering(RedisError):
            (value,) = await self._ask("MGET", key)
        return value  # type: ignore[no-any-return]

    async def remove_legacy(self, key: str) -> None:
        async with self.answering(RedisError):
            await self._change("DEL", key)

    async def _change(self, *command: Any) -> Any:
        if not isinstance(self._client, Connections) or not self._client.replicas:
            return await self._ask(*command)
        # It is not tried again: a second attempt that finds it done has nothing that the replicas could confirm.
        (reply,) = await self._client.change((command,))
        if isinstance(reply, RedisError):
            raise reply
        return reply

    async def _ask(self, *command: Any) -> Any:
        """Send one command, and once more where the connection was lost.

        It may have been carried out already. A write then finds its own version and is `Saved`;
        a removal finds nothing and is `Gone`, which ends the same way.
        """
        try:
            return await self._client.execute_command(*command)
        except AuthenticationError:  # redis-py counts it among the lost connections
            raise
        except (LostError, SilentError):
            return await self._client.execute_command(*command)


def version_for(write: Write) -> bytes:
    """Draw the version of a write, empty for a removal.

    Raises:
        SessionTooLarge: it is larger than a string of Redis can be.
    """
    if write.data is None:
        return b""
    size = VERSION_SIZE + len(write.data)
    if size > _LARGEST:
        raise SessionTooLarge(size, _LARGEST, "a Redis string")
    return new_version()


def script_of(write: Write, version: bytes) -> tuple[bytes, bytes, int]:
    """Give the script's arguments for one write."""
    expected = b"" if write.expected is None else write.expected or _REMOVED
    return expected, version + (write.data or b""), write.ttl


def record_of(value: bytes | None) -> Record | None:
    """Split what is stored: the version, then the data."""
    if value is None or len(value) < VERSION_SIZE:
        return None
    return Record(value[:VERSION_SIZE], value[VERSION_SIZE:])


def outcome_of(reply: int | bytes, version: bytes) -> Outcome:
    """Read what the script says of one write."""
    if isinstance(reply, bytes):
        return Conflict(Record(reply[:VERSION_SIZE], reply[VERSION_SIZE:]))
    return Saved(version) if reply else Gone()


async def warn_of_eviction(storage: Storage, execute: Callable[..., Awaitable[Any]]) -> None:
    """Say it where the server, when it is full, drops sessions to make room."""
    try:
        async with storage.answering(LostError, SilentError):
            told = await execute("INFO", "memory")
    except StorageUnavailable as error:
        logger.warning("opened without its server: %s", error)
        return
    except RedisError:  # not every user may ask
        return
    memory = told if isinstance(told, dict) else parse_info(told)  # type: ignore[no-untyped-call]
    policy = memory.get("maxmemory_policy", "noeviction")
    if memory.get("maxmemory") and policy != "noeviction":
        log_once(
            logger.warning,
            "%r drops sessions when its memory is full, and so logs visitors out (maxmemory-policy is %s); "
            "set maxmemory-policy noeviction, or give the sessions a server of their own",
            storage,
            policy,
        )


def _by_tcp(url: StorageURL) -> tuple[Connections, TCPOptions]:
    options = url.options(TCPOptions)
    if url.scheme == "rediss":
        if not options.tls and any(name == "tls" for name, _ in url.query):
            raise ConfigError(f"{url} turns off what rediss:// stands for; write redis:// or leave tls= out")
        options = dataclasses.replace(options, tls=True)
    host = url.host(6379)
    place: dict[str, Any] = {"host": host.name, "port": host.port, "db": _database(url, url.path.strip("/"))}
    return Connections(options.pool_size, options.context(), **_common(url, options), **place), options


def _by_unix(url: StorageURL) -> tuple[Connections, UnixOptions]:
    if url.hosts or not url.path.strip("/"):
        raise ConfigError(f"{url} must name a socket and no host; write redis+unix:///path.sock?db=0")
    options = url.options(UnixOptions)
    place: dict[str, Any] = {"path": url.path, "db": options.db}
    return Connections(options.pool_size, kind=UnixDomainSocketConnection, **_common(url, options), **place), options


def _by_sentinels(url: StorageURL) -> tuple[Connections, SentinelOptions]:
    options = url.options(SentinelOptions)
    service, _, number = url.path.strip("/").partition("/")
    if not service:
        raise ConfigError(f"{url} must name a service; write redis+sentinel://host:26379,host:26379/service/0")
    context = options.context()
    settings: dict[str, Any] = {"username": options.sentinel_user, "password": options.sentinel_password}
    if context is not None:
        settings |= {
            "ssl": True,
            "ssl_ca_certs": options.tls_ca,
            "ssl_certfile": options.tls_cert,
            "ssl_keyfile": options.tls_key or options.tls_cert,
        }
    connections = SentinelConnections(
        url.several_hosts(26379),
        service,
        options.pool_size,
        context,
        sentinel_settings=settings,
        **_common(url, options),
        db=_database(url, number),
    )
    return connections, options


_WAYS: dict[str, Callable[[StorageURL], tuple[Connections, TCPOptions | UnixOptions]]] = {
    "redis+unix": _by_unix,
    "redis+sentinel": _by_sentinels,
}


def _database(url: StorageURL, number: str) -> int:
    if number and not (number.isascii() and number.isdecimal()):
        raise ConfigError(f"{number!r} in {url} is not the number of a database; write {url.scheme}://…/0")
    return int(number or 0)


def _common(url: StorageURL, options: _Common) -> dict[str, Any]:
    """Give the settings of all connections, however they find their server."""
    return {
        "username": url.user,
        "password": url.password,
        "timeout": options.timeout,
        "replicas": options.replicas,
    }
