"""A page with a visit counter, a login, a cart and a logout, on the storage that a URL names.

Run it with: python examples/demo.py redis://localhost:6379/0
Without a URL it keeps its sessions in demo.db, where they outlive a restart.
"""

import argparse
from html import escape

from aiohttp import web
from aiohttp.http import HttpProcessingError

import aiohttp_store

GOODS = ("Tea", "Milk", "Sugar", "Lemon")
STORAGE = web.AppKey("storage", str)

STYLE = """
  :root { color-scheme: light dark; --ink: #1c2733; --soft: #536273; --paper: #f3f5f8; --card: #fff; --line: #d7dee6;
          --field: #7b8794; --act: #0b5cad; --on-act: #fff; }
  @media (prefers-color-scheme: dark) {
    :root { --ink: #e8edf2; --soft: #a3b1bf; --paper: #10161d; --card: #19222c; --line: #2e3a46;
            --field: #75838f; --act: #7cbcf8; --on-act: #0b1824; }
  }
  * { box-sizing: border-box; }
  body { font: 1rem/1.5 system-ui, "DejaVu Sans", sans-serif; color: var(--ink); background: var(--paper);
         margin: 0 auto; padding: clamp(1rem, 4vw, 2.5rem); max-width: 56rem; }
  header, main, section, form, label { display: grid; gap: 1rem; align-content: start; }
  header { grid-template-columns: 1fr auto; align-items: center; margin-bottom: 1.5rem; }
  main { grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); }
  section { background: var(--card); border: 1px solid var(--line); border-radius: 1rem; padding: 1.25rem; }
  h1, h2, p, ul { margin: 0; } h1, h2 { line-height: 1.25; overflow-wrap: anywhere; }
  h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; } label { gap: .25rem; }
  header p, footer { color: var(--soft); } footer { margin-top: 1.5rem; }
  .visits { text-align: right; } .visits strong { display: block; font-size: 2rem; line-height: 1; color: var(--ink); }
  ul { list-style: none; padding: 0; font-variant-numeric: tabular-nums; }
  li { padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .goods { grid-template-columns: 1fr 1fr; gap: .75rem; }
  button, input { font: inherit; color: inherit; background: none; border: 1px solid var(--field);
                  border-radius: .5rem; padding: .5rem .75rem; min-height: 2.75rem; width: 100%; }
  button { color: var(--act); border-color: var(--act); cursor: pointer; }
  button:hover, .main { background: var(--act); color: var(--on-act); }
  :focus-visible { outline: 3px solid var(--act); outline-offset: 2px; }
"""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{greeting} - aiohttp_store demo</title>
<link rel="icon" href="data:,">
<style>{style}</style>
<header>
<div><h1>aiohttp_store demo</h1><p>This session is kept by <b>{storage}</b></p></div>
<p class="visits">Visits <strong id="visits">{visits}</strong></p>
</header>
<main>
<section aria-labelledby="who"><h2 id="who">{greeting}</h2>{account}</section>
<section aria-labelledby="cart"><h2 id="cart">Cart</h2>
<ul>{cart}</ul>
<form class="goods" method="post" action="/cart">{goods}</form></section>
</main>
<footer>Another tab shows the same session, a private window begins a new one.</footer>
"""

LOGIN = """<p>Any name will do; visits and cart stay yours.</p>
<form method="post" action="/login">
<label>Name <input name="user" required maxlength="40" autocomplete="username"></label>
<button class="main">Log in</button></form>"""

LOGOUT = """<p>A logout ends this session in all tabs.</p>
<form method="post" action="/logout"><button>Log out</button></form>"""


async def index(request: web.Request) -> web.Response:
    session = await aiohttp_store.get_session(request)
    session["visits"] = session.get("visits", 0) + 1
    user = session.get("user")
    items = "".join(f"<li>{escape(name)}: {number}</li>" for name, number in session.get("cart", {}).items())
    page = PAGE.format(
        style=STYLE,
        storage=escape(request.app[STORAGE]),
        visits=session["visits"],
        greeting=f"Hello, {escape(user)}" if user else "Not logged in",
        account=LOGOUT if user else LOGIN,
        cart=items or "<li>nothing yet</li>",
        goods="".join(f'<button name="item" value="{name}">Add {name}</button>' for name in GOODS),
    )
    # The back button after a logout asks again, and does not show what the browser has kept.
    return web.Response(text=page, content_type="text/html", headers={"Cache-Control": "no-store"})


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
    user = (await fields_of(request)).get("user", "").strip()
    if user:
        session = await aiohttp_store.get_session(request)
        session.renew(login=True)  # an id that somebody planted before the login is worth nothing after it
        session["user"] = user[:40]
    raise web.HTTPSeeOther("/")


async def add(request: web.Request) -> web.Response:
    item = (await fields_of(request)).get("item")
    if item not in GOODS:
        raise web.HTTPBadRequest(text="there is no such thing")
    session = await aiohttp_store.get_session(request)

    def change(session: aiohttp_store.Session) -> None:
        cart = session.setdefault("cart", {})
        cart[item] = cart.get(item, 0) + 1  # a nested change is seen

    await session.apply(change)  # another tab may add at the same time, and neither is lost
    raise web.HTTPSeeOther("/#cart")  # the next Tab goes to the goods again


async def logout(request: web.Request) -> web.Response:
    (await aiohttp_store.get_session(request)).invalidate()
    raise web.HTTPSeeOther("/")


def make_app(storage: str) -> web.Application:
    app = web.Application()
    app[STORAGE] = aiohttp_store.StorageURL.parse(storage).scheme
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
        print(f"Sessions are kept in {aiohttp_store.StorageURL.parse(options.storage)}")
        web.run_app(app, host=options.host, port=options.port)
    except (aiohttp_store.ConfigError, OSError) as error:  # a wrong URL, a port that is taken
        parser.error(str(error))


if __name__ == "__main__":
    main()
