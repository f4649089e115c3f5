"""Visitors who count, each in a session of their own, and know what was acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aiohttp import ClientSession, CookieJar, web
from yarl import URL

from aiohttp_store import get_session

from .timing import now, until


async def count(request: web.Request) -> web.Response:
    session = await get_session(request)
    session["n"] = session.get("n", 0) + 1
    return web.json_response(session["n"])


@dataclass
class Visitor:
    acknowledged: int = 0
    unknown: int = 0
    """Attempts since then that failed, and so may have been carried out."""
    refused: int = 0
    """Answers 503, of all times."""
    wrong: list[str] = field(default_factory=list)
    longest: float = 0.0
    cookie: str = ""

    async def come(self, url: URL) -> None:
        async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as browser:
            while True:
                await self._ask(browser, url)

    async def _ask(self, browser: ClientSession, url: URL) -> None:
        asked = now()
        async with browser.get(url) as response:
            self.longest = max(self.longest, now() - asked)
            if response.status == 503:
                self.refused += 1
                self.unknown += self.acknowledged > 0  # one that began no session left no cookie
                await asyncio.sleep(0.02)
                return
            found = await response.json()
        self.cookie = next(cookie.value for cookie in browser.cookie_jar)
        if not self.acknowledged < found <= self.acknowledged + self.unknown + 1:
            self.wrong.append(f"{found} after {self.acknowledged}, with {self.unknown} unknown")
        self.acknowledged, self.unknown = found, 0
        await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def visiting(url: URL, many: int = 24) -> AsyncIterator[list[Visitor]]:
    """Let them come until the end of the block, and see that none of them lost a write or was counted twice."""
    visitors = [Visitor() for _ in range(many)]
    tasks = [asyncio.create_task(visitor.come(url)) for visitor in visitors]
    try:
        await served(visitors)
        yield visitors
        await served(visitors)
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [one for one in ended if not isinstance(one, asyncio.CancelledError)] == []
    assert [wrong for visitor in visitors for wrong in visitor.wrong] == []


async def served(visitors: list[Visitor]) -> None:
    """Wait until each has been served once more."""
    before = [visitor.acknowledged for visitor in visitors]

    def all_are() -> bool:
        return all(visitor.acknowledged > then for visitor, then in zip(visitors, before, strict=True))

    await until(all_are, "some visitors are not served")
