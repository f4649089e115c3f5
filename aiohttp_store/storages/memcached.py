"""`memcached://`: one memcached node or several; the client says where, the connections are our own."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Self

import aiomcache

from .._takeover.legacy import LegacyOptions
from ..errors import ConfigError, SessionTooLarge, StorageRefused, StorageUnavailable
from ..storage import VERSION_SIZE, Gone, Outcome, Record, Saved, Sharded, Storage, Write, new_version, outcome
from ..url import TLSOptions, positive
from ._memcached_protocol import TOO_LARGE, Found, MemcachedError, Node, NodeConnections, add, cas, delete, remove
from ._refusals import is_tls_refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..url import StorageURL

__all__ = ["MemcachedNodes", "MemcachedOptions", "MemcachedStorage", "MemcachedURLOptions", "storage_from_url"]

_TOKEN_SIZE = 8
_KEY = re.compile(r"[A-Za-z0-9_-]{43}")
_LONGEST_PREFIX = 250 - 43
_ITEM_OVERHEAD = 80  # what an item takes beside key and value: 59 bytes in 1.6, up to 80 in older builds
_OUTAGES = (MemcachedError,)


@dataclass(frozen=True, kw_only=True)
class MemcachedOptions(LegacyOptions):
    """How sessions are kept in a memcached node; it also takes the parameters of a URL that begin with ``migrate``."""

    prefix: str = "session:"
    """What each key begins with, without spaces and control characters, at most 207 bytes; each app needs its own."""
    timeout: float = 2.0
    """Seconds within which each call answers or raises `StorageUnavailable`."""

    def __post_init__(self) -> None:
        positive("timeout", self.timeout)
        # isprintable refuses control characters and every white space but the plain one.
        if not self.prefix.isprintable() or " " in self.prefix or len(self.prefix.encode()) > _LONGEST_PREFIX:
            raise ConfigError(
                f"prefix={self.prefix!r} must be at most {_LONGEST_PREFIX} bytes without spaces and control characters"
            )


@dataclass(frozen=True, kw_only=True)
class MemcachedURLOptions(MemcachedOptions, TLSOptions):
    """The parameters of `memcached://`: those of the storage, and those of the client that it makes."""

    pool_size: int = 16
    """How many connections a process opens to each node at most; further calls wait for a free one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("pool_size", self.pool_size)


def _record(found: Found) -> Record | None:
    """Split the layout, version then data; what is too short for it is not a record."""
    if len(found.value) < VERSION_SIZE:
        return None
    return Record(found.value[:VERSION_SIZE] + found.token.to_bytes(_TOKEN_SIZE, "big"), found.value[VERSION_SIZE:])


def _node_of(client: aiomcache.Client) -> Node:
    pool = client._pool  # aiomcache shows none of these  # noqa: SLF001  (aiomcache has no other way)
    return Node(pool._host, pool._port, pool._maxsize, pool.conn_args)  # noqa: SLF001  (aiomcache has no other way)


def _is_wordless(error: BaseException | None) -> bool:
    """Whether a server has failed a call without saying why."""
    return type(error) is StorageUnavailable and not isinstance(error.__cause__, MemcachedError)


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
        """Return what to send, or `None` if the server must be asked first."""
        data, ttl = self.write.data, self.write.ttl
        if self.token is not None:
            return remove(self.key, self.token) if data is None else cas(self.key, ttl, self.version + data, self.token)
        return None if data is None or self.expected is not None else add(self.key, ttl, self.version + data)

    def apply_answer(self, answer: bytes) -> None:
        """Take the answer to the command; if it leaves the outcome open, `apply_found` decides."""
        if answer == b"STORED":
            self.outcome = Saved(self.version)
        elif answer == b"NOT_FOUND" and self.expected is not None:
            self.outcome = Gone()  # also of a removal whose first answer was lost
        elif answer == TOO_LARGE:
            if self.write.data is None:  # an item without a byte
                raise MemcachedError(answer)
            size = len(self.write.data)  # the limit was lowered since the item's size was asked for
            raise SessionTooLarge(size, size - 1, "memcached")

    def apply_found(self, found: Found | None) -> None:
        """Take what is there: either it is the outcome, or the next command follows from it."""
        record = _record(found) if found else None
        version = record.version[:VERSION_SIZE] if record else None
        if record and version == self.version:
            self.outcome = Saved(self.version)  # it was carried out, and the answer lost
        elif record is None or version != self.expected:
            self.outcome = outcome(self.write, self.version, record)
        self.token = found.token if found else None  # of what is expected, or is not ours and to be replaced


class MemcachedStorage(Storage):
    """Sessions in one memcached node, for as long as it runs and has room for them.

    Of the client only the address, the pool's size and `conn_args` are read; the storage has connections of its own,
    as aiomcache's pool hands a cancelled command's answer to the next caller.

    Args:
        client: an `aiomcache.Client`, which is neither used up nor closed.
        options: how the sessions are kept; the defaults if it is left out.

    Raises:
        ConfigError: a value that cannot work.
    """

    def __init__(self, client: aiomcache.Client, options: MemcachedOptions | None = None) -> None:
        options = options or MemcachedOptions()
        self.prefix, self.timeout, self.legacy = options.prefix, options.timeout, options.legacy()
        self._node = _node_of(client)
        self._connections: NodeConnections | None = None

    @classmethod
    def from_url(cls, url: StorageURL) -> Self:
        """Read `memcached://host:port?prefix=&timeout=&pool_size=&tls=…`."""
        if url.user is not None or url.password is not None:
            raise ConfigError(f"{url} names a user or password, and aiomcache cannot log in; leave them out")
        if url.path.strip("/"):
            raise ConfigError(f"{url} has the path {url.path!r}, which memcached:// does not use; leave it out")
        host, options = url.host(11211), url.options(MemcachedURLOptions)
        conn_args: dict[str, object] = {}
        if context := options.context():
            # A handshake that is given up would otherwise linger for a minute.
            conn_args = {"ssl": context, "ssl_handshake_timeout": options.timeout}
        client = aiomcache.Client(host.name, host.port or 11211, pool_size=options.pool_size, conn_args=conn_args)
        return cls(client, options)

    def __repr__(self) -> str:
        return f"<MemcachedStorage at {self.node}>"

    @property
    def node(self) -> str:
        """The host, in lower case as names have none, and the port."""
        return f"{self._node.host.lower()}:{self._node.port}"

    async def open(self) -> None:
        if self._connections is None:
            self._connections = NodeConnections(self._node)
            async with self.opening(*_OUTAGES):
                pass

    async def check(self) -> None:
        """Do what any storage does, and find out what a server speaks that does not answer.

        Raises:
            StorageRefused: the server answers, and will not serve; the message names what to check.
            StorageUnavailable: the server did not answer within `timeout`.
        """
        checking = asyncio.create_task(super().check())
        try:
            await asyncio.wait({checking}, timeout=self.timeout / 2)
            if not checking.done() or _is_wordless(checking.exception()):
                advice = await self._opened().other_protocol(within=self.timeout / 3)
                if advice is not None:
                    raise StorageRefused(f"{self!r} refuses: {advice}")
            await checking
        finally:
            checking.cancel()
            await asyncio.wait({checking})

    def refusal(self, error: Exception) -> str | None:
        if isinstance(error, MemcachedError):
            return error.way_out
        if is_tls_refusal(error):
            return "check tls_ca, tls_cert and tls_key, and that the server is started with -Z"
        return None

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        if not keys:
            return []
        names = self._names(keys)
        async with self.answering(*_OUTAGES):
            found = await self._opened().gets(names)
        return [_record(found[name]) if name in found else None for name in names]

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        if not writes:
            return []
        names = self._names([write.key for write in writes])
        async with self.answering(*_OUTAGES):
            connections = self._opened()
            limit = await connections.item_size() - _ITEM_OVERHEAD - len(names[0]) - VERSION_SIZE
            for write in writes:
                if len(write.data or b"") > limit:
                    raise SessionTooLarge(len(write.data or b""), limit, "memcached")
            changes = [_Change(name, write) for name, write in zip(names, writes, strict=True)]
            pending = changes
            while pending:
                pending = await _advance(connections, pending)
        return [change.outcome for change in changes if change.outcome is not None]

    async def delete(self, keys: Sequence[str]) -> None:
        if not keys:
            return
        names = self._names(keys)
        async with self.answering(*_OUTAGES):
            await self._opened().pipeline([delete(name) for name in names])

    async def read_legacy(self, key: str) -> bytes | None:
        name = key.encode()
        async with self.answering(*_OUTAGES):
            found = await self._opened().gets([name])
        return found[name].value if name in found else None

    async def remove_legacy(self, key: str) -> None:
        async with self.answering(*_OUTAGES):
            await self._opened().pipeline([delete(key.encode())])

    async def close(self) -> None:
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.close()

    def _opened(self) -> NodeConnections:
        if self._connections is None:
            raise StorageUnavailable(f"{self!r} is not open")
        return self._connections

    def _names(self, keys: Sequence[str]) -> list[bytes]:
        for key in keys:
            if not _KEY.fullmatch(key):  # a space or line end in it would be a command of its own
                raise ValueError(f"{key!r} is not a key; it must be 43 base64url characters")
        return [(self.prefix + key).encode() for key in keys]


async def _advance(connections: NodeConnections, changes: list[_Change]) -> list[_Change]:
    """Send what can be sent, ask about what stays open, and return what needs another turn."""
    commands = {change: command for change in changes if (command := change.command()) is not None}
    if commands:
        for change, answer in zip(commands, await connections.pipeline(list(commands.values())), strict=True):
            change.apply_answer(answer)
    unclear = [change for change in changes if change.outcome is None]
    if unclear:
        found = await connections.gets([change.key for change in unclear])
        for change in unclear:
            change.apply_found(found.get(change.key))
    return [change for change in unclear if change.outcome is None]


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
        await asyncio.gather(*(node.open() for node in self._nodes.values()))

    async def check(self) -> None:
        """Check every node; what one refuses comes before another's outage."""
        checks = (node.check() for node in self._nodes.values())
        failures = [failure for failure in await asyncio.gather(*checks, return_exceptions=True) if failure is not None]
        if failures:
            raise max(failures, key=lambda failure: isinstance(failure, StorageRefused))

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
