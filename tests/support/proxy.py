"""A TCP proxy between a storage and its server, for what a network does to a request."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import Literal, Self
from urllib.parse import urlsplit

from .timing import AT_LAST

Breakage = Literal["stall", "cut", "reset"]

_PIECE = 1 << 20
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # lingering for no time: what closes so sends RST, and no FIN
_QUIET = 0.1  # seconds; the answers to one request may come in several pieces


class Proxy:
    """Passes on what comes for the server of a URL; `url` is the same URL through the proxy.

    Whoever connected must have closed its connections when the proxy ends.
    """

    url: str

    def __init__(self, url: str, *, matching: bytes = b"") -> None:
        port = urlsplit(url).port
        assert port is not None
        self.direct_url = url
        self.target = port
        """The port that new connections lead to."""
        self.matching = matching
        """What is in the requests that can be lost, or whose answers can be."""
        self.lose_requests = 0
        """How many requests are still to be lost, each with its connection."""
        self.lose_answers = 0
        """How many answers are still to be lost, each with its connection and once the server has done its work."""
        self.meanwhile: Callable[[], Awaitable[object]] | None = None
        """What happens between the loss of an answer and the end of its connection."""
        self.answering = asyncio.Event()
        """While it is clear, answers are held back."""
        self.answering.set()
        self.asking = asyncio.Event()
        """While it is clear, requests are held back, and are in `requests` already."""
        self.asking.set()
        self.passing = asyncio.Event()
        """While it is clear, connections are accepted, and nothing passes either way."""
        self.passing.set()
        self.delay = 0.0
        """Seconds that each piece takes, either way."""
        self.breakage: Breakage | None = None
        """What follows the first half of an answer: silence until `mend`, or the connection's end."""
        self.broken_share = 1.0
        """How many of the answers break."""
        self.random = random.Random()
        self.requests: list[bytes] = []
        self.accepted = 0
        self.port = 0  # any
        self._mended = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._pumps: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._serving)

    def cut(self) -> None:
        """End every connection."""
        for pump in self._pumps:
            pump.cancel()

    def reset(self) -> None:
        """End every connection with RST on both sides; what was under way is lost."""
        for writer in self._writers:
            _reset_at_close(writer)
        self.cut()

    def mend(self) -> None:
        """Pass on everything again, also what was held back."""
        self.delay, self.breakage = 0.0, None
        self.passing.set()
        self._mended.set()
        self._mended = asyncio.Event()

    def refuse(self) -> None:
        """Accept no more connections, as a machine does on which no server runs."""
        self._server.close()

    async def listen(self) -> None:
        """Accept connections, after `refuse` on the same port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def __aenter__(self) -> Self:
        await self.listen()
        self.url = self.direct_url.replace(f":{self.target}", f":{self.port}")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        async with asyncio.timeout(AT_LAST):
            await asyncio.gather(*self._serving, return_exceptions=True)
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.accepted += 1
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        with self._open(writer), contextlib.suppress(OSError):
            await self.passing.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            losing = asyncio.Event()
            pumps = {
                asyncio.create_task(self._pass_requests(reader, back, losing)),
                asyncio.create_task(self._pass_answers(there, writer, losing)),
            }
            self._pumps |= pumps
            with self._open(back):
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await asyncio.gather(*pumps, return_exceptions=True)
                    self._pumps -= pumps

    @contextlib.contextmanager
    def _open(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        """Know of the connection for the block, and close it at the end."""
        self._writers.add(writer)
        try:
            yield
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _pass_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event
    ) -> None:
        while request := await reader.read(_PIECE):
            self.requests.append(request)
            if self.matching in request:
                if self.lose_requests:
                    self.lose_requests -= 1
                    return
                if self.lose_answers and not losing.is_set():
                    self.lose_answers -= 1
                    losing.set()
            await self.asking.wait()
            await self._carry()
            writer.write(request)
            await writer.drain()

    async def _pass_answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event
    ) -> None:
        while answer := await reader.read(_PIECE):
            await self.answering.wait()
            await self._carry()
            if losing.is_set():
                with contextlib.suppress(TimeoutError):
                    while await asyncio.wait_for(reader.read(_PIECE), _QUIET):
                        pass
                if self.meanwhile is not None:
                    await self.meanwhile()
                return
            half = len(answer) // 2
            if self.breakage is not None and self.random.random() < self.broken_share:
                writer.write(answer[:half])
                await writer.drain()
                if not await self._break(writer):
                    return
                answer = answer[half:]
            writer.write(answer)
            await writer.drain()

    async def _carry(self) -> None:
        """Take the time that a piece takes."""
        if self.delay:
            await asyncio.sleep(self.delay)
        await self.passing.wait()

    async def _break(self, writer: asyncio.StreamWriter) -> bool:
        """Do what follows half an answer, and tell whether its other half does."""
        if self.breakage == "stall":
            await self._mended.wait()
            return True
        if self.breakage == "reset":
            _reset_at_close(writer)
        return False


def _reset_at_close(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
