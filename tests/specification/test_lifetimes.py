"""When a session ends: idle timeout, lifetime, prolonging. The manager's clock is moved; nothing sleeps."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from aiohttp import web

from aiohttp_store import Cookie, Record, SessionGone, get_session, get_storage
from aiohttp_store._lifecycle.request_state import MANAGER
from aiohttp_store.codec import unpack_envelope
from aiohttp_store.cookie import key_of_id

from ..conftest import Client, Serve

HOUR = 3600.0
DAY = 24 * HOUR


async def begin(request: web.Request) -> web.Response:
    session = await get_session(request)
    session["a"] = 1
    if "idle" in request.query:
        session.idle_timeout = float(request.query["idle"])
    return web.Response()


async def read(request: web.Request) -> web.Response:
    session = await get_session(request, extend="poll" not in request.query)
    return web.json_response(dict(session))


async def write(request: web.Request) -> web.Response:
    session = await get_session(request, extend="poll" not in request.query)
    session["n"] = session.get("n", 0) + 1
    return web.json_response(dict(session))


async def both(request: web.Request) -> web.Response:
    await get_session(request, extend=False)
    await get_session(request)
    return web.json_response(dict(await get_session(request, extend=False)))


async def login(request: web.Request) -> web.Response:
    (await get_session(request)).renew(login="login" in request.query)
    return web.Response()


HANDLERS = (begin, read, write, both, login)


class Visitor:
    """A client, its app's clock, and what is stored for it."""

    def __init__(self, client: Client) -> None:
        assert client.app is not None
        self.client = client
        self.app = client.app
        self.now = float(int(time.time()))
        manager: Any = self.app[MANAGER]
        manager.lifetimes.clock = lambda: self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds

    async def get(self, path: str, **options: Any) -> Any:
        async with self.client.get(path, **options) as response:
            assert response.status == 200
            self.headers = response.headers
            await response.read()
            return await response.json() if response.content_type == "application/json" else None

    @property
    def id(self) -> str:
        return next(cookie.value for cookie in self.client.session.cookie_jar)

    async def record(self) -> Record:
        (record,) = await get_storage(self.app).load([key_of_id(self.id)])
        assert record is not None
        return record

    async def written(self) -> float:
        return unpack_envelope((await self.record()).data).written - self.now


@pytest.fixture
async def visitor(serve: Serve, storage_url: str) -> Visitor:
    return Visitor(await serve(*HANDLERS, storage=storage_url, idle_timeout=HOUR, lifetime=DAY))


async def test_what_is_written_after_a_session_was_emptied_and_saved_has_a_lifetime_of_its_own(serve: Serve) -> None:
    async def refill(request: web.Request) -> web.Response:
        session = await get_session(request)
        session.clear()
        await session.save()
        session["b"] = 2
        return web.Response()

    visitor = Visitor(await serve(*HANDLERS, refill, storage="memory://", idle_timeout=DAY, lifetime=DAY))
    await visitor.get("/begin")
    visitor.wait(DAY - HOUR)
    await visitor.get("/refill")
    visitor.wait(2 * HOUR)
    assert await visitor.get("/read") == {"b": 2}


async def test_a_session_that_is_unused_for_its_idle_timeout_ends(visitor: Visitor) -> None:
    await visitor.get("/begin")
    visitor.wait(HOUR - 1)
    assert await visitor.get("/read", headers={"Cookie": f"session={visitor.id}"}) == {"a": 1}
    visitor.wait(HOUR)
    assert await visitor.get("/read") == {}


async def test_a_session_that_is_used_goes_on(visitor: Visitor) -> None:
    await visitor.get("/begin")
    for _ in range(10):
        visitor.wait(HOUR * 0.9)
        assert await visitor.get("/read") == {"a": 1}


async def test_a_session_ends_with_its_lifetime_however_busy_it_is(visitor: Visitor) -> None:
    await visitor.get("/begin")
    for _ in range(47):
        visitor.wait(HOUR / 2)
        assert "a" in await visitor.get("/write")
    visitor.wait(HOUR / 2)
    assert await visitor.get("/read") == {}


@pytest.mark.parametrize(("path", "left"), [("/login", 0.5), ("/login?login=1", 24)])
async def test_only_a_login_restarts_the_lifetime(path: str, left: float, visitor: Visitor) -> None:
    await visitor.get("/begin")
    for _ in range(47):
        visitor.wait(HOUR / 2)
        await visitor.get("/read")
    await visitor.get(path)
    created = unpack_envelope((await visitor.record()).data).created
    assert created + DAY - visitor.now == pytest.approx(left * HOUR, abs=1)


async def test_a_read_prolongs_at_most_once_per_twentieth_of_the_idle_timeout(visitor: Visitor) -> None:
    await visitor.get("/begin")
    first = (await visitor.record()).version[:8]
    versions = []
    for _ in range(10):
        visitor.wait(HOUR / 20 / 5 + 0.1)
        await visitor.get("/read")
        versions.append((await visitor.record()).version[:8])
    assert versions[:4] == [first] * 4
    assert len(set(versions)) == 3


async def test_polling_does_not_prolong(visitor: Visitor) -> None:
    await visitor.get("/begin")
    version = (await visitor.record()).version[:8]
    for _ in range(3):
        visitor.wait(HOUR * 0.3)
        assert await visitor.get("/read?poll=1") == {"a": 1}
        assert (await visitor.record()).version[:8] == version  # nor does it write
    visitor.wait(HOUR * 0.1)
    assert await visitor.get("/read?poll=1") == {}


async def test_a_change_while_polling_is_kept_and_does_not_prolong(visitor: Visitor) -> None:
    await visitor.get("/begin")
    visitor.wait(HOUR * 0.6)
    assert await visitor.get("/write?poll=1") == {"a": 1, "n": 1}
    assert await visitor.written() == pytest.approx(-HOUR * 0.6, abs=1)
    visitor.wait(HOUR * 0.4)
    assert await visitor.get("/read?poll=1") == {}


async def test_one_call_that_extends_is_enough(visitor: Visitor) -> None:
    await visitor.get("/begin")
    visitor.wait(HOUR * 0.9)
    await visitor.get("/both")
    assert await visitor.written() == pytest.approx(0, abs=1)


@pytest.mark.parametrize("idle", [HOUR / 4, HOUR * 20])
async def test_its_own_idle_timeout_is_honoured_by_later_requests(idle: float, visitor: Visitor) -> None:
    await visitor.get(f"/begin?idle={idle}")
    visitor.wait(idle * 0.98)
    assert "a" in await visitor.get("/read?poll=1")
    visitor.wait(idle * 0.03)
    assert await visitor.get("/read?poll=1") == {}


async def test_the_cookies_age_is_the_sessions_and_ends_with_the_lifetime(visitor: Visitor) -> None:
    await visitor.get(f"/begin?idle={20 * HOUR}")
    assert f"Max-Age={20 * 3600};" in visitor.headers["Set-Cookie"]
    visitor.wait(10 * HOUR)
    await visitor.get("/read")
    assert f"Max-Age={14 * 3600};" in visitor.headers["Set-Cookie"]


async def test_what_the_browser_does_with_the_age_does_not_matter(visitor: Visitor) -> None:
    await visitor.get("/begin?idle=60")
    kept = visitor.id
    visitor.wait(61)
    visitor.client.session.cookie_jar.clear()
    assert await visitor.get("/read", headers={"Cookie": f"session={kept}"}) == {}


async def test_a_clock_that_was_set_back_prolongs_instead_of_ending(visitor: Visitor) -> None:
    await visitor.get("/begin")
    visitor.wait(-5 * HOUR)
    assert await visitor.get("/read") == {"a": 1}
    assert await visitor.written() == pytest.approx(0, abs=1)


@pytest.mark.parametrize("path", ["/read", "/write"])
async def test_a_session_that_began_while_the_clock_was_years_ahead_has_an_ordinary_lifetime(
    path: str, visitor: Visitor
) -> None:
    visitor.wait(3650 * DAY)
    await visitor.get("/begin")
    visitor.wait(-3650 * DAY)
    for _ in range(46):
        assert (await visitor.get(path))["a"] == 1
        assert unpack_envelope((await visitor.record()).data).created <= visitor.now
        visitor.wait(HOUR / 2)
    visitor.wait(HOUR)
    assert await visitor.get("/read") == {}


async def test_polling_keeps_no_session_alive_that_a_wrong_clock_has_written(visitor: Visitor) -> None:
    visitor.wait(3650 * DAY)
    await visitor.get("/begin")
    visitor.wait(-3650 * DAY)
    for _ in range(3):
        assert await visitor.get("/read?poll=") == {"a": 1}
        visitor.wait(HOUR / 4)
    visitor.wait(HOUR / 2)
    assert await visitor.get("/read?poll=") == {}


async def test_a_little_skew_between_machines_writes_nothing(visitor: Visitor) -> None:
    await visitor.get("/begin")
    version = (await visitor.record()).version
    visitor.wait(-30)
    assert await visitor.get("/read") == {"a": 1}
    assert (await visitor.record()).version[:8] == version[:8]


async def test_over_thirty_days_are_kept_on_every_server(serve: Serve, storage_url: str) -> None:
    visitor = Visitor(await serve(*HANDLERS, storage=storage_url, idle_timeout=90 * DAY))
    await visitor.get("/begin")
    visitor.wait(60 * DAY)
    assert await visitor.get("/read") == {"a": 1}


async def test_each_server_forgets_a_session_by_itself(serve: Serve, storage_url: str) -> None:
    visitor = Visitor(await serve(*HANDLERS, storage=storage_url, idle_timeout=1))
    await visitor.get("/begin")
    kept = visitor.id
    await asyncio.sleep(2.1)  # memcached counts whole seconds; the manager's clock stands still
    assert await visitor.get("/read", headers={"Cookie": f"session={kept}"}) == {}


@pytest.mark.parametrize("persistent", [False, True])
async def test_a_persistent_cookie_is_sent_again_when_the_session_is_prolonged(persistent: bool, serve: Serve) -> None:
    client = await serve(*HANDLERS, idle_timeout=HOUR, cookie=Cookie(persistent=persistent))
    visitor = Visitor(client)
    await visitor.get("/begin")
    assert ("Max-Age=3600" in visitor.headers["Set-Cookie"]) is persistent
    await visitor.get("/read")
    assert "Set-Cookie" not in visitor.headers
    visitor.wait(HOUR / 2)
    await visitor.get("/read")
    assert ("Set-Cookie" in visitor.headers) is persistent
    await visitor.get("/write")
    assert ("Set-Cookie" in visitor.headers) is persistent


async def test_two_processes_prolong_once(serve: Serve, storage_url: str, storage_name: str) -> None:
    if storage_name == "memory":
        return
    one, other = [Visitor(await serve(*HANDLERS, storage=storage_url, idle_timeout=HOUR)) for _ in range(2)]
    await one.get("/begin")
    headers = {"Cookie": f"session={one.id}"}
    one.wait(HOUR / 2)
    other.wait(HOUR / 2)
    await one.get("/read", headers=headers)
    version = (await one.record()).version[:8]
    await other.get("/read", headers=headers)
    assert (await one.record()).version[:8] == version


async def test_a_long_request_cannot_keep_its_session_beyond_the_lifetime(serve: Serve) -> None:
    saved: list[int] = []

    async def websocket(request: web.Request) -> web.StreamResponse:
        session = await get_session(request)
        response = web.StreamResponse()
        await response.prepare(request)
        with pytest.raises(SessionGone):
            for number in range(100):
                guest.wait(HOUR / 2)
                session["n"] = number
                await session.save()
                saved.append(number)
        return response

    guest = Visitor(await serve(*HANDLERS, websocket, idle_timeout=HOUR, lifetime=DAY))
    await guest.get("/begin")
    kept = guest.id
    await guest.get("/websocket")
    assert len(saved) == 47
    assert await get_storage(guest.app).load([key_of_id(kept)]) == [None]


class Long:
    """A handler that loads the session and writes to it only when it is told to go on."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.loaded, self.go_on = asyncio.Event(), asyncio.Event()

    async def long(self, request: web.Request) -> web.Response:
        session = await get_session(request)
        self.loaded.set()
        await self.go_on.wait()
        session["long"] = True
        match self.how:
            case "save":
                await session.save()
            case "apply":
                await session.apply(lambda fresh: fresh.update(applied=fresh.get("n")))
            case "renew":
                session.renew()
        return web.Response()

    async def begin(self, visitor: Visitor) -> asyncio.Task[Any]:
        request = asyncio.create_task(visitor.get("/long", headers={"Cookie": f"session={visitor.id}"}))
        await self.loaded.wait()
        return request


@pytest.mark.parametrize("on_conflict", ["merge", "overwrite"])
@pytest.mark.parametrize("how", ["end", "save", "apply", "renew"])
async def test_a_request_longer_than_the_idle_timeout_keeps_a_session_that_others_use(
    how: str, on_conflict: Any, serve: Serve, storage_url: str
) -> None:
    handler = Long(how)
    app = await serve(*HANDLERS, handler.long, storage=storage_url, idle_timeout=HOUR, on_conflict=on_conflict)
    visitor = Visitor(app)
    await visitor.get("/begin")
    request = await handler.begin(visitor)
    for _ in range(3):
        visitor.wait(HOUR / 2)
        await visitor.get("/write")
    handler.go_on.set()
    await request
    merged = {"a": 1, "n": 3, "long": True} | ({"applied": 3} if how == "apply" else {})
    overwritten = {"a": 1, "long": True}
    assert await visitor.get("/read") == (merged if on_conflict == "merge" or how == "apply" else overwritten)


@pytest.mark.parametrize("how", ["end", "renew"])
async def test_a_request_longer_than_the_idle_timeout_revives_no_session(
    how: str, serve: Serve, storage_url: str
) -> None:
    handler = Long(how)
    visitor = Visitor(await serve(*HANDLERS, handler.long, storage=storage_url, idle_timeout=HOUR))
    await visitor.get("/begin")
    kept = visitor.id
    request = await handler.begin(visitor)
    visitor.wait(HOUR)
    handler.go_on.set()
    await request
    assert "Set-Cookie" not in visitor.headers
    assert await get_storage(visitor.app).load([key_of_id(kept)]) == [None]
