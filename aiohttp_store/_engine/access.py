"""The use of a storage: opened once, asked within budgets, and never left half-way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from .._log import logger
from ..storage import Storage, timed_out

__all__ = ["Background", "StorageAccess", "log_unsaved"]

T = TypeVar("T")

_UNSAVED = "a session was not saved, and its client has left: %s"


class StorageAccess:
    """A storage that is opened at the first use, and what is asked of it in the time that it has."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.is_open = False
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        """Open the storage, once."""
        async with self._opening:
            if not self.is_open:
                await self.storage.open()
                self.is_open = True

    async def close(self) -> None:
        """Close the storage, or give it up after three of its `timeout`."""
        self.is_open = False
        within = 3 * self.storage.timeout
        try:
            async with asyncio.timeout(within):
                await self.storage.close()
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
