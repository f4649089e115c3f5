"""One MySQL of several: which one is used, when it is left, and what a failover keeps."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import aiomysql  # type: ignore[import-untyped]
import pytest
from aiohttp import web
from yarl import URL

from aiohttp_store import Saved, SessionTooLarge, StorageUnavailable, Write, get_session, open_storage
from aiohttp_store.storages import storage_from_url
from aiohttp_store.storages.mysql import MySQLStorage

from ..conftest import PATIENCE, Serve
from ..support.one_key import create, data_of, new_key, save
from ..support.proxy import Proxy
from ..support.servers import MariaDB, free_port
from ..support.ticking import ticking
from ..support.timing import AT_LAST, now, pace, until, within
from .test_mysql import all_connections_end, ask, connections_of, setting, someone_waits_for_a_lock

SLACK = 3  # seconds beyond a deadline; what comes later is a driver's own 5, 10 or 30 s


class Member(MariaDB):
    """A server that may be the primary of another, or its replica; its init file stays out of its log."""

    replica = False

    def prepare(self) -> None:
        super().prepare()
        init = self.folder / "init.sql"
        init.write_text("SET sql_log_bin=0;\n" + init.read_text("utf-8"), "utf-8")

    def command(self) -> list[str]:
        return [
            *super().command(),
            *(f"--server-id={self.port}", "--log-bin=log", "--log-slave-updates", "--binlog-format=ROW"),
            *("--rpl-semi-sync-master-wait-point=AFTER_SYNC", "--rpl-semi-sync-master-timeout=600000"),
            *("--rpl-semi-sync-slave-enabled=1", f"--read-only={int(self.replica)}", "--slave-net-timeout=5"),
        ]

    @contextlib.asynccontextmanager
    async def root(self) -> AsyncIterator[Any]:
        connection = await aiomysql.connect(
            host="127.0.0.1", port=self.port, user="root", db="sessions", autocommit=True, cursorclass=aiomysql.Cursor
        )
        try:
            yield connection
        finally:
            connection.close()

    async def ask(self, sql: str) -> Any:
        async with self.root() as connection:
            return await ask(connection, sql)


class Privileged(Member):
    """A server on which the storage's user may write although it is read-only."""

    def prepare(self) -> None:
        super().prepare()
        with (self.folder / "init.sql").open("a") as init:
            init.write("GRANT READ_ONLY ADMIN ON *.* TO 'visitor'@'%';\n")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Privileged, Privileged]]:
    """Two servers that know nothing of each other."""
    folder = tmp_path_factory.mktemp("pair")
    first, second = Privileged(folder / "first"), Privileged(folder / "second")
    try:
        first.start()
        second.start()
        yield first, second
    finally:
        first.kill()
        second.kill()


@pytest.fixture
def table() -> str:
    return f"t{secrets.token_hex(6)}"


@pytest.fixture
def hasty() -> float:
    """Seconds that are soon over, and in a share of which a host is still found on a busy machine."""
    return 0.9 * pace()


def url_of(table: str, *ports: int, timeout: float = PATIENCE) -> str:
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return f"mysql://{MariaDB.login}{hosts}/sessions?table={table}&timeout={timeout}"


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[MySQLStorage]:
    async with open_storage(url) as storage:
        assert isinstance(storage, MySQLStorage)
        yield storage


async def has(server: Member, table: str, key: str) -> bool:
    async with server.root() as root:
        return bool(await ask(root, f"SHOW TABLES LIKE '{table}'")) and bool(
            await ask(root, f"SELECT 1 FROM {table} WHERE id='{key}'")
        )


# Which host


@contextlib.asynccontextmanager
async def in_state(state: str, server: Member) -> AsyncIterator[int]:
    """Give the port of a host in this state."""
    async with contextlib.AsyncExitStack() as stack:
        if state == "writable":
            yield server.port
        elif state == "read-only":
            root = await stack.enter_async_context(server.root())
            await stack.enter_async_context(setting(root, "read_only", "1"))
            yield server.port
        elif state == "refusing":
            yield free_port()
        elif state == "silent":
            yield stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        elif state == "slow":
            proxy = await stack.enter_async_context(Proxy(server.url))
            proxy.answering.clear()
            asyncio.get_running_loop().call_later(0.6, proxy.answering.set)
            yield proxy.port
        else:

            async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.close()

            other = await stack.enter_async_context(await asyncio.start_server(reset, "127.0.0.1", 0))
            yield other.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("states", "chosen"),
    [
        (("writable", "writable"), 0),
        (("slow", "writable"), 0),  # its answer comes within its share of the deadline
        (("read-only", "writable"), 1),
        (("refusing", "writable"), 1),
        (("resetting", "writable"), 1),
        (("silent", "writable"), 1),
        (("writable", "silent"), 0),
        (("silent", "refusing", "silent", "resetting", "read-only", "writable"), 5),
    ],
)
async def test_the_first_writable_host_is_used(
    pair: tuple[Privileged, Privileged], table: str, states: tuple[str, ...], chosen: int, hasty: float
) -> None:
    timeout = hasty if states[0] == "silent" else PATIENCE
    async with contextlib.AsyncExitStack() as stack:
        servers = [pair[state == "writable" and index > 0] for index, state in enumerate(states)]
        ports = [
            await stack.enter_async_context(in_state(state, server))
            for state, server in zip(states, servers, strict=True)
        ]
        storage = await stack.enter_async_context(opened(url_of(table, *ports, timeout=timeout)))
        keys = [new_key() for _ in range(5)]
        await asyncio.gather(*(create(storage, key) for key in keys))
        assert [await has(servers[chosen], table, key) for key in keys] == [True] * 5


async def test_what_each_host_said_is_told_in_time(
    pair: tuple[Privileged, Privileged], table: str, hasty: float
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        states = {"silent": "was silent", "read-only": "is read-only", "refusing": "Connect call failed"}
        ports = [await stack.enter_async_context(in_state(state, pair[0])) for state in states]
        storage = await stack.enter_async_context(opened(url_of(table, *ports, timeout=hasty)))
        for verb in (storage.load([new_key()]), storage.delete([new_key()]), storage.save([Write("k", None, b"", 9)])):
            with pytest.raises(StorageUnavailable) as caught, within(hasty + 0.5):
                await verb
            reasons = str(caught.value).partition("no host of")[2].split(";")
            assert len(reasons) == 3
            for port, says, reason in zip(ports, states.values(), reasons, strict=True):
                assert f"127.0.0.1:{port}: " in reason
                assert says in reason
        for port in ports:
            assert f"127.0.0.1:{port}" in repr(storage)
        assert "crêt" not in str(caught.value)


async def test_another_host_is_not_even_asked_while_the_first_serves(
    pair: tuple[Privileged, Privileged], table: str
) -> None:
    async with Proxy(pair[0].url) as first, Proxy(pair[1].url) as second, contextlib.AsyncExitStack() as stack:
        storage = await stack.enter_async_context(opened(url_of(table, first.port, second.port)))
        await asyncio.gather(*(storage.load([new_key()]) for _ in range(40)))
        assert first.accepted == 10
        assert second.accepted == 0


async def test_an_outage_is_no_storm_of_connections(pair: tuple[Privileged, Privileged], table: str) -> None:
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        for server in pair:
            await stack.enter_async_context(in_state("read-only", server))
        proxies = [await stack.enter_async_context(Proxy(server.url)) for server in pair]
        async with opened(url_of(table, *(proxy.port for proxy in proxies))) as storage:
            began, took, calls = loop.time(), 0.0, 0
            while took < 1 or calls < 20 * took:
                answers = await asyncio.gather(*(storage.load(["k"]) for _ in range(32)), return_exceptions=True)
                assert {type(answer) for answer in answers} == {StorageUnavailable}
                calls += 32
                took = loop.time() - began
            assert max(proxy.accepted for proxy in proxies) < 3 + 10 * took
            for server in pair:
                await server.ask("SET GLOBAL read_only=0")
            assert await storage.load(["k"]) == [None]


# When it is left


@pytest.mark.parametrize("verb", ["load", "save", "delete"])
async def test_a_host_that_turns_read_only_is_left_and_not_asked_again(
    verb: str, pair: tuple[Privileged, Privileged], table: str
) -> None:
    """Its user might write there nevertheless, and would read what is out of date."""
    first, second = pair
    async with opened(url_of(table, second.port)) as alone:
        await create(alone, new_key())
    async with opened(url_of(table, first.port, second.port)) as storage, first.root() as root:
        await asyncio.gather(*(storage.load([new_key()]) for _ in range(5)))
        await create(storage, key := new_key())
        async with setting(root, "read_only", "1"):
            if verb == "load":
                assert await storage.load([key]) == [None]
            elif verb == "save":
                await create(storage, other := new_key())
                assert await has(second, table, other)
            else:
                await storage.delete([key])
            assert await has(first, table, key)
            await all_connections_end(root)
        await create(storage, key := new_key())
        assert await has(second, table, key), "the host that last worked is remembered"


async def test_the_limits_are_those_of_the_new_host(pair: tuple[Privileged, Privileged], table: str) -> None:
    first, second = pair
    async with contextlib.AsyncExitStack() as stack:
        other = await stack.enter_async_context(second.root())
        await stack.enter_async_context(setting(other, "max_allowed_packet", str(1 << 20)))
        alone = await stack.enter_async_context(opened(url_of(table, second.port)))
        await create(alone, new_key())
        storage = await stack.enter_async_context(opened(url_of(table, first.port, second.port)))
        await create(storage, new_key(), b"x" * (1 << 20))
        await stack.enter_async_context(in_state("read-only", first))
        assert await storage.load([new_key()]) == [None]
        with pytest.raises(SessionTooLarge):
            await create(storage, new_key(), b"x" * (1 << 20))


async def test_the_table_is_made_where_a_new_host_has_none(pair: tuple[Privileged, Privileged], table: str) -> None:
    first, second = pair
    async with opened(url_of(table, first.port, second.port)) as storage:
        await create(storage, new_key())
        async with in_state("read-only", first):
            with pytest.raises(StorageUnavailable, match="doesn't exist"):
                await storage.load([new_key()])
            await create(storage, key := new_key())
            assert await has(second, table, key)


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_a_host_that_ends_or_falls_silent_is_left(
    how: str, pair: tuple[Privileged, Privileged], table: str, hasty: float
) -> None:
    first, second = pair
    async with opened(url_of(table, first.port, second.port, timeout=hasty)) as storage, second.root() as other:
        for server in (second, first):
            async with opened(url_of(table, server.port)) as alone:
                await create(alone, new_key())
        await asyncio.gather(*(storage.load([new_key()]) for _ in range(10)))
        getattr(first, how)()
        try:
            async with ticking():
                if how == "pause":
                    calls = (storage.load([new_key()]) for _ in range(3))  # with free connections left over
                    with within(hasty + 0.5):
                        answers = await asyncio.gather(*calls, return_exceptions=True)
                    assert all(isinstance(answer, StorageUnavailable) for answer in answers)
                keys = [new_key() for _ in range(20)]
                await asyncio.gather(*(create(storage, key) for key in keys))
            assert await has(second, table, keys[-1])
            used = await ask(other, "SELECT 1 FROM information_schema.PROCESSLIST WHERE USER='visitor'")
            assert 1 <= len(used) <= 10
        finally:
            first.resume() if how == "pause" else first.start()
        async with first.root() as root:
            await all_connections_end(root)
        await create(storage, key := new_key())
        assert await has(second, table, key), "the host that last worked is remembered"


async def test_a_host_that_falls_silent_while_more_connections_are_made_is_left_within_the_call(
    pair: tuple[Privileged, Privileged], table: str, hasty: float
) -> None:
    async with Proxy(pair[0].url) as proxy, opened(url_of(table, pair[1].port)) as alone:
        await create(alone, new_key())
        async with opened(url_of(table, proxy.port, pair[1].port, timeout=hasty)) as storage:
            await storage.load([new_key()])
            connections_of(storage).forget()
            proxy.answering.clear()
            await create(storage, key := new_key())
            assert await has(pair[1], table, key)


async def test_a_connection_that_was_in_use_while_its_host_was_left_is_closed(
    pair: tuple[Privileged, Privileged], table: str
) -> None:
    first, second = pair
    async with Proxy(first.url) as proxy, contextlib.AsyncExitStack() as stack:
        storage = await stack.enter_async_context(opened(url_of(table, proxy.port, second.port)))
        root = await stack.enter_async_context(first.root())
        version = await create(storage, key := new_key())
        await ask(root, "BEGIN")
        await ask(root, f"SELECT 1 FROM {table} WHERE id='{key}' FOR UPDATE")
        waiting = asyncio.create_task(save(storage, key, b"more", version))
        await someone_waits_for_a_lock(root)
        connections_of(storage).forget()
        proxy.target = free_port()
        await stack.enter_async_context(opened(url_of(table, second.port)))
        assert await storage.load([key]) == [None]
        await ask(root, "ROLLBACK")
        assert isinstance(await waiting, Saved)
        await until(lambda: not proxy.connections)


async def test_a_host_without_room_for_more_connections_is_not_left(
    pair: tuple[Privileged, Privileged], table: str
) -> None:
    first, second = pair
    async with opened(url_of(table, first.port, second.port)) as storage, first.root() as root:
        await root.query("CREATE OR REPLACE USER few@'%' WITH MAX_USER_CONNECTIONS 2")
        await ask(root, "GRANT ALL ON sessions.* TO few@'%'")
        url = url_of(table, first.port, second.port).replace(MariaDB.login, "few@")
        async with opened(url) as few:
            keys = [new_key() for _ in range(10)]
            outcomes = await asyncio.gather(*(save(few, key, b"x") for key in keys), return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {Saved, StorageUnavailable}
            for key, outcome in zip(keys, outcomes, strict=True):
                assert (await data_of(storage, key) is not None) == isinstance(outcome, Saved)


async def test_cancelling_at_every_step_of_the_search_leaves_nothing_behind(
    pair: tuple[Privileged, Privileged], table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiohttp_store.storages._mysql_hosts._SEARCH_PAUSE", 0)
    async with in_state("read-only", pair[0]), pair[0].root() as root, pair[1].root() as other:
        async with opened(url_of(table, pair[0].port, pair[1].port)) as storage:
            for turn in range(60):
                await storage.close()
                connections_of(storage).host = None
                await storage.open() if turn == 0 else storage._connections.open()
                task = asyncio.create_task(storage.load([new_key()]))
                for _ in range(turn):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            assert await storage.load([new_key()]) == [None]
        await all_connections_end(root)
        await all_connections_end(other)
        assert len(asyncio.all_tasks()) == 1


async def test_closing_ends_a_search(table: str) -> None:
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        storage = storage_from_url(url_of(table, *(each.getsockname()[1] for each in silent)))
        opening = asyncio.create_task(storage.open())
        for each in silent:
            each.setblocking(False)
            stack.enter_context((await loop.sock_accept(each))[0])
        await asyncio.sleep(0.5)  # all of them were asked, and the answer of the first is waited for
        assert not opening.done()
        with within(SLACK):
            await storage.close()
            await opening
        await storage.close()
        assert len(asyncio.all_tasks()) == 1


def test_a_storage_of_several_hosts_serves_one_event_loop_after_another(
    pair: tuple[Privileged, Privileged], table: str
) -> None:
    storage = storage_from_url(url_of(table, pair[0].port, pair[1].port))

    async def use() -> None:
        await storage.open()
        await asyncio.gather(*(create(storage, new_key()) for _ in range(20)))
        await storage.close()

    asyncio.run(use())
    asyncio.run(use())


# Failover


@dataclasses.dataclass
class Cluster:
    primary: Member
    replica: Member

    async def replicate(self) -> None:
        """Let the primary acknowledge nothing that its replica has not got."""
        primary, replica = self.primary, self.replica
        await replica.ask(
            f"CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={primary.port}, MASTER_USER='root', "
            "MASTER_USE_GTID=slave_pos, MASTER_CONNECT_RETRY=1"
        )
        await replica.ask("START SLAVE")
        await primary.ask("SET GLOBAL rpl_semi_sync_master_enabled=1")
        connected = "SELECT 1 FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME="
        await until(lambda: primary.ask(f"{connected}'RPL_SEMI_SYNC_MASTER_CLIENTS' AND VARIABLE_VALUE='1'"))

    async def promote(self) -> None:
        """Let the replica apply all that it has got, and then write."""
        async with self.replica.root() as root:
            await ask(root, "STOP SLAVE IO_THREAD")
            cursor = await root.cursor(aiomysql.DictCursor)
            await cursor.execute("SHOW SLAVE STATUS")
            status = await cursor.fetchone()
            assert await ask(root, f"SELECT MASTER_GTID_WAIT('{status['Gtid_IO_Pos']}', {AT_LAST})") == ((0,),)
            await ask(root, "STOP SLAVE")
            await ask(root, "SET GLOBAL read_only=0")

    async def switch_over(self) -> None:
        await self.primary.ask("SET GLOBAL read_only=1")
        ((position,),) = await self.primary.ask("SELECT @@gtid_binlog_pos")
        assert await self.replica.ask(f"SELECT MASTER_GTID_WAIT('{position}', {AT_LAST})") == ((0,),)
        await self.promote()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    primary, replica = Member(tmp_path / "primary"), Member(tmp_path / "replica")
    replica.replica = True
    try:
        primary.start()
        replica.start()
        cluster = Cluster(primary, replica)
        await cluster.replicate()
        yield cluster
    finally:
        primary.kill()
        replica.kill()


async def count(request: web.Request) -> web.Response:
    session = await get_session(request)
    session["n"] = session.get("n", 0) + 1
    return web.json_response(session["n"])


class Visitor:
    """Counts in a session of its own, and checks that every acknowledged write is there at the next."""

    def __init__(self, session: aiohttp.ClientSession, url: URL) -> None:
        self.session = session
        self.url = url
        self.cookies: dict[str, str] = {}
        self.acknowledged = self.unknown = 0
        self.orphans = 0
        """Sessions that may have been begun for it, and whose cookie it was not given."""
        self.statuses: set[int] = set()
        self.slowest = 0.0

    async def visit(self) -> None:
        began = now()
        async with self.session.get(self.url, cookies=self.cookies) as got:
            self.slowest = max(self.slowest, now() - began)
            self.statuses.add(got.status)
            if got.status != 200:
                self.unknown += 1
                self.orphans += not self.cookies
                return
            self.cookies |= {name: morsel.value for name, morsel in got.cookies.items()}
            number = await got.json()
        assert self.acknowledged < number <= self.acknowledged + 1 + self.unknown
        self.acknowledged, self.unknown = number, 0

    async def visit_at_last(self) -> None:
        """Come again until it is served."""
        before = self.acknowledged
        while self.acknowledged == before:
            await self.visit()

    async def visit_until(self, done: asyncio.Event) -> None:
        while not done.is_set():
            await self.visit()
            await asyncio.sleep(0.01)


async def all_are_served(visitors: list[Visitor]) -> None:
    before = [visitor.acknowledged for visitor in visitors]

    def are_served() -> bool:
        return all(visitor.acknowledged > then for visitor, then in zip(visitors, before, strict=True))

    await until(are_served, "the new primary serves, and the service is not back")


@pytest.mark.parametrize("how", ["kill", "pause", "switch over"])
async def test_a_failover_loses_no_acknowledged_write(
    how: str, cluster: Cluster, table: str, serve: Serve, hasty: float
) -> None:
    old, new = cluster.primary, cluster.replica
    client = await serve(count, storage=url_of(table, old.port, new.port, timeout=hasty), on_conflict="raise")
    session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), connector=aiohttp.TCPConnector(limit=0))
    async with session, contextlib.AsyncExitStack() as stack:
        visitors = [Visitor(session, client.make_url("/count")) for _ in range(32)]
        for visitor in visitors:
            await visitor.visit_at_last()
        group = await stack.enter_async_context(asyncio.TaskGroup())
        done = asyncio.Event()
        for visitor in visitors:
            group.create_task(visitor.visit_until(done))
        await asyncio.sleep(0.5)
        if how == "switch over":
            await cluster.switch_over()
        else:
            getattr(old, how)()
            await asyncio.sleep(0.5)
            await cluster.promote()
        with within(1 + SLACK):
            await all_are_served(visitors)
        await asyncio.sleep(0.3)
        done.set()
        await stack.aclose()
        assert set().union(*(visitor.statuses for visitor in visitors)) <= {200, 503}
        assert max(visitor.slowest for visitor in visitors) < 2 * hasty + SLACK
        ((rows,),) = await new.ask(f"SELECT COUNT(*) FROM {table}")
        assert 0 <= rows - len(visitors) <= sum(visitor.orphans for visitor in visitors)

        old.kill()
        old.replica = True
        await asyncio.to_thread(old.start)
        before = await old.ask("SELECT @@gtid_binlog_pos")
        for visitor in visitors:
            await visitor.visit_at_last()
    async with old.root() as root:
        await all_connections_end(root)
    assert await old.ask("SELECT @@gtid_binlog_pos") == before
