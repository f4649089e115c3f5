"""Visitors of an app that used aiohttp-session: written by aiohttp-session itself, read by ours, on real servers."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import aiohttp_session
import aiomcache
import pytest
from aiohttp import ClientSession, CookieJar, DummyCookieJar, web
from aiohttp.test_utils import TestServer
from aiohttp_session.memcached_storage import MemcachedStorage
from aiohttp_session.redis_storage import RedisStorage
from aiohttp_session_mongo import MongoStorage
from pymongo import AsyncMongoClient
from redis.asyncio import Redis

from aiohttp_store import ConfigError, Cookie, get_session, get_storage, new_session, session_middleware, setup
from aiohttp_store._engine.manager import StorageSessionManager
from aiohttp_store._lifecycle.request_state import MANAGER
from aiohttp_store._takeover.legacy import LegacySource
from aiohttp_store.storages import storage_from_url

from ..conftest import STORAGES, AiohttpServer, Servers, new_url
from ..support.pages import PAGES, blocks
from ..support.timing import AT_LAST

pytestmark = [
    # Both are theirs: keys of requests that are strings, and datetime.utcnow().
    pytest.mark.filterwarnings("ignore::aiohttp.web.NotAppKeyWarning"),
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]

OLD, OURS = "AIOHTTP_SESSION", "session"
HOLDING = ["redis", "memcached", "memcached_nodes", "mongodb", "pymongo"]
"""The storages whose servers may hold sessions of aiohttp-session."""
DATA = {"user": "bob", "cart": ["é", {"n": 1}], "big": 2**53, "share": 0.5, "nothing": None}


class Old:
    """What the old app had: its storage, and a look behind it."""

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        self.kind = scheme.partition("+")[0]
        address = rest.partition("/")[0].partition("?")[0].partition(",")[0]
        if self.kind == "redis":
            self.client: Any = Redis.from_url(f"redis://{address}/0")
        elif self.kind == "memcached":
            host, _, port = address.partition(":")
            self.client = aiomcache.Client(host, int(port))
        else:
            self.client = AsyncMongoClient(f"mongodb://{address}")
            self.collection = self.client["sessions"]["old"]

    def storage(self, **options: Any) -> aiohttp_session.AbstractStorage:
        if self.kind == "redis":
            return RedisStorage(self.client, **options)
        if self.kind == "memcached":
            return MemcachedStorage(self.client, **options)
        return MongoStorage(self.collection, **options)  # type: ignore[no-any-return]

    async def get(self, key: str) -> Any:
        if self.kind == "mongodb":
            return await self.collection.find_one({"_id": key.encode()})
        return await self.client.get(key.encode())

    async def put(self, key: str, value: Any) -> None:
        """Store JSON as bytes; in MongoDB what it was, where it was anything."""
        if self.kind == "mongodb":
            try:
                value = json.loads(value)
            except ValueError:
                value = value.decode("latin-1")
            document = {"_id": key.encode(), "data": value, "expire": None}
            await self.collection.replace_one({"_id": key.encode()}, document, upsert=True)
        else:
            await self.client.set(key.encode(), value)

    async def close(self) -> None:
        await (self.client.aclose() if self.kind == "redis" else self.client.close())


async def update(request: web.Request) -> web.Response:
    """Serve in the old app."""
    session = await aiohttp_session.get_session(request)
    session.update(await request.json())
    return web.json_response(dict(session))


async def act(request: web.Request) -> web.StreamResponse:
    """Do in our app what the query says."""
    query = request.query
    if "untouched" in query:
        return web.Response()
    session = await (new_session(request) if "new" in query else get_session(request))
    if "peek" in query:
        return web.Response(text=session[query["peek"]])
    if "set" in query:
        session[query["set"]] = query["to"]
    if "end" in query:
        session.invalidate()
    if "clear" in query:
        session.clear()
    if "renew" in query:
        session.renew(login=True)
    if "save" in query:
        await session.save()
    if "crash" in query:
        raise ZeroDivisionError
    if "stream" in query:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(json.dumps(dict(session)).encode())
        return response
    return web.json_response(
        {"data": dict(session), "id": session.identity, "created": session.created, "new": session.new}
    )


Start = Callable[..., Awaitable[TestServer]]


class Move:
    """An old app, any number of ours over the same server, and browsers."""

    def __init__(self, url: str, aiohttp_server: AiohttpServer) -> None:
        self.url = url
        self.old = Old(url)
        self._serve = aiohttp_server

    async def old_app(self, **options: Any) -> TestServer:
        app = web.Application()
        app.router.add_post("/", update)
        aiohttp_session.setup(app, self.old.storage(**options))
        return await self._serve(app)

    async def our_app(self, more: str = "", **options: Any) -> TestServer:
        app = web.Application()
        app.router.add_get("/", act)
        setup(app, f"{self.url}&migrate=aiohttp_session{more}", **options)
        return await self._serve(app)

    async def visited(self, data: dict[str, Any] | None = None, **options: Any) -> str:
        """Visit the old app, and give the cookie that it set."""
        async with ClientSession(cookie_jar=CookieJar(unsafe=True, quote_cookie=False)) as browser:
            async with browser.post((await self.old_app(**options)).make_url("/"), json=data or DATA) as response:
                assert response.status == 200
            return next(cookie.value for cookie in browser.cookie_jar)


@pytest.fixture(params=HOLDING)
def holding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def move(holding: str, servers: Servers, aiohttp_server: AiohttpServer) -> AsyncIterator[Move]:
    parameters = {"migrate_collection": "old"} if STORAGES[holding][0] == "mongodb" else {}
    made = Move(new_url(servers, holding, **parameters), aiohttp_server)
    yield made
    await made.old.close()


on_redis = pytest.mark.parametrize("holding", ["redis"])


class Answer:
    def __init__(self, status: int, body: Any, cookies: list[str]) -> None:
        self.status, self.body = status, body
        self.cookies = {line.partition("=")[0]: line for line in cookies}
        """The lines `Set-Cookie` by their names."""
        self.ours = self.cookies.get(OURS, "").partition(";")[0].partition("=")[2]

    @property
    def data(self) -> Any:
        return self.body["data"]


async def ask(server: TestServer, query: str = "", **cookies: str) -> Answer:
    """Send these cookies, and no other."""
    header = "; ".join(f"{name}={value}" for name, value in cookies.items())
    async with (
        ClientSession(cookie_jar=DummyCookieJar()) as browser,
        browser.get(server.make_url(f"/?{query}"), headers={"Cookie": header} if header else {}) as response,
    ):
        text = await response.text()
        body = json.loads(text) if text.startswith("{") else text
        return Answer(response.status, body, response.headers.getall("Set-Cookie", []))


REMOVED = "AIOHTTP_SESSION=; Path=/; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT; HttpOnly; SameSite=Lax"


@pytest.mark.parametrize("stream", ["", "stream"])
async def test_a_visitor_of_the_old_app_keeps_its_session_and_is_given_our_cookie(move: Move, stream: str) -> None:
    old_id = await move.visited()
    assert await move.old.get(f"{OLD}_{old_id}") is not None
    ours = await move.our_app()
    answer = await ask(ours, stream, AIOHTTP_SESSION=old_id)
    assert answer.status == 200
    assert (answer.body if stream else answer.data) == DATA
    assert answer.cookies[OLD] == REMOVED
    assert re.fullmatch(r"[\w-]{43}", answer.ours)
    assert await move.old.get(f"{OLD}_{old_id}") is None
    again = await ask(ours, session=answer.ours)
    assert (again.data, again.body["id"], again.body["new"], again.cookies) == (DATA, answer.ours, False, {})


async def test_a_request_that_reads_a_single_word_is_given_our_cookie(move: Move) -> None:
    answer = await ask(await move.our_app(), "peek=user", AIOHTTP_SESSION=await move.visited())
    assert (answer.body, answer.cookies[OLD], len(answer.ours)) == ("bob", REMOVED, 43)


@on_redis
@pytest.mark.parametrize("query", ["", "new"])
async def test_the_bare_middleware_takes_over_as_well(move: Move, query: str, aiohttp_server: AiohttpServer) -> None:
    old_id = await move.visited()
    storage = storage_from_url(f"{move.url}&migrate=aiohttp_session")
    app = web.Application(middlewares=[session_middleware(storage)])
    app.router.add_get("/", act)
    answer = await ask(await aiohttp_server(app), query, AIOHTTP_SESSION=old_id)
    assert (answer.status, answer.data, answer.cookies[OLD]) == (200, {} if query else DATA, REMOVED)
    assert await move.old.get(f"{OLD}_{old_id}") is None
    await storage.close()


async def test_a_browser_moves_through_both_apps(move: Move) -> None:
    ours = await move.our_app()
    async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as browser:
        await browser.post((await move.old_app(max_age=3600)).make_url("/"), json=DATA)
        async with browser.get(ours.make_url("/?set=more&to=1")) as response:
            assert (await response.json())["data"] == {**DATA, "more": "1"}
        assert [cookie.key for cookie in browser.cookie_jar] == [OURS]
        async with browser.get(ours.make_url("/")) as response:
            assert (await response.json())["data"] == {**DATA, "more": "1"}


async def test_requests_at_the_same_time_share_one_session(move: Move) -> None:
    """As a page that loads its parts: in two processes, before any cookie of ours is set."""
    old_id = await move.visited()
    processes = [await move.our_app(), await move.our_app()]
    asked = [ask(processes[number % 2], f"set=k{number}&to=v", AIOHTTP_SESSION=old_id) for number in range(12)]
    answers = await asyncio.gather(*asked)
    assert {(answer.status, answer.ours) for answer in answers} == {(200, answers[0].ours)}
    found = await ask(processes[0], session=answers[0].ours)
    assert found.data == {**DATA, **{f"k{number}": "v" for number in range(12)}}


async def test_a_visitor_whose_response_was_lost_finds_its_session_again(move: Move) -> None:
    old_id = await move.visited()
    ours = await move.our_app()
    assert (await ask(ours, "crash", AIOHTTP_SESSION=old_id)).status == 500
    lost = await ask(ours, "set=more&to=1", AIOHTTP_SESSION=old_id)
    again = await ask(ours, AIOHTTP_SESSION=old_id)
    assert (again.data, again.ours) == ({**DATA, "more": "1"}, lost.ours)
    assert again.cookies[OLD] == REMOVED


ENDINGS: dict[str, Callable[[str, str], list[tuple[str, dict[str, str]]]]] = {
    "at once": lambda ours, old: [("end", {OLD: old})],
    "by new_session, without loading it": lambda ours, old: [("new", {OLD: old})],
    "by new_session, when it was taken over": lambda ours, old: [("", {OLD: old}), ("new", {OLD: old})],
    "later": lambda ours, old: [("", {OLD: old}), ("end", {OURS: ours})],
    "later, with both cookies": lambda ours, old: [("", {OLD: old}), ("end", {OURS: ours, OLD: old})],
    "by renew at login": lambda ours, old: [("", {OLD: old}), ("renew", {OURS: ours})],
}


@pytest.mark.parametrize("how", ENDINGS)
async def test_the_old_cookie_brings_no_ended_session_back(move: Move, how: str) -> None:
    old_id, given = await move.visited(), ""
    ours = await move.our_app()
    for step in range(len(ENDINGS[how]("", ""))):
        query, cookies = ENDINGS[how](given, old_id)[step]
        answer = await ask(ours, query, **cookies)
        assert answer.status == 200
        assert OLD not in cookies or answer.cookies[OLD] == REMOVED
        given = answer.ours
    assert await move.old.get(f"{OLD}_{old_id}") is None
    revived = await ask(ours, AIOHTTP_SESSION=old_id)
    assert (revived.status, revived.data, revived.ours, revived.cookies[OLD]) == (200, {}, "", REMOVED)
    if "later" in how:
        assert (await ask(ours, AIOHTTP_SESSION=old_id, session=given)).data == {}


@pytest.mark.parametrize("end", ["new", "end"])
async def test_what_was_ended_by_save_stays_ended_where_the_handler_crashes(move: Move, end: str) -> None:
    old_id = await move.visited()
    ours = await move.our_app()
    assert (await ask(ours, f"{end}&save&crash", AIOHTTP_SESSION=old_id)).status == 500
    assert (await ask(ours, AIOHTTP_SESSION=old_id)).data == {}


@on_redis
async def test_logouts_under_made_up_ids_fill_no_storage(move: Move) -> None:
    before = set(await move.old.client.keys())
    ours = await move.our_app()
    assert (await ask(ours, "end", AIOHTTP_SESSION=uuid4().hex)).status == 200
    lasting = [await move.old.client.ttl(key) for key in set(await move.old.client.keys()) - before]
    assert max(lasting, default=0) <= 60


@asynccontextmanager
async def held(server: TestServer, old_id: str, *, has_read: bool) -> AsyncIterator[asyncio.Task[Answer]]:
    """Hold a request, before or after it has read the old record, until the end of the block."""
    storage = get_storage(server.app)
    assert isinstance(storage, LegacySource)
    read, is_there, goes_on = storage.read_legacy, asyncio.Event(), asyncio.Event()

    async def read_and_wait(key: str) -> Any:
        value = await read(key) if has_read else None
        is_there.set()
        await goes_on.wait()
        return value if has_read else await read(key)

    storage.read_legacy = read_and_wait  # type: ignore[method-assign]
    late = asyncio.create_task(ask(server, AIOHTTP_SESSION=old_id))
    await is_there.wait()
    yield late
    goes_on.set()
    await late


@on_redis
@pytest.mark.parametrize("end", ["end", "new"])
async def test_a_request_that_has_read_the_old_record_does_not_undo_a_logout(move: Move, end: str) -> None:
    old_id = await move.visited()
    slow, fast = await move.our_app(), await move.our_app()
    async with held(slow, old_id, has_read=True) as late:
        assert (await ask(fast, end, AIOHTTP_SESSION=old_id)).status == 200
    answer = late.result()
    assert (answer.status, answer.data, answer.ours) == (200, {}, "")


@on_redis
@pytest.mark.parametrize("has_read", [True, False])
async def test_a_request_that_is_overtaken_is_given_the_session_of_the_faster(move: Move, has_read: bool) -> None:
    old_id = await move.visited()
    slow, fast = await move.our_app(), await move.our_app()
    async with held(slow, old_id, has_read=has_read) as late:
        given = (await ask(fast, "set=more&to=1", AIOHTTP_SESSION=old_id)).ours
    answer = late.result()
    assert (answer.status, answer.data, answer.ours) == (200, {**DATA, "more": "1"}, given)


@on_redis
async def test_the_old_app_that_writes_late_brings_no_ended_session_back(move: Move) -> None:
    """Both versions run side by side, and a slow request of the old one ends after the logout in ours."""
    old_id = await move.visited()
    ours = await move.our_app()
    written = await move.old.get(f"{OLD}_{old_id}")
    await ask(ours, "end", AIOHTTP_SESSION=old_id)
    await move.old.put(f"{OLD}_{old_id}", written)
    assert (await ask(ours, AIOHTTP_SESSION=old_id)).data == {}
    assert await move.old.get(f"{OLD}_{old_id}") is None


USES = ["", "peek=user", "stream", "set=user&to=ann", "save", "renew", "new", "new&set=user&to=ann", "end", "clear"]


@pytest.mark.parametrize("use", USES)
async def test_the_old_cookie_beside_a_session_of_ours_is_removed_along_with_its_record(move: Move, use: str) -> None:
    """The old app has begun another session for the visitor, as old and new processes serve at the same time."""
    ours = await move.our_app()
    given = (await ask(ours, "set=user&to=bob")).ours
    beside = await move.visited()
    answer = await ask(ours, use, session=given, AIOHTTP_SESSION=beside)
    assert (answer.status, answer.cookies[OLD]) == (200, REMOVED)
    assert await move.old.get(f"{OLD}_{beside}") is None
    now = answer.ours or given
    assert (await ask(ours, session=now)).data.get("user") in ("bob", "ann", None)
    await ask(ours, "end", session=now)  # a logout, with the one cookie that the browser has left
    revived = await ask(ours, AIOHTTP_SESSION=beside)
    assert (revived.data, revived.ours) == ({}, "")


@on_redis
async def test_a_session_of_ours_ends_what_another_browser_window_has_taken_over_beside_it(move: Move) -> None:
    ours = await move.our_app()
    given = (await ask(ours, "set=user&to=bob")).ours
    beside = await move.visited()
    taken = (await ask(ours, AIOHTTP_SESSION=beside)).ours
    assert (await ask(ours, session=taken)).data == DATA
    both = await ask(ours, session=given, AIOHTTP_SESSION=beside)
    assert (both.data, both.cookies[OLD]) == ({"user": "bob"}, REMOVED)
    assert (await ask(ours, session=taken)).data == {}
    assert (await ask(ours, AIOHTTP_SESSION=beside)).data == {}


@on_redis
async def test_the_session_that_was_taken_over_lives_on_where_the_old_cookie_comes_again(move: Move) -> None:
    old_id = await move.visited()
    ours = await move.our_app()
    given = (await ask(ours, AIOHTTP_SESSION=old_id)).ours
    for _ in range(2):
        again = await ask(ours, session=given, AIOHTTP_SESSION=old_id)
        assert (again.data, again.cookies) == (DATA, {OLD: REMOVED})
        assert (await ask(ours, session=given)).data == DATA
        given = (await ask(ours, "renew", session=given)).ours


BAD = [
    b"{}",
    b"",
    b"{oops",
    b"null",
    b"[1]",
    b"5",
    b'"x"',
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"foo": 1}',
    b'{"created": 1, "session": {}}',
    b'{"created": 1, "session": [1]}',
    b'{"created": "x", "session": {"a": 1}}',
    b'{"created": Infinity, "session": {"a": 1}}',
]


async def test_a_value_that_is_no_session_is_an_anonymous_visitor(move: Move) -> None:
    ours = await move.our_app()
    for number, value in enumerate(BAD):
        if value == b"[" * 100_000 and move.old.kind == "mongodb":
            continue  # BSON does not nest so deep
        old_id = f"{number:032x}"
        await move.old.put(f"{OLD}_{old_id}", value)
        answer = await ask(ours, AIOHTTP_SESSION=old_id)
        assert (answer.status, answer.data, answer.ours) == (200, {}, ""), value
        assert answer.cookies[OLD] == REMOVED


@on_redis
async def test_a_key_of_another_type_is_no_session(move: Move) -> None:
    old_id = secrets.token_hex(16)
    await move.old.client.lpush(f"{OLD}_{old_id}", "x")
    answer = await ask(await move.our_app(), AIOHTTP_SESSION=old_id)
    assert (answer.status, answer.data, answer.cookies[OLD]) == (200, {}, REMOVED)
    await move.old.client.delete(f"{OLD}_{old_id}")


async def test_a_session_that_was_ended_in_the_old_app_is_none(move: Move) -> None:
    async def end(request: web.Request) -> web.Response:
        (await aiohttp_session.get_session(request)).invalidate()
        return web.Response()

    old_id = await move.visited()
    old = await move.old_app()
    old.app.router._frozen = False
    old.app.router.add_get("/end", end)
    async with ClientSession(cookie_jar=DummyCookieJar()) as browser:
        await browser.get(old.make_url("/end"), headers={"Cookie": f"{OLD}={old_id}"})
    assert await move.old.get(f"{OLD}_{old_id}") is not None
    assert (await ask(await move.our_app(), AIOHTTP_SESSION=old_id)).data == {}


@pytest.mark.parametrize("ids", ["uuid", "any"])
async def test_a_cookie_that_names_no_session_of_the_old_app_is_an_anonymous_visitor(move: Move, ids: str) -> None:
    old_id = await move.visited()
    ours = await move.our_app(f"&migrate_ids={ids}")
    known = (await ask(ours, "set=user&to=eve")).ours
    storage = get_storage(ours.app)
    manager = ours.app[MANAGER]
    assert isinstance(manager, StorageSessionManager)
    prefix = getattr(storage, "prefix", "")
    value: str | bytes
    for value in (
        f"{OLD}_{old_id}",  # a key as it is stored
        manager.writer.key_of(known),
        prefix + manager.writer.key_of(known),
        f"{old_id}%20",
        f'"{old_id}\\012\\015flush_all"',
        "x" * 300,
        "x" * 6000,
        "",
        '""',
        "é",
        "\udcff",
        f"{old_id}\udcff",
    ):
        answer = await raw(ours, f"{OLD}={value}".encode("utf-8", "surrogateescape"))
        assert answer.startswith(b"HTTP/1.1 200"), ascii(value)
        assert b'"data": {}' in answer, ascii(value)
        assert b"Set-Cookie: session=" not in answer, ascii(value)
    assert (await ask(ours, AIOHTTP_SESSION=old_id)).data == DATA


@pytest.mark.parametrize("ids", ["uuid", "any"])
async def test_of_two_old_cookies_none_is_taken_over(move: Move, ids: str) -> None:
    """A sibling domain may have set one of them, and which one is sent first means nothing."""
    mine, tossed = await move.visited(), await move.visited({"user": "mallory"})
    ours = await move.our_app(f"&migrate_ids={ids}")
    for cookies in ((mine, tossed), (tossed, mine), (tossed, tossed, mine), (mine, *[tossed] * 8)):
        answer = await raw(ours, "; ".join(f"{OLD}={value}" for value in cookies).encode())
        assert b'"data": {}' in answer
        assert b"Set-Cookie" not in answer  # the cookie stays with its record
    beside = await move.visited()
    given = (await ask(ours, "set=user&to=ann")).ours
    await raw(ours, f"session={given}; {OLD}={tossed}; {OLD}={beside}".encode())
    for ended in (tossed, beside):
        assert (await ask(ours, AIOHTTP_SESSION=ended)).data == {}
    twice = await raw(ours, f"{OLD}={mine}; {OLD}={mine}".encode())
    assert b'"bob"' in twice


async def raw(server: TestServer, cookie: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: " + cookie + b"\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), AT_LAST)
    writer.close()
    await writer.wait_closed()
    return answer


@on_redis
async def test_another_old_apps_session_is_not_read_through_a_common_beginning_of_names(move: Move) -> None:
    """Its key is `AIOHTTP_SESSION_V2_` and an id, which is what the cookie `V2_` and that id would name."""
    other = await move.visited(cookie_name="AIOHTTP_SESSION_V2")
    assert (await ask(await move.our_app(), AIOHTTP_SESSION=f"V2_{other}")).data == {}
    right = await move.our_app("&migrate_cookie=AIOHTTP_SESSION_V2")
    assert (await ask(right, AIOHTTP_SESSION_V2=other)).data == DATA


async def test_ids_of_an_apps_own_are_taken_where_the_url_says_so(move: Move) -> None:
    old_id = await move.visited(key_factory=lambda: "my.own-id:7_x")
    assert (await ask(await move.our_app(), AIOHTTP_SESSION=old_id)).data == {}
    ours = await move.our_app("&migrate_ids=any")
    assert (await ask(ours, AIOHTTP_SESSION=old_id)).data == DATA
    old_id = await move.visited(key_factory=lambda: "my/own=id")
    assert (await ask(ours, AIOHTTP_SESSION=f'"{old_id}"')).data == DATA  # as aiohttp sends it


@on_redis
async def test_the_old_cookie_is_removed_with_the_attributes_that_it_had(move: Move) -> None:
    old_id = await move.visited(cookie_name="__Secure-old")
    ours = await move.our_app("&migrate_cookie=__Secure-old&migrate_path=/shop&migrate_domain=example.org")
    answer = await ask(ours, **{"__Secure-old": old_id})
    assert answer.data == DATA
    line = "__Secure-old=; Path=/shop; Domain=example.org; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Secure;"
    assert answer.cookies["__Secure-old"].startswith(line)


async def test_a_session_keeps_its_age_and_is_not_older_than_the_lifetime(move: Move) -> None:
    now = int(datetime.now(UTC).timestamp())
    ours = await move.our_app(lifetime=3600)
    for created, found in ((now - 1800, now - 1800), (now - 7200, None), (now + 500, now), (None, now), (0, now)):
        old_id = secrets.token_hex(16)
        await move.old.put(f"{OLD}_{old_id}", json.dumps({"created": created, "session": DATA}).encode())
        answer = await ask(ours, AIOHTTP_SESSION=old_id)
        assert answer.data == ({} if found is None else DATA), created
        assert found is None or found <= answer.body["created"] <= found + (60 if found == now else 0), created


@pytest.mark.parametrize("holding", ["mongodb", "pymongo"])
async def test_a_document_past_its_date_is_absent_however_late_the_sweep(move: Move) -> None:
    expired, live = secrets.token_hex(16), secrets.token_hex(16)
    for old_id, seconds in ((expired, -1), (live, 3600)):
        expire = (datetime.now(UTC) + timedelta(seconds=seconds)).replace(tzinfo=None)
        data = {"created": 1, "session": DATA}
        await move.old.collection.insert_one({"_id": f"{OLD}_{old_id}".encode(), "data": data, "expire": expire})
    ours = await move.our_app()
    assert (await ask(ours, AIOHTTP_SESSION=expired)).data == {}
    assert (await ask(ours, AIOHTTP_SESSION=live)).data == DATA


@on_redis
async def test_a_logout_also_ends_an_old_session_that_our_codec_could_not_hold(move: Move) -> None:
    old_id = await move.visited({**DATA, "ratio": float("inf")})
    ours = await move.our_app()
    login = await ask(ours, "set=user&to=ann", AIOHTTP_SESSION=old_id)
    assert OLD not in login.cookies
    await ask(ours, "end", session=login.ours, AIOHTTP_SESSION=old_id)
    assert await move.old.get(f"{OLD}_{old_id}") is None
    assert (await ask(await move.our_app(codec=Loose()), AIOHTTP_SESSION=old_id)).data == {}


class Loose:
    """JSON with what JSON does not have."""

    def dumps(self, data: dict[str, Any]) -> str:
        return json.dumps(data)

    def loads(self, encoded: bytes) -> Any:
        return json.loads(encoded)


@on_redis
async def test_a_session_that_our_codec_cannot_hold_is_left_for_one_that_can(
    move: Move, caplog: pytest.LogCaptureFixture
) -> None:
    old_id = await move.visited({**DATA, "ratio": float("inf")})
    answer = await ask(await move.our_app(), AIOHTTP_SESSION=old_id)
    assert (answer.status, answer.data, answer.cookies) == (200, {}, {})
    assert "session['ratio'] is inf" in caplog.text
    assert (await ask(await move.our_app(codec=Loose()), AIOHTTP_SESSION=old_id)).data["ratio"] == float("inf")


@pytest.mark.parametrize("holding", ["memcached"])
async def test_a_session_that_the_server_cannot_hold_as_ours_is_left_alone(move: Move) -> None:
    old_id = secrets.token_hex(16)
    value = json.dumps({"created": 1, "session": {"a": "x" * ((1 << 20) - 170)}}, separators=(",", ":")).encode()
    await move.old.put(f"{OLD}_{old_id}", value)
    answer = await ask(await move.our_app(), AIOHTTP_SESSION=old_id)
    assert (answer.status, answer.data, answer.cookies) == (200, {}, {})
    assert await move.old.get(f"{OLD}_{old_id}") == value


@on_redis
async def test_an_outage_is_a_503_and_the_session_is_there_afterwards(move: Move) -> None:
    ours = await move.our_app()
    client = get_storage(ours.app)._client  # type: ignore[attr-defined]
    whole = client.execute

    # The server is lost at each of its commands in turn: the old record's load, the note's, the new session's
    # create, the note's, the removal of the old record, and the session's load.
    assert (await ask(ours, AIOHTTP_SESSION=await move.visited())).data == DATA  # the server knows the script
    for fails_at in range(6):
        sent: list[Any] = []
        old_id = await move.visited()

        async def execute(commands: Any, at: int = fails_at, sent: list[Any] = sent) -> Any:
            sent += commands
            if len(sent) > at:
                raise ConnectionResetError("lost")
            return await whole(commands)

        client.execute = execute
        answer = await ask(ours, AIOHTTP_SESSION=old_id)
        assert (answer.status, answer.cookies) == (503, {}), sent
        client.execute = whole
        assert (await ask(ours, AIOHTTP_SESSION=old_id)).data == DATA, sent


@on_redis
async def test_nobody_is_given_a_session_before_the_old_record_is_removed(move: Move) -> None:
    """Else a logout in the one process could be undone when the note of the other has ended."""
    old_id = await move.visited()
    failing, ours = await move.our_app(), await move.our_app()
    written = await move.old.get(f"{OLD}_{old_id}")
    storage = get_storage(failing.app)
    assert isinstance(storage, LegacySource)

    async def fail(key: str) -> None:
        raise ConnectionResetError("lost")

    storage.remove_legacy = fail  # type: ignore[method-assign]
    assert (await ask(failing, AIOHTTP_SESSION=old_id)).status == 500
    assert await move.old.get(f"{OLD}_{old_id}") == written
    assert (await ask(ours, AIOHTTP_SESSION=old_id)).data == DATA
    assert await move.old.get(f"{OLD}_{old_id}") is None


@on_redis
async def test_no_id_can_be_read_from_the_server(move: Move) -> None:
    client = move.old.client
    before = set(await client.keys("*"))
    old_id = await move.visited()
    answer = await ask(await move.our_app(), AIOHTTP_SESSION=old_id)
    added = set(await client.keys("*")) - before
    assert len(added) == 2  # the session and the note
    for key in added:
        stored = key + await client.get(key)
        assert old_id.encode() not in stored
        assert answer.ours.encode() not in stored
        assert urlsafe_b64decode(f"{answer.ours}=") not in stored


@on_redis
async def test_a_note_lasts_as_long_as_a_session_that_is_not_used(move: Move) -> None:
    ours = [await move.our_app(idle_timeout=idle) for idle in (5, 7200)]
    left = []
    for server in ours:
        before = set(await move.old.client.keys("*"))
        given = (await ask(server, AIOHTTP_SESSION=await move.visited())).ours
        manager = server.app[MANAGER]
        assert isinstance(manager, StorageSessionManager)
        session_key = manager.writer.key_of(given).encode()
        (note,) = [key for key in set(await move.old.client.keys("*")) - before if not key.endswith(session_key)]
        left.append(await move.old.client.ttl(note))
    assert 5 < left[0] <= 60
    assert 7100 < left[1] <= 7200


@on_redis
async def test_a_request_with_our_cookie_alone_or_that_asks_for_no_session_costs_nothing_more(move: Move) -> None:
    old_id = await move.visited()
    ours = await move.our_app()
    given = (await ask(ours, "set=a&to=1")).ours
    client = get_storage(ours.app)._client  # type: ignore[attr-defined]
    sent, whole = [], client.execute

    async def execute(commands: Any) -> Any:
        sent.extend(commands)
        return await whole(commands)

    client.execute = execute
    assert (await ask(ours, "untouched", AIOHTTP_SESSION=old_id)).cookies == {}
    assert sent == []
    assert (await ask(ours, session=given)).data == {"a": "1"}
    assert [command[0] for command in sent] == ["MGET"]


async def test_an_app_that_takes_nothing_over_has_the_plain_manager(servers: Servers, holding: str) -> None:
    app = web.Application()
    setup(app, new_url(servers, holding))
    assert type(app[MANAGER]) is StorageSessionManager


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis://?migrate=aiohttp-session", "migrate='aiohttp-session' is not known; did you mean 'aiohttp_session'"),
        ("memcached://?migrate=", "migrate='' is not known; known: aiohttp_session"),
        ("memcached://a,b?migrate=express", "migrate='express' is not known; known: aiohttp_session"),
        ("mongodb+pymongo://h/?migrate=flask", "migrate='flask' is not known"),
        ("redis+unix:///s?migrate=flask", "migrate='flask' is not known"),
        ("redis+sentinel://h/s?migrate=flask", "migrate='flask' is not known"),
        ("redis+cluster://h?migrate=aiohttp_session", "has no parameter 'migrate'"),
        ("mysql://h/d?migrate=aiohttp_session", "has no parameter 'migrate'"),
        ("memory://?migrate=aiohttp_session", "migrate"),
        ("redis://?migrate=aiohttp_session&migrate_ids=uid", "migrate_ids='uid' is not known; did you mean 'uuid'"),
        ("redis://?migrate=aiohttp_session&migrate_cookie=a%20b", "Cookie.name='a b'.: name must be"),
        ("redis://?migrate=aiohttp_session&migrate_path=x", "Cookie.path='x'.: path must"),
        ("redis://?migrate=aiohttp_session&migrate_domain=x;y", "Cookie.domain='x;y'.: domain must"),
        ("redis://?migrate_cookie=OLD", "migrate_cookie= is given, but nothing is to be taken over; add migrate="),
        ("mongodb+pymongo://h/?migrate_collection=old", "migrate_collection= is given, but nothing"),
        ("mongodb+pymongo://h/?migrate=aiohttp_session&migrate_collection=a-b", "migrate_collection='a-b' must be"),
        ("redis://?migrate=aiohttp_session&migrate_cookie=session", "'session' is of the sessions .*=Cookie.name="),
    ],
)
def test_what_cannot_be_taken_over_is_refused_at_setup(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        setup(web.Application(), url)


def test_setup_says_that_sessions_are_taken_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aiohttp_store")
    setup(web.Application(), "redis://?migrate=aiohttp_session&migrate_cookie=OLD", cookie=Cookie(name="NEW"))
    assert "sessions of aiohttp-session in the cookie 'OLD' are taken over" in caplog.text
    assert "remove migrate= when" in caplog.text


def test_sentinels_and_sockets_take_over_as_well() -> None:
    for url in ("redis+unix:///s", "redis+sentinel://h/s", "rediss://h", "valkey://h"):
        storage = storage_from_url(f"{url}?migrate=aiohttp_session")
        assert isinstance(storage, LegacySource)
        assert storage.legacy is not None


def test_the_guides_set_up_is_one() -> None:
    python = blocks(PAGES["docs/migrating.rst"], "python")
    example = next(block.code for block in python if "?migrate=aiohttp_session" in block.code)
    told: dict[str, Any] = {}
    exec(example, told)
    manager = told["app"][MANAGER]
    assert manager._takeover is not None
    assert (manager.lifetimes.idle_timeout, manager.cookie.persistent) == (30 * 86_400, True)
