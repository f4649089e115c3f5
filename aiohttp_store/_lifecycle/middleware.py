"""The life of a request: when a session is loaded, when it is saved, and what a failure becomes."""

from __future__ import annotations

import asyncio
from typing import Any, overload

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from .._caching import add_vary
from .._engine.state import SessionManager
from .._log import log_throttled, logger
from ..errors import SessionConflict, SessionError, SessionGone, StorageRefused, StorageUnavailable
from ..session import Data, Session
from .cookie_path import refuse_outside
from .request_state import REQUEST_STATE, RequestState, begin, drop, end, have, leave
from .wrong_arguments import no_session

__all__ = ["FAILED", "REFUSALS", "as_response", "get_session", "middleware_of", "new_session", "save"]


RETRY_AFTER = 1
"""Seconds after which a client may try again when the storage is down."""
REFUSALS = (StorageUnavailable, SessionConflict, SessionGone)
FAILED = 500
"""The status of a response with which nothing is saved: the handler has failed."""


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
            raise visit.failure.copy() from visit.failure
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


def middleware_of(manager: SessionManager[Any], *, is_alone: bool = False) -> Middleware:
    """Return the middleware that saves sessions; without `save_before_headers`, it `is_alone`."""
    let_go = end if is_alone else leave

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        outer: RequestState | None = request.get(REQUEST_STATE) if len(request) else None
        visit = request[REQUEST_STATE] = begin(manager, outer, request)
        try:
            try:
                response = await handler(request)
            except web.HTTPException as raised:
                if _is_to_be_saved(visit, raised, is_alone=is_alone):
                    await save(visit, visit.request or request, raised)
                raise
            if _is_to_be_saved(visit, response, is_alone=is_alone):
                await save(visit, visit.request or request, response)
        except web.HTTPException:
            raise
        except asyncio.CancelledError:
            end(visit)  # there will be no response; a task that goes on may save
            raise
        except Exception as error:
            drop(visit)
            if isinstance(error, REFUSALS) and not visit.headers_sent and request.writer.output_size == 0:
                raise as_response(error, visit.manager) from error
            raise  # after the headers aiohttp drops the connection, where a page would be a second response
        else:
            return response
        finally:
            let_go(visit)
            if outer is not None:
                request[REQUEST_STATE] = outer
                outer.inner, visit.outer = visit, None

    return middleware


def _is_to_be_saved(visit: RequestState, response: web.StreamResponse, *, is_alone: bool) -> bool:
    """Whether there is anything to do for the session; else do what little is to be said in the headers.

    Raises:
        StorageUnavailable: the response is a 500 that an outage has led to.
        RuntimeError: the session was changed, and only `save_before_headers` could save it.
    """
    state = visit.state
    is_unasked = state is None and visit.failure is None
    if is_unasked or (prepared := getattr(response, "prepared", None)) is None:
        return False  # aiohttp tells what it thinks of a response that is none
    if response.status == FAILED:
        if visit.failure is not None and not prepared:
            raise visit.failure
        return False
    if state is None:  # a page for those who have a session and those who have none
        add_vary(response.headers)
        return False
    if state.clean_until and visit.manager.now() < state.clean_until:
        add_vary(response.headers)
        return False
    if is_alone and prepared and not visit.headers_sent:
        if visit.manager.is_changed(state):
            raise RuntimeError(
                "the session was changed, and the handler prepared the response itself; "
                "use aiohttp_store.setup(app, storage), which saves before the headers, not the middleware alone"
            )
        return False
    return True


async def save(visit: RequestState, request: web.Request, response: web.StreamResponse) -> None:
    """Save the session, and another one that has begun meanwhile; then say it in the headers."""
    saved = None
    while saved is not visit.state:
        saved = visit.state
        await visit.manager.save(request, response, saved)
    if not visit.headers_sent:
        visit.manager.answer(request, response, saved)


async def _another_task(visit: RequestState) -> None:
    """Wait until the task that loads the session has ended, however it ends."""
    waiter = asyncio.get_running_loop().create_future()
    visit.waiting += (waiter,)
    await waiter


def as_response(error: SessionError, manager: SessionManager[Any]) -> web.HTTPException:
    if isinstance(error, StorageUnavailable):
        storage = manager if error.storage is None else error.storage
        if isinstance(error, StorageRefused):
            what = "the session storage will not serve, requests are answered 503: %s"
            log_throttled(logger.error, what, error, about=storage)
        else:
            what = "the session storage is unavailable, requests are answered 503: %s"
            log_throttled(logger.warning, what, error, about=storage)
        return web.HTTPServiceUnavailable(headers={hdrs.RETRY_AFTER: str(RETRY_AFTER), hdrs.VARY: "Cookie"})
    logger.info("answered 409: %s", error)
    return web.HTTPConflict(headers={hdrs.VARY: "Cookie"})
