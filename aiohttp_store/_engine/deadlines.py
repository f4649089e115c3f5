"""Until when the calls of a queue wait for their answers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from ..storage import Storage, timed_out

__all__ = ["Deadlines"]


class Deadlines:
    """The deadlines of many futures, the earliest first, under one timer: one for each future would cost more.

    When the timer fires, `expire` is called: it calls `fail_late`, and `start_timer` if anything is left to wait for.
    """

    def __init__(self, storage: Storage, expire: Callable[[], None]) -> None:
        self._storage = storage
        self._expire = expire
        self._timer: asyncio.TimerHandle | None = None
        self._times: deque[float] = deque()
        self._futures: deque[asyncio.Future[Any]] = deque()

    def __len__(self) -> int:
        return len(self._times)

    @property
    def newest(self) -> float:
        """The deadline of the future that was added last."""
        return self._times[-1]

    def add(self, future: asyncio.Future[Any]) -> None:
        """Let a future fail that has no result within the storage's `timeout`."""
        times, futures = self._times, self._futures
        while futures and futures[0].done():
            futures.popleft()
            times.popleft()
        times.append(asyncio.get_running_loop().time() + self._storage.timeout)
        futures.append(future)
        if self._timer is None:
            self.start_timer()

    def start_timer(self) -> None:
        """Call `expire` at the first deadline, or after a `timeout` if there is none; deadlines to come are later."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            when = loop.time() + self._storage.timeout
            self._timer = loop.call_at(min(when, self._times[0]) if self._times else when, self._expire)

    def fail_late(self, now: float) -> bool:
        """Fail the futures whose deadline has passed; return whether there were any."""
        self._timer = None
        has_failed = False
        times, futures = self._times, self._futures
        while futures and (futures[0].done() or times[0] <= now):
            times.popleft()
            future = futures.popleft()
            if not future.done():
                future.set_exception(timed_out(self._storage))
                has_failed = True
        return has_failed

    def stop_timer(self) -> None:
        """Call `expire` no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
