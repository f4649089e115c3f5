"""Memory that is reached as a server is: over awaits, in batches, and within a deadline."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp_store import Outcome, Record, Storage, Write
from aiohttp_store.storages.memory import MemoryStorage

from .conftest import PATIENCE


class Remote(Storage):
    """What tests derive the storages from that are slow, silent, down or full."""

    timeout: float = PATIENCE

    def __init__(self) -> None:
        self.memory = MemoryStorage()

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        return await self.memory.load(keys)

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        return await self.memory.save(writes)

    async def delete(self, keys: Sequence[str]) -> None:
        await self.memory.delete(keys)


def kept(storage: Storage) -> dict[str, Record]:
    """Give what is in memory, expired or not."""
    memory = storage.memory if isinstance(storage, Remote) else storage
    assert isinstance(memory, MemoryStorage)
    return {key: Record(*record) for part in memory._parts for key, (*record, _) in part.items()}
