"""Many callers, few round trips."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from aiohttp import ClientSession, DummyCookieJar, TCPConnector, web

from aiohttp_store import Outcome, Record, Saved, SessionTooLarge, Storage, StorageUnavailable, Write, get_session
from aiohttp_store._engine.batching import MAX_BYTES, MAX_KEYS, Batcher
from aiohttp_store._engine.flushing import MAX_BATCHES, PATIENCE
from aiohttp_store.storage import Sharded

from ..conftest import Serve
from ..support.timing import AT_LAST, leaping

Records = Batcher[None, Record | None]


class Gated(Storage):
    """A storage whose batches end when the test says so, and that keeps account of them."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.under_way = 0
        self.most = 0
        self.bad: dict[str, Exception] = {}

    async def _carry_out(self, keys: list[str]) -> None:
        self.batches.append(keys)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.gate.wait()
        finally:
            self.under_way -= 1
        for key in keys:
            if key in self.bad:
                raise self.bad[key]

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        await self._carry_out(list(keys))
        return [Record(b"v", key.encode()) for key in keys]

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        await self._carry_out([write.key for write in writes])
        return [Saved(write.data or b"") for write in writes]

    async def delete(self, keys: Sequence[str]) -> None:
        await self._carry_out(list(keys))


def batcher_of(storage: Storage) -> Records:
    return Batcher(storage, lambda _, record: record, lambda tell, outcome: tell(outcome))


@pytest.fixture(autouse=True)
async def time(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Without a network nothing takes time but what the test sleeps, and the clock leaps over that."""
    if "serve" in request.fixturenames:
        yield
    else:
        with leaping():
            yield


@pytest.fixture
async def storage() -> Gated:
    return Gated()


@pytest.fixture
async def batcher(storage: Gated) -> Records:
    return batcher_of(storage)


async def settle(seconds: float = 0) -> None:
    await asyncio.sleep(seconds)
    for _ in range(5):
        await asyncio.sleep(0)


async def test_callers_of_one_moment_share_a_batch(batcher: Records, storage: Gated) -> None:
    storage.gate.set()
    records = await asyncio.gather(*(batcher.load(f"k{number}", None) for number in range(10)))
    assert [record and record.data for record in records] == [b"k%d" % number for number in range(10)]
    assert len(storage.batches) == 1


async def test_calls_that_arrive_during_the_batches_are_sent_together_in_the_next(
    batcher: Records, storage: Gated
) -> None:
    futures = [batcher.load("first", None)]
    await settle()
    futures.append(batcher.load("second", None))
    await settle()
    assert storage.batches == [["first"]]  # the second waits for company, but not for long
    await settle(PATIENCE * 2)
    futures += [batcher.load(f"k{number}", None) for number in range(5)]
    await settle()
    assert storage.batches == [["first"], ["second"]]
    storage.gate.set()
    await asyncio.gather(*futures)
    assert storage.batches[2:] == [[f"k{number}" for number in range(5)]]
    assert storage.most == MAX_BATCHES


async def test_a_batch_carries_a_key_once_and_keeps_the_order_of_writes(batcher: Records, storage: Gated) -> None:
    storage.gate.set()
    outcomes = await asyncio.gather(*(batcher.save(Write("k", None, b"%d" % number, 1)) for number in range(4)))
    assert outcomes == [Saved(b"%d" % number) for number in range(4)]
    assert storage.batches == [["k"]] * 4


async def test_a_batch_is_bounded_in_keys_and_bytes(batcher: Records, storage: Gated) -> None:
    storage.gate.set()
    await asyncio.gather(*(batcher.load(f"k{number}", None) for number in range(MAX_KEYS * 2 + 1)))
    assert sorted(map(len, storage.batches)) == [1, MAX_KEYS, MAX_KEYS]
    storage.batches.clear()
    sizes = {"a": MAX_BYTES - 1, "b": 1, "c": 1, "large": MAX_BYTES * 3, "d": 1}
    await asyncio.gather(*(batcher.save(Write(key, None, bytes(size), 1)) for key, size in sizes.items()))
    assert storage.batches == [["a", "b"], ["c"], ["large"], ["d"]]


async def test_an_outage_fails_the_whole_batch_and_only_it(batcher: Records, storage: Gated) -> None:
    storage.bad = {"bad": StorageUnavailable("down")}
    storage.gate.set()
    results = await asyncio.gather(batcher.load("good", None), batcher.load("bad", None), return_exceptions=True)
    assert [type(result) for result in results] == [StorageUnavailable] * 2
    assert results[0] is not results[1]
    assert await batcher.load("good", None)


async def test_a_bad_item_fails_alone(batcher: Records, storage: Gated) -> None:
    storage.bad = {"bad": SessionTooLarge(2, 1, "here")}
    storage.gate.set()
    writes = [Write(key, None, b"x", 1) for key in ("a", "bad", "b")]
    results = await asyncio.gather(*map(batcher.save, writes), return_exceptions=True)
    assert [type(result) for result in results] == [Saved, SessionTooLarge, Saved]


async def test_a_cancelled_caller_leaves_the_others_their_answers(batcher: Records, storage: Gated) -> None:
    async def ask(key: str) -> bytes:
        record = await batcher.load(key, None)
        assert record is not None
        return record.data

    tasks = [asyncio.create_task(ask(f"k{number}")) for number in range(6)]
    await settle()
    for task in tasks[::2]:
        task.cancel()
    storage.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[1::2] == [b"k1", b"k3", b"k5"]
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])


async def test_a_call_that_was_cancelled_before_its_batch_is_not_sent(batcher: Records, storage: Gated) -> None:
    blocking = [batcher.load("one", None)]
    await settle()
    blocking.append(batcher.load("two", None))
    await settle(PATIENCE * 2)
    left, stays = batcher.load("left", None), batcher.load("stays", None)
    left.cancel()
    storage.gate.set()
    await asyncio.gather(*blocking, stays)
    assert storage.batches == [["one"], ["two"], ["stays"]]
    await batcher.finish(5)


async def test_a_stalled_batch_does_not_hold_the_next(storage: Gated) -> None:
    class Stalling(Gated):
        async def load(self, keys: Sequence[str]) -> list[Record | None]:
            if "stall" in keys:
                await asyncio.Event().wait()
            return await super().load(keys)

    stalling = Stalling()
    stalling.gate.set()
    batcher = batcher_of(stalling)
    stalled = batcher.load("stall", None)
    await settle()
    for number in range(20):
        assert await batcher.load(f"k{number}", None)
    stalled.cancel()


async def test_finish_waits_for_what_is_under_way_and_waiting(batcher: Records, storage: Gated) -> None:
    asked = [batcher.save(Write(f"k{number}", None, b"x", 1)) for number in range(MAX_KEYS + 1)]
    deleted = batcher.delete("k")
    finishing = asyncio.create_task(batcher.finish(5))
    await settle()
    assert not finishing.done()
    storage.gate.set()
    await finishing
    assert all(future.done() for future in asked)
    assert deleted.done()


async def test_finish_stops_what_does_not_end(batcher: Records, storage: Gated) -> None:
    asked: list[asyncio.Future[Any]] = [batcher.load("one", None), batcher.save(Write("two", None, b"x", 1))]
    await batcher.finish(0.05)
    assert all(isinstance(future.exception(), StorageUnavailable) for future in asked)
    assert storage.under_way == 0


async def test_loads_of_one_key_share_their_answer(batcher: Records, storage: Gated) -> None:
    storage.gate.set()
    records = await asyncio.gather(*(batcher.load("k", None) for _ in range(250)))
    assert {record and record.data for record in records} == {b"k"}
    assert storage.batches == [["k"]]


async def test_a_write_is_carried_out_although_its_caller_left_and_what_became_of_it_is_told(
    batcher: Records, storage: Gated
) -> None:
    told: list[object] = []
    blocking = [batcher.save(Write("a", None, b"1", 1))]
    await settle()
    blocking.append(batcher.save(Write("b", None, b"2", 1)))
    await settle(PATIENCE * 2)
    under_way = batcher.save(Write("c", None, b"3", 1), told.append)
    under_way.cancel()
    storage.gate.set()
    await asyncio.gather(*blocking)
    await settle()
    storage.bad = {"d": StorageUnavailable("down")}
    failing = batcher.save(Write("d", None, b"4", 1), told.append)
    failing.cancel()
    await batcher.finish(5)
    assert ["c"] in storage.batches
    assert told[0] == Saved(b"3")
    assert isinstance(told[1], StorageUnavailable)


async def test_who_waits_too_long_is_told_within_the_storages_deadline() -> None:
    storage = Gated()
    storage.timeout = 0.05
    batcher = batcher_of(storage)
    asked = [batcher.load(f"k{number}", None) for number in range(3)]
    await settle()
    asked += [batcher.load(f"l{number}", None) for number in range(3)]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(result) for result in results] == [StorageUnavailable] * 6
    assert "did not answer within 0.05 s" in str(results[0])
    await batcher.finish(0)


async def test_a_write_that_was_reported_as_failed_before_it_was_sent_is_not_carried_out_later() -> None:
    storage = Gated()
    storage.timeout = 0.4
    batcher = batcher_of(storage)
    told: list[object] = []
    large = bytes(MAX_BYTES)
    asked = [batcher.save(Write(f"k{number}", None, large, 1), told.append) for number in range(6)]
    asked[5].cancel()
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(result) for result in results] == [StorageUnavailable] * 5 + [asyncio.CancelledError]
    storage.gate.set()
    await settle(0.01)
    assert sorted(storage.batches) == [["k0"], ["k1"], ["k2"], ["k3"]]  # the latter after half of the former's deadline
    assert [type(error) for error in told] == [StorageUnavailable]
    assert batcher._only
    assert not batcher._only.saves._waiting


async def test_a_storage_that_forgets_its_deadline_does_not_hold_the_batches_forever() -> None:
    storage = Gated()
    storage.timeout = 0.02
    batcher = batcher_of(storage)
    for key in ("one", "two", "three"):
        with pytest.raises(StorageUnavailable):
            await batcher.load(key, None)
    await asyncio.sleep(0.05)
    storage.gate.set()
    assert await batcher.load("four", None)


class Odd(Gated):
    """A storage that breaks the contract."""

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        if "short" in keys:
            return []
        raise asyncio.CancelledError


async def test_a_storage_that_breaks_the_law_fails_those_who_asked_and_nobody_else() -> None:
    batcher = batcher_of(Odd())
    with pytest.raises(ValueError, match="shorter"):
        await batcher.load("short", None)
    with pytest.raises(StorageUnavailable):
        await batcher.load("cancelled", None)


def test_a_batcher_serves_one_event_loop_after_another() -> None:
    storage = Gated()

    async def leave() -> None:
        records.load("left", None)

    async def ask() -> Record | None:
        storage.gate = asyncio.Event()
        storage.gate.set()
        return await records.load("k", None)

    records = batcher_of(storage)
    asyncio.run(leave())
    assert asyncio.run(ask()) == Record(b"v", b"k")


async def test_a_lone_caller_is_not_kept_waiting_for_company(batcher: Records, storage: Gated) -> None:
    storage.gate.set()
    for number in range(3):
        asked = batcher.load(f"k{number}", None)
        await asyncio.sleep(0)
        assert storage.batches[number:] == [[f"k{number}"]]
        await asked


async def test_where_there_was_company_the_next_batch_waits_for_the_requests_that_have_arrived(
    batcher: Records, storage: Gated
) -> None:
    storage.gate.set()
    await asyncio.gather(*(batcher.load(f"k{number}", None) for number in range(5)))
    asked = [batcher.load("first", None)]
    await asyncio.sleep(0)
    asked.append(batcher.load("second", None))
    await asyncio.gather(*asked)
    assert storage.batches[1:] == [["first", "second"]]


class Prompt(Gated):
    """A storage that answers at once."""

    def load_now(self, keys: Sequence[str]) -> list[Record | None]:
        self.batches.append(list(keys))
        if "bad" in keys:
            raise self.bad["bad"]
        return [Record(b"v", key.encode()) for key in keys]

    def save_now(self, writes: Sequence[Write]) -> list[Outcome]:
        return [Saved(write.data or b"") for write in writes]


async def test_a_storage_that_answers_at_once_is_asked_once_in_a_turn_without_a_task() -> None:
    prompt = Prompt()
    prompt.bad = {"bad": SessionTooLarge(2, 1, "here")}
    batcher, tasks = batcher_of(prompt), asyncio.all_tasks()
    asked = [batcher.load(f"k{number}", None) for number in range(5)]
    saved = batcher.save(Write("k", None, b"x", 1))
    await asyncio.sleep(0)
    assert [future.result() for future in asked] == [Record(b"v", b"k%d" % number) for number in range(5)]
    assert saved.result() == Saved(b"x")
    assert asyncio.all_tasks() == tasks
    left = batcher.load("left", None)
    left.cancel()
    failing, good = batcher.load("bad", None), batcher.load("good", None)
    with pytest.raises(SessionTooLarge):
        await failing
    assert await good == Record(b"v", b"good")
    waiting = batcher.load("waiting", None)
    await batcher.finish(1)
    assert waiting.result() == Record(b"v", b"waiting")
    assert prompt.batches == [[f"k{number}" for number in range(5)], ["bad", "good"], ["bad"], ["good"], ["waiting"]]
    prompt.bad = {"bad": StorageUnavailable("down")}
    both = await asyncio.gather(batcher.load("bad", None), batcher.load("good", None), return_exceptions=True)
    assert [type(one) for one in both] == [StorageUnavailable] * 2


async def test_what_cannot_be_read_fails_the_one_who_asked() -> None:
    def read(asked: str, record: Record | None) -> str:
        assert record is not None
        return f"{asked} {record.data.decode(asked)}"

    storage = Gated()
    storage.gate.set()
    batcher = Batcher(storage, read, lambda asker, outcome: None)
    good, bad = await asyncio.gather(batcher.load("k", "ascii"), batcher.load("k", "nothing"), return_exceptions=True)
    assert good == "ascii k"
    assert isinstance(bad, LookupError)
    assert storage.batches == [["k"]]


async def test_a_deadline_holds_for_who_asks_while_a_stalled_batch_is_watched() -> None:
    storage = Gated()
    storage.timeout = within = 0.5
    storage.gate.set()
    batcher, loop = batcher_of(storage), asyncio.get_running_loop()

    async def ask(key: str) -> float:
        began = loop.time()
        with pytest.raises(StorageUnavailable):
            await batcher.load(key, None)
        return loop.time() - began

    assert await batcher.load("answered", None)  # the timer is set for its deadline
    storage.gate.clear()
    await asyncio.sleep(within * 0.9)
    left = batcher.load("left", None)  # its batch is stopped long after
    await settle()
    left.cancel()
    await asyncio.sleep(within * 0.2)
    assert max(await asyncio.gather(ask("one"), ask("other"))) < within * 1.6
    await batcher.finish(0)


async def test_a_batch_that_nobody_waits_for_is_stopped_too() -> None:
    storage = Gated()
    storage.timeout = 0.05
    batcher = batcher_of(storage)
    large = bytes(MAX_BYTES)
    asked = [batcher.save(Write(f"k{number}", None, large, 1)) for number in range(4)]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(result) for result in results] == [StorageUnavailable] * 4
    await asyncio.sleep(0.05 * 8)
    assert storage.under_way == 0
    storage.gate.set()
    assert await batcher.save(Write("k", None, b"x", 1)) == Saved(b"x")


async def test_a_batch_that_is_cancelled_before_it_began_makes_room() -> None:
    storage = Gated()
    storage.timeout = 0.5
    storage.gate.set()
    batcher, others = batcher_of(storage), asyncio.all_tasks()
    lost = batcher.load("lost", None)
    (batch,) = asyncio.all_tasks() - others
    batch.cancel()
    assert await batcher.load("found", None)
    assert await lost
    await settle(0.6)
    assert batcher._only
    assert not batcher._only.loads._running
    written = batcher.save(Write("k", None, b"x", 1))
    (batch,) = asyncio.all_tasks() - others
    batch.cancel()
    await batcher.finish(1)
    assert written.result() == Saved(b"x")


async def test_who_is_tried_alone_is_answered_also_when_the_batch_is_stopped() -> None:
    class Picky(Gated):
        timeout = 0.5

        async def save(self, writes: Sequence[Write]) -> list[Outcome]:
            if len(writes) > 1:
                raise SessionTooLarge(2, 1, "here")
            await asyncio.sleep(0.25)
            return await super().save(writes)

    storage = Picky()
    storage.gate.set()
    told: list[object] = []
    batcher = batcher_of(storage)
    asked = [batcher.save(Write(f"k{number}", None, b"x", 1), told.append) for number in range(6)]
    await settle()
    for future in asked:
        future.cancel()
    await asyncio.sleep(0.25 * 8)
    assert [keys for keys in storage.batches if len(keys) == 1] == [[f"k{number}"] for number in range(6)]
    assert told == [Saved(b"x")] * 6
    waiting = [batcher.save(Write(f"m{number}", None, b"x", 1)) for number in range(4)]
    await settle()
    await batcher.finish(0)
    assert all(isinstance(future.exception(), StorageUnavailable) for future in waiting)


@pytest.mark.parametrize("is_asked_late", [False, True])
async def test_batches_that_hang_give_way_after_half_of_their_deadline(*, is_asked_late: bool) -> None:
    storage = Gated()
    storage.timeout = 2.0
    batcher: Batcher[None, Record | None] = Batcher(storage, lambda _, record: record, lambda *_: None)
    began = asyncio.get_running_loop().time()
    for number in range(MAX_BATCHES):
        batcher.load(f"stuck{number}", None)
        await settle(PATIENCE * 2)
    if is_asked_late:
        await asyncio.sleep(1.1)
    waiting = batcher.load("next", None)
    async with asyncio.timeout(5):
        while len(storage.batches) == MAX_BATCHES:
            await asyncio.sleep(0.01)
    assert asyncio.get_running_loop().time() - began >= 1
    assert storage.batches[MAX_BATCHES:] == [["next"]]
    storage.gate.set()
    assert await waiting == Record(b"v", b"next")
    await batcher.finish(1)


async def test_what_waits_behind_batches_that_hang_goes_on_when_a_later_one_is_back() -> None:
    storage = Gated()
    storage.timeout = 2.0
    batcher: Batcher[None, Record | None] = Batcher(storage, lambda _, record: record, lambda *_: None)
    for number in range(MAX_BATCHES):
        batcher.load(f"stuck{number}", None)
        await settle(PATIENCE * 2)
    storage.gate = asyncio.Event()  # those before wait for another, which nobody sets
    await asyncio.sleep(1.1)
    keys = [f"{number}" for number in range(3 * MAX_KEYS)]
    waiting = [batcher.load(key, None) for key in keys]
    await settle(PATIENCE * 2)
    assert storage.under_way == 2 * MAX_BATCHES
    storage.gate.set()
    async with asyncio.timeout(0.8):  # before the first ones are stopped
        assert await asyncio.gather(*waiting) == [Record(b"v", key.encode()) for key in keys]
    await batcher.finish(0.1)


async def test_a_call_that_joins_a_batch_before_it_begins_leaves_nothing_behind_that_holds_up_the_next() -> None:
    class Asking(Gated):
        async def load(self, keys: Sequence[str]) -> list[Record | None]:
            if len(self.batches) == 0:  # the second batch is scheduled, and has taken nobody yet
                waiting.append(batcher.load("late", None))
            return await super().load(keys)

    storage = Asking()
    storage.timeout = 3600.0
    batcher = batcher_of(storage)
    waiting: list[asyncio.Future[Record | None]] = []
    waiting += [batcher.load(f"{number}", None) for number in range(MAX_KEYS + 1)]
    await settle()
    assert storage.batches[1:] == [[f"{MAX_KEYS}", "late"]]
    storage.gate.set()
    await asyncio.gather(*waiting)
    async with asyncio.timeout(5):
        assert await batcher.load("next", None) == Record(b"v", b"next")


@pytest.mark.parametrize("callers", [1, 2, 3, MAX_KEYS, MAX_KEYS + 1, 4 * MAX_KEYS])
async def test_nobody_is_forgotten_whatever_the_order_of_arrivals_and_answers(callers: int) -> None:
    chance = random.Random(callers)

    class Unsteady(Gated):
        async def _carry_out(self, keys: list[str]) -> None:
            for _ in range(chance.choice((0, 1, 2, 3, 50))):
                await asyncio.sleep(0)
            await asyncio.sleep(chance.choice((0, PATIENCE / 2, PATIENCE * 1.5)))

    storage = Unsteady()
    storage.timeout = 3600.0
    batcher = batcher_of(storage)

    async def ask(caller: int) -> None:
        for number in range(100):
            key = f"{caller}.{number}"
            if chance.random() < 1 / 3:
                assert await batcher.save(Write(key, None, b"x", 1)) == Saved(b"x")
            else:
                assert await batcher.load(key, None) == Record(b"v", key.encode())
            await asyncio.sleep(chance.choice((0, PATIENCE / 2, PATIENCE)))

    async with asyncio.timeout(30):
        await asyncio.gather(*map(ask, range(callers)))


class Lettered(Sharded):
    """A storage over one server for each letter that keys begin with."""

    def __init__(self) -> None:
        self.shards = {letter: Gated() for letter in "abc"}
        for shard in self.shards.values():
            shard.gate.set()

    def shard_of(self, key: str) -> Storage:
        return self.shards[key[0]]


async def test_a_server_that_hangs_holds_up_its_own_keys_only() -> None:
    storage = Lettered()
    storage.shards["a"].gate.clear()
    batcher = batcher_of(storage)
    verbs: list[Callable[[str], asyncio.Future[Any]]] = [
        lambda key: batcher.load(key, None),
        lambda key: batcher.save(Write(key, None, b"x", 1)),
        batcher.delete,
    ]
    hanging = []
    for verb in verbs:
        for number in range(MAX_BATCHES + 1):
            hanging.append(verb(f"a{number}"))
            await settle(PATIENCE * 2)
        await asyncio.gather(*(verb(f"{letter}{number}") for number in range(5) for letter in "bc"))
    assert storage.shards["c"].batches == [[f"c{number}" for number in range(5)]] * 3
    finishing = asyncio.create_task(batcher.finish(5))
    await settle()
    assert not any(future.done() for future in (*hanging, finishing))
    storage.shards["a"].gate.set()
    await finishing
    assert all(future.done() for future in hanging)


async def test_a_batch_over_several_servers_is_answered_in_order_and_an_outage_undoes_no_others_work() -> None:
    storage, keys = Lettered(), ["c1", "a1", "b1", "a2", "c2"]
    found = await storage.load(keys)
    assert [record and record.data for record in found] == [key.encode() for key in keys]
    assert await storage.save([Write(key, None, key.encode(), 1) for key in keys]) == [
        Saved(key.encode()) for key in keys
    ]
    assert storage.shards["c"].batches == [["c1", "c2"]] * 2
    storage.shards["a"].bad = {"a1": SessionTooLarge(2, 1, "here")}
    with pytest.raises(SessionTooLarge):
        await storage.save([Write(key, None, b"x", 1) for key in keys])
    storage.shards["b"].bad = {"b1": StorageUnavailable("down")}
    with pytest.raises(StorageUnavailable):
        await storage.save([Write(key, None, b"x", 1) for key in keys])
    with pytest.raises(StorageUnavailable):
        await storage.delete(keys)
    assert storage.shards["c"].batches == [["c1", "c2"]] * 5


async def name(request: web.Request) -> web.Response:
    """Begin a session, or tell whose it is and write to it."""
    session = await get_session(request)
    session.setdefault("name", request.query["name"])
    session["last"] = f"{request.query['name']} {request.query['turn']}"
    return web.json_response(dict(session))


async def test_no_visitor_meets_another_although_requests_are_cancelled(serve: Serve, storage_url: str) -> None:
    client = await serve(name, storage=storage_url)
    chance = random.Random(4)
    answered = cancelled = 0

    async def ask(visitor: str, turn: int, cookies: dict[str, str]) -> Any:
        query: dict[str, str | int] = {"name": visitor, "turn": turn}
        async with browsers.get(client.make_url("/name"), params=query, cookies=cookies) as response:
            assert response.status == 200, await response.text()
            cookies |= {key: morsel.value for key, morsel in response.cookies.items()}
            return await response.json()

    async def visit(visitor: str) -> None:
        nonlocal answered, cancelled
        cookies: dict[str, str] = {}
        await ask(visitor, 0, cookies)
        for turn in range(1, 9):
            task = asyncio.create_task(ask(visitor, turn, cookies))
            if chance.random() < 0.5:
                await asyncio.sleep(chance.random() / 50)
                task.cancel()
            try:
                assert await task == {"name": visitor, "last": f"{visitor} {turn}"}
                answered += 1
            except asyncio.CancelledError:
                cancelled += 1
        assert (await ask(visitor, 9, cookies))["name"] == visitor

    async with ClientSession(cookie_jar=DummyCookieJar()) as browsers:
        await asyncio.gather(*(visit(f"v{number}") for number in range(48)))
    assert answered > 48
    assert cancelled > 48


@pytest.mark.parametrize("storage_name", ["redis", "redis_cluster", "sqlite"], indirect=True)
async def test_no_visitor_waits_for_a_deadline_while_the_server_answers(
    serve: Serve, make_url: Callable[..., str]
) -> None:
    client = await serve(name, storage=make_url(timeout=600))

    async def visit(visitor: int) -> None:
        cookies: dict[str, str] = {}
        for turn in range(6):
            async with browsers.get(
                client.make_url("/name"), params={"name": visitor, "turn": turn}, cookies=cookies
            ) as response:
                assert response.status == 200, await response.text()
                cookies |= {key: morsel.value for key, morsel in response.cookies.items()}

    async with ClientSession(cookie_jar=DummyCookieJar(), connector=TCPConnector(limit=0)) as browsers:
        async with asyncio.timeout(AT_LAST):
            await asyncio.gather(*map(visit, range(4 * MAX_KEYS)))
