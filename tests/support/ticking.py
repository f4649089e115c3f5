"""Shows that the event loop goes on while a test waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .timing import now


@asynccontextmanager
async def ticking(longest: float = 0.2) -> AsyncIterator[None]:
    """Fail if the event loop stood still for as many seconds as `longest`, by a clock that others do not advance."""
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        last = now()
        while True:
            await asyncio.sleep(0.01)
            this = now()
            worst, last = max(worst, this - last), this

    task = asyncio.create_task(tick())
    await asyncio.sleep(0)  # it reads its first time
    try:
        yield
        await asyncio.sleep(0.02)  # and the time after the last wait
    finally:
        task.cancel()
        await asyncio.wait({task})
    assert worst < longest
