"""Server-sent events: a page that follows what other tabs do to its session, until the logout.

Run it with: python examples/sse.py redis://localhost:6379/0
Over HTTP/1.1 a browser opens six connections to one host at most, so a seventh tab waits until another is closed.
"""

import argparse
import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from html import escape

from aiohttp import web
from aiohttp.http import HttpProcessingError

import aiohttp_store

CHECK_EVERY = 1.0
"""Seconds."""
STOPPING = web.AppKey("stopping", asyncio.Event)

HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Events</title>
<style>
  :root { color-scheme: light dark; font: 1.1rem/1.5 system-ui, sans-serif }
  body { max-width: 34rem; margin: auto; padding: 1rem }
  button, input { font: inherit; padding: .5rem; max-width: 100%; box-sizing: border-box }
</style>
<h1>Events</h1>
"""
LOGIN = """<form method="post" action="/login">
<p><label for="name">Name</label> <input id="name" name="name" required maxlength="40" autocomplete="username">
<button>Log in</button></form>
"""
EVENTS = """<p>Hello, {name}. Open this page in a second tab, and press the button there.</p>
<p>Presses: <strong id="presses" aria-live="polite">{presses}</strong>
<p>Last stream began: <span id="began">{began}</span>
<form method="post" action="/press"><button>Press</button></form>
<form method="post" action="/logout"><p><button>Log out</button></form>
<script>
  const source = new EventSource("/events");
  source.onmessage = event => {{ document.getElementById("presses").textContent = event.data; }};
  source.addEventListener("logout", () => {{ source.close(); location.reload(); }});
</script>
"""


async def index(request: web.Request) -> web.Response:
    session = await aiohttp_store.get_session(request)
    page = LOGIN
    if "name" in session:
        presses, began = session.get("presses", 0), session.get("began", "never")
        page = EVENTS.format(name=escape(session["name"]), presses=presses, began=began)
    return web.Response(text=HEAD + page, content_type="text/html", headers={"Cache-Control": "no-store"})


async def fields_of(request: web.Request) -> dict[str, str]:
    """Give the form's fields, where aiohttp would answer 500 to a form that cannot be read."""
    try:
        fields = {name: value for name, value in (await request.post()).items() if isinstance(value, str)}
        "".join(fields.values()).encode()  # some encodings have characters that no other has
    except (ValueError, LookupError, RuntimeError, web.RequestPayloadError, HttpProcessingError) as error:
        raise web.HTTPBadRequest(text="the form cannot be read") from error
    return fields


async def login(request: web.Request) -> web.Response:
    """Take anybody's word for who they are, which an app of yours will not."""
    name = (await fields_of(request)).get("name", "").strip()[:40]
    if name:
        session = await aiohttp_store.get_session(request)
        session.renew(login=True)
        session["name"] = name
    raise web.HTTPSeeOther("/")


async def logout(request: web.Request) -> web.Response:
    (await aiohttp_store.get_session(request)).invalidate()
    raise web.HTTPSeeOther("/")


async def press(request: web.Request) -> web.Response:
    session = await aiohttp_store.get_session(request)
    if "name" in session:
        await session.apply(lambda session: session.update(presses=session.get("presses", 0) + 1))
    raise web.HTTPSeeOther("/")


async def events(request: web.Request) -> web.StreamResponse:
    # A page that is left open must not keep its login alive.
    session = await aiohttp_store.get_session(request, extend=False)
    if "name" not in session:
        raise web.HTTPForbidden  # EventSource then gives up, where it would come again after a stream that ended
    session["began"] = f"{datetime.now(UTC):%H:%M:%S} UTC"
    stream = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await stream.prepare(request)  # saves the session before the headers leave
    with suppress(ConnectionResetError):  # the browser has left
        try:
            await follow(session, stream, request.app[STOPPING])
        except aiohttp_store.SessionGone:
            await stream.write(b"event: logout\ndata:\n\n")
    return stream


async def follow(session: aiohttp_store.Session, stream: web.StreamResponse, stopping: asyncio.Event) -> None:
    shown = None
    while not stopping.is_set():
        presses = session.get("presses", 0)
        # Also where nothing is new: a comment, as only writing tells that the browser has left.
        await stream.write(b":\n\n" if presses == shown else f"data: {presses}\n\n".encode())
        shown = presses
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), CHECK_EVERY)
        with suppress(aiohttp_store.StorageUnavailable):  # the next check may find it back
            await session.reload()


async def stop(app: web.Application) -> None:
    """End the streams, as the server waits for their handlers before it ends."""
    app[STOPPING].set()


def make_app(storage: str) -> web.Application:
    app = web.Application()
    app[STOPPING] = asyncio.Event()
    app.on_shutdown.append(stop)
    app.router.add_get("/", index)
    app.router.add_post("/login", login)
    app.router.add_post("/logout", logout)
    app.router.add_post("/press", press)
    app.router.add_get("/events", events)
    aiohttp_store.setup(app, storage)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the example of server-sent events.")
    parser.add_argument("storage", nargs="?", default="memory://", help="as redis://localhost:6379/0")
    parser.add_argument("--port", type=int, default=8080, help="0: any free one")
    options = parser.parse_args()
    try:
        web.run_app(make_app(options.storage), host="127.0.0.1", port=options.port)
    except (aiohttp_store.ConfigError, OSError) as error:  # a wrong URL, a port that is taken
        parser.error(str(error))


if __name__ == "__main__":
    main()
