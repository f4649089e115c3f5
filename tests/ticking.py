"""Shows that the event loop goes on while a test waits."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


@asynccontextmanager
async def ticking(longest: float = 0.2) -> AsyncIterator[None]:
    """Fail where the event loop stood still for as many seconds as `longest`."""
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        last = _now()
        while True:
            await asyncio.sleep(0.01)
            now = _now()
            worst, last = max(worst, now - last), now

    task = asyncio.create_task(tick())
    await asyncio.sleep(0)  # it reads its first time
    try:
        yield
        await asyncio.sleep(0.02)  # and the time after the last wait
    finally:
        task.cancel()
        await asyncio.wait({task})
    assert worst < longest


def _now() -> float:
    """Give the time without that during which other processes had the processor, where the system tells."""
    starved = 0
    with contextlib.suppress(OSError):
        starved = int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    return time.monotonic() - starved / 1e9
