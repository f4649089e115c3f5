"""Under another path than the cookie's a session is empty, and changing it is an error at that line."""

from __future__ import annotations

import re
from typing import Any

import pytest
from aiohttp import web

from aiohttp_store import Cookie, Session, compat, get_session, get_storage, new_session, setup
from aiohttp_store.compat import SimpleCookieStorage

from ..conftest import AiohttpClient, Client

INSIDE, OUTSIDE = "/foo/bar/count", "/p%20q"
SECRET = "s" * 32


async def count(request: web.Request) -> web.Response:
    session = await get_session(request)
    session["n"] = session.get("n", 0) + 1
    return web.json_response(session["n"])


async def read(request: web.Request) -> web.Response:
    session = await get_session(request)
    assert (session.new, session.empty, session.identity, session.get("n")) == (True, True, None, None)
    return web.json_response(dict(session))


async def served(aiohttp_client: AiohttpClient, outside: Any, url: Any = "memory://", path: str = "/foo/bar") -> Client:
    app = web.Application()
    if isinstance(url, str):
        setup(app, url, cookie=Cookie(path=path), secret=SECRET)
    else:
        setup(app, url)
    app.router.add_get(INSIDE, count)
    app.router.add_get("/p q", outside)
    return await aiohttp_client(app)


async def counted(client: Client) -> int:
    async with client.get(INSIDE) as response:
        return int(await response.json())


CHANGES: dict[str, Any] = {
    "set": lambda session: session.__setitem__("n", 1),
    "setdefault": lambda session: session.setdefault("n", []),
    "update": lambda session: session.update(n=1),
    "invalidate": lambda session: session.invalidate(),
    "renew": lambda session: session.renew(login=True),
    "changed": lambda session: session.changed(),
    "save": lambda session: session.save(),
    "apply": lambda session: session.apply(lambda fork: fork.update(n=1)),
    "idle_timeout": lambda session: setattr(session, "idle_timeout", 60),
}
MESSAGE = re.escape("the session's cookie 'session' has path='/foo/bar', so browsers do not send it to '/p%20q'")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("url", ["memory://", "cookie://"])
async def test_a_change_under_another_path_is_an_error_at_that_line_and_leaves_no_trace(
    aiohttp_client: AiohttpClient, url: str, change: Any
) -> None:
    async def outside(request: web.Request) -> web.Response:
        session = await get_session(request)
        with pytest.raises(RuntimeError, match=MESSAGE):
            await change(session)
        assert dict(session) == {}
        return web.Response()

    client = await served(aiohttp_client, outside, url)
    assert await counted(client) == 1
    async with client.get(OUTSIDE) as response:
        assert response.status == 200
        assert "Set-Cookie" not in response.headers
    assert await counted(client) == 2
    assert client.app is not None
    if url == "memory://":
        assert repr(get_storage(client.app)) == "<MemoryStorage of 1 sessions>"


@pytest.mark.parametrize("url", ["memory://", "cookie://"])
async def test_new_session_under_another_path_is_an_error_as_well(aiohttp_client: AiohttpClient, url: str) -> None:
    async def outside(request: web.Request) -> web.Response:
        with pytest.raises(RuntimeError, match=MESSAGE):
            await new_session(request)
        return await read(request)

    client = await served(aiohttp_client, outside, url)
    assert await counted(client) == 1
    async with client.get(OUTSIDE) as response:
        assert await response.json() == {}
        assert "Set-Cookie" not in response.headers
    assert await counted(client) == 2


async def test_what_is_not_caught_is_a_500_that_names_both_paths(
    aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = await served(aiohttp_client, count)
    async with client.get(OUTSIDE) as response:
        assert response.status == 500
        assert "Set-Cookie" not in response.headers
    assert re.search(MESSAGE, caplog.text)
    assert 'session["n"] = ' in caplog.text  # the line of the handler


@pytest.mark.parametrize(
    ("path", "is_inside"),
    [
        ("/", True),
        ("/foo", True),
        ("/foo/", True),
        ("/foo/bar/count", True),
        ("/foo/bar/count/", False),
        ("/foo/ba", False),
        ("/FOO", False),
        ("/p%20q", False),
    ],
)
async def test_a_path_is_compared_as_browsers_do(aiohttp_client: AiohttpClient, path: str, *, is_inside: bool) -> None:
    client = await served(aiohttp_client, count, path=path)
    async with client.get(INSIDE) as response:
        assert (response.status == 200) is is_inside
    async with client.get(OUTSIDE) as response:
        assert (response.status == 200) is (path in {"/", "/p%20q"})


async def test_a_sub_apps_cookie_has_the_path_under_which_it_is_mounted(aiohttp_client: AiohttpClient) -> None:
    app, admin = web.Application(), web.Application()
    setup(app, cookie=Cookie(name="shop"))
    setup(admin, cookie=Cookie(path="/admin"))
    for one in (app, admin):
        one.router.add_get("/count", count)
    app.add_subapp("/admin", admin)
    client = await aiohttp_client(app)
    for path, times in (("/count", 1), ("/admin/count", 1), ("/admin/count", 2), ("/count", 2)):
        async with client.get(path) as response:
            assert await response.json() == times


async def test_a_storage_of_aiohttp_session_is_guarded_as_well(aiohttp_client: AiohttpClient) -> None:
    async def outside(request: web.Request) -> web.Response:
        session: Any = await compat.get_session(request)
        for change in (lambda: session.update(n=1), session.invalidate, lambda: setattr(session, "max_age", 5)):
            with pytest.raises(RuntimeError, match="'AIOHTTP_SESSION' has path='/foo/bar'"):
                change()
        assert isinstance(session, compat.Session)
        return web.json_response(dict(session))

    client = await served(aiohttp_client, outside, SimpleCookieStorage(path="/foo/bar"))
    assert await counted(client) == 1
    async with client.get(OUTSIDE) as response:
        assert await response.json() == {}
        assert "Set-Cookie" not in response.headers
    assert await counted(client) == 2


def test_a_cookie_for_the_whole_site_costs_nothing() -> None:
    from aiohttp_store._lifecycle.cookie_path import guarding_path

    assert guarding_path(Cookie(), Session) is Session
