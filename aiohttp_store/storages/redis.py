"""`redis://`: Redis, Valkey and whatever else speaks their protocol and runs Lua; with sentinels as well."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, Any, Self

from redis.asyncio import Redis, SSLConnection
from redis.asyncio.client import Pipeline
from redis.exceptions import AuthenticationError, NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as SilentError

from ..errors import ConfigError, SessionTooLarge, StorageRefused
from ..storage import CHECK_TTL, VERSION_SIZE, Outcome, Record, Storage, Write, new_version
from ._port_probe import Place, refused_by_another
from ._redis_connections import PROTOCOL, Connections, LostError, understood
from ._redis_replies import WrongReplyError, advice_for, info_of, number_of, outcomes_of, records_of, without_arguments
from ._redis_url import RedisOptions, read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..url import StorageURL

__all__ = ["RedisOptions", "RedisStorage"]

_REMOVED = b"-"  # stands for the version that a removal left, which no value has; '' in the script is "none expected"
_LARGEST = 512 << 20  # of a string, by the server's proto-max-bulk-len
_TRIED_AT_ONCE = (
    16  # records of a check: that several servers behind a proxy hold them all by chance is not to be feared
)

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
            self._place = _place_of(client)
        elif isinstance(client, Connections):
            name = str(client)
            self._place = client.place
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
        """Make ready to connect, and say so if the server is down, does not serve, or may throw sessions away."""
        if isinstance(self._client, Connections):
            self._client.open()
        async with self.opening(RedisError):
            pass  # it is tried

    async def close(self) -> None:
        if isinstance(self._client, Connections):
            await self._client.aclose()

    async def check(self) -> None:
        """Write, read and remove several records at once, which only one server that has them all can do."""
        await refused_by_another(self, self._try(), self._place)

    async def _try(self) -> None:
        async with self.answering(RedisError):
            other = await info_of(self, self._execute)
        if other is not None:
            raise StorageRefused(f"{self!r} cannot be used: {other}")
        keys = [secrets.token_urlsafe(32) for _ in range(_TRIED_AT_ONCE)]
        await self._save([Write(key, None, b"", CHECK_TTL) for key in keys], is_known=False)
        found = await self.load(keys)
        versions = [record and record.version for record in found]
        await self.save([Write(key, v, None, CHECK_TTL) for key, v in zip(keys, versions, strict=True)])
        await self.delete(keys)
        if None in found:
            raise StorageRefused(
                f"{self!r} cannot be used: it has lost {found.count(None)} of {len(found)} records that it had just "
                "stored, as a proxy that spreads keys over several servers does; connect to one server, "
                "or use redis+cluster://"
            )

    def refusal(self, error: Exception) -> str | None:
        return advice_for(error)

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        if not keys:
            return []
        async with self.answering(RedisError):
            # MGET gives nil for a key of another type.
            return records_of(await self._ask("MGET", *[self.prefix + key for key in keys]), len(keys))

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        return await self._save(writes) if writes else []

    async def _save(self, writes: Sequence[Write], *, is_known: bool = True) -> list[Outcome]:
        """Write by the script's hash, if the server may know it; otherwise by the script itself."""
        versions = [version_for(write) for write in writes]
        names = [self.prefix + write.key for write in writes]
        arguments: list[Any] = []
        for write, version in zip(writes, versions, strict=True):
            arguments += script_of(write, version)
        async with self.answering(RedisError):
            try:
                way = ("EVALSHA", SAVE_SHA) if is_known else ("EVAL", SAVE)
                reply = await self._change(*way, len(names), *names, *arguments)
            except NoScriptError:  # a restarted server has forgotten it; EVAL also keeps it for the next EVALSHA
                reply = await self._change("EVAL", SAVE, len(names), *names, *arguments)
            return outcomes_of(reply, versions)

    async def delete(self, keys: Sequence[str]) -> None:
        if keys:
            async with self.answering(RedisError):
                number_of(await self._change("DEL", *[self.prefix + key for key in keys]))

    async def read_legacy(self, key: str) -> bytes | None:
        async with self.answering(RedisError):
            reply = await self._ask("MGET", key)
            if not (isinstance(reply, list) and len(reply) == 1 and isinstance(reply[0], bytes | None)):
                raise WrongReplyError("a value was due")
            value: bytes | None = reply[0]
        return value

    async def remove_legacy(self, key: str) -> None:
        async with self.answering(RedisError):
            number_of(await self._change("DEL", key))

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
            return await self._execute(*command)
        except AuthenticationError:  # redis-py counts it among the lost connections
            raise
        except (LostError, SilentError):
            return await self._execute(*command)

    async def _execute(self, *command: Any) -> Any:
        if isinstance(self._client, Connections):
            return await self._client.execute_command(*command)
        with understood():
            try:
                return await self._client.execute_command(*command)  # type: ignore[no-untyped-call]
            except ResponseError as error:
                raise without_arguments(error) from None


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


def _place_of(client: Redis) -> Place | None:
    pool: Any = client.connection_pool
    host = pool.connection_kwargs.get("host")
    if host is None:
        return None
    return Place(
        host, pool.connection_kwargs.get("port", 6379), PROTOCOL, issubclass(pool.connection_class, SSLConnection)
    )
