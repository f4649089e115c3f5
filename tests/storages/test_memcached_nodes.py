"""Several memcached nodes: where the keys are, and what one node's absence does to the others' sessions."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import socket
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomcache
import pytest
from aiohttp import ClientSession, DummyCookieJar, web

from aiohttp_store import (
    ConfigError,
    Record,
    Saved,
    SessionTooLarge,
    StorageUnavailable,
    Write,
    get_session,
    open_storage,
)
from aiohttp_store._engine.batching import Batcher
from aiohttp_store.cookie import key_of_id
from aiohttp_store.storages import storage_from_url
from aiohttp_store.storages.memcached import MemcachedNodes, MemcachedStorage

from ..conftest import PATIENCE, Client, Serve
from ..support.one_key import create, data_of, load, save
from ..support.servers import Memcached
from ..support.servers import MemcachedNodes as Nodes
from ..support.ticking import ticking
from ..support.timing import pace, until, within

KEYS = [urlsafe_b64encode(hashlib.sha256(b"%d" % number).digest())[:-1].decode() for number in range(3000)]
AWAY = ["kill", "pause"]


def nodes_of(url: str) -> MemcachedNodes:
    storage = storage_from_url(url)
    assert isinstance(storage, MemcachedNodes)
    return storage


def places(url: str) -> dict[str, str]:
    """Tell the node of each of the keys."""
    storage = nodes_of(url)
    return {key: storage.shard_of(key).node for key in KEYS}


@pytest.fixture
def servers3(tmp_path: Path) -> Iterator[Nodes]:
    servers = Nodes(tmp_path / "nodes")
    servers.start()
    yield servers
    servers.kill()


# Where a key is


def test_a_key_has_one_node_whatever_the_order_in_the_url() -> None:
    hosts = ["h1:11211", "H2", "[::1]:7"]
    found = {tuple(places(f"memcached://{','.join(order)}").values()) for order in itertools.permutations(hosts)}
    assert len(found) == 1
    assert set(*found) == {"h1:11211", "h2:11211", "::1:7"}


def test_no_version_of_this_library_places_a_key_elsewhere() -> None:
    nodes = list(places("memcached://h1,h2,h3").values())
    assert [int(node[1]) for node in nodes[:20]] == [2, 2, 3, 3, 2, 1, 1, 2, 2, 2, 1, 1, 3, 3, 1, 3, 2, 1, 2, 2]


def test_the_keys_are_spread_evenly() -> None:
    for hosts in ("h1,h2,h3", "10.0.0.1:1,10.0.0.1:2,10.0.0.1:3"):
        counts = Counter(places(f"memcached://{hosts}").values())
        assert len(counts) == 3
        assert all(abs(count - len(KEYS) / 3) < len(KEYS) * 0.04 for count in counts.values())


def test_a_node_more_or_less_moves_only_its_own_share() -> None:
    three, four = places("memcached://h1,h2,h3"), places("memcached://h1,h2,h3,h4")
    moved = {key for key in KEYS if three[key] != four[key]}
    assert moved == {key for key in KEYS if four[key] == "h4:11211"}
    assert abs(len(moved) - len(KEYS) / 4) < len(KEYS) * 0.04


def test_clients_of_the_users_own_make_the_same_nodes() -> None:
    url = "memcached://h1,h2:5"
    storage = MemcachedNodes([MemcachedStorage(aiomcache.Client(*host)) for host in (("h1", 11211), ("h2", 5))])
    assert {key: storage.shard_of(key).node for key in KEYS} == places(url)
    assert repr(storage) == repr(nodes_of(url)) == "<MemcachedNodes at h1:11211, h2:5>"


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("memcached://h1,h2,h1", "h1:11211, h2:11211, h1:11211; name at least one, and each once"),
        ("memcached://h1,H1:11211", "each once"),
        ("memcached://h1,h2?prefx=a", "did you mean 'prefix'"),
        ("memcached://h1,h2/0", "path '/0'"),
        ("memcached://visitor@h1,h2", "user"),
    ],
)
def test_a_url_of_nodes_that_cannot_work_is_refused(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        storage_from_url(url)


def test_no_nodes_at_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="none; name at least one"):
        MemcachedNodes([])


# The nodes themselves


def holds(node: Memcached, key: str) -> bool:
    """Look behind the storage's back."""
    with socket.create_connection(("127.0.0.1", node.port), 5) as connection, connection.makefile("rb") as answers:
        connection.sendall(b"mg session:%b\r\n" % key.encode())
        return answers.readline() == b"HD\r\n"


@asynccontextmanager
async def opening(url: str) -> AsyncIterator[MemcachedNodes]:
    async with open_storage(url) as storage:
        assert isinstance(storage, MemcachedNodes)
        yield storage


@pytest.fixture
async def opened(servers3: Nodes) -> AsyncIterator[MemcachedNodes]:
    async with opening(f"{servers3.url}?timeout={PATIENCE}") as storage:
        yield storage


def node_of(servers: Nodes, storage: MemcachedNodes, key: str) -> Memcached:
    (found,) = (node for node in servers.nodes if storage.shard_of(key).node == f"127.0.0.1:{node.port}")
    return found


async def test_a_key_is_on_its_node_and_on_no_other_also_while_that_is_away(
    servers3: Nodes, opened: MemcachedNodes
) -> None:
    keys = KEYS[:30]
    homes = {key: node_of(servers3, opened, key) for key in keys}
    dead = servers3.nodes[1]
    for key in keys:
        await create(opened, key)
    assert all(holds(node, key) == (node is homes[key]) for node in servers3.nodes for key in keys)
    dead.kill()
    for key in keys:
        if homes[key] is dead:
            for verb in (opened.load([key]), save(opened, key, b"anew"), opened.delete([key])):
                with pytest.raises(StorageUnavailable, match=str(dead.port)):
                    await verb
        else:
            assert isinstance(await save(opened, key, b"more", (await load(opened, key)).version), Saved)
    dead.start()
    assert not any(holds(node, key) for node in servers3.nodes for key in keys if homes[key] is dead)
    for key in keys:
        if homes[key] is dead:
            await create(opened, key)
    assert all(holds(node, key) == (node is homes[key]) for node in servers3.nodes for key in keys)


@pytest.mark.parametrize("how", AWAY)
async def test_a_batch_with_keys_of_a_node_that_is_away_fails_after_the_others_were_served(
    servers3: Nodes, how: str
) -> None:
    keys, timeout = KEYS[:30], 1.0 * pace()
    async with opening(f"{servers3.url}?timeout={timeout}") as storage:
        away = servers3.nodes[0]
        others = [key for key in keys if node_of(servers3, storage, key) is not away]
        assert 0 < len(others) < len(keys)
        await asyncio.to_thread(getattr(away, how))
        async with ticking(timeout / 2):
            for verb, count in (
                (storage.save([Write(key, None, key.encode(), 60) for key in keys]), len(others)),
                (storage.load(keys), len(others)),
                (storage.delete(keys), 0),
            ):
                with pytest.raises(StorageUnavailable, match=str(away.port)), within(timeout + 2):
                    await verb
                assert sum(holds(node, key) for node in servers3.nodes if node is not away for key in others) == count


async def test_a_cancelled_batch_leaves_every_node_usable(servers3: Nodes) -> None:
    keys = KEYS[:12]
    async with opening(f"{servers3.url}?timeout={PATIENCE}&pool_size=1") as storage:
        for key in keys:
            await create(storage, key, key.encode())
        servers3.nodes[2].pause()
        for _ in range(3):
            task = asyncio.create_task(storage.load(keys))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        servers3.nodes[2].resume()
        assert [await data_of(storage, key) for key in reversed(keys)] == [key.encode() for key in reversed(keys)]


async def test_a_value_that_is_too_large_fails_alone_and_every_other_write_is_told_its_own_outcome(
    opened: MemcachedNodes,
) -> None:
    batcher: Batcher[None, Record | None] = Batcher(opened, lambda _, record: record, lambda *_: None)
    data = {key: b"x" * (2 << 20) if number == 7 else b"%d" % number for number, key in enumerate(KEYS[:30])}
    outcomes = await asyncio.gather(
        *(batcher.save(Write(key, None, value, 60)) for key, value in data.items()), return_exceptions=True
    )
    assert [number for number, outcome in enumerate(outcomes) if not isinstance(outcome, Saved)] == [7]
    assert isinstance(outcomes[7], SessionTooLarge)
    records = await asyncio.gather(*(batcher.load(key, None) for key in data))
    assert [record and record.data for record in records] == [
        None if number == 7 else value for number, value in enumerate(data.values())
    ]


# Visitors


async def count(request: web.Request) -> web.Response:
    session = await get_session(request)
    session["n"] = session.get("n", 0) + 1
    return web.json_response(session["n"])


async def show(request: web.Request) -> web.Response:
    return web.json_response(dict(await get_session(request)))


class Visitors:
    """Each with a session of its own, whose node is known."""

    def __init__(self, client: Client, browsers: ClientSession, servers: Nodes, storage: MemcachedNodes) -> None:
        self.client = client
        self.browsers = browsers
        self.servers = servers
        self.storage = storage
        self.cookies: list[str] = []

    async def ask(self, path: str, cookie: str | None = None) -> tuple[int, Any, Mapping[str, Any]]:
        """Give the status, what was answered, and the cookies that were set."""
        cookies = {} if cookie is None else {"session": cookie}
        async with self.browsers.get(self.client.make_url(path), cookies=cookies) as response:
            answer = await (response.json() if response.status == 200 else response.text())
            return response.status, answer, {name: morsel.value for name, morsel in response.cookies.items()}

    async def come(self, number: int) -> None:
        answers = await asyncio.gather(*(self.ask("/count") for _ in range(number)))
        self.cookies = [cookies["session"] for _, _, cookies in answers]

    async def newcomers(self) -> None:
        """See that everyone who has no session yet gets one."""
        answers = await asyncio.gather(*(self.ask("/count") for _ in range(30)))
        assert [(status, answer) for status, answer, _ in answers] == [(200, 1)] * 30

    def node_of(self, cookie: str) -> Memcached:
        return node_of(self.servers, self.storage, key_of_id(cookie))

    def of(self, node: Memcached) -> list[str]:
        return [cookie for cookie in self.cookies if self.node_of(cookie) is node]

    async def until_served(self, cookie: str) -> None:
        async def is_served() -> bool:
            return (await self.ask("/show", cookie))[0] == 200

        await until(is_served, "the node is back, and its sessions are not")


Visit = Callable[..., Awaitable[Visitors]]


@pytest.fixture
async def visit(servers3: Nodes, serve: Serve) -> AsyncIterator[Visit]:
    """Give a function that serves handlers over the three nodes to new visitors."""
    async with ClientSession(cookie_jar=DummyCookieJar()) as browsers:

        async def start(*handlers: Any, timeout: float, visitors: int) -> Visitors:
            storage = nodes_of(f"{servers3.url}?timeout={timeout}")
            visiting = Visitors(await serve(*handlers, storage=storage), browsers, servers3, storage)
            await visiting.come(visitors)
            return visiting

        yield start


@pytest.mark.parametrize("how", AWAY)
async def test_only_the_sessions_of_the_node_that_is_away_are_unavailable(
    servers3: Nodes, visit: Visit, how: str
) -> None:
    timeout = 4 * pace()
    visitors = await visit(count, show, timeout=timeout, visitors=60)
    away = servers3.nodes[0]
    victims = visitors.of(away)
    others = [cookie for cookie in visitors.cookies if cookie not in victims]
    assert victims
    assert {visitors.node_of(cookie) for cookie in others} == set(servers3.nodes[1:])
    await asyncio.to_thread(getattr(away, how))
    if how == "kill":  # what refuses is known at once; what hangs, when the first has waited for it
        await visitors.newcomers()
    async with ticking(timeout / 2):  # half of what a command that waits for the node would take
        failing = [asyncio.create_task(visitors.ask("/count", cookie)) for cookie in victims * 3]
        for turn in range(5):
            answers = await asyncio.gather(*(visitors.ask("/count", cookie) for cookie in others))
            assert [(status, answer) for status, answer, _ in answers] == [(200, turn + 2)] * len(others)
        # Five rounds of the others took less than one deadline of the node that hangs.
        assert how == "kill" or not any(task.done() for task in failing)
        for status, _, cookies in await asyncio.gather(*failing):
            assert (status, cookies) == (503, {})
    await visitors.newcomers()
    away.resume() if how == "pause" else await asyncio.to_thread(away.start)
    await visitors.until_served(victims[0])
    answers = await asyncio.gather(*(visitors.ask("/show", cookie) for cookie in visitors.cookies))
    assert {status for status, *_ in answers} == {200}
    for cookie, (_, session, _) in zip(visitors.cookies, answers, strict=True):
        if cookie in others:
            assert session == {"n": 6}
        elif how == "kill":
            assert session == {}
        else:
            assert session["n"] >= 1


@pytest.mark.parametrize("how", AWAY)
async def test_a_logout_that_a_node_could_not_hear_is_no_logout_and_the_next_one_holds(
    servers3: Nodes, visit: Visit, how: str
) -> None:
    loaded, go_on = asyncio.Event(), asyncio.Event()

    async def logout(request: web.Request) -> web.Response:
        session = await get_session(request)
        loaded.set()
        await go_on.wait()
        session.invalidate()
        return web.json_response(None)

    visitors = await visit(count, show, logout, timeout=1.0 * pace(), visitors=1)
    (cookie,) = visitors.cookies
    node = visitors.node_of(cookie)
    leaving = asyncio.create_task(visitors.ask("/logout", cookie))
    await loaded.wait()
    await asyncio.to_thread(getattr(node, how))
    go_on.set()
    status, _, cookies = await leaving
    assert (status, cookies) == (503, {})
    node.resume() if how == "pause" else await asyncio.to_thread(node.start)
    await visitors.until_served(cookie)
    status, _, _ = await visitors.ask("/logout", cookie)
    assert status == 200
    assert (await visitors.ask("/show", cookie))[1] == {}
    assert not any(holds(one, key_of_id(cookie)) for one in servers3.nodes)
