"""The six commands of memcached's classic protocol that are needed here, and connections that are safe to cancel.

Of aiomcache only its client's address, pool size and `conn_args` are used. Its pool hands the answer of a cancelled
command to the next caller and forgets those who wait when a connection fails; its reading freezes the event loop at the
end of a stream; its `cas` tells a changed item from a missing one as little as its `multi_get` tells the tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
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
# As long as a header of the binary protocol: a server that speaks no other then hangs up, and waits for no more of it.
SETTINGS = b"stats settings          \r\n"
_ANSWERS = {
    b"add": frozenset({b"STORED", b"NOT_STORED", TOO_LARGE}),
    b"cas": frozenset({b"STORED", b"EXISTS", b"NOT_FOUND", TOO_LARGE}),
    b"delete": frozenset({b"DELETED", b"NOT_FOUND"}),
}
_FIRST_WORDS = (
    *(b"STORED", b"NOT_STORED", b"EXISTS", b"NOT_FOUND", b"DELETED", b"VALUE", b"STAT", b"END"),
    *(b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR"),
)
_NOOP = bytes([0x80, 0x0A, *bytes(22)])  # of the binary protocol
_IS_BINARY = b"\x81"
_SMALLEST_LIMIT = 1024  # bytes, the least that `-I` takes
_LOST = (OSError, EOFError)
_LONGEST_RELATIVE = 30 * 86_400
_LAST_SECOND = 2**31 - 1  # the server reads exptime as a signed 32-bit number


class MemcachedError(Exception):
    """The server refused a command, or is not memcached; the connection is of no further use.

    Args:
        said: the server's line.
        way_out: what to check, if the server will answer so however often it is asked.
    """

    def __init__(self, said: bytes, way_out: str | None = None) -> None:
        super().__init__(repr(said[:_SHOWN])[2:-1])
        self.way_out = way_out or _way_out(said)


_SHOWN = 200
_WAYS_OUT = (
    (rb"CLIENT_ERROR unauthenticated", "it wants a login, which this client cannot give; start it without -Y"),
    (
        rb"ERROR$|CLIENT_ERROR |.*(not |un)supported",
        "it needs the commands gets, add, cas, delete and `stats settings`; name the memcached nodes, not a proxy",
    ),
    (b"(?!%b)" % b"|".join(_FIRST_WORDS), "this is not memcached's protocol; check the host and the port"),
)


def _way_out(said: bytes) -> str | None:
    return next((way_out for pattern, way_out in _WAYS_OUT if re.match(pattern, said, re.DOTALL)), None)


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

_VALUE = re.compile(rb"VALUE (\S+) (\d{1,10}) (\d{1,10}) (\d{1,20})")
_LAST_TOKEN = 2**64 - 1


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    try:
        return (await reader.readuntil(b"\r\n"))[:-2]
    except asyncio.LimitOverrunError:
        raise MemcachedError(await reader.read(_SHOWN)) from None
    except asyncio.IncompleteReadError as error:
        begun = error.partial
        if not any(word[: len(begun)] == begun[: len(word)] for word in _FIRST_WORDS):
            raise MemcachedError(begun) from None
        raise


async def read_answer(reader: asyncio.StreamReader, command: bytes) -> bytes:
    """Read the line that answers `add`, `cas` or `delete`."""
    line = await _read_line(reader)
    if line not in _ANSWERS[command.partition(b" ")[0]]:  # the server's idea of the stream may differ from ours
        raise MemcachedError(line)
    return line


async def read_values(reader: asyncio.StreamReader) -> dict[bytes, Found]:
    """Read what answers `gets`; an item with flags, which are never ours, is as if it were empty."""
    found = {}
    while (line := await _read_line(reader)) != b"END":
        if not (header := _VALUE.fullmatch(line)):
            raise MemcachedError(line)
        key, flags, size, token = header.groups()
        value = await reader.readexactly(int(size) + 2)
        if value[-2:] != b"\r\n" or int(token) > _LAST_TOKEN:
            raise MemcachedError(line)
        found[key] = Found(value[:-2] if flags == b"0" else b"", int(token))
    return found


async def read_settings(reader: asyncio.StreamReader) -> dict[bytes, bytes]:
    """Read what answers `SETTINGS`."""
    settings = {}
    while (line := await _read_line(reader)) != b"END":
        word, name, *value = (*line.split(maxsplit=2), b"", b"")
        if word != b"STAT" or not name:
            raise MemcachedError(line)
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
        async def read(reader: asyncio.StreamReader) -> dict[bytes, Found]:
            found = await read_values(reader)
            if not found.keys() <= set(keys):
                raise MemcachedError(b"VALUE of a key that was not asked for")
            return found

        return await self._ask(gets(keys), read)

    async def pipeline(self, commands: Sequence[bytes]) -> list[bytes]:
        """Send commands in one piece, and return the line that answers each."""

        async def read(reader: asyncio.StreamReader) -> list[bytes]:
            return [await read_answer(reader, command) for command in commands]

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
                raise MemcachedError(b"cas_enabled no", "no write is safe without cas; start memcached without -C")
            told = settings.get(b"item_size_max", b"%d" % (1 << 20))
            size = int(told) if re.fullmatch(rb"\d{1,20}", told) else 0
            if size < _SMALLEST_LIMIT:
                raise MemcachedError(b"STAT item_size_max " + told)
            self._item_size = size
        return size

    async def other_protocol(self, within: float) -> str | None:
        """Return what to check, if a server that does not answer soon turns out to speak otherwise."""
        plain = {name: value for name, value in self._node.conn_args.items() if not name.startswith("ssl")}
        anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE  # nothing is sent over it
        hints = [self._hint("it speaks first, as memcached does not; check the host and the port", within, plain, b"")]
        if plain != self._node.conn_args:
            advice = "it speaks no TLS; leave tls out, or see that it is started with -Z"
            hints.append(self._hint(advice, within, plain, b"version\r\n", b"VERSION"))
        else:
            advice = "it speaks the binary protocol only; start it without -S and -B binary"
            hints.append(self._hint(advice, within, plain, _NOOP, _IS_BINARY))
            hints.append(self._hint("it wants TLS; add tls=true", within, {**plain, "ssl": anyone}, b"", b""))
        attempts = [asyncio.create_task(hint) for hint in hints]
        try:
            for attempt in asyncio.as_completed(attempts):
                if advice := await attempt:
                    return advice
            return None
        finally:
            for unfinished in attempts:
                unfinished.cancel()
            await asyncio.wait(attempts)

    async def _hint(
        self, advice: str, within: float, conn_args: Mapping[str, Any], request: bytes, answer: bytes | None = None
    ) -> str:
        """Return the advice if a new connection brings this answer, or any if it is `None`; otherwise nothing."""
        with contextlib.suppress(*_LOST):  # TimeoutError is an OSError
            async with asyncio.timeout(within):
                stream = _Stream(*await asyncio.open_connection(self._node.host, self._node.port, **conn_args))
                try:
                    stream.writer.write(request)
                    said = await stream.reader.readexactly(1 if answer is None else len(answer))
                    return advice if answer in (None, said) else ""
                finally:
                    _abort(stream)
        return ""

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
