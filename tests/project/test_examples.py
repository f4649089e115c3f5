"""Each example runs as it stands, in a process of its own, and does what it says."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import runpy
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, CookieJar, web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request

import aiohttp_store
from aiohttp_store.testing import freeze, session_of, set_session, sign_in

from ..conftest import PATIENCE, Servers
from ..support.servers import free_port
from ..support.timing import AT_LAST

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def running(example: str, *arguments: str, folder: Path = ROOT) -> AsyncIterator[str]:
    """Run an example on a free port, and give the address that it prints."""
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-u",
            "-W",
            "error",
            str(ROOT / "examples" / example),
            *arguments,
            "--port",
            str(free_port()),
        ),
        stdout=asyncio.subprocess.PIPE,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        said = await asyncio.wait_for(process.stdout.readuntil(b"(Press"), AT_LAST)
        assert example != "demo.py" or b"Sessions are kept in " in said
        (address,) = re.findall(r"http://[0-9.:]+", said.decode())
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.wait(), AT_LAST)
        assert process.stdout is not None
        await process.stdout.read()


@asynccontextmanager
async def visitor() -> AsyncIterator[ClientSession]:
    async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as session:
        yield session


async def page(session: ClientSession, url: str, **form: str) -> str:
    async with session.post(url, data=form) if form else session.get(url) as response:
        assert response.status == 200, await response.text()
        return await response.text()


async def test_the_demo_counts_visits_logs_in_and_out_and_keeps_a_cart(storage_url: str) -> None:
    async with running("demo.py", storage_url) as address, visitor() as ann, visitor() as bob:
        assert '<strong id="visits">1</strong>' in await page(ann, address)
        assert "Hello, Ann &lt;3" in await page(ann, f"{address}/login", user="Ann <3")
        assert "<li>Tea: 1</li>" in await page(ann, f"{address}/cart", item="Tea")
        shown = await page(ann, f"{address}/cart", item="Tea")
        assert "<li>Tea: 2</li>" in shown
        assert '<strong id="visits">4</strong>' in shown
        assert "Not logged in" in await page(bob, address)
        shown = await page(ann, f"{address}/logout", ok="1")
        assert "Not logged in" in shown
        assert "nothing yet" in shown


async def test_two_tabs_that_add_to_the_demos_cart_at_the_same_time_lose_nothing() -> None:
    app = names_of("demo.py")["make_app"]("memory://")
    both_have_read = asyncio.Barrier(2)

    @web.middleware
    async def meet(request: web.Request, handler: Any) -> web.StreamResponse:
        await aiohttp_store.get_session(request)
        if request.path == "/cart":
            await both_have_read.wait()
        response: web.StreamResponse = await handler(request)
        return response

    app.middlewares.append(meet)
    async with TestClient(TestServer(app)) as client:
        await sign_in(client, {"user": "Ann"})

        async def add() -> None:
            async with client.post("/cart", data={"item": "Tea"}, allow_redirects=False) as response:
                assert response.status == 303

        await asyncio.gather(add(), add())
        assert (await session_of(client))["cart"] == {"Tea": 2}


@pytest.mark.parametrize("storage_name", ["memory", "sqlite", "redis"])
async def test_the_demo_keeps_a_visitor_over_a_restart_and_two_processes(storage_name: str, storage_url: str) -> None:
    async with visitor() as ann:
        async with running("demo.py", storage_url) as address:
            await page(ann, f"{address}/cart", item="Milk")
        async with running("demo.py", storage_url) as one, running("demo.py", storage_url) as other:
            kept = storage_name != "memory"
            assert ("<li>Milk: 1</li>" in await page(ann, one)) is kept
            assert ("<li>Milk: 2</li>" in await page(ann, f"{one}/cart", item="Milk")) is kept
            assert ("<li>Milk: 2</li>" in await page(ann, other)) is kept


async def test_a_login_outlives_a_restart_of_the_demo_that_make_serves(tmp_path: Path) -> None:
    (url,) = re.findall(r"^URL \?= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    async with visitor() as ann:
        async with running("demo.py", url, folder=tmp_path) as address:
            await page(ann, f"{address}/login", user="Ann")
        assert [file.name for file in tmp_path.iterdir()] == ["demo.db"]
        async with running("demo.py", folder=tmp_path) as address:
            assert "Hello, Ann" in await page(ann, address)


EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES)
async def test_an_example_that_cannot_start_says_why_in_plain_words(example: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for url, given, why in (
            ("rediz://localhost", "0", "unknown storage 'rediz://'; did you mean 'redis://'?"),
            (f"sqlite:///{tmp_path}/no/folder.db", "0", f"there is no folder {tmp_path}/no"),
            (f"sqlite:///{tmp_path}/a.db", port, "address already in use"),
        ):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-W", "error", str(ROOT / "examples" / example), url, "--port", given),
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            _, errors = await process.communicate()
            assert process.returncode == 2
            assert why in errors.decode()
            assert b"Traceback" not in errors


FORMS = {
    "cart.py": ("/add", "item"),
    "demo.py": ("/login", "user"),
    "flash.py": ("/order", "item"),
    "login.py": ("/login", "user"),
    "sse.py": ("/login", "name"),
    "two_apps.py": ("/login", "user"),
    "upload.py": ("/", "file"),
    "websocket_chat.py": ("/login", "name"),
}
URLENCODED, MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"
FIELD = b'--b\r\nContent-Disposition: form-data; name="NAME"'
UNREADABLE = {
    "not in UTF-8": (URLENCODED, b"NAME=\xff"),
    "an unknown encoding": (f"{URLENCODED}; charset=nonsense", b"NAME=a"),
    "a lone surrogate": (f"{URLENCODED}; charset=utf-7", b"NAME=+2AA-"),
    "no boundary": ("multipart/form-data", b"a"),
    "no end": (MULTIPART, FIELD + b"\r\n\r\na"),
    "an unknown transfer encoding": (
        MULTIPART,
        FIELD + b"\r\nContent-Transfer-Encoding: nonsense\r\n\r\na\r\n--b--\r\n",
    ),
    "a broken header": (MULTIPART, FIELD + b"\r\nnonsense\r\n\r\na\r\n--b--\r\n"),
}


@pytest.mark.parametrize("example", FORMS)
async def test_a_form_that_cannot_be_read_is_the_visitors_fault(example: str, caplog: pytest.LogCaptureFixture) -> None:
    path, name = FORMS[example]
    make_app = names_of(example)["make_app"]
    app = make_app("memory://", "memory://") if example == "two_apps.py" else make_app("memory://")
    async with TestClient(TestServer(app)) as client:
        for why, (content_type, body) in UNREADABLE.items():
            headers = {"Content-Type": content_type}
            async with client.post(path, data=body.replace(b"NAME", name.encode()), headers=headers) as response:
                expected = {400, 415} if example == "upload.py" else {400}
                if (example, why) == ("upload.py", "an unknown transfer encoding"):
                    expected = {200}  # the bytes are taken as they are
                assert response.status in expected, (why, await response.text())
                assert response.history or "Set-Cookie" not in response.headers
        assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
        headers = {"Content-Type": URLENCODED, "Content-Encoding": "gzip"}
        async with client.post(path, data=b"not compressed", headers=headers) as response:
            assert response.status in {400, 415}


@pytest.mark.parametrize("example", FORMS)
async def test_the_page_of_an_example_says_its_language_fits_a_phone_and_is_not_kept(example: str) -> None:
    names = names_of(example)
    app = names["make_app"]("memory://", "memory://") if example == "two_apps.py" else names["make_app"]("memory://")
    async with TestClient(TestServer(app)) as client:
        for _ in range(2):  # the first response may set a cookie, which is never kept
            async with client.get("/") as response:
                assert response.status == 200
                shown = await response.text()
                assert shown.startswith('<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<meta name="view')
                assert response.headers["Cache-Control"] == "no-store"


async def test_the_example_of_a_storage_counts_visits_over_a_restart(servers: Servers) -> None:
    url = f"{servers.url('postgresql')}?table=counted&timeout={PATIENCE}"
    async with visitor() as ann, visitor() as bob:
        for count in (1, 2):
            async with running("postgresql_storage.py", url) as address:
                assert await page(ann, address) == f"Your visits: {count}\n"
        async with running("postgresql_storage.py", url) as address:
            assert await page(bob, address) == "Your visits: 1\n"


@pytest.mark.parametrize("remember", [False, True])
async def test_the_login_example_knows_its_user_and_remembers_on_demand(remember: bool) -> None:
    async with running("login.py") as address, visitor() as ann:
        async with ann.get(f"{address}/account") as response:
            assert response.url.path == "/login"
        async with ann.post(f"{address}/login", data={"user": "ann", "password": "wrong"}) as response:
            assert response.status == 403
        form = {"user": "ann", "password": "correct horse"} | ({"remember": "on"} if remember else {})
        async with ann.post(f"{address}/login", data=form, allow_redirects=False) as response:
            assert response.status == 303
            assert ("Max-Age=2592000" in response.headers["Set-Cookie"]) is remember
        async with ann.get(address) as response:
            assert response.headers["Cache-Control"] == "no-store"
            assert "You are ann." in await response.text()
        async with ann.post(f"{address}/logout") as response:
            assert response.url.path == "/login"
        async with ann.get(f"{address}/account") as response:
            assert response.url.path == "/login"


def names_of(example: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / example))


async def test_the_demo_shows_a_visitor_what_the_session_holds_and_adds_to_it() -> None:
    async with TestClient(TestServer(names_of("demo.py")["make_app"]("memory://"))) as client:
        await sign_in(client, {"user": "Ann", "cart": {"Tea": 2}})
        async with client.post("/cart", data={"item": "Milk"}) as response:
            shown = await response.text()
        assert all(part in shown for part in ("Hello, Ann", "<li>Tea: 2</li>", "<li>Milk: 1</li>"))
        assert await session_of(client) == {"user": "Ann", "cart": {"Tea": 2, "Milk": 1}, "visits": 1}


@pytest.mark.parametrize(
    ("remember", "unused_for", "seen"),
    [
        ({}, timedelta(hours=1), 0),
        ({}, timedelta(minutes=59), 90 * 24 * 60 // 59),
        ({"remember": "on"}, timedelta(days=30), 0),
        ({"remember": "on"}, timedelta(days=29), 3),
    ],
)
async def test_the_login_example_ends_a_login_that_is_unused_or_90_days_old(
    remember: dict[str, str], unused_for: timedelta, seen: int
) -> None:
    app = names_of("login.py")["make_app"]("memory://")
    async with TestClient(TestServer(app)) as client:
        with freeze(app) as clock:
            async with client.post("/login", data={"user": "ann", "password": "correct horse", **remember}) as response:
                assert response.status == 200
            assert await session_of(client) == {"user": "ann"}
            for _ in range(seen):
                clock.advance(unused_for)
                async with client.get("/account") as response:
                    assert response.url.path == "/account"
            clock.advance(unused_for)
            async with client.get("/account") as response:
                assert response.url.path == "/login"


LOGINS = {
    "demo.py": {"user": "Ann <3"},
    "login.py": {"user": "ann", "password": "correct horse"},
    "sse.py": {"name": "Ann <3"},
    "two_apps.py": {"user": "Ann <3"},
    "websocket_chat.py": {"name": "Ann <3"},
}


@pytest.mark.parametrize("example", LOGINS)
async def test_each_login_gives_a_new_id_and_escapes_the_name(example: str) -> None:
    make_app = names_of(example)["make_app"]
    app = make_app("memory://", "memory://") if example == "two_apps.py" else make_app("memory://")
    ids = set()
    async with TestClient(TestServer(app)) as client:
        for _ in range(2):
            async with client.post("/login", data=LOGINS[example]) as response:
                assert ("Ann &lt;3" if example != "login.py" else "You are ann.") in await response.text()
            (cookie,) = client.session.cookie_jar
            ids.add(cookie.value)
    assert len(ids) == 2


async def test_the_login_example_knows_no_other_user_without_a_password() -> None:
    async with (
        TestClient(TestServer(names_of("login.py")["make_app"]("memory://"))) as client,
        client.post("/login", data={"user": "nobody"}) as response,
    ):
        assert response.status == 403


async def test_the_login_example_ends_the_session_at_the_logout() -> None:
    request = make_mocked_request("POST", "/logout")
    session = set_session(request, {"user": "ann"})
    with pytest.raises(web.HTTPSeeOther):
        await names_of("login.py")["logout"](request)
    assert session.was_invalidated
