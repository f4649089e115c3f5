"""What `aiohttp_store.testing` gives to those who test their apps."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from http.cookies import Morsel
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import CookieJar, DummyCookieJar, TCPConnector, web
from aiohttp.abc import AbstractResolver
from aiohttp.test_utils import RawTestServer, TestClient, TestServer, make_mocked_request
from aiohttp.typedefs import StrOrURL
from yarl import URL

from aiohttp_store import Cookie, get_session, get_storage, new_session, setup, testing
from aiohttp_store._engine.manager import StorageSessionManager
from aiohttp_store._engine.state import SessionState
from aiohttp_store._lifecycle.request_state import MANAGER
from aiohttp_store.cookie import key_of_id
from aiohttp_store.testing import freeze, session_of, set_session, sign_in

from ..conftest import Client
from ..support.certificates import make_certificates
from ..support.pages import PAGES, ROOT, python_of
from ..support.timing import AT_LAST

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ANN = {"user": "ann", "cart": {"tea": [1, 2]}}


async def read(request: web.Request) -> web.Response:
    return web.json_response(dict(await get_session(request)))


async def write(request: web.Request) -> web.Response:
    session = await get_session(request)
    session["n"] = session.get("n", 0) + 1
    return web.json_response(dict(session))


async def login(request: web.Request) -> web.Response:
    (await get_session(request)).renew(login=True)
    return web.Response()


async def logout(request: web.Request) -> web.Response:
    (await get_session(request)).invalidate()
    return web.Response()


def make_app(**options: Any) -> web.Application:
    app = web.Application()
    for handler in (read, write, login, logout):
        app.router.add_get(f"/shop/{handler.__name__}", handler)
    if options:
        setup(app, **options)
    return app


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Client]:
    async with TestClient(TestServer(make_app(**options))) as client:
        yield client


class ThisMachine(AbstractResolver):
    """Finds every name here."""

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[Any]:
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}]

    async def close(self) -> None: ...


class NamedServer(TestServer):
    """Listens on this machine under another name, which aiohttp's own forgets before 3.13."""

    def __init__(self, app: web.Application, name: str) -> None:
        super().__init__(app)
        self.name = name

    def make_url(self, path: StrOrURL) -> URL:
        return super().make_url(path).with_host(self.name)


def client_of(host: str, app: web.Application) -> Client:
    return TestClient(NamedServer(app, host), connector=TCPConnector(resolver=ThisMachine()))


def app_of(client: Client) -> web.Application:
    assert client.app is not None
    return client.app


async def get(client: Client, path: str) -> Any:
    async with client.get(path) as response:
        assert response.status == 200, await response.text()
        return await response.json() if response.content_type == "application/json" else None


def cookies_of(client: Client) -> list[Morsel[str]]:
    """Return what the client's jar keeps; aiohttp before 3.14.4 also takes `Priority=High` for a cookie."""
    return [cookie for cookie in client.session.cookie_jar if cookie.key != "Priority"]


@pytest.mark.parametrize(
    "options",
    [
        {"storage": "memory://"},
        {"secret": "s" * 32},
        {"secret": ["new" * 12, "old" * 12]},
        {"storage": "cookie://", "secret": "s" * 32},
        {"cookie": Cookie(name="id", path="/shop")},
        {"cookie": Cookie(name="__Host-session")},
        {"cookie": Cookie(name="__Secure-session", path="/shop", persistent=True)},
        {"cookie": Cookie(secure=True, samesite="Strict")},
        {"cookie": Cookie(samesite="None", partitioned=True, priority="High")},
        {"cookie": Cookie(domain="example", secure=True)},
        {"cookie": Cookie(domain=".example", persistent=True)},
    ],
    ids=str,
)
@pytest.mark.parametrize("host", ["127.0.0.1", "shop.example"])
async def test_a_client_that_is_signed_in_is_that_visitor_until_the_logout(
    host: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    domain = options.get("cookie", Cookie()).domain
    async with client_of(host, make_app(**options)) as client:
        assert await session_of(client) == {}
        await sign_in(client, ANN)
        assert await session_of(client) == ANN
        assert await get(client, "/shop/read") == ANN
        await get(client, "/shop/login")
        for n in (1, 2):  # a persistent cookie is sent again, and then too
            assert await get(client, "/shop/write") == await session_of(client) == {**ANN, "n": n}
        (cookie,) = cookies_of(client)
        assert cookie["domain"] == ("example" if host.endswith(domain or "no domain") else host)
        await get(client, "/shop/logout")
        assert cookies_of(client) == []
        assert await session_of(client) == {}
        assert await get(client, "/shop/read") == {}
    assert host != "127.0.0.1" or "https" not in caplog.text


async def test_a_client_gets_over_https_what_the_app_sends_there(tmp_path: Path) -> None:
    folder = make_certificates(tmp_path)
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(folder / "server.both")
    server = TestServer(make_app(storage="memory://"))
    await server.start_server(ssl=server_side)
    client_side = ssl.create_default_context(cafile=folder / "ca.pem")
    async with TestClient(server, connector=TCPConnector(ssl=client_side)) as client:
        await sign_in(client, ANN)
        assert await get(client, "/shop/read") == ANN
        (cookie,) = client.session.cookie_jar
        assert cookie["secure"]


async def test_a_client_signs_in_to_every_storage(storage_url: str) -> None:
    async with serving(storage=storage_url) as client:
        await sign_in(client, ANN)
        assert await get(client, "/shop/write") == await session_of(client) == {**ANN, "n": 1}


async def test_signing_in_again_makes_another_visitor() -> None:
    async with serving(cookie=Cookie(domain="shop.example")) as client:
        for user in ("ann", "bob"):
            await sign_in(client, {"user": user})
            assert await get(client, "/shop/read") == {"user": user}


async def test_a_remembered_client_outlives_the_apps_idle_timeout() -> None:
    async with serving(idle_timeout=HOUR, cookie=Cookie(name="__Host-session")) as client:
        with freeze(app_of(client)) as clock:
            await sign_in(client, ANN, idle_timeout=30 * DAY)
            for n in (1, 2):
                clock.advance(29 * DAY)
                assert await get(client, "/shop/write") == {**ANN, "n": n}
            (cookie,) = client.session.cookie_jar
            assert cookie["max-age"] == str(30 * 86_400)


class OtherManager(StorageSessionManager):
    """Says what the browser must know as handlers do: aiohttp makes headers of it when it sends the response."""

    hosts: frozenset[str] = frozenset()

    def answer(self, request: web.BaseRequest, response: web.StreamResponse, state: SessionState) -> None:
        self.hosts |= {request.host}
        super().answer(request, response, state)
        for header in response.headers.popall("Set-Cookie", ()):
            name, _, value = header.partition(";")[0].partition("=")
            response.set_cookie(name, value)


async def test_any_manager_is_asked_as_by_the_clients_request_and_its_cookies_are_taken() -> None:
    app = make_app(cookie=Cookie(path="/shop"))
    manager: Any = app[MANAGER]
    manager.__class__ = OtherManager
    async with client_of("shop.example", app) as client:
        await sign_in(client, ANN)
        assert await get(client, "/shop/read") == ANN
        assert manager.hosts == {client.make_url("/").authority}


async def test_each_app_with_a_setup_of_its_own_has_its_own_visitor_and_one_clock() -> None:
    app, admin, help_pages = make_app(idle_timeout=HOUR), make_app(cookie=Cookie(name="admin")), make_app()
    app.add_subapp("/admin", admin)
    app.add_subapp("/help", help_pages)
    async with TestClient(TestServer(app)) as client:
        await sign_in(client, {"user": "ann"})
        await sign_in(client, {"user": "root"}, app=admin)
        assert await session_of(client) == {"user": "ann"}
        assert await session_of(client, app=admin) == {"user": "root"}
        seen = [await get(client, path) for path in ("/shop/read", "/admin/shop/read", "/help/shop/read")]
        assert seen == [{"user": "ann"}, {"user": "root"}, {"user": "ann"}]
        with freeze(app) as clock:
            clock.advance(HOUR)
            assert (await session_of(client), await session_of(client, app=admin)) == ({}, {"user": "root"})
            clock.advance(DAY)
            assert await session_of(client, app=admin) == {}


async def started(**options: Any) -> Client:
    client = TestClient(TestServer(make_app(**options)))
    await client.start_server()
    return client


async def closed() -> Client:
    client = await started(storage="memory://")
    await client.close()
    return client


async def not_started() -> Client:
    return TestClient(TestServer(make_app(storage="memory://")))


async def with_jar(jar: Any) -> Client:
    client = TestClient(TestServer(make_app(storage="memory://")), cookie_jar=jar())
    await client.start_server()
    return client


async def without_app() -> Any:
    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response()

    client: Any = TestClient(RawTestServer(answer))
    await client.start_server()
    return client


@pytest.mark.parametrize(
    ("make_client", "data", "error", "way_out"),
    [
        (not_started, ANN, RuntimeError, "is not running; use `async with TestClient"),
        (closed, ANN, RuntimeError, "is not running; use `async with TestClient"),
        (started, ANN, RuntimeError, "call aiohttp_store.setup(app, storage), or name the app"),
        (without_app, ANN, RuntimeError, "name the one that setup was called on: app=…"),
        (lambda: started(secret="s" * 32), {}, ValueError, "sign in with data, or use a client as it is"),
        (lambda: started(secret="s" * 32), {"at": timedelta(1)}, TypeError, "session['at'] is of type timedelta"),
        (lambda: with_jar(CookieJar), ANN, RuntimeError, "refuses 'session' from http://127.0.0.1:"),
        (lambda: with_jar(DummyCookieJar), ANN, RuntimeError, "or CookieJar(unsafe=True)"),
    ],
)
async def test_what_cannot_sign_in_is_told_the_way_out(
    make_client: Callable[[], Any], data: dict[str, Any], error: type[Exception], way_out: str
) -> None:
    client = await make_client()
    try:
        with pytest.raises(error, match=re.escape(way_out)):
            await sign_in(client, data)
        if error is RuntimeError and "refuses" not in way_out and "Jar" not in way_out:
            with pytest.raises(error, match=re.escape(way_out)):
                await session_of(client)
    finally:
        await client.close()


def test_an_app_without_sessions_has_no_clock_to_move() -> None:
    with pytest.raises(RuntimeError, match=re.escape("call aiohttp_store.setup(app, storage)")), freeze(make_app()):
        pass


# A session on a mocked request.


async def change_nested(request: web.Request) -> None:
    (await get_session(request))["cart"]["tea"].append(3)


async def change_and_save(request: web.Request) -> None:
    session = await get_session(request)
    session["n"] = 1
    await session.save()
    session["n"] = 2
    await session.reload()


async def renew_and_save(request: web.Request) -> None:
    session = await get_session(request)
    session.renew(login=True)
    await session.save()


async def count(request: web.Request) -> None:
    await (await get_session(request)).apply(lambda session: session.update(n=session.get("n", 0) + 1))


async def begin_anew(request: web.Request) -> None:
    (await new_session(request))["n"] = 3


CART_OF_THREE = {"user": "ann", "cart": {"tea": [1, 2, 3]}}


@pytest.mark.parametrize(
    ("handler", "found", "was"),
    [
        (read, ANN, set()),
        (write, {**ANN, "n": 1}, {"changed"}),
        (change_nested, CART_OF_THREE, {"changed"}),
        (change_and_save, {**ANN, "n": 1}, {"changed"}),
        (count, {**ANN, "n": 1}, {"changed"}),
        (login, ANN, {"renewed"}),
        (renew_and_save, ANN, {"renewed"}),
        (logout, {}, {"changed", "invalidated"}),
        (begin_anew, {}, {"changed", "invalidated"}),
    ],
)
async def test_a_handler_finds_the_preset_session_and_the_test_sees_what_became_of_it(
    handler: Any, found: dict[str, Any], was: set[str]
) -> None:
    tasks, data = asyncio.all_tasks(), {"user": "ann", "cart": {"tea": (1, 2)}}
    request = make_mocked_request("GET", "/")
    session = set_session(request, data)
    assert (session.new, session.identity is None, dict(session)) == (False, False, ANN)
    before = session.identity
    await handler(request)
    assert dict(session) == found
    assert (session.identity == before) is (handler not in (renew_and_save, logout, begin_anew))
    assert {one for one in ("changed", "renewed", "invalidated") if getattr(session, f"was_{one}")} == was
    assert data == {"user": "ann", "cart": {"tea": (1, 2)}}
    if left := asyncio.all_tasks() - tasks:
        assert not (await asyncio.wait(left, timeout=AT_LAST))[1]
    now = await get_session(request)
    assert dict(now) == ({"n": 3} if handler is begin_anew else found)


async def test_a_mocked_request_is_of_a_new_visitor_where_nothing_is_preset() -> None:
    request = make_mocked_request("GET", "/")
    session = set_session(request)
    assert (session.new, session.identity, dict(session), session.was_changed) == (True, None, {}, False)
    await write(request)
    assert (dict(session), session.was_changed) == ({"n": 1}, True)
    await session.save()
    assert session.identity is not None


def test_a_session_is_preset_without_an_event_loop_and_holds_json() -> None:
    request = make_mocked_request("GET", "/")
    assert dict(set_session(request, ANN)) == ANN
    with pytest.raises(TypeError, match=re.escape("session['cart'][0] is of type set")):
        set_session(request, {"cart": [set()]})


# The clock.


async def stored(client: Client) -> bool:
    (cookie,) = client.session.cookie_jar
    return (await get_storage(app_of(client)).load([key_of_id(cookie.value)]))[0] is not None


async def test_the_clock_ends_sessions_and_their_records_without_waiting() -> None:
    async with serving(idle_timeout=HOUR, lifetime=DAY) as client:
        await sign_in(client, ANN)
        with freeze(app_of(client)) as clock:
            began = clock.now
            assert abs(time.time() - began) < 1000
            for _ in range(25):
                clock.advance(0.95 * 3600)
                assert await get(client, "/shop/read") == ANN
            clock.advance(HOUR)
            assert await session_of(client) == {}
            assert not await stored(client)
            await sign_in(client, ANN)
            clock.advance(HOUR - timedelta(seconds=1))
            assert await session_of(client) == ANN
            clock.advance(1)
            assert (await session_of(client), await stored(client)) == ({}, False)
            assert clock.now == pytest.approx(began + 25 * 0.95 * 3600 + 7200)


async def test_the_clock_goes_on_after_its_block_and_a_clock_within_another_from_there() -> None:
    async with serving(idle_timeout=HOUR) as client:
        app = app_of(client)
        await sign_in(client, ANN)
        with freeze(app) as clock:
            clock.advance(HOUR)
            with freeze(app) as inner:
                assert inner.now == clock.now
                assert (await session_of(client), await stored(client)) == ({}, False)
        assert (await session_of(client), await stored(client)) == (ANN, True)
        assert cast("Any", app[MANAGER]).lifetimes.clock is time.time


async def test_a_servers_record_outlives_the_session_that_the_clock_has_ended(storage_url: str) -> None:
    async with serving(storage=storage_url, idle_timeout=HOUR) as client:
        app = app_of(client)
        with freeze(app) as clock:
            await sign_in(client, ANN)
            clock.advance(HOUR)
            assert await get(client, "/shop/read") == {}
            assert await stored(client) is not hasattr(get_storage(app), "clock")


@pytest.mark.parametrize("duration", [0, -1])
def test_a_clock_does_not_go_back(duration: float) -> None:
    with freeze(make_app(idle_timeout=HOUR)) as clock, pytest.raises(ValueError, match="above 0"):
        clock.advance(duration)


# The package, and its page.


def test_an_app_does_not_import_testing_and_testing_does_not_import_pytest() -> None:
    program = """
import sys, aiohttp_store
assert "aiohttp_store.testing" not in sys.modules and "unittest" not in sys.modules
import aiohttp_store.testing
assert "pytest" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, cwd=ROOT)


def test_the_pages_name_everything() -> None:
    used, page = python_of(PAGES["docs/testing.rst"]), PAGES["docs/testing.rst"].read_text()
    assert [name for name in testing.__all__ if name not in (used if name.islower() else page)] == []


def test_the_examples_of_the_page_on_types_are_among_what_mypy_checks() -> None:
    checked = (ROOT / "tests/project/typing_checks.py").read_text()
    imports, *examples = re.split(r"\n{3,}", python_of(PAGES["docs/typing.rst"]).strip())
    assert imports.startswith("from ")
    assert len(examples) > 4
    assert [one for one in examples if re.sub(r"  # .*", "", one) not in re.sub(r"  # .*", "", checked)] == []
