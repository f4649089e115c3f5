"""The law of `aiohttp_store.storage`, over every storage."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable

import pytest

from aiohttp_store import Conflict, Gone, Saved, SessionTooLarge, Storage, Write, open_storage

from .conftest import STORAGES
from .law import create, data_of, load, new_key, save

DAY = 86_400


async def version_of(storage: Storage, key: str) -> bytes:
    return (await load(storage, key)).version


async def test_a_missing_key_loads_as_none(storage: Storage) -> None:
    assert await storage.load([new_key(), new_key()]) == [None, None]


async def test_an_empty_batch_is_answered(storage: Storage) -> None:
    assert await storage.load([]) == []
    assert await storage.save([]) == []
    await storage.delete([])


async def test_what_was_created_is_loaded(storage: Storage) -> None:
    key = new_key()
    await create(storage, key, b"hello")
    assert await data_of(storage, key) == b"hello"


async def test_a_create_refuses_an_existing_key_and_shows_what_is_there(storage: Storage) -> None:
    key = new_key()
    await create(storage, key, b"first")
    outcome = await save(storage, key, b"second")
    assert isinstance(outcome, Conflict)
    assert outcome.record.data == b"first"
    assert await data_of(storage, key) == b"first"


async def test_a_write_with_the_version_it_created_is_saved(storage: Storage) -> None:
    key = new_key()
    version = await create(storage, key, b"first")
    outcome = await save(storage, key, b"second", version)
    assert isinstance(outcome, Saved)
    assert outcome.version != version
    assert await data_of(storage, key) == b"second"


async def test_a_write_with_the_version_it_loaded_is_saved(storage: Storage) -> None:
    key = new_key()
    await create(storage, key)
    assert isinstance(await save(storage, key, b"second", await version_of(storage, key)), Saved)
    assert await data_of(storage, key) == b"second"


async def test_each_write_gives_the_version_for_the_next(storage: Storage) -> None:
    key = new_key()
    version = await create(storage, key)
    for number in range(5):
        outcome = await save(storage, key, b"%d" % number, version)
        assert isinstance(outcome, Saved)
        version = outcome.version
    assert await data_of(storage, key) == b"4"


async def test_a_write_of_what_is_already_there_is_a_write(storage: Storage) -> None:
    key = new_key()
    version = await create(storage, key, b"same")
    assert isinstance(await save(storage, key, b"same", version), Saved)
    assert isinstance(await save(storage, key, b"late", version), Conflict)


@pytest.mark.parametrize("loaded", [True, False])
async def test_a_write_with_a_stale_version_changes_nothing_and_shows_the_other(storage: Storage, loaded: bool) -> None:
    key = new_key()
    version = await create(storage, key)
    if loaded:
        version = await version_of(storage, key)
    assert isinstance(await save(storage, key, b"theirs", await version_of(storage, key)), Saved)
    outcome = await save(storage, key, b"mine", version)
    assert isinstance(outcome, Conflict)
    assert outcome.record.data == b"theirs"
    assert isinstance(await save(storage, key, b"merged", outcome.record.version), Saved)
    assert await data_of(storage, key) == b"merged"


@pytest.mark.parametrize("loaded", [True, False])
async def test_no_write_brings_a_deleted_record_back(storage: Storage, loaded: bool) -> None:
    key = new_key()
    version = await create(storage, key)
    if loaded:
        version = await version_of(storage, key)
    await storage.delete([key])
    assert await save(storage, key, b"late", version) == Gone()
    assert await save(storage, key, None, version) == Gone()
    assert await data_of(storage, key) is None


async def test_a_removal_of_the_expected_version_removes(storage: Storage) -> None:
    key = new_key()
    version = await create(storage, key)
    assert isinstance(await save(storage, key, None, version), Saved)
    assert await data_of(storage, key) is None


@pytest.mark.parametrize("loaded", [True, False])
async def test_a_removal_of_another_version_removes_nothing(storage: Storage, loaded: bool) -> None:
    key = new_key()
    version = await create(storage, key)
    if loaded:
        version = await version_of(storage, key)
    await save(storage, key, b"theirs", await version_of(storage, key))
    outcome = await save(storage, key, None, version)
    assert isinstance(outcome, Conflict)
    assert outcome.record.data == b"theirs"
    assert await data_of(storage, key) == b"theirs"


async def test_delete_asks_for_no_version_and_may_be_repeated(storage: Storage) -> None:
    key = new_key()
    await create(storage, key)
    await storage.delete([key, new_key()])
    await storage.delete([key])
    assert await data_of(storage, key) is None


async def test_a_key_can_be_created_again_after_its_removal(storage: Storage) -> None:
    key = new_key()
    old = await create(storage, key, b"first")
    await storage.delete([key])
    await create(storage, key, b"second")
    outcome = await save(storage, key, b"late", old)
    assert isinstance(outcome, Conflict)
    assert outcome.record.data == b"second"


async def test_a_record_past_its_ttl_is_absent_for_every_verb(storage: Storage) -> None:
    load, write, remove, again = keys = [new_key() for _ in range(4)]
    versions = [await create(storage, key, ttl=1) for key in keys]
    lasting = new_key()
    await create(storage, lasting, ttl=60)
    await asyncio.sleep(2.1)  # memcached counts whole seconds
    assert await data_of(storage, load) is None
    assert await save(storage, write, b"late", versions[1]) == Gone()
    assert await save(storage, remove, None, versions[2]) == Gone()
    await create(storage, again, b"anew")
    assert await data_of(storage, again) == b"anew"
    assert await data_of(storage, lasting) == b"data"


async def test_a_write_replaces_the_ttl(storage: Storage) -> None:
    shorter, longer = new_key(), new_key()
    version = await create(storage, shorter, ttl=60)
    await save(storage, shorter, b"short", version, ttl=1)
    version = await create(storage, longer, ttl=1)
    await save(storage, longer, b"long", version, ttl=60)
    await asyncio.sleep(2.1)
    assert await data_of(storage, shorter) is None
    assert await data_of(storage, longer) == b"long"


@pytest.mark.parametrize("days", [29, 31, 400, 3650])
async def test_a_long_ttl_is_kept(storage: Storage, days: int) -> None:
    key = new_key()
    version = await create(storage, key, ttl=days * DAY)
    assert await data_of(storage, key) == b"data"
    assert isinstance(await save(storage, key, b"more", version, ttl=days * DAY), Saved)
    assert await data_of(storage, key) == b"more"


@pytest.mark.parametrize(
    "data", [b"", b"\0", bytes(range(256)) * 3, b"\r\nEND\r\n", b"'; DROP TABLE x; --", b"x" * 500_000]
)
async def test_every_byte_is_kept(storage: Storage, data: bytes) -> None:
    key = new_key()
    version = await create(storage, key, data)
    assert await data_of(storage, key) == data
    assert isinstance(await save(storage, key, data + b"!", version), Saved)
    assert await data_of(storage, key) == data + b"!"


async def test_a_batch_answers_in_order_and_each_write_for_itself(storage: Storage) -> None:
    made, stale, gone, missing, removed = keys = [new_key() for _ in range(5)]
    versions = {key: await create(storage, key, key.encode()) for key in (stale, gone, removed)}
    await save(storage, stale, b"theirs", versions[stale])
    await storage.delete([gone])
    outcomes = await storage.save(
        [
            Write(made, None, b"made", 60),
            Write(stale, versions[stale], b"mine", 60),
            Write(gone, versions[gone], b"late", 60),
            Write(missing, b"12345678", b"late", 60),
            Write(removed, versions[removed], None, 60),
        ]
    )
    assert [type(outcome) for outcome in outcomes] == [Saved, Conflict, Gone, Gone, Saved]
    found = await storage.load(keys)
    assert [record and record.data for record in found] == [b"made", b"theirs", None, None, None]


async def test_a_large_batch_is_loaded_saved_and_deleted(storage: Storage) -> None:
    keys = [new_key() for _ in range(64)]
    outcomes = await storage.save([Write(key, None, key.encode() * 20, 60) for key in keys])
    assert all(isinstance(outcome, Saved) for outcome in outcomes)
    records = await storage.load(list(reversed(keys)))
    assert [record and record.data for record in records] == [key.encode() * 20 for key in reversed(keys)]
    await storage.delete(keys)
    assert await storage.load(keys) == [None] * 64


async def test_keys_are_compared_byte_for_byte(storage: Storage) -> None:
    upper = "A" * 43
    lower = "a" * 43
    await create(storage, upper, b"upper")
    assert await storage.load([lower]) == [None]
    await create(storage, lower, b"lower")
    assert await data_of(storage, upper) == b"upper"


async def test_of_many_creates_one_wins(storage: Storage) -> None:
    key = new_key()
    outcomes = await asyncio.gather(*(save(storage, key, b"%d" % number) for number in range(20)))
    (winner,) = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, Saved)]
    assert await data_of(storage, key) == b"%d" % winner
    assert all(outcome.record.data == b"%d" % winner for outcome in outcomes if isinstance(outcome, Conflict))


async def test_of_many_writes_with_one_version_one_wins(storage: Storage) -> None:
    key = new_key()
    await create(storage, key)
    version = await version_of(storage, key)
    outcomes = await asyncio.gather(*(save(storage, key, b"%d" % number, version) for number in range(20)))
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Conflict"] * 19 + ["Saved"]


async def test_a_chain_of_contending_writers_loses_no_update(storage: Storage) -> None:
    key = new_key()
    await create(storage, key, b"")

    async def append(letter: bytes) -> None:
        (record,) = await storage.load([key])
        assert record is not None
        while True:
            outcome = await save(storage, key, record.data + letter, record.version)
            if isinstance(outcome, Saved):
                return
            assert isinstance(outcome, Conflict)
            record = outcome.record

    await asyncio.gather(*(append(b"%c" % (97 + number)) for number in range(16)))
    assert sorted(await data_of(storage, key) or b"") == list(range(97, 113))


async def test_a_delete_among_writers_leaves_nothing(storage: Storage) -> None:
    key = new_key()
    version = await create(storage, key)
    outcomes = await asyncio.gather(
        *(save(storage, key, b"late", version) for _ in range(10)), storage.delete([key]), return_exceptions=True
    )
    assert all(isinstance(outcome, Saved | Conflict | Gone) or outcome is None for outcome in outcomes)
    assert await data_of(storage, key) is None


async def test_concurrent_batches_over_the_same_keys_do_not_block_each_other(storage: Storage) -> None:
    keys = [new_key() for _ in range(20)]
    await storage.save([Write(key, None, b"0", 60) for key in keys])

    async def batch(order: list[str]) -> list[object]:
        records = dict(zip(order, await storage.load(order), strict=True))
        return list(
            await storage.save([Write(key, record.version, b"1", 60) for key, record in records.items() if record])
        )

    results = await asyncio.gather(*(batch(keys if number % 2 else keys[::-1]) for number in range(8)))
    assert sum(isinstance(outcome, Saved) for outcomes in results for outcome in outcomes) >= len(keys)


async def test_a_value_over_the_servers_limit_is_too_large_and_fails_alone(storage_name: str, storage: Storage) -> None:
    server, _ = STORAGES[storage_name]
    limit = {"memcached": 1 << 20, "memcached_nodes": 1 << 20, "mysql": 16 << 20, "mongodb": 16 << 20}.get(server or "")
    if limit is None:
        assert await create(storage, new_key(), b"x" * (17 << 20))  # as large as memory allows
        return
    small, large = new_key(), new_key()
    with pytest.raises(SessionTooLarge) as caught:
        await storage.save([Write(large, None, b"x" * (limit + 1), 60)])
    assert caught.value.size > caught.value.limit
    assert isinstance(await save(storage, small, b"small"), Saved)
    assert await storage.load([large]) == [None]


async def test_two_spaces_on_one_server_never_see_each_other(make_url: Callable[..., str]) -> None:
    key = new_key()
    async with open_storage(make_url()) as one, open_storage(make_url()) as other:
        version = await create(one, key, b"one")
        assert await other.load([key]) == [None]
        assert await save(other, key, b"x", version) == Gone()
        await create(other, key, b"other")
        await other.delete([key])
        assert await data_of(one, key) == b"one"


async def test_a_storage_can_be_closed_twice_and_opened_again(make_url: Callable[..., str], storage_name: str) -> None:
    async with open_storage(make_url()) as storage:
        key = new_key()
        await create(storage, key)
        await storage.close()
        await storage.close()
        await storage.open()
        assert await data_of(storage, key) == b"data"


async def test_many_concurrent_calls_are_all_answered(storage: Storage) -> None:
    keys = [new_key() for _ in range(300)]
    await asyncio.gather(*(create(storage, key, key.encode()) for key in keys))
    found = await asyncio.gather(*(data_of(storage, key) for key in keys))
    assert found == [key.encode() for key in keys]


async def test_a_cancelled_call_never_gives_its_answer_to_another(storage: Storage) -> None:
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
            assert isinstance(answer, asyncio.CancelledError) or answer == key.encode()


async def test_repr_shows_no_password(storage: Storage) -> None:
    assert "crêt" not in repr(storage)
    assert "%40" not in repr(storage)


def test_processes_that_were_forked_draw_other_versions() -> None:
    draw = "[new_version() for _ in range(9)]"
    code = (
        "import os, sys\n"
        "from aiohttp_store.storage import new_version\n"
        "new_version()\n"
        "read, write = os.pipe()\n"
        "if os.fork() == 0:\n"
        f"    os.write(write, b''.join({draw}))\n"
        "    os._exit(0)\n"
        f"mine, others = {draw}, os.read(read, 72)\n"
        "os.wait()\n"
        "theirs = [others[start:start + 8] for start in range(0, 72, 8)]\n"
        "sys.exit(len({*mine, *theirs}) != 18)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
