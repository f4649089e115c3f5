"""The use of a storage: opened once, asked within budgets, and never left half-way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from .._log import logger
from .._opened import is_open
from ..storage import Storage, timed_out

__all__ = ["Background", "StorageAccess", "log_unsaved"]

T = TypeVar("T")

_UNSAVED = "a session was not saved, and its client has left: %s"


class _Use:
    """The use of one storage by all managers of an event loop."""

    def __init__(self, storage: Storage, loop: asyncio.AbstractEventLoop) -> None:
        self.storage = storage
        self.loop = loop  # so that no other one gets its id
        self._users = 0
        self._is_to_be_closed = False
        self._lock = asyncio.Lock()

    async def begin(self) -> None:
        """Open the storage, unless it is open."""
        self._users += 1
        try:
            async with self._lock:
                if not (self._is_to_be_closed or is_open(self.storage)):
                    await self.storage.open()
                    self._is_to_be_closed = True
        except BaseException:
            self._users -= 1
            raise

    async def end(self) -> None:
        """Close the storage, if nobody else uses it and `begin` has opened it."""
        self._users -= 1
        async with self._lock:
            if self._is_to_be_closed and not self._users:
                self._is_to_be_closed = False
                await self.storage.close()


_USES: WeakValueDictionary[tuple[int, int], _Use] = WeakValueDictionary()
"""By the ids of storage and loop."""


class StorageAccess:
    """A storage that is opened at the first use, and what is asked of it in the time that it has."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.is_open = False
        self._opening = asyncio.Lock()
        self._use: _Use | None = None

    async def open(self) -> None:
        """Open the storage, once, unless its caller or another app has opened it."""
        async with self._opening:
            if not self.is_open:
                loop = asyncio.get_running_loop()
                use = _USES.setdefault((id(self.storage), id(loop)), _Use(self.storage, loop))
                await use.begin()
                self._use, self.is_open = use, True

    async def close(self) -> None:
        """Close the storage if it is to be closed here, or give it up after three of its `timeout`."""
        self.is_open = False
        use, self._use = self._use, None
        if use is None:
            return
        within = 3 * self.storage.timeout
        try:
            async with asyncio.timeout(within):
                await use.end()
        except TimeoutError:
            logger.warning("%r did not close within %g s, and is left as it is", self.storage, within)

    @asynccontextmanager
    async def budget(self, budget: asyncio.Timeout | None = None) -> AsyncIterator[None]:
        """Open the storage and run the block, both within one `timeout` or the given budget.

        Raises:
            StorageUnavailable: the time is over.
        """
        budget = asyncio.timeout(self.storage.timeout) if budget is None else budget
        try:
            async with budget:
                if not self.is_open:
                    await self.open()
                yield
        except TimeoutError as error:
            if not budget.expired():
                raise
            raise timed_out(self.storage) from error


class Background:
    """Tasks that outlive the requests which began them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def shield(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end even if the request is cancelled, so that no renewal is left half-way."""
        task = self.spawn(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_failure)  # the request is left by then
            raise

    def leave(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run what nobody waits for."""
        self.spawn(work).add_done_callback(_log_failure)

    async def finish(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)


def log_unsaved(error: BaseException) -> None:
    """Warn of a session that was not saved, and whose client cannot be told."""
    logger.warning(_UNSAVED, error)


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log_unsaved(error)
