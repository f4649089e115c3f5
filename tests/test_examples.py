"""Each example runs as it stands, in a process of its own, and does what it says."""

from __future__ import annotations

import asyncio
import os
import re
import runpy
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, CookieJar, web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request

from aiohttp_store.testing import freeze, session_of, set_session, sign_in

from .conftest import PATIENCE, Servers

ROOT = Path(__file__).parent.parent


@asynccontextmanager
async def running(example: str, *arguments: str, folder: Path = ROOT) -> AsyncIterator[str]:
    """Run an example on a free port, and give the address that it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "-W", "error", str(ROOT / "examples" / example), *arguments, "--port", "0"),
        stdout=asyncio.subprocess.PIPE,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        said = await asyncio.wait_for(process.stdout.readuntil(b"(Press"), 20)
        assert example != "demo.py" or b"Sessions are kept in " in said
        (address,) = re.findall(r"http://[0-9.:]+", said.decode())
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.wait(), 20)
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


async def test_the_demo_refuses_a_wrong_url_with_a_plain_message() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "examples/demo.py"), "rediz://localhost"),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert b"unknown storage 'rediz://'; did you mean 'redis://'?" in errors
    assert b"Traceback" not in errors


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
        assert await page(ann, f"{address}/account") == '{"user": "ann"}'
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


async def test_the_login_example_ends_the_session_at_the_logout() -> None:
    request = make_mocked_request("POST", "/logout")
    session = set_session(request, {"user": "ann"})
    with pytest.raises(web.HTTPSeeOther):
        await names_of("login.py")["logout"](request)
    assert session.was_invalidated
