"""The suite that every storage must pass, for the authors of storages: `StorageContract`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from ..errors import SessionTooLarge, StorageUnavailable
from ..storage import Conflict, Gone, Outcome, Record, Saved, Sharded, Storage, Write
from ._network import Network

__all__ = ["StorageContract"]

DAY = 86_400
MEBIBYTE = 1 << 20
LARGE = 17 * MEBIBYTE
"""More than most servers hold in one record, and less than a test should mind."""
GRACE = 5.0
"""Seconds that a busy machine may add to a deadline."""
SETTLING = 5.0
"""Seconds after `close` in which connections may still say goodbye."""
MOST_AWAITS = 60
MOST_ANSWERS = 12
"""How many answers of a server one call is made of at most, where they are lost one after the other."""

MakeStorage = Callable[..., Storage]
Answer = TypeVar("Answer")


def promised(test: Callable[..., None]) -> Callable[..., None]:
    """Add what the test promises to its failures."""

    @functools.wraps(test)
    def run(*own: Any, **given: Any) -> None:
        try:
            test(*own, **given)
        except (Exception, pytest.fail.Exception) as error:
            error.add_note(f"The promise: {test.__doc__}")
            raise

    return run


def case(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make of a coroutine function a test that brings its own event loop, in which its `storage` is open.

    So no plugin and no setting is needed to run it.
    """

    @functools.wraps(test)
    def run(self: StorageContract, **given: Any) -> None:
        async def with_storage() -> None:
            async with contextlib.AsyncExitStack() as stack, asyncio.timeout(self.patience):
                if "storage" in given:
                    await stack.enter_async_context(opened(given["storage"]))
                await test(self, **given)

        asyncio.run(with_storage())

    return promised(run)


def new_key() -> str:
    return secrets.token_urlsafe(32)


def new_space() -> str:
    return f"t{secrets.token_hex(6)}"


@asynccontextmanager
async def opened(storage: Storage) -> AsyncIterator[Storage]:
    await storage.open()
    try:
        yield storage
    finally:
        await storage.close()


async def save(storage: Storage, key: str, data: bytes | None, expected: bytes | None = None, ttl: int = 60) -> Outcome:
    outcomes = await storage.save([Write(key, expected, data, ttl)])
    assert len(outcomes) == 1, f"save() gave {len(outcomes)} outcomes for one write"
    return outcomes[0]


async def create(storage: Storage, key: str, data: bytes = b"data", ttl: int = 60) -> bytes:
    outcome = await save(storage, key, data, ttl=ttl)
    assert isinstance(outcome, Saved), f"a create under a free key gave {outcome!r}"
    return outcome.version


async def load(storage: Storage, key: str) -> Record | None:
    records = await storage.load([key])
    assert len(records) == 1, f"load() gave {len(records)} records for one key"
    return records[0]


async def data_of(storage: Storage, key: str) -> bytes | None:
    record = await load(storage, key)
    return None if record is None else record.data


async def version_of(storage: Storage, key: str, made: bytes, loaded: bool) -> bytes:
    """Give the version as its writer knows it, or as a reader does: they may differ in what else they carry."""
    if not loaded:
        return made
    record = await load(storage, key)
    assert record is not None, "a record that was just created is missing"
    return record.version


async def change(storage: Storage, key: str, compute: Callable[[bytes], bytes]) -> None:
    """Write what is computed from the current data, until no other write came between."""
    record = await load(storage, key)
    while True:
        assert record is not None, "a record that nobody deleted is missing"
        outcome = await save(storage, key, compute(record.data), record.version)
        if isinstance(outcome, Saved):
            return
        assert isinstance(outcome, Conflict), f"a write of a record that nobody deleted gave {outcome!r}"
        record = outcome.record


class _CancelledAt(Awaitable[Answer]):
    """Awaits what it is given, and cancels its task in the middle of a given await."""

    def __init__(self, awaited: Coroutine[Any, Any, Answer], place: int) -> None:
        self._awaited = awaited
        self._place = place
        self.awaits = 0

    def __await__(self) -> Generator[Any, Any, Answer]:
        steps = self._awaited.__await__()
        send: Callable[[], Any] = functools.partial(next, steps)
        while True:
            try:
                waiting = send()
            except StopIteration as end:
                answer: Answer = end.value
                return answer
            self.awaits += 1
            if self.awaits == self._place:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                yield waiting
            except BaseException as error:  # noqa: BLE001  (whatever it is, it is for whom we stand before)
                send = functools.partial(steps.throw, error)
            else:
                send = functools.partial(next, steps)


async def cancelled_at(awaited: Coroutine[Any, Any, Any], place: int) -> bool:
    """Run this, cancel it in the middle of a given await, and tell whether it came to that."""
    stepped = _CancelledAt(awaited, place)

    async def run() -> None:
        await stepped

    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.create_task(run())
    return stepped.awaits >= place


def open_sockets() -> set[int]:
    """Give the open sockets of this process, as Python knows them."""
    gc.collect()
    return {id(one) for one in gc.get_objects() if issubclass(type(one), socket.socket) and one.fileno() != -1}


class StorageContract:
    """The promises of `aiohttp_store.Storage`, each a test; subclass it in a test module and give `make_storage`.

    The tests run their own event loops: no plugin for pytest and no setting of one is needed. What cannot be tested
    without `server`, without `shared`, or without a `sweep()`, is skipped and says what to give: run pytest with `-rs`.
    """

    shared: bool = True
    """Whether two storages that were made for one space see the same records, as those of two processes do."""
    password: str | None = None
    """A secret of the storages that `make_storage` makes, which they must not show."""
    patience: float = 50.0
    """Seconds in which a test must end, so that a storage that hangs fails and does not hold up the others."""

    @pytest.fixture
    def make_storage(self) -> MakeStorage:
        """Override this: give a function that makes a storage, not yet open, for a space.

        A space is a name of 13 lower-case letters and digits, fit for a prefix or a table. Its first storage must
        find it empty. With `server`, the function is also called with `server=(host, port)`, and the storage that
        it makes must connect there.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must override the fixture make_storage: "
            "give a function that makes a storage, not yet open, for the name of a space"
        )

    @pytest.fixture
    def server(self) -> tuple[str, int] | None:
        """Override this: give the host and port of the server, and what happens on the way to it is tested as well."""
        return None

    @pytest.fixture
    def space(self) -> str:
        """The space of the test."""
        return new_space()

    @pytest.fixture
    def storage(self, make_storage: MakeStorage, space: str) -> Storage:
        """The storage of the test: its own, and open while the test runs."""
        return make_storage(space)

    @pytest.fixture
    def another(self, make_storage: MakeStorage, space: str) -> Storage:
        """A second storage on the same records, not open."""
        if not self.shared:
            pytest.skip("not tested: two storages on the same records; shared = False says that there are none")
        return make_storage(space)

    # Loading

    @case
    async def test_a_missing_key_loads_as_none(self, storage: Storage) -> None:
        """A key that was never written is `None`, not an error. Give one answer for each key, in order."""
        assert await storage.load([new_key(), new_key()]) == [None, None]

    @case
    async def test_an_empty_batch_is_answered(self, storage: Storage) -> None:
        """A batch of nothing is answered with nothing. Many servers refuse an empty `IN ()`: return early."""
        assert await storage.load([]) == []
        assert await storage.save([]) == []
        await storage.delete([])

    @case
    async def test_what_was_created_is_loaded(self, storage: Storage) -> None:
        """A create is seen by the next load, with the version that it was answered. Read from where you write."""
        key = new_key()
        version = await create(storage, key, b"hello")
        assert await data_of(storage, key) == b"hello"
        assert isinstance(await save(storage, key, b"more", version), Saved)
        assert await data_of(storage, key) == b"more"

    @case
    async def test_what_is_loaded_is_bytes_that_nobody_else_can_change(self, storage: Storage) -> None:
        """Data and versions are `bytes`. A shared `bytearray` would change in a caller's hands."""
        key = new_key()
        version = await create(storage, key, b"first")
        record = await load(storage, key)
        assert record is not None
        assert (type(record.data), type(record.version), type(version)) == (bytes, bytes, bytes)
        await save(storage, key, b"other", record.version)
        assert record.data == b"first", "a record changed after it was loaded"

    @case
    async def test_keys_are_compared_byte_for_byte(self, storage: Storage) -> None:
        """Keys that differ in case are two keys. Declare the column binary, or its collation case-sensitive."""
        upper, lower = "A" * 43, "a" * 43
        await create(storage, upper, b"upper")
        assert await storage.load([lower]) == [None]
        await create(storage, lower, b"lower")
        assert await data_of(storage, upper) == b"upper"

    # One write

    @case
    async def test_a_create_refuses_an_existing_key_and_shows_what_is_there(self, storage: Storage) -> None:
        """With no version expected and a record there, nothing is written: `Conflict`. Insert, never upsert."""
        key = new_key()
        await create(storage, key, b"first")
        outcome = await save(storage, key, b"second")
        assert isinstance(outcome, Conflict), f"a create over an existing record gave {outcome!r}"
        assert outcome.record.data == b"first"
        assert await data_of(storage, key) == b"first", "a create replaced an existing record"

    @pytest.mark.parametrize("loaded", [True, False])
    @case
    async def test_a_write_with_the_current_version_is_saved_under_another(
        self, storage: Storage, loaded: bool
    ) -> None:
        """The version of a load and that of a `Saved` both serve the next write, which leaves a new one."""
        key = new_key()
        versions = [await create(storage, key)]
        for number in range(5):
            expected = await version_of(storage, key, versions[-1], loaded)
            outcome = await save(storage, key, b"%d" % number, expected)
            assert isinstance(outcome, Saved), f"a write with the current version gave {outcome!r}"
            versions.append(outcome.version)
        assert await data_of(storage, key) == b"4"
        assert len(set(versions)) == len(versions), "two writes left the same version; draw one for each write"

    @case
    async def test_a_write_of_what_is_already_there_is_a_write(self, storage: Storage) -> None:
        """The same data again is `Saved` with a new version. Some servers count rows that changed, not that matched."""
        key = new_key()
        version = await create(storage, key, b"same")
        assert isinstance(await save(storage, key, b"same", version), Saved)
        assert isinstance(await save(storage, key, b"late", version), Conflict), "the version did not change"

    @pytest.mark.parametrize("data", [b"mine", None])
    @pytest.mark.parametrize("loaded", [True, False])
    @case
    async def test_a_write_with_a_stale_version_changes_nothing_and_shows_the_other(
        self, storage: Storage, loaded: bool, data: bytes | None
    ) -> None:
        """Another version is there: nothing is written, `Conflict` with what is there. Compare in the write itself."""
        key = new_key()
        stale = await version_of(storage, key, await create(storage, key), loaded)
        assert isinstance(await save(storage, key, b"theirs", stale), Saved)
        outcome = await save(storage, key, data, stale)
        assert isinstance(outcome, Conflict), f"a write with a stale version gave {outcome!r}"
        assert outcome.record.data == b"theirs"
        assert await data_of(storage, key) == b"theirs", "a write with a stale version was carried out"
        outcome = await save(storage, key, b"merged", outcome.record.version)
        assert isinstance(outcome, Saved), f"the version of a Conflict was not the current one: {outcome!r}"

    @pytest.mark.parametrize("data", [b"late", None])
    @pytest.mark.parametrize("loaded", [True, False])
    @case
    async def test_no_write_brings_a_deleted_record_back(
        self, storage: Storage, loaded: bool, data: bytes | None
    ) -> None:
        """A version is expected and nothing is there: `Gone`, and it stays absent. Update, never upsert."""
        key = new_key()
        version = await version_of(storage, key, await create(storage, key), loaded)
        await storage.delete([key])
        outcome = await save(storage, key, data, version)
        assert outcome == Gone(), f"a write of a deleted record gave {outcome!r}"
        assert await load(storage, key) is None, "a write brought a deleted record back: a logout was undone"

    @case
    async def test_a_removal_of_the_expected_version_removes(self, storage: Storage) -> None:
        """`data=None` with the current version removes: `Saved`, with an empty version."""
        key = new_key()
        version = await create(storage, key)
        assert await save(storage, key, None, version) == Saved(b"")
        assert await load(storage, key) is None
        assert await save(storage, key, b"late", version) == Gone()

    @case
    async def test_delete_asks_for_no_version_and_may_be_repeated(self, storage: Storage) -> None:
        """`delete` removes what is there, whoever wrote it last, and minds no missing key."""
        key, others = new_key(), [new_key(), new_key()]
        version = await create(storage, key)
        assert isinstance(await save(storage, key, b"newer", version), Saved)
        await create(storage, others[0])
        await storage.delete([others[0], key, others[1]])
        await storage.delete([key])
        assert await storage.load([key, *others]) == [None, None, None], "a deleted record is still there"

    @case
    async def test_a_key_can_be_created_again_after_its_removal(self, storage: Storage) -> None:
        """A record that was made again is another one: the old one's version is a `Conflict`. Do not count from 1."""
        key = new_key()
        old = await create(storage, key, b"first")
        await storage.delete([key])
        await create(storage, key, b"second")
        outcome = await save(storage, key, b"late", old)
        assert isinstance(outcome, Conflict), f"the version of a deleted record gave {outcome!r} over its successor"
        assert outcome.record.data == b"second"

    # Time

    @case
    async def test_a_record_past_its_ttl_is_absent_for_every_verb(self, storage: Storage) -> None:
        """After `ttl` seconds, not before, a record is absent for load *and* save. Ask for the time in each verb."""
        loaded, written, removed, again = keys = [new_key() for _ in range(4)]
        began = time.monotonic()
        versions = [await create(storage, key, ttl=4) for key in keys]
        lasting = new_key()
        await create(storage, lasting, ttl=600)
        await asyncio.sleep(2.5)
        records = await storage.load(keys)
        if time.monotonic() - began < 3:  # else the machine was too slow to tell
            assert None not in records, "a record was absent more than a second before its time"
        await asyncio.sleep(max(0.0, began + 6 - time.monotonic()))
        assert await load(storage, loaded) is None, "a record was still loaded a second after its time"
        assert await save(storage, written, b"late", versions[1]) == Gone(), "a write found an expired record"
        assert await save(storage, removed, None, versions[2]) == Gone(), "a removal found an expired record"
        outcome = await save(storage, again, b"anew")
        assert isinstance(outcome, Saved), f"a create over an expired record gave {outcome!r}"
        assert await storage.load([written, removed]) == [None, None]
        assert [await data_of(storage, again), await data_of(storage, lasting)] == [b"anew", b"data"]

    @case
    async def test_a_write_replaces_the_ttl(self, storage: Storage) -> None:
        """Each write gives a new time, shorter or longer: prolonging is a save. Set the expiry on update too."""
        shorter, longer = new_key(), new_key()
        await save(storage, shorter, b"short", await create(storage, shorter, ttl=600), ttl=1)
        await save(storage, longer, b"long", await create(storage, longer, ttl=5), ttl=600)
        began = time.monotonic()
        while await load(storage, shorter) is not None:
            assert time.monotonic() - began < 1 + GRACE, "a write with a shorter ttl left the longer one"
            await asyncio.sleep(0.1)
        await asyncio.sleep(max(0.0, began + 7 - time.monotonic()))
        assert await data_of(storage, longer) == b"long", "a write with a longer ttl left the shorter one"

    @pytest.mark.parametrize("days", [29, 31, 400, 3650])
    @case
    async def test_a_long_ttl_is_kept(self, storage: Storage, days: int) -> None:
        """A ttl of years is no date in the past and no overflow. Memcached takes more than 30 days for a date."""
        key = new_key()
        version = await create(storage, key, ttl=days * DAY)
        assert await data_of(storage, key) == b"data"
        assert isinstance(await save(storage, key, b"more", version, ttl=days * DAY), Saved)
        assert await data_of(storage, key) == b"more"

    # Data

    @pytest.mark.parametrize(
        "data",
        [b"", b"\0", bytes(range(256)) * 3, b"\r\nEND\r\n", b"'; DROP TABLE x; --", b"x" * 500_000],
        ids=["empty", "nul", "all-bytes", "lines", "sql", "500000"],
    )
    @case
    async def test_every_byte_is_kept(self, storage: Storage, data: bytes) -> None:
        """Data is any bytes, or none. Store it as bytes, not as text, and tell empty data from no record."""
        key = new_key()
        version = await create(storage, key, data)
        assert await data_of(storage, key) == data
        assert isinstance(await save(storage, key, data + b"!", version), Saved)
        assert await data_of(storage, key) == data + b"!"

    @pytest.mark.parametrize("size", [MEBIBYTE, LARGE])
    @case
    async def test_large_data_is_kept_whole_or_is_too_large(self, storage: Storage, size: int) -> None:
        """What is over the limit raises `SessionTooLarge` with both sizes; a batch with it writes nothing, so that its
        writes can be sent again one by one. It is no outage, and never cut off. Compare sizes before you send.
        """
        small, large, data = new_key(), new_key(), secrets.token_bytes(size)
        writes = [Write(small, None, b"small", 60), Write(large, None, data, 60)]
        alone = isinstance(storage, Sharded)  # each server's share is a batch of its own
        try:
            outcomes = await storage.save(writes[1:] if alone else writes)
        except SessionTooLarge as error:
            assert error.size > error.limit
            assert size >= error.limit, "less than the limit was too large"
            assert await load(storage, large) is None, "a record that was too large is there"
            await create(storage, small, b"small")
        else:
            assert all(isinstance(outcome, Saved) for outcome in outcomes)
            found = await data_of(storage, large)
            assert found is not None, "a large record was saved, and is missing"
            assert len(found) == size, "a large record was cut off"
            assert found == data

    # Batches

    @case
    async def test_a_batch_answers_in_order_and_each_write_for_itself(self, storage: Storage) -> None:
        """One write that loses does not hold up the others, and outcomes come in the order of the writes."""
        stale, missing, removed, made, exists, gone = sorted(new_key() for _ in range(6))
        keys = [made, stale, gone, missing, removed, exists]  # in no order of theirs
        versions = {key: await create(storage, key, key.encode()) for key in (stale, gone, removed, exists)}
        await save(storage, stale, b"theirs", versions[stale])
        await storage.delete([gone])
        writes = {
            made: (Write(made, None, b"made", 60), Saved),
            stale: (Write(stale, versions[stale], b"mine", 60), Conflict),
            gone: (Write(gone, versions[gone], b"late", 60), Gone),
            missing: (Write(missing, b"12345678", b"late", 60), Gone),
            removed: (Write(removed, versions[removed], None, 60), Saved),
            exists: (Write(exists, None, b"mine", 60), Conflict),
        }
        outcomes = await storage.save([write for write, _ in writes.values()])
        assert [type(outcome) for outcome in outcomes] == [kind for _, kind in writes.values()]
        shown = [outcome.record.data for outcome in outcomes if isinstance(outcome, Conflict)]
        assert shown == [b"theirs", exists.encode()], "a Conflict shows the record of another key"
        found = await storage.load(keys)
        there = [record and record.data for record in found]
        assert there == [b"made", b"theirs", None, None, None, exists.encode()]

    @pytest.mark.parametrize("number", [64, 400])
    @case
    async def test_a_large_batch_is_loaded_saved_and_deleted(self, storage: Storage, number: int) -> None:
        """A batch of many keys is answered whole and in order. Split it where the server has a limit."""
        keys = [new_key() for _ in range(number)]
        outcomes = await storage.save([Write(key, None, key.encode() * 5, 60) for key in keys])
        assert len(outcomes) == number
        assert all(isinstance(outcome, Saved) for outcome in outcomes)
        versions = {key: saved for key, saved in zip(keys, outcomes, strict=True) if isinstance(saved, Saved)}
        records = await storage.load(keys[::-1])
        assert [record and record.data for record in records] == [key.encode() * 5 for key in keys[::-1]]
        some = keys[:-65:-1]
        again = await storage.save([Write(key, versions[key].version, key.encode(), 60) for key in some])
        assert all(isinstance(outcome, Saved) for outcome in again), "an outcome's version was that of another key"
        await storage.delete(keys)
        assert await storage.load(keys) == [None] * number

    # Several at once

    @case
    async def test_of_many_creates_one_wins(self, storage: Storage) -> None:
        """Of many creates of one key one is `Saved`, the others see it. Let the server decide, in one atomic step."""
        key = new_key()
        outcomes = await asyncio.gather(*(save(storage, key, b"%d" % number) for number in range(20)))
        winners = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, Saved)]
        assert len(winners) == 1, f"{len(winners)} creates of one key were saved"
        assert await data_of(storage, key) == b"%d" % winners[0]
        losers = [outcome for outcome in outcomes if isinstance(outcome, Conflict)]
        assert [outcome.record.data for outcome in losers] == [b"%d" % winners[0]] * 19

    @case
    async def test_of_many_writes_with_one_version_one_wins(self, storage: Storage) -> None:
        """Of many writes with one version one is `Saved`. A check before the write leaves a gap: lost updates."""
        key = new_key()
        version = await create(storage, key)
        outcomes = await asyncio.gather(*(save(storage, key, b"%d" % number, version) for number in range(20)))
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Conflict"] * 19 + ["Saved"]

    @case
    async def test_a_counter_that_many_increase_is_exact(self, storage: Storage) -> None:
        """Who writes with the version that it read, and tries again after a `Conflict`, loses no update."""
        key = new_key()
        await create(storage, key, b"0")
        await asyncio.gather(*(change(storage, key, lambda data: b"%d" % (int(data) + 1)) for _ in range(20)))
        assert await data_of(storage, key) == b"20"

    @case
    async def test_writers_of_different_keys_do_not_disturb_each_other(self, storage: Storage) -> None:
        """Fifty writers, each of its own key, are all `Saved`, time after time. Lock records, not the table."""
        keys = [new_key() for _ in range(50)]

        async def write(key: str) -> None:
            version = await create(storage, key, b"0")
            for number in range(5):
                outcome = await save(storage, key, b"%s %d" % (key.encode(), number), version)
                assert isinstance(outcome, Saved), f"a writer that had its key to itself got {outcome!r}"
                version = outcome.version

        await asyncio.gather(*(write(key) for key in keys))
        found = await storage.load(keys)
        assert [record and record.data for record in found] == [b"%s 4" % key.encode() for key in keys]

    @case
    async def test_concurrent_batches_over_the_same_keys_do_not_block_each_other(self, storage: Storage) -> None:
        """Batches of the same keys in other orders all end. Lock in the order of keys, and try a deadlock again."""
        keys = [new_key() for _ in range(20)]
        await storage.save([Write(key, None, b"0", 60) for key in keys])

        async def batch(order: list[str]) -> Sequence[Outcome]:
            records = dict(zip(order, await storage.load(order), strict=True))
            return await storage.save([Write(key, one.version, b"1", 60) for key, one in records.items() if one])

        results = await asyncio.gather(*(batch(keys if number % 2 else keys[::-1]) for number in range(8)))
        assert sum(isinstance(outcome, Saved) for outcomes in results for outcome in outcomes) >= len(keys)

    @case
    async def test_a_delete_among_writers_leaves_nothing(self, storage: Storage) -> None:
        """A logout wins against requests under way: whatever the order, the record is absent in the end."""
        key = new_key()
        version = await create(storage, key)
        late = [save(storage, key, b"late", version) for _ in range(10)]
        await asyncio.gather(*late[:5], storage.delete([key]), *late[5:])
        assert await load(storage, key) is None, "a write that raced with a delete brought the record back"

    @case
    async def test_many_concurrent_calls_are_all_answered(self, storage: Storage) -> None:
        """Calls beyond the size of the pool wait for their turn. Some pools raise when they are full."""
        keys = [new_key() for _ in range(300)]
        await asyncio.gather(*(create(storage, key, key.encode()) for key in keys))
        found = await asyncio.gather(*(data_of(storage, key) for key in keys))
        assert found == [key.encode() for key in keys]

    @case
    async def test_a_cancelled_call_never_gives_its_answer_to_another(self, storage: Storage) -> None:
        """Whoever leaves while calls are under way leaves its connection usable, or closed."""
        keys = [new_key() for _ in range(8)]
        for key in keys:
            await create(storage, key, key.encode())
        for turn in range(60):
            tasks = [asyncio.create_task(data_of(storage, key)) for key in keys]
            for _ in range(turn % 12):
                await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            for key, answer in zip(keys, answers, strict=True):
                assert isinstance(answer, asyncio.CancelledError) or answer == key.encode(), "an answer was another's"

    @pytest.mark.parametrize("verb", ["load", "save", "delete"])
    @case
    async def test_a_call_that_is_cancelled_at_any_await_harms_no_other(self, storage: Storage, verb: str) -> None:
        """A call that is cancelled while it waits has happened or not; the next calls get their own answers. Close a
        connection whose answer was not read to its end, and give its place in the pool back.
        """
        other = new_key()
        await create(storage, other, b"other")
        for place in range(1, MOST_AWAITS):
            key = new_key()
            version = await create(storage, key, b"before")
            calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
                "load": functools.partial(storage.load, [key]),
                "save": functools.partial(save, storage, key, b"after", version),
                "delete": functools.partial(storage.delete, [key]),
            }
            came_to_it = await cancelled_at(calls[verb](), place)
            assert await data_of(storage, other) == b"other", f"cancelled at await {place}, the next call was wrong"
            possible: dict[str, set[bytes | None]] = {
                "load": {b"before"},
                "save": {b"before", b"after"},
                "delete": {b"before", None},
            }
            assert await data_of(storage, key) in possible[verb]
            assert isinstance(await save(storage, new_key(), b"x"), Saved)
            if not came_to_it:
                return

    # Two storages on the same records, as those of two processes

    @case
    async def test_what_one_storage_writes_another_sees(self, storage: Storage, another: Storage) -> None:
        """Two processes share their records, and a logout in one holds in the other. Keep no copies in the process."""
        async with opened(another):
            key = new_key()
            version = await create(storage, key, b"first")
            assert [await data_of(one, key) for one in (storage, another)] == [b"first", b"first"]
            assert isinstance(await save(another, key, b"second", version), Saved)
            assert await data_of(storage, key) == b"second", "a storage did not see what another one wrote"
            outcome = await save(storage, key, b"mine", version)
            assert isinstance(outcome, Conflict), f"a write with another process's stale version gave {outcome!r}"
            assert outcome.record.data == b"second"
            await another.delete([key])
            assert await load(storage, key) is None, "a storage did not see what another one deleted"
            assert await save(storage, key, b"late", outcome.record.version) == Gone()

    @case
    async def test_a_counter_that_two_storages_increase_is_exact(self, storage: Storage, another: Storage) -> None:
        """No update is lost between two processes. A lock of this process is not enough."""
        key = new_key()
        async with opened(another):
            await create(storage, key, b"0")
            both = [storage, another] * 8
            await asyncio.gather(*(change(one, key, lambda data: b"%d" % (int(data) + 1)) for one in both))
            assert await data_of(another, key) == b"16"

    @case
    async def test_two_storages_may_be_opened_at_once(self, make_storage: MakeStorage) -> None:
        """Processes that start together make the same tables. `IF NOT EXISTS` alone races on some servers."""
        if not self.shared:
            pytest.skip("not tested: two storages on the same records; shared = False says that there are none")
        space, key = new_space(), new_key()
        storages = [make_storage(space) for _ in range(4)]
        try:
            await asyncio.gather(*(storage.open() for storage in storages))
            outcomes = await asyncio.gather(*(save(storage, key, b"x") for storage in storages))
        finally:
            for storage in storages:
                await storage.close()
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Conflict"] * 3 + ["Saved"]

    @case
    async def test_two_spaces_never_see_each_other(self, storage: Storage, make_storage: MakeStorage) -> None:
        """Two prefixes or tables on one server are two worlds, also for delete. Put the prefix before every key."""
        key = new_key()
        async with opened(make_storage(new_space())) as other:
            version = await create(storage, key, b"one")
            assert await other.load([key]) == [None]
            assert await save(other, key, b"x", version) == Gone()
            await create(other, key, b"other")
            await other.delete([key])
            assert await data_of(storage, key) == b"one"

    @case
    async def test_two_sweeps_at_once_delete_what_is_expired_and_only_that(
        self, storage: Storage, another: Storage
    ) -> None:
        """`sweep()` deletes expired records and tells how many; two at once neither fail nor count twice."""
        if not hasattr(storage, "sweep"):
            pytest.skip("not tested: the storage has no sweep(), so its server must forget by itself")
        async with opened(another):
            expired, live, prolonged = ([new_key() for _ in range(number)] for number in (1200, 50, 50))
            made = await storage.save([Write(key, None, b"old", 1) for key in expired])
            assert all(isinstance(outcome, Saved) for outcome in made)
            await storage.save([Write(key, None, b"live", 600) for key in live])
            versions = await storage.save([Write(key, None, b"old", 30) for key in prolonged])
            await storage.save(
                [
                    Write(key, outcome.version, b"live", 600)
                    for key, outcome in zip(prolonged, versions, strict=True)
                    if isinstance(outcome, Saved)
                ]
            )
            await asyncio.sleep(3)  # no verb shows what has expired and is still to be swept
            swept = sum(await asyncio.gather(storage.sweep(), another.sweep()))  # type: ignore[attr-defined]
            swept += await storage.sweep()
            assert swept == len(expired), f"{swept} records were swept, and {len(expired)} had expired"
            records = await storage.load(live + prolonged)
            assert [record and record.data for record in records] == [b"live"] * 100, "a sweep took live records"

    # From opening to closing

    @case
    async def test_a_storage_can_be_opened_and_closed_twice_and_opened_again(self, storage: Storage) -> None:
        """`close` twice is no error, nor is `open`; after `close` a storage can be opened and serves as before."""
        key = new_key()
        await storage.open()
        await create(storage, key)
        await storage.close()
        await storage.close()
        await storage.open()
        assert await data_of(storage, key) == b"data"

    @promised
    def test_a_storage_can_be_opened_in_another_event_loop(self, make_storage: MakeStorage, space: str) -> None:
        """Nothing outlives `close` that belongs to an event loop. Make clients, locks and tasks in `open`."""
        storage, key = make_storage(space), new_key()

        async def visit(*, first: bool) -> bytes | None:
            async with opened(storage):
                if first:
                    await create(storage, key)
                await asyncio.gather(*(load(storage, new_key()) for _ in range(20)))
                return await data_of(storage, key)

        assert asyncio.run(visit(first=True)) == b"data"
        assert asyncio.run(visit(first=False)) == b"data", "a storage that was opened in a second loop lost its records"

    @case
    async def test_closing_leaves_no_task_and_no_socket(self, make_storage: MakeStorage, space: str) -> None:
        """`close` ends all tasks and connections that `open` and the verbs began, and waits until they have ended."""
        sockets, tasks = open_sockets(), asyncio.all_tasks()
        storage = make_storage(space)
        for _ in range(2):
            async with opened(storage):
                await asyncio.gather(*(create(storage, new_key()) for _ in range(30)))
        left = [task for task in asyncio.all_tasks() - tasks if not task.done()]
        assert not left, f"close() left tasks behind: {left}"
        give_up = time.monotonic() + SETTLING
        while open_sockets() - sockets:
            assert time.monotonic() < give_up, "close() left sockets open"
            await asyncio.sleep(0.05)

    @case
    async def test_a_storage_says_what_it_is_without_its_password(self, storage: Storage) -> None:
        """`repr` stands in logs and errors: it names the server, and no secret. Do not print the URL as given."""
        assert repr(storage)
        assert self.password is None or self.password not in repr(storage), "repr() shows the password"

    # On the way to the server

    @asynccontextmanager
    async def _network(
        self, make_storage: MakeStorage, server: tuple[str, int] | None
    ) -> AsyncIterator[tuple[Network, Storage]]:
        """Give a storage that is open, and reaches its server through a proxy."""
        if server is None:
            pytest.skip("not tested: what happens on the way to the server; override the fixture server")
        async with Network(*server) as network, opened(make_storage(new_space(), server=network.address)) as storage:
            yield network, storage

    @pytest.mark.parametrize("verb", ["create", "update", "remove"])
    @case
    async def test_a_write_whose_answer_was_lost_is_never_taken_for_anothers(
        self, make_storage: MakeStorage, server: tuple[str, int] | None, verb: str
    ) -> None:
        """A write that the server carried out, and whose answer was lost, is `Saved` when the storage tries it again,
        and a removal is that or `Gone`. Draw the version once for each write, before the first attempt.
        """
        async with self._network(make_storage, server) as (network, storage):
            for place in range(1, MOST_ANSWERS):
                key = new_key()
                version = None if verb == "create" else await create(storage, key, b"before")
                data = None if verb == "remove" else b"after"
                network.answers, network.lose_at = 0, place
                try:
                    outcome = await save(storage, key, data, version)
                finally:
                    lost, network.lose_at = network.answers >= place, None
                fine = isinstance(outcome, Saved) or (verb == "remove" and outcome == Gone())
                assert fine, f"answer {place} was lost, and the write was {outcome!r}"
                assert await data_of(storage, key) == data
                if isinstance(outcome, Saved) and data is not None:
                    assert isinstance(await save(storage, key, b"next", outcome.version), Saved)
                if not lost:
                    return

    @pytest.mark.parametrize("verb", ["load", "save", "delete"])
    @case
    async def test_a_silent_server_is_an_outage_within_the_deadline(
        self, make_storage: MakeStorage, server: tuple[str, int] | None, verb: str
    ) -> None:
        """A server that does not answer raises `StorageUnavailable` within `timeout`, is no missing record, and serves
        again afterwards. Put `async with self.answering(...)` around each verb, and let nothing in it wait longer.
        """
        async with self._network(make_storage, server) as (network, storage):
            key = new_key()
            await create(storage, key)
            calls: dict[str, Callable[[], Awaitable[Any]]] = {
                "load": lambda: storage.load([key]),
                "save": lambda: save(storage, new_key(), b"x"),
                "delete": lambda: storage.delete([new_key()]),
            }
            network.passing.clear()
            async with unavailable(storage):
                await calls[verb]()
            network.passing.set()
            assert await served_again(storage, key) == b"data"

    @case
    async def test_a_server_that_is_away_is_an_outage_until_it_is_back(
        self, make_storage: MakeStorage, server: tuple[str, int] | None
    ) -> None:
        """Every verb raises `StorageUnavailable` while the server cannot be reached, `open` and `close` do not raise,
        and service returns by itself. Name the driver's errors to `answering`, and drop connections that are lost.
        """
        async with self._network(make_storage, server) as (network, storage):
            key = new_key()
            await create(storage, key)
            await network.refuse()
            async with unavailable(storage):
                await storage.load([key])
            async with unavailable(storage):
                await save(storage, new_key(), b"x")
            async with unavailable(storage):
                await storage.delete([new_key()])
            await storage.close()
            await storage.open()
            async with unavailable(storage):
                await storage.load([key])
            await network.listen()
            assert await served_again(storage, key) == b"data"


@asynccontextmanager
async def unavailable(storage: Storage) -> AsyncIterator[None]:
    """Have the block raise what an outage is, and in time."""
    latest = storage.timeout + GRACE
    try:
        async with asyncio.timeout(latest):
            with pytest.raises(StorageUnavailable):
                yield
    except TimeoutError:
        raise AssertionError(f"it took over {latest:g} s, and timeout is {storage.timeout:g} s") from None


async def served_again(storage: Storage, key: str) -> bytes | None:
    """Load until the storage answers, which it must within moments of its server's return."""
    give_up = time.monotonic() + 4 * GRACE
    while True:
        try:
            return await data_of(storage, key)
        except StorageUnavailable:
            assert time.monotonic() < give_up, "the server is back, and the storage is not"
            await asyncio.sleep(0.1)
