"""What a later version stores beside the data stays when this version writes, on every storage."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from aiohttp_store import Saved, Session, Write, get_session, get_storage, new_session
from aiohttp_store.codec import FIRST_TIME, Fields, unpack_envelope
from aiohttp_store.cookie import key_of_id

from ..conftest import Client, Serve

USER, LAST_LOGIN = 7, FIRST_TIME + 7
KNOWN_LATER: Fields = ((USER, b"ann"), (LAST_LOGIN, (1).to_bytes(8, "big")))
"""Tags that this version does not know."""


async def write(request: web.Request) -> web.Response:
    (await get_session(request))["n"] = 1
    return web.Response()


async def apply(request: web.Request) -> web.Response:
    def count(session: Session) -> None:
        session["n"] = session.get("n", 0) + 1

    await (await get_session(request)).apply(count)
    return web.Response()


async def renew(request: web.Request) -> web.Response:
    (await get_session(request)).renew()
    return web.Response()


async def wait(request: web.Request) -> web.Response:
    """Change the session while another process has added the fields."""
    session = await get_session(request)
    await add_fields(request.app, request.cookies["session"], KNOWN_LATER)
    session["waited"] = True
    return web.Response()


async def anew(request: web.Request) -> web.Response:
    (await new_session(request))["n"] = 1
    return web.Response()


async def invalidate(request: web.Request) -> web.Response:
    session = await get_session(request)
    session.invalidate()
    session["n"] = 1
    return web.Response()


async def stored(app: web.Application, session_id: str) -> tuple[bytes, bytes]:
    (record,) = await get_storage(app).load([key_of_id(session_id)])
    assert record is not None
    return record


async def add_fields(app: web.Application, session_id: str, fields: Fields) -> None:
    """Write as a later version does."""
    version, data = await stored(app, session_id)
    envelope = unpack_envelope(data)._replace(fields=fields)
    (outcome,) = await get_storage(app).save([Write(key_of_id(session_id), version, envelope.pack(), 60)])
    assert isinstance(outcome, Saved)


@pytest.fixture
async def client(serve: Serve, storage_url: str) -> Client:
    return await serve(write, apply, renew, wait, anew, invalidate, storage=storage_url)


def id_of(client: Client) -> str:
    return next(cookie.value for cookie in client.session.cookie_jar)


async def ask(client: Client, path: str) -> Fields:
    """Send a request, and return the fields that are stored afterwards."""
    async with client.get(path) as response:
        assert response.status == 200
    assert client.app is not None
    return unpack_envelope((await stored(client.app, id_of(client)))[1]).fields


@pytest.mark.parametrize("path", ["/write", "/apply", "/renew"])
async def test_a_field_that_is_not_known_is_carried_along(path: str, client: Client) -> None:
    assert await ask(client, "/write") == ()
    assert client.app is not None
    await add_fields(client.app, id_of(client), KNOWN_LATER)
    assert await ask(client, path) == KNOWN_LATER
    await asyncio.gather(*[ask(client, "/apply") for _ in range(5)])
    assert await ask(client, path) == KNOWN_LATER


async def test_a_field_that_comes_while_a_request_changes_the_session_is_merged(client: Client) -> None:
    assert await ask(client, "/write") == ()
    assert await ask(client, "/wait") == KNOWN_LATER


@pytest.mark.parametrize("path", ["/anew", "/invalidate"])
async def test_another_session_begins_without_the_fields_of_the_one_before(path: str, client: Client) -> None:
    await ask(client, "/write")
    assert client.app is not None
    await add_fields(client.app, id_of(client), KNOWN_LATER)
    assert await ask(client, path) == ()
