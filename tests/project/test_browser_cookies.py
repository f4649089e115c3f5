"""What a real browser does with each kind of cookie, over TLS and between sites."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from playwright.async_api import Browser, Page, expect
from yarl import URL

import aiohttp_store
from aiohttp_store import Cookie

from ..support.browser import started_on, visitor
from ..support.certificates import make_certificates

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "a secret that is long enough for a test"
STORAGES = ["memory://", "cookie://"]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    names = [f"{name}.example" for name in ("shop", "*.shop", "bank", "news")]
    folder = make_certificates(tmp_path_factory.mktemp("tls"), *names)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    return context


class Shop:
    """An app whose cookie is under test, and what it saw of its visitors."""

    def __init__(self, cookie: Cookie, storage: str = "memory://") -> None:
        self.seen: dict[str, str] = {}
        self.app = web.Application()
        for handler in (self.see, self.login, self.logout, self.fill):
            self.app.router.add_route("*", f"/shop/{handler.__name__}", handler)
        self.app.router.add_get("/page", self.page)
        aiohttp_store.setup(self.app, storage, cookie=cookie, secret=SECRET)

    async def see(self, request: web.Request) -> web.Response:
        """Note under `?by=` who asked."""
        session = await aiohttp_store.get_session(request)
        self.seen[request.query.get("by", "")] = user = session.get("user", "nobody")
        return web.Response(text=user)

    async def login(self, request: web.Request) -> web.Response:
        session = await aiohttp_store.get_session(request)
        session.renew(login=True)
        session["user"] = request.query["user"]
        return web.Response(text="welcome")

    async def logout(self, request: web.Request) -> web.Response:
        (await aiohttp_store.get_session(request)).invalidate()
        return web.Response(text="goodbye")

    async def fill(self, request: web.Request) -> web.Response:
        session = await aiohttp_store.get_session(request)
        session["filled"] = "x" * int(request.query["size"])
        return web.Response(text="filled")

    async def page(self, request: web.Request) -> web.Response:
        """Serve a page of any site, with the content that the test wants."""
        return web.Response(text=request.query["content"], content_type="text/html")

    @asynccontextmanager
    async def served(self, tls: ssl.SSLContext) -> AsyncIterator[Callable[..., str]]:
        """Serve over http and https, under every name; give what makes addresses."""
        runner = web.AppRunner(self.app)
        await runner.setup()
        for context in (None, tls):
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        ports = dict(zip(("http", "https"), [port for _, port in runner.addresses], strict=True))

        def address(host: str, path: str, scheme: str = "https", **query: str) -> str:
            return str(URL.build(scheme=scheme, host=host, port=ports[scheme], path=path, query=query))

        try:
            yield address
        finally:
            await runner.cleanup()


async def text_of(page: Page, address: str) -> str:
    await page.goto(address)
    return await page.inner_text("body")


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {"name": "session", "domain": "shop.example", "path": "/", "sameSite": "Lax", "secure": True}),
    "__Host-": ({"name": "__Host-session"}, {"name": "__Host-session", "domain": "shop.example"}),
    "__Secure-": (
        {"name": "__Secure-session", "domain": "shop.example"},
        {"name": "__Secure-session", "domain": ".shop.example"},
    ),
    "Strict": ({"samesite": "Strict"}, {"sameSite": "Strict"}),
    "None": ({"samesite": "None"}, {"sameSite": "None", "secure": True}),
    "Partitioned": (
        {"samesite": "None", "partitioned": True},
        {"sameSite": "None", "partitionKey": "https://shop.example"},
    ),
    "path": ({"path": "/shop"}, {"path": "/shop"}),
    "persistent": ({"persistent": True, "priority": "High"}, {}),
    "visible": ({"httponly": False}, {"httpOnly": False}),
}


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_of_cookie_is_kept_sent_and_removed(
    browser: Browser, tls: ssl.SSLContext, kind: str, storage: str
) -> None:
    options, expected = KINDS[kind]
    shop = Shop(Cookie(**options), storage)
    async with shop.served(tls) as address, visitor(browser) as ann:
        page = await ann.new_page()
        await page.goto(address("shop.example", "/shop/login", user="ann"))
        (cookie,) = await ann.cookies()
        assert cookie.items() >= ({"secure": True, "httpOnly": True} | expected).items()
        assert await text_of(page, address("shop.example", "/shop/see")) == "ann"
        await page.goto(address("shop.example", "/shop/logout"))
        assert await ann.cookies() == []


async def test_a_secure_cookie_is_neither_sent_nor_replaced_over_http(browser: Browser, tls: ssl.SSLContext) -> None:
    shop = Shop(Cookie())
    async with shop.served(tls) as address, visitor(browser) as ann:
        page = await ann.new_page()
        await page.goto(address("shop.example", "/shop/login", user="ann"))
        kept = await ann.cookies()
        assert await text_of(page, address("shop.example", "/shop/see", "http")) == "nobody"
        await page.goto(address("shop.example", "/shop/login", "http", user="eve"))
        assert await ann.cookies() == kept
        assert await text_of(page, address("shop.example", "/shop/see")) == "ann"


@pytest.mark.parametrize(
    ("options", "seen"),
    [({}, "nobody"), ({"name": "__Host-session"}, "nobody"), ({"domain": "shop.example"}, "ann")],
    ids=["default", "__Host-", "domain"],
)
async def test_a_cookie_goes_to_subdomains_where_it_has_a_domain(
    browser: Browser, tls: ssl.SSLContext, options: dict[str, Any], seen: str
) -> None:
    async with Shop(Cookie(**options)).served(tls) as address, visitor(browser) as ann:
        page = await ann.new_page()
        await page.goto(address("shop.example", "/shop/login", user="ann"))
        assert await text_of(page, address("www.shop.example", "/shop/see")) == seen
        assert await text_of(page, address("shop.example", "/shop/see")) == "ann"


@pytest.mark.parametrize(("name", "seen"), [("session", "nobody"), ("__Host-session", "ann")])
async def test_a_sibling_can_disturb_a_session_and_a_host_name_prevents_it(
    browser: Browser, tls: ssl.SSLContext, name: str, seen: str
) -> None:
    shop = Shop(Cookie(name=name))

    async def toss(request: web.Request) -> web.Response:
        """Give every visitor the session that eve has at the shop."""
        domain = "; Domain=shop.example" if "domain" in request.query else ""
        tossed = f"{name}={request.query['value']}{domain}; Path=/; Secure"
        return web.Response(text="tossed", headers={"Set-Cookie": tossed})

    shop.app.router.add_get("/toss", toss)
    async with shop.served(tls) as address, visitor(browser) as eve, visitor(browser) as ann:
        page = await eve.new_page()
        await page.goto(address("shop.example", "/shop/login", user="eve"))
        (tossed,) = await eve.cookies()
        page = await ann.new_page()
        await page.goto(address("shop.example", "/shop/login", user="ann"))
        for how in ({}, {"domain": "yes"}):
            await page.goto(address("eve.shop.example", "/toss", value=tossed["value"], **how))
        assert await text_of(page, address("shop.example", "/shop/see")) == seen


WAYS = {"link", "form", "frame", "fetch"}


@pytest.mark.parametrize(
    ("samesite", "blocks_embedded", "carried"),
    [
        ("Strict", False, set()),
        ("Lax", False, {"link"}),
        ("None", False, WAYS),
        ("None", True, {"link", "form"}),
        (None, False, {"link", "form"}),  # as Lax, apart from forms in the cookie's first two minutes
    ],
)
async def test_requests_from_another_site_carry_the_session_as_samesite_says(
    tls: ssl.SSLContext, tmp_path: Path, samesite: Any, blocks_embedded: bool, carried: set[str]
) -> None:
    settings = tmp_path / "Default/Preferences"
    settings.parent.mkdir()
    settings.write_text(json.dumps({"profile": {"cookie_controls_mode": int(blocks_embedded)}}))
    shop = Shop(Cookie(samesite=samesite))
    async with shop.served(tls) as address, started_on(tmp_path) as ann:
        see = {way: address("shop.example", "/shop/see", by=way) for way in WAYS}
        content = f"""<a href="{see["link"]}">go</a><iframe src="{see["frame"]}"></iframe>
            <form method="post" action="{see["form"]}"><button>send</button></form>"""
        page = await ann.new_page()
        await page.goto(address("shop.example", "/shop/login", user="ann"))
        for role in ("link", "button"):
            await page.goto(address("bank.example", "/page", content=content))
            await expect(page.frame_locator("iframe").locator("body")).not_to_be_empty()
            await page.evaluate("url => fetch(url, {mode: 'no-cors', credentials: 'include'})", see["fetch"])
            await page.get_by_role(role).click()
            await page.wait_for_url("**/see?*")
        assert shop.seen == {way: "ann" if way in carried else "nobody" for way in WAYS}
        assert await text_of(page, address("shop.example", "/shop/see")) == "ann"


async def test_a_partitioned_cookie_is_one_for_each_site_that_embeds(browser: Browser, tls: ssl.SSLContext) -> None:
    shop = Shop(Cookie(samesite="None", partitioned=True))
    async with shop.served(tls) as address, visitor(browser) as ann:
        page = await ann.new_page()

        async def embedded(site: str, path: str, **query: str) -> str:
            inner = address("shop.example", path, **query)
            await page.goto(address(site, "/page", content=f'<iframe src="{inner}"></iframe>'))
            body = page.frame_locator("iframe").locator("body")
            await expect(body).not_to_be_empty()
            return await body.inner_text()

        for site, user in (("bank.example", "ann"), ("news.example", "bob")):
            assert await embedded(site, "/shop/see") == "nobody"
            await embedded(site, "/shop/login", user=user)
        assert await embedded("bank.example", "/shop/see") == "ann"
        assert await embedded("news.example", "/shop/see") == "bob"
        assert await text_of(page, address("shop.example", "/shop/see")) == "nobody"
        assert {one["partitionKey"] for one in await ann.cookies()} == {"https://bank.example", "https://news.example"}
        await embedded("bank.example", "/shop/logout")
        (left,) = await ann.cookies()
        assert left["partitionKey"] == "https://news.example"
        assert await embedded("news.example", "/shop/see") == "bob"


async def test_the_largest_cookie_that_is_sent_is_kept_and_a_larger_one_is_an_error(
    browser: Browser, tls: ssl.SSLContext
) -> None:
    async with Shop(Cookie(), "cookie://").served(tls) as address, visitor(browser) as ann:
        page = await ann.new_page()
        await page.goto(address("shop.example", "/shop/login", user="ann"))
        fits, too_large = 0, 4096
        while too_large - fits > 1:
            size = (fits + too_large) // 2
            response = await page.goto(address("shop.example", "/shop/fill", size=str(size)))
            assert response is not None
            if response.status == 200:
                fits = size
            else:
                assert response.status == 500
                too_large = size
            (cookie,) = await ann.cookies()
        assert 4093 <= len(cookie["name"]) + len(cookie["value"]) <= 4096
        assert await text_of(page, address("shop.example", "/shop/see")) == "ann"


@pytest.mark.parametrize("name", ["session", "__Host-session"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_secure_cookie_works_on_plain_http_to_this_machine(
    browser: Browser, tls: ssl.SSLContext, host: str, name: str
) -> None:
    async with Shop(Cookie(name=name, secure=True)).served(tls) as address, visitor(browser) as ann:
        page = await ann.new_page()
        await page.goto(address(host, "/shop/login", "http", user="ann"))
        assert [cookie["secure"] for cookie in await ann.cookies()] == [True]
        assert await text_of(page, address(host, "/shop/see", "http")) == "ann"
