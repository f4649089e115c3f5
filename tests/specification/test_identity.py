"""Which id a visitor has, and that no other works."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from aiohttp import web

from aiohttp_store import (
    Conflict,
    Cookie,
    Gone,
    Outcome,
    Record,
    Storage,
    StorageUnavailable,
    Write,
    get_session,
    get_storage,
    new_session,
)
from aiohttp_store._lifecycle.request_state import MANAGER
from aiohttp_store.codec import Envelope, successor_of
from aiohttp_store.cookie import CookieReader, key_of_id

from ..conftest import ONE_SERVER, Client, Serve
from ..support.proxy import Proxy
from ..support.remote import Left, Remote, kept, sessions_in
from .test_streams import Failing

SECRETS = [f"secret number {number} is thirty-two bytes" for number in range(2)]


async def show(request: web.Request) -> web.Response:
    return web.json_response(dict(await get_session(request)))


async def put(request: web.Request) -> web.Response:
    session = await get_session(request)
    session.update(request.query)
    return web.json_response(dict(session))


async def renew(request: web.Request) -> web.Response:
    session = await get_session(request)
    session.renew()
    session.update(request.query)
    return web.Response()


async def logout(request: web.Request) -> web.Response:
    (await get_session(request)).invalidate()
    return web.Response()


async def restart(request: web.Request) -> web.Response:
    if "load" in request.query:
        await get_session(request)
    session = await new_session(request)
    if "write" in request.query:
        session["fresh"] = True
    return web.Response()


class Barrier:
    """Holds handlers that have loaded their session until the test lets them go."""

    def __init__(self) -> None:
        self.loaded = asyncio.Event()
        self.go = asyncio.Event()

    async def held(self, request: web.Request) -> web.Response:
        session = await get_session(request)
        assert session.identity
        self.loaded.set()
        await self.go.wait()
        if request.query["then"] == "renew":
            session.renew()
        elif request.query["then"] == "write":
            session["held"] = True
        elif request.query["then"] == "logout":
            session.invalidate()
        elif request.query["then"] == "restart":
            await new_session(request)
        elif request.query["then"] == "apply":
            await session.apply(lambda session: session.invalidate())
        return web.Response()


HANDLERS = (show, put, renew, logout, restart)


async def start(serve: Serve, storage: str | Storage, **options: Any) -> tuple[Client, Barrier]:
    barrier = Barrier()
    return await serve(*HANDLERS, barrier.held, storage=storage, **options), barrier


async def get(client: Client, path: str, cookie: str | None = None) -> tuple[Any, str | None]:
    """Give the body and the `Set-Cookie` of an answer to a request with just this cookie header."""
    client.session.cookie_jar.clear()
    async with client.get(path, headers={} if cookie is None else {"Cookie": cookie}) as response:
        assert response.status == 200, await response.text()
        body = await response.json() if response.content_type == "application/json" else None
        return body, response.headers.get("Set-Cookie")


async def begin(client: Client) -> str:
    _, header = await get(client, "/put?a=1")
    assert header is not None
    return header.partition(";")[0]


def id_of(cookie: str) -> str:
    return cookie.partition("=")[2]


async def held(client: Client, barrier: Barrier, then: str, cookie: str) -> asyncio.Task[tuple[Any, str | None]]:
    barrier.loaded.clear()
    task = asyncio.create_task(get(client, f"/held?then={then}", cookie))
    await barrier.loaded.wait()
    return task


async def live_ids(client: Client, *cookies: str) -> list[str]:
    assert client.app is not None
    manager: Any = client.app[MANAGER]
    while tasks := manager.background._tasks:
        await asyncio.wait(tasks)  # what nobody knows any more is deleted beside the requests
    ids = [id_of(cookie) for cookie in cookies]
    records = await get_storage(client.app).load([key_of_id(one) for one in ids])
    return [
        one
        for one, record in zip(ids, records, strict=True)
        if record is not None and successor_of(record.data) is None
    ]


async def test_a_renewal_keeps_the_data_and_kills_the_old_id(serve: Serve, storage_url: str) -> None:
    client, _ = await start(serve, storage_url)
    old = await begin(client)
    _, header = await get(client, "/renew?b=2", old)
    assert header is not None
    assert header.partition(";")[0] != old
    assert await get(client, "/show", header.partition(";")[0]) == ({"a": "1", "b": "2"}, None)
    assert (await get(client, "/show", old))[0] == {}


async def test_a_login_that_clears_the_session_first_leaves_nothing_of_the_user_before(
    serve: Serve, storage_url: str
) -> None:
    async def login(request: web.Request) -> web.Response:
        session = await get_session(request)
        if "user" in session:
            session.clear()
        session.renew(login=True)
        session.update(request.query)
        return web.Response()

    client = await serve(show, login, storage=storage_url)
    _, header = await get(client, "/login?user=ann&role=admin")
    assert header is not None
    ann = header.partition(";")[0]
    _, header = await get(client, "/login?user=bob", ann)
    assert header is not None
    assert await get(client, "/show", header.partition(";")[0]) == ({"user": "bob"}, None)
    assert await get(client, "/show", ann) == ({}, None)


async def test_requests_in_flight_with_the_old_id_neither_revive_it_nor_set_a_cookie(
    serve: Serve, storage_url: str
) -> None:
    client, barrier = await start(serve, storage_url)
    old = await begin(client)
    late = await held(client, barrier, "write", old)
    _, header = await get(client, "/renew", old)
    assert header is not None
    barrier.go.set()
    assert await late == (None, None)
    assert await live_ids(client, old) == []
    assert (await get(client, "/show", header.partition(";")[0]))[0] == {"a": "1"}


async def test_of_two_concurrent_renewals_one_id_lives(serve: Serve, storage_url: str) -> None:
    client, barrier = await start(serve, storage_url)
    old = await begin(client)
    late = await held(client, barrier, "renew", old)
    _, won = await get(client, "/renew", old)
    barrier.go.set()
    _, lost = await late
    assert won is not None
    assert lost is None
    assert await live_ids(client, old, won.partition(";")[0]) == [id_of(won.partition(";")[0])]


async def test_renewals_at_the_same_moment_leave_one_id(serve: Serve, storage_url: str) -> None:
    client, _ = await start(serve, storage_url)
    old = await begin(client)

    async def one() -> str | None:
        async with client.get("/renew", headers={"Cookie": old}) as response:
            assert response.status == 200
            return response.headers.get("Set-Cookie")

    client.session.cookie_jar.clear()
    headers = [header for header in await asyncio.gather(*(one() for _ in range(8))) if header]
    assert len(headers) == 1
    assert await get(client, "/show", headers[0].partition(";")[0]) == ({"a": "1"}, None)


async def test_a_logout_during_a_renewal_wins(serve: Serve, storage_url: str) -> None:
    client, barrier = await start(serve, storage_url)
    old = await begin(client)
    late = await held(client, barrier, "renew", old)
    await get(client, "/logout", old)
    barrier.go.set()
    assert await late == (None, None)
    assert await live_ids(client, old) == []


ENDS = ["logout", "restart", "apply"]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("renewals", [1, 2])
async def test_a_logout_ends_the_session_that_was_renewed_since_it_was_loaded(
    renewals: int, end: str, serve: Serve, storage_url: str
) -> None:
    client, barrier = await start(serve, storage_url)
    cookie = await begin(client)
    logout = await held(client, barrier, end, cookie)
    cookies = [cookie]
    for _ in range(renewals):
        _, header = await get(client, "/renew?b=1", cookies[-1])
        assert header is not None
        cookies.append(header.partition(";")[0])
    barrier.go.set()
    await logout
    for one in cookies:
        assert await get(client, "/show", one) == ({}, None)
    assert await live_ids(client, *cookies) == []


@pytest.mark.parametrize("end", ["logout", "restart"])
@pytest.mark.parametrize("renewals", [1, 2])
async def test_a_logout_with_an_id_that_was_renewed_ends_the_session(
    renewals: int, end: str, serve: Serve, storage_url: str
) -> None:
    client, _ = await start(serve, storage_url)
    cookies = [await begin(client)]
    for _ in range(renewals):
        _, header = await get(client, "/renew?b=1", cookies[-1])
        assert header is not None
        cookies.append(header.partition(";")[0])
    _, header = await get(client, f"/{end}", cookies[0])
    assert header is not None
    assert "Max-Age=0" in header
    assert await live_ids(client, *cookies) == []


@pytest.mark.parametrize("end", ["logout", "restart"])
async def test_a_logout_ends_every_session_that_the_request_presented(end: str, serve: Serve, storage_url: str) -> None:
    client, _ = await start(serve, storage_url)
    cookies = [await begin(client) for _ in range(3)]
    _, header = await get(client, f"/{end}", "; ".join(cookies))
    assert header is not None
    assert "Max-Age=0" in header
    assert await live_ids(client, *cookies) == []


async def test_a_logout_with_one_live_session_and_one_that_was_renewed_ends_both(
    serve: Serve, storage_url: str
) -> None:
    client, _ = await start(serve, storage_url)
    renewed, live = await begin(client), await begin(client)
    _, header = await get(client, "/renew", renewed)
    assert header is not None
    assert await get(client, "/show", f"{renewed}; {live}") == ({"a": "1"}, None)
    await get(client, "/logout", f"{renewed}; {live}")
    assert await live_ids(client, live, header.partition(";")[0]) == []


async def test_a_logout_ends_what_another_clock_takes_for_expired(serve: Serve) -> None:
    client, _ = await start(serve, "memory://")
    cookie = await begin(client)
    assert client.app is not None
    manager: Any = client.app[MANAGER]
    now, manager.lifetimes.clock = manager.lifetimes.clock, lambda: time.time() + 10 * 86_400
    assert await get(client, "/show", cookie) == ({}, None)
    await get(client, "/logout", cookie)
    manager.lifetimes.clock = now
    assert await get(client, "/show", cookie) == ({}, None)


async def test_a_logout_ends_a_session_in_the_format_of_another_version(serve: Serve) -> None:
    client, _ = await start(serve, "memory://")
    cookie = await begin(client)
    assert client.app is not None
    storage, key = get_storage(client.app), key_of_id(id_of(cookie))
    (record,) = await storage.load([key])
    assert record is not None
    await storage.save([Write(key, record.version, b"\x09of another version", 60)])
    assert await get(client, "/show", cookie) == ({}, None)
    await get(client, "/logout", cookie)
    assert await storage.load([key]) == [None]


@pytest.mark.parametrize("then", ["/logout", "/renew", "/put?b=2"])
async def test_a_renewal_that_meets_another_request_leaves_no_record_behind(then: str, serve: Serve) -> None:
    storage = Remote()
    client, barrier = await start(serve, storage)
    old = await begin(client)
    late = await held(client, barrier, "renew", old)
    await get(client, then, old)
    barrier.go.set()
    await late
    await client.close()
    assert len(sessions_in(storage)) == (0 if then == "/logout" else 1)


async def test_a_gone_session_sends_no_cookie_though_its_signature_is_old(serve: Serve) -> None:
    storage = Remote()
    before, _ = await start(serve, storage, secret=SECRETS[1])
    old = await begin(before)
    client, barrier = await start(serve, storage, secret=SECRETS)
    late = await held(client, barrier, "write", old)
    await get(client, "/logout", old)
    barrier.go.set()
    assert await late == (None, None)


async def test_a_write_during_a_renewal_moves_with_it(serve: Serve, storage_url: str) -> None:
    client, barrier = await start(serve, storage_url)
    old = await begin(client)
    late = await held(client, barrier, "renew", old)
    await get(client, "/put?b=2", old)
    barrier.go.set()
    _, header = await late
    assert header is not None
    assert (await get(client, "/show", header.partition(";")[0]))[0] == {"a": "1", "b": "2"}
    assert await live_ids(client, old) == []


@pytest.mark.parametrize("storage_name", ONE_SERVER)
async def test_a_renewal_whose_answer_was_lost_loses_nobody(
    storage_name: str, make_url: Callable[..., str], serve: Serve
) -> None:
    async with Proxy(make_url()) as proxy:

        async def renew_and_lose(request: web.Request) -> web.Response:
            session = await get_session(request)
            session.renew()
            proxy.lose_answers = 1
            return web.Response()

        client = await serve(show, put, renew_and_lose, storage=proxy.url)
        old = await begin(client)
        key = key_of_id(id_of(old)).encode()
        proxy.matching = key.hex().encode() if storage_name == "mysql" else key
        _, header = await get(client, "/renew_and_lose", old)
        assert proxy.lose_answers == 0
        assert header is not None
        assert (await get(client, "/show", header.partition(";")[0]))[0] == {"a": "1"}
        assert (await get(client, "/show", old))[0] == {}
        assert await live_ids(client, old) == []
        await client.close()


@pytest.mark.parametrize("failing", ["write", "renew"])
async def test_who_is_late_for_a_renewal_finds_the_session_gone(
    failing: str, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    class Keeping(Remote):
        async def delete(self, keys: Any) -> None:
            raise StorageUnavailable("down")

    storage = Keeping()
    client, barrier = await start(serve, storage)
    old = await begin(client)
    late = await held(client, barrier, failing, old)
    _, header = await get(client, "/renew", old)
    assert header is not None
    barrier.go.set()
    assert await late == (None, None)
    assert await get(client, "/show", old) == ({}, None)
    assert (await get(client, "/show", header.partition(";")[0]))[0] == {"a": "1"}
    assert not caplog.records  # nothing is damaged, and it is of no other version


@pytest.mark.parametrize("load", ["", "&load=1"])
@pytest.mark.parametrize("write", ["", "&write=1"])
async def test_a_new_session_destroys_the_old_record(load: str, write: str, serve: Serve, storage_url: str) -> None:
    client, _ = await start(serve, storage_url)
    old = await begin(client)
    _, header = await get(client, f"/restart?x=1{load}{write}", old)
    assert header is not None
    assert await live_ids(client, old) == []
    if write:
        assert (await get(client, "/show", header.partition(";")[0]))[0] == {"fresh": True}
    else:
        assert "Max-Age=0" in header


async def test_a_new_session_that_nobody_had_and_nobody_fills_says_nothing(serve: Serve) -> None:
    client, _ = await start(serve, "memory://")
    assert await get(client, "/restart") == (None, None)


async def test_an_id_that_nobody_issued_is_never_adopted(serve: Serve, storage_url: str) -> None:
    client, _ = await start(serve, storage_url)
    planted = "session=" + secrets.token_urlsafe(32)
    _, header = await get(client, "/put?a=1", planted)
    assert header is not None
    assert not header.startswith(planted)
    assert await live_ids(client, planted) == []
    assert (await get(client, "/show", planted))[0] == {}


async def test_an_id_that_ended_is_never_adopted(serve: Serve, storage_url: str) -> None:
    client, _ = await start(serve, storage_url)
    old = await begin(client)
    await get(client, "/logout", old)
    _, header = await get(client, "/put?b=2", old)
    assert header is not None
    assert not header.startswith(old)
    assert await live_ids(client, old) == []


@pytest.mark.parametrize("secret", [None, SECRETS], ids=["plain", "signed"])
async def test_of_two_cookies_the_genuine_one_is_used_in_either_order(
    secret: list[str] | None, serve: Serve, storage_url: str
) -> None:
    client, _ = await start(serve, storage_url, secret=secret)
    mine = await begin(client)
    for other in (
        "session=" + secrets.token_urlsafe(32),
        "session=" + secrets.token_urlsafe(32) + "." + secrets.token_urlsafe(32),
        "session=junk",
        'session=""',
    ):
        for cookies in (f"{mine}; {other}", f"{other}; {mine}", f"{other}; x=y; {mine}; {other}"):
            assert await get(client, "/show", cookies) == ({"a": "1"}, None)
    ended = await begin(client)
    await get(client, "/logout", ended)
    assert await get(client, "/show", f"{ended}; {mine}") == ({"a": "1"}, None)


async def test_two_live_sessions_in_one_request_are_nobodys(
    serve: Serve, storage_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    client, _ = await start(serve, storage_url)
    mine, tossed = await begin(client), await begin(client)
    assert await get(client, "/show", f"{tossed}; {mine}") == ({}, None)
    assert "2 live sessions in cookies 'session'" in caplog.text
    assert "__Host-" in caplog.text


@pytest.mark.parametrize("secret", [None, SECRETS], ids=["plain", "signed"])
async def test_more_cookies_than_are_looked_at_are_nobodys_session(
    secret: list[str] | None, serve: Serve, storage_url: str
) -> None:
    client, _ = await start(serve, storage_url, secret=secret)
    mine, tossed = await begin(client), await begin(client)
    alien = ["session=" + CookieReader("session", secret).value(secrets.token_urlsafe(32)) for _ in range(8)]
    assert await get(client, "/show", "; ".join([tossed] * 4 + [mine])) == ({}, None)
    assert await get(client, "/show", "; ".join([mine] * 9)) == ({"a": "1"}, None)
    assert await get(client, "/show", "; ".join([*alien[:3], mine])) == ({"a": "1"}, None)
    for crowd in (
        [tossed, *alien[:3], mine],
        [tossed, tossed, *alien, mine],
        [mine, *alien[:3], tossed],
        [mine, *alien[:4]],
    ):
        assert await get(client, "/show", "; ".join(crowd)) == ({}, None)
        async with client.session.get(
            client.make_url("/show"), headers=[("Cookie", one) for one in crowd]
        ) as response:  # in a header each
            assert await response.json() == {}
    _, header = await get(client, "/put?b=2", "; ".join([tossed, *alien, mine]))
    assert header is not None
    assert header.partition(";")[0] not in (mine, tossed)
    for alive in (mine, tossed):
        assert (await get(client, "/show", alive))[0] == {"a": "1"}


async def test_forged_cookies_are_counted_before_they_are_verified(serve: Serve) -> None:
    client, _ = await start(serve, "memory://", secret=SECRETS)
    mine = await begin(client)
    forged = [f"session={secrets.token_urlsafe(32)}.{secrets.token_urlsafe(32)}" for _ in range(4)]
    assert (await get(client, "/show", "; ".join([*forged[:3], mine])))[0] == {"a": "1"}
    assert (await get(client, "/show", "; ".join([mine, *forged])))[0] == {}


async def test_an_id_in_the_address_is_ignored(serve: Serve) -> None:
    client, _ = await start(serve, "memory://")
    mine = await begin(client)
    assert (await get(client, f"/show?session={id_of(mine)}&sid={id_of(mine)}&{mine}"))[0] == {}


async def test_a_bad_signature_costs_no_access_to_the_storage(serve: Serve) -> None:
    storage = Failing()
    client, _ = await start(serve, storage, secret=SECRETS[0])
    storage.down = "load"
    forged = f"session={secrets.token_urlsafe(32)}.{secrets.token_urlsafe(32)}"
    for cookie in (forged, "session=" + secrets.token_urlsafe(32), "session=x", "; ".join([forged] * 9)):
        assert (await get(client, "/show", cookie))[0] == {}


async def test_a_secret_can_be_rotated_and_old_cookies_are_sent_again(serve: Serve, storage_url: str) -> None:
    if storage_url.startswith("memory"):
        from aiohttp_store.storages.memory import MemoryStorage

        storage: Any = MemoryStorage()
    else:
        storage = storage_url
    before, _ = await start(serve, storage, secret=SECRETS[1])
    old = await begin(before)
    after, _ = await start(serve, storage, secret=SECRETS)
    body, header = await get(after, "/show", old)
    assert body == {"a": "1"}
    assert header is not None
    fresh = header.partition(";")[0]
    assert id_of(fresh).partition(".")[0] == id_of(old).partition(".")[0]
    assert await get(after, "/show", fresh) == ({"a": "1"}, None)
    assert (await get(before, "/show", fresh))[0] == {}


async def test_an_unsigned_cookie_is_refused_once_a_secret_is_set(serve: Serve) -> None:
    from aiohttp_store.storages.memory import MemoryStorage

    storage = MemoryStorage()
    before, _ = await start(serve, storage)
    old = await begin(before)
    after, _ = await start(serve, storage, secret=SECRETS)
    assert (await get(after, "/show", old))[0] == {}


async def test_ids_are_never_drawn_twice_and_a_collision_takes_nothing_over(
    serve: Serve, storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = await start(serve, storage_url)
    mine = await begin(client)
    draws = [id_of(mine), id_of(mine), secrets.token_urlsafe(32)]
    monkeypatch.setattr("aiohttp_store._engine.writing.secrets.token_urlsafe", lambda _: draws.pop(0))
    _, header = await get(client, "/put?b=2")
    assert header is not None
    assert draws == []
    assert not header.startswith(mine)
    assert (await get(client, "/show", mine))[0] == {"a": "1"}


class Taken(Left):
    """A storage that never creates, and, once it is `paused`, waits at each save until the client has left."""

    answer: Any = Gone()
    saves = 0
    paused = False

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        if all(write.expected is not None for write in writes):
            return await self.memory.save(writes)
        self.saves += 1
        if self.paused:
            await self._wait("save")
        return [self.answer for _ in writes]


ANSWERS = [Gone(), Conflict(Record(b"12345678", b"")), Conflict(Record(b"", b"junk")), None]


@pytest.mark.parametrize("answer", ANSWERS, ids=["gone", "conflict", "junk", "nothing"])
@pytest.mark.parametrize("path", ["/put?a=1", "/restart?write=1", "/renew", "/save", "/apply"])
async def test_a_storage_that_never_creates_is_an_outage_and_is_not_asked_without_end(
    path: str, answer: Any, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def save(request: web.Request) -> web.Response:
        session = await get_session(request)
        session["a"] = 1
        await session.save()
        return web.Response()

    async def apply(request: web.Request) -> web.Response:
        await (await get_session(request)).apply(lambda session: session.update(a=1))
        return web.Response()

    storage = Taken()
    storage.answer = answer
    client = await serve(*HANDLERS, save, apply, storage=storage)
    cookie = await begin_in(storage)
    caplog.clear()
    async with client.get(path, headers={"Cookie": cookie} if path == "/renew" else {}) as response:
        assert (response.status, response.headers.get("Retry-After")) == (503, "1")
        assert "Set-Cookie" not in response.headers
    assert 1 <= storage.saves <= 4
    assert f"is broken: it answered {type(answer).__name__} to a create under a random key" in caplog.text
    assert (await get(client, "/show", cookie))[0] == {"a": "1"}


async def begin_in(storage: Taken) -> str:
    session_id = secrets.token_urlsafe(32)
    record = Envelope(time.time(), time.time(), None, b'{"a":"1"}').pack()
    await storage.memory.save([Write(key_of_id(session_id), None, record, 3600)])
    return f"session={session_id}"


@pytest.mark.parametrize("path", ["/put?a=1", "/restart?write=1", "/renew"])
async def test_a_storage_that_never_creates_is_not_asked_without_end_after_the_client_has_left(
    path: str, serve: Serve
) -> None:
    storage = Taken()
    client = await serve(*HANDLERS, storage=storage)
    cookie = await begin_in(storage)
    storage.paused = True
    await storage.leave(client, asyncio.create_task(get(client, path, cookie if path == "/renew" else None)))
    await client.close()  # waits for what the request has left behind
    assert 1 <= storage.saves <= 4
    assert list(kept(storage)) == [key_of_id(id_of(cookie))]


async def test_logouts_and_visits_without_a_session_store_nothing(serve: Serve) -> None:
    client, _ = await start(serve, "memory://")
    for cookie in (None, "session=junk", "session=" + secrets.token_urlsafe(32)):
        for path in ("/show", "/logout", "/renew"):
            await get(client, path, cookie)
    assert client.app is not None
    storage: Any = get_storage(client.app)
    assert len(kept(storage)) == 0


class Paused(Remote):
    """Memory whose saves wait until the test lets them go, while `pausing` is set."""

    pausing = False

    def __init__(self) -> None:
        super().__init__()
        self.saving, self.go = asyncio.Event(), asyncio.Event()

    async def save(self, writes: Any) -> Any:
        if self.pausing:
            self.pausing = False
            self.saving.set()
            await self.go.wait()
        return await super().save(writes)


async def while_saving(serve: Serve, then: Any, *, first: bool = False) -> tuple[Client, Paused, str, str | None]:
    """Do `then` to a session while another task of its request saves it; give the old cookie and the new header."""
    storage = Paused()

    async def handler(request: web.Request) -> web.Response:
        session = await get_session(request)
        session["hit"] = 1
        storage.pausing = True
        saving = asyncio.create_task(session.save())
        await storage.saving.wait()
        result = then(request, session)
        if asyncio.iscoroutine(result):
            await result
        storage.go.set()
        await asyncio.gather(saving, return_exceptions=True)
        return web.Response()

    client = await serve(*HANDLERS, handler, storage=storage)
    old = "session=none" if first else await begin(client)
    _, header = await get(client, "/handler", old)
    return client, storage, old, header


async def test_a_renewal_during_a_save_is_still_done(serve: Serve) -> None:
    client, _, old, header = await while_saving(serve, lambda _, session: session.renew(login=True))
    assert header is not None
    assert not header.startswith(old)
    assert await live_ids(client, old) == []
    assert (await get(client, "/show", header.partition(";")[0]))[0] == {"a": "1", "hit": 1}


async def test_an_invalidation_during_a_save_ends_the_session(serve: Serve) -> None:
    _, storage, _, header = await while_saving(serve, lambda _, session: session.invalidate())
    assert header is not None
    assert "Max-Age=0" in header
    assert len(kept(storage)) == 0


async def test_what_is_written_after_an_invalidation_during_a_save_is_a_new_session(serve: Serve) -> None:
    def then(_: object, session: Any) -> None:
        session.invalidate()
        session["next"] = True

    client, storage, _, header = await while_saving(serve, then)
    assert header is not None
    assert (await get(client, "/show", header.partition(";")[0]))[0] == {"next": True}
    assert len(kept(storage)) == 1


async def test_an_invalidation_during_the_first_save_leaves_no_record(serve: Serve) -> None:
    _, storage, _, header = await while_saving(serve, lambda _, session: session.invalidate(), first=True)
    assert header is not None
    assert "Max-Age=0" in header
    assert len(kept(storage)) == 0


async def test_a_new_session_during_a_save_ends_the_old_one(serve: Serve) -> None:
    async def then(request: web.Request, _: object) -> None:
        (await new_session(request))["fresh"] = True

    client, storage, old, header = await while_saving(serve, then)
    assert header is not None
    assert (await get(client, "/show", header.partition(";")[0]))[0] == {"fresh": True}
    assert await live_ids(client, old) == []
    assert len(kept(storage)) == 1


async def test_a_new_session_also_ends_one_that_was_tossed(serve: Serve) -> None:
    client, _ = await start(serve, "memory://")
    mine, tossed = await begin(client), await begin(client)
    _, header = await get(client, "/restart?load=1&write=1", f"{tossed}; {mine}")
    assert header is not None
    assert await live_ids(client, mine, tossed) == []
    assert (await get(client, "/show", f"{tossed}; {header.partition(';')[0]}"))[0] == {"fresh": True}


async def test_an_id_under_one_cookies_name_is_none_under_another(serve: Serve) -> None:
    storage = Remote()
    shop, _ = await start(serve, storage, cookie=Cookie(name="shop"))
    admin, _ = await start(serve, storage, cookie=Cookie(name="admin"))
    mine = await begin(shop)
    assert (await get(shop, "/show", mine))[0] == {"a": "1"}
    assert (await get(admin, "/show", mine.replace("shop=", "admin=")))[0] == {}


async def test_a_client_that_leaves_while_its_old_session_is_destroyed_gets_its_new_one_stored(serve: Serve) -> None:
    storage = Left()
    storage.verb = "delete"
    client, _ = await start(serve, storage)
    old = await begin(client)
    storage.verb = "save"  # on condition of the version
    await storage.leave(client, asyncio.create_task(get(client, "/restart?write=1", old)))
    await client.close()
    (record,) = kept(storage).values()
    assert record.data.endswith(b'{"fresh":true}')
