"""One writer at a time: those of one session queue up here instead of spinning on the server."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

__all__ = ["Turns"]


class Turns:
    """A queue for each name, which exists as long as somebody has the turn."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[asyncio.Future[None]] | None] = {}  # None: somebody's turn, nobody waits

    def take_now(self, *names: Hashable) -> bool:
        """Take the turns if all of them are free."""
        for name in names:
            if name in self._waiting:
                return False
        for name in names:
            self._waiting[name] = None
        return True

    def give(self, *names: Hashable) -> None:
        """Give the turns to those who have waited longest."""
        for name in names:
            queue = self._waiting[name]
            while queue:
                future = queue.popleft()
                if not future.done():
                    future.set_result(None)
                    break
            else:
                del self._waiting[name]

    @asynccontextmanager
    async def of(self, name: Hashable) -> AsyncIterator[None]:
        """Have the turn for the block, after those who came before."""
        if not self.take_now(name):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            queue = self._waiting[name] = self._waiting[name] or deque()
            queue.append(future)
            try:
                await future
            except asyncio.CancelledError:
                if not future.cancelled():  # it had the turn already
                    self.give(name)
                raise
        try:
            yield
        finally:
            self.give(name)
