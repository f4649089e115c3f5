"""One storage's chaos: its server, the proxy, the app and the visitors, and a schedule of faults."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

from ..conftest import ONE_SERVER, STORAGES
from ..support.servers import SERVERS, Server
from .child import Child
from .faults import FAULTS, TOO_LATE, Prober, Stage
from .tally import Tally
from .visitor import Visitor, World

SUBJECTS = ["memory", *ONE_SERVER]
"""The calm control first."""
DURABLE = frozenset({"redis", "mongodb", "pymongo", "mysql"})
_THINK = {"mongodb": 0.4, "pymongo": 0.4}  # SecantusDB, which stands in for MongoDB, takes milliseconds for each write


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long, and how much of it; times in seconds."""

    visitors: int
    seconds: float
    """At least; each fault comes once before any comes twice, and all of them come."""
    timeout: float
    brief: float
    """What need not outlast a deadline."""
    long: float
    """What outlasts a deadline, and in the long form what a request may wait."""
    calm: float
    """After each fault, once service has returned."""

    def slower(self, times: float) -> Plan:
        """Return the plan of a machine that takes so many times longer for everything."""
        slowed = {name: value * times for name, value in asdict(self).items()}
        return Plan(**slowed | {"visitors": self.visitors})


SHORT = Plan(visitors=32, seconds=0.0, timeout=0.4, brief=0.2, long=0.6, calm=0.1)
LONG = Plan(visitors=64, seconds=60.0, timeout=1.0, brief=1.0, long=4.0, calm=1.0)


def run(name: str, plan: Plan, seed: str, folder: Path) -> Tally:
    """Give what happened to this storage's visitors."""
    with _running(STORAGES[name][0], folder) as server:
        return asyncio.run(_run(name, plan, f"{seed}/{name}", folder, server))


@contextmanager
def _running(kind: str | None, folder: Path) -> Iterator[Server | None]:
    if kind is None:
        yield None
        return
    server = SERVERS[kind](folder / kind)
    try:
        server.start()
        yield server
    finally:
        server.kill()


async def _run(name: str, plan: Plan, seed: str, folder: Path, server: Server | None) -> Tally:
    tally = Tally()
    url, wire = "memory://", None
    async with _children() as children:
        if server is not None:
            wire = Child("wire", folder / "wire.log", server.url, seed)
            children.append(wire)
            address = str(await wire.hear()).partition("://")[2]
            url = f"{STORAGES[name][1]}://{address}?timeout={plan.timeout}"
        app = Child("app", folder / "app.log", url)
        children.append(app)
        async with _http() as http:
            world = World(
                http=http,
                url=await app.hear(),
                tally=tally,
                timeout=plan.timeout,
                is_durable=name in DURABLE,
                think=_THINK.get(name, 0.12),
            )
            visitors = [asyncio.create_task(Visitor(world, number, seed).live()) for number in range(plan.visitors)]
            try:
                await asyncio.sleep(5 * plan.calm)
                if server is None or wire is None:
                    await asyncio.sleep(max(plan.seconds, 1))
                else:
                    draw = random.Random(seed)
                    await _misfortune(plan, Stage(world, server, wire, draw, plan.brief, plan.long))
                world.stopping = True
                await asyncio.gather(*visitors)
                if tally.unserved and server is not None:
                    await asyncio.to_thread(server.must_answer)
            finally:
                for visitor in visitors:
                    visitor.cancel()
                await asyncio.gather(*visitors, return_exceptions=True)
            async with http.get(f"{world.url}/loop") as response:
                told = await response.json()
        tally.longest_stall, tally.cancelled_handlers = told["longest_stall"], told["cancelled"]
        tally.explain(told["reasons"])
        for complaint in told["complaints"]:
            tally.find("errors", f"the app logged: {complaint}")
        for child in reversed(children):  # the app first: it closes its connections
            await child.end()
            if child.said():
                tally.find("errors", child.said())
    if tally.findings:
        tally.findings += tally.reasons
    return tally


async def _misfortune(plan: Plan, stage: Stage) -> None:
    """Let every fault happen, in random order, and all of them again while there is time."""
    world, prober = stage.world, Prober(stage.world)
    until = time.monotonic() + plan.seconds
    for turn in count():
        for fault in stage.random.sample(FAULTS, len(FAULTS)):
            if turn and time.monotonic() > until:
                return
            await fault(stage)
            seconds = await prober.recovery()
            if seconds >= TOO_LATE:
                await asyncio.to_thread(stage.server.must_answer)
            if seconds > world.tally.longest_recovery:
                world.tally.longest_recovery, world.tally.slowest = seconds, fault.__name__
            await stage.wait(plan.calm)


@asynccontextmanager
async def _children() -> AsyncIterator[list[Child]]:
    children: list[Child] = []
    try:
        yield children
    finally:
        for child in children:
            child.kill()


def _http() -> ClientSession:
    return ClientSession(
        connector=TCPConnector(limit=0), cookie_jar=DummyCookieJar(), timeout=ClientTimeout(total=None)
    )
