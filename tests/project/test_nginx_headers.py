"""The largest cookies that `cookie://` sends pass through the nginx of the examples, on the way out and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from aiohttp_store import Cookie, SessionTooLarge, get_session, setup
from aiohttp_store.cookie import MAX_SIZE

from ..conftest import AiohttpServer
from ..support.nginx import Nginx, browser

SECRET = "a secret of more than thirty-two bytes"
LARGEST = 2 * MAX_SIZE // 3
"""Bytes of padding that surely fit into a cookie; the tests find out how many more do."""


async def fill(request: web.Request) -> web.Response:
    """Make the session as large as a cookie holds, or as its length is told."""
    session = await get_session(request)
    if "length" in request.query:
        session["padding"] = "x" * int(request.query["length"])
        return web.Response()
    for length in range(LARGEST, MAX_SIZE):
        session["padding"] = "x" * length
        try:
            await session.save()
        except SessionTooLarge:
            break
    session["padding"] = "x" * (length - 1)
    return web.Response()


async def size(request: web.Request) -> web.Response:
    return web.json_response(len((await get_session(request)).get("padding", "")))


@web.middleware
async def filling_the_parents(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.path == "/below/fill":
        await fill(request)
    return await handler(request)


@pytest.fixture
async def nginx(aiohttp_server: AiohttpServer, tmp_path: Path) -> Any:
    """Start an nginx before an app, and before another below it that has sessions of its own."""
    app, below = web.Application(middlewares=[filling_the_parents]), web.Application()
    setup(app, "cookie://", secret=SECRET, cookie=Cookie(name="__Host-session"))
    setup(below, "cookie://", secret=SECRET, cookie=Cookie(name="__Host-below"))
    for one in (app, below):
        one.router.add_get("/fill", fill)
        one.router.add_get("/size", size)
    app.add_subapp("/below", below)
    server = await aiohttp_server(app)
    assert server.port is not None
    nginx = Nginx(tmp_path / "nginx", [server.port] * 2)
    nginx.start()
    yield nginx
    nginx.stop()


async def test_a_session_as_large_as_a_cookie_holds_passes_through_nginx(nginx: Nginx) -> None:
    async with browser(nginx) as ann:
        async with ann.get("/fill") as response:
            assert response.status == 200
            (cookie,) = response.headers.getall("Set-Cookie")
        assert MAX_SIZE - 2 <= len(cookie.partition(";")[0]) - len("=") <= MAX_SIZE
        async with ann.get("/size") as response:
            assert (response.status, await response.json()) == (200, pytest.approx(2980, abs=40))


async def test_two_large_sessions_of_one_response_pass_through_nginx(nginx: Nginx) -> None:
    async with browser(nginx) as ann:
        async with ann.get("/below/fill?length=2850") as response:
            assert response.status == 200
            cookies = [cookie.partition(";")[0] for cookie in response.headers.getall("Set-Cookie")]
        assert sum(map(len, cookies)) > 7800
        for path in ("/size", "/below/size"):
            async with ann.get(path) as response:
                assert (response.status, await response.json()) == (200, 2850)
