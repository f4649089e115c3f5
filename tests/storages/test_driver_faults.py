"""What the drivers get wrong, each beside what the storage over it does.

Each test passes for as long as the driver has its fault. Where one fails, the driver has mended it, and what the
storage does instead can go. What is not shown here of the storages is in the test files of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from typing import Any

import aiomcache
import aiomysql  # type: ignore[import-untyped]
import pytest
from pymongo import AsyncMongoClient
from pymysql.constants import CLIENT  # type: ignore[import-untyped]
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import RedisClusterException, ResponseError

from aiohttp_store import ConfigError, Conflict, Gone, StorageUnavailable, Write, open_storage
from aiohttp_store.storages._memcached_protocol import Node, NodeConnections, delete
from aiohttp_store.storages.mysql import MySQLStorage

from ..conftest import PATIENCE, Servers, opening
from ..support.connections import attempts
from ..support.one_key import create, load, new_key, save
from ..support.pages import ROOT
from ..support.proxy import Proxy
from ..support.servers import free_port
from ..support.timing import AT_LAST, pace, until, within

LONG = 1.0
"""Seconds after which a call counts as waiting for ever; the storages beside it are given a third of that."""
DAY = 86_400
REDIS_RETRIES = int(version("redis").partition(".")[0]) >= 6
"""Whether redis-py tries again without being told to."""
both = pytest.mark.parametrize("is_ours", [False, True], ids=["driver", "ours"])


def proxied(name: str) -> Any:
    async def proxy(servers: Servers) -> AsyncIterator[Proxy]:
        async with Proxy(servers.own(name).url) as running:
            yield running

    return pytest.fixture(proxy)


memcached, redis, mysql = proxied("memcached"), proxied("redis"), proxied("mysql")


async def hangs(call: Awaitable[object]) -> bool:
    """Tell whether a call has no end of its own; one that fails has."""
    try:
        async with asyncio.timeout(LONG * pace()):
            await call
    except TimeoutError:
        return True
    except Exception:  # noqa: BLE001  (whatever the driver raises)
        return False
    return False


# All of them


async def aiomcache_get(port: int) -> None:
    client = aiomcache.Client("127.0.0.1", port)
    try:
        await client.get(b"key")
    finally:
        await client.close()


async def redis_get(port: int) -> None:
    async with Redis(host="127.0.0.1", port=port) as client:
        await client.get("key")


async def pymongo_find(port: int) -> None:
    client: AsyncMongoClient[dict[str, Any]]
    async with AsyncMongoClient("127.0.0.1", port) as client:
        await client["sessions"]["sessions"].find_one()


async def aiomysql_connect(port: int) -> None:
    connection = aiomysql.Connection(host="127.0.0.1", port=port, connect_timeout=LONG / 3)
    try:
        await connection._connect()
    finally:
        connection.close()


SILENT = {
    "memcached://{}": aiomcache_get,
    "redis://{}": redis_get,
    "mongodb+pymongo://{}": pymongo_find,
    "mongodb://{}": pymongo_find,
    "mysql://{}/sessions": aiomysql_connect,  # connect_timeout does not cover the handshake
}


@pytest.mark.parametrize("url", SILENT)
async def test_a_driver_waits_for_a_silent_server_and_the_storage_does_not(url: str, memcached: Proxy) -> None:
    memcached.answering.clear()
    assert await hangs(SILENT[url](memcached.port))
    async with open_storage(f"{url.format(f'127.0.0.1:{memcached.port}')}?timeout={LONG / 3}") as storage:
        with pytest.raises(StorageUnavailable), within(LONG + 3):
            await storage.load([new_key()])


# aiomcache


class Ours:
    """What the storage has in place of aiomcache's client."""

    def __init__(self, port: int) -> None:
        self.connections = NodeConnections(Node("127.0.0.1", port, 1, {}))

    async def get(self, key: bytes) -> bytes | None:
        found = (await self.connections.gets([key])).get(key)
        return found and found.value

    async def delete(self, key: bytes) -> bool:
        return await self.connections.pipeline([delete(key)]) == [b"DELETED"]

    async def close(self) -> None:
        await self.connections.close()


@contextlib.asynccontextmanager
async def memcached_client(proxy: Proxy) -> AsyncIterator[aiomcache.Client]:
    client = aiomcache.Client("127.0.0.1", proxy.port, pool_size=1)
    yield client
    await client.close()


@contextlib.asynccontextmanager
async def either(proxy: Proxy, *, is_ours: bool) -> AsyncIterator[aiomcache.Client | Ours]:
    client = Ours(proxy.port) if is_ours else aiomcache.Client("127.0.0.1", proxy.port, pool_size=1)
    yield client
    await client.close()


async def is_sent(proxy: Proxy, request: bytes) -> None:
    await until(lambda: any(request in sent for sent in proxy.requests))


@both
async def test_aiomcache_gives_the_answer_of_a_cancelled_command_to_the_next_caller(
    memcached: Proxy, is_ours: bool
) -> None:
    one, other = new_key().encode(), new_key().encode()
    async with memcached_client(memcached) as direct:
        await direct.set(one, b"one", 60)
    async with either(memcached, is_ours=is_ours) as client:
        await client.get(other)
        memcached.answering.clear()
        cancelled = asyncio.ensure_future(client.delete(one))
        await is_sent(memcached, b"delete " + one)
        cancelled.cancel()
        await asyncio.wait({cancelled})
        memcached.answering.set()
        assert await client.delete(other) is not is_ours  # there is no such key


@both
async def test_aiomcache_forgets_those_who_wait_when_a_connection_is_lost(memcached: Proxy, is_ours: bool) -> None:
    async with either(memcached, is_ours=is_ours) as client:
        memcached.answering.clear()
        first, waiting = (asyncio.ensure_future(client.get(key)) for key in (b"first", b"waiting"))
        await is_sent(memcached, b"first")
        memcached.cut()
        memcached.answering.set()
        assert await hangs(waiting) is not is_ours
        if is_ours:
            assert await first is None  # it was asked again
        else:
            with pytest.raises(aiomcache.ClientException):
                await first


FROZEN = """
import asyncio, signal
import aiomcache
class Frozen(BaseException): ...

def ring(*_):
    raise Frozen

async def main(verb, arguments):
    async def hang_up(reader, writer):
        await reader.read(1)
        writer.close()
    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    client = aiomcache.Client("127.0.0.1", server.sockets[0].getsockname()[1])
    signal.setitimer(signal.ITIMER_PROF, 0.5)  # of the processor's time, which a frozen loop takes
    try:
        async with asyncio.timeout(60):  # it never rings in a loop that is frozen
            await getattr(client, verb)(*arguments)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)

signal.signal(signal.SIGPROF, ring)
VERBS = {"set": (b"k", b"v"), "delete": (b"k",), "touch": (b"k", 60), "cas": (b"k", b"v", 1)}
for verb, arguments in VERBS.items():
    try:
        asyncio.run(main(verb, arguments))
    except BaseException as error:
        print(verb, type(error).__name__)
"""


def test_aiomcache_freezes_the_event_loop_when_the_server_hangs_up() -> None:
    told = subprocess.run([sys.executable, "-c", FROZEN], capture_output=True, text=True, timeout=AT_LAST, check=False)
    ends = [f"{verb} Frozen" for verb in ("set", "delete", "touch", "cas")]
    assert told.stdout.splitlines() == ends, told.stderr


async def test_aiomcache_cannot_tell_a_changed_record_from_a_gone_one(memcached: Proxy) -> None:
    key, gone = new_key(), new_key()
    async with memcached_client(memcached) as client:
        await client.set(key.encode(), b"value", 60)
        assert await client.cas(key.encode(), b"mine", 2**60, 60) is False
        assert await client.cas(gone.encode(), b"mine", 2**60, 60) is False
    async with opening(memcached.url) as storage:
        version = await create(storage, key)
        await save(storage, key, b"theirs", version)
        assert isinstance(await save(storage, key, b"mine", version), Conflict)
        assert await save(storage, gone, b"mine", version) == Gone()


async def test_aiomcache_takes_more_than_thirty_days_for_a_date_in_1970(memcached: Proxy) -> None:
    key = new_key()
    async with memcached_client(memcached) as client:
        await client.set(key.encode(), b"value", 31 * DAY)
        assert await client.get(key.encode()) is None
    async with opening(memcached.url) as storage:
        await storage.save([Write(key, None, b"value", 31 * DAY)])
        assert (await load(storage, key)).data == b"value"


async def test_aiomcache_throws_the_tokens_of_several_keys_away(memcached: Proxy) -> None:
    key = new_key().encode()
    async with memcached_client(memcached) as client:
        await client.set(key, b"value", 60)
        assert await client.multi_get(key) == (b"value",)
    ours = Ours(memcached.port)
    assert (await ours.connections.gets([key]))[key].token > 0
    await ours.close()


# redis


async def test_redis_tries_a_dead_server_again_and_again() -> None:
    port = free_port()
    before = attempts(port)
    trying = asyncio.create_task(redis_get(port))
    await until(lambda: attempts(port) - before >= (4 if REDIS_RETRIES else 1))
    trying.cancel()
    await asyncio.wait({trying})
    async with opening(f"redis://127.0.0.1:{port}/0") as storage:
        before = attempts(port)
        with pytest.raises(StorageUnavailable):
            await storage.load([new_key()])
    assert attempts(port) - before == 2


async def test_redis_fails_calls_that_find_its_pool_full(redis: Proxy) -> None:
    # its default was 2**31 before redis-py 8
    async with Redis(host="127.0.0.1", port=redis.port, max_connections=2) as client:
        ends = await asyncio.gather(*(client.get("key") for _ in range(150)), return_exceptions=True)
        assert any("Too many connections" in str(end) for end in ends)
    async with open_storage(f"{redis.url}?pool_size=2&timeout={PATIENCE}") as storage:
        assert await asyncio.gather(*(storage.load([new_key()]) for _ in range(150))) == [[None]] * 150


async def test_redis_does_a_command_twice_whose_answer_was_lost(redis: Proxy) -> None:
    redis.matching, redis.lose_answers = b"INCR", 1
    told: dict[str, Any] = {} if REDIS_RETRIES else {"retry_on_error": [LostError]}
    async with Redis(host="127.0.0.1", port=redis.port, **told) as client:
        assert await client.incr(new_key()) == 2
    redis.matching, redis.lose_answers = b"EVALSHA", 1
    async with opening(redis.url) as storage:
        version = await create(storage, key := new_key())
        assert (await load(storage, key)).version == version
    assert redis.lose_answers == 0


async def test_a_script_of_redis_that_fails_has_done_half_of_its_work(redis: Proxy) -> None:
    script = "for _, key in ipairs(KEYS) do redis.call('INCR', key) end"
    good, bad = (f"session:{new_key()}" for _ in range(2))
    async with Redis(host="127.0.0.1", port=redis.port) as client:
        await client.lpush(bad, "a list")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await client.eval(script, 2, good, bad)
        assert await client.get(good) == b"1"


@pytest.mark.parametrize("command", ["EVALSHA", "MGET"])
def test_the_pipelines_of_a_redis_cluster_refuse_what_batches_are_made_of(command: str) -> None:
    pipeline = RedisCluster(host="127.0.0.1", port=free_port()).pipeline()
    with pytest.raises(RedisClusterException, match="blocked"):
        getattr(pipeline, command.lower())("a", 1, "b")


# aiomysql


def test_pymysql_is_held_below_the_version_that_aiomysql_fails_with() -> None:
    assert '"PyMySQL>=1.1,<1.2"' in (ROOT / "setup.py").read_text()


def mysql_settings(port: int, **settings: Any) -> dict[str, Any]:
    login = {"user": "visitor", "password": "s@crêt".encode().decode("latin-1"), "db": "sessions"}
    return {"host": "127.0.0.1", "port": port, "unix_socket": None, **login, **settings}


@contextlib.asynccontextmanager
async def mysql_connection(proxy: Proxy, **settings: Any) -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[Any]]]]:
    connection = await aiomysql.connect(**mysql_settings(proxy.port, **settings))
    cursor = await connection.cursor()
    yield connection, cursor.execute
    connection.close()


async def is_refused(complaint: str, **settings: Any) -> None:
    async with aiomysql.create_pool(minsize=0, **settings) as pool:
        with pytest.raises(ConfigError, match=complaint):
            await MySQLStorage(pool).open()


async def test_aiomysql_does_not_commit_unless_told(mysql: Proxy) -> None:
    async with mysql_connection(mysql) as (connection, _):
        assert not connection.get_autocommit()
    await is_refused("autocommit", **mysql_settings(mysql.port))


async def test_aiomysql_has_no_time_out_for_an_answer(mysql: Proxy) -> None:
    async with mysql_connection(mysql, connect_timeout=LONG / 3) as (_, execute):
        mysql.answering.clear()
        assert await hangs(execute("SELECT 1"))
    mysql.answering.set()
    async with open_storage(f"{mysql.url}?timeout={LONG / 3}") as storage:
        mysql.answering.clear()
        with pytest.raises(StorageUnavailable, match="did not answer"):
            await storage.load([new_key()])


async def test_aiomysql_makes_all_wait_for_one_that_connects(mysql: Proxy) -> None:
    pool = await aiomysql.create_pool(minsize=0, maxsize=2, **mysql_settings(mysql.port))
    free = await pool.acquire()
    mysql.answering.clear()
    connecting = asyncio.create_task(pool.acquire())
    await until(lambda: mysql.accepted >= 2)
    pool.release(free)
    assert await hangs(pool.acquire())
    mysql.answering.set()
    with contextlib.suppress(aiomysql.OperationalError):  # the server may have given up a login that took so long
        pool.release(await connecting)
    pool.close()
    await pool.wait_closed()


async def test_aiomysql_counts_what_was_found_for_what_was_changed_if_told_so(mysql: Proxy) -> None:
    async with mysql_connection(mysql, client_flag=CLIENT.FOUND_ROWS) as (_, execute):
        await execute("CREATE TEMPORARY TABLE found (n INT)")
        await execute("INSERT INTO found VALUES (1)")
        assert await execute("UPDATE found SET n=1") == 1
    settings = mysql_settings(mysql.port, autocommit=True, client_flag=CLIENT.FOUND_ROWS)
    await is_refused("FOUND_ROWS", **settings)


async def test_a_connection_that_the_server_found_idle_for_too_long_is_dead(mysql: Proxy) -> None:
    async with mysql_connection(mysql) as (connection, execute):
        await execute("SET SESSION wait_timeout=1")
        before = connection.last_usage
        await asyncio.sleep(0.01)
        await connection.cursor()
        assert connection.last_usage > before  # so pool_recycle never ends a connection that is in use
        await until(lambda: not mysql.connections)
        with pytest.raises(aiomysql.OperationalError):
            await execute("SELECT 1")


# PyMongo


async def test_pymongo_waits_half_a_minute_for_a_server_and_for_ever_for_a_connection() -> None:
    client: AsyncMongoClient[dict[str, Any]]
    async with AsyncMongoClient("127.0.0.1", port := free_port()) as client:
        assert client.options.server_selection_timeout == 30
        assert client.options.pool_options.wait_queue_timeout is None
    assert await hangs(pymongo_find(port))
