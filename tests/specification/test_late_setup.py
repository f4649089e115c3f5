"""A `setup` while the app starts, or later, works as a whole or is refused, and then nothing is done."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from redis.asyncio import Redis

from aiohttp_store import ConfigError, Cookie, get_session, get_storage, setup
from aiohttp_store.storages.redis import RedisStorage

from ..conftest import AiohttpClient, Servers
from .test_shared_storages import Recording, count


def is_untouched(app: web.Application) -> bool:
    """Whether the app has nothing of ours."""
    with pytest.raises(RuntimeError, match="no session storage"):
        get_storage(app)
    return not (len(app) or app.middlewares or app.on_response_prepare)


async def ok(request: web.Request) -> web.Response:
    with pytest.raises(RuntimeError, match="this request has no session"):
        await get_session(request)
    return web.Response()


async def test_in_a_cleanup_context_it_works_as_a_whole(aiohttp_client: AiohttpClient, servers: Servers) -> None:
    order: list[str] = []

    class Ordered(RedisStorage):
        async def open(self) -> None:
            await super().open()
            order.append("open")

        async def close(self) -> None:
            order.append("close")
            await super().close()

    async def redis(app: web.Application) -> AsyncIterator[None]:
        async with Redis.from_url(servers.url("redis")) as client:
            order.append("client")
            setup(app, Ordered(client), check=True)
            yield
        order.append("client closed")

    async def other(_: web.Application) -> AsyncIterator[None]:
        order.append("other")
        yield

    app = web.Application()
    app.cleanup_ctx.extend([redis, other])
    app.router.add_get("/", count)
    client = await aiohttp_client(app)
    assert order == ["client", "other", "open"]
    for times in (1, 2):
        async with client.get("/") as response:
            assert await response.json() == times
    await client.close()
    assert order[3:] == ["close", "client closed"]


async def test_in_a_cleanup_context_the_tree_is_compared_as_well() -> None:
    async def late(app: web.Application) -> AsyncIterator[None]:
        setup(app)
        yield

    app, sub = web.Application(), web.Application()
    app.cleanup_ctx.append(late)
    setup(sub)
    app.add_subapp("/sub", sub)
    runner = web.AppRunner(app)
    with pytest.raises(ConfigError, match="an app and its sub-app both keep sessions in the cookie 'session'"):
        await runner.setup()
    await runner.cleanup()


@pytest.mark.parametrize("has_context", [False, True])
async def test_in_on_startup_it_is_refused_and_nothing_is_done(
    aiohttp_client: AiohttpClient, *, has_context: bool
) -> None:
    storage, messages = Recording(), []

    async def context(_: web.Application) -> AsyncIterator[None]:
        yield

    async def late(app: web.Application) -> None:
        with pytest.raises(ConfigError) as caught:
            setup(app, storage)
        messages.append(str(caught.value))

    app = web.Application()
    if has_context:
        app.cleanup_ctx.append(context)
    app.on_startup.append(late)
    app.router.add_get("/", ok)
    client = await aiohttp_client(app)
    assert "which is starting, in on_startup or later; call it before the app starts, or" in messages[0]
    assert "in a function of app.cleanup_ctx" in messages[0]
    async with client.get("/") as response:
        assert response.status == 200
    assert is_untouched(app)
    assert storage.calls == []


def added(parent: web.Application, app: web.Application) -> None:
    parent.add_subapp("/sub", app)


def added_by_host(parent: web.Application, app: web.Application) -> None:
    parent.add_domain("shop.example", app)


@pytest.mark.parametrize("add", [added, added_by_host])
def test_after_it_was_added_to_another_app_it_is_refused_and_nothing_is_done(add: Any) -> None:
    parent, app = web.Application(), web.Application()
    add(parent, app)
    with pytest.raises(ConfigError, match=r"part of another app already; call it before add_subapp\(\)"):
        setup(app)
    assert is_untouched(app)
    setup(parent)  # which is in time


async def test_in_a_sub_apps_startup_it_is_refused_and_nothing_is_done() -> None:
    async def late(app: web.Application) -> AsyncIterator[None]:
        with pytest.raises(ConfigError, match="part of another app already"):
            setup(app)
        assert is_untouched(app)
        yield

    parent, app = web.Application(), web.Application()
    app.cleanup_ctx.append(late)
    parent.add_subapp("/sub", app)
    runner = web.AppRunner(parent)
    await runner.setup()
    await runner.cleanup()


async def test_on_a_running_app_it_is_refused_and_the_app_goes_on(aiohttp_client: AiohttpClient) -> None:
    async def late(request: web.Request) -> web.Response:
        with pytest.raises(ConfigError, match="which is running; call it before the app starts"):
            setup(request.app, "memory://", cookie=Cookie(name="late"))
        return await ok(request)

    app = web.Application()
    app.router.add_get("/", late)
    client = await aiohttp_client(app)
    for _ in range(2):
        async with client.get("/") as response:
            assert response.status == 200
    assert is_untouched(app)


def test_on_a_frozen_app_it_is_refused_and_nothing_is_done() -> None:
    app = web.Application()
    app.freeze()
    with pytest.raises(ConfigError, match="which is running"):
        setup(app)
    assert is_untouched(app)


@pytest.mark.parametrize("wrong", [{"storage": "rediz://"}, {"idle_timeout": 0}, {"cookie": "session"}])
def test_a_setting_that_cannot_work_leaves_the_app_as_it_was(wrong: Any) -> None:
    app = web.Application()
    with pytest.raises(ConfigError):
        setup(app, **{"storage": "memory://", **wrong})
    assert is_untouched(app)
    setup(app)
