"""`memory://`: a dictionary in this process, for development, tests and single-process apps."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ..errors import ConfigError
from ..storage import Conflict, Gone, Outcome, Record, Saved, Storage, Write, new_version
from ..url import StorageURL, positive

__all__ = ["MemoryOptions", "MemoryStorage"]

_PART = 2048
"""Sessions in one of the dictionaries: none is walked through, grows or shrinks in more than a millisecond or so."""
_MOST_PARTS = 4096
_ROUND = 30.0
"""Seconds in which each dictionary is rid of its expired sessions once."""

_Part = OrderedDict[str, tuple[bytes, bytes, float]]
"""Version, data and expiry by key, the one written longest ago first; Python's garbage collector need not visit these
tuples, which would take it a third of a second at a million sessions."""


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """The parameters of `memory://`."""

    max_sessions: int = 100_000
    """How many sessions are held at most; one that was written longest ago ends when there is no room for another."""

    def __post_init__(self) -> None:
        positive("max_sessions", self.max_sessions)


class MemoryStorage(Storage):
    """Sessions of this process only, gone when it ends.

    Args:
        options: how many sessions are held.
    """

    def __init__(self, options: MemoryOptions | None = None) -> None:
        self.max_sessions = max_sessions = (options or MemoryOptions()).max_sessions
        self.clock = time.monotonic
        self._count = min(-(-max_sessions // _PART), _MOST_PARTS)
        self._room = max_sessions // self._count  # keys spread evenly over the parts
        self._parts: list[_Part] = [OrderedDict() for _ in range(self._count)]
        self._sweeper: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: StorageURL) -> Self:
        """Read `memory://?max_sessions=`."""
        if url.hosts or url.path.strip("/") or url.user is not None or url.password is not None:
            raise ConfigError(
                f"{url} has parts that memory:// does not use; write memory:// or memory://?max_sessions=…"
            )
        return cls(url.options(MemoryOptions))

    def __repr__(self) -> str:
        return f"<MemoryStorage of {sum(map(len, self._parts))} sessions>"

    async def open(self) -> None:
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep())

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        return self.load_now(keys)

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        return self.save_now(writes)

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._parts[hash(key) % self._count].pop(key, None)

    async def close(self) -> None:
        """Stop forgetting; what is held stays, as with a server."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
            self._sweeper = None

    def load_now(self, keys: Sequence[str]) -> list[Record | None]:
        """Do what `load` does, at once."""
        now, parts, count = self.clock(), self._parts, self._count
        found = [parts[hash(key) % count].get(key) for key in keys]
        return [Record(held[0], held[1]) if held is not None and now < held[2] else None for held in found]

    def save_now(self, writes: Sequence[Write]) -> list[Outcome]:
        """Do what `save` does, at once."""
        return [self._save(write) for write in writes]

    def _save(self, write: Write) -> Outcome:
        key, expected, data, ttl = write
        part = self._parts[hash(key) % self._count]
        now, held = self.clock(), part.get(key)
        if held is not None and now < held[2]:
            if held[0] != expected:
                return Conflict(Record(held[0], held[1]))
        elif expected is not None:
            return Gone()
        if data is None:
            part.pop(key, None)
            return Saved(b"")
        version = new_version()
        part[key] = (version, data, now + ttl)
        part.move_to_end(key)
        if len(part) > self._room:
            part.popitem(last=False)
        return Saved(version)

    async def _sweep(self) -> None:
        """Forget expired records, a part at a time so that no request waits for it."""
        while True:
            for number in range(self._count):
                await asyncio.sleep(_ROUND / self._count)
                self._sweep_part(number)

    def _sweep_part(self, number: int) -> None:
        now, part = self.clock(), self._parts[number]
        live = OrderedDict((key, held) for key, held in part.items() if now < held[2])
        if len(live) < len(part):  # a dictionary from which keys are taken keeps its size
            self._parts[number] = live
