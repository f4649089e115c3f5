"""The six commands of memcached's classic protocol that are needed here, and connections that are safe to cancel.

Of aiomcache only its client's address, pool size and `conn_args` are used. Its pool hands the answer of a cancelled
command to the next caller and forgets those who wait when a connection fails; its reading freezes the event loop at the
end of a stream; its `cas` tells a changed item from a missing one as little as its `multi_get` tells the tokens.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ..storage import retrying
from ._pool import Pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from typing import Any

__all__ = [
    "SETTINGS",
    "TOO_LARGE",
    "Found",
    "MemcachedError",
    "Node",
    "NodeConnections",
    "add",
    "cas",
    "delete",
    "gets",
    "read_answer",
    "read_settings",
    "read_values",
    "remove",
]

T = TypeVar("T")

TOO_LARGE = b"SERVER_ERROR object too large for cache"
SETTINGS = b"stats settings\r\n"
_ANSWERS = frozenset({b"STORED", b"NOT_STORED", b"EXISTS", b"NOT_FOUND", b"DELETED", TOO_LARGE})
_LOST = (OSError, EOFError)
_LONGEST_RELATIVE = 30 * 86_400
_LAST_SECOND = 2**31 - 1  # the server reads exptime as a signed 32-bit number


class MemcachedError(Exception):
    """The server refused a command, or is not memcached; the connection is of no further use."""


class Found(NamedTuple):
    """An item, and the token by which `cas` knows it again."""

    value: bytes
    token: int

    def __repr__(self) -> str:
        return f"<Found {len(self.value)} bytes, token {self.token}>"

    def __sentry_repr__(self) -> str:  # Sentry shows the items of a tuple, whatever its repr is
        return repr(self)


# Requests


def gets(keys: Sequence[bytes]) -> bytes:
    return b"gets " + b" ".join(keys) + b"\r\n"


def add(key: bytes, ttl: int, value: bytes) -> bytes:
    return b"add %b 0 %d %d\r\n%b\r\n" % (key, _exptime(ttl), len(value), value)


def cas(key: bytes, ttl: int, value: bytes, token: int) -> bytes:
    return b"cas %b 0 %d %d %d\r\n%b\r\n" % (key, _exptime(ttl), len(value), token, value)


def remove(key: bytes, token: int) -> bytes:
    """Remove an item if it still has this token.

    There is no delete with cas. A negative exptime is past at once, in the same atomic step; unlike `md` with C it
    is in every version, and answers like every other write.
    """
    return b"cas %b 0 -1 0 %d\r\n\r\n" % (key, token)


def delete(key: bytes) -> bytes:
    return b"delete " + key + b"\r\n"


def _exptime(ttl: int) -> int:
    """Return the server's notation: up to 30 days from now, beyond that a date.

    A date is by our clock and read by the server's, so it ends early or late by their difference.
    """
    if ttl <= _LONGEST_RELATIVE:
        return max(1, ttl)  # 0 would mean no expiry
    return min(int(time.time()) + ttl, _LAST_SECOND)


# Answers


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    """Read the line that answers `add`, `cas` or `delete`."""
    line = (await reader.readuntil(b"\r\n"))[:-2]
    if line not in _ANSWERS:  # after an error the server's idea of the stream may differ from ours
        raise MemcachedError(line.decode("latin-1"))
    return line


async def read_values(reader: asyncio.StreamReader) -> dict[bytes, Found]:
    """Read what answers `gets`; an item with flags, which are never ours, is as if it were empty."""
    found = {}
    while (line := await reader.readuntil(b"\r\n")) != b"END\r\n":
        if not line.startswith(b"VALUE "):
            raise MemcachedError(line.decode("latin-1").rstrip())
        try:
            _, key, flags, size, token = line.split()
            value = await reader.readexactly(int(size) + 2)
            found[key] = Found(value[:-2] if flags == b"0" else b"", int(token))
        except ValueError:
            raise MemcachedError(line.decode("latin-1").rstrip()) from None
    return found


async def read_settings(reader: asyncio.StreamReader) -> dict[bytes, bytes]:
    """Read what answers `SETTINGS`."""
    settings = {}
    while (line := await reader.readuntil(b"\r\n")) != b"END\r\n":
        if not line.startswith(b"STAT "):
            raise MemcachedError(line.decode("latin-1").rstrip())
        _, name, *value = line.split(maxsplit=2)
        settings[name] = b"".join(value).rstrip()
    return settings


# Connections


class Node(NamedTuple):
    """Where a memcached server is, and how many connections to it may be open."""

    host: str
    port: int
    pool_size: int
    conn_args: Mapping[str, Any]
    """Arguments of `asyncio.open_connection`."""


class _Stream(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class NodeConnections:
    """Connections to one node; they belong to one event loop."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._pool = Pool(node.pool_size, connect=self._connect, is_alive=self._is_alive, abort=_abort)
        self._item_size: int | None = None  # forgotten when the server may have been restarted

    async def close(self) -> None:
        await self._pool.close()

    async def gets(self, keys: Sequence[bytes]) -> dict[bytes, Found]:
        return await self._ask(gets(keys), read_values)

    async def pipeline(self, commands: Sequence[bytes]) -> list[bytes]:
        """Send commands in one piece, and return the line that answers each."""

        async def read(reader: asyncio.StreamReader) -> list[bytes]:
            return [await read_answer(reader) for _ in commands]

        return await self._ask(b"".join(commands), read)

    async def item_size(self) -> int:
        """Return how large an item may be (`memcached -I`).

        It must be known before the first write of a batch, since a batch with a value that is
        too large is sent again, and what it had already written would then be a conflict.
        """
        size = self._item_size
        if size is None:
            settings = await self._ask(SETTINGS, read_settings)
            if settings.get(b"cas_enabled") == b"no":
                raise MemcachedError("memcached was started with -C, and no write is safe without cas")
            size = self._item_size = int(settings.get(b"item_size_max", 1 << 20))
        return size

    async def _ask(self, request: bytes, read: Callable[[asyncio.StreamReader], Awaitable[T]]) -> T:
        return await retrying(partial(self._ask_once, request, read), lambda error: isinstance(error, _LOST))

    async def _ask_once(self, request: bytes, read: Callable[[asyncio.StreamReader], Awaitable[T]]) -> T:
        stream, is_clean = await self._pool.acquire(), False
        try:
            stream.writer.write(request)
            await stream.writer.drain()
            answer = await read(stream.reader)
            is_clean = True
        except _LOST:  # the server closed or was restarted, so the other connections are dead as well
            self._item_size = None
            self._pool.forget()
            raise
        finally:
            self._pool.release(stream, is_clean=is_clean)
        return answer

    async def _connect(self) -> _Stream:
        return _Stream(*await asyncio.open_connection(self._node.host, self._node.port, **self._node.conn_args))

    async def _is_alive(self, stream: _Stream) -> bool:
        if not stream.writer.is_closing() and not stream.reader.at_eof():
            return True
        self._item_size = None
        return False


def _abort(stream: _Stream) -> None:
    stream.writer.transport.abort()  # close() would wait for a stuck server to take what is unsent
