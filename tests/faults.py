"""What a network does to connections at its worst, and how many of them this process has."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from .proxy import Proxy

_PIECE = 1 << 20
_attempts: Counter[int] = Counter()


class FaultyProxy(Proxy):
    """A proxy that can refuse and reset connections, and cut answers in half."""

    fault = ""
    """`reset`; `half`: the rest of each answer never comes; `torn`: the connection ends in the middle of an answer."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._writers: set[asyncio.StreamWriter] = set()

    def refuse(self) -> None:
        self._server.close()
        self.cut()

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    def reset(self) -> None:
        """Reset every connection, and each new one as soon as it is made."""
        self.fault = "reset"
        for writer in self._writers:
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.fault == "reset":
            _reset(writer)
            return
        self._writers.add(writer)
        try:
            await super()._serve(reader, writer)
        finally:
            self._writers.discard(writer)

    async def _pass_answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event
    ) -> None:
        while answer := await reader.read(_PIECE):
            await self.answering.wait()
            if self.fault in {"half", "torn"}:
                writer.write(answer[: len(answer) // 2])
                await writer.drain()
                if self.fault == "half":
                    await asyncio.Event().wait()  # until the other side gives up, also when the fault is over
                return
            writer.write(answer)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def open_sockets(port: int) -> int:
    """How many sockets of this process are connected to this port."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile, or not connected
            if str(entry.readlink()).startswith("socket:"):
                with socket.socket(fileno=os.dup(int(entry.name))) as opened:
                    found += opened.family == socket.AF_INET and opened.getpeername()[1] == port
    return found


def attempts(port: int) -> int:
    """How often this process has connected to this port, or tried to, since the first call."""
    if not _attempts:
        _attempts[0] = 1
        sys.addaudithook(_audit)
    return _attempts[port]


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        _attempts[arguments[1][1]] += 1
