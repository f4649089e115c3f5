"""Many requests, one round trip: what arrives while the storage is asked goes out together in the next trip."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from .errors import StorageUnavailable
from .storage import Outcome, Record, Storage, Write

__all__ = ["Batcher"]

MAX_TRIPS = 2
"""Round trips of one kind under way at once, so that a stalled one does not hold the next."""
MAX_KEYS = 64
MAX_BYTES = 256 * 1024

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Batcher:
    """The three verbs of a storage for one key each.

    Trips run in tasks of their own: a cancelled caller stops waiting, and the command that it
    shares with others runs to its end.
    """

    def __init__(self, storage: Storage) -> None:
        self._loads: _Lane[str, Record | None] = _Lane(storage.load, key=str, size=len)
        self._saves: _Lane[Write, Outcome] = _Lane(storage.save, key=_key_of, size=_size_of)
        self._deletes: _Lane[str, None] = _Lane(_answering_each(storage.delete), key=str, size=len)

    def load(self, key: str) -> asyncio.Future[Record | None]:
        """Ask for one record."""
        return self._loads.ask(key)

    def save(self, write: Write) -> asyncio.Future[Outcome]:
        """Ask for one write."""
        return self._saves.ask(write)

    def delete(self, key: str) -> asyncio.Future[None]:
        """Ask for one deletion."""
        return self._deletes.ask(key)

    async def finish(self, within: float) -> None:
        """Wait until every trip has ended, and stop those that have not after `within` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                for lane in (self._loads, self._saves, self._deletes):
                    await lane.finish()
        for lane in (self._loads, self._saves, self._deletes):
            await lane.stop()


class _Lane(Generic[Item, Answer]):
    """The trips of one verb. A trip carries a key once, at most 64 keys, and 256 KiB or one larger item."""

    def __init__(
        self,
        send: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]],
        *,
        key: Callable[[Item], str],
        size: Callable[[Item], int],
    ) -> None:
        self._send = send
        self._key = key
        self._size = size
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._trips: set[asyncio.Task[None]] = set()
        self._called = False

    def ask(self, item: Item) -> asyncio.Future[Answer]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((item, future))
        if not self._called and len(self._trips) < MAX_TRIPS:
            self._called = True
            loop.call_soon(self._depart)  # after the other requests of this turn of the loop
        return future

    async def finish(self) -> None:
        self._depart()
        while self._trips:
            await asyncio.wait(self._trips)

    async def stop(self) -> None:
        trips = set(self._trips)
        for trip in trips:
            trip.cancel()
        if trips:
            await asyncio.wait(trips)

    def _depart(self) -> None:
        self._called = False
        while len(self._trips) < MAX_TRIPS and (batch := self._take()):
            trip = asyncio.get_running_loop().create_task(self._travel(batch))
            self._trips.add(trip)
            trip.add_done_callback(self._arrive)

    def _arrive(self, trip: asyncio.Task[None]) -> None:
        self._trips.discard(trip)
        self._depart()

    def _take(self) -> dict[str, tuple[Item, asyncio.Future[Answer]]]:
        batch: dict[str, tuple[Item, asyncio.Future[Answer]]] = {}
        left: list[tuple[Item, asyncio.Future[Answer]]] = []
        room = MAX_BYTES
        for position, (item, future) in enumerate(self._waiting):
            if future.done():  # nobody waits any more
                continue
            key, size = self._key(item), self._size(item)
            if len(batch) >= MAX_KEYS or (batch and size > room):
                left += self._waiting[position:]
                break
            if key in batch:
                left.append((item, future))
                continue
            batch[key] = item, future
            room -= size
        self._waiting = left
        return batch

    async def _travel(self, batch: dict[str, tuple[Item, asyncio.Future[Answer]]]) -> None:
        items = [item for item, _ in batch.values()]
        futures = [future for _, future in batch.values()]
        try:
            answers = await self._send(items)
        except asyncio.CancelledError:
            for future in futures:
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001  (whatever a storage raises belongs to those who wait)
            if len(items) == 1 or isinstance(error, StorageUnavailable):
                for future in futures:
                    _fail(future, error)
                return
            for key, entry in batch.items():  # one bad item must not fail the others
                await self._travel({key: entry})
            return
        for future, answer in zip(futures, answers, strict=True):
            if not future.done():
                future.set_result(answer)


def _fail(future: asyncio.Future[Answer], error: Exception) -> None:
    if future.done():
        return
    if isinstance(error, StorageUnavailable):  # each waiter raises its own, as raising adds a traceback
        own = StorageUnavailable(*error.args)
        own.__cause__ = error.__cause__
        error = own
    future.set_exception(error)


def _key_of(write: Write) -> str:
    return write.key


def _size_of(write: Write) -> int:
    return len(write.data or b"")


def _answering_each(
    delete: Callable[[Sequence[str]], Awaitable[None]],
) -> Callable[[Sequence[str]], Awaitable[list[None]]]:
    async def send(keys: Sequence[str]) -> list[None]:
        await delete(keys)
        return [None] * len(keys)

    return send
