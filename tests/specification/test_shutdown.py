"""How an app ends: what was under way is stored, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import ClientError, ClientSession, DummyCookieJar, web

from aiohttp_store import open_storage, setup
from aiohttp_store.cookie import key_of_id

from ..conftest import ONE_SERVER, SERVED, STORAGES, Servers, new_url
from ..support.app import ENDING, ENDS_WITHIN, AppProcess
from ..support.one_key import data_of
from ..support.proxy import Proxy
from ..support.remote import Remote
from ..support.servers import SERVERS, Server
from ..support.timing import pace, until, within

VISITORS = 8
SIGNALS = [signal.SIGTERM, signal.SIGINT]


@contextlib.contextmanager
def app_process(url: str, shutdown_timeout: float = 10) -> Iterator[AppProcess]:
    process = AppProcess(url, shutdown_timeout=shutdown_timeout)
    try:
        yield process
    finally:
        process.end(signal.SIGKILL)


@pytest.fixture
async def client() -> AsyncIterator[ClientSession]:
    async with ClientSession(cookie_jar=DummyCookieJar()) as session:
        yield session


async def act(client: ClientSession, address: str, query: str = "", cookie: str = "", **data: object) -> str:
    """Give the cookie that was set, if any."""
    async with client.post(f"{address}/act?{query}", json=data, headers={"Cookie": cookie}) as response:
        assert response.status == 200
        return response.headers.get("Set-Cookie", "").partition(";")[0]


async def late_requests(client: ClientSession, address: str) -> tuple[list[str], list[asyncio.Task[str]]]:
    """Begin requests of several visitors, which go no further than loading their sessions; give their keys as well."""
    cookies = [await act(client, address, user=number) for number in range(VISITORS)]
    all_hold = asyncio.Event()

    async def hold(cookie: str) -> str:
        while True:
            try:
                return await act(client, address, "hold", cookie, cart="tea")
            except AssertionError:  # a busy machine has not loaded the session in its short budget
                if all_hold.is_set():
                    raise

    tasks = [asyncio.create_task(hold(cookie)) for cookie in cookies]
    async with client.get(f"{address}/wait?for={VISITORS}") as response:
        assert response.status == 200
    all_hold.set()
    return [key_of_id(cookie.partition("=")[2], "session") for cookie in cookies], tasks


async def let_go(client: ClientSession, address: str) -> None:
    async with client.post(f"{address}/open"):
        pass


async def ends_clean(process: AppProcess, seconds: float) -> None:
    with within(seconds):
        code, errors = await asyncio.to_thread(process.wait, ENDS_WITHIN)
    assert errors == ""
    assert code == 0


@pytest.mark.parametrize("how", SIGNALS, ids=lambda how: how.name)
@pytest.mark.parametrize("name", STORAGES)
async def test_an_idle_app_ends_at_once_and_leaves_nothing(
    name: str, how: signal.Signals, servers: Servers, client: ClientSession
) -> None:
    with app_process(new_url(servers, name)) as process:
        await act(client, process.address(), user="ann")
        process.send(how)
        await ends_clean(process, 6)


@pytest.mark.parametrize("name", STORAGES)
async def test_an_app_that_was_not_used_leaves_nothing(name: str, servers: Servers) -> None:
    with app_process(new_url(servers, name)) as process:
        assert process.address()
        process.send(signal.SIGTERM)
        await ends_clean(process, 6)


@pytest.mark.parametrize(("how", "shutdown_timeout"), [(signal.SIGTERM, 10), (signal.SIGINT, 0.1)])
@pytest.mark.parametrize("name", ONE_SERVER)
async def test_saves_under_way_are_finished_first_also_where_their_requests_are_cancelled(
    name: str, how: signal.Signals, shutdown_timeout: float, servers: Servers, client: ClientSession
) -> None:
    url = new_url(servers, name)
    async with Proxy(url) as proxy:
        with app_process(proxy.url, shutdown_timeout) as process:
            address = await asyncio.to_thread(process.address)
            keys, late = await late_requests(client, address)
            names = {name for key in keys for name in (key.encode(), key.encode().hex().encode())}
            proxy.requests.clear()
            proxy.asking.clear()
            await let_go(client, address)
            await until(lambda: any(name in request for request in proxy.requests for name in names))
            process.send(how)
            await asyncio.to_thread(process.says, ENDING)
            await asyncio.sleep(3 * 0.1)  # cancelled by now, or still waiting
            assert process.is_running()
            proxy.asking.set()
            await ends_clean(process, 8)
            answers = await asyncio.gather(*late, return_exceptions=True)
            assert {isinstance(answer, ClientError) for answer in answers} == {shutdown_timeout < 1}
    async with open_storage(url) as storage:
        assert all([b"tea" in (await data_of(storage, key) or b"") for key in keys])


@pytest.fixture(params=SERVED)
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


@pytest.mark.parametrize(("how", "shutdown_timeout"), [("kill", 10), ("pause", 10), ("pause", 0.1)])
async def test_an_app_ends_in_time_while_its_server_is_away(
    name: str, how: str, shutdown_timeout: float, server: Server, client: ClientSession
) -> None:
    timeout = 0.5 * pace()
    url = f"{STORAGES[name][1]}://{server.url.partition('://')[2]}?timeout={timeout}"
    with app_process(url, shutdown_timeout) as process:
        address = await asyncio.to_thread(process.address)
        _, late = await late_requests(client, address)
        await asyncio.to_thread(getattr(server, how))
        await let_go(client, address)
        process.send(signal.SIGTERM)
        # Two budgets for a request that is under way, then what the docstring of Manager.close says.
        await ends_clean(process, (2 + 6) * timeout + 4)
        await asyncio.gather(*late, return_exceptions=True)


class Stuck(Remote):
    timeout = 0.3

    async def close(self) -> None:
        await asyncio.Event().wait()


async def test_a_storage_that_does_not_close_is_left_and_told(caplog: pytest.LogCaptureFixture) -> None:
    app = web.Application()
    setup(app, Stuck())
    runner = web.AppRunner(app)
    await runner.setup()
    with within(3 * Stuck.timeout + 5):
        await runner.cleanup()
    assert "did not close within 0.9 s" in caplog.text
