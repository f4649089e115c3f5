"""A server that answers whatever it is told to, for what no right one ever says."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import bson

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter
OP_QUERY, OP_MSG = 2004, 2013


@asynccontextmanager
async def serving(serve: Callable[[Reader, Writer], Awaitable[None]]) -> AsyncIterator[int]:
    """Serve connections for the block, which is given the port."""

    async def until_the_end(reader: Reader, writer: Writer) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
            await serve(reader, writer)

    async with await asyncio.start_server(until_the_end, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def saying(text: bytes) -> Callable[[Reader, Writer], Awaitable[None]]:
    """Return what says this after the first words of whoever connects, and hangs up."""

    async def serve(reader: Reader, writer: Writer) -> None:
        await reader.read(100)
        writer.write(text)
        await writer.drain()

    return serve


HELLO = {
    "ok": 1,
    "ismaster": True,
    "isWritablePrimary": True,
    "helloOk": True,
    "readOnly": False,
    "maxBsonObjectSize": 1 << 24,
    "maxMessageSizeBytes": 48_000_000,
    "maxWriteBatchSize": 100_000,
    "minWireVersion": 0,
    "maxWireVersion": 21,
}
"""What a MongoDB server says of itself."""


def mongodb(reply: dict[str, Any], hello: dict[str, Any] = HELLO) -> Callable[[Reader, Writer], Awaitable[None]]:
    """Return a MongoDB server that replies so to whoever asks who it is, and so to all else."""

    async def serve(reader: Reader, writer: Writer) -> None:
        while size := await reader.readexactly(4):
            request = await reader.readexactly(struct.unpack("<i", size)[0] - 4)
            request_id, kind = struct.unpack_from("<i", request)[0], struct.unpack_from("<i", request, 8)[0]
            is_hello = kind == OP_QUERY or b"\x10hello\0" in request or b"ismaster" in request
            body = bson.encode(hello if is_hello else reply)
            writer.write(struct.pack("<iiiiIB", 21 + len(body), 0, request_id, OP_MSG, 0, 0) + body)
            await writer.drain()

    return serve


def redis(reply_to: Callable[[bytes], bytes]) -> Callable[[Reader, Writer], Awaitable[None]]:
    """Return a Redis server that replies to each command, told by its upper-case name, as it is told."""

    async def serve(reader: Reader, writer: Writer) -> None:
        while (line := await reader.readline()).startswith(b"*"):
            words = []
            for _ in range(int(line[1:])):
                size = int((await reader.readline())[1:])
                words.append((await reader.readexactly(size + 2))[:-2])
            writer.write(b"+OK\r\n" if words[0] in {b"CLIENT", b"AUTH", b"SELECT"} else reply_to(words[0].upper()))
            await writer.drain()

    return serve
