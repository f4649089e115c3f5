"""A session has no attributes but its own: setting or reading another one is an error that names what to write."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from aiohttp_store import Session, get_session, new_session, setup
from aiohttp_store.testing import set_session

from ..conftest import AiohttpClient

URLS = ("memory://", "cookie://")
SECRET = "s" * 32

SET = {
    # aiohttp-session
    "max_age": "session.idle_timeout = 3600",
    "_changed": "session.changed()",
    "_mapping": "session.update(…)",
    "identity": "session.renew()",
    "created": "session.renew(login=True)",
    # Flask
    "permanent": "session.idle_timeout = 30 * 86400",
    "modified": "session.changed()",
    "sid": "session.identity",
    # Django
    "session_key": "session.identity",
    "expire_date": 'session["expire_date"] = …',
    "accessed": "session.changed()",
    # Express
    "user": 'session["user"] = …',
    "maxAge": "session.idle_timeout = 3600",
    "cookie": "setup(cookie=Cookie(…))",
    "userId": "session.renew(login=True)",
    "isAuthenticated": 'session["user"] = …',
    # Whatever else
    "cart": 'its data are keys, such as session["cart"] = …',
    "idle_timout": "did you mean 'idle_timeout'?",
    "lifetime": "lifetime= is a keyword of setup()",
    "data": "session.update(…)",
    "new": "session.new can only be read",
    "save": "session.save() is a method",
    "invalidate": "session.invalidate() is a method",
}

READ = {
    "max_age": "session.idle_timeout = 3600",
    "set_new_identity": "session.renew()",
    "permanent": "session.idle_timeout",
    "regenerate": "session.renew()",
    "session_key": "session.identity",
    "cycle_key": "session.renew()",
    "flush": "session.invalidate()",
    "destroy": "session.invalidate()",
    "set_expiry": "session.idle_timeout = 3600",
    "is_empty": "session.empty",
    "has_key": "'key' in session",
    "touch": "session.changed()",
    "sessionID": "session.identity",
    "login": "session.renew(login=True)",
    "logout": "session.invalidate()",
    "user": 'session.get("user")',
    "reloads": "did you mean 'reload'?",
    "cart": 'its data are keys, such as session["cart"]',
}


async def called(aiohttp_client: AiohttpClient, url: str, handler: Any) -> None:
    async def show(request: web.Request) -> web.Response:
        await handler(request)
        return web.Response()

    app = web.Application()
    setup(app, url, secret=SECRET)
    app.router.add_get("/", show)
    client = await aiohttp_client(app)
    async with client.get("/") as response:
        assert response.status == 200


@pytest.mark.parametrize("url", URLS)
async def test_setting_an_attribute_from_elsewhere_is_an_error_that_names_ours(
    aiohttp_client: AiohttpClient, url: str
) -> None:
    async def handler(request: web.Request) -> None:
        for session in (await get_session(request), await new_session(request)):
            for name, way in SET.items():
                with pytest.raises(AttributeError, match=re.escape(way)) as caught:
                    setattr(session, name, "its value")
                assert repr(name) in str(caught.value) or f"session.{name} cannot be set; " in str(caught.value)
                assert "its value" not in str(caught.value)
            assert vars(session).keys() == {"_state"}

    await called(aiohttp_client, url, handler)


@pytest.mark.parametrize("url", URLS)
async def test_reading_an_attribute_from_elsewhere_is_an_error_that_names_ours(
    aiohttp_client: AiohttpClient, url: str
) -> None:
    async def handler(request: web.Request) -> None:
        session: Any = await get_session(request)
        for name, way in READ.items():
            with pytest.raises(AttributeError, match=rf"has no attribute '{name}'; .*{re.escape(way)}"):
                getattr(session, name)
            assert not hasattr(session, name)
        with pytest.raises(AttributeError, match=r"session\.invalidate\(\) ends it"):
            session.flush()
        with pytest.raises(AttributeError, match="idle_timeout"):
            session.max_age += 60

    await called(aiohttp_client, url, handler)


async def test_apply_hands_out_a_session_that_refuses_them_as_well(aiohttp_client: AiohttpClient) -> None:
    def change(session: Session) -> None:
        session.user = "ann"  # type: ignore[attr-defined]

    async def handler(request: web.Request) -> None:
        session = await get_session(request)
        with pytest.raises(AttributeError, match="'user'"):
            await session.apply(change)

    await called(aiohttp_client, "memory://", handler)


async def test_what_can_be_set_and_what_python_asks_for_works_as_before(aiohttp_client: AiohttpClient) -> None:
    async def handler(request: web.Request) -> None:
        session = await get_session(request)
        session.idle_timeout = 60
        assert session.idle_timeout == 60
        with pytest.raises(TypeError, match="cannot be pickled"):
            copy.copy(session)
        session["user"] = "ann"
        match session:
            case {"user": name}:
                assert name == "ann"

    await called(aiohttp_client, "memory://", handler)


def test_a_session_that_a_test_has_set_refuses_them_as_well() -> None:
    session = set_session(make_mocked_request("GET", "/"), {"user": "ann"})
    with pytest.raises(AttributeError, match="idle_timeout"):
        session.max_age = 60  # type: ignore[attr-defined]
    session.invalidate()
    assert session.was_invalidated
