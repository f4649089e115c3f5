"""When storages whose servers forget nothing by themselves look for what has expired, and how they spare the server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from .._log import logger

__all__ = ["SLICE", "Sweeper", "rest"]

SLICE = 500
"""Records that are deleted at a time."""
EVERY = 60.0
"""Seconds from one sweep to the next, half as many to half as many again, so that processes spread."""
PAUSE = 0.05
"""Seconds between two slices, at least."""
REST = 2
"""Times what the last slice took, so that a busy server gets more of a rest."""


class Sweeper:
    """Calls a storage's `sweep` again and again, beside the requests, while the storage is open."""

    def __init__(self, sweep: Callable[[], Awaitable[object]]) -> None:
        self._sweep = sweep
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._go_on())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(EVERY * random.uniform(0.5, 1.5))  # noqa: S311  (jitter)
            try:
                await self._sweep()
            except Exception as error:  # noqa: BLE001  (the next one may do better)
                logger.debug("no sweep: %s", error)


async def rest(began: float) -> None:
    """Leave the server to others after a slice that began at this time of the event loop."""
    await asyncio.sleep(max(PAUSE, REST * (asyncio.get_running_loop().time() - began)))
