"""A real browser without a window, for the tests, and the screenshot of the demo that the README shows.

Take it with: python -m tests.support.browser docs/demo.png
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from ..project.test_examples import running
from .servers import program

PATIENCE = 60_000
"""Milliseconds that a page has for each step, so that a slow machine fails none."""
FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP *.example 127.0.0.1",  # names that are nobody's (RFC 6761)
)
BACK_AND_FORWARD = "--disable-back-forward-cache"
"""What Playwright would switch off, and visitors have."""
expect.set_options(timeout=PATIENCE)


def launch_options() -> dict[str, Any]:
    """Give what starts the distribution's Chromium; its sandbox refuses to run as root."""
    return {
        "executable_path": program("chromium"),
        "args": FLAGS,
        "ignore_default_args": [BACK_AND_FORWARD],
        "chromium_sandbox": os.geteuid() != 0,
        "timeout": PATIENCE,
    }


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright, await playwright.chromium.launch(**launch_options()) as browser:
        yield browser


@asynccontextmanager
async def visitor(browser: Browser, **options: Any) -> AsyncIterator[BrowserContext]:
    """Give a visitor, who shares no cookie, cache or tab with another."""
    async with await browser.new_context(ignore_https_errors=True, **options) as context:
        context.set_default_timeout(PATIENCE)
        yield context


@asynccontextmanager
async def started_on(profile: Path) -> AsyncIterator[BrowserContext]:
    """Start a browser on the folder where it keeps what outlives it, and quit it in the end."""
    async with (
        async_playwright() as playwright,
        await playwright.chromium.launch_persistent_context(
            profile, ignore_https_errors=True, **launch_options()
        ) as context,
    ):
        context.set_default_timeout(PATIENCE)
        yield context


async def log_in(page: Page, name: str) -> None:
    await page.get_by_label("Name").fill(name)
    await page.get_by_role("button", name="Log in").click()
    await expect(page.get_by_role("heading", name=f"Hello, {name}")).to_be_visible()


async def add(page: Page, item: str, number: int) -> None:
    """Press the button until so many are in the cart, which had none."""
    for count in range(1, number + 1):
        await page.get_by_role("button", name=f"Add {item}").click()
        await expect(page.get_by_role("listitem").filter(has_text=f"{item}: {count}")).to_be_visible()


async def take_screenshot(path: Path, **options: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with (
            running("demo.py", folder=Path(folder)) as address,
            chromium() as browser,
            visitor(browser, **options) as ann,
        ):
            page = await ann.new_page()
            await page.goto(address)
            await log_in(page, "Ann")
            await add(page, "Tea", 2)
            await add(page, "Lemon", 1)
            await page.mouse.move(0, 0)
            await page.screenshot(path=path, full_page=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a picture of the demo, logged in and with goods in the cart.")
    parser.add_argument("path", type=Path, help="as docs/demo.png")
    parser.add_argument("--width", type=int, default=900, help="of the window, in pixels; %(default)s")
    parser.add_argument("--dark", action="store_true", help="as somebody sees it who prefers dark pages")
    options = parser.parse_args()
    scheme = "dark" if options.dark else "light"
    size = {"width": options.width, "height": 480}
    asyncio.run(take_screenshot(options.path, viewport=size, color_scheme=scheme))


if __name__ == "__main__":
    main()
