"""The examples of what an app meets when it is deployed: large bodies, parts of their own, and a proxy before it."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import io
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientResponse, ClientSession, FormData, TCPConnector, WSMsgType, web
from yarl import URL

from aiohttp_store._engine.manager import StorageSessionManager
from aiohttp_store._lifecycle.middleware import RETRY_AFTER
from aiohttp_store._log import THROTTLE
from aiohttp_store.cookie import key_of_id
from aiohttp_store.storages.redis import RedisOptions

from ..conftest import Servers, new_url
from ..support.nginx import Nginx, browser
from ..support.proxy import Proxy
from ..support.servers import Redis, Server
from ..support.timing import AT_LAST, until, within
from .test_examples import ROOT, page, running, visitor

MEGABYTE = 1 << 20
HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="tea.pdf"\r\n\r\n'
TAIL = b"\r\n--b--\r\n"
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


async def send(session: ClientSession, address: str, size: int, name: str = "tea.pdf") -> ClientResponse:
    form = FormData(quote_fields=False)
    form.add_field("file", io.BytesIO(b"x" * size), filename=name)
    async with session.post(address, data=form, allow_redirects=False) as response:
        return response


def row(name: str, data: bytes) -> str:
    return f"<li>{name}: {len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}</li>"


async def test_a_large_upload_is_there_when_another_process_answers_the_redirected_request(servers: Servers) -> None:
    url = new_url(servers, "redis")
    async with running("upload.py", url) as one, running("upload.py", url) as other, visitor() as ann:
        for size, name in ((24 * MEGABYTE, "one.pdf"), (5, "<two>.pdf")):
            response = await send(ann, one, size, name)
            assert (response.status, response.headers["Location"]) == (303, "/")
            shown = await page(ann, other)
            assert row(name.replace("<", "&lt;").replace(">", "&gt;"), b"x" * size) in shown
        assert row("one.pdf", b"x" * 24 * MEGABYTE) in shown
        async with visitor() as bob:
            assert "nothing yet" in await page(bob, other)


async def test_an_upload_that_is_too_large_is_told_so_and_not_remembered() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield HEAD
        for _ in range(33):
            yield b"x" * MEGABYTE
        yield TAIL

    async with running("upload.py") as address, visitor() as ann:
        async with ann.post(address, data=body(), headers=FORM) as response:
            assert response.status == 413
        assert "nothing yet" in await page(ann, address)
        assert (await send(ann, address, 5)).status == 303


async def test_an_upload_that_says_it_will_be_too_large_is_refused_before_it_is_sent() -> None:
    async with running("upload.py") as address:
        reader, writer = await asyncio.open_connection("127.0.0.1", URL(address).port)
        writer.write(
            f"POST / HTTP/1.1\r\nHost: shop\r\nContent-Type: {FORM['Content-Type']}\r\n"
            f"Content-Length: {33 * MEGABYTE}\r\n\r\n".encode()
        )
        async with asyncio.timeout(AT_LAST):
            assert (await reader.readline()).startswith(b"HTTP/1.1 413")
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("multipart/form-data; boundary=b", b"abc", 400),
        ("multipart/form-data; boundary=b", HEAD + b"xxx", 400),
        ("multipart/form-data; boundary=b", HEAD.replace(b'"file"', b'"other"') + b"xxx" + TAIL, 400),
        ("application/octet-stream", b"abc", 415),
    ],
    ids=["no form", "no end", "another field", "another type"],
)
async def test_an_upload_that_is_malformed_is_refused(content_type: str, body: bytes, status: int) -> None:
    async with running("upload.py") as address, visitor() as ann:
        async with ann.post(address, data=body, headers={"Content-Type": content_type}) as response:
            assert response.status == status
        assert "nothing yet" in await page(ann, address)


@pytest.mark.parametrize(
    ("filename", "shown"),
    [(b"t\xe9.pdf", "t?.pdf"), (b"x" * 7000, "x" * 100), (b"<b>.pdf", "&lt;b&gt;.pdf")],
    ids=["no text", "long", "HTML"],
)
async def test_a_name_that_is_no_text_or_very_long_is_mended(filename: bytes, shown: str) -> None:
    async with running("upload.py") as address, visitor() as ann:
        body = HEAD.replace(b"tea.pdf", filename) + b"xxx" + TAIL
        async with ann.post(address, data=body, headers=FORM) as response:
            assert response.status == 200
            assert row(shown, b"xxx") in await response.text()


@asynccontextmanager
async def begun(
    session: ClientSession, address: str, proxy: Proxy, rest: asyncio.Event
) -> AsyncIterator[asyncio.Task[int]]:
    """Begin an upload, which goes on with `rest`, and wait until its request has loaded the session."""
    (cookie,) = session.cookie_jar
    key = key_of_id(cookie.value).encode()

    async def body() -> AsyncIterator[bytes]:
        yield HEAD + b"x" * MEGABYTE
        await rest.wait()
        yield b"x" * MEGABYTE + TAIL

    async def post() -> int:
        async with session.post(address, data=body(), headers=FORM, allow_redirects=False) as response:
            return response.status

    proxy.requests.clear()
    upload = asyncio.create_task(post())
    await until(lambda: any(key in request for request in proxy.requests))
    yield upload
    upload.cancel()
    await asyncio.gather(upload, return_exceptions=True)


@pytest.mark.parametrize("meanwhile", ["another upload", "a logout", "its end"])
async def test_what_happens_to_the_session_during_an_upload_counts(meanwhile: str, servers: Servers) -> None:
    url = new_url(servers, "redis")
    rest = asyncio.Event()
    async with Proxy(url) as proxy, visitor() as ann, running("upload.py", url) as other:
        async with running("upload.py", proxy.url) as one:
            await send(ann, other, 3, "first.pdf")
            async with begun(ann, one, proxy, rest) as upload:
                if meanwhile == "its end":
                    upload.cancel()
                    await asyncio.gather(upload, return_exceptions=True)
                elif meanwhile == "a logout":
                    await page(ann, f"{other}/logout", ok="1")
                    rest.set()
                    assert await upload == 403
                else:
                    await send(ann, other, 4, "second.pdf")
                    rest.set()
                    assert await upload == 303
        # The process that had the upload has ended, and so has all that it did.
        shown = await page(ann, other)
    listed = {
        "another upload": [row("first.pdf", b"xxx"), row("second.pdf", b"xxxx"), row("tea.pdf", b"x" * 2 * MEGABYTE)],
        "a logout": ["<li>nothing yet</li>"],
        "its end": [row("first.pdf", b"xxx")],
    }
    assert sorted(re.findall("<li>.*?</li>", shown)) == sorted(listed[meanwhile])


async def test_a_logout_of_one_part_leaves_the_other(servers: Servers) -> None:
    shop, admin = new_url(servers, "redis"), new_url(servers, "redis")
    redis = servers.own("redis")
    assert isinstance(redis, Redis)
    async with running("two_apps.py", shop, admin) as address, visitor() as ann:

        async def state() -> list[bool]:
            """Tell who takes her for logged in: the shop, its help pages, and the admin pages."""
            return ["Logged in as" in await page(ann, f"{address}/{part}") for part in ("", "help/", "admin/")]

        def stored() -> list[int]:
            return [len(redis.ask(f"KEYS {URL(url).query['prefix']}*")) for url in (shop, admin)]

        assert await state() == [False, False, False]
        await page(ann, f"{address}/login", user="ann")
        assert await state() == [True, True, False]
        await page(ann, f"{address}/admin/login", user="root")
        assert await state() == [True, True, True]
        assert stored() == [1, 1]
        sent = {(cookie.key, cookie["path"], cookie["samesite"]) for cookie in ann.cookie_jar}
        assert sent == {("shop", "/", "Lax"), ("admin", "/admin", "Strict")}
        assert set(ann.cookie_jar.filter_cookies(URL(address))) == {"shop"}
        await page(ann, f"{address}/logout", ok="1")
        assert await state() == [False, False, True]
        await page(ann, f"{address}/help/login", user="ann")
        assert await state() == [True, True, True]
        await page(ann, f"{address}/admin/logout", ok="1")
        assert await state() == [True, True, False]
        assert stored() == [1, 0]


class App(Server):
    """A process of examples/behind_proxy.py on a port that nginx knows."""

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder)
        self.storage_url = url

    def command(self) -> list[str]:
        app = [sys.executable, "-W", "error", str(ROOT / "examples/behind_proxy.py")]
        return ["env", f"PYTHONPATH={ROOT}", *app, self.storage_url, "--port", str(self.port)]


@pytest.fixture(scope="module")
def apps(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[App]]:
    folder, url = tmp_path_factory.mktemp("apps"), new_url(servers, "redis")
    apps = [App(folder / f"app{number}", url) for number in range(2)]
    try:
        for app in apps:
            app.start()
        yield apps
    finally:
        for app in apps:
            app.stop()


@pytest.fixture(scope="module")
def nginx(apps: list[App], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    nginx = Nginx(tmp_path_factory.mktemp("deployment") / "nginx", [app.port for app in apps])
    try:
        nginx.start()
        yield nginx
    finally:
        nginx.stop()


FORGED = [
    {},
    {"X-Forwarded-Proto": "http", "X-Forwarded-For": "9.9.9.9", "X-Forwarded-Host": "evil.example"},
    {"Forwarded": "for=9.9.9.9;proto=http;host=evil.example"},
]


@pytest.mark.parametrize("forged", FORGED)
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("POST", "/login")])
async def test_behind_nginx_the_cookie_is_secure_and_the_browser_cannot_lie(
    method: str, path: str, forged: dict[str, str], nginx: Nginx
) -> None:
    async with browser(nginx) as ann, ann.request(method, path, headers=forged, allow_redirects=False) as response:
        assert response.status < 400
        (cookie,) = response.headers.getall("Set-Cookie")
        assert re.fullmatch(r"__Host-session=[\w-]{43}; Path=/; Secure; HttpOnly; SameSite=Lax", cookie)
        assert response.headers["Cache-Control"] == "no-store"
        async with ann.get("/", headers=forged) as answer:
            assert answer.headers["Cache-Control"] == "no-store"
            told = await answer.json()
        assert told["scheme"] == "https"
        assert told["host"] == f"127.0.0.1:{nginx.port}"
        assert told["you"] == "127.0.0.1"


async def test_who_asks_the_app_directly_is_not_believed(servers: Servers) -> None:
    url = new_url(servers, "redis")
    forged = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "9.9.9.9"}
    async with (
        running("behind_proxy.py", url) as address,
        ClientSession(connector=TCPConnector(local_addr=("127.0.0.2", 0))) as stranger,
    ):
        for headers in ({}, forged):
            async with stranger.get(address, headers=headers) as response:
                assert response.status == 400
                assert "Set-Cookie" not in response.headers
        async with stranger.get(f"{address}/health", headers=forged) as response:
            assert response.status == 200


async def test_nginx_keeps_what_is_public_and_nothing_that_sets_a_cookie(nginx: Nginx) -> None:
    async with browser(nginx) as ann, browser(nginx) as bob:
        kept, seen = [], []
        for one in (ann, ann, bob):
            async with one.get("/about") as response:
                kept.append(response.headers["X-Cache"])
            async with one.get("/") as response:
                assert response.headers["X-Cache"] == "MISS"
                seen.append((await response.json())["visits"])
        assert kept[1:] == ["HIT", "HIT"]
        assert seen == [1, 2, 1]


async def test_a_websocket_and_events_pass_through_nginx(nginx: Nginx) -> None:
    async with browser(nginx) as ann:
        async with ann.post("/login") as response:
            assert response.status == 200
        async with ann.ws_connect("/ws") as socket:
            await socket.send_str("hello")
            assert await socket.receive_str() == "ann says hello"
        async with ann.get("/events") as response:
            with within(10):  # the next would come in 15 seconds
                assert await response.content.readline() == b"data: 1\n"
            assert response.connection is not None
            assert response.connection.transport is not None
            response.connection.transport.abort()  # nginx would close after the next event


async def test_an_app_behind_a_proxy_ends_although_streams_and_sockets_are_open(servers: Servers) -> None:
    """Else it would wait a minute for them, and `running` does not."""
    forwarded = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "shop.example"}
    async with ClientSession(headers=forwarded) as ann:
        async with running("behind_proxy.py", new_url(servers, "redis")) as address:
            stream = await ann.get(f"{address}/events")
            assert await stream.content.readline() == b"data: 0\n"
            socket = await ann.ws_connect(f"{address}/ws")
            await socket.send_str("hello")
            assert await socket.receive_str() == "somebody says hello"
        assert (await socket.receive()).type in {WSMsgType.CLOSE, WSMsgType.CLOSED}
        stream.close()
        await socket.close()


async def test_nginx_refuses_a_body_that_is_too_large(nginx: Nginx) -> None:
    too_large = io.BytesIO(b"x" * 33 * MEGABYTE)
    async with browser(nginx) as ann, ann.post("/login", data=too_large) as response:
        assert response.status == 413


async def test_a_process_that_is_killed_costs_no_visitor_a_session_or_an_error(apps: list[App], nginx: Nginx) -> None:
    visits, visitors = 40, 4

    async def visit() -> list[int]:
        counts = []
        async with browser(nginx) as one:
            for _ in range(visits):
                async with one.get("/") as response:
                    assert response.status == 200
                    counts.append((await response.json())["visits"])
                    first.set()
        return counts

    first = asyncio.Event()
    tasks = [asyncio.create_task(visit()) for _ in range(visitors)]
    await first.wait()
    killed, left = apps
    killed.kill()
    for counts in await asyncio.gather(*tasks):
        assert counts == sorted(set(counts))  # each visit is counted, and one whose answer was lost perhaps twice
        assert visits <= counts[-1] <= visits + 1
    assert left.process is not None
    killed.start()


def test_the_numbers_of_the_page_are_the_codes() -> None:
    page = " ".join((ROOT / "docs/deployment.rst").read_text().split())
    waiting = inspect.signature(web.run_app).parameters["shutdown_timeout"].default
    closing = re.findall(r"within (\w+) of its `timeout`", StorageSessionManager.close.__doc__ or "")
    for text in (
        f"Retry-After: {RETRY_AFTER}``",
        f"``shutdown_timeout`` at most ({waiting:g} seconds)",
        f"within {closing[0]} times its ``timeout``, {6 * RedisOptions().timeout:g} seconds with the default",
    ):
        assert text in page
    assert (THROTTLE, "is logged once a minute" in page) == (60, True)
