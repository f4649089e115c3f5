"""The end-of-request table and the response's headers, row by row, over real HTTP."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from typing import Any

import aiohttp_remotes
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from aiohttp_store import (
    Cookie,
    SessionConflict,
    SessionTooLarge,
    StorageUnavailable,
    get_session,
    get_storage,
    new_session,
    setup,
)
from aiohttp_store.cookie import key_of_id
from aiohttp_store.storages.memory import MemoryStorage

from ..conftest import AiohttpClient, Client, Serve
from ..support.remote import Left, Remote, kept, sessions_in
from ..support.timing import until
from .test_streams import Failing


async def begin(request: web.Request) -> web.Response:
    (await get_session(request))["a"] = 1
    return web.Response()


async def untouched(request: web.Request) -> web.Response:
    return web.Response(headers={"Vary": "Accept", "Cache-Control": "public"})


async def read(request: web.Request) -> web.Response:
    return web.json_response(dict(await get_session(request)), headers={"Vary": "Accept", "Cache-Control": "public"})


async def write(request: web.Request) -> web.Response:
    (await get_session(request)).update(request.query)
    return web.Response(headers=(request.query.get("cache") and {"Cache-Control": request.query["cache"]}) or {})


async def empty(request: web.Request) -> web.Response:
    (await get_session(request)).clear()
    return web.Response()


async def logout(request: web.Request) -> web.Response:
    (await get_session(request)).invalidate()
    return web.Response()


async def renew(request: web.Request) -> web.Response:
    (await get_session(request)).renew()
    return web.Response()


async def gone(request: web.Request) -> web.Response:
    session = await get_session(request)
    assert session.identity is not None
    await get_storage(request.app).delete([key_of_id(session.identity)])
    session["late"] = 1
    return web.Response()


HANDLERS = (begin, untouched, read, write, empty, logout, renew, gone)


async def headers_of(client: Client, path: str, **options: Any) -> Any:
    async with client.get(path, **options) as response:
        assert response.status == 200
        return response.headers


@pytest.mark.parametrize(
    ("begun", "path", "stored", "cookie"),
    [
        (False, "/untouched", False, None),
        (True, "/untouched", True, None),
        (False, "/read", False, None),
        (True, "/read", True, None),
        (False, "/write?a=1", True, "set"),
        (True, "/write?a=1", True, None),
        (False, "/empty", False, None),
        (True, "/empty", False, "cleared"),
        (False, "/logout", False, None),
        (True, "/logout", False, "cleared"),
        (False, "/renew", False, None),
        (True, "/renew", True, "set"),
        (True, "/gone", False, None),
    ],
)
async def test_each_row_of_the_end_of_request_table(
    begun: bool, path: str, stored: bool, cookie: str | None, serve: Serve
) -> None:
    client = await serve(*HANDLERS)
    if begun:
        await headers_of(client, "/begin")
    headers = await headers_of(client, path)
    assert client.app is not None
    storage: Any = get_storage(client.app)
    assert bool(kept(storage)) is stored
    sent = headers.getall("Set-Cookie", [])
    assert len(sent) == (cookie is not None)
    if cookie is not None:
        assert ("Max-Age=0" in sent[0]) is (cookie == "cleared")


@pytest.mark.parametrize("path", ["/logout", "/empty"])
async def test_a_junk_cookie_is_cleared_by_a_logout_only(path: str, serve: Serve) -> None:
    client = await serve(*HANDLERS)
    headers = await headers_of(client, path, headers={"Cookie": "session=junk"})
    assert ("Set-Cookie" in headers) is (path == "/logout")


async def test_vary_names_the_cookie_once_the_session_was_asked_for(serve: Serve) -> None:
    client = await serve(*HANDLERS)
    assert (await headers_of(client, "/untouched"))["Vary"] == "Accept"
    assert (await headers_of(client, "/read"))["Vary"] == "Accept, Cookie"
    assert (await headers_of(client, "/begin"))["Vary"] == "Cookie"
    for _ in range(2):  # a live session that is only read
        assert (await headers_of(client, "/read"))["Vary"] == "Accept, Cookie"
    assert (await headers_of(client, "/write?a=1"))["Vary"] == "Cookie"
    assert (await headers_of(client, "/logout"))["Vary"] == "Cookie"
    assert (await headers_of(client, "/read", headers={"Cookie": "session=junk"}))["Vary"] == "Accept, Cookie"


async def test_a_response_without_our_cookie_keeps_its_cache_control(serve: Serve) -> None:
    client = await serve(*HANDLERS)
    await headers_of(client, "/begin")
    assert (await headers_of(client, "/read"))["Cache-Control"] == "public"
    assert "Cache-Control" not in await headers_of(client, "/write?b=1")


async def test_a_response_with_our_cookie_is_kept_out_of_shared_caches(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    client = await serve(*HANDLERS)
    assert (await headers_of(client, "/write?a=1"))["Cache-Control"] == "no-store"
    client.session.cookie_jar.clear()
    assert (await headers_of(client, "/write?cache=private"))["Cache-Control"] == "private"
    for _ in range(2):
        client.session.cookie_jar.clear()
        headers = await headers_of(client, "/write", params={"cache": "public, s-maxage=5, max-age=60"})
        assert headers["Cache-Control"] == "private, max-age=60"
    assert caplog.text.count("Cache-Control: public, s-maxage=5 was taken from a response") == 1


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        ('private="x-foo", max-age=60', "private, max-age=60"),
        ("public, must-understand, no-store, max-age=600", "private, must-understand, no-store, max-age=600"),
        ('public, ext="no-store, private"', 'private, ext="no-store, private"'),
        ('ext="no-store', "no-store"),
    ],
)
@pytest.mark.parametrize("end", [False, True])
async def test_what_a_shared_cache_may_read_in_spite_of_private_and_no_store_is_taken_out(
    said: str, sent: str, end: bool, serve: Serve
) -> None:
    async def saying(request: web.Request) -> web.Response:
        session = await get_session(request)
        if end:
            session.invalidate()
        else:
            session["a"] = 1
        return web.Response(headers={"Cache-Control": said, "CDN-Cache-Control": "public, max-age=600"})

    headers = await headers_of(await serve(saying), "/saying", headers={"Cookie": "session=junk"})
    assert "Set-Cookie" in headers
    assert headers.getall("Cache-Control") == [sent]
    assert headers.getall("CDN-Cache-Control") == ["no-store, max-age=600"]


async def test_other_cookies_survive(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        (await get_session(request))["a"] = 1
        response = web.Response(headers=[("Set-Cookie", "one=1"), ("Set-Cookie", "two=2")])
        response.set_cookie("three", "3")
        return response

    client = await serve(handler)
    headers = await headers_of(client, "/handler")
    names = sorted(value.partition("=")[0] for value in headers.getall("Set-Cookie"))
    assert names == ["one", "session", "three", "two"]


async def test_a_raised_redirect_is_saved_and_carries_the_cookie(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        (await get_session(request))["a"] = 1
        raise web.HTTPFound("/elsewhere")

    client = await serve(handler)
    async with client.get("/handler", allow_redirects=False) as response:
        assert response.status == 302
        assert "Set-Cookie" in response.headers


@pytest.mark.parametrize("raised", [False, True])
async def test_an_error_page_of_the_handlers_own_is_saved(raised: bool, serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        (await get_session(request))["a"] = 1
        if raised:
            raise web.HTTPBadGateway
        return web.Response(status=503)

    client = await serve(handler)
    async with client.get("/handler") as response:
        assert response.status >= 500
        assert "Set-Cookie" in response.headers


@pytest.mark.parametrize(
    ("error", "status"),
    [(StorageUnavailable("down"), 503), (SessionConflict("others"), 409), (SessionTooLarge(2, 1, "here"), 500)],
)
async def test_a_failed_save_replaces_the_response_and_sets_no_cookie(
    error: Exception, status: int, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    class Raising(Remote):
        async def save(self, writes: Any) -> Any:
            raise error

    client = await serve(*HANDLERS, storage=Raising())
    with caplog.at_level(logging.INFO):
        async with client.get("/begin") as response:
            assert response.status == status
            assert response.headers.get("Retry-After") == ("1" if status == 503 else None)
            assert response.headers.get("Vary") == (None if status == 500 else "Cookie")
            assert "Set-Cookie" not in response.headers
    assert str(error) in caplog.text


async def test_while_the_storage_is_down_the_cookie_is_left_alone(serve: Serve) -> None:
    storage = Failing()
    client = await serve(*HANDLERS, storage=storage)
    await headers_of(client, "/begin")
    for storage.down in ("load", "save"):
        for path in ("/write?b=2", "/logout", "/renew") if storage.down == "load" else ("/write?b=2", "/renew"):
            async with client.get(path) as response:
                assert response.status == 503
                assert "Set-Cookie" not in response.headers
    storage.down = None
    async with client.get("/read") as response:
        assert await response.json() == {"a": 1}


async def test_a_client_that_goes_away_does_not_stop_its_save(serve: Serve) -> None:
    storage = Left()
    client = await serve(*HANDLERS, storage=storage)
    await storage.leave(client, asyncio.create_task(headers_of(client, "/begin")))
    await client.close()  # cancels the handler, then closes the storage
    assert len(kept(storage)) == 1


async def test_a_cancelled_handler_saves_nothing(serve: Serve) -> None:
    storage = MemoryStorage()

    async def handler(request: web.Request) -> web.Response:
        (await get_session(request))["a"] = 1
        raise asyncio.CancelledError

    client = await serve(handler, storage=storage)
    with pytest.raises(Exception, match="disconnected"):
        await headers_of(client, "/handler")
    assert len(kept(storage)) == 0


WITHOUT_SECURE = "is sent without Secure; let aiohttp-remotes set the request's scheme"


@pytest.mark.parametrize(
    ("cookie", "header", "host", "warned"),
    [
        (Cookie(), {}, "shop.example", ""),
        (Cookie(), {"X-Forwarded-Proto": "https"}, "shop.example", WITHOUT_SECURE),
        (Cookie(), {"X-Forwarded-Proto": "https, http"}, "shop.example", WITHOUT_SECURE),
        (Cookie(), {"X-Forwarded-Proto": "HTTPS,http , http"}, "shop.example", WITHOUT_SECURE),
        (Cookie(), {"X-Forwarded-Proto": "http, https"}, "shop.example", ""),
        (Cookie(), {"X-Forwarded-Proto": "httpsx"}, "shop.example", ""),
        (Cookie(), {"X-Forwarded-Proto": "\xf1"}, "shop.example", ""),
        (Cookie(), {"Forwarded": 'for=192.0.2.60;proto=https;by="_x", proto=http'}, "shop.example", WITHOUT_SECURE),
        (Cookie(), {"Forwarded": 'Proto="https"'}, "shop.example", WITHOUT_SECURE),
        (Cookie(), {"Forwarded": "proto=http, proto=https"}, "shop.example", ""),
        (Cookie(), {"X-Forwarded-Ssl": "on"}, "shop.example", WITHOUT_SECURE),
        (Cookie(), {"X-Forwarded-Ssl": "off"}, "shop.example", ""),
        (Cookie(), {"X-Scheme": "https"}, "shop.example", WITHOUT_SECURE),
        (Cookie(), {"Front-End-Https": "On"}, "shop.example", WITHOUT_SECURE),
        (Cookie(samesite="auto"), {"X-Forwarded-Proto": "https, http"}, "shop.example", WITHOUT_SECURE),
        (Cookie(secure=True), {}, "shop.example", "browsers drop it"),
        (Cookie(secure=True), {}, "localhost:8080", ""),
        (Cookie(secure=True), {}, "shop.localhost:8080", ""),
        (Cookie(secure=True), {}, "[::1]:8080", ""),
        (Cookie(name="__Host-s"), {}, "shop.example", "browsers drop it"),
        (Cookie(name="__Host-s"), {"X-Forwarded-Proto": "https, http"}, "shop.example", "browsers drop it"),
        (Cookie(samesite="None"), {}, "shop.example", "browsers drop it"),
        (Cookie(name="__Host-s"), {}, "localhost:8080", ""),
        (Cookie(secure=False), {"X-Forwarded-Proto": "https"}, "shop.example", ""),
    ],
)
async def test_a_cookie_that_a_browser_will_drop_or_leak_is_warned_about_once(
    cookie: Cookie, header: dict[str, str], host: str, warned: str, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    client = await serve(*HANDLERS, cookie=cookie)
    caplog.clear()
    for _ in range(2):
        client.session.cookie_jar.clear()
        headers = await headers_of(client, "/begin", headers={"Host": host, **header})
        assert ("; Secure" in headers["Set-Cookie"]) is cookie.is_secure(over_https=False)
    assert len(caplog.records) == bool(warned)
    assert warned in caplog.text


async def begin_and_redirect(request: web.Request) -> web.Response:
    await begin(request)
    raise web.HTTPSeeOther("/")


async def begin_a_stream(request: web.Request) -> web.StreamResponse:
    await begin(request)
    response = web.StreamResponse()
    await response.prepare(request)
    return response


async def begin_anew(request: web.Request) -> web.Response:
    (await new_session(request))["a"] = 1
    return web.Response()


@web.middleware
async def asking_before_and_after(request: web.Request, handler: Handler) -> web.StreamResponse:
    await begin(request)
    try:
        return await handler(request)
    finally:
        await begin(request)


@pytest.mark.parametrize("handler", [begin, begin_and_redirect, begin_a_stream, begin_anew])
@pytest.mark.parametrize("order", ["ours first", "theirs first", "another between"])
async def test_the_scheme_that_aiohttp_remotes_set_counts_in_any_order(
    order: str, handler: Handler, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
) -> None:
    app = web.Application(middlewares=[asking_before_and_after] if order == "another between" else [])
    app.router.add_get("/", handler)
    if order == "theirs first":
        await aiohttp_remotes.setup(app, aiohttp_remotes.XForwardedRelaxed())
    setup(app)
    if order != "theirs first":
        await aiohttp_remotes.setup(app, aiohttp_remotes.XForwardedRelaxed())
    client = await aiohttp_client(app)
    caplog.clear()
    async with client.get("/", headers={"X-Forwarded-Proto": "https"}, allow_redirects=False) as response:
        (cookie,) = response.headers.getall("Set-Cookie")
        assert "; Secure;" in cookie
    async with client.get("/", headers={"X-Forwarded-Proto": "http"}, allow_redirects=False) as response:
        (cookie,) = response.headers.getall("Set-Cookie")
        assert "Secure" not in cookie
    assert not caplog.records


@pytest.mark.parametrize(
    ("cookie", "on_https", "on_http"),
    [
        (Cookie(samesite="auto"), "Secure; HttpOnly; SameSite=None", "HttpOnly; SameSite=Lax"),
        (Cookie(samesite="auto", secure=True), "Secure; HttpOnly; SameSite=None", "Secure; HttpOnly; SameSite=Lax"),
        (
            Cookie(samesite="auto", name="__Host-s", partitioned=True),
            "Secure; HttpOnly; SameSite=None; Partitioned",
            "Secure; HttpOnly; SameSite=Lax; Partitioned",
        ),
    ],
    ids=["", "secure", "host"],
)
@pytest.mark.parametrize("end", [begin, logout])
async def test_same_site_auto_is_none_on_https_and_lax_on_http(
    cookie: Cookie, on_https: str, on_http: str, end: Handler, aiohttp_client: AiohttpClient
) -> None:
    app = web.Application()
    app.router.add_get("/", end)
    setup(app, cookie=cookie)
    await aiohttp_remotes.setup(app, aiohttp_remotes.XForwardedRelaxed())
    client = await aiohttp_client(app)
    for scheme, attributes in (("https", on_https), ("http", on_http)):
        client.session.cookie_jar.clear()
        headers = {"X-Forwarded-Proto": scheme, "Cookie": f"{cookie.name}=junk"}
        (sent,) = (await headers_of(client, "/", headers=headers)).getall("Set-Cookie")
        assert sent.endswith(f"; {attributes}")


@pytest.mark.parametrize("remotes", [False, True])
async def test_a_request_is_freed_without_the_garbage_collector(remotes: bool, aiohttp_client: AiohttpClient) -> None:
    seen: list[weakref.ref[web.Request]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(weakref.ref(request))
        response = await begin(request)
        response.force_close()  # aiohttp keeps a connection's last request until the connection ends
        return response

    app = web.Application()
    app.router.add_get("/", handler)
    setup(app)
    if remotes:
        await aiohttp_remotes.setup(app, aiohttp_remotes.XForwardedRelaxed())
    client = await aiohttp_client(app)
    gc.disable()
    try:
        await headers_of(client, "/")
        await until(lambda: seen[0]() is None)
    finally:
        gc.enable()


BAD = ["bad", "A" * 43, "A" * 43 + "." + "A" * 43, "A" * 200, '"', "", "x" * 5000, "A" * 42 + "\xff"]


@pytest.mark.parametrize("value", BAD, ids=lambda value: value[:9] + str(len(value)))
@pytest.mark.parametrize("options", [{}, {"secret": "a secret that signs, of 32 bytes"}], ids=["plain", "signed"])
async def test_bad_cookies_write_no_lines_to_the_log(
    options: dict[str, Any], value: str, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    client = await serve(*HANDLERS, **options)
    caplog.clear()
    with caplog.at_level(logging.INFO, "aiohttp_store"):
        for _ in range(20):
            await headers_of(client, "/read", headers={"Cookie": f"session={value}"})
    assert len([record for record in caplog.records if record.name == "aiohttp_store"]) == 0


async def test_the_page_shown_while_the_storage_is_down_varies_by_cookie(serve: Serve) -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        with pytest.raises(StorageUnavailable):
            await get_session(request)
        response = web.StreamResponse() if "stream" in request.query else web.Response()
        if "stream" in request.query:
            await response.prepare(request)
        return response

    storage = Failing()
    client = await serve(begin, page, storage=storage)
    await headers_of(client, "/begin")
    storage.down = "load"
    for path in ("/page", "/page?stream=1"):
        assert (await headers_of(client, path)).getall("Vary") == ["Cookie"]


async def test_after_the_response_a_background_task_saves_explicitly(serve: Serve) -> None:
    tasks: list[asyncio.Task[None]] = []
    answered = asyncio.Event()

    async def later(request: web.Request) -> None:
        await answered.wait()
        session = await get_session(request)
        with pytest.raises(RuntimeError, match="needs a new cookie"):
            session.renew()
        if session.identity is None:
            with pytest.raises(RuntimeError, match="a new session needs a cookie"):
                session["late"] = 1
        else:
            session["late"] = 1
            await session.save()

    async def handler(request: web.Request) -> web.Response:
        if "ask" in request.query:
            await get_session(request)
        tasks.append(asyncio.create_task(later(request)))
        return web.Response()

    client = await serve(begin, read, handler)
    for path in ("/handler", "/handler?ask=1", "/begin", "/handler", "/handler?ask=1"):
        await headers_of(client, path)
    answered.set()
    await asyncio.gather(*tasks)
    async with client.get("/read") as response:
        assert await response.json() == {"a": 1, "late": 1}


async def test_an_explicit_save_that_is_cancelled_is_carried_out_whole(serve: Serve) -> None:
    class Slow(Remote):
        cancelled = asyncio.Event()

        async def save(self, writes: Any) -> Any:
            await self.cancelled.wait()
            return await super().save(writes)

    async def handler(request: web.Request) -> web.Response:
        session = await get_session(request)
        session.renew()
        storage.cancelled.clear()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.save(), 0.01)
        storage.cancelled.set()
        return web.Response()

    storage = Slow()
    storage.cancelled.set()
    client = await serve(begin, read, handler, storage=storage)
    await headers_of(client, "/begin")
    assert "Set-Cookie" in await headers_of(client, "/handler")
    assert len(sessions_in(storage)) == 1
    async with client.get("/read") as response:
        assert await response.json() == {"a": 1}
