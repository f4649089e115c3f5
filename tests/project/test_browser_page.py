"""The demo's page in a real browser: on phones and desktops, without mouse or scripts, in light and dark colours."""

from __future__ import annotations

import asyncio
import re
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from ..support.browser import add, log_in, visitor
from .test_examples import ROOT, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONGEST_NAME = "W" * 40
GOODS = ["Add Tea", "Add Milk", "Add Sugar", "Add Lemon"]


@pytest_asyncio.fixture(loop_scope="module")
async def demo() -> AsyncIterator[str]:
    async with running("demo.py", "memory://") as address:
        yield address


TOO_SMALL = """() => [...document.querySelectorAll("a, button, input")].filter(control => {
    const {width, height} = control.getBoundingClientRect()
    return width < 44 || height < 44 || parseFloat(getComputedStyle(control).fontSize) < 16
}).map(control => control.outerHTML)"""
OVERFLOWING = """() => [...document.querySelectorAll("*")].filter(
    element => element.scrollWidth > element.clientWidth && getComputedStyle(element).display !== "inline"
).map(element => element.outerHTML)"""


@pytest.mark.parametrize("width", [320, 390, 1280])
async def test_the_page_fits_the_screen_and_its_controls_fit_a_thumb(browser: Browser, demo: str, width: int) -> None:
    async with visitor(browser, viewport={"width": width, "height": 700}) as ann:
        page = await ann.new_page()
        await page.goto(demo)
        for name in (None, LONGEST_NAME):
            if name is not None:
                await log_in(page, name)
                for item in GOODS:
                    await add(page, item.removeprefix("Add "), 1)
            assert await page.evaluate(OVERFLOWING) == []
            assert await page.evaluate(TOO_SMALL) == []
        columns = await page.evaluate("[...document.querySelectorAll('section')].map(one => one.offsetLeft)")
        assert len(set(columns)) == (2 if width == 1280 else 1)


FOCUSED = """() => {
    const control = document.activeElement, {outlineStyle, outlineWidth} = getComputedStyle(control)
    return {
        name: control.tagName === "INPUT" ? control.labels[0].innerText.trim() : control.innerText,
        outline: outlineStyle === "none" ? 0 : parseFloat(outlineWidth),
    }
}"""


async def tab(page: Page, key: str = "Tab") -> str:
    """Press the key, and give the name of the control that is then seen to have the focus."""
    await page.keyboard.press(key)
    focused = await page.evaluate(FOCUSED)
    assert focused["outline"] >= 2
    return str(focused["name"])


async def test_the_whole_page_is_used_by_the_keyboard_alone(browser: Browser, demo: str) -> None:
    async with visitor(browser) as ann:
        page = await ann.new_page()
        await page.goto(demo)
        assert [await tab(page) for _ in range(6)] == ["Name", "Log in", *GOODS]
        await page.reload()
        await tab(page)
        await page.keyboard.type("Ann")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Hello, Ann")).to_be_visible()
        assert [await tab(page) for _ in range(2)] == ["Log out", "Add Tea"]
        for item in ("Tea", "Milk"):
            await page.keyboard.press("Enter")
            await expect(page.get_by_role("listitem").filter(has_text=f"{item}: 1")).to_be_visible()
            # The focus is at the cart again, not at the beginning of the page.
            assert [await tab(page) for _ in range(2)] == ["Add Tea", "Add Milk"]
        assert [await tab(page, "Shift+Tab") for _ in range(2)] == ["Add Tea", "Log out"]
        await page.keyboard.press("Space")
        await expect(page.get_by_role("heading", name="Not logged in")).to_be_visible()


STRUCTURE = """
- banner:
  - heading "aiohttp_store demo" [level=1]
  - paragraph: This session is kept by memory
  - paragraph:
    - text: Visits
    - strong: "1"
- main:
  - region "Not logged in":
    - heading "Not logged in" [level=2]
    - paragraph
    - text: Name
    - textbox "Name"
    - button "Log in"
  - region "Cart":
    - heading "Cart" [level=2]
    - list:
      - listitem: nothing yet
    - button "Add Tea"
    - button "Add Milk"
    - button "Add Sugar"
    - button "Add Lemon"
- contentinfo
"""


async def test_the_page_tells_its_structure_to_those_who_do_not_see_it(browser: Browser, demo: str) -> None:
    async with visitor(browser) as ann:
        page = await ann.new_page()
        await page.goto(demo)
        await expect(page.locator("body")).to_match_aria_snapshot(STRUCTURE)
        assert await page.evaluate("document.documentElement.lang") == "en"
        await expect(page).to_have_title("Not logged in - aiohttp_store demo")
        await log_in(page, "Ann")
        await expect(page).to_have_title("Hello, Ann - aiohttp_store demo")


async def test_the_page_works_without_scripts(browser: Browser, demo: str) -> None:
    async with visitor(browser, java_script_enabled=False) as ann:
        page = await ann.new_page()
        await page.goto(demo)
        await log_in(page, "Ann")
        await add(page, "Lemon", 2)
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_role("heading", name="Not logged in")).to_be_visible()


# WCAG 2.2, "contrast ratio" and "relative luminance".
FAINT = """least => {
    const numbers = color => color.match(/[0-9.]+/g).map(Number)
    const luminance = color => {
        const [red, green, blue] = numbers(color).slice(0, 3).map(value => value / 255).map(
            value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue
    }
    const behind = element => {
        const color = getComputedStyle(element).backgroundColor
        return numbers(color)[3] === 0 ? behind(element.parentElement) : color
    }
    const contrast = (one, other) => {
        const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b)
        return (light + 0.05) / (dark + 0.05)
    }
    const shown = [...document.querySelectorAll("body *")]
    const texts = shown.filter(one => [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
    return {
        texts: texts.length,
        faint: texts.filter(one => contrast(getComputedStyle(one).color, behind(one)) < 4.5)
            .concat(shown.filter(one => one.matches("button, input")
                && contrast(getComputedStyle(one).borderTopColor, behind(one.parentElement)) < 3))
            .map(one => one.outerHTML),
    }
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_texts_and_borders_stand_out_from_what_is_behind_them(
    browser: Browser, demo: str, scheme: Literal["light", "dark"]
) -> None:
    async with visitor(browser, color_scheme=scheme) as ann:
        page = await ann.new_page()
        await page.goto(demo)
        color = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall("[0-9]+", color))) < 64) is (scheme == "dark")
        for _ in range(2):
            for button in await page.get_by_role("button").all():
                await button.hover()
                seen = await page.evaluate(FAINT)
                assert seen["texts"] >= 12
                assert seen["faint"] == []
            if await page.get_by_label("Name").count():
                await log_in(page, "Ann")
                await add(page, "Tea", 1)


async def test_the_picture_in_the_documents_is_what_its_command_takes(tmp_path: Path) -> None:
    taken = tmp_path / "demo.png"
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.support.browser", str(taken), cwd=ROOT)
    assert await process.wait() == 0
    kept = ROOT / "docs/demo.png"
    assert size_of(kept) == size_of(taken)
    assert kept.stat().st_size < 100_000


def size_of(picture: Path) -> tuple[int, int]:
    """Give width and height, which stand at the beginning of a PNG; the pixels depend on the fonts of the machine."""
    signature, width, height = struct.unpack(">8s8xII", picture.read_bytes()[:24])
    assert signature == b"\x89PNG\r\n\x1a\n"
    return width, height
