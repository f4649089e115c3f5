"""Several apps in one, each with sessions of its own: whatever would mix them up is refused when they start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from redis.asyncio import Redis

from aiohttp_store import ConfigError, Cookie, Record, Storage, compat, get_session, register, session_middleware, setup
from aiohttp_store.compat import SimpleCookieStorage
from aiohttp_store.storages.memory import MemoryStorage
from aiohttp_store.storages.redis import RedisOptions, RedisStorage

from ..conftest import AiohttpClient, Servers

SECRET = "s" * 32
ADMIN = Cookie(path="/admin")
SHOP = Cookie(path="/shop")


class Counting(Storage):
    """A third party's storage."""

    opened = 0

    async def open(self) -> None:
        Counting.opened += 1

    async def load(self, keys: Any) -> list[Record | None]:
        return [None for _ in keys]

    async def save(self, writes: Any) -> list[Any]:
        raise NotImplementedError

    async def delete(self, keys: Any) -> None:
        raise NotImplementedError


def nested(app: web.Application, sub: web.Application) -> web.Application:
    app.add_subapp("/admin", sub)
    return app


def deep(app: web.Application, sub: web.Application) -> web.Application:
    between = web.Application()
    between.add_subapp("/admin", sub)
    app.add_subapp("/x", between)
    return app


def siblings(app: web.Application, sub: web.Application) -> web.Application:
    root = web.Application()
    root.add_subapp("/shop", app)
    root.add_subapp("/admin", sub)
    return root


def cousins(app: web.Application, sub: web.Application) -> web.Application:
    root = web.Application()
    for at, one in (("/a", app), ("/b", sub)):
        between = web.Application()
        between.add_subapp("/shop", one)
        root.add_subapp(at, between)
    return root


def hosts(one: str, other: str) -> Callable[[web.Application, web.Application], web.Application]:
    def tree(app: web.Application, sub: web.Application) -> web.Application:
        root = web.Application()
        root.add_domain(one, app)
        root.add_domain(other, sub)
        return root

    return tree


async def starts(tree: web.Application) -> None:
    runner = web.AppRunner(tree)
    try:
        await runner.setup()
    finally:
        await runner.cleanup()


OPTIONS: list[tuple[Any, dict[str, Any], dict[str, Any], str | None]] = [
    # tree, the first one's cookie, the other's; the error, if it is one, with one URL and with two
    (nested, {}, {}, "an app and its sub-app both keep sessions in the cookie 'session' of path '/'"),
    (deep, {}, {}, "an app and its sub-app both keep sessions in the cookie 'session'"),
    (siblings, {}, {}, "the sub-apps at /shop and /admin both keep sessions in the cookie 'session' of path '/'"),
    (cousins, {}, {}, "the sub-apps at /a/shop and /b/shop both keep sessions in the cookie 'session'"),
    (siblings, {"path": "/x"}, {"path": "/x"}, "of path '/x'"),
    (siblings, {"domain": "shop.example"}, {"domain": ".Shop.example"}, "in the cookie 'session'"),
    (hosts("a.example", "a.example:8080"), {}, {}, "the sub-apps at a.example and a.example both"),
    (hosts("*.example", "b.example"), {}, {}, "the sub-apps at \\*.example and b.example both"),
    (hosts("a.shop.example", "b.shop.example"), {"domain": "shop.example"}, {"domain": "shop.example"}, "both keep"),
    (nested, {}, {"name": "admin"}, None),
    (siblings, {}, {"name": "admin"}, None),
    (siblings, {"path": "/shop"}, {"path": "/admin"}, None),
    (siblings, {"path": "/admin"}, {"path": "/administrators"}, None),
    (nested, {"path": "/shop"}, {"path": "/admin"}, None),
    (hosts("a.example", "b.example"), {}, {}, None),
    (hosts("*.a.example", "*.b.example"), {}, {}, None),
    (siblings, {"domain": "a.example"}, {"domain": "b.example"}, None),
]


@pytest.mark.parametrize("urls", [("memory://", "memory://"), ("redis", "redis"), ("redis", "sqlite:///never.db")])
@pytest.mark.parametrize(("tree", "mine", "theirs", "message"), OPTIONS)
async def test_one_cookie_of_two_apps_is_refused_at_the_start_unless_no_request_carries_it_to_both(
    servers: Servers,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    urls: tuple[str, str],
    tree: Any,
    mine: dict[str, Any],
    theirs: dict[str, Any],
    message: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    app, sub = web.Application(), web.Application()
    for one, url, cookie in ((app, urls[0], mine), (sub, urls[1], theirs)):
        setup(one, servers.url("redis") if url == "redis" else url, cookie=Cookie(**cookie))
    root = tree(app, sub)
    if message is None:
        await starts(root)
    else:
        with pytest.raises(ConfigError, match=message):
            await starts(root)
        assert list(tmp_path.iterdir()) == []  # nothing was opened


OVERLAPPING: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    (nested, {}, {"path": "/admin"}),
    (siblings, {}, {"path": "/admin"}),
    (siblings, {"path": "/admin"}, {"path": "/admin/"}),
    (cousins, {"path": "/a"}, {"path": "/a/b"}),
    (nested, {"domain": "shop.example"}, {}),
    (hosts("a.shop.example", "b.shop.example"), {"domain": "shop.example"}, {}),
]


@pytest.mark.parametrize(("tree", "mine", "theirs"), OVERLAPPING)
async def test_one_storage_and_cookies_that_both_apps_are_sent_are_refused(
    servers: Servers, tree: Any, mine: dict[str, Any], theirs: dict[str, Any]
) -> None:
    url = servers.url("redis")
    shared, client = MemoryStorage(), Redis.from_url(url)
    pairs: list[tuple[Any, Any]] = [
        (url, url),
        (url, f"{url}?timeout=5"),
        (shared, shared),
        (RedisStorage(client), RedisStorage(client)),
        ("cookie://", "cookie://"),
    ]
    for pair in pairs:
        app, sub = web.Application(), web.Application()
        for one, storage, cookie in zip((app, sub), pair, (mine, theirs), strict=True):
            setup(one, storage, cookie=Cookie(**cookie), secret=SECRET)
        with pytest.raises(ConfigError, match="so a session of one is valid in the other"):
            await starts(tree(app, sub))
    kept_apart: list[tuple[Any, Any]] = [
        (url, f"{url}?prefix=admin:"),
        (RedisStorage(client), RedisStorage(client, RedisOptions(prefix="admin:"))),
        ("memory://", "memory://"),
        (url, "cookie://"),
        (Counting(), Counting()),
    ]
    for pair in kept_apart:
        app, sub = web.Application(), web.Application()
        for one, storage, cookie in zip((app, sub), pair, (mine, theirs), strict=True):
            setup(one, storage, cookie=Cookie(**cookie), secret=SECRET)
        await starts(tree(app, sub))
    await client.aclose()


async def test_a_middleware_that_was_made_alone_is_compared_with_the_setups_around_and_below() -> None:
    app, sub = web.Application(middlewares=[session_middleware()]), web.Application()
    setup(sub)
    with pytest.raises(ConfigError, match="an app and its sub-app both keep sessions in the cookie 'session'"):
        await starts(nested(app, sub))
    app, sub = web.Application(), web.Application(middlewares=[compat.session_middleware("memory://")])
    setup(app)
    with pytest.raises(ConfigError, match="the sub-apps at /shop and /admin both keep sessions in the cookie"):
        await starts(siblings(app, sub))
    app = web.Application(middlewares=[session_middleware()])
    setup(app)
    with pytest.raises(ConfigError, match="two middlewares of an app both keep sessions in the cookie 'session'"):
        await starts(app)
    shared = session_middleware()
    app, sub = web.Application(middlewares=[shared]), web.Application(middlewares=[shared])
    setup(app, cookie=Cookie(name="other"))
    await starts(siblings(app, sub))


async def test_one_url_of_a_third_partys_scheme_is_one_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiohttp_store.storages.SCHEMES", {})
    register("counting", lambda _: Counting())
    app, sub = web.Application(), web.Application()
    setup(app, "counting://a")
    setup(sub, "counting://a", cookie=ADMIN)
    opened = Counting.opened
    with pytest.raises(ConfigError, match="so a session of one is valid"):
        await starts(nested(app, sub))
    assert Counting.opened == opened


async def test_storages_of_aiohttp_session_are_compared_by_their_cookies() -> None:
    app, sub, other = web.Application(), web.Application(), web.Application()
    setup(app, SimpleCookieStorage())  # type: ignore[arg-type]
    setup(sub, SimpleCookieStorage())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'AIOHTTP_SESSION'"):
        await starts(siblings(app, sub))
    app = web.Application()
    setup(app, SimpleCookieStorage())  # type: ignore[arg-type]
    setup(other, SimpleCookieStorage(cookie_name="OTHER"))  # type: ignore[arg-type]
    await starts(siblings(app, other))


async def test_two_apps_that_are_no_tree_may_have_the_same_of_everything(aiohttp_client: AiohttpClient) -> None:
    """Apps on two ports, or one that is started while another starts, as a test or a metrics server is."""

    async def show(request: web.Request) -> web.Response:
        return web.json_response(dict(await get_session(request)))

    storage = MemoryStorage()
    inner = web.Application()
    setup(inner, storage)

    async def within(_: web.Application) -> Any:
        await starts(inner)
        yield

    for _ in range(2):
        app = web.Application()
        app.router.add_get("/", show)
        setup(app, storage)
        if not inner.frozen:
            app.cleanup_ctx.append(within)
        client = await aiohttp_client(app)
        async with client.get("/") as response:
            assert response.status == 200


async def test_a_third_app_is_compared_as_well() -> None:
    apps = [web.Application() for _ in range(3)]
    for number, app in enumerate(apps):
        setup(app, cookie=Cookie(name=f"a{number % 2}"))
    with pytest.raises(ConfigError, match="cookie 'a0'"):
        await starts(nested(apps[0], siblings(apps[1], apps[2])))
