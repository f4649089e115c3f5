"""Many requests, one round trip: what arrives while the storage is asked goes out together in the next trip."""

from __future__ import annotations

import asyncio
import contextlib
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

from ..errors import StorageUnavailable
from ..storage import Immediate, Outcome, Record, Sharded, Storage, Write, timed_out

__all__ = ["AnyBatcher", "Batcher", "ShardedBatcher"]

MAX_TRIPS = 2
"""Round trips of one kind under way at once, so that a stalled one does not hold the next."""
STALLED = 1 / 2
"""The share of its deadline after which a trip does not count: its connection may have died without a word."""
PATIENCE = 0.002
"""Seconds that the next trip waits for the first to come back, and for company: few full trips cost less than many."""
LINGER = 3
"""Turns of the event loop between a request's first byte and its question."""
FAILING = 5.0
"""Seconds after a failure in which a server is spared what another can do."""
MAX_KEYS = 64
MAX_BYTES = 256 * 1024

Asked = TypeVar("Asked")
Found = TypeVar("Found")
Item = TypeVar("Item")
Answer = TypeVar("Answer")
Waiter = TypeVar("Waiter")


class Batcher(Generic[Asked, Found]):
    """The three verbs of a storage for one key each, answered within the storage's `timeout`.

    Trips run in tasks of their own: a cancelled caller stops waiting, and the command that it
    shares with others runs to its end.
    """

    def __init__(
        self,
        storage: Storage,
        read: Callable[[Asked, Record | None], Found],
        left: Callable[[Any, Outcome | Exception], None],
    ) -> None:
        """Take what makes of a record what a caller wants, and what is told the outcome of a write whose caller left.

        A trip's records are read one after another, before the first caller goes on.
        """
        load_now, save_now = (storage.load_now, storage.save_now) if isinstance(storage, Immediate) else (None, None)
        self._loads: _Loads[Asked, Found] = _Loads(storage, storage.load, load_now)
        self._loads.read = read
        self._saves: _Changes[Write, Outcome] = _Changes(storage, storage.save, save_now)
        self._saves.left = left
        self._deletes: _Changes[str, None] = _Changes(storage, _answering_each(storage), None)

    def load(self, key: str, asked: Asked) -> asyncio.Future[Found]:
        """Ask for one record, and for what `read(asked, record)` makes of it; nobody travels for one who has left."""
        return self._loads.ask(key, asked)

    def save(self, write: Write, asker: object = None) -> asyncio.Future[Outcome]:
        """Ask for one write, which is carried out even if the caller leaves; then `left(asker, outcome)` is called."""
        return self._saves.ask(write, write.key, len(write.data or b""), asker)

    def delete(self, key: str) -> asyncio.Future[None]:
        """Ask for one deletion; it is carried out even if the caller leaves."""
        return self._deletes.ask(key, key, 0, None)

    def is_failing(self, key: str) -> bool:  # noqa: ARG002  (with several servers it depends on the key)
        """Tell whether the server of this key has just failed to answer."""
        failed = max(self._loads.failed, self._saves.failed, self._deletes.failed)
        return failed > 0 and asyncio.get_running_loop().time() - failed < FAILING

    async def finish(self, within: float) -> None:
        """Wait until every trip has ended, and stop those that have not after `within` seconds."""
        lanes: tuple[_Lane[Any, Any, Any, Any], ...] = (self._loads, self._saves, self._deletes)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                for lane in lanes:
                    await lane.finish()
        for lane in lanes:
            await lane.stop()


class ShardedBatcher(Generic[Asked, Found]):
    """A batcher for each server of a storage that has several, so that one which hangs holds up no other's trips."""

    def __init__(
        self,
        storage: Sharded,
        read: Callable[[Asked, Record | None], Found],
        left: Callable[[Any, Outcome | Exception], None],
    ) -> None:
        """Take what a `Batcher` takes."""
        self._shard_of = storage.shard_of
        self._read = read
        self._left = left
        self._batchers: dict[Storage, Batcher[Asked, Found]] = {}

    def load(self, key: str, asked: Asked) -> asyncio.Future[Found]:
        """Do what `Batcher.load` does."""
        return self._batcher_of(key).load(key, asked)

    def save(self, write: Write, asker: object = None) -> asyncio.Future[Outcome]:
        """Do what `Batcher.save` does."""
        return self._batcher_of(write.key).save(write, asker)

    def delete(self, key: str) -> asyncio.Future[None]:
        """Do what `Batcher.delete` does."""
        return self._batcher_of(key).delete(key)

    def is_failing(self, key: str) -> bool:
        """Do what `Batcher.is_failing` does."""
        return self._batcher_of(key).is_failing(key)

    async def finish(self, within: float) -> None:
        """Do what `Batcher.finish` does, for all servers at once."""
        await asyncio.gather(*(batcher.finish(within) for batcher in self._batchers.values()))

    def _batcher_of(self, key: str) -> Batcher[Asked, Found]:
        shard = self._shard_of(key)
        batcher = self._batchers.get(shard)
        if batcher is None:  # servers may join while we run
            batcher = self._batchers[shard] = Batcher(shard, self._read, self._left)
        return batcher


AnyBatcher = Batcher[Any, Any] | ShardedBatcher[Any, Any]


class _Lane(ABC, Generic[Item, Answer, Waiter, Found]):
    """The trips of one verb. A trip carries a key once, at most 64 keys, and 256 KiB or one larger item.

    A storage that answers at once needs no trips: what is asked in one turn of the event loop is
    answered together at the end of it.
    """

    def __init__(
        self,
        storage: Storage,
        send: Callable[[Sequence[Item]], Coroutine[Any, Any, Sequence[Answer]]],
        now: Callable[[Sequence[Item]], Sequence[Answer]] | None,
    ) -> None:
        self._storage = storage
        self._send = send
        self._now = now
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begin()

    def _begin(self) -> None:
        self._due: asyncio.Handle | None = None  # the next departure, if it is not at once
        self._is_crowded = False  # the last trip carried several
        self.failed = 0.0  # when the server last failed to answer
        self._trips: dict[asyncio.Task[None], float] = {}  # when they are stopped
        self._timer: asyncio.TimerHandle | None = None
        self._deadlines: deque[float] = deque()
        self._deadlined: deque[asyncio.Future[Found]] = deque()  # whose deadlines these are

    @abstractmethod
    def _take(self) -> tuple[list[Item], list[Waiter]]:
        """Fill a trip with those who have waited longest: what it carries, and who waits for each of its answers."""

    @abstractmethod
    def _is_waiting(self) -> bool:
        """Tell whether another trip is wanted."""

    @abstractmethod
    def _deliver(self, waiters: list[Waiter], answers: Sequence[Answer]) -> None: ...

    @abstractmethod
    def _fail(self, waiter: Waiter, error: Exception) -> None: ...

    def _fail_all(self, waiters: list[Waiter], error: Exception) -> None:
        if isinstance(error, StorageUnavailable):
            self.failed = asyncio.get_running_loop().time()
        for waiter in waiters:
            self._fail(waiter, error)

    def _wait(self) -> asyncio.Future[Found]:
        """Make the future of one question, see to its deadline and to a trip."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # at first, and where a bare middleware outlives its loop
            self._loop = loop
            self._begin()
        future: asyncio.Future[Found] = loop.create_future()
        if self._now is not None:
            if self._due is None:
                self._due = loop.call_soon(self._answer_now)
            return future
        if self._due is None:
            if self._trips:
                patience = PATIENCE if len(self._trips) < MAX_TRIPS else self._until_place()
                self._due = loop.call_later(patience, self._depart)
            elif self._is_crowded:
                self._linger(LINGER)
            else:
                self._depart()
        deadlines, deadlined = self._deadlines, self._deadlined
        while deadlined and deadlined[0].done():
            deadlined.popleft()
            deadlines.popleft()
        deadlines.append(loop.time() + self._storage.timeout)
        deadlined.append(future)
        if self._timer is None:
            self._timer = loop.call_at(deadlines[0], self._expire)
        return future

    async def finish(self) -> None:
        if self._now is not None:
            self._answer_now()
        while self._is_waiting() or self._trips:
            self._forget_ended()
            if not self._trips:
                self._depart()
            await asyncio.wait(self._trips)

    async def stop(self) -> None:
        for handle in (self._timer, self._due):
            if handle is not None:
                handle.cancel()
        self._timer = self._due = None
        while self._is_waiting():
            self._fail_all(self._take()[1], timed_out(self._storage))
        trips = set(self._trips)
        for trip in trips:
            trip.cancel()
        if trips:
            await asyncio.wait(trips)
        self._trips.clear()  # also of those that had not begun

    def _expire(self) -> None:
        """Fail those who have waited too long, and stop the trips whose storage forgets its deadline."""
        loop = asyncio.get_running_loop()
        now, deadlines, deadlined = loop.time(), self._deadlines, self._deadlined
        while deadlined and (deadlined[0].done() or deadlines[0] <= now):
            deadlines.popleft()
            future = deadlined.popleft()
            if not future.done():
                future.set_exception(timed_out(self._storage))
                self.failed = now
        self._forget_ended()
        for trip, until in self._trips.items():
            if until <= now:
                trip.cancel()
        self._timer = None
        if self._is_waiting() and not self._trips:
            self._depart()
        if self._timer is None and (deadlines or self._trips):  # who asks later has no earlier deadline than these
            self._timer = loop.call_at(min([now + self._storage.timeout, *islice(deadlines, 1)]), self._expire)

    def _forget_ended(self) -> None:
        """Drop the trips that were cancelled before they began, as they could not take leave themselves."""
        for trip in [trip for trip in self._trips if trip.done()]:
            del self._trips[trip]

    def _answer_now(self) -> None:
        self._due = None
        while self._is_waiting():
            items, waiters = self._take()
            if items:
                self._carry_now(items, waiters)

    def _carry_now(self, items: list[Item], waiters: list[Waiter]) -> None:
        assert self._now is not None
        try:
            self._deliver(waiters, self._now(items))
        except Exception as error:  # noqa: BLE001  (whatever a storage raises belongs to those who wait)
            if len(items) == 1 or isinstance(error, StorageUnavailable):
                self._fail_all(waiters, error)
            else:
                for item, waiter in zip(items, waiters, strict=True):
                    self._carry_now([item], [waiter])

    def _depart(self) -> None:
        """Begin a trip; the other requests of this turn of the event loop join it."""
        loop = asyncio.get_running_loop()
        if self._due is not None:
            self._due.cancel()
            self._due = None
        trip = asyncio.Task(self._travel(), loop=loop)  # a task factory might begin it too early
        self._trips[trip] = loop.time() + 2 * self._storage.timeout
        if self._timer is None:
            self._timer = loop.call_later(self._storage.timeout, self._expire)

    async def _travel(self) -> None:
        try:
            items, waiters = self._take()
            self._is_crowded = len(items) > 1
            self._plan(0)
            if items:
                await self._carry(items, waiters)
        finally:
            self._trips.pop(asyncio.current_task(), None)  # type: ignore[arg-type]
            self._plan(LINGER)

    def _plan(self, turns: int) -> None:
        """Set the next departure anew, after so many turns if there is a place; none, if nobody waits for it."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if not self._is_waiting():
            return
        if (patience := self._until_place()) > 0:
            self._due = asyncio.get_running_loop().call_later(patience, self._depart)
        else:
            self._linger(turns)

    def _until_place(self) -> float:
        """Give the seconds until another trip may depart, 0 or less for now."""
        if len(self._trips) < MAX_TRIPS:
            return 0
        stopped = list(self._trips.values())[-MAX_TRIPS]
        return stopped - asyncio.get_running_loop().time() - (2 - STALLED) * self._storage.timeout

    def _linger(self, turns: int) -> None:
        """Let the requests join that came while this turn of the event loop was busy with the answers."""
        if turns:
            self._due = asyncio.get_running_loop().call_soon(self._linger, turns - 1)
        else:
            self._depart()

    async def _carry(self, items: list[Item], waiters: list[Waiter]) -> None:
        try:
            self._deliver(waiters, await self._send(items))
        except (asyncio.CancelledError, TimeoutError) as stopped:
            self._fail_all(waiters, timed_out(self._storage))
            if isinstance(stopped, asyncio.CancelledError):
                raise
        except Exception as error:  # noqa: BLE001  (whatever a storage raises belongs to those who wait)
            if len(items) == 1 or isinstance(error, StorageUnavailable):
                self._fail_all(waiters, error)
            else:
                await self._carry_each(items, waiters)

    async def _carry_each(self, items: list[Item], waiters: list[Waiter]) -> None:
        """Let one bad item fail alone."""
        rest = deque(zip(items, waiters, strict=True))
        try:
            while rest:
                item, waiter = rest.popleft()
                trip = asyncio.current_task()
                if trip in self._trips:
                    self._trips[trip] = asyncio.get_running_loop().time() + 2 * self._storage.timeout
                await self._carry([item], [waiter])
        finally:
            self._fail_all([waiter for _, waiter in rest], timed_out(self._storage))


class _Loads(_Lane[str, Record | None, list[Any], Found], Generic[Asked, Found]):
    """Who asks for a key that waits already shares the answer."""

    read: Callable[[Asked, Record | None], Found]

    def _begin(self) -> None:
        super()._begin()
        self._waiting: dict[str, list[Any]] = {}  # for each key its askers: future, asked, future, asked, …

    def ask(self, key: str, asked: Asked) -> asyncio.Future[Found]:
        future = self._wait()
        sharing = self._waiting.get(key)
        if sharing is None:
            self._waiting[key] = [future, asked]
        else:
            sharing += (future, asked)
        return future

    def _is_waiting(self) -> bool:
        return bool(self._waiting)

    def _take(self) -> tuple[list[str], list[list[Any]]]:
        waiting = self._waiting
        if len(waiting) <= MAX_KEYS:
            self._waiting = {}
        else:
            waiting = {key: waiting.pop(key) for key in list(islice(waiting, MAX_KEYS))}
        for key, sharing in list(waiting.items()):
            if sharing[0].done() and all(future.done() for future in sharing[::2]):  # all have left
                del waiting[key]
        return list(waiting), list(waiting.values())

    def _deliver(self, waiters: list[list[Any]], answers: Sequence[Record | None]) -> None:
        read = self.read
        for sharing, record in zip(waiters, answers, strict=True):
            while sharing:
                asked, future = sharing.pop(), sharing.pop()
                if not future.done():
                    try:
                        future.set_result(read(asked, record))
                    except Exception as error:  # noqa: BLE001  (it belongs to the one who asked)
                        future.set_exception(error)

    def _fail(self, waiter: list[Any], error: Exception) -> None:
        for future in waiter[::2]:
            if not future.done():
                future.set_exception(_own(error))


class _Change(NamedTuple, Generic[Item, Answer]):
    item: Item
    key: str
    size: int
    until: float
    future: asyncio.Future[Answer]
    asker: object


class _Changes(_Lane[Item, Answer, _Change[Item, Answer], Answer]):
    """What is asked for is carried out, also when its caller has left, unless its deadline passes before it departs."""

    left: Callable[[Any, Any], None]

    def _begin(self) -> None:
        super()._begin()
        self._waiting: deque[_Change[Item, Answer]] = deque()

    def ask(self, item: Item, key: str, size: int, asker: object) -> asyncio.Future[Answer]:
        future = self._wait()
        until = self._deadlines[-1] if self._now is None else math.inf
        self._waiting.append(_Change(item, key, size, until, future, asker))
        return future

    def _is_waiting(self) -> bool:
        return bool(self._waiting)

    def _take(self) -> tuple[list[Item], list[_Change[Item, Answer]]]:
        waiting, room = self._waiting, MAX_BYTES
        taken: dict[str, _Change[Item, Answer]] = {}
        later, now = [], asyncio.get_running_loop().time()
        while waiting and len(taken) < MAX_KEYS and (waiting[0].size <= room or not taken):
            change = waiting.popleft()
            if change.until <= now:  # whoever waited has been told
                self._fail(change, timed_out(self._storage))
            elif change.key in taken:
                later.append(change)
            else:
                taken[change.key] = change
                room -= change.size
        waiting.extendleft(reversed(later))
        return [change.item for change in taken.values()], list(taken.values())

    def _deliver(self, waiters: list[_Change[Item, Answer]], answers: Sequence[Answer]) -> None:
        for (*_, future, asker), answer in zip(waiters, answers, strict=True):
            if not future.done():
                future.set_result(answer)
            elif asker is not None and future.cancelled():
                self.left(asker, answer)

    def _fail(self, waiter: _Change[Item, Answer], error: Exception) -> None:
        if not waiter.future.done():
            waiter.future.set_exception(_own(error))
        elif waiter.asker is not None and waiter.future.cancelled():
            self.left(waiter.asker, error)


def _own(error: Exception) -> Exception:
    """Give each waiter an error of its own, as raising adds a traceback."""
    if not isinstance(error, StorageUnavailable):
        return error
    own = StorageUnavailable(*error.args)
    own.__cause__ = error.__cause__
    return own


def _answering_each(storage: Storage) -> Callable[[Sequence[str]], Coroutine[Any, Any, list[None]]]:
    async def send(keys: Sequence[str]) -> list[None]:
        await storage.delete(keys)
        return [None] * len(keys)

    return send
