"""A chat over WebSockets: the session tells who speaks, and its end closes the socket.

Run it with: python examples/websocket_chat.py redis://localhost:6379/0
Visitors hear each other within one process; several would need a channel between them, as Redis has.
"""

import argparse
import asyncio
from contextlib import suppress
from html import escape

from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.http import HttpProcessingError

import aiohttp_store

CHECK_EVERY = 1.0
"""Seconds after which a silent socket learns at the latest that its visitor has logged out elsewhere."""
SEND_WITHIN = 1.0
"""Seconds."""
SOCKETS = web.AppKey("sockets", set[web.WebSocketResponse])

HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Chat</title>
<style>
  :root { color-scheme: light dark; font: 1.1rem/1.5 system-ui, sans-serif }
  body { max-width: 34rem; margin: auto; padding: 1rem }
  button, input { font: inherit; padding: .5rem; max-width: 100%; box-sizing: border-box }
  #log { height: 14rem; overflow-y: auto; overflow-wrap: anywhere; border: 1px solid; padding: .5rem }
</style>
<h1>Chat</h1>
"""
LOGIN = """<form method="post" action="/login">
<p><label for="name">Name</label> <input id="name" name="name" required maxlength="40" autocomplete="username">
<button>Log in</button></form>
"""
CHAT = """<div id="log" role="log" tabindex="0" aria-label="Messages"></div>
<form id="say"><p><label for="text">NAME:</label>
<input id="text" required maxlength="500" autocomplete="off"> <button>Send</button></form>
<p id="state" role="status">Connecting</p>
<form method="post" action="/logout"><button>Log out</button></form>
<script>
  const [log, say, text, state] = ["log", "say", "text", "state"].map(id => document.getElementById(id));
  const socket = new WebSocket(location.origin.replace("http", "ws") + "/chat");
  socket.onopen = () => { state.textContent = "Connected"; };
  socket.onclose = event => {
    text.disabled = true;
    state.textContent = `Disconnected: ${event.reason || "reload the page"}`;
  };
  socket.onmessage = event => {
    const {name, text, number} = JSON.parse(event.data);
    const line = log.appendChild(document.createElement("div"));
    line.textContent = `${name} (${number}): ${text}`;  // as text: what others wrote is no HTML of ours
    line.scrollIntoView({block: "nearest"});
  };
  say.onsubmit = event => { event.preventDefault(); socket.send(text.value); say.reset(); };
</script>
"""


async def index(request: web.Request) -> web.Response:
    session = await aiohttp_store.get_session(request)
    page = CHAT.replace("NAME", escape(session["name"])) if "name" in session else LOGIN
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


def count(session: aiohttp_store.Session) -> int:
    session["messages"] = session.get("messages", 0) + 1
    return int(session["messages"])


async def chat(request: web.Request) -> web.WebSocketResponse:
    session = await aiohttp_store.get_session(request)
    # The pages of other sites can open sockets here, and those of sibling domains with our cookie.
    is_own_page = request.headers.get("Origin", "").partition("://")[2] == request.host
    if "name" not in session or not is_own_page:
        raise web.HTTPForbidden
    socket = web.WebSocketResponse(heartbeat=30, max_msg_size=4096)
    await socket.prepare(request)
    sockets = request.app[SOCKETS]
    sockets.add(socket)
    watch = asyncio.create_task(close_when_gone(session, socket))
    try:
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                number = await session.apply(count)  # also raises SessionGone after a logout
                said = {"name": session["name"], "text": message.data, "number": number}
                with suppress(TimeoutError):  # who does not read must not keep the others waiting
                    async with asyncio.timeout(SEND_WITHIN):
                        await asyncio.gather(*(other.send_json(said) for other in sockets), return_exceptions=True)
    except aiohttp_store.SessionGone:
        await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"logged out")
    except aiohttp_store.StorageUnavailable:
        await socket.close(code=WSCloseCode.TRY_AGAIN_LATER, message=b"try again later")
    finally:
        sockets.discard(socket)
        watch.cancel()
    return socket


async def close_when_gone(session: aiohttp_store.Session, socket: web.WebSocketResponse) -> None:
    """Close the socket of one who only listens, when the session has ended elsewhere."""
    try:
        while True:
            await asyncio.sleep(CHECK_EVERY)
            with suppress(aiohttp_store.StorageUnavailable):  # the next check may find it back
                await session.reload()
    except aiohttp_store.SessionGone:
        await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"logged out")


async def close_all(app: web.Application) -> None:
    """Close the sockets, as the server waits for their handlers before it ends."""
    await asyncio.gather(*(socket.close(code=WSCloseCode.GOING_AWAY) for socket in app[SOCKETS]))


def make_app(storage: str) -> web.Application:
    app = web.Application()
    app[SOCKETS] = set()
    app.on_shutdown.append(close_all)
    app.router.add_get("/", index)
    app.router.add_post("/login", login)
    app.router.add_post("/logout", logout)
    app.router.add_get("/chat", chat)
    aiohttp_store.setup(app, storage)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the chat example.")
    parser.add_argument("storage", nargs="?", default="memory://", help="as redis://localhost:6379/0")
    parser.add_argument("--port", type=int, default=8080, help="0: any free one")
    options = parser.parse_args()
    try:
        web.run_app(make_app(options.storage), host="127.0.0.1", port=options.port)
    except (aiohttp_store.ConfigError, OSError) as error:  # a wrong URL, a port that is taken
        parser.error(str(error))


if __name__ == "__main__":
    main()
