"""One writer at a time: those of one session queue up here instead of spinning on the server."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

__all__ = ["Turns"]

KNOWN = 256
"""Versions that are remembered of one queue: how far behind a writer may be who is spared a conflict."""

Written = TypeVar("Written")


class _Queue(deque[asyncio.Future[None]], Generic[Written]):
    def __init__(self) -> None:
        super().__init__()
        self.older: deque[bytes] = deque(maxlen=KNOWN)  # the versions that were written over
        self.newest: Written | None = None


class Turns(Generic[Written]):
    """A queue for each name, which exists as long as somebody has the turn; each leaves what he wrote to the next."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, _Queue[Written] | None] = {}  # None: somebody's turn, nobody waits

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

    def leave(self, name: Hashable, version: bytes, written: Written) -> None:
        """Leave to the others what was written over that version in this turn."""
        if (queue := self._waiting.get(name)) is not None:
            queue.older.append(version)
            queue.newest = written

    def written_after(self, name: Hashable, version: bytes) -> Written | None:
        """Give what those before wrote last, if one of them wrote over that version, so that it is newer for sure."""
        queue = self._waiting.get(name)
        return queue.newest if queue is not None and version in queue.older else None

    @asynccontextmanager
    async def of(self, name: Hashable) -> AsyncIterator[None]:
        """Have the turn for the block, after those who came before."""
        if not self.take_now(name):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if (queue := self._waiting[name]) is None:
                queue = self._waiting[name] = _Queue()
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
