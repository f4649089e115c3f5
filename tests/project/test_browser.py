"""A visitor's life in a real browser: login, reload, restart, logout, back button, tabs, scripts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, BrowserContext, Page, expect

import aiohttp_store
from aiohttp_store import Session

from ..support.browser import add, log_in, started_on, visitor
from .test_examples import running

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(params=["sqlite", "redis"])
def storage_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(loop_scope="module")
async def demo(storage_url: str) -> AsyncIterator[str]:
    async with running("demo.py", storage_url) as address:
        yield address


async def opened(context: BrowserContext, address: str) -> Page:
    page = await context.new_page()
    await page.goto(address)
    return page


async def log_out(page: Page) -> None:
    await page.get_by_role("button", name="Log out").click()
    await expect_nobody(page)


async def expect_nobody(page: Page) -> None:
    await expect(page.get_by_role("heading", name="Not logged in")).to_be_visible()
    await expect(page.get_by_text("Hello")).to_have_count(0)


async def test_a_visitor_logs_in_reloads_and_logs_out(browser: Browser, demo: str) -> None:
    async with visitor(browser) as ann:
        page = await opened(ann, demo)
        await expect(page.locator("#visits")).to_have_text("1")
        (first,) = await ann.cookies()
        await log_in(page, "Ann")
        (at_login,) = await ann.cookies()
        await add(page, "Tea", 2)
        await page.reload()
        await expect(page.get_by_role("heading", name="Hello, Ann")).to_be_visible()
        await expect(page.get_by_role("listitem")).to_have_text("Tea: 2")
        await expect(page.locator("#visits")).to_have_text("5")
        assert await ann.cookies() == [at_login]
        await log_out(page)
        await expect(page.get_by_role("listitem")).to_have_text("nothing yet")
        (last,) = await ann.cookies()
        assert len({first["value"], at_login["value"], last["value"]}) == 3
        for ended in (first, at_login):
            await ann.add_cookies([{"name": "session", "value": ended["value"], "url": demo}])
            await page.reload()
            await expect_nobody(page)
            await expect(page.locator("#visits")).to_have_text("1")


async def test_the_back_button_shows_nobody_after_the_logout(browser: Browser, demo: str) -> None:
    async with visitor(browser) as ann:
        page, other = await opened(ann, demo), await ann.new_page()
        await log_in(page, "Ann")
        await page.goto("about:blank")
        await other.goto(demo)
        await log_out(other)
        for tab in (page, other):
            # The browser may keep the whole page in memory, and then takes it out without loading anything.
            await tab.go_back(wait_until="commit")
            await expect_nobody(tab)


async def test_two_tabs_have_one_session_and_a_logout_in_one_ends_both(browser: Browser, demo: str) -> None:
    async with visitor(browser) as ann:
        one, other = await opened(ann, demo), await opened(ann, demo)
        await log_in(one, "Ann")
        await expect_nobody(other)
        await other.reload()
        await expect(other.get_by_role("heading", name="Hello, Ann")).to_be_visible()
        await log_out(other)
        await expect(one.get_by_role("heading", name="Hello, Ann")).to_be_visible()
        await one.get_by_role("button", name="Add Tea").click()
        await expect(one.get_by_role("listitem")).to_have_text("Tea: 1")
        await expect_nobody(one)


async def test_no_script_sees_or_replaces_the_cookie(browser: Browser, demo: str) -> None:
    async with visitor(browser) as ann:
        page = await opened(ann, demo)
        await log_in(page, "Ann")
        assert await page.evaluate("document.cookie") == ""
        assert await page.evaluate("cookieStore.getAll()") == []
        kept = await ann.cookies()
        await page.evaluate("document.cookie = 'session=mine; Path=/'")
        assert await ann.cookies() == kept
        await page.reload()
        await expect(page.get_by_role("heading", name="Hello, Ann")).to_be_visible()


@pytest.mark.parametrize(
    ("remember", "kept_for"), [(False, None), (True, timedelta(days=30))], ids=["session", "persistent"]
)
async def test_a_restarted_browser_has_the_persistent_cookie_alone(
    tmp_path: Path, storage_url: str, remember: bool, kept_for: timedelta | None
) -> None:
    async with running("login.py", storage_url) as address:
        async with started_on(tmp_path) as ann:
            page = await opened(ann, f"{address}/login")
            await page.get_by_label("User").fill("ann")
            await page.get_by_label("Password").fill("correct horse")
            await page.get_by_label("Remember me").set_checked(remember)
            before = time.time()
            await page.get_by_role("button").click()
            await page.wait_for_url("**/account")
            (cookie,) = await ann.cookies()
            if kept_for is None:
                assert cookie["expires"] == -1
            else:
                seconds = kept_for.total_seconds()
                assert before + seconds - 1 <= cookie["expires"] <= time.time() + seconds + 1
        async with started_on(tmp_path) as ann:
            assert [one["value"] for one in await ann.cookies()] == ([cookie["value"]] if remember else [])
            page = await opened(ann, f"{address}/account")
            assert page.url == f"{address}{'/account' if remember else '/login'}"


COUNT_TEN = """async how => {
    const all = [...Array(10).keys()].map(number => fetch(`/${how}?number=${number}`, {method: "POST"}))
    return (await Promise.all(all)).map(response => response.status)
}"""


async def test_ten_fetches_at_a_time_lose_nothing(browser: Browser, storage_url: str) -> None:
    pairs = asyncio.Barrier(2)  # both have loaded the session before one saves it

    async def index(request: web.Request) -> web.Response:
        session = await aiohttp_store.get_session(request)
        session.setdefault("total", 0)
        return web.json_response(dict(session))

    async def merge(request: web.Request) -> web.Response:
        session = await aiohttp_store.get_session(request)
        await pairs.wait()
        session[request.query["number"]] = 1
        return web.Response()

    async def count(request: web.Request) -> web.Response:
        def change(session: Session) -> None:
            session["total"] += 1

        session = await aiohttp_store.get_session(request)
        await pairs.wait()
        await session.apply(change)
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/", index), web.post("/merge", merge), web.post("/count", count)])
    aiohttp_store.setup(app, storage_url)
    async with TestServer(app) as server, visitor(browser) as ann:
        page = await opened(ann, str(server.make_url("/")))
        for how in ("merge", "count"):
            assert await page.evaluate(COUNT_TEN, how) == [200] * 10
        shown = await page.goto(str(server.make_url("/")))
        assert shown is not None
        assert await shown.json() == {"total": 10} | {str(number): 1 for number in range(10)}


async def test_the_button_of_the_cart_example_loses_none_of_ten(browser: Browser, storage_url: str) -> None:
    async with running("cart.py", storage_url) as address, visitor(browser) as ann:
        page = await opened(ann, address)
        for pressed in (1, 2):
            await page.get_by_role("button", name="Add ten goods").click()
            await expect(page.locator("#total")).to_have_text(str(10 * pressed))
            await expect(page.locator("#result")).to_have_text("10 of 10")


async def test_a_logout_in_another_tab_reaches_the_pages_of_the_chat_and_the_events(
    browser: Browser, storage_url: str
) -> None:
    async def logged_in(context: BrowserContext, address: str) -> tuple[Page, Page]:
        page = await opened(context, address)
        await page.get_by_label("Name").fill("Ann")
        await page.get_by_role("button", name="Log in").click()
        await expect(page.get_by_role("button", name="Log out")).to_be_visible()
        return page, await opened(context, address)

    async with running("websocket_chat.py", storage_url) as address, visitor(browser) as ann:
        page, other = await logged_in(ann, address)
        for tab in (page, other):
            await expect(tab.get_by_role("status")).to_have_text("Connected")
        await other.get_by_label("Ann:").fill("<b>Hello</b>")
        await other.get_by_role("button", name="Send").click()
        await expect(page.get_by_role("log")).to_have_text("Ann (1): <b>Hello</b>")
        await other.get_by_role("button", name="Log out").click()
        await expect(page.get_by_role("status")).to_have_text("Disconnected: logged out")
    async with running("sse.py", storage_url) as address, visitor(browser) as ann:
        page, other = await logged_in(ann, address)
        await other.get_by_role("button", name="Press").click()
        await expect(page.locator("#presses")).to_have_text("1")
        await other.get_by_role("button", name="Log out").click()
        await expect(page.get_by_role("button", name="Log in")).to_be_visible()
