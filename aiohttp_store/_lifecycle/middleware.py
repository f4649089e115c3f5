"""The life of a request: when a session is loaded, when it is saved, and what a failure becomes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Unpack, overload

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from .._engine.manager import Options, StorageSessionManager
from .._log import log_once, log_throttled, logger
from .._takeover.legacy import LegacySource
from .._takeover.takeover import TakeoverManager
from ..cookie import add_vary
from ..errors import ConfigError, SessionConflict, SessionError, SessionGone, StorageUnavailable
from ..session import Data, Session, SessionManager
from ..storage import Storage
from ..storages import imported, storage_from_url
from ..storages.memory import MemoryStorage
from ..url import StorageURL

__all__ = ["get_session", "get_storage", "new_session", "session_middleware", "setup"]


RETRY_AFTER = 1
"""Seconds after which a client may try again when the storage is down."""


class _Visit:
    """One request's use of one `setup`; a sub-app's own is linked to its parent's."""

    session: Session | None = None
    failure: StorageUnavailable | None = None
    loading = False  # a task of the request loads the session
    waiting: tuple[asyncio.Future[None], ...] = ()  # the other tasks that want it
    sealed = False  # the headers are sent, or the response is on its way
    clone: web.Request | None = None  # what a later middleware made of the request, and so what the handler saw

    def __init__(self, manager: SessionManager, outer: _Visit | None, received: web.Request) -> None:
        self.manager = manager
        self.outer = outer
        self.received: web.Request | None = received


# aiohttp before 3.14 has no RequestKey, and keeps what a request carries under strings.
_VISIT: Any = web.RequestKey("aiohttp_store.visit", _Visit) if hasattr(web, "RequestKey") else "aiohttp_store.visit"
_MANAGER: web.AppKey[SessionManager] = web.AppKey("aiohttp_store._engine.base", SessionManager)

on_manager: list[Callable[[SessionManager], None]] = []
"""What is done to each keeper: nothing, unless this package stands in for aiohttp-session."""


@overload
async def get_session(request: web.Request, *, extend: bool = True) -> Session: ...
@overload
async def get_session(request: web.Request, data: type[Data], *, extend: bool = True) -> Session[Data]: ...
async def get_session(request: web.Request, data: Any = None, *, extend: bool = True) -> Session:  # noqa: ARG001
    """Give the request's session, loaded at the first call; later calls give the same object.

    `data` is for type checkers alone: with a `TypedDict`, as in `get_session(request, Cart)`, they
    know the keys of `session.data` and their types.

    With `extend=False` the session's idle timeout runs on, as for polling that must not keep a
    login alive; one call that extends is enough to extend.

    Raises:
        RuntimeError: the app has no `setup`.
        StorageUnavailable: the storage did not answer in time.
    """
    try:
        visit: _Visit = request[_VISIT]
    except KeyError:
        raise _no_setup() from None
    if request is not visit.received:
        visit.clone = request
    session = visit.session
    while session is None:
        if visit.loading:
            await _another_task(visit)
        elif visit.failure is not None:  # one budget for loading, however often it is asked for
            raise StorageUnavailable(*visit.failure.args) from visit.failure
        else:
            visit.loading = True
            try:
                session = await visit.manager.load(request)
            except StorageUnavailable as error:
                visit.failure = error
                raise
            finally:
                visit.loading = False
                waiting, visit.waiting = visit.waiting, ()
                for waiter in waiting:
                    if not waiter.done():
                        waiter.set_result(None)
            if visit.session is None:  # else new_session was called meanwhile
                session._sealed = visit.sealed
                visit.session = session
        session = visit.session
    if extend:
        session._extend = True
    return session


@overload
async def new_session(request: web.Request) -> Session: ...
@overload
async def new_session(request: web.Request, data: type[Data]) -> Session[Data]: ...
async def new_session(request: web.Request, data: Any = None) -> Session:  # noqa: ARG001
    """Give an empty session under a new id; the old one is destroyed when the response is saved.

    `data` is as in `get_session`. The old one need not have been loaded. From here on `get_session` gives the new one.

    Raises:
        RuntimeError: the app has no `setup`, or the response's headers have been sent.
    """
    if _VISIT not in request:
        raise _no_setup()
    visit: _Visit = request[_VISIT]
    if visit.sealed:
        raise RuntimeError(
            "new_session() needs a new cookie, but the response's headers have been sent; "
            "call it before `await response.prepare(request)`"
        )
    if request is not visit.received:
        visit.clone = request
    visit.session = await visit.manager.new(request, visit.session)
    visit.session._sealed = visit.sealed
    visit.session._extend = True
    return visit.session


def get_storage(app: web.Application) -> Storage:
    """Give the storage that `setup` opens for this app.

    Raises:
        RuntimeError: this app has no `setup` of its own, or one with `cookie://`, which is no storage.
    """
    manager = app.get(_MANAGER)
    if not isinstance(manager, StorageSessionManager):
        raise RuntimeError(  # noqa: TRY004
            "this app has no session storage; call aiohttp_store.setup(app, storage) first, with another than cookie://"
        )
    return manager.storage


def session_middleware(
    storage: Storage | str = "memory://",
    **options: Unpack[Options],
) -> Middleware:
    """Make the middleware alone; see `setup` for the keywords, and prefer `setup`.

    It opens its storage at the first use and never closes it, and cannot save a session for a
    response that the handler prepares itself (a `RuntimeError` then names `setup`).

    Raises:
        ConfigError: a setting that cannot work.
    """
    return _middleware(_manager(storage, options))


def setup(
    app: web.Application,
    storage: Storage | str = "memory://",
    **options: Unpack[Options],
) -> None:
    """Give every request of `app` a session, kept in `storage`, a `Storage` or its URL.

    The storage is opened and closed with the app.

    Args:
        app: the application; its sub-apps share the sessions unless they have their own `setup`.
        storage: as `"redis://localhost:6379/0"`.
        **options: `secret`, `cookie`, `idle_timeout`, `lifetime`, `on_conflict` and `codec`, see `Options`.

    Raises:
        ConfigError: a setting that cannot work, or a second `setup` of one app.
    """
    if _MANAGER in app:
        raise ConfigError(f"setup() was called twice on {app!r}; one app has one kind of session")
    manager = _manager(storage, options)

    async def run(app: web.Application) -> AsyncIterator[None]:
        _refuse_same_cookie_below(app, manager)
        _warn_of_memory(manager)
        await manager.open()
        yield
        await manager.close()

    app[_MANAGER] = manager
    app.middlewares.insert(0, _middleware(manager))
    app.on_response_prepare.append(_on_prepare(manager))
    app.cleanup_ctx.append(run)


def is_foreign(storage: object) -> bool:
    """Tell whether a storage was written for aiohttp-session."""
    return hasattr(storage, "load_session") and hasattr(storage, "save_session")


def _manager(storage: Storage | str, options: Options) -> SessionManager:
    if isinstance(storage, str):
        url = StorageURL.parse(storage)
        if url.scheme == "cookie":
            manager: SessionManager = imported("aiohttp_store._engine.cookie_manager:CookieSessionManager", url)(
                url, **options
            )
            return manager
        storage = storage_from_url(storage)
    if is_foreign(storage):
        from ..compat.adapter import AiohttpSessionAdapter  # noqa: PLC0415  (imported only where it is used)

        return AiohttpSessionAdapter(storage, options)
    if not isinstance(storage, Storage):
        raise ConfigError(f"{storage!r} is no storage; give a URL, as 'redis://localhost:6379/0', or a Storage")
    if isinstance(storage, LegacySource) and storage.legacy is not None:
        return TakeoverManager(storage, storage, storage.legacy, **options)
    return StorageSessionManager(storage, **options)


def _middleware(manager: SessionManager) -> Middleware:
    for prepare in on_manager:
        prepare(manager)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        outer: _Visit | None = request.get(_VISIT) if len(request) else None
        visit = request[_VISIT] = _Visit(manager, outer, request)
        try:
            try:
                response = await handler(request)
            except web.HTTPException as raised:
                session = _to_be_saved(visit, raised)
                if session is not None:
                    await manager.save(visit.clone or request, raised, session)
                raise
            session = _to_be_saved(visit, response)
            if session is not None:
                await manager.save(visit.clone or request, response, session)
        except (StorageUnavailable, SessionConflict, SessionGone) as error:
            if visit.sealed or request.writer.output_size > 0:
                raise  # aiohttp then drops the connection, where a page would be a second response
            raise _as_response(error) from error
        else:
            return response
        finally:
            visit.sealed = True
            visit.received = visit.clone = None  # the request holds the visit, and is freed without the collector
            if visit.session is not None:
                visit.session._sealed = True
            if outer is not None:
                request[_VISIT] = outer

    return middleware


def _to_be_saved(visit: _Visit, response: web.StreamResponse) -> Session | None:
    """Give the session if there is anything to do for it; else do what little is to be said in the headers."""
    session = visit.session
    if session is None:
        if isinstance(response, web.StreamResponse):
            _vary_on_failure(visit, response)
        return None
    prepared = getattr(response, "prepared", None)
    if prepared is None:  # aiohttp tells what it thinks of what the handler gave
        return None
    if visit.manager.clock() < session._quiet_until:
        add_vary(response.headers)
        return None
    if prepared and not session._sealed:
        if visit.manager.is_changed(session):
            raise RuntimeError(
                "the session was changed, and the handler prepared the response itself; "
                "use aiohttp_store.setup(app, storage), which saves before the headers, not the middleware alone"
            )
        return None
    return session


def _on_prepare(manager: SessionManager) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    async def on_prepare(request: web.Request, response: web.StreamResponse) -> None:
        """Save for a response that the handler prepares itself: a stream, server-sent events, a WebSocket."""
        try:
            visit: _Visit | None = request[_VISIT]
        except KeyError:  # another middleware answered first
            return
        while visit is not None and visit.manager is not manager:
            visit = visit.outer
        if visit is None or visit.sealed:  # saved already, or the error page of a crashed handler
            return
        session = visit.session
        if session is None:
            _vary_on_failure(visit, response)
        elif not session._sealed:
            try:
                await manager.save(request, response, session)
            except BaseException:
                _unprepare(request, response)
                raise
            session._sealed = True
        visit.sealed = True

    return on_prepare


def _vary_on_failure(visit: _Visit, response: web.StreamResponse) -> None:
    """Keep the page that a handler shows while the storage is down from those who have a session."""
    if visit.failure is not None:
        add_vary(response.headers)


def _unprepare(request: web.Request, response: web.StreamResponse) -> None:
    """Undo what `prepare` did before it came here, as the response will not be sent.

    The writer may chunk, compress or count for it, and would do so with the error page, which has
    other headers. The response itself must not count as prepared: writing to it would send a body
    without headers. What was said in its headers for a parent's session is to be said again.
    """
    visit: _Visit | None = request.get(_VISIT)
    while visit is not None:
        visit.sealed = False
        if visit.session is not None:
            visit.session._sealed = False
        visit = visit.outer
    writer: Any = request.writer
    writer.chunked = False
    writer.length = None
    writer._compress = None
    response._payload_writer = None


async def _another_task(visit: _Visit) -> None:
    """Wait until the task that loads the session has ended, however it ends."""
    waiter = asyncio.get_running_loop().create_future()
    visit.waiting += (waiter,)
    await waiter


def _no_setup() -> RuntimeError:
    return RuntimeError("this request has no session; call aiohttp_store.setup(app, storage) on the app")


def _as_response(error: SessionError) -> web.HTTPException:
    if isinstance(error, StorageUnavailable):
        log_throttled(logger.warning, "the session storage is unavailable, requests are answered 503: %s", error)
        return web.HTTPServiceUnavailable(headers={hdrs.RETRY_AFTER: str(RETRY_AFTER), hdrs.VARY: "Cookie"})
    logger.info("answered 409: %s", error)
    return web.HTTPConflict(headers={hdrs.VARY: "Cookie"})


def _refuse_same_cookie_below(app: web.Application, manager: SessionManager) -> None:
    for below in _apps_below(app):
        other = below.get(_MANAGER)
        if other is None:
            continue
        mine, theirs = manager.cookie, other.cookie
        # What is sealed in a cookie would be opened by both, whatever its path.
        is_sealed = manager.keeps_in_cookie and other.keeps_in_cookie
        if mine.name == theirs.name and (is_sealed or (mine.domain, mine.path) == (theirs.domain, theirs.path)):
            raise ConfigError(
                f"an app and its sub-app both keep sessions in the cookie {mine.name!r} of path {mine.path!r}; "
                "give one of them cookie=Cookie(name=…), or leave out the sub-app's setup to share the session"
            )


def _apps_below(app: web.Application) -> list[web.Application]:
    below: list[web.Application] = []
    for child in app._subapps:
        below += [child, *_apps_below(child)]
    return below


def _warn_of_memory(manager: SessionManager) -> None:
    is_debug = sys.flags.dev_mode or asyncio.get_running_loop().get_debug()
    if isinstance(manager, StorageSessionManager) and isinstance(manager.storage, MemoryStorage) and not is_debug:
        log_once(
            logger.warning,
            "sessions are kept in memory://, for development only: they are lost when this process ends, and no other "
            "process sees them; use a URL such as redis://localhost:6379/0",
        )
