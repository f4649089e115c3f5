"""What is logged: the life of sessions by the first 8 characters of their keys, and nothing that logs anybody in."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from aiohttp import web

from aiohttp_store import Record, StorageRefused, StorageUnavailable, Write, _log, get_session, get_storage
from aiohttp_store._engine.sealing import Seal
from aiohttp_store.codec import Envelope, tombstone_of
from aiohttp_store.cookie import key_of_id
from aiohttp_store.testing import freeze

from ..conftest import Client, Serve
from ..support.remote import Left, Remote
from .test_streams import Failing

VALUE = "a value that nobody else may read"


async def begin(request: web.Request) -> web.Response:
    (await get_session(request))["a"] = VALUE
    return web.Response()


async def renew(request: web.Request) -> web.Response:
    (await get_session(request)).renew()
    return web.Response()


async def logout(request: web.Request) -> web.Response:
    (await get_session(request)).invalidate()
    return web.Response()


async def empty(request: web.Request) -> web.Response:
    (await get_session(request)).clear()
    return web.Response()


async def clash(request: web.Request) -> web.Response:
    """Change the session, or delete its record, behind this request's back, then change it here."""
    session = await get_session(request)
    assert session.identity is not None
    storage, key = get_storage(request.app), key_of_id(session.identity)
    (record,) = await storage.load([key])
    assert record is not None
    if request.query["how"] == "delete":
        await storage.delete([key])
    elif request.query["how"] == "change":
        await storage.save([Write(key, record.version, record.data[:-1] + b',"b":1}', 60)])
    else:
        await storage.save([Write(key, record.version, b"junk", 60)])
    session["c"] = VALUE
    return web.Response()


async def twice(request: web.Request) -> web.Response:
    """Ask again for a session that could not be loaded."""
    with pytest.raises(StorageUnavailable):
        await get_session(request)
    await get_session(request)
    return web.Response()


HANDLERS = (begin, renew, logout, empty, clash, twice)


class Down(Remote):
    """A storage of somebody else that is down, and says so in its own words."""

    def __init__(self, name: str, error: type[StorageUnavailable]) -> None:
        super().__init__()
        self.error = error(f"{name} is down")

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        raise self.error


async def visit(client: Client, path: str, status: int = 200) -> None:
    async with client.get(path) as response:
        assert response.status == status


def id_of(client: Client) -> str:
    return next(cookie.value for cookie in client.session.cookie_jar)


@pytest.mark.parametrize(
    ("path", "level", "text"),
    [
        ("/begin", None, ""),
        ("/renew", logging.INFO, "session {key} renewed as {new}"),
        ("/logout", logging.INFO, "session {key} destroyed"),
        ("/empty", logging.INFO, "session {key} destroyed, as it was emptied"),
        (
            "/clash?how=delete",
            logging.INFO,
            "session {key} was deleted meanwhile; a request's changes",
        ),
        ("/clash?how=change", logging.DEBUG, "session {key}: conflict, resolved by merge"),
        ("/clash?how=junk", logging.WARNING, "session {key} was replaced by a record that cannot be read"),
    ],
)
async def test_each_event_is_logged_by_the_beginning_of_its_key(
    path: str, level: int | None, text: str, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    client = await serve(*HANDLERS)
    caplog.clear()
    caplog.set_level(logging.DEBUG, "aiohttp_store")
    await visit(client, "/begin")
    key = key_of_id(id_of(client))
    assert caplog.record_tuples == [
        ("aiohttp_store", logging.DEBUG, "a request has no session: it carries no cookie 'session'"),
        ("aiohttp_store", logging.INFO, f"session {key[:8]} created"),
    ]
    identities = {id_of(client), key}
    caplog.clear()
    await visit(client, path)
    new = ""
    if list(client.session.cookie_jar):
        identities |= {id_of(client), key_of_id(id_of(client))}
        new = key_of_id(id_of(client))[:8]
    expected = text.format(key=key[:8], new=new)
    assert any(record.levelno == level and record.getMessage().startswith(expected) for record in caplog.records) or (
        level is None and not caplog.records
    )
    for secret in (*identities, VALUE):
        assert secret not in caplog.text


async def test_an_outage_is_logged_once_a_minute(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    storage = Failing()
    client = await serve(*HANDLERS, storage=storage)
    await visit(client, "/begin")
    storage.down = "load"
    caplog.clear()
    for _ in range(50):
        await visit(client, "/begin", 503)
    lines = [record.getMessage() for record in caplog.records if record.name == "aiohttp_store"]
    assert lines == ["the session storage is unavailable, requests are answered 503: down"]


@pytest.mark.parametrize("error", [StorageUnavailable, StorageRefused])
async def test_of_two_storages_that_are_down_each_is_named_once_a_minute(
    error: type[StorageUnavailable], serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    storages = [Down(name, error) for name in ("shop", "admin")]
    clients = [await serve(*HANDLERS, storage=storage) for storage in storages]
    caplog.clear()
    for path in ("/begin", "/renew", "/twice"):
        for client in clients * 3:
            client.session.cookie_jar.update_cookies({"session": "A" * 43})
            await visit(client, path, 503)
    lines = [record.getMessage() for record in caplog.records if record.name == "aiohttp_store"]
    assert [line.rpartition(": ")[2] for line in lines] == ["shop is down", "admin is down"]
    level = logging.ERROR if error is StorageRefused else logging.WARNING
    assert {record.levelno for record in caplog.records if record.name == "aiohttp_store"} == {level}


async def test_of_two_servers_of_one_storage_that_are_down_each_is_named(
    serve: Serve, caplog: pytest.LogCaptureFixture, unused_tcp_port_factory: Callable[[], int]
) -> None:
    ports = [unused_tcp_port_factory() for _ in range(2)]
    client = await serve(*HANDLERS, storage="memcached://" + ",".join(f"127.0.0.1:{port}" for port in ports))
    caplog.clear()
    for _ in range(60):  # each id is at one of the two
        client.session.cookie_jar.update_cookies({"session": secrets.token_urlsafe(32)})
        await visit(client, "/renew", 503)
    lines = [record.getMessage() for record in caplog.records if "answered 503" in record.getMessage()]
    assert len(lines) == 2
    assert {port for port in ports for line in lines if f"at 127.0.0.1:{port}>" in line} == {*ports}


async def test_damaged_records_of_two_storages_are_logged_for_each(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    clients = [await serve(*HANDLERS) for _ in range(2)]
    caplog.clear()
    for client in clients * 2:
        await visit(client, "/begin")
        assert client.app is not None
        key = key_of_id(id_of(client))
        (record,) = await get_storage(client.app).load([key])
        assert record is not None
        await get_storage(client.app).save([Write(key, record.version, b"\x01", 60)])
        await visit(client, "/logout")
    assert len([record for record in caplog.records if "is removed" in record.getMessage()]) == 2


def test_what_is_remembered_of_the_log_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    def log(message: str, /, *args: Any) -> None:
        lines.append(message % args)

    now = 0.0
    monkeypatch.setattr("aiohttp_store._log.time.monotonic", lambda: now)
    _log.log_once(log, "once")
    for number in range(3 * _log.MANY):
        now = number * _log.THROTTLE / 100
        _log.log_throttled(log, "%d", number, about=str(number))
        _log.log_once(log, "once")
    assert len(lines) == 3 * _log.MANY + 1
    assert len(_log._last) <= _log.MANY + 1


async def test_damaged_records_are_logged_once_a_minute(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    client = await serve(*HANDLERS)
    assert client.app is not None
    caplog.clear()
    for stored in (b"", b"\x01", b"\x02 of a later version", b"\x03"):
        for _ in range(5):
            await visit(client, "/begin")
            key = key_of_id(id_of(client))
            (record,) = await get_storage(client.app).load([key])
            assert record is not None
            await get_storage(client.app).save([Write(key, record.version, stored, 60)])
            await visit(client, "/logout")
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 2
    assert "is removed: the record is cut off after 0 bytes" in lines[0]
    assert "is left alone: the record has format 2, and this version reads format 1" in lines[1]


async def test_a_save_that_fails_after_its_client_left_is_logged(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Left):
        async def save(self, writes: Any) -> Any:
            await super().save(writes)
            raise StorageUnavailable("down")

    storage = Failing()
    client = await serve(*HANDLERS, storage=storage)
    await storage.leave(client, asyncio.create_task(visit(client, "/begin")))
    await client.close()
    assert "a session was not saved, and its client has left: down" in caplog.text


async def show(request: web.Request) -> web.Response:
    return web.json_response(dict(await get_session(request)))


SECRETS = [f"secret number {number} is thirty-two bytes" for number in range(2)]
JUNK = ["session=" + secrets.token_urlsafe(32) for _ in range(5)]


async def stored(client: Client, record: bytes, session_id: str) -> str:
    assert client.app is not None
    storage = get_storage(client.app)
    await storage.delete([key_of_id(session_id)])
    await storage.save([Write(key_of_id(session_id), None, record, 3600)])
    return f"session={session_id}"


def record_of(age: float) -> bytes:
    return Envelope(time.time() - age, time.time() - age, None, b'{"a":1}').pack()


@pytest.mark.parametrize(
    ("cookies", "why"),
    [
        ("", "it carries no cookie 'session'"),
        ("sessions=1; Session=2", "it carries no cookie 'session'"),
        ("session=junk; session=", "its cookie 'session' does not have the form of ours"),
        ("; ".join(JUNK), "it carries 5 different cookies 'session', and at most 4 are looked at"),
        (JUNK[0], "its session is not stored: it has ended, or never began"),
        (f"session=x; {JUNK[0]}; {JUNK[0]}", "its session is not stored: it has ended, or never began"),
        (record_of(90_000), "its session has expired"),
        (b"\x02 of a later version", "its session is of another format"),
        (tombstone_of("A" * 43), "its session has been renewed, and has another id"),
        (b"\x01", "its session is damaged"),
        (
            "; ".join(JUNK[:2]),
            "its session is not stored: it has ended, or never began",
        ),
    ],
    ids=["none", "other", "malformed", "many", "unknown", "twice", "old", "later", "renewed", "damaged", "two"],
)
async def test_at_debug_it_is_said_once_a_request_why_a_session_is_empty(
    cookies: str | bytes, why: str, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    client = await serve(show)
    for level in (logging.DEBUG, logging.INFO):
        if isinstance(cookies, bytes):
            header = await stored(client, cookies, "A" * 43)
        else:
            header = cookies
        caplog.clear()
        caplog.set_level(level, "aiohttp_store")
        async with client.get("/show", headers={"Cookie": header} if header else {}) as response:
            assert (await response.json(), response.headers.get("Set-Cookie")) == ({}, None)
        lines = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
        ours = [line for line in lines if line.startswith("a request has")]
        assert ours == [f"a request has no session: {why}"] * (level == logging.DEBUG)


async def test_at_debug_signatures_seals_and_live_sessions_are_told_apart(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aiohttp_store")

    async def why(client: Client, *cookies: str) -> list[str]:
        caplog.clear()
        client.session.cookie_jar.clear()
        async with client.get("/show", headers={"Cookie": "; ".join(cookies)}) as response:
            await response.read()
        said = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
        for value in cookies:
            assert value.partition("=")[2] not in caplog.text
        return [line.removeprefix("a request has no session: ") for line in said if "a request has" in line]

    async def begun(client: Client) -> str:
        client.session.cookie_jar.clear()
        await visit(client, "/begin")
        return f"session={id_of(client)}"

    signing = await serve(begin, show, secret=SECRETS[0])
    signed = [await begun(signing) for _ in range(2)]
    assert await why(signing, signed[0]) == []
    assert await why(signing, f"session={'A' * 43}.{'B' * 43}", signed[0]) == []
    assert await why(signing, *signed) == ["it carries 2 live ones in cookies 'session'"]
    assert await why(signing, f"session={'A' * 43}.{'B' * 43}") == [
        "its cookie 'session' is not signed with any of the secrets"
    ]
    assert await why(signing, f"session={'A' * 43}") == ["its cookie 'session' does not have the form of ours"]
    other = await serve(begin, show, secret=SECRETS[1])
    assert await why(other, signed[0]) == ["its cookie 'session' is not signed with any of the secrets"]

    sealing = await serve(begin, show, storage="cookie://", secret=SECRETS[0], idle_timeout=60)
    sealed = await begun(sealing)
    assert await why(sealing, sealed) == []
    assert await why(sealing) == ["it carries no cookie 'session'"]
    assert await why(sealing, "session=x") == ["its cookie 'session' does not have the form of ours"]
    elsewhere = await serve(begin, show, storage="cookie://", secret=SECRETS[1])
    assert await why(elsewhere, sealed) == ["its cookie 'session' is not sealed with any of the secrets"]
    assert await why(sealing, sealed, await begun(sealing)) == ["it carries 2 live ones in cookies 'session'"]
    crowd = [f"session={urlsafe_b64encode(bytes([number] * 150)).decode()}" for number in range(5)]
    assert await why(sealing, *crowd) == ["it carries 5 different cookies 'session', and at most 4 are looked at"]
    assert sealing.app is not None
    with freeze(sealing.app) as clock:
        clock.advance(61)
        assert await why(sealing, sealed) == ["its session has expired"]
    for content, what in ((bytes(40), "of another format"), (bytes(17) + b"\x01", "damaged")):
        cookie = f"session={Seal('session', SECRETS[0]).close(content)}"
        assert await why(sealing, cookie) == [f"its session is {what}"]
