"""The server under the storage is stopped, killed, paused and started again while visitors ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from aiohttp_store import StorageUnavailable, get_session

from .conftest import STORAGES, Client, Serve
from .servers import SERVERS, Server

TIMEOUT = 0.8
LATEST = 2 * TIMEOUT + 3  # two budgets, and what a busy machine adds: told apart from a driver's own 5, 10 and 30 s
DURABLE = {"redis", "redis_cluster", "mongodb", "pymongo", "mysql"}


async def count(request: web.Request) -> web.Response:
    session = await get_session(request)
    session["n"] = session.get("n", 0) + 1
    return web.json_response(session["n"])


async def show(request: web.Request) -> web.Response:
    return web.json_response(dict(await get_session(request)))


async def untouched(request: web.Request) -> web.Response:
    return web.Response(text="untouched")


async def fallback(request: web.Request) -> web.Response:
    try:
        session = await get_session(request)
    except StorageUnavailable:
        return web.Response(text="an anonymous page")
    return web.json_response(dict(session))


HANDLERS = (count, show, untouched, fallback)


@pytest.fixture(params=[name for name, (server, _) in STORAGES.items() if server is not None])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(name: str, tmp_path: Path) -> Iterator[Server]:
    kind = STORAGES[name][0]
    assert kind is not None
    private = SERVERS[kind](tmp_path / kind)
    private.start()
    yield private
    private.kill()


def url_of(server: Server, name: str) -> str:
    return f"{STORAGES[name][1]}://{server.url.partition('://')[2]}?timeout={TIMEOUT}"


async def ask(client: Client, path: str) -> tuple[int, Any, float]:
    """Give the status, the headers and the seconds that an answer took."""
    started = time.monotonic()
    async with client.get(path) as response:
        await response.read()
        return response.status, response.headers, time.monotonic() - started


async def check_outage(client: Client) -> None:
    for path in ("/count", "/show"):
        status, headers, took = await ask(client, path)
        assert status == 503
        assert headers["Retry-After"] == "1"
        assert "Set-Cookie" not in headers
        assert took < LATEST
    assert (await ask(client, "/untouched"))[0] == 200
    async with client.get("/fallback") as response:
        assert await response.text() == "an anonymous page"
    assert len(client.session.cookie_jar) == 1


async def wait_for_service(client: Client, within: float) -> None:
    give_up = time.monotonic() + within
    while (await ask(client, "/show"))[0] != 200:
        assert time.monotonic() < give_up, "the server is back, and the service is not"
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("how", ["stop", "kill", "pause"])
async def test_a_server_that_is_away_is_a_503_within_the_deadline_and_service_returns(
    how: str, name: str, server: Server, serve: Serve
) -> None:
    client = await serve(*HANDLERS, storage=url_of(server, name))
    for _ in range(3):
        assert (await ask(client, "/count"))[0] == 200
    getattr(server, how)() if how == "pause" else await asyncio.to_thread(getattr(server, how))
    await check_outage(client)
    await asyncio.to_thread(server.resume if how == "pause" else server.start)
    await wait_for_service(client, LATEST)
    async with client.get("/show") as response:
        found = await response.json()
    assert found == ({"n": 3} if name in DURABLE or how == "pause" else {}) or (how == "pause" and found["n"] in (3, 4))


async def test_an_app_starts_while_its_server_is_down(name: str, server: Server, serve: Serve) -> None:
    server.stop()
    client = await serve(*HANDLERS, storage=url_of(server, name))
    status, headers, took = await ask(client, "/count")
    assert (status, headers["Retry-After"]) == (503, "1")
    assert took < LATEST
    assert (await ask(client, "/untouched"))[0] == 200
    await asyncio.to_thread(server.start)
    await wait_for_service(client, LATEST)
    assert (await ask(client, "/count"))[0] == 200


async def test_many_visitors_during_an_outage_are_all_answered(name: str, server: Server, serve: Serve) -> None:
    client = await serve(*HANDLERS, storage=url_of(server, name))
    assert (await ask(client, "/count"))[0] == 200
    server.pause()
    answers = await asyncio.gather(*(ask(client, "/count") for _ in range(100)))
    assert {status for status, _, _ in answers} == {503}
    assert max(took for _, _, took in answers) < LATEST
    server.resume()
    await wait_for_service(client, LATEST)
    answers = await asyncio.gather(*(ask(client, "/show") for _ in range(100)))
    assert {status for status, _, _ in answers} == {200}
