"""Servers that keep records, and the links over which a process reaches them: they pause, lose answers and fail."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from aiohttp_store import Conflict, Outcome, Record, Saved, Storage, Write
from aiohttp_store.storage import Sharded
from aiohttp_store.storages.memory import MemoryOptions, MemoryStorage

from .plan import TIMEOUT, Weather

__all__ = ["Linked", "LinkedShards", "Server"]

T = TypeVar("T")

BLINK = 0.000_001
"""Seconds of each way, if a plan says nothing else."""
LATE = 0.3
"""The share of commands that a silent server carries out in the end."""


def _memory() -> MemoryStorage:
    memory = MemoryStorage(MemoryOptions(max_sessions=2048))
    memory.clock = asyncio.get_running_loop().time
    return memory


def _arrive(arrival: asyncio.Future[None]) -> None:
    if not arrival.done():
        arrival.set_result(None)


class Server:
    """One server: records that a restart may lose, and a weather that all links to it share."""

    def __init__(
        self,
        weather: Sequence[Weather],
        pauses: Sequence[float] | None,
        source: random.Random,
        note: Callable[..., object],
    ) -> None:
        self.note = note
        self.memory = _memory()
        self.weather = weather
        self.pauses = None if pauses is None else list(pauses)
        self.random = source
        self.trips: set[asyncio.Future[None]] = set()

    @property
    def kind(self) -> str:
        """The weather that it has now."""
        now = asyncio.get_running_loop().time()
        return [one.kind for one in self.weather if one.since <= now][-1]

    def restart(self, *, keeps: bool) -> None:
        """Drop all connections, and the records as well unless they are kept."""
        for trip in list(self.trips):
            if not trip.done():
                trip.set_exception(ConnectionResetError("the server was restarted"))
        if not keeps:
            self.memory = _memory()

    async def pause(self) -> None:
        """Be under way, in one direction; a restart ends it."""
        seconds = self._seconds()
        if not seconds:
            for _ in range(self.random.randint(0, 3) if self.pauses is None else 0):
                await asyncio.sleep(0)
            return
        loop = asyncio.get_running_loop()
        arrival: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, _arrive, arrival)
        self.trips.add(arrival)
        try:
            await arrival
        finally:
            timer.cancel()
            self.trips.discard(arrival)

    def _seconds(self) -> float:
        if self.pauses is not None:
            return self.pauses.pop(0) if self.pauses else BLINK
        draw = self.random.random()
        if self.kind == "slow":
            return draw * 0.75 * TIMEOUT
        if draw < 0.5:
            return 0.0
        return draw * 0.02 if draw < 0.95 else draw * 0.15 * TIMEOUT


class Linked(Storage):
    """One process' storage on a server."""

    timeout = TIMEOUT

    def __init__(self, server: Server) -> None:
        self.server = server
        self.random = server.random

    def __repr__(self) -> str:
        return "<Linked>"

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        async with self.answering():
            return await self._trip("load", keys, lambda: self.server.memory.load_now(keys))

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        outcomes: list[Outcome] = []

        def carry_out() -> list[Outcome]:
            """Write what was not written yet; a second time means that the answer of the first was lost."""
            for number, write in enumerate(writes):
                if number == len(outcomes):
                    outcomes.extend(self.server.memory.save_now([write]))
                else:
                    outcomes[number] = self._again(write, outcomes[number])
            return outcomes

        async with self.answering():
            return await self._trip("save", [write.key for write in writes], carry_out)

    async def delete(self, keys: Sequence[str]) -> None:
        def carry_out() -> None:
            for key, record in zip(keys, self.server.memory.load_now(keys), strict=True):
                if record is not None:
                    self.server.memory.save_now([Write(key, record.version, None, 1)])

        async with self.answering():
            await self._trip("delete", keys, carry_out)

    def _again(self, write: Write, before: Outcome) -> Outcome:
        """Carry a write out a second time, which finds what it left as any storage of ours does."""
        (record,) = self.server.memory.load_now([write.key])
        if write.data is None or not isinstance(before, Saved) or record is None:
            (outcome,) = self.server.memory.save_now([write])
            return outcome
        return before if record.version == before.version else Conflict(record)

    async def _trip(self, verb: str, keys: Sequence[str], carry_out: Callable[[], T]) -> T:
        """Ask the server, as its weather has it."""
        server, kind, draw = self.server, self.server.kind, self.random.random()

        def act() -> T:
            result = carry_out()
            outcomes = [type(one).__name__ for one in result] if isinstance(result, list) else []
            server.note(verb, *(key[:6] for key in keys), *outcomes)
            return result

        if kind == "refusing":
            raise ConnectionRefusedError("the server is down")
        if kind == "silent":
            if draw < LATE:
                self._act_late(act)
            await asyncio.sleep(self.random.choice((2, 4)) * TIMEOUT)
        await server.pause()
        if kind == "repeating" or (kind == "lossy" and draw < 0.1):
            act()  # its answer is lost, and it is sent again
            await server.pause()
        elif kind == "lossy" and draw < 0.25:
            raise ConnectionResetError("the question was lost")
        elif kind == "lossy" and draw < 0.35:
            self._act_late(act)
            await asyncio.sleep(2 * TIMEOUT)
        elif kind == "lossy" and draw < 0.5:
            act()
            await server.pause()
            raise ConnectionResetError("the answer was lost")
        result = act()
        await server.pause()
        return result

    def _act_late(self, act: Callable[[], object]) -> None:
        """Let the command wait in the server for longer than its caller does."""
        asyncio.get_running_loop().call_later(self.random.uniform(0.5, 2) * TIMEOUT, act)


class LinkedShards(Sharded):
    """One process' storage on several servers."""

    timeout = TIMEOUT

    def __init__(self, servers: Sequence[Server]) -> None:
        self.shards = [Linked(server) for server in servers]

    def shard_of(self, key: str) -> Storage:
        return self.shards[zlib.crc32(key.encode()) % len(self.shards)]
