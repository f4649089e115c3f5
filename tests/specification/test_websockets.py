"""WebSockets beside the visitor's other requests: what a socket knows of its session."""

from __future__ import annotations

import pytest
from aiohttp import web

from aiohttp_store import Session, SessionGone, get_session

from ..conftest import Serve


async def login(request: web.Request) -> web.Response:
    session = await get_session(request)
    session.renew(login=True)
    session["user"] = "ann"
    return web.Response()


async def logout(request: web.Request) -> web.Response:
    (await get_session(request)).invalidate()
    return web.Response()


async def socket(request: web.Request) -> web.WebSocketResponse:
    """Say who the session's user is; before that, do what the message says."""
    session = await get_session(request)
    response = web.WebSocketResponse()
    await response.prepare(request)
    async for message in response:
        try:
            await done(session, message.data)
        except SessionGone:
            await response.send_str("gone")
        else:
            await response.send_str(session["user"])
    return response


async def done(session: Session, what: str) -> None:
    if what == "apply":
        await session.apply(len)
    elif what in ("reload", "save"):
        await getattr(session, what)()


@pytest.mark.parametrize("ask", ["reload", "save", "apply"])
async def test_a_websocket_outlives_a_logout_until_it_asks(ask: str, serve: Serve, storage_url: str) -> None:
    client = await serve(login, logout, socket, storage=storage_url)
    async with client.get("/login"):
        pass
    async with client.ws_connect("/socket") as connection:
        for what in ("nothing", ask):
            await connection.send_str(what)
            assert await connection.receive_str() == "ann"
        async with client.get("/logout") as response:
            assert response.status == 200
        await connection.send_str("nothing")
        assert await connection.receive_str() == "ann"  # it has not asked
        await connection.send_str(ask)
        assert await connection.receive_str() == "gone"
