"""Who has opened a storage closes it: its caller, or the last of the apps that use it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

import aiohttp_store
from aiohttp_store import Record, Saved, Storage, get_session, open_storage, setup

from ..conftest import Client, patient


class Recording(Storage):
    """A third party's storage, which counts."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def open(self) -> None:
        self.calls.append("open")

    async def load(self, keys: Any) -> list[Record | None]:
        return [None for _ in keys]

    async def save(self, writes: Any) -> list[Any]:
        assert self.calls[-1] == "open"
        return [Saved(b"12345678") for _ in writes]

    async def delete(self, keys: Any) -> None:
        pass

    async def close(self) -> None:
        self.calls.append("close")


class Derived(Recording):
    async def open(self) -> None:
        await super().open()

    async def close(self) -> None:
        await super().close()


class Plain(Storage):
    """One that has nothing to open."""

    load, save, delete = Recording.load, Recording.save, Recording.delete
    calls = ("open",)


async def count(request: web.Request) -> web.Response:
    session = await get_session(request)
    session["n"] = session.get("n", 0) + 1
    return web.json_response(session["n"])


def make_app(storage: Storage) -> web.Application:
    app = web.Application()
    app.router.add_get("/count", count)
    setup(app, storage)
    return app


@asynccontextmanager
async def running(storage: Storage) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    async with TestClient(TestServer(make_app(storage))) as client:

        async def counted() -> int:
            async with client.get("/count") as response:
                assert response.status == 200
                return int(await response.json())

        yield counted


async def test_a_storage_that_its_caller_has_opened_is_left_open_by_the_apps(storage_url: str) -> None:
    async with open_storage(storage_url) as storage:
        patient(storage)
        async with running(storage) as b:
            async with running(storage) as a:
                assert (await a(), await b()) == (1, 1)
            assert await b() == 2
        async with running(storage) as c:
            assert (await c(), await c()) == (1, 2)
        assert await storage.load(["0" * 43]) == [None]


async def test_a_storage_that_two_apps_share_is_closed_with_the_last(make_url: Callable[..., str]) -> None:
    storage = patient(aiohttp_store.storages.storage_from_url(make_url()))
    for _ in range(2):
        async with running(storage) as b:
            async with running(storage) as a:
                assert (await a(), await b()) == (1, 1)
            assert await b() == 2


@pytest.mark.parametrize("kind", [Recording, Derived])
async def test_each_storage_is_opened_and_closed_once(kind: type[Recording]) -> None:
    storage = kind()
    async with running(storage) as a, running(storage) as b:
        await a()
        await b()
        assert storage.calls == ["open"]
    assert storage.calls == ["open", "close"]
    async with running(storage) as a:
        await a()
    assert storage.calls == ["open", "close", "open", "close"]
    await storage.open()
    async with running(storage) as a:
        await a()
    assert storage.calls[4:] == ["open"]
    await storage.close()
    async with running(storage) as a:
        await a()
    assert storage.calls[4:] == ["open", "close", "open", "close"]


async def test_an_app_and_its_sub_app_close_their_storage_once() -> None:
    storage = Recording()
    app, sub = make_app(storage), web.Application()
    setup(sub, storage, cookie=aiohttp_store.Cookie(name="sub"))
    app.add_subapp("/sub", sub)
    async with TestClient(TestServer(app)):
        assert storage.calls == ["open"]
    assert storage.calls == ["open", "close"]


async def test_a_storage_that_failed_to_open_is_opened_by_the_next_app() -> None:
    class Failing(Recording):
        async def open(self) -> None:
            await super().open()
            if len(self.calls) == 1:
                raise aiohttp_store.ConfigError("not today")

    storage = Failing()
    runner = web.AppRunner(make_app(storage))
    with pytest.raises(aiohttp_store.ConfigError):
        await runner.setup()
    await runner.cleanup()
    async with running(storage) as a:
        await a()
    assert storage.calls == ["open", "open", "close"]


async def test_a_storage_without_open_and_close_serves_several_apps() -> None:
    storage = Plain()
    async with running(storage) as b:
        async with running(storage) as a:
            await a()
        await b()


async def test_the_bare_middleware_leaves_a_storage_open_that_an_app_uses_as_well(
    aiohttp_client: Callable[[web.Application], Awaitable[Client]],
) -> None:
    storage = Recording()
    bare = web.Application(middlewares=[aiohttp_store.session_middleware(storage)])
    bare.router.add_get("/count", count)
    client = await aiohttp_client(bare)
    async with running(storage) as a:
        await a()
        async with client.get("/count") as response:
            assert response.status == 200
    async with client.get("/count") as response:
        assert response.status == 200
    assert storage.calls == ["open"]
