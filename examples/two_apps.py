"""A shop, its admin pages with sessions of their own, and help pages that share the shop's.

Run it with: python examples/two_apps.py 'redis://localhost/0?prefix=shop:' 'redis://localhost/0?prefix=admin:'
"""

import argparse
from datetime import timedelta
from html import escape

from aiohttp import web
from aiohttp.http import HttpProcessingError

import aiohttp_store
from aiohttp_store import Cookie

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<h1>{title}</h1>
<p>{state}</p>
<form method="post" action="{path}login">
<label>Name <input name="user" required maxlength="40"></label> <button>Log in</button></form>
<form method="post" action="{path}logout"><button>Log out</button></form>
<p><a href="/">Shop</a> <a href="/help/">Help</a> <a href="/admin/">Admin</a>
"""
TITLE: web.AppKey[str] = web.AppKey("title", str)
PATH: web.AppKey[str] = web.AppKey("path", str)


async def index(request: web.Request) -> web.Response:
    session = await aiohttp_store.get_session(request)  # of the nearest app that has a setup
    user = session.get("user")
    state = f"Logged in as {escape(user)}" if user else "Not logged in"
    page = PAGE.format(title=request.app[TITLE], path=request.app[PATH], state=state)
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
    user = (await fields_of(request)).get("user", "").strip()[:40]
    if user:
        session = await aiohttp_store.get_session(request)
        session.renew(login=True)
        session["user"] = user
    raise web.HTTPSeeOther(request.app[PATH])


async def logout(request: web.Request) -> web.Response:
    (await aiohttp_store.get_session(request)).invalidate()
    raise web.HTTPSeeOther(request.app[PATH])


def make_part(title: str, path: str) -> web.Application:
    app = web.Application()
    app[TITLE], app[PATH] = title, path
    app.router.add_get("/", index)
    app.router.add_post("/login", login)
    app.router.add_post("/logout", logout)
    return app


def make_app(shop_storage: str, admin_storage: str) -> web.Application:
    shop, admin, help_pages = make_part("Shop", "/"), make_part("Admin", "/admin/"), make_part("Help", "/help/")
    # Another name, so that neither takes the other's cookie for its own; another path, so that the browser sends the
    # admin's cookie to the admin pages alone. On https the names begin with __Host- (path "/") and __Secure-.
    cookie = Cookie(name="admin", path="/admin", samesite="Strict")
    aiohttp_store.setup(shop, shop_storage, cookie=Cookie(name="shop"))
    aiohttp_store.setup(
        admin, admin_storage, cookie=cookie, idle_timeout=timedelta(minutes=15), lifetime=timedelta(hours=12)
    )
    shop.add_subapp("/admin/", admin)
    shop.add_subapp("/help/", help_pages)  # no setup of its own: it shares the shop's sessions
    return shop


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the example of two apps.")
    parser.add_argument("shop", nargs="?", default="memory://", help="as redis://localhost/0?prefix=shop:")
    parser.add_argument("admin", nargs="?", default="memory://", help="as redis://localhost/0?prefix=admin:")
    parser.add_argument("--port", type=int, default=8080, help="0: any free one")
    options = parser.parse_args()
    try:
        web.run_app(make_app(options.shop, options.admin), host="127.0.0.1", port=options.port)
    except (aiohttp_store.ConfigError, OSError) as error:  # a wrong URL, a port that is taken
        parser.error(str(error))


if __name__ == "__main__":
    main()
