"""A login that renews the id, can be remembered, and ends after 90 days at the latest.

Run it with: python examples/login.py redis://localhost:6379/0
"""

import argparse
import hmac
from datetime import timedelta
from html import escape

from aiohttp import web
from aiohttp.http import HttpProcessingError

import aiohttp_store

USERS = {"ann": "correct horse"}  # an app of yours keeps password hashes, as by argon2-cffi

HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Login</title>
"""
FORM = """<form method="post" action="/login">
<p><label>User <input name="user" autocomplete="username"></label>
<p><label>Password <input name="password" type="password" autocomplete="current-password"></label>
<p><label><input name="remember" type="checkbox"> Remember me for 30 days</label>
<p><button>Log in</button>
</form>
"""
ACCOUNT = """<p>You are {user}.
<form method="post" action="/logout"><button>Log out</button></form>
"""


async def form(_: web.Request) -> web.Response:
    return web.Response(text=HEAD + FORM, content_type="text/html", headers={"Cache-Control": "no-store"})


async def fields_of(request: web.Request) -> dict[str, str]:
    """Give the form's fields, where aiohttp would answer 500 to a form that cannot be read."""
    try:
        fields = {name: value for name, value in (await request.post()).items() if isinstance(value, str)}
        "".join(fields.values()).encode()  # some encodings have characters that no other has
    except (ValueError, LookupError, RuntimeError, web.RequestPayloadError, HttpProcessingError) as error:
        raise web.HTTPBadRequest(text="the form cannot be read") from error
    return fields


async def login(request: web.Request) -> web.Response:
    sent = await fields_of(request)
    user, password = sent.get("user", ""), sent.get("password", "")
    if not hmac.compare_digest(USERS.get(user, "").encode(), password.encode()) or user not in USERS:
        raise web.HTTPForbidden(text="wrong user or password")
    session = await aiohttp_store.get_session(request)
    if session.get("user") != user and "user" in session:
        session.clear()  # another's, who did not log out
    session.renew(login=True)
    session["user"] = user
    if "remember" in sent:
        session.idle_timeout = timedelta(days=30)
    raise web.HTTPSeeOther("/account")


async def account(request: web.Request) -> web.Response:
    session = await aiohttp_store.get_session(request)
    if "user" not in session:
        raise web.HTTPSeeOther("/login")
    # The back button after a logout asks again, and does not show what the browser has kept.
    page = HEAD + ACCOUNT.format(user=escape(session["user"]))
    return web.Response(text=page, content_type="text/html", headers={"Cache-Control": "no-store"})


async def logout(request: web.Request) -> web.Response:
    (await aiohttp_store.get_session(request)).invalidate()
    raise web.HTTPSeeOther("/login")


def make_app(storage: str) -> web.Application:
    app = web.Application()
    app.router.add_get("/login", form)
    app.router.add_post("/login", login)
    app.router.add_get("/", account)
    app.router.add_get("/account", account)
    app.router.add_post("/logout", logout)
    aiohttp_store.setup(app, storage, idle_timeout=timedelta(hours=1), lifetime=timedelta(days=90))
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the login example.")
    parser.add_argument("storage", nargs="?", default="memory://", help="as redis://localhost:6379/0")
    parser.add_argument("--port", type=int, default=8080, help="0: any free one")
    options = parser.parse_args()
    try:
        web.run_app(make_app(options.storage), host="127.0.0.1", port=options.port)
    except (aiohttp_store.ConfigError, OSError) as error:  # a wrong URL, a port that is taken
        parser.error(str(error))


if __name__ == "__main__":
    main()
