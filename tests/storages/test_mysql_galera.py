"""A node of a Galera cluster: how statements reach it, and what follows when it serves none.

The tests of a whole cluster are in tests/engines/.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import struct
from collections.abc import AsyncIterator, Iterator

import aiomysql  # type: ignore[import-untyped]
import pytest
from aiohttp import web

from aiohttp_store import Conflict, Saved, StorageUnavailable, Write, get_session
from aiohttp_store.storages.mysql import MySQLOptions, MySQLStorage

from ..conftest import PATIENCE, Serve, Servers, opening
from ..support.galera import GaleraNode
from ..support.one_key import create, data_of, new_key, save
from ..support.proxy import Proxy

COMMIT = b"\x07\0\0\0\x03COMMIT"
"""A packet of the protocol: its length, its number, the command to run statements, and nothing but this one."""


ROLLBACK = b"\x09\0\0\0\x03ROLLBACK"


class Aborting(Proxy):
    """Rolls a transaction back where it was to commit, and says why, as if a write on another node had come first."""

    def __init__(self, url: str, code: int) -> None:
        super().__init__(url)
        self.error = b"\xff" + struct.pack("<H", code) + b"#40001the transaction was undone"
        self.aborts = 0
        self._aborting = False

    async def _pass_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event
    ) -> None:
        while request := await reader.read(1 << 20):
            if request == COMMIT and self.aborts:
                self.aborts -= 1
                self._aborting, request = True, ROLLBACK
            writer.write(request)

    async def _pass_answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event
    ) -> None:
        while answer := await reader.read(1 << 20):
            if self._aborting:
                self._aborting, answer = False, struct.pack("<I", len(self.error))[:3] + b"\1" + self.error
            writer.write(answer)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GaleraNode]:
    started = GaleraNode(tmp_path_factory.mktemp("galera") / "node")
    started.start()
    yield started
    started.kill()


@pytest.fixture
def table() -> str:
    return f"t{secrets.token_hex(6)}"


@contextlib.contextmanager
def refusing(node: GaleraNode) -> Iterator[None]:
    """Let a node answer as one that its cluster has left behind: with error 1047."""
    node.ask("SET GLOBAL wsrep_reject_queries=ALL")
    try:
        yield
    finally:
        node.ask("SET GLOBAL wsrep_reject_queries=NONE")


async def write_in_all_ways(storage: MySQLStorage) -> None:
    """Create, update, remove and delete, several at a time, and with one write that loses."""
    keys = sorted(new_key() for _ in range(6))
    made = await storage.save([Write(key, None, b"data", 60) for key in keys])
    versions = [outcome.version for outcome in made if isinstance(outcome, Saved)]
    assert len(versions) == 6
    versions[0] = b"another."
    changes = [*(b"more",) * 4, None, None]
    writes = [Write(key, old, data, 60) for key, old, data in zip(keys, versions, changes, strict=True)]
    assert [type(outcome) for outcome in await storage.save(writes)] == [Conflict, *[Saved] * 5]
    await storage.delete(keys[:2])
    assert [await data_of(storage, key) for key in keys] == [None, None, b"more", b"more", None, None]


@contextlib.asynccontextmanager
async def storage_on(proxy: Proxy, table: str, *, given: bool) -> AsyncIterator[MySQLStorage]:
    """Open a storage, on a pool of the application's own or on that of its URL."""
    if not given:
        async with opening(f"{proxy.url}?table={table}") as opened:
            assert isinstance(opened, MySQLStorage)
            yield opened
        return
    async with aiomysql.create_pool(
        host="127.0.0.1", port=proxy.port, user="visitor", password="s@crêt".encode().decode("latin-1"),
        db="sessions", autocommit=True, minsize=0,
    ) as pool:  # fmt: skip
        storage = MySQLStorage(pool, MySQLOptions(table=table, timeout=PATIENCE))
        await storage.open()
        yield storage
        await storage.close()


@pytest.mark.parametrize("given", [False, True], ids=["url", "given pool"])
async def test_each_statement_and_the_commit_are_a_packet_of_their_own_on_a_galera_node(
    node: GaleraNode, table: str, given: bool
) -> None:
    """Inside a packet, a transaction that another node's write has aborted would be answered with OK."""
    async with Proxy(node.url) as proxy, storage_on(proxy, table, given=given) as storage:
        proxy.requests.clear()
        await write_in_all_ways(storage)
        assert [one for one in proxy.requests if re.search(rb"COMMIT\b", one) and one != COMMIT] == []
        assert proxy.requests.count(COMMIT) == 3
        for request in proxy.requests:
            assert len(re.findall(rb"(INSERT INTO|UPDATE|DELETE FROM|FROM) `", request)) <= 1, request


@pytest.mark.parametrize("code", [1205, 1213, 3101])
async def test_a_transaction_that_loses_when_it_commits_is_sent_again(node: GaleraNode, table: str, code: int) -> None:
    async with Aborting(node.url, code) as proxy, opening(f"{proxy.url}?table={table}&pool_size=1") as storage:
        proxy.aborts = 2
        version = await create(storage, key := new_key())
        proxy.aborts = 1
        assert isinstance(await save(storage, key, b"more", version), Saved)
        assert await data_of(storage, key) == b"more"
        proxy.aborts = 1
        await storage.delete([key])
        assert await data_of(storage, key) is None
        assert proxy.aborts == 0


async def test_elsewhere_a_batch_is_one_packet(servers: Servers, table: str) -> None:
    async with Proxy(servers.own("mysql").url) as proxy, opening(f"{proxy.url}?table={table}") as storage:
        assert isinstance(storage, MySQLStorage)
        proxy.requests.clear()
        await write_in_all_ways(storage)
        written = [one for one in proxy.requests if re.search(rb"COMMIT\b", one)]
        assert len(written) == 3
        assert all(b"START TRANSACTION" in one for one in written)


async def test_several_hosts_are_asked_whether_they_are_writable_and_the_commit_still_travels_alone(
    node: GaleraNode, table: str
) -> None:
    async with Proxy(node.url) as first:
        hosts = f"127.0.0.1:{first.port},127.0.0.1:{node.port}"
        url = f"mysql://{GaleraNode.login}{hosts}{GaleraNode.path}?table={table}"
        async with opening(url) as storage:
            first.requests.clear()
            await create(storage, new_key())
            assert first.requests[-1] == COMMIT
            assert b"@writable" in first.requests[-2]


@pytest.mark.parametrize("given", [False, True], ids=["url", "given pool"])
async def test_a_node_that_is_not_prepared_is_not_noticed_behind_a_balancer_that_knows_another(
    node: GaleraNode, servers: Servers, table: str, serve: Serve, given: bool
) -> None:
    async def login(request: web.Request) -> web.Response:
        session = await get_session(request)
        session["user"] = "ann"
        return web.Response()

    async def who(request: web.Request) -> web.Response:
        return web.Response(text=str((await get_session(request)).get("user")))

    other = servers.own("mysql")
    async with opening(f"{other.url}?table={table}") as elsewhere, Proxy(node.url) as balancer:
        await create(elsewhere, new_key())
        async with storage_on(balancer, table, given=given) as storage:
            client = await serve(login, who, storage=storage)
            assert (await client.get("/login")).status == 200
            balancer.target = other.port
            with refusing(node):
                for path in ("/login", "/who", "/login"):
                    assert (await client.get(path)).status == 200
                assert await (await client.get("/who")).text() == "ann"
            await client.close()


async def test_connections_to_a_node_that_is_not_prepared_are_all_given_up_at_once(
    node: GaleraNode, servers: Servers, table: str
) -> None:
    other = servers.own("mysql")
    async with opening(f"{other.url}?table={table}") as elsewhere, Proxy(node.url) as balancer:
        await create(elsewhere, new_key())
        async with opening(f"{balancer.url}?table={table}") as storage:
            await asyncio.gather(*(storage.load([new_key()]) for _ in range(10)))
            balancer.target = other.port
            with refusing(node):
                assert await storage.load([new_key()]) == [None]
                await storage.delete([new_key()])
                await asyncio.gather(*(create(storage, new_key()) for _ in range(20)))


async def test_a_node_that_is_not_prepared_and_has_no_other_beside_it_is_an_outage_after_one_more_try(
    node: GaleraNode, table: str
) -> None:
    async with Proxy(node.url) as balancer, opening(f"{balancer.url}?table={table}") as storage:
        await create(storage, key := new_key())
        with refusing(node):
            before = balancer.accepted
            with pytest.raises(StorageUnavailable, match="not yet prepared"):
                await storage.load([key])
            assert balancer.accepted == before + 1
        assert await data_of(storage, key) == b"data"
