"""`memcached://`: memcached nodes through aiomcache, whose pool and reading are replaced by safe ones."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

import aiomcache
from aiomcache.exceptions import ClientException
from aiomcache.pool import Connection, MemcachePool

from .._takeover.legacy import Legacy, LegacyOptions
from ..errors import ConfigError, SessionTooLarge
from ..storage import VERSION_SIZE, Conflict, Gone, Outcome, Record, Saved, Sharded, Storage, Write, new_version
from ..url import TLSOptions, positive

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ..url import StorageURL

__all__ = ["MemcachedNodes", "MemcachedStorage", "storage_from_url"]

T = TypeVar("T")

_TOKEN_SIZE = 8
_KEY = re.compile(r"[A-Za-z0-9_-]{43}")
_LONGEST_PREFIX = 250 - 43
_LONGEST_RELATIVE = 30 * 86_400
_LAST_SECOND = 2**31 - 1  # the server reads exptime as a signed 32-bit number
_ITEM_OVERHEAD = 80  # what an item takes beside key and value: 59 bytes in 1.6, up to 80 in older builds
_TOO_LARGE = b"SERVER_ERROR object too large for cache"
_ANSWERS = frozenset({b"STORED", b"NOT_STORED", b"EXISTS", b"NOT_FOUND", b"DELETED", _TOO_LARGE})


@dataclass(frozen=True, kw_only=True)
class MemcachedOptions(TLSOptions, LegacyOptions):
    """The parameters of `memcached://`."""

    prefix: str = "session:"
    """What each key begins with, without spaces and control characters, at most 207 bytes; each app needs its own."""
    timeout: float = 2.0
    """Seconds within which each call answers or raises `StorageUnavailable`."""
    pool_size: int = 16
    """How many connections a process opens to each node at most; further calls wait for a free one."""

    def __post_init__(self) -> None:
        positive("timeout", self.timeout)
        positive("pool_size", self.pool_size)
        # isprintable refuses control characters and every white space but the plain one.
        if not self.prefix.isprintable() or " " in self.prefix or len(self.prefix.encode()) > _LONGEST_PREFIX:
            raise ConfigError(
                f"prefix={self.prefix!r} must be at most {_LONGEST_PREFIX} bytes without spaces and control characters"
            )


class _Found(NamedTuple):
    value: bytes
    token: int

    def record(self) -> Record | None:
        """Split the layout, version then data; what is too short for it is no record."""
        if len(self.value) < VERSION_SIZE:
            return None
        return Record(self.value[:VERSION_SIZE] + self.token.to_bytes(_TOKEN_SIZE, "big"), self.value[VERSION_SIZE:])


class _Pool(MemcachePool):
    """aiomcache's pool with counted places.

    Theirs wakes nobody when a connection fails, so those who wait for one hang for ever; and it
    takes a connection back although a cancelled command's answer is still to come on it.
    """

    def __init__(self, theirs: MemcachePool) -> None:
        super().__init__(theirs._host, theirs._port, minsize=1, maxsize=theirs._maxsize, conn_args=theirs.conn_args)
        self._places = asyncio.Semaphore(theirs._maxsize)
        self._idle: list[Connection] = []
        self._closed = False
        self.item_size: int | None = None
        """How large an item may be, as the server said; forgotten when it may have been restarted."""

    async def acquire(self) -> Connection:
        await self._places.acquire()
        try:
            while self._idle:
                connection = self._idle.pop()
                if not connection.writer.is_closing() and not connection.reader.at_eof():
                    return connection
                connection.writer.transport.abort()
                self.item_size = None
            return Connection(*await asyncio.open_connection(self._host, self._port, **self.conn_args))
        except BaseException:
            self._places.release()
            raise

    def release(self, conn: Connection, *, clean: bool = False) -> None:
        """Take the connection back if its last answer was read whole, else close it.

        aiomcache's own commands cannot tell, as they do not see a cancellation: theirs is closed.
        """
        if clean and not self._closed:
            self._idle.append(conn)
        else:
            conn.writer.transport.abort()  # close() would wait for a stuck server to take what is unsent
        self._places.release()

    async def clear(self) -> None:
        self.item_size = None
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.writer.transport.abort()
        for connection in idle:
            with contextlib.suppress(OSError):
                await connection.writer.wait_closed()

    async def close(self) -> None:
        self._closed = True
        await self.clear()


class _Client(aiomcache.Client):
    """A client to where another client points, over connections of its own."""

    _pool: _Pool

    def __init__(self, theirs: aiomcache.Client) -> None:
        super().__init__(theirs._pool._host, theirs._pool._port)
        self._pool = _Pool(theirs._pool)

    async def close(self) -> None:
        await self._pool.close()

    async def gets(self, keys: Sequence[bytes]) -> dict[bytes, _Found]:  # type: ignore[override]  # a batch, with tokens
        return await self._ask(b"gets " + b" ".join(keys) + b"\r\n", _read_values)

    async def pipeline(self, commands: Sequence[bytes]) -> list[bytes]:
        """Send commands in one go, and give the line that answers each."""

        async def read(reader: asyncio.StreamReader) -> list[bytes]:
            return [await _read_answer(reader) for _ in commands]

        return await self._ask(b"".join(commands), read)

    async def item_size(self) -> int:
        """Give how large an item may be (`memcached -I`).

        It must be known before the first write of a batch, since a batch with a value that is
        too large is sent again, and what it had already written would then be a conflict.
        """
        size = self._pool.item_size
        if size is None:
            settings = await self._ask(b"stats settings\r\n", _read_settings)
            if settings.get(b"cas_enabled") == b"no":
                raise ClientException("memcached was started with -C, and no write is safe without cas")
            size = self._pool.item_size = int(settings.get(b"item_size_max", 1 << 20))
        return size

    async def _ask(self, request: bytes, read: Callable[[asyncio.StreamReader], Awaitable[T]]) -> T:
        try:
            return await self._ask_once(request, read)
        except (OSError, EOFError):
            # The server closed or was restarted, so the other connections are dead as well.
            # Asking again is safe: every write carries a version that tells whether it was done.
            await self._pool.clear()
            return await self._ask_once(request, read)

    async def _ask_once(self, request: bytes, read: Callable[[asyncio.StreamReader], Awaitable[T]]) -> T:
        connection = await self._pool.acquire()
        clean = False
        try:
            connection.writer.write(request)
            await connection.writer.drain()
            answer = await read(connection.reader)
            clean = True
            return answer
        finally:
            self._pool.release(connection, clean=clean)

    async def _execute_simple_command(self, conn: Connection, raw_command: bytes) -> bytes:
        # Theirs loops at the end of the stream without awaiting, which freezes the event loop.
        conn.writer.write(raw_command)
        await conn.writer.drain()
        return (await conn.reader.readuntil(b"\r\n"))[:-2]


async def _read_answer(reader: asyncio.StreamReader) -> bytes:
    line = (await reader.readuntil(b"\r\n"))[:-2]
    if line not in _ANSWERS:  # after an error the server's idea of the stream may differ from ours
        raise ClientException(line.decode("latin-1"))
    return line


async def _read_values(reader: asyncio.StreamReader) -> dict[bytes, _Found]:
    found = {}
    while (line := await reader.readuntil(b"\r\n")) != b"END\r\n":
        if not line.startswith(b"VALUE "):
            raise ClientException(line.decode("latin-1").rstrip())
        _, key, flags, size, token = line.split()
        value = await reader.readexactly(int(size) + 2)
        found[key] = _Found(value[:-2] if flags == b"0" else b"", int(token))  # we write flags 0 only
    return found


async def _read_settings(reader: asyncio.StreamReader) -> dict[bytes, bytes]:
    settings = {}
    while (line := await reader.readuntil(b"\r\n")) != b"END\r\n":
        if not line.startswith(b"STAT "):
            raise ClientException(line.decode("latin-1").rstrip())
        _, name, *value = line.split(maxsplit=2)
        settings[name] = b"".join(value).rstrip()
    return settings


class _Change:
    """A write on its way to its outcome."""

    __slots__ = ("expected", "key", "outcome", "token", "version", "write")

    def __init__(self, key: bytes, write: Write) -> None:
        self.key = key
        self.write = write
        self.version = b"" if write.data is None else new_version()
        self.expected: bytes | None = None
        self.token: int | None = None
        self.outcome: Outcome | None = None
        if write.expected is not None:
            # Only the random part identifies a version; one that came from Saved has no token.
            self.expected, token = write.expected[:VERSION_SIZE], write.expected[VERSION_SIZE:]
            self.token = int.from_bytes(token, "big") if len(token) == _TOKEN_SIZE else None

    def command(self) -> bytes | None:
        """Give what to send, or `None` where the server must be asked first."""
        data = self.write.data
        if self.token is not None and data is None:
            # There is no delete with cas. A negative exptime is past at once, in the same atomic step; unlike
            # `md` with C it is in every version, and answers like every other write.
            return b"cas %b 0 -1 0 %d\r\n\r\n" % (self.key, self.token)
        if data is None or (self.token is None and self.expected is not None):
            return None
        size, ttl = VERSION_SIZE + len(data), _exptime(self.write.ttl)
        if self.token is None:
            return b"add %b 0 %d %d\r\n%b%b\r\n" % (self.key, ttl, size, self.version, data)
        return b"cas %b 0 %d %d %d\r\n%b%b\r\n" % (self.key, ttl, size, self.token, self.version, data)

    def hear(self, answer: bytes) -> None:
        """Take the answer to the command; where it leaves the outcome open, `see` decides."""
        if answer == b"STORED":
            self.outcome = Saved(self.version)
        elif answer == b"NOT_FOUND" and self.expected is not None:
            self.outcome = Gone()  # also of a removal whose first answer was lost
        elif answer == _TOO_LARGE:
            size = len(self.write.data or b"")  # the limit was lowered, since the item's size was asked for
            raise SessionTooLarge(size, size - 1, "memcached")

    def see(self, found: _Found | None) -> None:
        """Take what is there: either it is the outcome, or the next command follows from it."""
        record = found and found.record()
        if record is None:
            if self.expected is not None:
                self.outcome = Gone()
            elif self.write.data is None:
                self.outcome = Saved(b"")
            else:
                self.token = found.token if found else None  # what is not ours is replaced
        elif record.version[:VERSION_SIZE] == self.version:
            self.outcome = Saved(self.version)  # it was carried out, and the answer lost
        elif record.version[:VERSION_SIZE] == self.expected:
            assert found is not None
            self.token = found.token
        else:
            self.outcome = Conflict(record)


def _exptime(ttl: int) -> int:
    """Give the server's notation: up to 30 days from now, beyond that a date.

    A date is by our clock and read by the server's, so it ends early or late by their difference.
    """
    if ttl <= _LONGEST_RELATIVE:
        return max(1, ttl)  # 0 would be for ever
    return min(int(time.time()) + ttl, _LAST_SECOND)


class MemcachedStorage(Storage):
    """Sessions in one memcached node, for as long as it runs and has room for them.

    The client's host, port, `conn_args` and pool size are used, over connections of our own, as
    aiomcache's pool hands a cancelled command's answer to the next caller.

    Args:
        client: an `aiomcache.Client`, which is neither used up nor closed.
        prefix: what each key begins with.
        timeout: seconds within which every verb answers or raises `StorageUnavailable`.
        former: whose sessions are taken over, as `migrate=` in a URL says.

    Raises:
        ConfigError: a value that cannot work.
    """

    def __init__(
        self,
        client: aiomcache.Client,
        *,
        prefix: str = "session:",
        timeout: float = 2.0,
        legacy: Legacy | None = None,
    ) -> None:
        options = MemcachedOptions(prefix=prefix, timeout=timeout)
        self.legacy = legacy
        self.timeout = options.timeout
        self._prefix = options.prefix
        self._theirs = client
        self._client: _Client | None = None

    @classmethod
    def from_url(cls, url: StorageURL) -> Self:
        """Read `memcached://host:port?prefix=&timeout=&pool_size=&tls=…`."""
        if url.user is not None or url.password is not None:
            raise ConfigError(f"{url} names a user or password, and aiomcache cannot log in; leave them out")
        if url.path.strip("/"):
            raise ConfigError(f"{url} has the path {url.path!r}, which memcached:// does not use; leave it out")
        host, options = url.host(11211), url.options(MemcachedOptions)
        conn_args: dict[str, object] = {}
        if context := options.context():
            # A handshake that is given up would otherwise linger for a minute.
            conn_args = {"ssl": context, "ssl_handshake_timeout": options.timeout}
        client = aiomcache.Client(host.name, host.port or 11211, pool_size=options.pool_size, conn_args=conn_args)
        return cls(client, prefix=options.prefix, timeout=options.timeout, legacy=options.legacy())

    def __repr__(self) -> str:
        return f"<MemcachedStorage at {self.node}>"

    @property
    def node(self) -> str:
        """The host, in lower case as names have none, and the port."""
        return f"{self._theirs._pool._host.lower()}:{self._theirs._pool._port}"

    async def open(self) -> None:
        if self._client is None:
            self._client = _Client(self._theirs)

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        if not keys:
            return []
        names = self._names(keys)
        async with self.answering(ClientException, asyncio.LimitOverrunError):
            found = await self._opened().gets(names)
        return [found[name].record() if name in found else None for name in names]

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        if not writes:
            return []
        names = self._names([write.key for write in writes])
        async with self.answering(ClientException, asyncio.LimitOverrunError):
            client = self._opened()
            limit = await client.item_size() - _ITEM_OVERHEAD - len(names[0]) - VERSION_SIZE
            for write in writes:
                if len(write.data or b"") > limit:
                    raise SessionTooLarge(len(write.data or b""), limit, "memcached")
            changes = [_Change(name, write) for name, write in zip(names, writes, strict=True)]
            pending = changes
            while pending:
                pending = await self._advance(client, pending)
        return [change.outcome for change in changes if change.outcome is not None]

    async def delete(self, keys: Sequence[str]) -> None:
        if not keys:
            return
        names = self._names(keys)
        async with self.answering(ClientException, asyncio.LimitOverrunError):
            await self._opened().pipeline([b"delete " + name + b"\r\n" for name in names])

    async def read_legacy(self, key: str) -> bytes | None:
        name = key.encode()
        async with self.answering(ClientException, asyncio.LimitOverrunError):
            found = await self._opened().gets([name])
        return found[name].value if name in found else None

    async def remove_legacy(self, key: str) -> None:
        async with self.answering(ClientException, asyncio.LimitOverrunError):
            await self._opened().pipeline([b"delete " + key.encode() + b"\r\n"])

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _advance(self, client: _Client, changes: list[_Change]) -> list[_Change]:
        """Send what can be sent, ask about what stays open, and give what needs another turn."""
        commands = {change: command for change in changes if (command := change.command()) is not None}
        if commands:
            for change, answer in zip(commands, await client.pipeline(list(commands.values())), strict=True):
                change.hear(answer)
        unclear = [change for change in changes if change.outcome is None]
        if unclear:
            found = await client.gets([change.key for change in unclear])
            for change in unclear:
                change.see(found.get(change.key))
        return [change for change in unclear if change.outcome is None]

    def _opened(self) -> _Client:
        if self._client is None:
            raise RuntimeError(f"{self!r} is not open; await open() first")
        return self._client

    def _names(self, keys: Sequence[str]) -> list[bytes]:
        for key in keys:
            if not _KEY.fullmatch(key):  # a space or line end in it would be a command of its own
                raise ValueError(f"{key!r} is not a key; it must be 43 base64url characters")
        return [(self._prefix + key).encode() for key in keys]


class MemcachedNodes(Sharded):
    """Sessions spread over several memcached nodes, by rendezvous hashing of the key and the node's host and port.

    A key has one node, whatever the order of the nodes and whether they answer: were the keys of a
    silent node written elsewhere, its return would bring back sessions that had ended meanwhile.
    So its sessions are unavailable until it returns, and only they.

    Args:
        nodes: at least one, and each once.

    Raises:
        ConfigError: no node, or one twice.
    """

    def __init__(self, nodes: Sequence[MemcachedStorage]) -> None:
        names = [node.node for node in nodes]
        self._nodes = dict(zip(names, nodes, strict=True))
        if not names or len(self._nodes) < len(names):
            raise ConfigError(f"the memcached nodes are {', '.join(names) or 'none'}; name at least one, and each once")
        self.timeout = max(node.timeout for node in nodes)
        self._first = nodes[0]
        self.legacy = self._first.legacy

    def __repr__(self) -> str:
        return f"<MemcachedNodes at {', '.join(self._nodes)}>"

    async def open(self) -> None:
        for node in self._nodes.values():
            await node.open()

    async def close(self) -> None:
        for node in self._nodes.values():
            await node.close()

    async def read_legacy(self, key: str) -> bytes | None:
        """Ask the first node: aiohttp-session knows one only."""
        return await self._first.read_legacy(key)

    async def remove_legacy(self, key: str) -> None:
        await self._first.remove_legacy(key)

    def shard_of(self, key: str) -> MemcachedStorage:
        """Give the node that scores highest: one more or less moves only the keys it wins or had."""
        return self._nodes[max(self._nodes, key=lambda node: blake2b(f"{node} {key}".encode(), digest_size=8).digest())]


def storage_from_url(url: StorageURL) -> Storage:
    """Read `memcached://host:port,host:port?…`, whose parameters hold for each node."""
    if url.hosts[1:]:
        return MemcachedNodes([MemcachedStorage.from_url(replace(url, hosts=(host,))) for host in url.hosts])
    return MemcachedStorage.from_url(url)
