"""What the guide tells those who come from express-session: each row of its table is run."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp_remotes
import pytest
from aiohttp import DummyCookieJar, web

import aiohttp_store
from aiohttp_store import ConfigError, Cookie, Storage, Write, get_session, get_storage
from aiohttp_store.cookie import key_of_id
from aiohttp_store.storages import storage_from_url

from ..conftest import AiohttpClient
from ..support.pages import PAGES, table

Client = Any
Start = Callable[..., Awaitable[Client]]
TABLES = [("as in express-session", "in detail"), ("what happens", "express-session", "here")]


@pytest.fixture
def start(storage_url: str, aiohttp_client: AiohttpClient) -> Start:
    """Return a function that serves handlers over a storage, to a client that sends only what it is told to."""
    # Several apps of one test share their sessions, also those in memory.
    storage = storage_from_url(storage_url) if storage_url.startswith("memory:") else storage_url

    async def started(*handlers: Any, proxies: Any = None, **options: Any) -> Client:
        app = web.Application()
        for handler in (put, show, leave, *handlers):
            app.router.add_get(f"/{handler.__name__}", handler)
        aiohttp_store.setup(app, storage, **options)
        if proxies is not None:
            await aiohttp_remotes.setup(app, proxies)
        return await aiohttp_client(app, cookie_jar=DummyCookieJar())

    return started


async def put(request: web.Request) -> web.Response:
    (await get_session(request))["user"] = "ann"
    return web.Response()


async def show(request: web.Request) -> web.Response:
    return web.json_response(dict(await get_session(request)))


async def leave(request: web.Request) -> web.Response:
    (await get_session(request)).invalidate()
    return web.Response()


async def ask(client: Client, path: str, cookie: str = "", **headers: str) -> tuple[int, str, str]:
    """Return the status, the text, and the line `Set-Cookie`."""
    headers = {**({"Cookie": cookie} if cookie else {}), **headers}
    async with client.get(path, headers=headers, allow_redirects=False) as response:
        return response.status, await response.text(), response.headers.get("Set-Cookie", "")


async def logged_in(client: Client) -> str:
    return (await ask(client, "/put"))[2].partition(";")[0]


async def a_crash(start: Start) -> None:
    async def crash(request: web.Request) -> web.Response:
        session = await get_session(request)
        if "keep" in request.query:
            session["kept"] = True
            await session.save()
        session["half"] = True
        raise ZeroDivisionError

    client = await start(crash)
    cookie = await logged_in(client)
    assert (await ask(client, "/crash", cookie))[0] == 500
    assert (await ask(client, "/show", cookie))[1] == '{"user": "ann"}'
    assert (await ask(client, "/crash?keep", cookie))[0] == 500
    assert (await ask(client, "/show", cookie))[1] == '{"user": "ann", "kept": true}'


async def a_raised_response(start: Start) -> None:
    async def go(request: web.Request) -> web.Response:
        (await get_session(request))["came"] = "by"
        raise web.HTTPSeeOther("/show")

    client = await start(go)
    cookie = (await ask(client, "/go"))[2].partition(";")[0]
    assert (await ask(client, "/show", cookie))[1] == '{"came": "by"}'


async def a_value_that_json_cannot_hold(start: Start) -> None:
    raised = []

    async def keep(request: web.Request) -> web.Response:
        session = await get_session(request)
        session["cart"] = {"at": {"date": datetime.now(UTC), "set": {1}, "nan": math.nan}[request.query["what"]]}
        with pytest.raises(TypeError) as error:
            await session.save()
        raised.append(str(error.value))
        del session["cart"]
        return web.Response()

    client = await start(keep)
    cookie = await logged_in(client)
    for what in ("date", "set", "nan"):
        assert (await ask(client, f"/keep?what={what}", cookie))[0] == 200
    assert all("session['cart']['at']" in message for message in raised)
    assert (await ask(client, "/show", cookie))[1] == '{"user": "ann"}'


async def a_short_secret(start: Start) -> None:
    with pytest.raises(ConfigError, match="32"):
        await start(secret="keyboard cat")
    await start(secret="x" * 32)


async def late_data(start: Start) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        session = await get_session(request)
        response = web.StreamResponse()
        await response.prepare(request)
        with pytest.raises(RuntimeError, match="headers have been sent"):
            session["user"] = "ann"
        return response

    assert (await ask(await start(stream), "/stream"))[0] == 200


async def a_damaged_record(start: Start) -> None:
    client = await start()
    cookie = await logged_in(client)
    storage = get_storage(client.app)
    await damage(storage, key_of(cookie))
    status, text, _ = await ask(client, "/show", cookie)
    assert (status, text) == (200, "{}")


async def damage(storage: Storage, key: str) -> None:
    (record,) = await storage.load([key])
    assert record is not None
    await storage.save([Write(key, record.version, record.data[:1] + b"{oops", 60)])


def key_of(cookie: str) -> str:
    name, _, session_id = cookie.partition("=")
    return key_of_id(session_id, name)


async def a_reload_after_the_end(start: Start) -> None:
    async def wait(request: web.Request) -> web.Response:
        session = await get_session(request)
        assert (await ask(client, "/leave", cookie))[0] == 200
        await session.reload()
        return web.Response()

    client = await start(wait)
    cookie = await logged_in(client)
    assert (await ask(client, "/wait", cookie))[0] == 409


async def a_save_after_the_end(start: Start) -> None:
    async def slow(request: web.Request) -> web.Response:
        session = await get_session(request)
        assert (await ask(client, "/leave", cookie))[0] == 200
        session["late"] = True
        return web.Response()

    client = await start(slow)
    cookie = await logged_in(client)
    assert (await ask(client, "/slow", cookie))[0] == 200
    assert (await ask(client, "/show", cookie))[1] == "{}"


async def an_unknown_id(start: Start) -> None:
    client = await start()
    made_up = f"session={'A' * 43}"
    given = (await ask(client, "/put", made_up))[2].partition(";")[0]
    assert given.startswith("session=")
    assert given != made_up


async def a_timeout_taken_back(start: Start) -> None:
    async def last(request: web.Request) -> web.Response:
        session = await get_session(request)
        session["user"] = "ann"
        session.idle_timeout = int(request.query["for"]) or None
        return web.Response()

    client = await start(last)
    _, _, line = await ask(client, "/last?for=60")
    assert "; Max-Age=60;" in line
    _, _, line = await ask(client, "/last?for=0", line.partition(";")[0])
    assert line.startswith("session=")
    assert "Max-Age" not in line


async def the_cookies_age(start: Start) -> None:
    client = await start(cookie=Cookie(persistent=True))
    _, _, line = await ask(client, "/put")
    assert "Max-Age=86400" in line
    assert "Expires" not in line
    _, _, line = await ask(client, "/leave", line.partition(";")[0])
    assert "Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT" in line


async def a_read(start: Start) -> None:
    client = await start()
    storage = get_storage(client.app)
    cookie = await logged_in(client)
    key = key_of(cookie)
    before = await storage.load([key])
    assert (await ask(client, "/show", cookie))[1] == '{"user": "ann"}'
    assert await storage.load([key]) == before


async def several_proxies(start: Start) -> None:
    async def remote(request: web.Request) -> web.Response:
        await get_session(request)
        return web.Response(text=f"{request.remote} {request.scheme}")

    client = await start(remote, proxies=aiohttp_remotes.XForwardedStrict([["127.0.0.1"], ["10.0.0.1"]]))
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.5, 10.0.0.1"}
    assert (await ask(client, "/remote", **headers))[:2] == (200, "203.0.113.5 https")
    for forged in ("10.0.0.1, 203.0.113.5", "1.1.1.1, 203.0.113.5, 10.0.0.1", "203.0.113.5"):
        assert (await ask(client, "/remote", **{**headers, "X-Forwarded-For": forged}))[0] == 400


async def nothing_before_data(start: Start) -> None:
    client = await start()
    assert await ask(client, "/show") == (200, "{}", "")


async def nested_changes(start: Start) -> None:
    async def add(request: web.Request) -> web.Response:
        (await get_session(request)).setdefault("cart", {"items": []})["items"].append("tea")
        return web.Response()

    client = await start(add)
    cookie = (await ask(client, "/add"))[2].partition(";")[0]
    await ask(client, "/add", cookie)
    assert (await ask(client, "/show", cookie))[1] == '{"cart": {"items": ["tea", "tea"]}}'


async def a_login(start: Start) -> None:
    async def login(request: web.Request) -> web.Response:
        (await get_session(request)).renew(login=True)
        return web.Response()

    client = await start(login)
    before = await logged_in(client)
    after = (await ask(client, "/login", before))[2].partition(";")[0]
    assert (await ask(client, "/show", before))[1] == "{}"
    assert (await ask(client, "/show", after))[1] == '{"user": "ann"}'


async def a_logout(start: Start) -> None:
    client = await start()
    cookie = await logged_in(client)
    assert "Max-Age=0" in (await ask(client, "/leave", cookie))[2]
    assert (await ask(client, "/show", cookie))[1] == "{}"


async def secrets_that_change(start: Start) -> None:
    old, new = "o" * 32, "n" * 32
    cookie = await logged_in(await start(secret=old))
    status, text, line = await ask(await start(secret=[new, old]), "/show", cookie)
    assert (status, text) == (200, '{"user": "ann"}')
    assert (await ask(await start(secret=new), "/show", line.partition(";")[0]))[1] == '{"user": "ann"}'
    assert (await ask(await start(secret=new), "/show", cookie))[1] == "{}"


async def the_cookie(start: Start) -> None:
    _, _, line = await ask(await start(), "/put")
    assert line.partition("; ")[2] == "Path=/; HttpOnly; SameSite=Lax"


ROWS: dict[str, Callable[[Start], Awaitable[None]]] = {
    "nothing is stored before there is data": nothing_before_data,
    "changes in nested values are seen": nested_changes,
    "a login can get a new id": a_login,
    "a logout ends the record": a_logout,
    "secrets can be changed": secrets_that_change,
    "the cookie": the_cookie,
    "the handler raises an exception": a_crash,
    "the handler raises a response, such as a redirect": a_raised_response,
    "a date, a set or NaN as a value": a_value_that_json_cannot_hold,
    "a short secret": a_short_secret,
    "the first data after the headers": late_data,
    "a stored record is damaged": a_damaged_record,
    "``reload()`` of a session that has ended": a_reload_after_the_end,
    "a save after another request's logout": a_save_after_the_end,
    "an unknown id in the cookie": an_unknown_id,
    "one session's timeout is taken back": a_timeout_taken_back,
    "how the cookie states its age": the_cookies_age,
    "reading without changing": a_read,
    "several proxies": several_proxies,
}


def test_every_row_of_the_guide_is_run() -> None:
    rows = [row for heads in TABLES for row in table(PAGES["docs/migrating.rst"], *heads)]
    assert [row[0] for row in rows] == list(ROWS)
    assert all(re.search(r"\w", cell) for row in rows for cell in row)


@pytest.mark.parametrize("row", ROWS)
async def test_what_the_guide_says_to_those_who_come_from_express_is_so(row: str, start: Start) -> None:
    await ROWS[row](start)
