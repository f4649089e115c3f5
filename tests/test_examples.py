"""Each example runs as it stands, in a process of its own, and does what it says."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientSession, CookieJar

from .conftest import PATIENCE, Servers

ROOT = Path(__file__).parent.parent


@asynccontextmanager
async def running(example: str, *arguments: str) -> AsyncIterator[str]:
    """Run an example on a free port, and give the address that it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "-W", "error", str(ROOT / "examples" / example), *arguments, "--port", "0"),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 20)
        (address,) = re.findall(r"http://[0-9.:]+", line.decode())
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
