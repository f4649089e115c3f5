"""Memory that is reached as a server is: over awaits, in batches, and within a deadline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp_store import Outcome, Record, Storage, Write
from aiohttp_store.storages.memory import MemoryStorage


class Remote(Storage):
    """What tests derive the storages from that are slow, silent, down or full."""

    def __init__(self) -> None:
        self.memory = MemoryStorage()

    @property
    def _held(self) -> Any:
        return self.memory._held

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        return await self.memory.load(keys)

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        return await self.memory.save(writes)

    async def delete(self, keys: Sequence[str]) -> None:
        await self.memory.delete(keys)
