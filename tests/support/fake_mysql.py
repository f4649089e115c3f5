"""What a MySQL server says while somebody logs in, for servers that ask for what they should not get."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

from pymysql.constants import CLIENT  # type: ignore[import-untyped]

SALT = b"12345678901234567890"
OK = b"\0\0\0\2\0\0\0"


def greeting(plugin: str, flags: int = CLIENT.CAPABILITIES) -> bytes:
    """Return the server's first words, of one that asks for this plugin."""
    return (
        b"\x0a8.4.0\0"
        + struct.pack("<I8sxHBHHB10x", 1, SALT[:8], flags & 0xFFFF, 45, 2, flags >> 16, len(SALT) + 1)
        + SALT[8:]
        + b"\0"
        + plugin.encode()
        + b"\0"
    )


def rows(*values: tuple[bytes | None, ...], kind: int = 253) -> list[bytes]:
    """Return the packets of a result, in the text protocol; the columns are of a binary type unless told otherwise."""
    width = len(values[0]) if values else 1
    column = b"\3def\0\0\0\1c\0\x0c" + struct.pack("<HIBHBH", 63, 255, kind, 0, 0, 0)
    end = b"\xfe\0\0\2\0"
    cells = [b"".join(b"\xfb" if cell is None else bytes([len(cell)]) + cell for cell in row) for row in values]
    return [bytes([width]), *[column] * width, end, *cells, end]


def switch(plugin: str) -> bytes:
    """Return what asks for another plugin (AuthSwitchRequest)."""
    return b"\xfe" + plugin.encode() + b"\0" + SALT + b"\0"


class Login:
    """One client that logs in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._number = 0
        self.heard: list[bytes] = []

    async def say(self, payload: bytes) -> None:
        self._writer.write(len(payload).to_bytes(3, "little") + bytes([self._number]) + payload)
        self._number += 1
        await self._writer.drain()

    async def hear(self) -> bytes:
        size = await self._reader.readexactly(4)
        self._number = size[3] + 1
        self.heard.append(await self._reader.readexactly(int.from_bytes(size[:3], "little")))
        return self.heard[-1]

    def close(self) -> None:
        self._writer.close()


_SSL_REQUEST = 4 + 32


async def _encrypted(
    first: bytes, connection: socket.socket, context: ssl.SSLContext
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Say this in plain, and go on in TLS; a stream reader would take the beginning of the handshake as well."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, len(first).to_bytes(3, "little") + b"\0" + first)
    asked = 0
    while asked < _SSL_REQUEST:
        asked += len(await loop.sock_recv(connection, _SSL_REQUEST - asked))
    reader = asyncio.StreamReader()
    transport, protocol = await loop.connect_accepted_socket(
        lambda: asyncio.StreamReaderProtocol(reader), connection, ssl=context
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


@contextlib.asynccontextmanager
async def mysql_in_tls_that(
    first: bytes, do: Callable[[Login], Awaitable[None]], context: ssl.SSLContext
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Say this in plain to each that connects, and serve the rest in TLS; yield the port, and all that was heard."""
    heard: list[bytes] = []
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)

    async def serve() -> None:
        while True:
            connection, _ = await asyncio.get_running_loop().sock_accept(listening)
            login = Login(*await _encrypted(first, connection, context))
            login.heard = heard
            with contextlib.suppress(OSError, EOFError):
                await do(login)
            login.close()

    serving = asyncio.create_task(serve())
    try:
        yield listening.getsockname()[1], heard
    finally:
        serving.cancel()
        await asyncio.wait({serving})
        listening.close()


@contextlib.asynccontextmanager
async def mysql_that(
    do: Callable[[Login], Awaitable[None]], path: str | None = None
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Serve this to each that connects; yield the port, and all that was heard."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        login = Login(reader, writer)
        login.heard = heard
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):  # the loop ends before its clients
            await do(login)
        login.close()

    if path is None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
    else:
        server = await asyncio.start_unix_server(serve, path)
    async with server:
        yield (0 if path else server.sockets[0].getsockname()[1]), heard
