"""A proxy before a storage's server, for what a network does to a request."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

_PIECE = 1 << 20
_QUIET = 0.1  # seconds; an answer may come in several pieces


class Network:
    """Passes on what comes for a server; use it as an asynchronous context manager."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self.address = "127.0.0.1", 0
        self.answers = 0
        """How many pieces of answers have come."""
        self.lose_at: int | None = None
        """Which of them is lost, with its connection."""
        self.passing = asyncio.Event()
        """While it is clear, connections are accepted, and no answer passes."""
        self.passing.set()
        self._serving: set[asyncio.Task[None]] = set()

    async def refuse(self) -> None:
        """Accept no more connections, and end those that there are."""
        self._server.close()
        for serving in self._serving:
            serving.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def listen(self) -> None:
        """Accept connections, after `refuse` on the same port."""
        self._server = await asyncio.start_server(self._serve, *self.address)
        self.address = "127.0.0.1", self._server.sockets[0].getsockname()[1]

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(writer.close)
            stack.enter_context(contextlib.suppress(OSError, asyncio.CancelledError))
            there, back = await asyncio.open_connection(*self._target)
            stack.callback(back.close)
            pumps = {asyncio.create_task(_pass(reader, back)), asyncio.create_task(self._pass_answers(there, writer))}
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)

    async def _pass_answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while answer := await reader.read(_PIECE):
            await self.passing.wait()
            self.answers += 1
            if self.answers == self.lose_at:
                with contextlib.suppress(TimeoutError):  # the server does all that it was asked for
                    while await asyncio.wait_for(reader.read(_PIECE), _QUIET):
                        pass
                return
            writer.write(answer)
            await writer.drain()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_PIECE):
        writer.write(piece)
        await writer.drain()
