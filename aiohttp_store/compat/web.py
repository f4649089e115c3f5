"""The functions of aiohttp-session."""

from __future__ import annotations

from functools import partial
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from .. import compat
from .._lifecycle import app_setup, middleware
from .._lifecycle.cookie_path import guarding_path
from .._lifecycle.request_state import ALONE, MANAGER, REQUEST_STATE
from .._lifecycle.wrong_arguments import no_session
from ..session import Session as OurSession
from ..storage import Storage
from .adapter import AiohttpSessionAdapter, adopted, make_session, put

__all__ = ["get_session", "new_session", "session_middleware", "setup"]


async def get_session(request: web.Request) -> OurSession:
    """Give the request's session; or what a test has put there, or the storage that it has put there gives.

    Raises:
        RuntimeError: the app has no `setup`, or the storage gave no session.
        StorageUnavailable: the storage did not answer in time.
    """
    if REQUEST_STATE in request:
        return await middleware.get_session(request)
    session: Any = request.get(compat.SESSION_KEY)
    if session is None:
        storage = _storage(request)
        session = adopted(storage, await storage.load_session(request))
        put(request, compat.SESSION_KEY, session)
    return session  # type: ignore[no-any-return]


async def new_session(request: web.Request) -> OurSession:
    """Give an empty session; the old one ends when the response is saved.

    Raises:
        RuntimeError: the app has no `setup`, the storage gave no session, or the headers have been sent.
    """
    if REQUEST_STATE in request:
        return await middleware.new_session(request)
    storage = _storage(request)
    session = adopted(storage, await storage.new_session())
    put(request, compat.SESSION_KEY, session)
    return session


def session_middleware(storage: Any) -> Middleware:
    """Make the middleware alone; prefer `setup`, which also saves for responses that a handler prepares itself.

    Raises:
        RuntimeError: it is no storage.
    """
    manager = app_setup.session_manager(_checked(storage), {})
    _present_theirs(manager)
    inner, outer = middleware.middleware_of(manager, is_alone=True), _announcing(storage)

    @web.middleware
    async def both(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await outer(request, partial(inner, handler=handler))

    ALONE[both] = manager
    return both


def setup(app: web.Application, storage: Any) -> None:
    """Give every request of `app` a session: `aiohttp_store.setup` for a storage of either kind, or a URL.

    Raises:
        RuntimeError: it is no storage.
        ConfigError: a setting that cannot work, or a second `setup` of one app.
    """
    app_setup.setup(app, _checked(storage))
    _present_theirs(app[MANAGER])
    app.middlewares.insert(0, _announcing(storage))


def _announcing(storage: Any) -> Middleware:
    """Make the middleware that puts the storage into each request, for those who use it by hand."""

    @web.middleware
    async def announcing(request: web.Request, handler: Handler) -> web.StreamResponse:
        if app_setup.is_foreign(storage):
            put(request, compat.STORAGE_KEY, storage)
        response: object = await handler(request)
        if not isinstance(response, web.StreamResponse):
            raise RuntimeError(f"a handler must give a response, and gave a {type(response).__name__}")  # noqa: TRY004
        return response

    return announcing


def _present_theirs(manager: Any) -> None:
    """Show handlers a session of ours with the names that aiohttp-session's has."""
    if not isinstance(manager, AiohttpSessionAdapter):
        manager.present = guarding_path(manager.cookie, make_session)


def _checked(storage: Any) -> Any:
    if not (isinstance(storage, str | Storage) or app_setup.is_foreign(storage)):
        raise RuntimeError(f"{storage!r} is no storage: it needs load_session and save_session; or give a URL")
    return storage


def _storage(request: web.Request) -> Any:
    storage = request.get(compat.STORAGE_KEY)
    if storage is None:
        raise no_session("get_session", request)
    return storage
