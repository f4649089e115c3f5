"""The batches of a queue that are under way, and when the next one begins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from ..storage import Storage

__all__ = ["FlushSchedule", "RunningBatches"]

MAX_BATCHES = 2
"""Batches of one queue under way at once, so that a stalled one does not hold up the next."""
STALLED = 1 / 2
"""The share of its deadline after which a batch does not count: its connection may have died without a word."""
PATIENCE = 0.002
"""Seconds that the next batch waits for the first to come back, and for more calls: few full batches cost less."""
TURNS = 3
"""Turns of the event loop between a request's first byte and its first call."""


class RunningBatches:
    """Batches under way, each in a task of its own, with the time at which it is stopped if it does not end."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._stop_times: dict[asyncio.Task[None], float] = {}

    def __len__(self) -> int:
        return len(self._stop_times)

    def start(self, batch: Coroutine[Any, Any, None]) -> None:
        """Run a batch in a task."""
        task = asyncio.Task(batch, loop=asyncio.get_running_loop())  # a task factory might begin it too early
        self._stop_times[task] = self._stop_time()

    def extend(self) -> None:
        """Allow the current task as much time again as a new batch has."""
        task = asyncio.current_task()
        if task in self._stop_times:
            self._stop_times[task] = self._stop_time()

    def end(self) -> None:
        """Make room, as the batch of the current task has ended."""
        self._stop_times.pop(asyncio.current_task(), None)  # type: ignore[arg-type]

    def forget_ended(self) -> None:
        """Make room for the batches that were cancelled before they began, and so did not call `end`."""
        for task in [task for task in self._stop_times if task.done()]:
            del self._stop_times[task]

    def stop_late(self, now: float) -> None:
        """Stop the batches whose storage does not keep its deadline."""
        for task, stop_time in self._stop_times.items():
            if stop_time <= now:
                task.cancel()

    async def stop(self) -> None:
        """Stop all batches."""
        tasks = set(self._stop_times)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._stop_times.clear()  # also of those that had not begun

    async def wait(self) -> None:
        """Wait until the batches that are under way now have ended."""
        await asyncio.wait(self._stop_times)

    def seconds_until_room(self) -> float:
        """Return the seconds until another batch may begin; 0 or less if it may now."""
        if len(self._stop_times) < MAX_BATCHES:
            return 0
        stop_time = list(self._stop_times.values())[-MAX_BATCHES]
        return stop_time - asyncio.get_running_loop().time() - (2 - STALLED) * self._storage.timeout

    def _stop_time(self) -> float:
        return asyncio.get_running_loop().time() + 2 * self._storage.timeout


class FlushSchedule:
    """Decides when `flush` begins the next batch: at once for a lone call, later if others are likely to join."""

    def __init__(self, running: RunningBatches, flush: Callable[[], None]) -> None:
        self._running = running
        self._flush = flush
        self._next: asyncio.Handle | None = None
        self.was_shared = False
        """Whether the last batch carried several items."""

    def request(self) -> None:
        """Begin a batch for a new call, or schedule one."""
        if self._next is not None:
            return
        if self._running:
            delay = PATIENCE if len(self._running) < MAX_BATCHES else self._running.seconds_until_room()
            self._next = asyncio.get_running_loop().call_later(delay, self._flush)
        elif self.was_shared:
            self._flush_after(TURNS)
        else:
            self._flush()

    def replace(self, turns: int) -> None:
        """Begin the next batch after so many turns of the event loop, or as soon as there is room."""
        self.cancel()
        delay = self._running.seconds_until_room()
        if delay > 0:
            self._next = asyncio.get_running_loop().call_later(delay, self._flush)
        else:
            self._flush_after(turns)

    def cancel(self) -> None:
        """Schedule no batch."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _flush_after(self, turns: int) -> None:
        """Let the calls join that came while this turn of the event loop was busy with the answers."""
        if turns:
            self._next = asyncio.get_running_loop().call_soon(self._flush_after, turns - 1)
        else:
            self._flush()
