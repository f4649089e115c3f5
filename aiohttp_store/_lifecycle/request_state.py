"""One request's use of the sessions of one `setup`."""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakKeyDictionary

from aiohttp import web

from .._engine.state import Apart, SessionManager
from ..errors import StorageUnavailable
from ..session import Session

__all__ = ["ALONE", "GIVEN", "MANAGER", "REQUEST_STATE", "RequestState", "begin", "drop", "end", "have", "leave"]


class RequestState:
    """What a request knows of its session; a sub-app's own is linked to its parent's."""

    # What most requests never change stands here once, and not in each of them.
    manager: SessionManager[Any]
    outer: RequestState | None
    inner: RequestState | None = None
    """A sub-app's, whose middleware has ended."""
    received: web.Request | None
    """By the middleware; `None` after the end."""
    request: web.Request | None = None
    """What a later middleware made of it, and so what the handler saw; `None` if it is the same."""
    state: Any = None
    """Of the session, once it is loaded."""
    session: Session | None = None
    failure: StorageUnavailable | None = None
    """What the storage failed with when the request asked for its session, or a handler for its saving."""
    is_loading: bool = False
    """A task of the request loads the session."""
    waiting: tuple[asyncio.Future[None], ...] = ()
    """The other tasks that want it."""
    has_left: bool = False
    """The middleware has ended."""
    headers_sent: bool = False
    """The headers are sent, or there will be no response."""
    extends: bool = False
    """The request counts as use of the session."""

    def failed(self, error: StorageUnavailable) -> None:
        """Take note of an outage."""
        self.failure = error


def begin(manager: SessionManager[Any], outer: RequestState | None, received: web.Request) -> RequestState:
    """Return the state of a request that has just come."""
    visit = RequestState()
    visit.manager, visit.outer, visit.received = manager, outer, received
    return visit


def have(visit: RequestState, state: Any, session: Session | None = None) -> Session:
    """Take a session for that of a request, and return what the handler sees of it."""
    state.request = visit
    visit.state = state
    visit.session = visit.manager.present(state) if session is None else session
    return visit.session


_USED, _UNUSED = (Apart(headers_sent=True, extends=extends) for extends in (True, False))


def leave(visit: RequestState) -> None:
    """Take note that the middleware has ended; the headers may still be on their way."""
    if visit.headers_sent:
        end(visit)
    else:
        visit.has_left = True


def end(visit: RequestState) -> None:
    """Let go of the request, which holds this, so that both are freed without the collector."""
    visit.headers_sent = True
    visit.received = visit.request = None
    if visit.state is not None:
        visit.state.request = _USED if visit.extends else _UNUSED


def drop(visit: RequestState) -> None:
    """Forget the session and its changes, as the handler has failed; the next `get_session` loads it again."""
    if visit.state is not None:
        visit.state.request = _USED if visit.extends else _UNUSED
    visit.state = visit.session = None


# aiohttp before 3.14 has no RequestKey, and keeps what a request carries under strings.
REQUEST_STATE: Any = (
    web.RequestKey("aiohttp_store.request_state", RequestState)
    if hasattr(web, "RequestKey")
    else "aiohttp_store.request_state"
)
MANAGER: web.AppKey[SessionManager[Any]] = web.AppKey("aiohttp_store.manager", SessionManager[Any])
GIVEN: web.AppKey[int | None] = web.AppKey("aiohttp_store.given")
"""The hash of the URL that was given to `setup`, which may hold a password; `None` if none was."""
ALONE: WeakKeyDictionary[Any, SessionManager[Any]] = WeakKeyDictionary()
"""The session managers of middlewares that were made without `setup`."""
