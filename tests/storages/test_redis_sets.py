"""Several Redis servers as one storage: clusters and sentinels, their failovers, and slots that move."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot

from aiohttp_store import ConfigError, Saved, StorageUnavailable, Write
from aiohttp_store.cookie import key_of_id
from aiohttp_store.storages import storage_from_url
from aiohttp_store.storages.redis import RedisStorage

from ..conftest import PATIENCE, Serve, opening
from ..support.one_key import create, new_key
from ..support.servers import Redis, RedisCluster, RedisSentinels, wait_until
from ..support.servers import Sentinel as SentinelServer
from ..support.ticking import ticking
from ..support.timing import pace, until, within
from ..support.visitors import count, served, visiting

SLACK = 3  # seconds beyond two deadlines; what comes later is a driver's own 5, 10 or 30 s


@pytest.fixture
def hasty() -> float:
    """Return a deadline that is soon over, and in which a busy machine still serves."""
    return 1.0 * pace()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    server = RedisCluster(
        tmp_path / "cluster",
        *("--cluster-node-timeout", str(int(1500 * pace())), "--cluster-require-full-coverage", "no"),
        *("--repl-diskless-sync-delay", "0"),
    )
    server.start()
    yield server
    server.kill()


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[RedisSentinels]:
    server = RedisSentinels(tmp_path / "sentinels")
    server.start()
    yield server
    server.kill()


async def wait_for(met: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, met)


async def returns(verb: Callable[[], Awaitable[Any]], timeout: float) -> None:
    """Go on as soon as the service is back, which must be in time."""

    async def is_served() -> bool:
        with contextlib.suppress(StorageUnavailable):
            await verb()
            return True
        return False

    with within(2 * timeout + SLACK):
        await until(is_served, "the servers are back, and the service is not", every=0.05)


def is_primary(node: Redis) -> bool:
    return "role:master" in node.ask("INFO replication")


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_a_cluster_survives_the_loss_of_a_primary(
    how: str, cluster: RedisCluster, serve: Serve, hasty: float
) -> None:
    await wait_for(cluster.is_replicated)
    client = await serve(count, storage=f"{cluster.url}?timeout={hasty}&replicas=1")
    lost, replica = cluster.nodes[0], cluster.nodes[3]
    async with visiting(client.make_url("/count")) as visitors:
        others = [one for one in visitors if slot_of(one.cookie) > 5460]
        assert 0 < len(others) < len(visitors)
        getattr(lost, how)()
        await wait_for(lambda: is_primary(replica))
        (lost.start if how == "kill" else lost.resume)()  # as a replica now
        await wait_for(lambda: "master_link_status:up" in lost.ask("INFO replication"))
        with within(2 * hasty + SLACK):
            await served(visitors)
        assert [one.refused for one in others] == [0] * len(others)
    assert max(one.longest for one in visitors) < 2 * hasty + SLACK


async def test_a_new_primary_is_found_while_the_old_one_is_away(cluster: RedisCluster, hasty: float) -> None:
    await wait_for(cluster.is_replicated)
    keys = [key for _ in range(20) if key_slot(f"session:{(key := new_key())}".encode()) <= 5460]
    async with opening(f"{cluster.url}?replicas=1") as replicated:
        await create(replicated, keys[0])
    async with opening(f"{cluster.url}?timeout={hasty}") as storage:
        await storage.load(keys)
        cluster.nodes[0].kill()
        with pytest.raises(StorageUnavailable):
            await storage.load(keys)
        await wait_for(lambda: is_primary(cluster.nodes[3]))
        await returns(lambda: storage.load(keys), hasty)
        assert (await storage.load(keys))[0] is not None
        await create(storage, keys[1])


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_a_cluster_that_is_away_is_an_outage_in_time_and_its_return_is_noticed(
    how: str, cluster: RedisCluster, hasty: float
) -> None:
    keys = [new_key() for _ in range(20)]
    async with opening(f"{cluster.url}?timeout={hasty}") as storage, ticking(hasty / 2):
        for key in keys:
            await create(storage, key)
        await asyncio.to_thread(getattr(cluster, how))
        for verb in (storage.load(keys), storage.delete(keys)):
            with pytest.raises(StorageUnavailable), within(2 * hasty + SLACK):
                await verb
        await asyncio.to_thread(cluster.start if how == "kill" else cluster.resume)
        await returns(lambda: storage.load(keys), hasty)


async def test_slots_move_while_visitors_come(cluster: RedisCluster, serve: Serve) -> None:
    client = await serve(count, storage=f"{cluster.url}?timeout={PATIENCE}")
    source, target = cluster.nodes[0], cluster.nodes[1]
    ids = [node.ask("CLUSTER MYID") for node in (source, target)]
    async with visiting(client.make_url("/count")) as visitors:
        slots = sorted({slot for one in visitors if (slot := slot_of(one.cookie)) <= 5460})
        assert slots
        for slot in slots:
            assert target.ask(f"CLUSTER SETSLOT {slot} IMPORTING {ids[0]}") == "OK"
            assert source.ask(f"CLUSTER SETSLOT {slot} MIGRATING {ids[1]}") == "OK"
        await served(visitors)
        for slot in slots:
            for key in source.ask(f"CLUSTER GETKEYSINSLOT {slot} 10"):
                assert source.ask(f"MIGRATE 127.0.0.1 {target.port} {key} 0 5000") == "OK"
        await served(visitors)  # they are sent from the one to the other with each request
        for slot in slots:
            for node in (target, source, cluster.nodes[2]):
                assert node.ask(f"CLUSTER SETSLOT {slot} NODE {ids[1]}") == "OK"
        await served(visitors)
    assert "cmdstat_asking" in target.ask("INFO commandstats")
    assert [one.refused for one in visitors] == [0] * len(visitors)


def slot_of(cookie: str) -> int:
    return key_slot(f"session:{key_of_id(cookie)}".encode())


async def test_a_new_session_in_a_moving_slot_and_a_script_that_is_not_there(cluster: RedisCluster) -> None:
    source, target = cluster.nodes[0], cluster.nodes[1]
    ids = [node.ask("CLUSTER MYID") for node in (source, target)]
    key = new_key()
    while (slot := key_slot(f"session:{key}".encode())) > 5460:
        key = new_key()
    async with opening(cluster.url) as storage:
        target.ask(f"CLUSTER SETSLOT {slot} IMPORTING {ids[0]}")
        source.ask(f"CLUSTER SETSLOT {slot} MIGRATING {ids[1]}")
        version = await create(storage, key)
        assert f"session:{key}" in target.ask("KEYS *")
        (outcome,) = await storage.save([Write(key, version, b"more", 60)])
        assert isinstance(outcome, Saved)
        for node in cluster.nodes:
            node.ask("SCRIPT FLUSH")
        (outcome,) = await storage.save([Write(key, outcome.version, None, 60)])
        assert isinstance(outcome, Saved)
        assert await storage.load([key]) == [None]


async def test_a_layout_is_learned_from_any_node_that_answers(cluster: RedisCluster) -> None:
    await wait_for(cluster.is_replicated)
    alone = f"redis+cluster://127.0.0.1:{cluster.nodes[5].port}?timeout={PATIENCE / 4}"  # a replica
    cluster.nodes[2].pause()
    keys = [new_key() for _ in range(50)]
    keys = [key for key in keys if key_slot(f"session:{key}".encode()) <= 10922]
    async with opening(alone) as storage:
        assert await storage.load(keys) == [None] * len(keys)
        await storage.save([Write(key, None, b"data", 60) for key in keys])
        assert None not in await storage.load(keys)
        await storage.delete(keys)
        assert await storage.load(keys) == [None] * len(keys)
    cluster.nodes[2].resume()


def test_a_storage_serves_one_event_loop_after_another(cluster: RedisCluster) -> None:
    storage, keys = storage_from_url(cluster.url), [new_key() for _ in range(10)]

    async def use() -> None:
        with pytest.raises(StorageUnavailable, match="closed"):
            await storage.load(keys)
        await storage.open()
        assert await storage.load(keys) == [None] * len(keys)
        await storage.close()
        with pytest.raises(StorageUnavailable, match="closed"):
            await storage.load(keys)

    for _ in range(2):
        asyncio.run(use())


async def test_a_change_that_no_replica_confirms_is_an_outage(cluster: RedisCluster, hasty: float) -> None:
    await wait_for(cluster.is_replicated)
    for node in cluster.nodes[3:]:
        node.pause()
    key = new_key()
    async with opening(f"{cluster.url}?timeout={hasty}&replicas=1") as storage:
        for change in (create(storage, key), storage.delete([key])):
            with pytest.raises(StorageUnavailable, match="0 of 1 replicas confirmed"):
                await change
    for node in cluster.nodes[3:]:
        node.resume()


@pytest.mark.parametrize("how", ["kill", "pause", "order"])
async def test_sentinels_lead_to_the_new_primary(
    how: str, sentinels: RedisSentinels, serve: Serve, hasty: float
) -> None:
    client = await serve(count, storage=f"{sentinels.url}?timeout={hasty}&replicas=1")
    old = sentinels.nodes[0]
    async with visiting(client.make_url("/count")) as visitors:
        if how == "order":
            assert sentinels.sentinels[0].ask("SENTINEL FAILOVER service") == "OK"
        else:
            getattr(old, how)()
        await wait_for(lambda: any(map(is_primary, sentinels.nodes[1:])))
        await served(visitors)
        if how == "pause":
            old.resume()
            await served(visitors)
    assert max(one.longest for one in visitors) < 2 * hasty + SLACK


async def test_a_sentinel_that_is_silent_and_one_that_is_away_are_passed_over(sentinels: RedisSentinels) -> None:
    sentinels.sentinels[0].pause()
    sentinels.sentinels[1].kill()
    async with opening(f"{sentinels.url}?timeout={PATIENCE / 4}") as storage:
        assert repr(storage).startswith("<RedisStorage 'service' of the sentinels 127.0.0.1:")
        await create(storage, new_key())
    sentinels.sentinels[0].resume()


async def test_many_connections_at_once_lose_no_sentinel(sentinels: RedisSentinels) -> None:
    sentinels.sentinels[0].kill()
    addresses = [("127.0.0.1", one.port) for one in sentinels.sentinels]
    driver = Sentinel(addresses, sentinel_kwargs={"retry": Retry(NoBackoff(), 0)})  # type: ignore[no-untyped-call]
    everyone = list(driver.sentinels)
    await asyncio.gather(*(driver.discover_master("service") for _ in range(4)))
    assert len(set(driver.sentinels)) < 3, "redis-py keeps them all now: SentinelConnections need not share an answer"
    for one in everyone:
        await one.aclose()
    async with opening(f"{sentinels.url}?timeout={PATIENCE}") as storage:
        assert isinstance(storage, RedisStorage)
        await asyncio.gather(*(storage.load([new_key()]) for _ in range(64)))
        assert len(set(storage._client._sentinel.sentinels)) == 3  # type: ignore[union-attr]


async def test_an_answer_of_the_sentinels_is_not_lost_where_another_asks_before_it_is_taken(
    sentinels: RedisSentinels,
) -> None:
    async with opening(f"{sentinels.url}?timeout={PATIENCE}") as storage:
        assert isinstance(storage, RedisStorage)
        connections: Any = storage._client
        first = asyncio.create_task(connections.get_master_address())
        await asyncio.sleep(0)

        def ask_again(_: object) -> None:
            connections._asking = asyncio.ensure_future(connections._ask_sentinels())

        connections._asking.add_done_callback(ask_again)
        assert await first == ("127.0.0.1", sentinels.nodes[0].port)
        await connections._asking


async def test_a_sentinel_that_is_late_does_not_lead_to_a_replica(tmp_path: Path) -> None:
    primary = Redis(tmp_path / "primary")
    replica = Redis(tmp_path / "replica", "--replicaof", "127.0.0.1", str(primary.port))
    sentinel = SentinelServer(tmp_path / "sentinel", replica.port, "requirepass s@crêt")
    for server in (primary, replica, sentinel):
        server.start()
    url = f"redis+sentinel://127.0.0.1:{sentinel.port}/service?sentinel_password=s%40cr%C3%AAt"
    async with opening(url) as storage:
        with pytest.raises(StorageUnavailable, match="has the role 'slave', and not 'master'"):
            await storage.load([new_key()])
    async with opening(url.replace("service", "other")) as storage:
        with pytest.raises(StorageUnavailable, match="no sentinel watches 'other'"):
            await storage.load([new_key()])
    async with opening(url.partition("?")[0]) as storage:
        with pytest.raises(StorageUnavailable, match="AuthenticationError") as caught:
            await storage.load([new_key()])
        assert "crêt" not in str(caught.value)
    for server in (primary, replica, sentinel):
        server.kill()


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis+cluster://a,b:6379,a", "a:6379 twice"),
        ("redis+cluster://a/1", "'/1'"),
        ("redis+cluster://a?prefix={shop}:", "hash tag"),
        ("redis+cluster://a?replicas=-1", "replicas=-1"),
        ("redis+sentinel://a,b:26379/", "service"),
        ("redis+sentinel://a/service/x", "'x'"),
        ("redis+sentinel://a,a:26379/service", "a:26379 twice"),
        ("redis://a,b", "takes one host"),
    ],
)
def test_a_url_that_cannot_work_is_refused(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        storage_from_url(url)


def test_a_url_without_ports_means_the_usual_ones() -> None:
    assert repr(storage_from_url("redis+cluster://a,b")) == "<RedisClusterStorage a:6379,b:6379>"
    assert "a:26379,b:1 db=3" in repr(storage_from_url("redis+sentinel://a,b:1/service/3"))
