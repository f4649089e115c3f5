"""What a real browser sends from other sites, and that the security page's set-up refuses it."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from aiohttp import web
from playwright.async_api import Browser, Page

from ..conftest import Servers
from ..support.browser import visitor
from ..support.pages import PAGES, python_of, redirected
from .test_browser_cookies import Shop, tls

__all__ = ["tls"]  # the fixture

pytestmark = pytest.mark.asyncio(loop_scope="module")

FETCH = """url => fetch(url, {method: "POST", mode: "no-cors", credentials: "include"}).then(() => "answered")"""
FORM = """url => {
    const form = document.createElement("form");
    form.method = "post";
    form.action = url;
    document.body.append(form);
    form.submit();
}"""
SOCKET = """url => new Promise(resolve => {
    const socket = new WebSocket(url);
    socket.onmessage = message => { socket.close(); resolve(message.data); };
    socket.onerror = () => resolve("refused");
})"""


class Watched(Shop):
    """An app with the middleware of the page, and what came through it."""

    def __init__(self, refuse_other_sites: Any) -> None:
        self.app = web.Application(middlewares=[refuse_other_sites])
        self.came: list[str] = []
        self.app.router.add_get("/page", self.page)
        self.app.router.add_post("/act", self.act)
        self.app.router.add_get("/socket", self.socket)

    async def act(self, request: web.Request) -> web.Response:
        self.came.append(request.query["by"])
        return web.Response(text="done")

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str("welcome")
        await socket.receive()
        return socket


async def sent(page: Page, shop: Watched, address: Any, scheme: str = "https") -> list[str]:
    """Send what a page can send to the shop, and return what was let in."""
    shop.came.clear()
    told = await page.evaluate(FETCH, address("shop.example", "/act", scheme, by="fetch"))
    assert told == "answered"
    url = address("shop.example", "/socket", scheme).replace("http", "ws", 1)
    if await page.evaluate(SOCKET, url) == "welcome":
        shop.came.append("socket")
    await page.evaluate(FORM, address("shop.example", "/act", scheme, by="form"))
    await page.wait_for_url("**/act?by=form")
    return shop.came


@pytest.mark.parametrize(
    ("site", "let_in"),
    [("shop.example", ["fetch", "socket", "form"]), ("www.shop.example", []), ("bank.example", [])],
    ids=["own", "sibling", "other"],
)
async def test_the_hardened_set_up_knows_its_own_pages_in_a_browser(
    site: str, let_in: list[str], browser: Browser, tls: ssl.SSLContext, servers: Servers
) -> None:
    made: dict[str, Any] = {}
    exec(redirected(python_of(PAGES["docs/security.rst"]), {"redis": servers.url("redis")}), made)
    shop = Watched(made["refuse_other_sites"])
    async with shop.served(tls) as address, visitor(browser) as ann:
        page = await ann.new_page()
        await page.goto(address(site, "/page", content="<p>hello"))
        assert await sent(page, shop, address) == let_in
        # Over http a browser sends no Sec-Fetch-Site, and Origin decides.
        await page.goto(address(site, "/page", "http", content="<p>hello"))
        assert await sent(page, shop, address, "http") == let_in
