"""One writer at a time: those of one session queue up here instead of spinning on the server."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

__all__ = ["WriterLock"]

Written = TypeVar("Written")


class _Queue(deque[asyncio.Future[None]], Generic[Written]):
    latest: Written | None = None


class WriterLock(Generic[Written]):
    """A queue for each name, which exists as long as somebody has the turn; each leaves what it wrote to the next."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, _Queue[Written] | None] = {}  # None: somebody's turn, nobody waits

    def try_acquire(self, *names: Hashable) -> bool:
        """Take the turns if all of them are free."""
        for name in names:
            if name in self._waiting:
                return False
        for name in names:
            self._waiting[name] = None
        return True

    def release(self, *names: Hashable) -> None:
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

    def publish(self, name: Hashable, written: Written) -> None:
        """Leave to the others what was written in this turn."""
        if (queue := self._waiting.get(name)) is not None:
            queue.latest = written

    def latest(self, name: Hashable) -> Written | None:
        """Give what was written last by those of this queue who had their turns."""
        queue = self._waiting.get(name)
        return None if queue is None else queue.latest

    @asynccontextmanager
    async def hold(self, name: Hashable) -> AsyncIterator[None]:
        """Have the turn for the block, after those who came before."""
        if not self.try_acquire(name):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if (queue := self._waiting[name]) is None:
                queue = self._waiting[name] = _Queue()
            queue.append(future)
            try:
                await future
            except asyncio.CancelledError:
                if not future.cancelled():  # it had the turn already
                    self.release(name)
                raise
        try:
            yield
        finally:
            self.release(name)
