"""A TCP proxy between a storage and its server, for what a network does to a request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Self
from urllib.parse import urlsplit

_PIECE = 1 << 20
_QUIET = 0.1  # seconds; the answers to one request may come in several pieces


class Proxy:
    """Passes on what comes for the server of a URL; `url` is the same URL through the proxy.

    Whoever connected must have closed its connections when the proxy ends.
    """

    port: int
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
        self.requests: list[bytes] = []
        self.accepted = 0
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

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = self.direct_url.replace(f":{self.target}", f":{self.port}")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        async with asyncio.timeout(5):
            await asyncio.gather(*self._serving, return_exceptions=True)
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.accepted += 1
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        with contextlib.closing(writer), contextlib.suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            losing = asyncio.Event()
            pumps = {
                asyncio.create_task(self._pass_requests(reader, back, losing)),
                asyncio.create_task(self._pass_answers(there, writer, losing)),
            }
            self._pumps |= pumps
            with contextlib.closing(back):
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await asyncio.gather(*pumps, return_exceptions=True)
                    self._pumps -= pumps

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
            writer.write(request)
            await writer.drain()

    async def _pass_answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event
    ) -> None:
        while answer := await reader.read(_PIECE):
            await self.answering.wait()
            if losing.is_set():
                with contextlib.suppress(TimeoutError):
                    while await asyncio.wait_for(reader.read(_PIECE), _QUIET):
                        pass
                if self.meanwhile is not None:
                    await self.meanwhile()
                return
            writer.write(answer)
            await writer.drain()
