"""What is Redis's own: its failures, its script, its URLs and its driver's traps."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis as sync_redis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from aiohttp_store import ConfigError, Conflict, Gone, Record, Saved, SessionTooLarge, StorageUnavailable, Write
from aiohttp_store.storages import _redis_connections as redis_connections
from aiohttp_store.storages import storage_from_url
from aiohttp_store.storages.redis import RedisOptions, RedisStorage

from ..conftest import opening
from ..support.certificates import make_certificates
from ..support.one_key import create, new_key
from ..support.proxy import Proxy
from ..support.servers import Redis as RedisServer
from ..support.servers import Server, free_port
from ..support.timing import pace, until, within


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that no test kills, pauses or configures for longer than itself."""
    yield from started(tmp_path_factory.mktemp("redis"))


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that the test may do anything to."""
    yield from started(tmp_path_factory.mktemp("own"))


@pytest.fixture
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from started(tmp_path_factory.mktemp("other"))


def started(folder: Path) -> Iterator[Server]:
    server = RedisServer(folder / "redis")
    server.start()
    yield server
    server.kill()


@contextlib.asynccontextmanager
async def admin(server: Server) -> AsyncIterator[Any]:
    async with Redis(host="127.0.0.1", port=server.port) as client:
        yield client


@contextlib.asynccontextmanager
async def opened(server: Server, **parameters: object) -> AsyncIterator[RedisStorage]:
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    async with opening(f"{server.url}?{query}") as storage:
        assert isinstance(storage, RedisStorage)
        yield storage


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    async with Proxy(server.url, matching=b"EVALSHA") as running:
        yield running


async def fails(verb: Awaitable[object], seconds: float) -> str:
    """Give the message of the outage, which must come in time."""
    with pytest.raises(StorageUnavailable) as caught, within(seconds):
        await verb
    return str(caught.value)


async def eventually_serves(storage: RedisStorage) -> None:
    async def serves() -> bool:
        with contextlib.suppress(StorageUnavailable):
            return await storage.load([new_key()]) == [None]
        return False

    await until(serves)


# What is stored


async def test_a_value_is_its_version_and_the_data_and_the_server_counts_its_ttl(server: Server) -> None:
    key = new_key()
    async with opened(server, prefix="mine:") as storage, admin(server) as client:
        (outcome,) = await storage.save([Write(key, None, b"hello", 1000)])
        assert await client.get(f"mine:{key}") == outcome.version + b"hello"  # type: ignore[union-attr]
        assert 998 <= await client.ttl(f"mine:{key}") <= 1000


async def test_the_prefix_is_session_unless_the_url_says_so(server: Server) -> None:
    key = new_key()
    async with opened(server) as storage, admin(server) as client:
        await create(storage, key)
        assert await client.exists(f"session:{key}")


@pytest.mark.parametrize("value", [b"", b"x", b"1234567"])
async def test_a_value_too_short_for_a_version_is_missing_and_a_create_replaces_it(
    server: Server, value: bytes
) -> None:
    key = new_key()
    async with opened(server) as storage, admin(server) as client:
        await client.set(f"session:{key}", value)
        assert await storage.load([key]) == [None]
        assert await storage.save([Write(key, value or b"12345678", b"late", 60)]) == [Gone()]
        assert await client.get(f"session:{key}") == value
        version = await create(storage, key)
        assert await storage.load([key]) == [Record(version, b"data")]


@pytest.mark.parametrize("command", ["RPUSH {} a b", "HSET {} a b", "SADD {} a", "ZADD {} 1 a", "XADD {} * a b"])
async def test_a_key_of_another_type_is_missing_and_harms_no_other_key(server: Server, command: str) -> None:
    foreign, fine, made = new_key(), new_key(), new_key()
    async with opened(server) as storage, admin(server) as client:
        version = await create(storage, fine)
        await client.execute_command(*command.format(f"session:{foreign}").split())
        assert await storage.load([foreign, fine]) == [None, Record(version, b"data")]
        outcomes = await storage.save(
            [Write(foreign, b"12345678", b"late", 60), Write(fine, version, b"more", 60), Write(made, None, b"new", 60)]
        )
        assert [type(outcome) for outcome in outcomes] == [Gone, Saved, Saved]
        assert await client.type(f"session:{foreign}") != b"string"
        version = await create(storage, foreign)
        assert await storage.load([foreign]) == [Record(version, b"data")]


async def test_a_delete_removes_a_key_of_another_type(server: Server) -> None:
    key = new_key()
    async with opened(server) as storage, admin(server) as client:
        await client.rpush(f"session:{key}", "a")
        await storage.delete([key])
        assert not await client.exists(f"session:{key}")


async def test_the_version_that_a_removal_left_creates_nothing(server: Server) -> None:
    key = new_key()
    async with opened(server) as storage:
        (removed,) = await storage.save([Write(key, await create(storage, key), None, 60)])
        assert removed == Saved(b"")
        assert await storage.save([Write(key, b"", b"late", 60)]) == [Gone()]


async def test_a_value_beyond_the_largest_string_is_too_large_and_nothing_is_written(server: Server) -> None:
    small, large = new_key(), new_key()
    async with opened(server) as storage:
        with pytest.raises(SessionTooLarge) as caught:
            await storage.save([Write(small, None, b"small", 60), Write(large, None, bytes(512 << 20), 60)])
        assert caught.value.size > caught.value.limit == 512 << 20
        assert await storage.load([small, large]) == [None, None]


# The script


async def test_a_save_survives_the_loss_of_the_script(server: Server) -> None:
    key = new_key()
    async with opened(server) as storage, admin(server) as client:
        version = await create(storage, key)
        await client.script_flush()
        (outcome,) = await storage.save([Write(key, version, b"more", 60)])
        assert isinstance(outcome, Saved)


async def test_the_script_is_sent_once_and_then_called_by_its_hash(server: Server) -> None:
    async with opened(server) as storage, admin(server) as client:
        await client.script_flush()
        await client.config_resetstat()
        for _ in range(5):
            await create(storage, new_key())
        calls = {name: stats["calls"] for name, stats in (await client.info("commandstats")).items()}
        assert calls["cmdstat_eval"] == 1
        assert calls["cmdstat_evalsha"] == 5


async def test_a_batch_is_one_command(server: Server) -> None:
    keys = [new_key() for _ in range(32)]
    async with opened(server) as storage, admin(server) as client:
        await create(storage, new_key())  # the script is there
        await client.config_resetstat()
        await storage.save([Write(key, None, b"data", 60) for key in keys])
        await storage.load(keys)
        await storage.delete(keys)
        calls = {name: stats["calls"] for name, stats in (await client.info("commandstats")).items()}
        assert [calls[f"cmdstat_{name}"] for name in ("evalsha", "mget", "del")] == [1, 1, 1]


async def test_a_full_server_is_an_outage_that_keeps_what_was_there_and_still_lets_records_be_removed(
    own: Server,
) -> None:
    kept, removed = new_key(), new_key()
    async with opened(own) as storage, admin(own) as client:
        versions = [await create(storage, key) for key in (kept, removed)]
        await client.config_set("maxmemory", 1)
        writes = [Write(kept, versions[0], b"more", 60), Write(removed, versions[1], None, 60)]
        message = await fails(storage.save(writes), 1)
        assert "OutOfMemoryError" in message or "OOM" in message
        assert await storage.load([kept, removed]) == [Record(versions[0], b"data"), None]
        await client.config_set("maxmemory", 0)
        (outcome,) = await storage.save(writes[:1])
        assert isinstance(outcome, Saved)


@pytest.mark.parametrize(
    ("limit", "policy", "is_told"),
    [(0, "allkeys-lru", False), (1 << 30, "noeviction", False), (1 << 30, "volatile-ttl", True)],
)
@pytest.mark.parametrize("is_users", [False, True])
async def test_an_eviction_policy_that_throws_sessions_away_is_warned_about(
    own: Server, caplog: pytest.LogCaptureFixture, limit: int, policy: str, *, is_told: bool, is_users: bool
) -> None:
    async with admin(own) as client:
        await client.config_set("maxmemory", limit)
        await client.config_set("maxmemory-policy", policy)
        storage = RedisStorage(client) if is_users else storage_from_url(own.url)
        await storage.open()
        await storage.close()
    assert (f"maxmemory-policy is {policy}" in caplog.text) == is_told


async def test_a_server_that_refuses_writes_for_lack_of_replicas_is_an_outage(own: Server) -> None:
    key = new_key()
    async with opened(own) as storage, admin(own) as client:
        await client.config_set("min-replicas-to-write", 1)
        assert "NOREPLICAS" in await fails(storage.save([Write(key, None, b"data", 60)]), 1)
        assert await storage.load([key]) == [None]


async def test_a_read_only_replica_is_an_outage(own: Server) -> None:
    async with opened(own) as storage, admin(own) as client:
        await client.execute_command("REPLICAOF", "127.0.0.1", free_port())
        assert "READONLY" in await fails(storage.save([Write(new_key(), None, b"data", 60)]), 1)


async def test_after_a_failover_the_next_write_finds_the_new_primary(own: Server, other: Server) -> None:
    async with Proxy(own.url) as proxy, opening(proxy.url) as storage, admin(own) as client:
        keys = [new_key() for _ in range(8)]
        await asyncio.gather(*(storage.load([key]) for key in keys))  # several connections to the old one
        proxy.target = other.port
        await client.execute_command("REPLICAOF", "127.0.0.1", other.port)
        for key in keys:
            (outcome,) = await storage.save([Write(key, None, b"data", 60)])
            assert isinstance(outcome, Saved)


# Lost answers


async def test_a_create_whose_answer_was_lost_is_saved(server: Server, proxy: Proxy) -> None:
    key = new_key()
    async with opening(proxy.url) as storage, opened(server) as direct:
        await create(direct, new_key())  # the script is there
        proxy.lose_answers = 1
        (outcome,) = await storage.save([Write(key, None, b"data", 60)])
        assert isinstance(outcome, Saved)
        assert proxy.lose_answers == 0
        assert await direct.load([key]) == [Record(outcome.version, b"data")]


async def test_an_update_whose_answer_was_lost_is_saved(server: Server, proxy: Proxy) -> None:
    key = new_key()
    async with opening(proxy.url) as storage, opened(server) as direct:
        version = await create(direct, key)
        proxy.lose_answers = 1
        (outcome,) = await storage.save([Write(key, version, b"more", 60)])
        assert isinstance(outcome, Saved)
        assert await direct.load([key]) == [Record(outcome.version, b"more")]


async def test_a_removal_whose_answer_was_lost_has_removed(server: Server, proxy: Proxy) -> None:
    key = new_key()
    async with opening(proxy.url) as storage, opened(server) as direct:
        version = await create(direct, key)
        proxy.lose_answers = 1
        assert await storage.save([Write(key, version, None, 60)]) == [Gone()]
        assert await direct.load([key]) == [None]


async def test_a_write_that_came_between_is_a_conflict_and_not_overwritten(server: Server, proxy: Proxy) -> None:
    key = new_key()
    async with opening(proxy.url) as storage, opened(server) as direct:
        version = await create(direct, key)

        async def write_another() -> None:
            (record,) = await direct.load([key])
            assert record is not None
            assert record.data == b"mine"
            await direct.save([Write(key, record.version, b"theirs", 60)])

        proxy.lose_answers, proxy.meanwhile = 1, write_another
        (outcome,) = await storage.save([Write(key, version, b"mine", 60)])
        assert isinstance(outcome, Conflict)
        assert outcome.record.data == b"theirs"


async def test_a_write_is_tried_twice_and_not_more(server: Server, proxy: Proxy) -> None:
    async with opening(proxy.url) as storage, opened(server) as direct:
        await create(direct, new_key())
        proxy.lose_answers = 10
        await fails(storage.save([Write(new_key(), None, b"data", 60)]), 1)
        assert proxy.lose_answers == 8


async def test_a_lost_answer_is_tried_again_with_a_users_client_that_does_not_retry(
    server: Server, proxy: Proxy
) -> None:
    async with (
        Redis(host="127.0.0.1", port=proxy.port, retry=Retry(NoBackoff(), 0)) as client,
        opened(server) as direct,
    ):
        await create(direct, new_key())
        proxy.lose_answers = 1
        await create(RedisStorage(client), new_key())


# Outages


async def test_a_server_that_is_down_at_the_start_is_no_error_until_it_is_asked(own: Server) -> None:
    own.stop()
    async with opened(own) as storage:
        assert str(own.port) in await fails(storage.load([new_key()]), 1)
        own.start()
        assert await storage.load([new_key()]) == [None]


async def test_a_call_that_was_given_up_leaves_no_socket_behind(own: Server) -> None:
    async with opened(own, timeout=0.3 * pace()) as storage:
        before = sockets()
        await eventually_serves(storage)
        own.pause()
        try:
            # More than the sockets' buffers take, so a transport that is only closed waits for the server.
            await fails(storage.save([Write(new_key(), None, bytes(32 << 20), 60)]), 1 + 2 * storage.timeout)
            await until(lambda: sockets() <= before, "a socket is left")
        finally:
            own.resume()


async def test_a_cancelled_waiter_does_not_take_the_free_connection_with_it(server: Server) -> None:
    async with opened(server, pool_size=1) as storage:
        key = new_key()
        await storage.load([key])
        first, cancelled, waiting = (asyncio.create_task(storage.load([key])) for _ in range(3))
        first.add_done_callback(lambda _: cancelled.cancel())  # when the connection was just handed to it
        assert await first == [None]
        assert await waiting == [None]
        await asyncio.gather(cancelled, return_exceptions=True)


async def test_a_users_client_with_the_drivers_ten_retries_is_held_to_the_deadline(own: Server) -> None:
    async with Redis(host="127.0.0.1", port=own.port) as client:
        storage = RedisStorage(client, RedisOptions(timeout=0.5))
        own.kill()
        await fails(storage.load([new_key()]), 2)


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"-LOADING Redis is loading\r\n"])
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_whatever_else_answers_at_the_port_is_an_outage(scheme: str, greeting: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        async with opening(f"{scheme}://127.0.0.1:{port}/0?timeout=1") as storage:
            await fails(storage.load([new_key()]), 3)


async def test_connections_that_the_server_closed_are_replaced_unnoticed(own: Server) -> None:
    async with opened(own) as storage, admin(own) as client:
        keys = [new_key() for _ in range(12)]
        await asyncio.gather(*(storage.load([key]) for key in keys))
        await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await asyncio.gather(*(create(storage, key) for key in keys))


@pytest.mark.parametrize("how", ["cut", "reset"])
async def test_a_connection_that_was_closed_while_idle_does_not_use_up_the_second_try(
    server: Server, proxy: Proxy, how: str
) -> None:
    async with opening(proxy.url) as storage, opened(server) as direct:
        await create(direct, new_key())
        await storage.load([new_key()])
        getattr(proxy, how)()
        await until(lambda: not proxy.connections)
        await asyncio.sleep(0.05)  # the storage's side sees the end, or finds it later
        proxy.lose_answers = 1
        (outcome,) = await storage.save([Write(new_key(), None, b"data", 60)])
        assert isinstance(outcome, Saved)
        assert proxy.lose_answers == 0


# Passwords


@pytest.mark.parametrize("scheme", ["redis", "redis+unix"])
async def test_a_wrong_password_is_an_outage_that_does_not_show_it(own: Server, scheme: str) -> None:
    place = f"127.0.0.1:{own.port}" if scheme == "redis" else str(own.folder / "redis.sock")
    async with admin(own) as client:
        await client.config_set("requirepass", "s@crêt")
        await client.execute_command("AUTH", "s@crêt")
        async with opening(f"{scheme}://:wr%40ng@{place}") as storage:
            message = await fails(storage.load([new_key()]), 1)
            assert "password" in message
            assert "wr@ng" not in message + repr(storage)
            assert "wr%40ng" not in message + repr(storage)
        async with opening(f"{scheme}://{place}") as storage:
            assert "Authentication" in await fails(storage.load([new_key()]), 1)
        async with opening(f"{scheme}://:s%40cr%C3%AAt@{place}") as storage:
            assert await storage.load([new_key()]) == [None]


async def test_a_refused_password_is_not_tried_again(own: Server) -> None:
    async with admin(own) as client:
        await client.config_set("requirepass", "right")
        await client.execute_command("AUTH", "right")
        async with opening(f"redis://:wrong@127.0.0.1:{own.port}/0") as storage:
            (entry,) = await client.acl_log()
            assert entry["count"] == 1
            await fails(storage.load([new_key()]), 1)
        (entry,) = await client.acl_log()
        assert entry["count"] == 2


async def test_a_user_of_the_url_logs_in_and_needs_no_more_than_its_commands(own: Server) -> None:
    async with admin(own) as client:
        rules = ("on", ">pass word", "~mine:*", "+mget", "+del", "+evalsha", "+eval", "+get", "+set")
        await client.execute_command("ACL", "SETUSER", "vis:itor", *rules)
        async with opening(f"redis://vis%3Aitor:pass%20word@127.0.0.1:{own.port}/0?prefix=mine:") as storage:
            key = new_key()
            (outcome,) = await storage.save([Write(key, None, b"data", 60)])
            assert isinstance(outcome, Saved)
            await storage.load([key])
            await storage.delete([key])
        async with opening(f"redis://vis%3Aitor:pass%20word@127.0.0.1:{own.port}/0?prefix=other:") as storage:
            assert "NoPermission" in await fails(storage.save([Write(key, None, b"data", 60)]), 1)


async def test_a_password_that_was_changed_meanwhile_is_an_outage(own: Server) -> None:
    async with opened(own) as storage, admin(own) as client:
        await storage.load([new_key()])
        await client.config_set("requirepass", "new")
        await client.execute_command("AUTH", "new")
        await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert "Authentication" in await fails(storage.load([new_key()]), 1)


# Connections


def sockets() -> int:
    """How many files and sockets this process has open."""
    gc.collect()  # what earlier tests forgot
    return len(list(Path("/dev/fd").iterdir()))


async def connected(client: Any) -> int:
    """How many connections there are besides this one."""
    return int((await client.info("clients"))["connected_clients"]) - 1


async def are_connected(client: Any, most: int) -> bool:
    return await connected(client) <= most


async def test_the_pool_size_bounds_the_connections_and_all_calls_are_answered(own: Server) -> None:
    async with opened(own, pool_size=3) as storage, admin(own) as client:
        await asyncio.gather(*(create(storage, new_key()) for _ in range(300)))
        assert await connected(client) == 3


async def test_calls_one_after_the_other_share_a_connection(own: Server) -> None:
    async with opened(own) as storage, admin(own) as client:
        for _ in range(5):
            await storage.load([new_key()])
        assert await connected(client) == 1


async def test_cancelled_calls_leave_the_pool_whole(own: Server) -> None:
    async with opened(own, pool_size=2) as storage, admin(own) as client:
        key = new_key()
        version = await create(storage, key)
        for turn in range(200):
            tasks = [asyncio.create_task(storage.load([key])) for _ in range(8)]
            for _ in range(turn % 10):
                await asyncio.sleep(0)
            for task in tasks[turn % 3 :: 2]:
                task.cancel()
            for answer in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(answer, asyncio.CancelledError) or answer == [Record(version, b"data")]
        await asyncio.gather(*(storage.load([key]) for _ in range(50)))
        await until(partial(are_connected, client, 2))  # when the server has seen the ends of the cancelled ones


async def test_a_cancelled_save_and_the_next_load_do_not_share_an_answer(server: Server) -> None:
    async with opened(server, pool_size=1) as storage:
        key = new_key()
        version = await create(storage, key)
        for turn in range(60):
            task = asyncio.create_task(storage.save([Write(new_key(), None, b"x", 60)]))
            for _ in range(turn % 6):
                await asyncio.sleep(0)
            task.cancel()
            assert await storage.load([key]) == [Record(version, b"data")]
            await asyncio.gather(task, return_exceptions=True)


async def test_closing_waits_for_calls_under_way_and_leaves_no_connection(own: Server) -> None:
    storage = storage_from_url(f"{own.url}?pool_size=2")
    await storage.open()
    await storage.load([new_key()])
    await storage.open()  # once more than asked for: nothing is lost
    calls = [asyncio.create_task(storage.load([new_key()])) for _ in range(10)]
    await asyncio.sleep(0)
    await storage.close()
    assert await asyncio.gather(*calls) == [[None]] * 10
    async with admin(own) as client:
        await until(partial(are_connected, client, 0))
    await fails(storage.load([new_key()]), 1)


async def test_a_storage_made_in_one_event_loop_serves_in_another(server: Server) -> None:
    storage = storage_from_url(f"{server.url}?pool_size=1")

    async def use() -> None:
        await storage.open()
        assert await asyncio.gather(*(storage.load([new_key()]) for _ in range(5))) == [[None]] * 5
        await storage.close()

    for _ in range(2):
        await asyncio.to_thread(asyncio.run, use())


async def test_without_hiredis_the_driver_packs_the_commands(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_connections, "pack_command", None)
    async with opened(server) as storage:
        key = new_key()
        version = await create(storage, key, b"x" * 100_000)
        assert await storage.load([key]) == [Record(version, b"x" * 100_000)]


# A client of the user's own


@pytest.mark.parametrize("settings", [{}, {"protocol": 2}, {"single_connection_client": True}, {"db": 3}])
async def test_a_users_client_is_used_and_not_closed(server: Server, settings: dict[str, Any]) -> None:
    async with Redis(host="127.0.0.1", port=server.port, **settings) as client:
        storage = RedisStorage(client, RedisOptions(prefix="ours:"))
        await storage.open()
        keys = [new_key() for _ in range(20)]
        versions = await asyncio.gather(*(create(storage, key) for key in keys))
        assert await storage.load(keys) == [Record(version, b"data") for version in versions]
        assert await client.get(f"ours:{keys[0]}") == versions[0] + b"data"
        await client.set(f"ours:{keys[1]}", b"short")
        assert await storage.load([keys[1]]) == [None]
        await storage.close()
        await storage.close()
        assert client.connection is not None or client.connection_pool._available_connections[0].is_connected
        assert await client.ping()


async def test_a_client_that_decodes_is_refused() -> None:
    with pytest.raises(ConfigError, match="decode_responses"):
        RedisStorage(Redis(decode_responses=True))
    with pytest.raises(ConfigError, match="decode_responses"):
        RedisStorage(Redis.from_url("redis://localhost?decode_responses=true", decode_responses=True))


async def test_another_kind_of_client_is_refused_by_name() -> None:
    wrong: Any
    for wrong, name in [
        (sync_redis.Redis(), "redis.client.Redis"),
        (Redis().pipeline(), "Pipeline"),
        ("redis://localhost", "builtins.str"),
        (None, "NoneType"),
    ]:
        with pytest.raises(ConfigError, match=name):
            RedisStorage(wrong)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_must_be_a_positive_number(timeout: float) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        RedisStorage(Redis(), RedisOptions(timeout=timeout))


def test_options_say_whose_sessions_are_taken_over() -> None:
    legacy = RedisStorage(Redis(), RedisOptions(migrate="aiohttp_session", migrate_cookie="OLD")).legacy
    assert legacy is not None
    assert legacy.cookie.name == "OLD"
    assert RedisStorage(Redis()).legacy is None


def test_options_that_do_not_go_together_are_refused_when_the_storage_is_made() -> None:
    with pytest.raises(ConfigError, match="migrate_path= is given, but .*; add migrate=aiohttp_session"):
        RedisStorage(Redis(), RedisOptions(migrate_path="/old"))


# URLs


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis://h/0?prefx=a", "prefix"),
        ("redis://h/0?db=1", "'db'"),
        ("redis://h/0?timeout=0", "timeout"),
        ("redis://h/0?timeout=soon", "soon"),
        ("redis://h/0?pool_size=0", "pool_size"),
        ("redis://h/0?pool_size=1.5", "1.5"),
        ("redis://h/zero", "zero"),
        ("redis://h/-1", "-1"),
        ("redis://h/%EF%BC%91", "\uff11"),
        ("redis://h/0/1", "0/1"),
        ("redis://h1,h2/0", "one host"),
        ("valkey://h1,h2/0", "valkey"),
        ("redis://h/0?tls_ca=ca.pem", "tls=true"),
        ("redis://h/0?tls=true&tls_ca=/nowhere/ca.pem", "/nowhere/ca.pem"),
        ("rediss://h/0?tls=false", "rediss"),
        ("redis+unix://redis.sock", "redis\\+unix:///path.sock"),
        ("redis+unix://host/redis.sock", "no host"),
        ("redis+unix:///", "socket"),
        ("redis+unix:///redis.sock?db=one", "one"),
        ("redis+unix:///redis.sock?db=-1", "-1"),
        ("redis+unix:///redis.sock?tls=true", "'tls'"),
    ],
)
def test_a_wrong_url_is_refused_and_says_what_is_wrong(url: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        storage_from_url(url)


def test_repr_shows_the_server_and_never_the_login() -> None:
    assert repr(storage_from_url("redis://me:s3cret@cache/2?prefix=p")) == "<RedisStorage cache:6379 db=2>"
    assert repr(storage_from_url("valkey://:s3cret@[::1]:7000")) == "<RedisStorage ::1:7000 db=0>"
    assert repr(storage_from_url("redis+unix://:s3cret@/run/redis.sock?db=1")) == "<RedisStorage /run/redis.sock db=1>"
    assert repr(RedisStorage(Redis(host="cache", password="s3cret"))) == "<RedisStorage cache:6379 db=0>"
    assert repr(RedisStorage(Redis.from_url("redis://:s3cret@/4"))) == "<RedisStorage localhost:6379 db=4>"


async def test_the_path_selects_the_database(server: Server) -> None:
    key = new_key()
    base = f"redis://127.0.0.1:{server.port}"
    async with opening(f"{base}/1") as one, opening(base) as zero, opening(f"{base}/0") as again:
        (outcome,) = await one.save([Write(key, None, b"data", 60)])
        assert isinstance(outcome, Saved)
        assert await zero.load([key]) == [None]
        assert await again.load([key]) == [None]
        async with Redis(host="127.0.0.1", port=server.port, db=1) as client:
            assert await client.exists(f"session:{key}")


async def test_a_database_that_the_server_does_not_have_is_an_outage_that_says_so(server: Server) -> None:
    async with opening(f"redis://127.0.0.1:{server.port}/999") as storage:
        assert "DB index is out of range" in await fails(storage.load([new_key()]), 1)


async def test_a_unix_socket_is_served_and_its_database_selected(server: Server) -> None:
    key = new_key()
    path = server.folder / "redis.sock"
    async with opening(f"redis+unix://{path}?db=2") as storage, opened(server) as zero:
        await storage.save([Write(key, None, b"data", 60)])
        assert (await storage.load([key]))[0] is not None
        assert await zero.load([key]) == [None]
    async with opening(f"redis+unix://{path}.missing") as storage:
        await fails(storage.load([key]), 1)


async def test_valkey_urls_reach_the_same_server(server: Server) -> None:
    async with opening(f"valkey://127.0.0.1:{server.port}/0") as storage:
        assert await storage.load([new_key()]) == [None]


# TLS


class TLSServer(RedisServer):
    """A server that takes TLS only, and asks for a client's certificate."""

    def prepare(self) -> None:
        super().prepare()
        make_certificates(self.folder)

    def command(self) -> list[str]:
        return [
            *(*super().command(), "--port", "0", "--tls-port", str(self.port)),
            *("--tls-cert-file", str(self.folder / "server.pem"), "--tls-key-file", str(self.folder / "server.key")),
            *("--tls-ca-cert-file", str(self.folder / "ca.pem"), "--tls-auth-clients", "yes"),
        ]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = TLSServer(tmp_path_factory.mktemp("tls") / "redis")
    server.start()
    yield server
    server.kill()


@pytest.mark.parametrize(
    "start", ["rediss://{}/0?", "rediss://{}/0?tls=true&", "redis://{}/0?tls=yes&", "valkey://{}?tls=1&"]
)
@pytest.mark.parametrize("cert", ["tls_cert={0}/client.pem&tls_key={0}/client.key", "tls_cert={0}/client.both"])
async def test_tls_is_spoken_with_the_named_files(tls: Server, start: str, cert: str) -> None:
    url = start.format(f"127.0.0.1:{tls.port}") + f"tls_ca={tls.folder}/ca.pem&" + cert.format(tls.folder)
    async with opening(url) as storage:
        key = new_key()
        await storage.save([Write(key, None, b"x" * 200_000, 60)])
        assert [record and record.data for record in await storage.load([key])] == [b"x" * 200_000]


@pytest.mark.parametrize(
    ("host", "query"),
    [
        ("127.0.0.1", "tls_cert={0}/client.both"),  # an authority that the system does not know
        ("127.0.0.1", "tls_ca={0}/ca.pem"),  # no certificate of the client's
        ("localhost", "tls_ca={0}/ca.pem&tls_cert={0}/client.both"),  # another name than the certificate's
    ],
)
async def test_tls_that_cannot_be_trusted_is_an_outage(tls: Server, host: str, query: str) -> None:
    async with opening(f"rediss://{host}:{tls.port}/0?{query.format(tls.folder)}") as storage:
        await fails(storage.load([new_key()]), 2.5)


async def test_plain_text_to_a_tls_port_is_an_outage(tls: Server) -> None:
    async with opening(f"redis://127.0.0.1:{tls.port}/0?timeout=1") as storage:
        await fails(storage.load([new_key()]), 3)


async def test_a_paused_tls_server_is_an_outage_in_time_and_closing_does_not_hang(tls: Server) -> None:
    files = f"tls_ca={tls.folder}/ca.pem&tls_cert={tls.folder}/client.both"
    before = sockets()
    async with opening(f"rediss://127.0.0.1:{tls.port}/0?timeout={0.5 * pace()}&{files}") as storage:
        await asyncio.gather(*(storage.load([new_key()]) for _ in range(3)))
        assert sockets() == before + 3
        tls.pause()
        try:
            await fails(storage.load([new_key()]), 1 + storage.timeout)
            with within(1 + storage.timeout):
                await storage.close()
            assert sockets() == before
        finally:
            tls.resume()
