"""The last moment before a response's headers leave: what is saved and said then, and by whom."""

from __future__ import annotations

from typing import Any

from aiohttp import hdrs, web
from aiosignal import Signal

from .._caching import add_vary, take_back
from ..errors import StorageUnavailable
from .middleware import FAILED, REFUSALS, as_response, save
from .request_state import REQUEST_STATE, RequestState, end

__all__ = ["apps_below", "save_before_headers"]


def save_before_headers(app: web.Application) -> None:
    """Be the last to hear of each response of an app that starts, and of those below it.

    So whatever a handler that prepares its response itself, a middleware around ours or another receiver of the signal
    has changed is saved, and nobody takes back what is said in the headers.
    """
    below = apps_below(app)
    for one in [app, *below]:
        receivers: Signal[web.Request, web.StreamResponse] = Signal(one)
        others = [other for other in one.on_response_prepare if not isinstance(_owner(other), _BeforeHeaders)]
        receivers.extend([*others, _BeforeHeaders(one, is_alone=not below).receive])
        receivers.freeze()
        one._on_response_prepare = receivers  # noqa: SLF001  (aiohttp freezes it before anything starts)


def _owner(receiver: object) -> object:
    return getattr(receiver, "__self__", None)


class _BeforeHeaders:
    """Saves and says what is not saved and said yet."""

    def __init__(self, app: web.Application, *, is_alone: bool) -> None:
        self._app = app
        self._is_alone = is_alone

    async def receive(self, request: web.Request, response: web.StreamResponse) -> None:
        try:
            visit: RequestState = request[REQUEST_STATE]
        except KeyError:  # another middleware answered first
            return
        if self._is_alone:
            if visit.has_left and not visit.headers_sent and _is_saved(visit, request, response):
                end(visit)
                return
        elif request.match_info.apps[-1] is not self._app:  # the inner app's receivers come later
            return
        visits = [one for one in _of_request(visit) if not one.headers_sent]
        for one in visits:
            try:
                if not _is_saved(one, request, response):
                    await save(one, one.request or request, response)
            except BaseException as error:
                if isinstance(error, StorageUnavailable):
                    one.failed(error)
                if one.has_left and isinstance(error, REFUSALS):
                    take_back(response.headers, one.state.said)
                    _become(response, as_response(error, one.manager))
                    break
                _unprepare(request, response)
                raise
        for one in visits:
            if one.has_left:
                end(one)
            else:
                one.headers_sent = True


def _is_saved(visit: RequestState, request: web.Request, response: web.StreamResponse) -> bool:
    """Whether there is nothing to save, or no more; then say it in the headers."""
    state = visit.state
    if state is None:
        if visit.failure is not None:
            add_vary(response.headers)
        return True
    if response.status == FAILED:
        return True
    if state.clean_until and (visit.has_left or visit.manager.now() < state.clean_until):
        if state.said or response.headers.get(hdrs.VARY) != "Cookie":
            visit.manager.answer(visit.request or request, response, state)
        return True
    return False


def _of_request(visit: RequestState) -> list[RequestState]:
    """Return a request's visits, those of inner apps first."""
    found, inner, outer = [visit], visit.inner, visit.outer
    while inner is not None:
        found.insert(0, inner)
        inner = inner.inner
    while outer is not None:
        found.append(outer)
        outer = outer.outer
    return found


def _become(response: web.StreamResponse, refusal: web.HTTPException) -> None:
    """Make a response tell that the session was not saved; its body has been counted, and stays."""
    response._set_status(refusal.status, None)  # noqa: SLF001  (aiohttp calls it prepared already)
    for name in (hdrs.RETRY_AFTER, hdrs.VARY):
        if name in refusal.headers:
            response.headers[name] = refusal.headers[name]


def _unprepare(request: web.Request, response: web.StreamResponse) -> None:
    """Undo what `prepare` did before it came here, as the response will not be sent.

    The writer may chunk, compress or count for it, and would do so with the error page, which has
    other headers. The response itself must not count as prepared: writing to it would send a body
    without headers.
    """
    writer: Any = request.writer
    writer.chunked = False
    writer.length = None
    writer._compress = None  # noqa: SLF001  (aiohttp has no other way)
    response._payload_writer = None  # noqa: SLF001  (likewise)


def apps_below(app: web.Application) -> list[web.Application]:
    """Return the sub-apps of an app, and theirs."""
    below: list[web.Application] = []
    for child in app._subapps:  # noqa: SLF001  (aiohttp has no other way)
        below += [child, *apps_below(child)]
    return below
