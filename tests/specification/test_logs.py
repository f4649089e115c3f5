"""What is logged: the life of sessions by the first 8 characters of their keys, and nothing that logs anybody in."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from aiohttp import web

from aiohttp_store import StorageUnavailable, Write, get_session, get_storage
from aiohttp_store.cookie import key_of_id

from ..conftest import Client, Serve
from ..support.remote import Left
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


HANDLERS = (begin, renew, logout, empty, clash)


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
    assert caplog.record_tuples == [("aiohttp_store", logging.INFO, f"session {key[:8]} created")]
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
