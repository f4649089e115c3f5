"""What the tests know of time, so that none of them needs a quick machine.

Something happens: `until` waits for it. It happens in time: `within` reads a clock that stands still while the machine
is busy with others. A deadline is short, and the storage must still serve within it: `pace` says how many times longer
it has to be for that. And where a test has neither sockets nor threads, `leaping` leaves no time to chance.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

AT_LAST = 120
"""Seconds after which what a test waits for will not happen any more, on however busy a machine."""
_ROUNDED = 1e-6  # seconds by which a sum of floats, on a machine that has run for long, may fall short of a timer
_EFFORT = 0.03  # seconds of the processor: several of the slices in which a kernel divides it


def now() -> float:
    """Return a time in seconds that stands still while somebody on this machine waits for a processor.

    Where the kernel keeps no account of that (`/proc/pressure`), only the waiting of this thread is taken out.
    """
    waited = 0.0
    with contextlib.suppress(OSError, IndexError):
        waited = int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    with contextlib.suppress(OSError):
        waited = int(Path("/proc/pressure/cpu").read_text().partition("total=")[2].split()[0]) / 1e6
    return time.monotonic() - waited


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail if the block took as long as this, by a clock that does not count what others took from it."""
    began = now()
    yield
    took = now() - began
    assert took < seconds, f"it took {took:.2f} s, and {seconds:g} s are the bound"


async def until(
    met: Callable[[], object | Awaitable[object]], what: str = "it did not happen", *, every: float = 0.005
) -> None:
    """Return as soon as this is true, or its answer is."""
    give_up = time.monotonic() + AT_LAST
    while True:
        answer = met()
        if await answer if inspect.isawaitable(answer) else answer:
            return
        assert time.monotonic() < give_up, what
        await asyncio.sleep(every)


def pace() -> float:
    """Return how many times longer than alone on the machine this process takes for its work now: 1 or more."""
    began, worked = time.monotonic(), time.thread_time()
    while time.thread_time() - worked < _EFFORT:
        pass
    return max(1.0, (time.monotonic() - began) / _EFFORT)


@contextmanager
def leaping() -> Iterator[None]:
    """Let the clock of the running event loop leap to its next timer when nothing else is left to do.

    So a sleep takes no time, and work takes none either: the order of events is the same on every machine.
    """
    loop: Any = asyncio.get_running_loop()
    started, leapt, select = loop.time(), 0.0, loop._selector.select

    def leap(timeout: float | None) -> Any:
        nonlocal leapt
        if timeout is None:  # there is no timer
            return select(None)
        events = select(0)
        leapt += 0 if events else timeout + _ROUNDED
        return events

    loop.time, loop._selector.select = lambda: started + leapt, leap
    try:
        yield
    finally:
        del loop.time, loop._selector.select
