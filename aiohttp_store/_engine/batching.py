"""Many requests, one round trip: calls that arrive while the storage works are sent together in the next batch."""

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
from .deadlines import Deadlines
from .flushing import TURNS, FlushSchedule, RunningBatches

__all__ = ["Batcher"]

FAILING = 5.0
"""Seconds after a failure in which a server is spared what another can do."""
MAX_KEYS = 64
MAX_BYTES = 256 * 1024

Context = TypeVar("Context")
Found = TypeVar("Found")
Item = TypeVar("Item")
Answer = TypeVar("Answer")
Waiter = TypeVar("Waiter")


class Batcher(Generic[Context, Found]):
    """Loads, saves and deletes one key a call, in batches; every call is answered within the storage's `timeout`.

    Each server of a `Sharded` storage has queues of its own, so that one that hangs holds up no other's batches.
    Batches run in tasks of their own: if a caller is cancelled, the batch that it shares with others goes on.
    """

    def __init__(
        self,
        storage: Storage,
        read: Callable[[Context, Record | None], Found],
        abandoned: Callable[[Any, Outcome | Exception], None],
    ) -> None:
        """`read` makes of a record what a caller wants; `abandoned` gets the outcome if a write's caller was cancelled.

        All records of a batch are read before the first caller goes on.
        """
        self._storage = storage
        self._read = read
        self._abandoned = abandoned
        self._only = None if isinstance(storage, Sharded) else _Queues(storage, read, abandoned)
        self._of_shard: dict[Storage, _Queues[Context, Found]] = {}
        if self._only is not None:
            # What most requests do, without a detour.
            self.load = self._only.loads.add  # type: ignore[method-assign]

    def load(self, key: str, context: Context) -> asyncio.Future[Found]:
        """Load one record, and return what `read(context, record)` makes of it; a cancelled call is not sent."""
        return self._queues_of(key).loads.add(key, context)

    def save(self, write: Write, owner: object = None) -> asyncio.Future[Outcome]:
        """Write once, even if the caller is cancelled; `abandoned(owner, outcome)` is called then."""
        queues = self._only or self._queues_of(write.key)
        return queues.saves.add(write, write.key, len(write.data or b""), owner)

    def delete(self, key: str) -> asyncio.Future[None]:
        """Delete once, even if the caller is cancelled."""
        queues = self._only or self._queues_of(key)
        return queues.deletes.add(key, key, 0, None)

    def is_failing(self, key: str) -> bool:
        """Whether the server of this key has just failed to answer."""
        queues = self._only or self._queues_of(key)
        failed = max(queues.loads.failed, queues.saves.failed, queues.deletes.failed)
        return failed > 0 and asyncio.get_running_loop().time() - failed < FAILING

    async def finish(self, within: float) -> None:
        """Wait until every batch has ended, and stop those that have not after `within` seconds."""
        if self._only is not None:
            await self._only.finish(within)
        else:
            await asyncio.gather(*(queues.finish(within) for queues in self._of_shard.values()))

    def _queues_of(self, key: str) -> _Queues[Context, Found]:
        assert isinstance(self._storage, Sharded)
        shard = self._storage.shard_of(key)
        queues = self._of_shard.get(shard)
        if queues is None:  # servers may join while we run
            queues = self._of_shard[shard] = _Queues(shard, self._read, self._abandoned)
        return queues


class _Queues(Generic[Context, Found]):
    """The queues of one server, one for each verb."""

    def __init__(
        self,
        storage: Storage,
        read: Callable[[Context, Record | None], Found],
        abandoned: Callable[[Any, Outcome | Exception], None],
    ) -> None:
        save_now = storage.save_now if isinstance(storage, Immediate) else None
        self.loads = _LoadQueue(storage, read)
        self.saves: _WriteQueue[Write, Outcome] = _WriteQueue(storage, storage.save, save_now, abandoned)
        self.deletes: _WriteQueue[str, None] = _WriteQueue(storage, _answering_each(storage), None, abandoned)

    async def finish(self, within: float) -> None:
        queues: tuple[_Queue[Any, Any, Any, Any], ...] = (self.loads, self.saves, self.deletes)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                for queue in queues:
                    await queue.finish()
        for queue in queues:
            await queue.stop()


class _Queue(ABC, Generic[Item, Answer, Waiter, Found]):
    """The calls of one verb that wait for a batch. A batch holds a key once, at most 64 keys, and 256 KiB or one item.

    A storage that answers at once needs no tasks: the calls of one turn of the event loop are
    answered together at its end.
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
        self.begin()

    def begin(self) -> None:
        self.failed = 0.0  # when the server last failed to answer
        self._end_of_turn: asyncio.Handle | None = None  # when a storage that answers at once is asked
        self._running = RunningBatches(self._storage)
        self._schedule = FlushSchedule(self._running, self._flush)
        self._deadlines = Deadlines(self._storage, self._expire)

    @abstractmethod
    def take(self) -> tuple[list[Item], list[Waiter]]:
        """Return the next batch, the oldest first: its items, and who waits for each of their answers."""

    @abstractmethod
    def is_waiting(self) -> bool:
        """Whether there is anything for another batch."""

    @abstractmethod
    def deliver(self, waiters: list[Waiter], answers: Sequence[Answer]) -> None: ...

    @abstractmethod
    def fail(self, waiter: Waiter, error: Exception) -> None: ...

    def _fail_all(self, waiters: list[Waiter], error: Exception) -> None:
        if isinstance(error, StorageUnavailable):
            self.failed = asyncio.get_running_loop().time()
        for waiter in waiters:
            self.fail(waiter, error)

    def _wait(self) -> asyncio.Future[Found]:
        """Return the future of one call, with its deadline set and a flush on its way."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # at first, and where a bare middleware outlives its loop
            self._loop = loop
            self.begin()
        future: asyncio.Future[Found] = loop.create_future()
        if self._now is None:
            self._schedule.request()
            self._deadlines.add(future)
        elif self._end_of_turn is None:
            self._end_of_turn = loop.call_soon(self._flush_now)
        return future

    async def finish(self) -> None:
        if self._now is not None:
            self._flush_now()
        while self.is_waiting() or self._running:
            self._running.forget_ended()
            if not self._running:
                self._flush()
            await self._running.wait()

    async def stop(self) -> None:
        self._deadlines.stop_timer()
        self._schedule.cancel()
        while self.is_waiting():
            self._fail_all(self.take()[1], timed_out(self._storage))
        await self._running.stop()

    def _expire(self) -> None:
        """Fail the calls that have waited too long, and stop the batches whose storage forgets its deadline."""
        now = asyncio.get_running_loop().time()
        if self._deadlines.fail_late(now):
            self.failed = now
        self._running.forget_ended()
        self._running.stop_late(now)
        if self._deadlines or self._running:
            self._deadlines.start_timer()
        if self.is_waiting() and not self._running:
            self._flush()

    def _flush_now(self) -> None:
        self._end_of_turn = None
        while self.is_waiting():
            items, waiters = self.take()
            if items:
                self._answer_now(items, waiters)

    def _answer_now(self, items: list[Item], waiters: list[Waiter]) -> None:
        assert self._now is not None
        try:
            self.deliver(waiters, self._now(items))
        except Exception as error:  # noqa: BLE001  (whatever a storage raises belongs to those who wait)
            if len(items) == 1 or isinstance(error, StorageUnavailable):
                self._fail_all(waiters, error)
            else:
                for item, waiter in zip(items, waiters, strict=True):
                    self._answer_now([item], [waiter])

    def _flush(self) -> None:
        """Begin a batch; the other calls of this turn of the event loop join it."""
        self._schedule.cancel()
        self._running.start(self._send_batch())
        self._deadlines.start_timer()

    async def _send_batch(self) -> None:
        try:
            items, waiters = self.take()
            self._schedule.was_shared = len(items) > 1
            self._reschedule(0)
            if items:
                await self._answer(items, waiters)
        finally:
            self._running.end()
            self._reschedule(TURNS)

    def _reschedule(self, turns: int) -> None:
        """Replace the scheduled flush, which may have been for calls that are gone: it would hold up whoever comes."""
        if self.is_waiting():
            self._schedule.replace(turns)
        else:
            self._schedule.cancel()

    async def _answer(self, items: list[Item], waiters: list[Waiter]) -> None:
        try:
            self.deliver(waiters, await self._send(items))
        except (asyncio.CancelledError, TimeoutError) as stopped:
            self._fail_all(waiters, timed_out(self._storage))
            if isinstance(stopped, asyncio.CancelledError):
                raise
        except Exception as error:  # noqa: BLE001  (whatever a storage raises belongs to those who wait)
            if len(items) == 1 or isinstance(error, StorageUnavailable):
                self._fail_all(waiters, error)
            else:
                await self._answer_each(items, waiters)

    async def _answer_each(self, items: list[Item], waiters: list[Waiter]) -> None:
        """Let one bad item fail alone."""
        rest = deque(zip(items, waiters, strict=True))
        try:
            while rest:
                item, waiter = rest.popleft()
                self._running.extend()
                await self._answer([item], [waiter])
        finally:
            self._fail_all([waiter for _, waiter in rest], timed_out(self._storage))


_Loads = list[tuple[asyncio.Future[Found], Context]]
"""Who waits for one record, and what each makes of it. No tuples with names: this is done with every request."""


class _LoadQueue(_Queue[str, Record | None, _Loads[Found, Context], Found], Generic[Context, Found]):
    """Loads; those of one key share its record."""

    def __init__(self, storage: Storage, read: Callable[[Context, Record | None], Found]) -> None:
        super().__init__(storage, storage.load, storage.load_now if isinstance(storage, Immediate) else None)
        self._read = read

    def begin(self) -> None:
        super().begin()
        self._waiting: dict[str, _Loads[Found, Context]] = {}

    def add(self, key: str, context: Context) -> asyncio.Future[Found]:
        future = self._wait()
        loads = self._waiting.get(key)
        if loads is None:
            self._waiting[key] = [(future, context)]
        else:
            loads.append((future, context))
        return future

    def is_waiting(self) -> bool:
        return bool(self._waiting)

    def take(self) -> tuple[list[str], list[_Loads[Found, Context]]]:
        waiting = self._waiting
        if len(waiting) <= MAX_KEYS:
            self._waiting = {}
        else:
            waiting = {key: waiting.pop(key) for key in list(islice(waiting, MAX_KEYS))}
        for key, loads in list(waiting.items()):
            if loads[0][0].done() and all(future.done() for future, _ in loads):  # all were cancelled
                del waiting[key]
        return list(waiting), list(waiting.values())

    def deliver(self, waiters: list[_Loads[Found, Context]], answers: Sequence[Record | None]) -> None:
        read = self._read
        for loads, record in zip(waiters, answers, strict=True):
            for future, context in loads:
                if not future.done():
                    try:
                        future.set_result(read(context, record))
                    except Exception as error:  # noqa: BLE001  (it belongs to this caller)
                        future.set_exception(error)

    def fail(self, waiter: _Loads[Found, Context], error: Exception) -> None:
        for future, _ in waiter:
            if not future.done():
                future.set_exception(_own(error, self._storage))


class _PendingWrite(NamedTuple, Generic[Item, Answer]):
    item: Item
    key: str
    size: int
    until: float
    future: asyncio.Future[Answer]
    owner: object


class _WriteQueue(_Queue[Item, Answer, _PendingWrite[Item, Answer], Answer]):
    """Saves or deletions: one is sent even if its caller was cancelled, unless its deadline has passed before."""

    def __init__(
        self,
        storage: Storage,
        send: Callable[[Sequence[Item]], Coroutine[Any, Any, Sequence[Answer]]],
        now: Callable[[Sequence[Item]], Sequence[Answer]] | None,
        abandoned: Callable[[Any, Any], None],
    ) -> None:
        super().__init__(storage, send, now)
        self._abandoned = abandoned

    def begin(self) -> None:
        super().begin()
        self._waiting: deque[_PendingWrite[Item, Answer]] = deque()

    def add(self, item: Item, key: str, size: int, owner: object) -> asyncio.Future[Answer]:
        future = self._wait()
        until = self._deadlines.newest if self._now is None else math.inf
        self._waiting.append(_PendingWrite(item, key, size, until, future, owner))
        return future

    def is_waiting(self) -> bool:
        return bool(self._waiting)

    def take(self) -> tuple[list[Item], list[_PendingWrite[Item, Answer]]]:
        waiting, room = self._waiting, MAX_BYTES
        taken: dict[str, _PendingWrite[Item, Answer]] = {}
        later, now = [], asyncio.get_running_loop().time()
        while waiting and len(taken) < MAX_KEYS and (waiting[0].size <= room or not taken):
            pending = waiting.popleft()
            if pending.until <= now:  # its caller has been told
                self.fail(pending, timed_out(self._storage))
            elif pending.key in taken:
                later.append(pending)
            else:
                taken[pending.key] = pending
                room -= pending.size
        waiting.extendleft(reversed(later))
        return [pending.item for pending in taken.values()], list(taken.values())

    def deliver(self, waiters: list[_PendingWrite[Item, Answer]], answers: Sequence[Answer]) -> None:
        for pending, answer in zip(waiters, answers, strict=True):
            if not pending.future.done():
                pending.future.set_result(answer)
            elif pending.owner is not None and pending.future.cancelled():
                self._abandoned(pending.owner, answer)

    def fail(self, waiter: _PendingWrite[Item, Answer], error: Exception) -> None:
        if not waiter.future.done():
            waiter.future.set_exception(_own(error, self._storage))
        elif waiter.owner is not None and waiter.future.cancelled():
            self._abandoned(waiter.owner, error)


def _own(error: Exception, storage: Storage) -> Exception:
    """Return an error for one waiter alone, as raising it adds a traceback."""
    return error.copy(storage) if isinstance(error, StorageUnavailable) else error


def _answering_each(storage: Storage) -> Callable[[Sequence[str]], Coroutine[Any, Any, list[None]]]:
    async def send(keys: Sequence[str]) -> list[None]:
        await storage.delete(keys)
        return [None] * len(keys)

    return send
