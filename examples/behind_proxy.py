"""An app behind an nginx that ends TLS: it trusts what the proxy says of the browser, and nobody else.

Run two with: python examples/behind_proxy.py redis://localhost:6379/0 --port 8081, and the same with --port 8082;
then nginx as examples/nginx.conf says.
"""

import argparse
import asyncio
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import aiohttp_remotes
from aiohttp import WSMsgType, web

import aiohttp_store
from aiohttp_store import Cookie

PROXIES = [["127.0.0.1", "::1"]]  # one proxy, at one of these addresses
ENDLESS = web.AppKey("endless", WeakSet[Any])  # the tasks of streams and sockets


async def index(request: web.Request) -> web.Response:
    session = await aiohttp_store.get_session(request)
    visits = await session.apply(count)
    told = {"visits": visits, "scheme": request.scheme, "host": request.host, "you": request.remote}
    return web.json_response(told, headers={"Cache-Control": "no-store"})


def count(session: aiohttp_store.Session) -> int:
    session["visits"] = session.get("visits", 0) + 1
    return int(session["visits"])


async def login(request: web.Request) -> web.Response:
    session = await aiohttp_store.get_session(request)
    session.renew(login=True)
    session["user"] = "ann"
    raise web.HTTPSeeOther("/")


async def about(_: web.Request) -> web.Response:
    """Give a page that is the same for everybody, so that the proxy may keep it."""
    return web.Response(text="We sell tea.\n", headers={"Cache-Control": "public, max-age=60"})


async def events(request: web.Request) -> web.StreamResponse:
    session = await aiohttp_store.get_session(request, extend=False)
    # Without X-Accel-Buffering nginx would keep the events until it has a few kilobytes of them.
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    request.app[ENDLESS].add(asyncio.current_task())
    while True:
        await response.write(f"data: {session.get('visits', 0)}\n\n".encode())
        await asyncio.sleep(15)
        try:
            with suppress(aiohttp_store.StorageUnavailable):  # the next check may find it back
                await session.reload()
        except aiohttp_store.SessionGone:
            return response


async def websocket(request: web.Request) -> web.WebSocketResponse:
    session = await aiohttp_store.get_session(request)
    socket = web.WebSocketResponse(heartbeat=30)  # more often than nginx' proxy_read_timeout
    await socket.prepare(request)
    request.app[ENDLESS].add(asyncio.current_task())
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(f"{session.get('user', 'somebody')} says {message.data}")
    return socket


async def health(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def end(app: web.Application) -> None:
    """End what does not end by itself, as the server waits for its handlers; browsers then come to another process."""
    for task in app[ENDLESS]:
        task.cancel()


async def make_app(storage: str) -> web.Application:
    app = web.Application()
    app[ENDLESS] = WeakSet()
    app.on_shutdown.append(end)
    app.router.add_get("/", index)
    app.router.add_post("/login", login)
    app.router.add_get("/about", about)
    app.router.add_get("/events", events)
    app.router.add_get("/ws", websocket)
    app.router.add_get("/health", health)
    aiohttp_store.setup(app, storage, cookie=Cookie(name="__Host-session"))
    # What asks /health is no browser behind the proxy; every other path is for the proxy alone.
    await aiohttp_remotes.setup(app, aiohttp_remotes.XForwardedStrict(PROXIES, white_paths=["/health"]))
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the example that runs behind a proxy.")
    parser.add_argument("storage", nargs="?", default="memory://", help="as redis://localhost:6379/0")
    parser.add_argument("--port", type=int, default=8081, help="0: any free one")
    options = parser.parse_args()
    try:
        web.run_app(make_app(options.storage), host="127.0.0.1", port=options.port)
    except (aiohttp_store.ConfigError, OSError) as error:  # a wrong URL, a port that is taken
        parser.error(str(error))


if __name__ == "__main__":
    main()
