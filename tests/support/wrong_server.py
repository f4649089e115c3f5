"""A server that answers whatever it is told to, for what no right one ever says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter


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
