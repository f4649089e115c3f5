"""Many requests, one round trip: what arrives while the storage is asked goes out together in the next trip."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from itertools import chain
from typing import Any, Generic, TypeVar

from .errors import StorageUnavailable
from .storage import Outcome, Record, Storage, Write, timed_out

__all__ = ["Batcher", "Left"]

MAX_TRIPS = 2
"""Round trips of one kind under way at once, so that a stalled one does not hold the next."""
MAX_KEYS = 64
MAX_BYTES = 256 * 1024

Item = TypeVar("Item")
Answer = TypeVar("Answer")

Left = Callable[[Answer | Exception], None]
"""Who is told the answer, or the failure, of a question whose caller has left."""


class Batcher:
    """The three verbs of a storage for one key each, answered within the storage's `timeout`.

    Trips run in tasks of their own: a cancelled caller stops waiting, and the command that it
    shares with others runs to its end.
    """

    def __init__(self, storage: Storage) -> None:
        self._loads: _Lane[str, Record | None] = _Lane(storage, storage.load, str)
        self._saves: _Lane[Write, Outcome] = _Lane(storage, storage.save, _key_of)
        self._deletes: _Lane[str, None] = _Lane(storage, _answering_each(storage), str)

    def load(self, key: str) -> asyncio.Future[Record | None]:
        """Ask for one record; nobody travels for a caller who has left."""
        return self._loads.ask(key)

    def save(self, write: Write, left: Left[Outcome] | None = None) -> asyncio.Future[Outcome]:
        """Ask for one write; it is carried out even if the caller leaves, and `left` is then told what became of it."""
        return self._saves.ask(write, left or _ignore, len(write.data or b""))

    def delete(self, key: str) -> asyncio.Future[None]:
        """Ask for one deletion; it is carried out even if the caller leaves."""
        return self._deletes.ask(key, _ignore)

    async def finish(self, within: float) -> None:
        """Wait until every trip has ended, and stop those that have not after `within` seconds."""
        lanes = (self._loads, self._saves, self._deletes)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                for lane in lanes:
                    await lane.finish()
        for lane in lanes:
            await lane.stop()


class _Waiting(Generic[Item, Answer]):
    """One caller and the question; a caller with `left` has it answered even after leaving."""

    __slots__ = ("future", "item", "left", "size")

    def __init__(self, item: Item, future: asyncio.Future[Answer], left: Left[Answer] | None, size: int) -> None:
        self.item = item
        self.future = future
        self.left = left
        self.size = size

    def answer(self, answer: Answer) -> None:
        if not self.future.done():
            self.future.set_result(answer)
        elif self.left is not None and self.future.cancelled():
            self.left(answer)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            if isinstance(error, StorageUnavailable):  # each waiter raises its own, as raising adds a traceback
                own = StorageUnavailable(*error.args)
                own.__cause__ = error.__cause__
                error = own
            self.future.set_exception(error)
        elif self.left is not None and self.future.cancelled():
            self.left(error)


class _Lane(Generic[Item, Answer]):
    """The trips of one verb. A trip carries a key once, at most 64 keys, and 256 KiB or one larger item."""

    def __init__(
        self,
        storage: Storage,
        send: Callable[[Sequence[Item]], Coroutine[Any, Any, Sequence[Answer]]],
        key: Callable[[Item], str],
    ) -> None:
        self._storage = storage
        self._send = send
        self._key = key
        self._waiting: deque[_Waiting[Item, Answer]] = deque()
        self._trips: set[asyncio.Task[None]] = set()
        self._is_due = False
        self._deadlines: deque[tuple[float, asyncio.Future[Answer]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def ask(self, item: Item, left: Left[Answer] | None = None, size: int = 0) -> asyncio.Future[Answer]:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # at first, and where a bare middleware outlives its loop
            self._loop, self._is_due, self._timer = loop, False, None
            self._waiting, self._trips, self._deadlines = deque(), set(), deque()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append(_Waiting(item, future, left, size))
        if not self._is_due and len(self._trips) < MAX_TRIPS:
            self._is_due = True
            loop.call_soon(self._depart)  # after the other requests of this turn of the loop
        deadlines = self._deadlines
        while deadlines and deadlines[0][1].done():
            deadlines.popleft()
        deadlines.append((loop.time() + self._storage.timeout, future))
        if self._timer is None:
            self._timer = loop.call_at(deadlines[0][0], self._expire)
        return future

    async def finish(self) -> None:
        self._depart()
        while self._trips:
            await asyncio.wait(self._trips)

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            self._waiting.popleft().fail(timed_out(self._storage))
        trips = set(self._trips)
        for trip in trips:
            trip.cancel()
        if trips:
            await asyncio.wait(trips)

    def _expire(self) -> None:
        """Fail those who have waited too long: one timer for all, as all wait equally long."""
        loop = asyncio.get_running_loop()
        now, deadlines = loop.time(), self._deadlines
        while deadlines and (deadlines[0][1].done() or deadlines[0][0] <= now):
            _, future = deadlines.popleft()
            if not future.done():
                future.set_exception(timed_out(self._storage))
        self._timer = loop.call_at(deadlines[0][0], self._expire) if deadlines else None

    def _depart(self) -> None:
        self._is_due = False
        while self._waiting and len(self._trips) < MAX_TRIPS:
            batch = self._take()
            if batch:
                trip = asyncio.get_running_loop().create_task(self._travel(batch))
                self._trips.add(trip)
                trip.add_done_callback(self._arrive)

    def _arrive(self, trip: asyncio.Task[None]) -> None:
        self._trips.discard(trip)
        if self._waiting and not self._is_due:
            self._depart()

    def _take(self) -> dict[str, list[_Waiting[Item, Answer]]]:
        """Fill a trip with those who have waited longest; who asks for the same key to be loaded shares the answer."""
        batch: dict[str, list[_Waiting[Item, Answer]]] = {}
        waiting, later, room = self._waiting, [], MAX_BYTES
        while waiting:
            one = waiting[0]
            if one.left is None and one.future.done():
                waiting.popleft()
                continue
            key = self._key(one.item)
            if key in batch:
                if one.left is None:
                    batch[key].append(one)
                else:
                    later.append(one)
                waiting.popleft()
                continue
            if len(batch) >= MAX_KEYS or (batch and one.size > room):
                break
            batch[key] = [one]
            room -= one.size
            waiting.popleft()
        waiting.extendleft(reversed(later))
        return batch

    async def _travel(self, batch: dict[str, list[_Waiting[Item, Answer]]]) -> None:
        # A storage keeps its deadline; the one that does not must not hold this trip's place for ever.
        try:
            async with asyncio.timeout(2 * self._storage.timeout):
                answers = await self._send([sharing[0].item for sharing in batch.values()])
            for sharing, answer in zip(batch.values(), answers, strict=True):
                for one in sharing:
                    one.answer(answer)
        except (asyncio.CancelledError, TimeoutError) as stopped:
            for one in chain.from_iterable(batch.values()):
                one.fail(timed_out(self._storage))
            if isinstance(stopped, asyncio.CancelledError):
                raise
        except Exception as error:  # noqa: BLE001  (whatever a storage raises belongs to those who wait)
            if len(batch) == 1 or isinstance(error, StorageUnavailable):
                for one in chain.from_iterable(batch.values()):
                    one.fail(error)
            else:
                for key, sharing in batch.items():  # one bad item must not fail the others
                    await self._travel({key: sharing})


def _key_of(write: Write) -> str:
    return write.key


def _ignore(_: object) -> None:
    """Nobody waits for this answer."""


def _answering_each(storage: Storage) -> Callable[[Sequence[str]], Coroutine[Any, Any, list[None]]]:
    async def send(keys: Sequence[str]) -> list[None]:
        await storage.delete(keys)
        return [None] * len(keys)

    return send
