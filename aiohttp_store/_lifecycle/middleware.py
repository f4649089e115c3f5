"""The life of a request: when a session is loaded, when it is saved, and what a failure becomes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Unpack, overload

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from .._engine.manager import Options, StorageSessionManager
from .._engine.state import SessionManager
from .._log import log_once, log_throttled, logger
from .._takeover.legacy import LegacySource
from .._takeover.takeover import SessionTakeover
from ..cookie import add_vary
from ..errors import ConfigError, SessionConflict, SessionError, SessionGone, StorageUnavailable
from ..session import Data, Session
from ..storage import Storage
from ..storages import imported, storage_from_url
from ..storages.memory import MemoryStorage
from ..url import StorageURL
from .request_state import MANAGER, REQUEST_STATE, RequestState, begin, end, have

__all__ = [
    "apps_below",
    "get_session",
    "get_storage",
    "is_foreign",
    "new_session",
    "no_setup",
    "session_middleware",
    "setup",
]


RETRY_AFTER = 1
"""Seconds after which a client may try again when the storage is down."""


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
        visit: RequestState = request[REQUEST_STATE]
    except KeyError:
        raise no_setup() from None
    if request is not visit.received:
        visit.request = request
    if extend:
        visit.extends = True
    while visit.session is None:
        if visit.is_loading:
            await _another_task(visit)
        elif visit.failure is not None:  # one budget for loading, however often it is asked for
            raise StorageUnavailable(*visit.failure.args) from visit.failure
        else:
            visit.is_loading = True
            try:
                state = await visit.manager.load(request)
            except StorageUnavailable as error:
                visit.failure = error
                raise
            finally:
                visit.is_loading = False
                waiting, visit.waiting = visit.waiting, ()
                for waiter in waiting:
                    if not waiter.done():
                        waiter.set_result(None)
            if visit.session is None:  # else new_session was called meanwhile
                have(visit, state)
    return visit.session


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
    if REQUEST_STATE not in request:
        raise no_setup()
    visit: RequestState = request[REQUEST_STATE]
    if visit.headers_sent:
        raise RuntimeError(
            "new_session() needs a new cookie, but the response's headers have been sent; "
            "call it before `await response.prepare(request)`"
        )
    if request is not visit.received:
        visit.request = request
    visit.extends = True
    return have(visit, await visit.manager.new(request, visit.state))


def get_storage(app: web.Application) -> Storage:
    """Give the storage that `setup` opens for this app.

    Raises:
        RuntimeError: this app has no `setup` of its own, or one with `cookie://`, which is no storage.
    """
    manager = app.get(MANAGER)
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
    if MANAGER in app:
        raise ConfigError(f"setup() was called twice on {app!r}; one app has one kind of session")
    manager = _manager(storage, options)

    async def run(app: web.Application) -> AsyncIterator[None]:
        _refuse_same_cookie_below(app, manager)
        _warn_of_memory(manager)
        await manager.open()
        yield
        await manager.close()

    app[MANAGER] = manager
    app.middlewares.insert(0, _middleware(manager))
    app.on_response_prepare.append(_on_prepare(manager))
    app.cleanup_ctx.append(run)


def is_foreign(storage: object) -> bool:
    """Tell whether a storage was written for aiohttp-session."""
    return hasattr(storage, "load_session") and hasattr(storage, "save_session")


def _manager(storage: Storage | str, options: Options) -> SessionManager[Any]:
    if is_foreign(storage):
        from ..compat.adapter import AiohttpSessionAdapter  # noqa: PLC0415  (imported only where it is used)

        return AiohttpSessionAdapter(storage, options)
    manager = _own_manager(storage, options)
    stand_in = sys.modules.get("aiohttp_session")
    if stand_in is not None and stand_in is sys.modules.get("aiohttp_store.compat"):
        from ..compat.adapter import make_session  # noqa: PLC0415  (likewise)

        manager.present = make_session
    return manager  # type: ignore[no-any-return]


def _own_manager(storage: Storage | str, options: Options) -> Any:
    if isinstance(storage, str):
        url = StorageURL.parse(storage)
        if url.scheme == "cookie":
            cookie_manager = imported("aiohttp_store._engine.cookie_manager:CookieSessionManager", url)
            return cookie_manager(url, **options)
        storage = storage_from_url(storage)
    if not isinstance(storage, Storage):
        raise ConfigError(f"{storage!r} is no storage; give a URL, as 'redis://localhost:6379/0', or a Storage")
    manager = StorageSessionManager(storage, **options)
    if isinstance(storage, LegacySource) and storage.legacy is not None:
        manager.take_over(SessionTakeover(manager, storage, storage.legacy))
    return manager


def _middleware(manager: SessionManager[Any]) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        outer: RequestState | None = request.get(REQUEST_STATE) if len(request) else None
        visit = request[REQUEST_STATE] = begin(manager, outer, request)
        try:
            try:
                response = await handler(request)
            except web.HTTPException as raised:
                if _is_to_be_saved(visit, raised):
                    await _save(visit, visit.request or request, raised)
                raise
            if _is_to_be_saved(visit, response):
                await _save(visit, visit.request or request, response)
        except (StorageUnavailable, SessionConflict, SessionGone) as error:
            if visit.headers_sent or request.writer.output_size > 0:
                raise  # aiohttp then drops the connection, where a page would be a second response
            raise _as_response(error) from error
        else:
            return response
        finally:
            end(visit)
            if outer is not None:
                request[REQUEST_STATE] = outer

    return middleware


def _is_to_be_saved(visit: RequestState, response: web.StreamResponse) -> bool:
    """Whether there is anything to do for the session; else do what little is to be said in the headers."""
    state = visit.state
    if state is None:
        if isinstance(response, web.StreamResponse):
            _vary_on_failure(visit, response)
        return False
    prepared = getattr(response, "prepared", None)
    if prepared is None:  # aiohttp tells what it thinks of what the handler gave
        return False
    if state.clean_until and visit.manager.now() < state.clean_until:
        add_vary(response.headers)
        return False
    if prepared and not visit.headers_sent:
        if visit.manager.is_changed(state):
            raise RuntimeError(
                "the session was changed, and the handler prepared the response itself; "
                "use aiohttp_store.setup(app, storage), which saves before the headers, not the middleware alone"
            )
        return False
    return True


async def _save(visit: RequestState, request: web.Request, response: web.StreamResponse) -> None:
    """Save the session, and another one that has begun meanwhile; then say it in the headers."""
    saved = None
    while saved is not visit.state:
        saved = visit.state
        await visit.manager.save(request, response, saved)
    if not visit.headers_sent:
        visit.manager.answer(request, response, saved)


def _on_prepare(manager: SessionManager[Any]) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    async def on_prepare(request: web.Request, response: web.StreamResponse) -> None:
        """Save for a response that the handler prepares itself: a stream, server-sent events, a WebSocket."""
        try:
            visit: RequestState | None = request[REQUEST_STATE]
        except KeyError:  # another middleware answered first
            return
        while visit is not None and visit.manager is not manager:
            visit = visit.outer
        if visit is None or visit.headers_sent:  # saved already, or the error page of a crashed handler
            return
        if visit.state is None:
            _vary_on_failure(visit, response)
        else:
            try:
                await _save(visit, request, response)
            except BaseException:
                _unprepare(request, response)
                raise
        visit.headers_sent = True

    return on_prepare


def _vary_on_failure(visit: RequestState, response: web.StreamResponse) -> None:
    """Keep the page that a handler shows while the storage is down from those who have a session."""
    if visit.failure is not None:
        add_vary(response.headers)


def _unprepare(request: web.Request, response: web.StreamResponse) -> None:
    """Undo what `prepare` did before it came here, as the response will not be sent.

    The writer may chunk, compress or count for it, and would do so with the error page, which has
    other headers. The response itself must not count as prepared: writing to it would send a body
    without headers. What was said in its headers for a parent's session is to be said again.
    """
    visit: RequestState | None = request.get(REQUEST_STATE)
    while visit is not None:
        visit.headers_sent = False
        visit = visit.outer
    writer: Any = request.writer
    writer.chunked = False
    writer.length = None
    writer._compress = None  # noqa: SLF001  (aiohttp has no other way)
    response._payload_writer = None  # noqa: SLF001  (likewise)


async def _another_task(visit: RequestState) -> None:
    """Wait until the task that loads the session has ended, however it ends."""
    waiter = asyncio.get_running_loop().create_future()
    visit.waiting += (waiter,)
    await waiter


def no_setup() -> RuntimeError:
    return RuntimeError("this request has no session; call aiohttp_store.setup(app, storage) on the app")


def _as_response(error: SessionError) -> web.HTTPException:
    if isinstance(error, StorageUnavailable):
        log_throttled(logger.warning, "the session storage is unavailable, requests are answered 503: %s", error)
        return web.HTTPServiceUnavailable(headers={hdrs.RETRY_AFTER: str(RETRY_AFTER), hdrs.VARY: "Cookie"})
    logger.info("answered 409: %s", error)
    return web.HTTPConflict(headers={hdrs.VARY: "Cookie"})


def _refuse_same_cookie_below(app: web.Application, manager: SessionManager[Any]) -> None:
    for below in apps_below(app):
        other = below.get(MANAGER)
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


def apps_below(app: web.Application) -> list[web.Application]:
    below: list[web.Application] = []
    for child in app._subapps:  # noqa: SLF001  (aiohttp has no other way)
        below += [child, *apps_below(child)]
    return below


def _warn_of_memory(manager: SessionManager[Any]) -> None:
    is_debug = sys.flags.dev_mode or asyncio.get_running_loop().get_debug()
    if isinstance(manager, StorageSessionManager) and isinstance(manager.storage, MemoryStorage) and not is_debug:
        log_once(
            logger.warning,
            "sessions are kept in memory://, for development only: they are lost when this process ends, and no other "
            "process sees them; use a URL such as redis://localhost:6379/0",
        )
