"""The life of a request: when a session is loaded, when it is saved, and what a failure becomes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, overload

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from .._engine.state import SessionManager
from .._log import log_throttled, logger
from ..cookie import add_vary
from ..errors import SessionConflict, SessionError, SessionGone, StorageRefused, StorageUnavailable
from ..session import Data, Session
from .cookie_path import refuse_outside
from .request_state import REQUEST_STATE, RequestState, begin, end, have
from .wrong_arguments import no_session

__all__ = ["get_session", "middleware_of", "new_session", "saving_before_headers"]


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
        RuntimeError: the app has no `setup`, or the caller is a middleware around the sessions'.
        TypeError: what was given is no request.
        StorageUnavailable: the storage did not answer in time.
    """
    try:
        visit: RequestState = request[REQUEST_STATE]
    except (KeyError, TypeError):
        raise no_session("get_session", request) from None
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
        RuntimeError: as in `get_session`, or the response's headers have been sent, or the request is outside the path
            of the cookie.
        TypeError: what was given is no request.
    """
    try:
        visit: RequestState = request[REQUEST_STATE]
    except (KeyError, TypeError):
        raise no_session("new_session", request) from None
    refuse_outside(visit.manager.cookie, visit.received or request)
    if visit.headers_sent:
        raise RuntimeError(
            "new_session() needs a new cookie, but the response's headers have been sent; "
            "call it before `await response.prepare(request)`"
        )
    if request is not visit.received:
        visit.request = request
    visit.extends = True
    return have(visit, await visit.manager.new(request, visit.state))


def middleware_of(manager: SessionManager[Any]) -> Middleware:
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


def saving_before_headers(manager: SessionManager[Any]) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
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


def _as_response(error: SessionError) -> web.HTTPException:
    if isinstance(error, StorageUnavailable):
        if isinstance(error, StorageRefused):
            log_throttled(logger.error, "the session storage will not serve, requests are answered 503: %s", error)
        else:
            log_throttled(logger.warning, "the session storage is unavailable, requests are answered 503: %s", error)
        return web.HTTPServiceUnavailable(headers={hdrs.RETRY_AFTER: str(RETRY_AFTER), hdrs.VARY: "Cookie"})
    logger.info("answered 409: %s", error)
    return web.HTTPConflict(headers={hdrs.VARY: "Cookie"})
