"""Four processes serve one visitor: what holds between two requests in one process holds between them too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from aiohttp import ClientSession, DummyCookieJar

from ..conftest import SHARED, Servers, new_url
from ..support.app import AppProcess

PROCESSES = 4
ADDITIONS = 12  # to each process


@pytest.fixture(scope="module", params=SHARED)
def addresses(request: pytest.FixtureRequest, servers: Servers) -> Iterator[list[str]]:
    url = new_url(servers, request.param)
    processes = [AppProcess(url) for _ in range(PROCESSES)]
    try:
        yield [process.address() for process in processes]
    finally:
        for process in processes:
            process.end()


class Visitor:
    """One cookie; each request names the process that it goes to."""

    def __init__(self, client: ClientSession, addresses: list[str]) -> None:
        self.client = client
        self.addresses = addresses
        self.cookie: str | None = None
        self.cookies_set: list[str] = []

    async def act(self, process: int, query: str = "", /, *, status: int = 200, **data: Any) -> Any:
        """Send the cookie, and give the answer; `cookies_set` tells whether another came with it."""
        headers = {"Cookie": self.cookie} if self.cookie else {}
        address = f"{self.addresses[process]}/act?{query}"
        async with self.client.post(address, json=data, headers=headers) as response:
            assert response.status == status
            self.cookies_set += response.headers.getall("Set-Cookie", [])
            return await response.json() if status == 200 else None

    async def begin(self, **data: Any) -> None:
        await self.act(0, **data)
        self.take_cookie()

    def take_cookie(self) -> None:
        """From here on, send the only cookie that was set."""
        (header,) = self.cookies_set
        self.cookie = header.partition(";")[0]
        self.cookies_set.clear()

    async def held(self, process: int, query: str = "", /, **sent: Any) -> asyncio.Task[Any]:
        """Begin a request, which goes no further than loading its session until `let_go`."""
        task = asyncio.create_task(self.act(process, f"hold&{query}", **sent))
        async with self.client.get(f"{self.addresses[process]}/wait?for=1") as response:
            assert response.status == 200
        return task

    async def let_go(self, *processes: int) -> None:
        opening = [self.client.post(f"{self.addresses[process]}/open") for process in processes]
        for response in await asyncio.gather(*opening):
            response.release()

    async def seen(self) -> list[Any]:
        """Ask each process what the session holds."""
        return await asyncio.gather(*(self.act(process) for process in range(PROCESSES)))


@pytest.fixture
async def visitor(addresses: list[str]) -> AsyncIterator[Visitor]:
    async with ClientSession(cookie_jar=DummyCookieJar()) as client:
        yield Visitor(client, addresses)


async def test_changes_of_different_keys_in_all_processes_survive(visitor: Visitor) -> None:
    await visitor.begin(base=1)
    everyone = range(PROCESSES)
    late = [await visitor.held(process, **{f"from {process}": process}) for process in everyone]
    await visitor.let_go(*everyone)
    await asyncio.gather(*late)
    assert await visitor.seen() == [{"base": 1, **{f"from {process}": process for process in everyone}}] * PROCESSES


async def test_additions_in_all_processes_are_counted_exactly(visitor: Visitor) -> None:
    await visitor.begin(n=0)
    everyone = range(PROCESSES)
    late = [await visitor.held(process, "add") for process in everyone]  # all but one of them must meet a conflict
    await visitor.let_go(*everyone)
    rest = [visitor.act(process, "add") for _ in range(ADDITIONS - 1) for process in everyone]
    assert sorted(await asyncio.gather(*late, *rest)) == list(range(1, ADDITIONS * PROCESSES + 1))
    assert await visitor.seen() == [{"n": ADDITIONS * PROCESSES}] * PROCESSES


@pytest.mark.parametrize(("query", "status"), [("", 200), ("renew", 200), ("add", 409)])
async def test_a_logout_is_not_undone_by_a_slow_request_in_another_process(
    visitor: Visitor, query: str, status: int
) -> None:
    await visitor.begin(user="ann")
    late = await visitor.held(1, query, status=status, cart="tea")
    await visitor.act(2, "end")
    (cleared,) = visitor.cookies_set
    assert "Max-Age=0" in cleared
    visitor.cookies_set.clear()
    await visitor.let_go(1)
    await late
    assert visitor.cookies_set == []
    assert await visitor.seen() == [{}] * PROCESSES


async def test_an_id_that_was_renewed_is_dead_everywhere_and_stays_dead_under_a_slow_writer(visitor: Visitor) -> None:
    await visitor.begin(user="ann")
    old = visitor.cookie
    late = await visitor.held(1, cart="tea")
    await visitor.act(2, "renew", admin=True)
    visitor.take_cookie()
    await visitor.let_go(1)
    await late
    assert visitor.cookies_set == []
    assert visitor.cookie != old
    assert await visitor.seen() == [{"user": "ann", "admin": True}] * PROCESSES
    visitor.cookie = old
    assert await visitor.seen() == [{}] * PROCESSES


async def test_a_renewal_takes_along_what_another_process_wrote_meanwhile(visitor: Visitor) -> None:
    await visitor.begin(user="ann")
    old = visitor.cookie
    late = await visitor.held(3, "renew", admin=True)
    await visitor.act(1, cart="tea")
    await visitor.let_go(3)
    await late
    visitor.take_cookie()
    assert visitor.cookie != old
    assert await visitor.seen() == [{"user": "ann", "cart": "tea", "admin": True}] * PROCESSES
    visitor.cookie = old
    assert await visitor.seen() == [{}] * PROCESSES
