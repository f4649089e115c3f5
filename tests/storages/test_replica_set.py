"""MongoDB's replica sets: several hosts in the URL, and a primary that changes."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pymongo import MongoClient

from aiohttp_store import Saved, StorageUnavailable, Write, open_storage
from aiohttp_store.storages import storage_from_url
from aiohttp_store.storages.mongodb import MongoDBStorage

from ..conftest import PATIENCE
from ..support.one_key import create, data_of, load, new_key, save
from ..support.replica_set import NOT_PRIMARY, ReplicaSet
from ..support.servers import MongoDB, program
from ..support.timing import pace, within
from .test_mongodb import eventually, scheme, serves, settings_of

__all__ = ["scheme"]  # a fixture

TIMEOUT = PATIENCE
ONCE = "&retryWrites=false&retryReads=false"
"""Leaves trying again to the storage, not to the driver."""


class Behind(MongoDB):
    """Takes the retryable writes that a driver sends to replica sets only."""

    def command(self) -> list[str]:
        storage = ("--storage-path", str(self.folder / "data"))
        return [program("secantusd-py"), "--host", "127.0.0.1", "--port", str(self.port), *storage]


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = Behind(tmp_path_factory.mktemp("behind") / "mongodb")
    server.start()
    client: MongoClient[dict[str, Any]]
    with MongoClient(server.url, directConnection=True) as client:
        # SecantusDB comes to a halt if the first document of a collection and its index meet: create_collection holds
        # its lock while it waits for the document's transaction, which waits for the lock (0.7.0b3, as a replica set).
        client["sessions"]["sessions"].create_index("e", expireAfterSeconds=0)
    yield server.url
    server.kill()


@pytest.fixture
async def replicas(behind: str) -> AsyncIterator[ReplicaSet]:
    async with ReplicaSet(behind) as running:
        yield running


def url_of(scheme: str, replicas: ReplicaSet, timeout: float = TIMEOUT) -> str:
    return f"{scheme}://{replicas.hosts}/sessions?replicaSet=rs0&timeout={timeout}"


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[MongoDBStorage]:
    async with open_storage(url) as storage:
        assert isinstance(storage, MongoDBStorage)
        assert storage._indexing is not None
        await storage._indexing  # so that errors meet the test's own calls
        yield storage


@pytest.fixture
async def storage(scheme: str, replicas: ReplicaSet) -> AsyncIterator[MongoDBStorage]:
    async with opened(url_of(scheme, replicas)) as storage:
        yield storage


async def test_all_hosts_and_parameters_are_handed_on(scheme: str) -> None:
    options = await settings_of(
        f"{scheme}://a.invalid,b.invalid:27018/db?replicaSet=rs0&wTimeoutMS=700&readConcernLevel=majority&timeout=0.5"
    )
    assert options.replica_set_name == "rs0"
    assert options.write_concern.document == {"w": "majority", "j": True, "wtimeout": 700}
    assert options.read_concern.document == {"level": "majority"}
    assert options.retry_writes
    shown = repr(storage_from_url(f"{scheme}://a.invalid,b.invalid:27018/db"))
    assert "a.invalid" in shown
    assert "b.invalid:27018" in shown


async def test_the_primary_alone_is_asked_wherever_it_stands_in_the_url(scheme: str, replicas: ReplicaSet) -> None:
    replicas.elect(2)
    async with opened(url_of(scheme, replicas)) as storage:
        version = await create(storage, key := new_key())
        assert isinstance(await save(storage, key, b"more", version), Saved)
        await load(storage, key)
        await storage.delete([key])
    asked = [{next(iter(command)) for command in member.commands} for member in replicas.members]
    assert asked[:2] == [set(), set()]
    assert asked[2] >= {"update", "find", "delete"}
    written = [command for command in replicas.members[2].commands if "update" in command]
    assert {command["writeConcern"]["w"] for command in written} == {"majority"}
    assert {command["writeConcern"]["j"] for command in written} == {True}


@pytest.mark.parametrize(
    ("code", "query"),
    [
        (NOT_PRIMARY, ""),
        *((code, "&retryWrites=false&retryReads=false") for code in (NOT_PRIMARY, 13435, 11602, 189, 91)),
    ],
)
async def test_a_member_that_ceases_to_be_primary_is_not_felt(
    scheme: str, replicas: ReplicaSet, code: int, query: str
) -> None:
    async with opened(url_of(scheme, replicas) + query) as storage:
        version = await create(storage, key := new_key())
        verbs: list[Any] = [
            lambda: save(storage, key, b"more", version),
            lambda: load(storage, key),
            lambda: storage.save([Write(new_key(), None, b"x", 60) for _ in range(20)]),
            lambda: storage.delete([new_key()]),
        ]
        for number, verb in enumerate(verbs):
            replicas.members[number % 3].failing = [code]
            replicas.elect((number + 1) % 3)
            await verb()
        assert await data_of(storage, key) == b"more"


async def test_a_primary_that_dies_is_replaced_and_comes_back(storage: MongoDBStorage, replicas: ReplicaSet) -> None:
    version = await create(storage, key := new_key())
    await replicas.members[0].die()
    replicas.elect(None)
    late = asyncio.create_task(save(storage, key, b"more", version))
    await asyncio.sleep(0.3)  # it is waiting for a primary by now, or tries still
    replicas.elect(1)
    outcome = await late
    assert isinstance(outcome, Saved)
    await replicas.members[0].start()
    replicas.elect(0)
    assert isinstance(await save(storage, key, b"again", outcome.version), Saved)
    assert await data_of(storage, key) == b"again"


async def test_without_a_primary_there_is_an_outage_in_time_which_ends_with_the_election(
    scheme: str, replicas: ReplicaSet
) -> None:
    timeout = 0.7 * pace()
    async with opened(url_of(scheme, replicas, timeout)) as storage:
        version = await create(storage, key := new_key())
        replicas.elect(None)
        with within(3 * timeout + 2):
            for verb in (storage.load([key]), save(storage, key, b"more", version), storage.delete([new_key()])):
                with pytest.raises(StorageUnavailable):
                    await verb
        replicas.elect(2)
        await eventually(lambda: serves(storage))
        assert await data_of(storage, key) == b"data"


async def test_a_failover_under_load_loses_no_acknowledged_write(scheme: str, replicas: ReplicaSet) -> None:
    """Every addition that was acknowledged is there, and none is there twice."""
    async with opened(url_of(scheme, replicas) + ONCE) as storage:
        ending = asyncio.Event()
        counts = [0] * 16

        async def write(number: int) -> str:
            version = await create(storage, key := new_key(), b"0")
            while not ending.is_set():
                outcome = await save(storage, key, str(counts[number] + 1).encode(), version)
                assert isinstance(outcome, Saved)
                version = outcome.version
                counts[number] += 1
            return key

        writers = [asyncio.create_task(write(number)) for number in range(16)]

        async def all_have_written() -> None:
            """Wait for one more write of each: what meets two failovers is an outage, as it is tried again once."""
            before = counts.copy()
            while not all(map(operator.gt, counts, before)) and not any(writer.done() for writer in writers):
                await asyncio.sleep(0.01)

        for number in (1, 2, 0):
            await all_have_written()
            await replicas.members[(number - 1) % 3].die()
            replicas.elect(number)
            await all_have_written()
            await replicas.members[(number - 1) % 3].start()
        ending.set()
        for number, key in enumerate(await asyncio.gather(*writers)):
            assert counts[number] > 3
            assert await data_of(storage, key) == str(counts[number]).encode()


async def test_a_write_that_no_majority_confirmed_is_an_outage_and_may_have_been_carried_out(
    storage: MongoDBStorage, replicas: ReplicaSet
) -> None:
    version = await create(storage, key := new_key())
    replicas.members[0].unconfirmed = 1
    with pytest.raises(StorageUnavailable, match="WTimeoutError"):
        await save(storage, key, b"more", version)
    assert await data_of(storage, key) == b"more"
