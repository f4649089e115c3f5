"""Messages that are shown once, on the page that follows a redirect.

Run it with: python examples/flash.py redis://localhost:6379/0
"""

import argparse
from html import escape

from aiohttp import web
from aiohttp.http import HttpProcessingError

import aiohttp_store

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Messages shown once</title>
<style>
  :root {{ color-scheme: light dark; font: 1.1rem/1.5 system-ui, sans-serif }}
  body {{ max-width: 34rem; margin: auto; padding: 1rem }}
  button, input {{ font: inherit; padding: .5rem; max-width: 100%; box-sizing: border-box }}
  [role=status] p {{ border-left: .3rem solid #2a7; padding: .5rem 1rem }}
</style>
<h1>Messages shown once</h1>
<div role="status" id="messages">{messages}</div>
<form method="post" action="/order">
<p><label for="item">What would you like?</label>
<p><input id="item" name="item" required maxlength="40"> <button>Order</button>
</form>
<p><a href="/">Show this page again</a>
"""


async def flash(request: web.Request, message: str) -> None:
    """Keep a message for the next page of this visitor."""
    session = await aiohttp_store.get_session(request)
    # A list is merged as one value, so two requests that append at the same time need apply().
    await session.apply(lambda session: session.setdefault("messages", []).append(message))


def take(session: aiohttp_store.Session) -> list[str]:
    # An empty list stays behind: a session without data is deleted, and a message on its way would be lost with it.
    messages: list[str] = session.get("messages", [])
    session["messages"] = []
    return messages


async def index(request: web.Request) -> web.Response:
    session = await aiohttp_store.get_session(request)
    # Of two tabs that ask at the same time one gets them: apply() runs again where another was faster.
    messages = await session.apply(take) if session.get("messages") else []
    page = PAGE.format(messages="".join(f"<p>{escape(message)}</p>" for message in messages))
    # The back button asks again, instead of showing the old page with its messages.
    return web.Response(text=page, content_type="text/html", headers={"Cache-Control": "no-store"})


async def fields_of(request: web.Request) -> dict[str, str]:
    """Give the form's fields, where aiohttp would answer 500 to a form that cannot be read."""
    try:
        fields = {name: value for name, value in (await request.post()).items() if isinstance(value, str)}
        "".join(fields.values()).encode()  # some encodings have characters that no other has
    except (ValueError, LookupError, RuntimeError, web.RequestPayloadError, HttpProcessingError) as error:
        raise web.HTTPBadRequest(text="the form cannot be read") from error
    return fields


async def order(request: web.Request) -> web.Response:
    item = (await fields_of(request)).get("item", "").strip()[:40]
    if not item:
        await flash(request, "Nothing was ordered.")
        raise web.HTTPSeeOther("/")
    await flash(request, f"Ordered: {item}.")
    raise web.HTTPSeeOther("/delivery")


async def delivery(request: web.Request) -> web.Response:
    await flash(request, "It will come on Friday.")
    raise web.HTTPSeeOther("/")


def make_app(storage: str) -> web.Application:
    app = web.Application()
    app.router.add_get("/", index, allow_head=False)  # a HEAD shows nothing, so it must not take the messages
    app.router.add_post("/order", order)
    app.router.add_get("/delivery", delivery)
    aiohttp_store.setup(app, storage)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the example of messages that are shown once.")
    parser.add_argument("storage", nargs="?", default="memory://", help="as redis://localhost:6379/0")
    parser.add_argument("--port", type=int, default=8080, help="0: any free one")
    options = parser.parse_args()
    try:
        web.run_app(make_app(options.storage), host="127.0.0.1", port=options.port)
    except (aiohttp_store.ConfigError, OSError) as error:  # a wrong URL, a port that is taken
        parser.error(str(error))


if __name__ == "__main__":
    main()
