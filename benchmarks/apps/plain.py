"""The handlers of every aiohttp app, and the apps without sessions: plain.py PORT [middleware]."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from . import BACKLOG, DATA

__all__ = ["app_with", "run"]


def app_with(get_session: Callable[[web.Request], Awaitable[Any]]) -> web.Application:
    """Make the app for sessions that this function gives."""

    async def untouched(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def read(request: web.Request) -> web.Response:
        session = await get_session(request)
        return web.Response(text=session["user"])

    async def write(request: web.Request) -> web.Response:
        session = await get_session(request)
        session["n"] += 1
        return web.Response(text=session["user"])

    async def begin(request: web.Request) -> web.Response:
        session = await get_session(request)
        session.update(DATA)
        if padding := int(request.query.get("padding", 0)):
            session["padding"] = "x" * padding
        return web.Response(text="ok")

    app = web.Application()
    app.add_routes([web.get(f"/{handler.__name__}", handler) for handler in (untouched, read, write, begin)])
    return app


def run(app: web.Application | Awaitable[web.Application], port: int) -> None:
    """Serve until killed, without a log."""
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None, backlog=BACKLOG)


async def _no_session(_: web.Request) -> dict[str, Any]:
    return DATA


@web.middleware
async def _nothing(request: web.Request, handler: Handler) -> web.StreamResponse:
    return await handler(request)


def main(port: str, *middleware: str) -> None:
    app = app_with(_no_session)
    if middleware:
        app.middlewares.append(_nothing)
    run(app, int(port))


if __name__ == "__main__":
    main(*sys.argv[1:])
