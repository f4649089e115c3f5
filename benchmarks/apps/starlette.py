"""Starlette on uvicorn, with starsessions in Redis if there is a URL: starlette.py PORT [URL]."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starsessions import SessionMiddleware, load_session
from starsessions.stores.redis import RedisStore

from . import BACKLOG, DATA


async def _no_session(_: Request) -> dict[str, Any]:
    return DATA


async def _session(request: Request) -> dict[str, Any]:
    await load_session(request)
    session: dict[str, Any] = request.session
    return session


def app_with(get_session: Callable[[Request], Awaitable[dict[str, Any]]], middleware: list[Middleware]) -> Starlette:
    """Make the app for sessions that this function gives."""

    async def untouched(_: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    async def read(request: Request) -> PlainTextResponse:
        session = await get_session(request)
        return PlainTextResponse(session["user"])

    async def write(request: Request) -> PlainTextResponse:
        session = await get_session(request)
        session["n"] += 1
        return PlainTextResponse(session["user"])

    async def begin(request: Request) -> PlainTextResponse:
        session = await get_session(request)
        session.update(DATA)
        return PlainTextResponse("ok")

    routes = [Route(f"/{handler.__name__}", handler) for handler in (untouched, read, write, begin)]
    return Starlette(routes=routes, middleware=middleware)


def main(port: str, url: str = "") -> None:
    if url:
        store = RedisStore(connection=Redis.from_url(url))
        app = app_with(_session, [Middleware(SessionMiddleware, store=store, cookie_https_only=False)])
    else:
        app = app_with(_no_session, [])
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(port),
        access_log=False,
        log_level="error",
        loop="asyncio",
        http="httptools",
        backlog=BACKLOG,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
