"""Storages that each break one promise, and the cases of the contract that must find them out.

Run by test_contract.py in a process of its own, without any plugin: `pytest tests/storages/broken_storages.py` fails.
"""

# mypy: allow-subclassing-any

from __future__ import annotations

import asyncio
import importlib
import itertools
import os
import socket
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from aiohttp_store import Conflict, Gone, Record, Saved, SessionTooLarge, Storage, StorageUnavailable, Write
from aiohttp_store.storages import storage_from_url
from aiohttp_store.storages.memory import MemoryStorage
from aiohttp_store.testing import StorageContract

SPACES: dict[Any, Any] = defaultdict(lambda: MemoryStorage()._parts)

Broken = MemoryStorage


class Sound(Broken):
    """Breaks nothing."""


class FailsWhereNothingIs(Broken):
    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        found = self.load_now(keys)
        if None in found:
            raise KeyError(keys[found.index(None)])
        return found


class FailsOnNothing(Broken):
    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        keys[0]
        return self.load_now(keys)


class AnswersAnotherVersion(Broken):
    def _save(self, write: Write) -> Any:
        outcome = super()._save(write)
        return Saved(b"another!") if isinstance(outcome, Saved) and outcome.version else outcome


class SharesItsBytes(Broken):
    def load_now(self, keys: Sequence[str]) -> list[Record | None]:
        return [one and Record(one.version, bytearray(one.data)) for one in super().load_now(keys)]  # type: ignore[arg-type]


class FoldsCase(Broken):
    def load_now(self, keys: Sequence[str]) -> list[Record | None]:
        return super().load_now([key.lower() for key in keys])

    def save_now(self, writes: Sequence[Write]) -> Any:
        return super().save_now([write._replace(key=write.key.lower()) for write in writes])


class Changed(Broken):
    """Sees each write, and the record that is there, before it is carried out."""

    def _save(self, write: Write) -> Any:
        (there,) = self.load_now([write.key])
        return super()._save(self.changed(write, there))

    def changed(self, write: Write, there: Record | None) -> Write:
        raise NotImplementedError


class CreatesOverAnother(Changed):
    def changed(self, write: Write, there: Record | None) -> Write:
        return write._replace(expected=there.version) if there and write.expected is None else write


class IgnoresTheVersion(Changed):
    def changed(self, write: Write, there: Record | None) -> Write:
        return write._replace(expected=there.version) if there and write.expected and write.data else write


class RemovesAnyVersion(Changed):
    def changed(self, write: Write, there: Record | None) -> Write:
        return write._replace(expected=there.version) if there and write.data is None else write


class Revives(Changed):
    def changed(self, write: Write, there: Record | None) -> Write:
        return write if there else write._replace(expected=None)


class CutsOff(Changed):
    def changed(self, write: Write, there: Record | None) -> Write:
        return write._replace(data=write.data and write.data[: 1 << 16])


class StoresText(Changed):
    def changed(self, write: Write, there: Record | None) -> Write:
        return write._replace(data=None if write.data is None else write.data.decode(errors="replace").encode())


class TakesALongTimeForADate(Changed):
    def changed(self, write: Write, there: Record | None) -> Write:
        return write._replace(ttl=-1 if write.ttl > 30 * 86_400 else write.ttl)


class LoadsWhatIsExpired(Broken):
    def load_now(self, keys: Sequence[str]) -> list[Record | None]:
        found = [self._parts[hash(key) % self._count].get(key) for key in keys]
        return [Record(*held[:2]) if held else None for held in found]


class WritesWhatIsExpired(Broken):
    def _save(self, write: Write) -> Any:
        clock, self.clock = self.clock, lambda: 0.0
        version = super()._save(write._replace(ttl=0))
        self.clock = clock
        held = self._parts[hash(write.key) % self._count]
        if write.key in held:
            held[write.key] = (*held[write.key][:2], clock() + write.ttl)
        return version


class DropsTheTTL(Broken):
    def _save(self, write: Write) -> Any:
        held = self._parts[hash(write.key) % self._count]
        before = held.get(write.key)
        outcome = super()._save(write)
        if before and write.expected and write.key in held:
            held[write.key] = (*held[write.key][:2], before[2])
        return outcome


class Versioned(Broken):
    """Decides what the version is that a write leaves."""

    def _save(self, write: Write) -> Any:
        held = self._parts[hash(write.key) % self._count]
        before = held.get(write.key)
        outcome = super()._save(write)
        if isinstance(outcome, Saved) and write.data is not None:
            version = self.version_of(write, before and before[0], outcome.version)
            held[write.key] = (version, *held[write.key][1:])
            return Saved(version)
        return outcome

    def version_of(self, write: Write, before: bytes | None, drawn: bytes) -> bytes:
        raise NotImplementedError


class KeepsTheVersion(Versioned):
    def version_of(self, write: Write, before: bytes | None, drawn: bytes) -> bytes:
        return before or drawn


class HashesTheData(Versioned):
    def version_of(self, write: Write, before: bytes | None, drawn: bytes) -> bytes:
        return hash(write.data).to_bytes(8, "big", signed=True)


class CountsFromOne(Versioned):
    def version_of(self, write: Write, before: bytes | None, drawn: bytes) -> bytes:
        return b"%d" % (int(before or b"0") + 1)


class EmptiesInsteadOfRemoving(Changed):
    def changed(self, write: Write, there: Record | None) -> Write:
        return write if write.data is not None or there is None else write._replace(data=b"")


class DeletesOnlyWhatItCreated(Broken):
    made: ClassVar[dict[str, bytes]] = {}

    def _save(self, write: Write) -> Any:
        outcome = super()._save(write)
        if write.expected is None and isinstance(outcome, Saved):
            self.made[write.key] = outcome.version
        return outcome

    async def delete(self, keys: Sequence[str]) -> None:
        self.save_now([Write(key, self.made.get(key, b""), None, 1) for key in keys])


class SortsTheOutcomes(Broken):
    def save_now(self, writes: Sequence[Write]) -> Any:
        return super().save_now(sorted(writes))


class AnswersAHundred(Broken):
    def load_now(self, keys: Sequence[str]) -> list[Record | None]:
        return super().load_now(keys[:100])


class CallsAnyLimitAnOutage(Broken):
    def save_now(self, writes: Sequence[Write]) -> Any:
        if any(len(write.data or b"") > 1 << 20 for write in writes):
            raise StorageUnavailable("too large")
        return super().save_now(writes)


class WritesHalfABatch(Broken):
    def _save(self, write: Write) -> Any:
        if len(write.data or b"") > 1 << 20:
            raise SessionTooLarge(len(write.data or b""), 1 << 20, "here")
        return super()._save(write)


class LooksBeforeItWrites(Broken):
    """Leaves a gap between the two."""

    async def save(self, writes: Sequence[Write]) -> Any:
        outcomes: list[Any] = []
        for write in writes:
            (there,) = self.load_now([write.key])
            await asyncio.sleep(0)
            if there is not None and there.version != write.expected:
                outcomes.append(Conflict(there))
            elif there is None and write.expected is not None:
                outcomes.append(Gone())
            else:
                (now,) = self.load_now([write.key])
                outcomes += self.save_now([write._replace(expected=now.version if now else None)])
        return outcomes


class LocksInItsProcess(LooksBeforeItWrites):
    async def open(self) -> None:
        self.lock = asyncio.Lock()
        await super().open()

    async def save(self, writes: Sequence[Write]) -> Any:
        async with self.lock:
            return await super().save(writes)


class HasOneVersionForAll(LooksBeforeItWrites):
    writes = itertools.count()

    async def save(self, writes: Sequence[Write]) -> Any:
        before = next(self.writes)
        await asyncio.sleep(0)
        if next(self.writes) != before + 1:
            return [Conflict(Record(b"", b"")) for _ in writes]
        return self.save_now(writes)


class LocksInAnyOrder(Broken):
    async def open(self) -> None:
        self.locks: Any = defaultdict(asyncio.Lock)
        await super().open()

    async def save(self, writes: Sequence[Write]) -> Any:
        locks = [self.locks[write.key] for write in writes]
        for lock in locks:
            await lock.acquire()
            await asyncio.sleep(0)
        try:
            return self.save_now(writes)
        finally:
            for lock in locks:
                lock.release()


class RefusesWhenItsPoolIsFull(Broken):
    busy = 0

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        if self.busy >= 100:
            raise StorageUnavailable("too many connections")
        self.busy += 1
        try:
            await asyncio.sleep(0)
            return self.load_now(keys)
        finally:
            self.busy -= 1


class LeavesAnswersInItsConnection(Broken):
    def __init__(self) -> None:
        super().__init__()
        self.answers: list[Any] = []

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        self.answers.append(self.load_now(keys))
        await asyncio.sleep(0)
        found: list[Record | None] = self.answers.pop(0)
        return found

    async def save(self, writes: Sequence[Write]) -> Any:
        self.answers.append(self.save_now(writes))
        await asyncio.sleep(0)
        return self.answers.pop(0)


class LosesPlacesInItsPool(Broken):
    async def open(self) -> None:
        self.places = asyncio.Semaphore(1)
        await super().open()

    async def delete(self, keys: Sequence[str]) -> None:
        await self.places.acquire()
        await asyncio.sleep(0)
        await super().delete(keys)
        self.places.release()

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        async with self.places:
            return self.load_now(keys)


class KeepsCopies(Broken):
    def __init__(self) -> None:
        super().__init__()
        self.copies: dict[str, Record | None] = {}

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        for key, record in zip(keys, self.load_now(keys), strict=True):
            self.copies.setdefault(key, record)
        return [self.copies[key] for key in keys]

    async def save(self, writes: Sequence[Write]) -> Any:
        for write in writes:
            self.copies.pop(write.key, None)
        return self.save_now(writes)


class FailsWhereAnotherOpens(Broken):
    openings = 0

    async def open(self) -> None:
        kind = type(self)
        kind.openings += 1
        try:
            await asyncio.sleep(0)
            if kind.openings > 1:
                raise RuntimeError("the table exists already")
        finally:
            kind.openings -= 1
        await super().open()


class SharesItsSpace(Broken):
    """Puts no prefix before its keys."""


class SweepsWhatIsLive(Broken):
    async def sweep(self) -> int:
        swept = 0
        for part in self._parts:
            for key in [key for key, held in part.items() if held[2] - self.clock() < 700]:
                del part[key]
                swept += 1
        return swept


class SweepsTwice(Broken):
    async def sweep(self) -> int:
        old = [(part, key) for part in self._parts for key, held in part.items() if held[2] <= self.clock()]
        await asyncio.sleep(0)
        for part, key in old:
            part.pop(key, None)
        return len(old)


class FailsToCloseTwice(Broken):
    async def close(self) -> None:
        if self._sweeper is None:
            raise RuntimeError("closed already")
        await super().close()


class BelongsToALoop(Broken):
    lock: asyncio.Lock | None = None

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        self.lock = self.lock or asyncio.Lock()
        async with self.lock:
            await asyncio.sleep(0)
            return self.load_now(keys)


class LeavesATask(Broken):
    async def open(self) -> None:
        self.task = asyncio.create_task(asyncio.sleep(3600))
        await super().open()


class LeavesASocket(Broken):
    kept: ClassVar[list[Any]] = []

    async def open(self) -> None:
        self.kept.append(socket.socketpair())
        await super().open()


class ShowsItsPassword(Broken):
    def __repr__(self) -> str:
        return "<ShowsItsPassword of user:geheim@host>"


PostgreSQL: Any = importlib.import_module("examples.postgresql_storage").PostgreSQLStorage


class TriesOnce(PostgreSQL):
    async def _ask(self, statement: str, *arguments: Any) -> Any:
        if not self._has_table:
            return await super()._ask(statement, *arguments)
        async with self._connection() as connection:
            return await connection.fetch(statement.format(table=self._options.table), *arguments)


class ForgetsTheVersion(TriesOnce):
    """Draws another when it tries again."""

    async def save(self, writes: Sequence[Write]) -> Any:
        try:
            return await super().save(writes)
        except StorageUnavailable:
            return await super().save(writes)


class TakesAnOutageForNothing(PostgreSQL):
    async def load(self, keys: Sequence[str]) -> Any:
        try:
            return await super().load(keys)
        except StorageUnavailable:
            return [None] * len(keys)


class HasNoDeadline(PostgreSQL):
    timeout: float

    def answering(self, *outages: Any) -> Any:
        promised = self.timeout
        self.timeout = 60.0
        try:
            return super().answering(*outages)
        finally:
            self.timeout = promised


class LetsTheDriversErrorsThrough(PostgreSQL):
    def answering(self, *outages: Any) -> Any:
        return asyncio.timeout(self.timeout)


FINDS: dict[type[Storage], tuple[str, ...]] = {
    FailsWhereNothingIs: ("test_a_missing_key_loads_as_none",),
    FailsOnNothing: ("test_an_empty_batch_is_answered",),
    AnswersAnotherVersion: ("test_what_was_created_is_loaded",),
    SharesItsBytes: ("test_what_is_loaded_is_bytes_that_nobody_else_can_change",),
    FoldsCase: ("test_keys_are_compared_byte_for_byte",),
    CreatesOverAnother: (
        "test_a_create_refuses_an_existing_key_and_shows_what_is_there",
        "test_of_many_creates_one_wins",
    ),
    IgnoresTheVersion: ("test_a_write_with_a_stale_version_changes_nothing_and_shows_the_other",),
    RemovesAnyVersion: ("test_a_write_with_a_stale_version_changes_nothing_and_shows_the_other",),
    Revives: ("test_no_write_brings_a_deleted_record_back",),
    KeepsTheVersion: ("test_a_write_with_the_current_version_is_saved_under_another",),
    HashesTheData: ("test_a_write_of_what_is_already_there_is_a_write",),
    EmptiesInsteadOfRemoving: ("test_a_removal_of_the_expected_version_removes",),
    DeletesOnlyWhatItCreated: ("test_delete_asks_for_no_version_and_may_be_repeated",),
    CountsFromOne: ("test_a_key_can_be_created_again_after_its_removal",),
    LoadsWhatIsExpired: ("test_a_record_past_its_ttl_is_absent_for_every_verb",),
    WritesWhatIsExpired: ("test_a_record_past_its_ttl_is_absent_for_every_verb",),
    DropsTheTTL: ("test_a_write_replaces_the_ttl",),
    TakesALongTimeForADate: ("test_a_long_ttl_is_kept",),
    StoresText: ("test_every_byte_is_kept",),
    CutsOff: ("test_large_data_is_kept_whole_or_is_too_large",),
    CallsAnyLimitAnOutage: ("test_large_data_is_kept_whole_or_is_too_large",),
    WritesHalfABatch: ("test_large_data_is_kept_whole_or_is_too_large",),
    SortsTheOutcomes: ("test_a_batch_answers_in_order_and_each_write_for_itself",),
    AnswersAHundred: ("test_a_large_batch_is_loaded_saved_and_deleted",),
    LooksBeforeItWrites: (
        "test_of_many_creates_one_wins",
        "test_of_many_writes_with_one_version_one_wins",
        "test_a_counter_that_many_increase_is_exact",
        "test_a_delete_among_writers_leaves_nothing",
    ),
    HasOneVersionForAll: ("test_writers_of_different_keys_do_not_disturb_each_other",),
    LocksInAnyOrder: ("test_concurrent_batches_over_the_same_keys_do_not_block_each_other",),
    RefusesWhenItsPoolIsFull: ("test_many_concurrent_calls_are_all_answered",),
    LeavesAnswersInItsConnection: (
        "test_a_cancelled_call_never_gives_its_answer_to_another",
        "test_a_call_that_is_cancelled_at_any_await_harms_no_other",
    ),
    LosesPlacesInItsPool: ("test_a_call_that_is_cancelled_at_any_await_harms_no_other",),
    KeepsCopies: ("test_what_one_storage_writes_another_sees",),
    LocksInItsProcess: ("test_a_counter_that_two_storages_increase_is_exact",),
    FailsWhereAnotherOpens: ("test_two_storages_may_be_opened_at_once",),
    SharesItsSpace: ("test_two_spaces_never_see_each_other",),
    SweepsWhatIsLive: ("test_two_sweeps_at_once_delete_what_is_expired_and_only_that",),
    SweepsTwice: ("test_two_sweeps_at_once_delete_what_is_expired_and_only_that",),
    FailsToCloseTwice: ("test_a_storage_can_be_opened_and_closed_twice_and_opened_again",),
    BelongsToALoop: ("test_a_storage_can_be_opened_in_another_event_loop",),
    LeavesATask: ("test_closing_leaves_no_task_and_no_socket",),
    LeavesASocket: ("test_closing_leaves_no_task_and_no_socket",),
    ShowsItsPassword: ("test_a_storage_says_what_it_is_without_its_password",),
    TriesOnce: ("test_a_write_whose_answer_was_lost_is_never_taken_for_anothers",),
    ForgetsTheVersion: ("test_a_write_whose_answer_was_lost_is_never_taken_for_anothers",),
    TakesAnOutageForNothing: (
        "test_a_silent_server_is_an_outage_within_the_deadline",
        "test_a_server_that_is_away_is_an_outage_until_it_is_back",
    ),
    HasNoDeadline: ("test_a_silent_server_is_an_outage_within_the_deadline",),
    LetsTheDriversErrorsThrough: ("test_a_server_that_is_away_is_an_outage_until_it_is_back",),
}
"""The storages, and by which cases each of them is found out."""


HANGING = {LocksInAnyOrder, LosesPlacesInItsPool}


class OfTheTable(StorageContract):
    kind: ClassVar[Any]
    password = "geheim"

    @property
    def patience(self) -> float:  # type: ignore[override]
        return 2.0 if self.kind in HANGING else 40.0

    @pytest.fixture
    def server(self) -> tuple[str, int]:
        return "127.0.0.1", int(os.environ["POSTGRESQL_PORT"])

    @pytest.fixture
    def make_storage(self, server: tuple[str, int]) -> Any:
        def make(space: str, server: tuple[str, int] = server) -> Storage:
            if issubclass(self.kind, MemoryStorage):
                storage: Any = self.kind()
                storage._parts = SPACES[self.kind is not SharesItsSpace and space]
                return storage  # type: ignore[no-any-return]
            url = f"postgresql://visitor:s%40crêt@127.0.0.1:{server[1]}/postgres?table={space}&timeout=1"
            made = storage_from_url(url)
            made.__class__ = self.kind
            return made

        return make


class TestSound(StorageContract):
    """What an author sees who gives no more than needed."""

    shared = False

    @pytest.fixture
    def make_storage(self) -> Any:
        return lambda _: Sound()


CASES = {name: test for name, test in vars(StorageContract).items() if name.startswith("test_")}
for kind, names in FINDS.items():
    others = {name: None for name in CASES if name not in names}
    globals()[f"Test{kind.__name__}"] = type(f"Test{kind.__name__}", (OfTheTable,), {"kind": kind, **others})
