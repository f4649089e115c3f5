"""`redis://`: Redis, Valkey and whatever else speaks their protocol and runs Lua; with sentinels as well."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Self

from redis._parsers.helpers import parse_info
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import AuthenticationError, NoScriptError, RedisError
from redis.exceptions import TimeoutError as SilentError

from .._log import log_once, logger
from ..errors import ConfigError, SessionTooLarge, StorageUnavailable
from ..storage import VERSION_SIZE, Conflict, Gone, Outcome, Record, Saved, Storage, Write, new_version
from ._redis_connections import Connections, LostError
from ._redis_url import RedisOptions, read

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ..url import StorageURL

__all__ = ["RedisOptions", "RedisStorage"]

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


class RedisStorage(Storage):
    """Sessions in Redis or Valkey: one string per session, its version first, expired by the server.

    Args:
        client: a `redis.asyncio.Redis` without `decode_responses`; it is used as it is, and not closed.
        options: the keys, how long a call may take, and whose sessions are taken over.

    Raises:
        ConfigError: another client, or options that do not go together.
    """

    def __init__(self, client: Redis | Connections, options: RedisOptions | None = None) -> None:
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
        options = options or RedisOptions()
        self.prefix, self.timeout, self.legacy = options.prefix, options.timeout, options.legacy()
        self._client = client
        self._name = name

    @classmethod
    def from_url(cls, url: StorageURL) -> Self:
        """Read `redis://user:password@host:port/db?…` and what is like it.

        `redis+unix:///path.sock?db=0&…`, and `redis+sentinel://user:password@host:port,host:port/service/db?…`,
        where the hosts are the sentinels.
        """
        return cls(*read(url))

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
            about=repr(storage),
        )
