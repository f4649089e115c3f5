"""Large sessions, odd keys, values that cannot be stored, and bytes that nobody wrote, over every storage."""

from __future__ import annotations

import asyncio
import enum
import json
import re
import secrets
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiohttp_store import Cookie, Storage, Write, get_session, get_storage, open_storage, setup
from aiohttp_store.cookie import key_of_id
from aiohttp_store.storages.memory import MemoryStorage

from ..conftest import Client, Serve
from ..support.one_key import create, new_key
from ..support.remote import Remote
from .test_requests import SECRET, raw

FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


async def put(request: web.Request) -> web.Response:
    (await get_session(request)).update(await request.json())
    return web.Response()


async def show(request: web.Request) -> web.Response:
    return web.json_response(dict(await get_session(request)))


async def shown(client: Client, **options: Any) -> Any:
    async with client.get("/show", **options) as response:
        assert response.status == 200
        return await response.json()


def nested(levels: int) -> Any:
    value: Any = "the bottom"
    for level in range(levels):
        value = {"d": value} if level % 2 else [value]
    return value


ODD = {
    "$where": {"$gt": ""},
    "a.b": {"c.d": 1},
    "__proto__": {"constructor": None},
    "": {"": ""},
    "\U0001f600": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\0": "\0\r\n\x1b",
    "'; DROP TABLE sessions; --": "\\'\"`%s",
    "numbers": [0, -1, 2**53 + 1, 2**63 - 1, -(2**63), 0.1, -0.0, 1e-320, 1.7e308],
    "scalars": [True, False, None, "", [], {}],
    "_id": "not the document's",
    "session": {"created": 1},
}


WIDE = {str(number): number for number in range(5000)}


class Word(enum.StrEnum):
    USER = "user"
    CART = "cart"


async def test_members_of_an_enum_of_str_are_keys_as_they_are_values(serve: Serve, storage_url: str) -> None:
    async def login(request: web.Request) -> web.Response:
        session = await get_session(request)
        session[Word.USER] = Word.CART
        session["nested"] = {Word.CART: [{Word.USER: 1}]}
        await session.apply(lambda session: session.update({Word.CART: session[Word.USER]}))
        session["nested"][Word.CART].append(2)
        return web.json_response([session[Word.USER], session["user"], session.get(Word.CART)])

    async def change(request: web.Request) -> web.Response:
        session = await get_session(request)
        session[Word.USER] = "bob"
        del session[Word.CART]
        return web.Response()

    client = await serve(login, change, show, storage=storage_url)
    async with client.get("/login") as response:
        assert (response.status, await response.json()) == (200, ["cart", "cart", "cart"])
    assert await shown(client) == {"user": "cart", "cart": "cart", "nested": {"cart": [{"user": 1}, 2]}}
    async with client.get("/change") as response:
        assert response.status == 200
    assert await shown(client) == {"user": "bob", "nested": {"cart": [{"user": 1}, 2]}}


async def keep(request: web.Request) -> web.Response:
    """Keep what a browser chose, as a value, in a value, and as a key."""
    session = await get_session(request)
    agent = request.headers["User-Agent"]
    session["agent"], session["seen"], session[agent] = agent, {agent: [agent]}, "key"
    if "save" in request.query:
        await session.save()
    if "apply" in request.query:
        await session.apply(lambda session: session.update(n=session.get("n", 0) + 1))
    return web.Response()


FOUND = {"agent": "a\ufffd\ufffdb", "seen": {"a\ufffd\ufffdb": ["a\ufffd\ufffdb"]}, "a\ufffd\ufffdb": "key"}


@pytest.mark.parametrize("query", ["", "?save=1", "?apply=1", "?save=1&apply=1"])
async def test_no_bytes_that_a_browser_sends_are_a_500(query: str, serve: Serve, storage_url: str) -> None:
    class Counting(Remote):
        saves = 0

        async def save(self, writes: Any) -> Any:
            self.saves += 1
            return await super().save(writes)

    counting = Counting()
    client = await serve(keep, show, storage=counting if storage_url.startswith("memory") else storage_url)
    head = b"GET /keep%s HTTP/1.1\r\nHost: x\r\nUser-Agent: a\xf1\xffb\r\n" % query.encode()
    status, headers, _ = await raw(client.port, head)
    assert status == 200
    cookie = re.search(rb"Set-Cookie: (session=[\w-]+)", headers)
    assert cookie is not None
    options = {"headers": {"Cookie": cookie[1].decode()}}
    expected = FOUND | ({"n": 1} if "apply" in query else {})
    assert await shown(client, **options) == expected
    saves = counting.saves
    status, headers, _ = await raw(client.port, head + b"Cookie: " + cookie[1] + b"\r\n")
    assert (status, b"Set-Cookie" in headers) == (200, False)
    assert await shown(client, **options) == (expected | ({"n": 2} if "apply" in query else {}))
    if not query:
        assert counting.saves == saves  # the same data is not written again


async def test_bytes_that_a_browser_sends_are_merged_as_other_text(serve: Serve, storage_url: str) -> None:
    """Two requests have loaded one session; each then sets what the other does not, beside the same text."""
    loaded, opened = asyncio.Semaphore(0), asyncio.Event()

    async def meet(request: web.Request) -> web.Response:
        session, agent = await get_session(request), request.headers["User-Agent"]
        loaded.release()
        await opened.wait()
        session["agent"], session[agent] = agent, request.query["to"]
        session["seen"][request.query["to"]] = agent
        return web.Response()

    client = await serve(keep, meet, show, storage=storage_url)
    head = b" HTTP/1.1\r\nHost: x\r\nUser-Agent: a\xf1\xffb\r\n"
    _, headers, _ = await raw(client.port, b"GET /keep" + head)
    cookie = re.search(rb"Set-Cookie: (session=[\w-]+)", headers)
    assert cookie is not None
    head += b"Cookie: " + cookie[1] + b"\r\n"
    both = [asyncio.create_task(raw(client.port, b"GET /meet?to=" + to + head)) for to in (b"one", b"two")]
    for _ in both:
        await loaded.acquire()
    opened.set()
    assert [status for status, *_ in await asyncio.gather(*both)] == [200, 200]
    found = await shown(client, headers={"Cookie": cookie[1].decode()})
    text = FOUND["agent"]
    assert found.pop(str(text)) in ("one", "two")
    assert found == {"agent": text, "seen": {text: [text], "one": text, "two": text}}


@pytest.mark.parametrize("data", [ODD, {"deep": nested(240)}, WIDE], ids=["odd", "deep", "wide"])
async def test_odd_data_comes_back(data: Any, serve: Serve, storage_url: str) -> None:
    client = await serve(put, show, storage=storage_url)
    async with client.post("/put", json=data) as response:
        assert response.status == 200
    assert await shown(client) == data


async def test_a_mebibyte_comes_back_or_is_refused_with_size_and_limit(
    serve: Serve, storage_url: str, storage_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fill(request: web.Request) -> web.Response:
        (await get_session(request))["large"] = "x" * (1 << 20)
        return web.Response()

    client = await serve(put, show, fill, storage=storage_url)
    async with client.post("/put", json={"small": 1}) as response:
        assert response.status == 200
    async with client.get("/fill") as response:
        assert response.status == (500 if storage_name.startswith("memcached") else 200)
        assert "Set-Cookie" not in response.headers
    if storage_name.startswith("memcached"):
        assert "SessionTooLarge: the session takes 1048" in caplog.text
        assert "bytes, and memcached holds at most 1048" in caplog.text
        assert await shown(client) == {"small": 1}
    else:
        assert await shown(client) == {"small": 1, "large": "x" * (1 << 20)}


async def test_a_prefix_of_another_space_is_another_space(make_url: Callable[..., str], storage_name: str) -> None:
    if storage_name == "memory":
        return
    space = {"mysql": "table", "mongodb": "collection", "pymongo": "collection", "sqlite": "table"}.get(
        storage_name, "prefix"
    )
    name = f"t{secrets.token_hex(4)}"
    base = make_url().partition("?")[0]
    key = new_key()
    async with open_storage(f"{base}?{space}={name}") as short, open_storage(f"{base}?{space}={name}A") as longer:
        await create(longer, key, b"longer")
        for other in (key, f"A{key}"[:43], key[1:] + "A"):
            assert await short.load([other]) == [None]


async def test_an_id_cannot_leave_its_prefix(serve: Serve) -> None:
    one, other = MemoryStorage(), MemoryStorage()
    mine = await serve(put, show, storage=one)
    await serve(put, show, storage=other)
    async with mine.post("/put", json={"a": 1}):
        pass
    value = next(cookie.value for cookie in mine.session.cookie_jar)
    mine.session.cookie_jar.clear()
    for forged in (f":{value}", f"session:{value}", f"../{value}", f"{value}%00", value[1:], key_of_id(value)):
        assert await shown(mine, headers={"Cookie": f"session={forged}"}) == {}


async def test_a_sub_app_with_its_own_session_writes_it_once(aiohttp_client: Any) -> None:
    class Counting(Remote):
        saves = 0

        async def save(self, writes: Any) -> Any:
            self.saves += len(writes)
            return await super().save(writes)

    async def write(request: web.Request) -> web.Response:
        (await get_session(request))["a"] = 1
        return web.Response()

    async def stream(request: web.Request) -> web.StreamResponse:
        (await get_session(request))["a"] = 2
        response = web.StreamResponse()
        await response.prepare(request)
        return response

    outer, inner = Counting(), Counting()
    app, below = web.Application(), web.Application()
    setup(app, outer)
    setup(below, inner, cookie=Cookie(name="below"))
    below.router.add_get("/write", write)
    below.router.add_get("/stream", stream)
    app.add_subapp("/sub/", below)
    client = await aiohttp_client(app)
    for path in ("/sub/write", "/sub/stream"):
        async with client.get(path) as response:
            assert response.status == 200
    assert (outer.saves, inner.saves) == (0, 2)
    assert [cookie.key for cookie in client.session.cookie_jar] == ["below"]


@pytest.fixture
async def victim(serve: Serve, storage_url: str, request: pytest.FixtureRequest) -> Client:
    """Give a client of an app that holds another visitor's session, and no cookie of its own."""
    client = await serve(put, show, storage=storage_url, secret=getattr(request, "param", None))
    async with client.post("/put", json={"user": "victim"}):
        pass
    client.victim_cookie = next(cookie.value for cookie in client.session.cookie_jar)  # type: ignore[attr-defined]
    client.session.cookie_jar.clear()
    return client


HEADERS = st.lists(
    st.sampled_from(
        [
            *(b"session=", b"session", b"=", b";", b" ", b'"', b"\t", b",", b"%00", b"\\073"),
            *(b"A" * 43, b"A" * 43 + b"." + b"B" * 43, b"<all but one>", b"<reversed>", b"<key>", b"<signature>"),
        ]
    )
    | st.binary(max_size=20),
    max_size=12,
).map(b"".join)


@pytest.mark.parametrize("victim", [None, SECRET], indirect=True, ids=["plain", "signed"])
@FUZZ
@given(HEADERS)
async def test_no_cookie_header_is_a_500_or_another_visitors_session(victim: Client, header: bytes) -> None:
    known: bytes = victim.victim_cookie.encode()  # type: ignore[attr-defined]
    for name, value in {
        b"<all but one>": known[:-1],
        b"<reversed>": known[::-1],
        b"<key>": key_of_id(known[:43].decode()).encode(),
        b"<signature>": known[43:],
        b"\r": b"",
        b"\n": b"",
        b"\0": b"",
    }.items():
        header = header.replace(name, value)
    status, _, body = await raw(victim.port, b"GET /show HTTP/1.1\r\nHost: x\r\nCookie: %s\r\n" % header)
    assert status in (200, 400)  # aiohttp refuses some bytes in headers
    assert status == 400 or body == b"{}"


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
).map(lambda value: json.dumps(value).encode())
HEADER = b"\x01" + (1 << 50).to_bytes(8, "big") * 2 + bytes(10)


@FUZZ
@given(st.binary(max_size=60) | st.binary(max_size=30).map(b"\x01".__add__) | JSON.map(HEADER.__add__))
async def test_no_stored_bytes_are_a_500_or_another_visitors_session(victim: Client, stored: bytes) -> None:
    assert victim.app is not None
    storage: Storage = get_storage(victim.app)
    session_id = secrets.token_urlsafe(32)
    await storage.save([Write(key_of_id(session_id), None, stored, 60)])
    async with victim.get("/show", headers={"Cookie": f"session={session_id}"}) as response:
        assert response.status == 200
        assert "victim" not in await response.text()
