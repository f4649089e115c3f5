"""Memory that is reached as a server is: over awaits, in batches, and within a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aiohttp_store import Outcome, Record, Storage, Write
from aiohttp_store.codec import successor_of
from aiohttp_store.storages.memory import MemoryStorage

from ..conftest import PATIENCE, Client
from .timing import until


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


def sessions_in(storage: Storage) -> list[Record]:
    """Return what is in memory and no tombstone."""
    return [record for record in kept(storage).values() if successor_of(record.data) is None]


class Left(Remote):
    """Memory whose saves or deletions, as `verb` says, wait until the client has left that asked for one."""

    verb = "save"

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.has_left = asyncio.Event(), asyncio.Event()

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        await self._wait("save")
        return await super().save(writes)

    async def delete(self, keys: Sequence[str]) -> None:
        await self._wait("delete")
        await super().delete(keys)

    async def _wait(self, verb: str) -> None:
        if verb == self.verb:
            self.asked.set()
            await self.has_left.wait()

    async def leave(self, client: Client, request: asyncio.Task[Any]) -> None:
        """Cancel the client's request while the storage is asked, and go on when the app has seen that."""
        await self.asked.wait()
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await until(lambda: not client.server.handler.connections)
        self.has_left.set()


def kept(storage: Storage) -> dict[str, Record]:
    """Give what is in memory, expired or not."""
    memory = storage.memory if isinstance(storage, Remote) else storage
    assert isinstance(memory, MemoryStorage)
    return {key: Record(*record) for part in memory._parts for key, (*record, _) in part.items()}
