"""`cookie://`: sessions that travel in the cookie itself, and what cannot be done with them."""

from __future__ import annotations

import asyncio
import logging
import re
import string
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from aiohttp import ClientSession, DummyCookieJar, web
from aiohttp.test_utils import make_mocked_request
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from hypothesis import assume, given
from hypothesis import strategies as st

from aiohttp_store import (
    ConfigError,
    Cookie,
    Record,
    Session,
    SessionGone,
    SessionTooLarge,
    StorageURL,
    get_session,
    get_storage,
    new_session,
    open_storage,
    session_middleware,
    setup,
)
from aiohttp_store._engine.cookie_manager import CookieSessionManager
from aiohttp_store._engine.sealing import MAX_INFLATED, Seal
from aiohttp_store._lifecycle.request_state import MANAGER
from aiohttp_store.codec import Envelope

from ..conftest import AiohttpClient, AiohttpServer, Client, Serve
from ..support.app import AppProcess
from . import test_headers, test_identity, test_lifetimes, test_requests, test_session, test_streams
from .test_lifetimes import DAY, HOUR
from .test_requests import JUNK, make_app, raw

SECRET = "a secret of more than thirty-two bytes"
OTHER = "another secret of more than thirty-two bytes"


@pytest.fixture
def storage_url() -> str:
    return "cookie://"


@pytest.fixture
def serve(serve: Serve, storage_url: str) -> Serve:
    return partial(serve, storage=storage_url, secret=SECRET)


@pytest.fixture
def app(storage_url: str) -> web.Application:
    return make_app(storage_url, secret=SECRET)


@pytest.fixture
async def client(app: web.Application, aiohttp_client: AiohttpClient) -> Client:
    return await aiohttp_client(app)


class Visitor(test_lifetimes.Visitor):
    """Finds in the cookie what others find in the storage."""

    async def record(self) -> Record:
        opened = Seal("session", SECRET).open(self.id)
        assert opened is not None
        return Record(self.id.encode(), opened[0][17:])


@pytest.fixture
async def visitor(serve: Serve) -> Visitor:
    return Visitor(await serve(*test_lifetimes.HANDLERS, idle_timeout=HOUR, lifetime=DAY))


def _borrow(module: Any, *names: str) -> None:
    """Run another file's tests over `cookie://` too: here they find the fixtures above."""
    globals().update({name: getattr(module, name) for name in names})


_borrow(
    test_requests,
    "test_a_visitor_counts_up_and_another_has_a_count_of_its_own",
    "test_nested_changes_are_stored_without_changed",
    "test_a_request_that_does_not_ask_stores_nothing_and_says_nothing",
    "test_reading_an_empty_session_sets_no_cookie",
    "test_a_crashed_handler_saves_nothing",
)
_borrow(
    test_session,
    "test_it_behaves_as_a_dictionary",
    "test_its_repr_shows_neither_ids_nor_values_and_it_is_not_pickled",
    "test_its_members_tell_its_state",
    "test_a_new_session_is_another_object_and_the_old_one_is_over",
    "test_reload_drops_what_was_not_saved",
    "test_apply_gives_the_result_and_counts_many_tasks_of_one_request",
    "test_a_change_that_fails_leaves_the_session_as_it_was",
    "test_a_value_that_json_cannot_hold_is_a_500_that_names_it",
    "test_its_own_idle_timeout_is_stored_and_makes_the_cookie_persistent",
)
_borrow(
    test_lifetimes,
    "test_a_session_that_is_unused_for_its_idle_timeout_ends",
    "test_a_session_that_is_used_goes_on",
    "test_a_session_ends_with_its_lifetime_however_busy_it_is",
    "test_only_a_login_restarts_the_lifetime",
    "test_a_read_prolongs_at_most_once_per_twentieth_of_the_idle_timeout",
    "test_polling_does_not_prolong",
    "test_a_change_while_polling_is_kept_and_does_not_prolong",
    "test_one_call_that_extends_is_enough",
    "test_its_own_idle_timeout_is_honoured_by_later_requests",
    "test_the_cookies_age_is_the_sessions_and_ends_with_the_lifetime",
    "test_what_the_browser_does_with_the_age_does_not_matter",
)
_borrow(
    test_headers,
    "test_a_junk_cookie_is_cleared_by_a_logout_only",
    "test_vary_names_the_cookie_once_the_session_was_asked_for",
    "test_a_response_with_our_cookie_is_kept_out_of_shared_caches",
    "test_other_cookies_survive",
    "test_a_raised_redirect_is_saved_and_carries_the_cookie",
    "test_an_error_page_of_the_handlers_own_is_saved",
    "test_a_cookie_that_a_browser_will_drop_or_leak_is_warned_about_once",
    "test_bad_cookies_write_no_lines_to_the_log",
)
_borrow(
    test_streams,
    "test_a_crash_after_the_headers_stores_nothing_more",
    "test_after_the_headers_what_needs_a_cookie_is_refused",
    "test_after_the_headers_an_idle_timeout_is_refused",
    "test_a_response_that_is_not_prepared_yet_is_saved_by_the_middleware",
)
_borrow(test_identity, "test_two_live_sessions_in_one_request_are_nobodys")


# One manager, without an app around it.


def manager_of(url: str = "cookie://", **options: Any) -> CookieSessionManager:
    return CookieSessionManager(StorageURL.parse(url), **{"secret": SECRET, **options})


async def sealed(manager: CookieSessionManager, data: dict[str, Any]) -> str:
    """Give the value of the cookie that a new session with this data leaves with."""
    request, response = make_mocked_request("GET", "/"), web.Response()
    state = await manager.load(request)
    Session(state).update(data)
    await manager.save(request, response, state)
    manager.answer(request, response, state)
    return value_in(response.headers["Set-Cookie"])


async def opened(manager: CookieSessionManager, *values: str, name: str = "session") -> dict[str, Any]:
    cookies = "; ".join(f"{name}={value}" for value in values)
    return dict(Session(await manager.load(make_mocked_request("GET", "/", headers={"Cookie": cookies}))))


def value_in(header: str) -> str:
    return header.partition(";")[0].partition("=")[2]


def octets(value: str) -> bytes:
    return urlsafe_b64decode(value + "=" * (-len(value) % 4))


def text(sealed: bytes) -> str:
    return urlsafe_b64encode(sealed).rstrip(b"=").decode()


JSON = st.dictionaries(
    st.text(),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.text() | st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    ),
    min_size=1,
)


@pytest.mark.parametrize("url", ["cookie://", "cookie://?compress=true"])
@given(JSON)
async def test_any_data_comes_back(url: str, data: dict[str, Any]) -> None:
    manager = manager_of(url)
    try:
        value = await sealed(manager, data)
    except SessionTooLarge:
        assume(False)
    assert await opened(manager, value) == data


async def test_a_cookie_with_another_bit_or_character_is_nobodys() -> None:
    manager = manager_of()
    value = await sealed(manager, {"user": "ann"})
    genuine = octets(value)
    assert b"ann" not in genuine
    for bit in range(len(genuine) * 8):
        flipped = bytearray(genuine)
        flipped[bit // 8] ^= 1 << bit % 8
        assert await opened(manager, text(bytes(flipped))) == {}, bit
    for position in range(len(value)):
        for character in string.ascii_letters + string.digits + "-_":
            altered = value[:position] + character + value[position + 1 :]
            assert (Seal("session", SECRET).open(altered) is None) is (altered != value), altered


@pytest.mark.parametrize("length", [1, 2, 3, 4])
async def test_no_last_character_has_a_second_spelling(length: int) -> None:
    manager = manager_of()
    value = await sealed(manager, {"a": "x" * length})
    same = [last for last in string.printable if await opened(manager, value[:-1] + last)]
    assert same == [value[-1]]


async def test_what_another_secret_name_or_hand_made_is_nobodys() -> None:
    manager = manager_of()
    value = await sealed(manager, {"user": "ann"})
    assert await opened(manager, value) == {"user": "ann"}
    assert await opened(manager_of(secret=OTHER), value) == {}
    assert await opened(manager_of(cookie=Cookie(name="other")), value, name="other") == {}
    envelope = Envelope(2e9, 2e9, None, b'{"user":"ann"}').pack()
    for forged in (
        *(value[:end] for end in range(len(value))),
        *(value[start:] for start in range(1, len(value))),
        *(value + more for more in ("A", "AA", "AAAA", "=", "==", value)),
        *(text(bytes(padding) + envelope) for padding in (0, 17, 44, 61)),
        test_identity.SECRETS[0],
    ):
        assert await opened(manager, forged) == {}, forged


def test_each_sealing_has_a_key_of_its_own_that_is_for_sealing_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is derived here once more, after RFC 5869; whoever changes this ends all sessions."""

    def derived(value: str, purpose: bytes | None) -> bytes:
        root = HKDF(SHA256(), 32, None, purpose).derive(SECRET.encode())
        return HKDFExpand(SHA256(), 32, octets(value)[:16]).derive(root)

    used: list[bytes] = []

    def cipher(key: bytes) -> AESGCM:
        used.append(key)
        return AESGCM(key)

    monkeypatch.setattr("aiohttp_store._engine.sealing.AESGCM", cipher)
    values = [Seal("session", SECRET).close(b"content") for _ in range(50)]
    assert used == [derived(value, b"aiohttp_store session cookie encryption session") for value in values]
    assert len(set(used)) == 50
    for value in values:
        for purpose in (None, b"", b"aiohttp_store session cookie encryption other", b"aiohttp_store"):
            with pytest.raises(InvalidTag):
                AESGCM(derived(value, purpose)).decrypt(octets(value)[16:28], octets(value)[28:], b"session")


def test_no_two_sealings_share_a_salt_or_a_nonce() -> None:
    seal = Seal("session", SECRET)
    values = [octets(seal.close(b'{"a":1}')) for _ in range(2000)]
    assert len({value[:16] for value in values}) == len({value[16:28] for value in values}) == 2000


async def test_of_more_than_four_cookies_none_is_looked_at_and_one_twice_is_one() -> None:
    manager = manager_of()
    value, tossed = await sealed(manager, {"a": 1}), await sealed(manager, {"user": "mallory"})
    junk = [text(bytes([number] * 200)) for number in range(4)]
    assert await opened(manager, "junk", *junk[:3], "", value, junk[0]) == {"a": 1}
    assert await opened(manager, *junk, value) == await opened(manager, value, *junk) == {}
    assert await opened(manager, value, value) == await opened(manager, *[value] * 9) == {"a": 1}
    assert await opened(manager, *[tossed] * 4, value) == {}
    assert await opened(manager, tossed, *junk[:3], value) == {}


async def test_more_sealed_cookies_than_are_looked_at_are_nobodys_session(serve: Serve) -> None:
    client = await serve(begin, show, act)
    mine, tossed = await begun(client), await begun(client)
    other = [text(bytes([number] * 200)) for number in range(4)]
    for values in ([tossed] * 4 + [mine], [tossed, *other, mine], [mine, *other]):
        found, header = await ask(client, "/show", "; session=".join(values))
        assert (found["data"], header) == ({}, None)


HEADER = Envelope(2e9, 2e9, None, b"").pack()


@pytest.mark.parametrize(
    ("content", "logged"),
    [
        (b"\x02" + bytes(16) + HEADER + b"{}", "of kind 2"),
        (bytes(17) + b"\x02" + HEADER[1:] + b"{}", "has format 2"),
        (bytes(17) + HEADER[:-1], "is cut off after 26 bytes"),
        (bytes(17) + HEADER + b"[1]", "is of type list"),
        (bytes(17) + HEADER + b"{oops", "cannot be decoded"),
        (b"\x01" + bytes(16) + HEADER + b"{}", "cannot be decompressed"),
        (b"\x01" + bytes(16) + HEADER + zlib.compress(b'{"a":1}')[:-1], "is cut off"),
        (b"\x01" + bytes(16) + HEADER + zlib.compress(b" " * 2**20 + b'{"a":1}'), "has over 65536 bytes"),
    ],
)
async def test_what_was_sealed_and_cannot_be_read_is_nobodys(
    content: bytes, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    manager = manager_of()
    caplog.clear()
    for _ in range(3):
        assert await opened(manager, Seal("session", SECRET).close(content)) == {}
    assert len(caplog.records) == 1
    assert logged in caplog.text


async def test_compressed_and_plain_cookies_are_read_by_both_settings() -> None:
    plain, compressing = manager_of(), manager_of("cookie://?compress=true")
    long: dict[str, Any] = {"a": "tea and milk " * 100}
    values = [await sealed(manager, long) for manager in (plain, compressing)]
    assert len(values[1]) < len(values[0]) / 5
    for value in values:
        assert await opened(plain, value) == await opened(compressing, value) == long
    assert len(await sealed(compressing, {"a": 1})) == len(await sealed(plain, {"a": 1}))  # it would only grow
    longest = {"a": "x" * (MAX_INFLATED - len('{"a":""}'))}
    assert await opened(compressing, await sealed(compressing, longest)) == longest
    with pytest.raises(SessionTooLarge):
        await sealed(compressing, {"a": longest["a"] + "x"})


# Whole requests.


async def begin(request: web.Request) -> web.Response:
    (await get_session(request)).update(a=1, d={"x": [1]}, **request.query)
    return web.Response()


async def show(request: web.Request) -> web.Response:
    session = await get_session(request, extend="poll" not in request.query)
    return web.json_response({"data": dict(session), "id": session.identity})


async def act(request: web.Request) -> web.StreamResponse:
    session = await get_session(request)
    for step in request.query.getall("do"):
        match step:
            case "same":
                session["a"] = session.get("a")
            case "set":
                session["b"] = 2
            case "nest" if "d" in session:
                session["d"]["x"].append(2)
            case "clear" | "invalidate" | "renew" | "changed":
                getattr(session, step)()
            case "save" | "reload":
                await getattr(session, step)()
            case "apply":
                await session.apply(lambda session: session.update(b=3))
            case "new":
                session = await new_session(request)
    if "stream" not in request.query:
        return web.json_response(dict(session))
    response = web.StreamResponse()
    await response.prepare(request)
    return response


async def ask(client: Client, path: str, cookie: str | None = None) -> tuple[Any, str | None]:
    """Give the answer, and the `Set-Cookie` that came with it, to a request with this cookie alone."""
    client.session.cookie_jar.clear()
    async with client.get(path, headers={"Cookie": f"session={cookie}"} if cookie else {}) as response:
        assert response.status == 200, await response.text()
        header = response.headers.get("Set-Cookie")
        assert (response.headers.get("Cache-Control") == "no-store") is (header is not None)
        assert response.headers["Vary"] == "Cookie"
        return await response.json() if response.content_type == "application/json" else None, header


async def begun(client: Client) -> str:
    header = (await ask(client, "/begin"))[1]
    assert header is not None
    return value_in(header)


@pytest.mark.parametrize(
    ("steps", "anonymous", "known"),
    [
        ("", None, None),
        ("set", {"b": 2}, {"a": 1, "d": {"x": [1]}, "b": 2}),
        ("nest", None, {"a": 1, "d": {"x": [1, 2]}}),
        ("nest reload", None, None),
        ("changed", None, {"a": 1, "d": {"x": [1]}}),
        ("save", None, {"a": 1, "d": {"x": [1]}}),
        ("renew", None, {"a": 1, "d": {"x": [1]}}),
        ("apply", {"b": 3}, {"a": 1, "d": {"x": [1]}, "b": 3}),
        ("set save clear", None, "cleared"),
        ("set save nest", {"b": 2}, {"a": 1, "d": {"x": [1, 2]}, "b": 2}),
        ("clear", None, "cleared"),
        ("clear save set", {"b": 2}, {"b": 2}),
        ("invalidate", None, "cleared"),
        ("invalidate set", {"b": 2}, {"b": 2}),
        ("set save invalidate", None, "cleared"),
        ("new", None, "cleared"),
        ("set new", None, "cleared"),
        ("new set", {"b": 2}, {"b": 2}),
    ],
)
async def test_each_end_of_a_request(steps: str, anonymous: Any, known: Any, serve: Serve) -> None:
    client = await serve(begin, show, act)
    query = "&".join(f"do={step}" for step in steps.split() or [""])
    cookie = await begun(client)
    for sent, expected in ((None, anonymous), (cookie, known)):
        _, header = await ask(client, f"/act?{query}", sent)
        if expected is None:
            assert header is None
        elif expected == "cleared":
            assert header is not None
            assert "session=; " in header
            assert "Max-Age=0" in header
        else:
            assert header is not None
            assert (await ask(client, "/show", value_in(header)))[0]["data"] == expected


async def test_a_session_keeps_its_identity_until_it_is_renewed(serve: Serve) -> None:
    async def renew(request: web.Request) -> web.Response:
        session = await get_session(request)
        session.renew()
        await session.save()
        return web.json_response(session.identity)

    client = await serve(begin, show, act, renew)
    cookies = [await begun(client)]
    for step in ("set", "renew", "changed", "invalidate&do=set"):
        header = (await ask(client, f"/act?do={step}", cookies[-1]))[1]
        cookies.append(value_in(header or ""))
    assert (await ask(client, "/show"))[0]["id"] is None
    ids = [(await ask(client, "/show", cookie))[0]["id"] for cookie in cookies]
    assert ids[0] == ids[1] != ids[2] == ids[3] != ids[4]
    assert {len(octets(one)) for one in ids} == {16}
    assert await ask(client, "/show", ids[0]) == ({"data": {}, "id": None}, None)
    told, header = await ask(client, "/renew", cookies[0])
    assert (await ask(client, "/show", value_in(header or "")))[0]["id"] == told != ids[0]


async def test_a_secret_can_be_rotated_and_old_cookies_are_sealed_again(serve: Serve) -> None:
    before, after = await serve(begin, show, secret=OTHER), await serve(show, secret=[SECRET, OTHER])
    old = await begun(before)
    for path in ("/show", "/show?poll=1"):
        answer, header = await ask(after, path, old)
        assert answer["data"] == {"a": 1, "d": {"x": [1]}}
        assert header is not None
        assert await ask(after, "/show", value_in(header)) == (answer, None)
        assert (await ask(before, "/show", value_in(header)))[0]["data"] == {}


@pytest.mark.parametrize(("more", "status"), [(0, 200), (1, 500)])
async def test_a_cookie_may_have_4096_bytes_and_no_more(
    more: int, status: int, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def fill(request: web.Request) -> web.StreamResponse:
        session = await get_session(request)
        session.clear()
        session["a"] = "x" * (2970 + more)
        response = web.StreamResponse()
        if "stream" in request.query:
            await response.prepare(request)
        return response

    client = await serve(begin, fill, show, cookie=Cookie(name="session8"))
    for path in ("/fill", "/fill?stream=1"):
        client.session.cookie_jar.clear()
        async with client.get("/begin") as response:
            before = response.cookies["session8"].value
        async with client.get(path) as response:
            assert response.status == status
            assert ("Set-Cookie" in response.headers) is (status == 200)
        kept = next(cookie.value for cookie in client.session.cookie_jar)
        assert (len(kept) + 8 == 4096) if status == 200 else (kept == before)
        async with client.get("/show") as response:
            data = (await response.json())["data"]
            assert data == ({"a": "x" * 2970} if status == 200 else {"a": 1, "d": {"x": [1]}})
    told = (
        "takes 4098 bytes, and the cookie 'session8' (name and sealed value; the data alone takes 2979) "
        "holds at most 4096"
    )
    assert (told in caplog.text) is (status == 500)


async def test_a_handler_may_catch_that_its_session_is_too_large(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        session = await get_session(request)
        with pytest.raises(SessionTooLarge):
            await session.apply(lambda session: session.update(a="x" * 5000))
        assert session == {"a": 1, "d": {"x": [1]}}
        session["b"] = "x" * 5000
        with pytest.raises(SessionTooLarge) as caught:
            await session.save()
        assert caught.value.limit == 4096 < caught.value.size
        del session["b"]
        return web.Response()

    client = await serve(begin, show, handler)
    _, header = await ask(client, "/handler", await begun(client))
    assert (await ask(client, "/show", value_in(header or "")))[0]["data"] == {"a": 1, "d": {"x": [1]}}


LATE: dict[str, Callable[[Session], Any]] = {
    "set": lambda session: session.update(b=2),
    "delete": lambda session: session.pop("a"),
    "clear": lambda session: session.clear(),
    "invalidate": lambda session: session.invalidate(),
    "renew": lambda session: session.renew(),
    "changed": lambda session: session.changed(),
    "idle": lambda session: setattr(session, "idle_timeout", 60),
    "save": lambda session: session.save(),
    "apply": lambda session: session.apply(lambda _: None),
}


@pytest.mark.parametrize("what", LATE)
async def test_after_the_headers_no_change_is_taken(what: str, serve: Serve) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        session = await get_session(request)
        response = web.StreamResponse()
        await response.prepare(request)
        with pytest.raises(RuntimeError, match="await response.prepare"):
            changing = LATE[what](session)
            if isinstance(changing, Awaitable):
                await changing
        await session.reload()
        assert session == {"a": 1, "d": {"x": [1]}}
        await response.write(b"whole")
        return response

    client = await serve(begin, stream)
    await begun(client)
    async with client.get("/begin"), client.get("/stream") as response:
        assert await response.text() == "whole"


async def test_after_the_headers_a_change_in_a_nested_value_is_told_at_the_end(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        session = await get_session(request)
        session["d"]["x"].append(2)
        response = web.StreamResponse()
        await response.prepare(request)
        if "late" in request.query:
            session["d"]["x"].append(3)
        return response

    client = await serve(begin, stream, show)
    for path, is_told in (("/stream", False), ("/stream?late=1", True)):
        async with client.get("/begin"):
            pass
        async with client.get(path) as response:
            assert "Set-Cookie" in response.headers
        async with client.get("/show") as response:
            assert (await response.json())["data"] == {"a": 1, "d": {"x": [1, 2]}}
        assert ("under cookie:// a change needs a new cookie" in caplog.text) is is_told


async def test_a_session_whose_time_ends_during_its_request_is_gone(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        session = await get_session(request)
        session["b"] = 1
        guest.wait(HOUR)
        if "catch" in request.query:
            for ask in (session.save, session.reload, lambda: session.apply(lambda _: None)):
                with pytest.raises(SessionGone):
                    await ask()
        return web.Response()

    async def reload(request: web.Request) -> web.Response:
        session = await get_session(request)
        guest.wait(HOUR)
        with pytest.raises(SessionGone):
            await session.reload()
        return web.Response()

    guest = Visitor(await serve(begin, handler, reload, idle_timeout=HOUR))
    for path in ("/handler", "/handler?catch=1", "/reload"):
        await guest.get("/begin")
        await guest.get(path)
        assert "Set-Cookie" not in guest.headers


@pytest.mark.parametrize(
    "steps", ["", "set", "set save", "invalidate save", "clear save", "new", "renew", "renew save"]
)
async def test_the_bare_middleware_refuses_what_it_cannot_send(
    steps: str, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
) -> None:
    app = web.Application(middlewares=[session_middleware("cookie://", secret=SECRET)])
    for handler in (begin, show, act):
        app.router.add_get(f"/{handler.__name__}", handler)
    client = await aiohttp_client(app)
    cookie, query = await begun(client), "&".join(f"do={step}" for step in steps.split() or [""])
    client.session.cookie_jar.clear()
    async with client.get(f"/act?stream=1&{query}", headers={"Cookie": f"session={cookie}"}):
        pass
    assert ("use aiohttp_store.setup(app, storage)" in caplog.text) is bool(steps)


async def test_junk_is_an_anonymous_visitor(aiohttp_server: AiohttpServer, app: web.Application) -> None:
    server = await aiohttp_server(app, handler_args={"max_field_size": 16_000})
    for value in [*JUNK, b"A" * 4096, b"A" * 200, b"-" * 4097, b"\xff" * 200]:
        for path, expected in ((b"/show", b'"data": {}'), (b"/count", b"1"), (b"/logout", b"bye")):
            head = b"GET %s HTTP/1.1\r\nHost: x\r\nCookie: session=%s\r\n" % (path, value)
            status, _, body = await raw(server.port, head)
            assert status == 200, (value, body)
            assert expected in body, value


# What cannot be done.


async def test_a_cookie_that_was_copied_before_the_logout_still_works(serve: Serve) -> None:
    """No server knows of the session, so none can end it: only its own times do."""
    client = await serve(begin, show, act, idle_timeout=HOUR)
    clock = Visitor(client)
    copied = await begun(client)
    _, header = await ask(client, "/act?do=invalidate", copied)
    assert header is not None
    assert "Max-Age=0" in header
    assert (await ask(client, "/show", copied))[0]["data"] == {"a": 1, "d": {"x": [1]}}
    clock.wait(HOUR)
    assert (await ask(client, "/show", copied))[0]["data"] == {}


async def test_what_a_clock_sealed_that_was_ahead_is_nobodys(serve: Serve) -> None:
    """A copy of it could not be sealed anew, and would live until the right clock gets there."""
    client = await serve(begin, show, idle_timeout=HOUR, lifetime=HOUR)
    clock = Visitor(client)
    clock.wait(100_000 * HOUR)
    copied = await begun(client)
    clock.wait(-100_000 * HOUR)
    assert (await ask(client, "/show", copied))[0]["data"] == {}
    clock.wait(100_000 * HOUR - 30)
    assert (await ask(client, "/show", copied))[0]["data"] == {"a": 1, "d": {"x": [1]}}


async def test_one_secret_and_one_name_are_one_app(serve: Serve) -> None:
    shop, admin = [await serve(begin, show) for _ in range(2)]
    assert (await ask(admin, "/show", await begun(shop)))[0]["data"] == {"a": 1, "d": {"x": [1]}}
    for options in ({"secret": OTHER}, {"cookie": Cookie(name="admin")}):
        other = await serve(begin, show, **options)
        value = await begun(shop)
        async with other.get("/show", headers={"Cookie": f"session={value}; admin={value}"}) as response:
            assert (await response.json())["data"] == {}


async def test_of_two_requests_at_the_same_time_the_last_answer_overwrites_the_other(serve: Serve) -> None:
    client = await serve(begin, show)
    cookie = await begun(client)
    answers = [await ask(client, f"/begin?{key}=1", cookie) for key in ("one", "two")]
    assert (await ask(client, "/show", value_in(answers[1][1] or "")))[0]["data"] == {
        "a": 1,
        "d": {"x": [1]},
        "two": "1",
    }


def test_what_it_cannot_do_is_said_at_setup(caplog: pytest.LogCaptureFixture) -> None:
    def told() -> list[tuple[int, bool, bool]]:
        return [
            (record.levelno, "a logout clears" in record.message, "compress" in record.message)
            for record in caplog.records
        ]

    for _ in range(2):
        setup(web.Application(), "cookie://", secret=SECRET)
    assert told() == [(logging.WARNING, True, False)]
    for _ in range(2):
        setup(web.Application(), "cookie://?compress=true", secret=SECRET)
    assert told() == [(logging.WARNING, True, False), (logging.WARNING, False, True)]


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("cookie://", {"secret": None}, r"needs secret=…, .* make one with secrets.token_urlsafe\(32\)"),
        ("cookie://", {"secret": "short"}, "secret 1 of 1 has 5 bytes, and 32 are the least"),
        ("cookie://", {"secret": [SECRET, "short"]}, "secret 2 of 2 has 5 bytes"),
        ("cookie://", {"secret": []}, "holds no secret"),
        ("cookie://host", {}, "cookie://host has parts that cookie:// does not use"),
        ("cookie:///path", {}, "parts that cookie:// does not use"),
        ("cookie://user@", {}, "parts that cookie:// does not use"),
        ("cookie://:hidden@/", {}, r"cookie://:\*\*\*@/ has parts"),
        ("cookie://?compres=1", {}, r"no parameter 'compres'; did you mean 'compress'\?"),
        ("cookie://?compress=much", {}, "compress='much' is not of type bool"),
        ("cookies://", {}, r"unknown storage 'cookies://'; did you mean 'cookie://'\?"),
        ("cookie://", {"on_conflict": "merge"}, "on_conflict='merge' contradicts cookie://"),
        ("cookie://", {"on_conflict": "raise"}, "on_conflict='raise' contradicts cookie://"),
        ("cookie://", {"idle_timeout": 0}, "idle_timeout=0 must be"),
        ("cookie://", {"lifetime": -1}, "lifetime=-1 must be"),
        ("cookie://", {"cookie": "session"}, "must be a Cookie"),
        ("cookie://", {"codec": object()}, "must have the methods"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        setup(web.Application(), url, **{"secret": SECRET, **options})


async def test_it_is_no_storage(app: web.Application) -> None:
    with pytest.raises(RuntimeError, match="with another than cookie://"):
        get_storage(app)
    with pytest.raises(ConfigError, match="cookie:// is no storage"):
        async with open_storage("cookie://"):
            pass
    manager_of(on_conflict="overwrite")  # which is what happens


async def test_two_processes_with_one_secret_share_their_visitors() -> None:
    processes = [AppProcess("cookie://", secret=secret) for secret in (SECRET, SECRET, OTHER)]
    try:
        addresses = [await asyncio.to_thread(process.address) for process in processes]
        async with ClientSession(cookie_jar=DummyCookieJar()) as browser:
            cookie = ""
            seen: list[Any] = []
            for number in (0, 1, 0, 2):
                headers = {"Cookie": cookie} if cookie else {}
                act = f"{addresses[number]}/act"
                async with browser.post(act, json={f"k{len(seen)}": number}, headers=headers) as response:
                    seen.append(await response.json())
                    cookie = response.headers["Set-Cookie"].partition(";")[0]
        assert seen == [{"k0": 0}, {"k0": 0, "k1": 1}, {"k0": 0, "k1": 1, "k2": 0}, {"k3": 2}]
    finally:
        for process in processes:
            process.end()


async def test_no_log_line_holds_a_cookie(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    client = await serve(begin, show, act)
    caplog.clear()
    caplog.set_level(logging.DEBUG, "aiohttp_store")
    values = [await begun(client)]
    for step in ("renew", "new&do=set", "clear&do=save&do=set", "invalidate"):
        values.append(value_in((await ask(client, f"/act?do={step}", values[-1]))[1] or ""))
    ours = [record.getMessage() for record in caplog.records if record.name == "aiohttp_store"]
    assert ours.pop(0) == "a request has no session: it carries no cookie 'session'"
    assert [re.sub(r"(?<=[ ])[A-Za-z0-9_-]{8}(?= |$)", "12345678", line) for line in ours] == [
        "session 12345678 created",
        "session 12345678 renewed as 12345678",
        "session 12345678 ended in its browser",
        "session 12345678 created",
        "session 12345678 ended in its browser, as it was emptied",
        "session 12345678 created",
        "session 12345678 ended in its browser",
    ]
    assert not [line for line in ours for value in values if value and value[:16] in line]
    app: Any = client.app
    assert SECRET not in repr(vars(app[MANAGER]))


async def fill(request: web.Request) -> web.Response:
    (await get_session(request))["padding"] = "x" * 15_000
    return web.Response()


async def size(request: web.Request) -> web.Response:
    return web.json_response(len((await get_session(request)).get("padding", "")))


async def test_what_fits_no_longer_is_kept_where_it_is_only_read(serve: Serve) -> None:
    old, new = "old secret " * 3, "new secret " * 3
    before = await serve(fill, storage="cookie://?compress=true", secret=old)
    async with before.get("/fill") as response:
        cookie = response.headers["Set-Cookie"].partition(";")[0]
    after = await serve(size, storage="cookie://", secret=[new, old])
    async with after.get("/size", headers={"Cookie": cookie}) as response:
        assert (response.status, await response.json()) == (200, 15_000)
        assert "Set-Cookie" not in response.headers


async def test_what_comes_back_otherwise_than_it_was_set_is_changed_as_well(serve: Serve) -> None:
    """A tuple comes back as a list, and bytes that are not UTF-8, which a browser may send, as U+FFFD."""

    async def change(request: web.Request) -> web.Response:
        session = await get_session(request)
        session["pair"], session["a\udcf1"], session["nested"] = (1, 2), "\udcf1", {"\udcf1": ("\udcf1",)}
        await session.apply(add)
        return web.json_response(dict(session))

    def add(session: Session) -> None:
        session["pair"].append(3)
        session["a\ufffd"] += "b"
        session["nested"]["\ufffd"].append("b")

    expected = {"pair": [1, 2, 3], "a\ufffd": "\ufffdb", "nested": {"\ufffd": ["\ufffd", "b"]}}
    client = await serve(change, show)
    found, header = await ask(client, "/change")
    assert found == expected
    assert (await ask(client, "/show", value_in(header or "")))[0]["data"] == expected


async def test_renewing_what_is_empty_changes_nothing_of_a_stream(serve: Serve) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        (await get_session(request)).renew()
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"whole")
        return response

    client = await serve(stream, storage="cookie://", secret="secret " * 5)
    async with client.get("/stream") as response:
        assert (response.status, await response.read()) == (200, b"whole")


async def test_one_cookie_name_for_two_paths_is_refused(serve: Serve) -> None:
    inner = web.Application()
    options: Any = {"storage": "cookie://", "secret": "secret " * 5}
    setup(inner, **options, cookie=Cookie(path="/inner"))
    app = web.Application()
    setup(app, **options)
    app.add_subapp("/inner", inner)
    app.freeze()
    with pytest.raises(ConfigError, match="both keep sessions in the cookie"):
        await app.startup()
