"""What goes wrong, and for how long; each fault ends with everything mended."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ..support.servers import Server
from .child import Child
from .visitor import World

_EVERY = 0.05  # seconds from one probe to the next
TOO_LATE = 40.0


@dataclass
class Stage:
    """Where faults happen."""

    world: World
    server: Server
    wire: Child
    random: random.Random
    brief: float
    long: float

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(self.random.uniform(0.5, 1.0) * seconds)

    async def mend(self) -> None:
        await self.wire.ask("mend")


async def cut(stage: Stage) -> None:
    for _ in range(3):
        await stage.wire.ask("cut")
        await stage.wait(stage.brief / 3)


async def reset(stage: Stage) -> None:
    for _ in range(3):
        await stage.wire.ask("reset")
        await stage.wait(stage.brief / 3)


async def delay(stage: Stage) -> None:
    await stage.wire.ask("slow", stage.random.uniform(0.02, 0.3) * stage.world.timeout)
    await stage.wait(stage.brief)
    await stage.mend()


async def stall_and_release(stage: Stage) -> None:
    """What was held back arrives late, when nobody waits for it any more."""
    await stage.wire.ask("stall")
    await stage.wait(stage.long)
    await stage.mend()


async def stall_and_cut(stage: Stage) -> None:
    await stage.wire.ask("stall")
    await stage.wait(stage.long)
    await stage.wire.ask("cut")
    await stage.mend()


async def half_and_silence(stage: Stage) -> None:
    await stage.wire.ask("break", "stall", 0.2)
    await stage.wait(stage.long)
    await stage.mend()


async def half_and_cut(stage: Stage) -> None:
    await stage.wire.ask("break", stage.random.choice(["cut", "reset"]), 0.4)
    await stage.wait(2 * stage.brief)
    await stage.mend()


async def pause(stage: Stage) -> None:
    await asyncio.to_thread(stage.server.pause)
    await stage.wait(stage.long)
    await asyncio.to_thread(stage.server.resume)


async def kill(stage: Stage) -> None:
    await _be_away(stage, stage.server.kill)


async def restart(stage: Stage) -> None:
    await _be_away(stage, stage.server.stop)


async def _be_away(stage: Stage, end: Callable[[], None]) -> None:
    is_refused = stage.random.random() < 0.5  # else connections are accepted, and closed at once
    if is_refused:
        await stage.wire.ask("refuse")
    await asyncio.to_thread(end)
    if not stage.world.is_durable:
        stage.world.last_kill = time.monotonic()
    await stage.wait(stage.brief)
    await asyncio.to_thread(stage.server.start)
    if is_refused:
        await stage.wire.ask("listen")


Fault = Callable[[Stage], Awaitable[None]]
FAULTS: list[Fault] = [
    cut,
    reset,
    delay,
    stall_and_release,
    stall_and_cut,
    half_and_silence,
    half_and_cut,
    pause,
    kill,
    restart,
]


class Prober:
    """Asks again and again, without waiting for what it asked before, until it is answered 200."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def recovery(self) -> float:
        """Give the seconds from now to the first 200 of a request that began from now on."""
        began = time.monotonic()
        asking: set[asyncio.Task[bool]] = set()
        try:
            while time.monotonic() < began + TOO_LATE:
                asking.add(asyncio.create_task(self._ask()))
                done, asking = await asyncio.wait(asking, timeout=_EVERY)
                if any(task.result() for task in done):
                    break
                if done:  # it was refused at once
                    await asyncio.sleep(_EVERY)
            return time.monotonic() - began
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _ask(self) -> bool:
        # Each reads and creates a session of its own: writers of one session would queue up behind each other.
        headers = {"Cookie": f"session={secrets.token_urlsafe(32)}"}
        async with self.world.http.post(f"{self.world.url}/probe?nonce=probe", headers=headers) as response:
            await response.read()
            return response.status == 200
