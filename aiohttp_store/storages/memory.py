"""`memory://`: a dictionary in this process, for development, tests and single-process apps."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from ..errors import ConfigError
from ..storage import Conflict, Gone, Outcome, Record, Saved, Storage, Write, new_version
from ..url import StorageURL, positive

__all__ = ["MemoryStorage"]

_SWEEP_EVERY = 30.0
_SWEEP_SLICE = 1000


@dataclass(frozen=True, kw_only=True)
class Options:
    """The parameters of `memory://`."""

    max_sessions: int = 100_000
    """How many sessions are held; beyond, the one written longest ago ends."""

    def __post_init__(self) -> None:
        positive("max_sessions", self.max_sessions)


class _Held(NamedTuple):
    record: Record
    expires: float


class MemoryStorage(Storage):
    """Sessions of this process only, gone when it ends."""

    def __init__(self, *, max_sessions: int = 100_000) -> None:
        self.max_sessions = Options(max_sessions=max_sessions).max_sessions
        self.clock = time.monotonic
        self._held: OrderedDict[str, _Held] = OrderedDict()  # the one written longest ago is first
        self._sweeper: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: StorageURL) -> Self:
        """Read `memory://?max_sessions=`."""
        if url.hosts or url.path.strip("/") or url.user is not None or url.password is not None:
            raise ConfigError(
                f"{url} has parts that memory:// does not use; write memory:// or memory://?max_sessions=…"
            )
        return cls(max_sessions=url.options(Options).max_sessions)

    def __repr__(self) -> str:
        return f"<MemoryStorage of {len(self._held)} sessions>"

    async def open(self) -> None:
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep())

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        return self.load_now(keys)

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        return self.save_now(writes)

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._held.pop(key, None)

    async def close(self) -> None:
        """Stop forgetting; what is held stays, as with a server."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
            self._sweeper = None

    def load_now(self, keys: Sequence[str]) -> list[Record | None]:
        """Do what `load` does, at once."""
        now, found = self.clock(), map(self._held.get, keys)
        return [held.record if held is not None and now < held.expires else None for held in found]

    def save_now(self, writes: Sequence[Write]) -> list[Outcome]:
        """Do what `save` does, at once."""
        return [self._save(write) for write in writes]

    def _save(self, write: Write) -> Outcome:
        key, expected, data, ttl = write
        now, held = self.clock(), self._held.get(key)
        if held is not None and now < held.expires:
            if held.record.version != expected:
                return Conflict(held.record)
        elif expected is not None:
            return Gone()
        if data is None:
            self._held.pop(key, None)
            return Saved(b"")
        version = new_version()
        self._held[key] = _Held(Record(version, data), now + ttl)
        self._held.move_to_end(key)
        if len(self._held) > self.max_sessions:
            self._held.popitem(last=False)
        return Saved(version)

    async def _sweep(self) -> None:
        """Forget expired records, a slice at a time so that no request waits for it."""
        while True:
            await asyncio.sleep(_SWEEP_EVERY)
            keys = list(self._held)
            for start in range(0, len(keys), _SWEEP_SLICE):
                now = self.clock()
                for key in keys[start : start + _SWEEP_SLICE]:
                    if key in self._held and self._held[key].expires <= now:
                        del self._held[key]
                await asyncio.sleep(0)
