"""A page with a visit counter, a login, a cart and a logout, on the storage that a URL names.

Run it with: python examples/demo.py redis://localhost:6379/0
Without a URL it keeps its sessions in demo.db, where they outlive a restart.
"""

import argparse
from html import escape

from aiohttp import web

import aiohttp_store

GOODS = ("Tea", "Milk", "Sugar", "Lemon")

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>aiohttp_store demo</title>
<style>
  :root {{ color-scheme: light dark; --ink: #1d2733; --paper: #f4f6f8; --card: #fff; --line: #d5dce3; --act: #0b63b0; }}
  @media (prefers-color-scheme: dark) {{
    :root {{ --ink: #e6ebf0; --paper: #12181f; --card: #1b242e; --line: #36434f; --act: #6db5f5; }}
  }}
  body {{ font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
         margin: 0 auto; padding: 1.5rem; max-width: 40rem; }}
  section {{ background: var(--card); border: 1px solid var(--line); border-radius: .75rem;
            padding: 1rem 1.25rem; margin: 1rem 0; }}
  h1 {{ font-size: 1.5rem; margin: 0; }} h2 {{ font-size: 1.1rem; margin: 0 0 .5rem; }}
  form {{ display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin: 0; }}
  button, input {{ font: inherit; padding: .5rem .9rem; border-radius: .5rem; border: 1px solid var(--line);
                  background: var(--card); color: inherit; min-height: 2.75rem; }}
  button {{ border-color: var(--act); color: var(--act); cursor: pointer; }}
  :focus-visible {{ outline: 3px solid var(--act); outline-offset: 2px; }}
  strong {{ font-variant-numeric: tabular-nums; }}
</style>
<h1>aiohttp_store demo</h1>
<p>Your visits: <strong id="visits">{visits}</strong></p>
<section aria-labelledby="who"><h2 id="who">{greeting}</h2>{account}</section>
<section aria-labelledby="cart"><h2 id="cart">Cart</h2>
<ul>{cart}</ul>
<form method="post" action="/cart">{goods}</form></section>
"""

LOGIN = """<form method="post" action="/login">
<label for="user">Name</label> <input id="user" name="user" required maxlength="40" autocomplete="username">
<button>Log in</button></form>"""

LOGOUT = """<form method="post" action="/logout"><button>Log out</button></form>"""


async def index(request: web.Request) -> web.Response:
    session = await aiohttp_store.get_session(request)
    session["visits"] = session.get("visits", 0) + 1
    user = session.get("user")
    items = "".join(f"<li>{escape(name)}: {number}</li>" for name, number in session.get("cart", {}).items())
    page = PAGE.format(
        visits=session["visits"],
        greeting=f"Hello, {escape(user)}" if user else "Not logged in",
        account=LOGOUT if user else LOGIN,
        cart=items or "<li>nothing yet</li>",
        goods="".join(f'<button name="item" value="{name}">Add {name}</button>' for name in GOODS),
    )
    return web.Response(text=page, content_type="text/html")


async def login(request: web.Request) -> web.Response:
    """Take anybody's word for who they are, which an app of yours will not."""
    user = str((await request.post()).get("user", "")).strip()
    if user:
        session = await aiohttp_store.get_session(request)
        session.renew(login=True)  # an id that somebody planted before the login is worth nothing after it
        session["user"] = user[:40]
    raise web.HTTPSeeOther("/")


async def add(request: web.Request) -> web.Response:
    item = (await request.post()).get("item")
    if item not in GOODS:
        raise web.HTTPBadRequest(text="there is no such thing")
    session = await aiohttp_store.get_session(request)
    cart = session.setdefault("cart", {})
    cart[item] = cart.get(item, 0) + 1  # a nested change is seen
    raise web.HTTPSeeOther("/")


async def logout(request: web.Request) -> web.Response:
    (await aiohttp_store.get_session(request)).invalidate()
    raise web.HTTPSeeOther("/")


def make_app(storage: str) -> web.Application:
    app = web.Application()
    app.router.add_get("/", index)
    app.router.add_post("/login", login)
    app.router.add_post("/cart", add)
    app.router.add_post("/logout", logout)
    aiohttp_store.setup(app, storage)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the demo page.")
    parser.add_argument(
        "storage", nargs="?", default="sqlite:///demo.db", help="as redis://localhost:6379/0; %(default)s"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0: any free one")
    options = parser.parse_args()
    try:
        app = make_app(options.storage)
    except aiohttp_store.ConfigError as error:
        parser.error(str(error))
    print(f"Sessions are kept in {aiohttp_store.StorageURL.parse(options.storage)}")
    web.run_app(app, host=options.host, port=options.port)


if __name__ == "__main__":
    main()
