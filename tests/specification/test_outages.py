"""One table: whatever the server under a storage does, visitors get their answer in time, and service returns."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import aiomysql  # type: ignore[import-untyped]
import pytest
from aiohttp import TCPConnector, web
from pymongo import MongoClient
from redis.asyncio import Redis as RedisClient

import aiohttp_store
from aiohttp_store import Storage, StorageUnavailable, Write, get_session, get_storage

from ..conftest import ONE_SERVER, STORAGES, AiohttpClient, Client
from ..support.connections import attempts, open_sockets
from ..support.one_key import new_key
from ..support.proxy import Proxy
from ..support.servers import MariaDB, Memcached, MongoDB, Redis, Server, free_port
from ..support.ticking import ticking
from ..support.timing import pace, until, within

SLACK = 3  # seconds; what comes later than that is a driver's own 5, 10 or 30 s
BACK_WITHIN = 1 + SLACK
POOL = 4
VISITORS, CALLS, LATE = 100, 200, 10
LARGE = 100_000  # what a full server has no room for
MONITORS = {"mongodb": 2, "pymongo": 2}  # connections that PyMongo has besides its pool: heartbeat and round-trip time
DURABLE = {"redis", "mongodb", "pymongo", "mysql"}


# The servers


class AnyRedis(Redis):
    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Any]:
        async with RedisClient(host="127.0.0.1", port=self.port, single_connection_client=True) as client:
            yield client

    @asynccontextmanager
    async def full(self) -> AsyncIterator[None]:
        async with self.admin() as client:
            await client.config_set("maxmemory", 1)  # the policy is noeviction unless set
            yield
            await client.config_set("maxmemory", 0)

    @asynccontextmanager
    async def read_only(self) -> AsyncIterator[None]:
        async with self.admin() as client:
            await client.execute_command("REPLICAOF", "127.0.0.1", free_port())
            yield
            await client.execute_command("REPLICAOF", "NO", "ONE")

    @asynccontextmanager
    async def another_password(self) -> AsyncIterator[None]:
        async with self.admin() as client:
            await client.config_set("requirepass", "another")
            await client.execute_command("AUTH", "another")
            await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            yield
            await client.config_set("requirepass", "")


class AnyMemcached(Memcached):
    def command(self) -> list[str]:
        return [*super().command(), "-M", "-m", "8"]

    @asynccontextmanager
    async def full(self) -> AsyncIterator[None]:
        made = await asyncio.to_thread(self._fill)
        yield
        await asyncio.to_thread(self._ask, [b"delete %b\r\n" % key for key in made])

    def _fill(self) -> list[bytes]:
        made: list[bytes] = []
        for size in (2 * LARGE, LARGE + 20_000, LARGE + 5_000, LARGE, LARGE - 5_000):
            more = [b"junk%d.%d" % (size, number) for number in range(100)]
            answers = self._ask([b"set %b 0 0 %d\r\n%b\r\n" % (key, size, bytes(size)) for key in more])
            made += [key for key, answer in zip(more, answers, strict=True) if answer == b"STORED\r\n"]
            assert answers[-1].startswith(b"SERVER_ERROR out of memory")
        return made

    def _ask(self, commands: list[bytes]) -> list[bytes]:
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection, connection.makefile("rb") as answers:
            found = []
            for command in commands:
                connection.sendall(command)
                found.append(answers.readline())
            return found


class AnyMariaDB(MariaDB):
    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Callable[[str], Any]]:
        connection = await aiomysql.connect(
            unix_socket=str(self.folder / "mysql.sock"), user="root", db="sessions", autocommit=True
        )

        async def run(sql: str) -> Any:
            cursor = await connection.cursor()
            await cursor.execute(sql)
            return await cursor.fetchall()

        yield run
        await connection.ensure_closed()

    @asynccontextmanager
    async def full(self) -> AsyncIterator[None]:
        async with self.admin() as run:
            tables = await run("SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA='sessions'")
            for (table,) in tables:  # InnoDB has no limit of its own, and its files none that can be lifted again
                await run(f"DELETE FROM {table} WHERE LENGTH(data) > {LARGE // 2}")
                await run(f"ALTER TABLE {table} ENGINE=MyISAM, MAX_ROWS=1, AVG_ROW_LENGTH=1")
            yield
            for (table,) in tables:
                await run(f"ALTER TABLE {table} ENGINE=InnoDB, MAX_ROWS=0, AVG_ROW_LENGTH=0")

    @asynccontextmanager
    async def read_only(self) -> AsyncIterator[None]:
        async with self.admin() as run:
            await run("SET GLOBAL read_only=1")
            yield
            await run("SET GLOBAL read_only=0")

    @asynccontextmanager
    async def another_password(self) -> AsyncIterator[None]:
        async with self.admin() as run:
            await run("SET PASSWORD FOR visitor = PASSWORD('another')")
            for (number,) in await run("SELECT ID FROM information_schema.PROCESSLIST WHERE USER='visitor'"):
                with contextlib.suppress(aiomysql.OperationalError):  # it has left meanwhile
                    await run(f"KILL {number}")
            yield
            await run("SET PASSWORD FOR visitor = PASSWORD('s@crêt')")


class AnyMongoDB(MongoDB):
    login = "visitor:geheim@"
    auth: ClassVar[tuple[str, ...]] = ("--auth",)

    def command(self) -> list[str]:
        return [*super().command(), *self.auth]

    def prepare(self) -> None:
        self.auth = ()  # type: ignore[misc]
        self.start()
        client: MongoClient[dict[str, Any]]
        with MongoClient("127.0.0.1", self.port) as client:
            client["sessions"].command("createUser", "visitor", pwd="geheim", roles=["readWrite"])
            client["admin"].command("createUser", "admin", pwd="admin", roles=["root"])
        self.stop()
        del self.auth

    def _set_password(self, password: str) -> None:
        client: MongoClient[dict[str, Any]]
        with MongoClient(f"mongodb://admin:admin@127.0.0.1:{self.port}/admin") as client:
            client["sessions"].command("updateUser", "visitor", pwd=password)

    @asynccontextmanager
    async def another_password(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self._set_password, "another")
        yield
        await asyncio.to_thread(self._set_password, "geheim")


SERVERS: dict[str, type[Server]] = {
    "redis": AnyRedis,
    "memcached": AnyMemcached,
    "mysql": AnyMariaDB,
    "mongodb": AnyMongoDB,
}


# The faults


async def refuses(server: Server, proxy: Proxy) -> AsyncIterator[None]:
    proxy.refuse()
    proxy.cut()
    yield
    await proxy.listen()


async def says_nothing(server: Server, proxy: Proxy) -> AsyncIterator[None]:
    proxy.answering.clear()
    yield
    proxy.answering.set()


async def answers_half(server: Server, proxy: Proxy) -> AsyncIterator[None]:
    proxy.breakage = "stall"
    yield
    proxy.breakage = None  # what is stalled stays so until the other side gives up


async def hangs_up_half_way(server: Server, proxy: Proxy) -> AsyncIterator[None]:
    proxy.breakage = "cut"
    yield
    proxy.breakage = None


async def resets(server: Server, proxy: Proxy) -> AsyncIterator[None]:
    proxy.breakage = "reset"
    proxy.reset()
    yield
    proxy.breakage = None


async def is_paused(server: Server, proxy: Proxy) -> AsyncIterator[None]:
    server.pause()
    yield
    server.resume()


async def is_stopped(server: Server, proxy: Proxy) -> AsyncIterator[None]:
    await asyncio.to_thread(server.stop)
    yield
    await asyncio.to_thread(server.start)


async def dies(server: Server, proxy: Proxy) -> AsyncIterator[None]:
    await asyncio.to_thread(server.kill)
    yield
    await asyncio.to_thread(server.start)


async def restarts_empty(server: Server, proxy: Proxy) -> AsyncIterator[None]:
    await asyncio.to_thread(server.kill)
    yield
    await asyncio.to_thread(shutil.rmtree, server.folder)
    await asyncio.to_thread(server.start)


async def is_full(server: Any, proxy: Proxy) -> AsyncIterator[None]:
    async with server.full():
        yield


async def is_read_only(server: Any, proxy: Proxy) -> AsyncIterator[None]:
    async with server.read_only():
        yield


async def wants_another_password(server: Any, proxy: Proxy) -> AsyncIterator[None]:
    async with server.another_password():
        proxy.cut()
        yield


@dataclass(frozen=True)
class Fault:
    course: Callable[[Any, Proxy], AsyncIterator[None]]
    """Begins it, yields while it lasts, and ends it."""
    proxied: bool = False
    reads: bool = False
    """Whether the server still gives what it has."""

    @asynccontextmanager
    async def lasting(self, server: Server, proxy: Proxy) -> AsyncIterator[None]:
        """End the fault also where the test fails meanwhile, as others use the server after it."""
        course = self.course(server, proxy)
        await anext(course)
        try:
            yield
        finally:
            async for _ in course:
                pass


FAULTS = {
    fault.course.__name__: fault
    for fault in (
        Fault(refuses, proxied=True),
        Fault(says_nothing, proxied=True),
        Fault(answers_half, proxied=True),
        Fault(hangs_up_half_way, proxied=True),
        Fault(resets, proxied=True),
        Fault(is_paused),
        Fault(is_stopped),
        Fault(dies),
        Fault(restarts_empty),
        Fault(is_full, reads=True),
        Fault(is_read_only, reads=True),
        Fault(wants_another_password, proxied=True),
    )
}
CANNOT_BE = {
    ("is_full", "mongodb"): "no setting limits the disk that a MongoDB server takes",
    ("is_full", "pymongo"): "no setting limits the disk that a MongoDB server takes",
    ("is_read_only", "memcached"): "memcached knows no such state",
    ("is_read_only", "mongodb"): "a server alone has no such state; a replica is no primary, and refuses reads as well",
    ("is_read_only", "pymongo"): "a server alone has no such state; a replica is no primary, and refuses reads as well",
    ("wants_another_password", "memcached"): "aiomcache cannot log in, so there is none to change",
}
CELLS = [(fault, name) for fault in FAULTS for name in ONE_SERVER if (fault, name) not in CANNOT_BE]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """Give the server under a storage, running; whoever asks leaves it so."""
    started: dict[str, Server] = {}
    folder = tmp_path_factory.mktemp("outages")

    def give(name: str) -> Server:
        kind = STORAGES[name][0]
        assert kind is not None
        if kind not in started:
            started[kind] = SERVERS[kind](folder / kind)
        if started[kind].process is None:
            started[kind].start()
        return started[kind]

    yield give
    for server in started.values():
        server.kill()


@pytest.fixture
def timeout() -> float:
    """Seconds in which a busy machine still serves all who come at once; a quiet one needs a fraction of it."""
    return 0.9 * pace()


def url_of(base: str, name: str, timeout: float) -> str:
    space = {"mysql": "table", "mongodb": "collection", "pymongo": "collection"}.get(name, "prefix")
    query = f"timeout={timeout:.2f}&pool_size={POOL}&{space}=t{new_key()[:8].replace('-', '_')}"
    return f"{STORAGES[name][1]}://{base.partition('://')[2]}?{query}"


# The app and its visitors

loaded = web.AppKey("loaded", asyncio.Semaphore)
gate = web.AppKey("gate", asyncio.Event)


async def count(request: web.Request) -> web.Response:
    session = await get_session(request)
    session["n"] = session.get("n", 0) + 1
    session["padding"] = "x" * int(request.query.get("padding", 0))
    return web.json_response(session["n"])


async def show(request: web.Request) -> web.Response:
    return web.json_response((await get_session(request)).get("n"))


async def untouched(request: web.Request) -> web.Response:
    return web.Response(text="untouched")


async def fallback(request: web.Request) -> web.Response:
    try:
        session = await get_session(request)
    except StorageUnavailable:
        return web.Response(text="an anonymous page")
    return web.json_response(session.get("n"))


async def late(request: web.Request) -> web.Response:
    """Load before the fault, and have the changes saved during it."""
    session = await get_session(request)
    session["late"] = "x" * LARGE
    request.app[loaded].release()
    await request.app[gate].wait()
    return web.Response()


@pytest.fixture
def start_app(aiohttp_client: AiohttpClient) -> Callable[[str], Any]:
    async def start(url: str) -> Client:
        app = web.Application()
        app[loaded], app[gate] = asyncio.Semaphore(0), asyncio.Event()
        for handler in (count, show, untouched, fallback, late):
            app.router.add_get(f"/{handler.__name__}", handler)
        aiohttp_store.setup(app, url)
        return await aiohttp_client(app, connector=TCPConnector(limit=0))

    return start


async def ask(client: Client, path: str) -> tuple[int, str]:
    """Give the status and the text of an answer; a 503 says when to come again, and leaves the cookie alone."""
    async with client.get(path) as response:
        text = await response.text()
        if response.status == 503:
            assert response.headers["Retry-After"] == "1"
            assert "Set-Cookie" not in response.headers
        return response.status, text


async def visit_all_at_once(client: Client, timeout: float, *, reads: bool) -> None:
    """Every visitor during an outage is answered as the table says, and in time."""
    expected = {
        f"/count?padding={LARGE}": (503, None),
        "/show": (200, "3") if reads else (503, None),
        "/fallback": (200, "3" if reads else "an anonymous page"),
        "/untouched": (200, "untouched"),
    }
    paths = [path for path in expected for _ in range(VISITORS // len(expected))]
    random.shuffle(paths)
    with within(2 * timeout + SLACK):
        answers = await asyncio.gather(*(ask(client, path) for path in paths))
    for path, (status, text) in zip(paths, answers, strict=True):
        assert (status, text if expected[path][1] else None) == expected[path], path


async def call_and_cancel(storage: Storage, timeout: float, *, reads: bool) -> None:
    """Ask the storage itself, past the batches, and give up half of the calls at any moment."""

    def call(turn: int) -> Any:
        if turn % 3 == 0:
            return storage.save([Write(new_key(), None, bytes(LARGE), 60)])
        return storage.load([new_key()]) if turn % 3 == 1 else storage.delete([new_key()])

    tasks = [asyncio.create_task(call(turn)) for turn in range(CALLS)]
    for task in tasks[: CALLS // 2]:
        for _ in range(random.randrange(3)):
            await asyncio.sleep(0)
        task.cancel()
    with within(2 * timeout + SLACK):
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for turn, end in enumerate(ends):
        allowed = (StorageUnavailable, *((asyncio.CancelledError,) if turn < CALLS // 2 else ()))
        assert isinstance(end, allowed) or (reads and turn % 3), end


async def wait_for_service(client: Client, path: str = "/show") -> None:
    async def is_served() -> bool:
        return (await ask(client, path))[0] == 200

    with within(BACK_WITHIN):
        await until(is_served, "the server is back, and the service is not")


async def check_the_pool_is_whole(storage: Storage, server: Server, port: int, monitors: int) -> None:
    """As many calls as the pool has places are under way at once, over no more connections."""

    async def is_whole() -> bool:  # a busy machine may take longer over it than a call lasts
        server.pause()
        calls = [asyncio.create_task(storage.load([new_key()])) for _ in range(POOL)]
        try:
            async with asyncio.timeout(storage.timeout / 2):
                await until(lambda: POOL <= open_sockets(port) <= POOL + monitors)
        except TimeoutError:
            return False
        finally:
            server.resume()
            ends = await asyncio.gather(*calls, return_exceptions=True)
        return ends == [[None]] * POOL

    await until(is_whole, f"{open_sockets(port)} connections")


@pytest.mark.parametrize(("fault_name", "name"), CELLS)
async def test_a_fault_is_a_503_in_time_and_service_returns(
    fault_name: str, name: str, timeout: float, running: Callable[[str], Server], start_app: Callable[[str], Any]
) -> None:
    fault, server, monitors = FAULTS[fault_name], running(name), MONITORS.get(name, 0)
    async with Proxy(server.url) as proxy, contextlib.AsyncExitStack() as closing:
        client = await start_app(url_of(proxy.url if fault.proxied else server.url, name, timeout))
        closing.push_async_callback(client.close)
        storage, port = get_storage(client.app), proxy.port if fault.proxied else server.port
        for _ in range(3):
            assert (await ask(client, "/count"))[0] == 200
        at_the_end = [asyncio.create_task(ask(client, "/late")) for _ in range(LATE)]
        for _ in range(LATE):
            await client.app[loaded].acquire()
        async with fault.lasting(server, proxy):
            async with ticking(0.8 * timeout):  # which a call that blocks would take whole
                before = attempts(port)
                client.app[gate].set()
                with within(2 * timeout + SLACK):
                    await visit_all_at_once(client, timeout, reads=fault.reads)
                    assert {status for status, _ in await asyncio.gather(*at_the_end)} == {503}
                visited = attempts(port) - before
                await call_and_cancel(storage, timeout, reads=fault.reads)
                called = attempts(port) - before - visited
            surprised = []
            for _ in range(LATE):  # one after the other, so that all trips are under way when the server is back
                surprised.append(asyncio.create_task(ask(client, "/show")))
                await asyncio.sleep(0.01)
        async with ticking(0.8 * timeout):
            before = attempts(port)
            await wait_for_service(client)
            answers = await asyncio.gather(*(ask(client, "/show") for _ in range(VISITORS)))
            returned = attempts(port) - before
            await asyncio.gather(*surprised)
        assert visited <= VISITORS + LATE  # a driver that tries ten times makes several times that many
        assert called <= 2 * CALLS + monitors
        assert returned <= 2 * (POOL + monitors)
        print(f"{fault_name} {name}: {visited} connects by visitors, {called} by calls, {returned} at the return")
        is_kept = fault_name != "restarts_empty" and (name in DURABLE or fault_name not in {"is_stopped", "dies"})
        assert set(answers) == {(200, "3" if is_kept else "null")}
        await check_the_pool_is_whole(storage, server, port, monitors)
        await client.close()
        await until(lambda: open_sockets(port) == 0)


@pytest.mark.parametrize("name", ONE_SERVER)
async def test_an_app_starts_while_its_server_is_down(
    name: str, timeout: float, running: Callable[[str], Server], start_app: Callable[[str], Any]
) -> None:
    server = running(name)
    server.kill()
    client = await start_app(url_of(server.url, name, timeout))
    with within(2 * timeout + SLACK):
        assert (await ask(client, "/count"))[0] == 503
    assert (await ask(client, "/untouched"))[0] == 200
    await asyncio.to_thread(server.start)
    await wait_for_service(client, "/count")
