"""A request outside the path of the cookie: browsers send no cookie with it, so whatever it wrote would be lost."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn

from aiohttp import web

from ..cookie import Cookie, path_matches
from .request_state import RequestState

__all__ = ["guarding_path", "refuse_outside"]

_WRITING = ("__setitem__", "__delitem__", "apply", "changed", "invalidate", "renew", "save", "set_new_identity")


def guarding_path(cookie: Cookie, present: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what presents sessions as `present` does, but outside the path of the cookie as ones that only read."""
    if cookie.path == "/":
        return present

    def presented(state: Any) -> Any:
        session, visit = present(state), state.request
        if isinstance(visit, RequestState) and visit.received is not None and _is_outside(cookie, visit.received):
            vars(session)["_outside"] = _message(cookie, visit.received)
            kind: Any = type(session)
            object.__setattr__(session, "__class__", _only_reading(kind))  # libraries may hold it already
        return session

    return presented


def refuse_outside(cookie: Cookie, request: web.BaseRequest) -> None:
    """Refuse to replace a session that the request cannot know.

    Raises:
        RuntimeError: the request is outside the path of the cookie.
    """
    if cookie.path != "/" and _is_outside(cookie, request):
        raise RuntimeError(_message(cookie, request))


def _is_outside(cookie: Cookie, request: web.BaseRequest) -> bool:
    return not path_matches(request.rel_url.raw_path, cookie.path)


def _message(cookie: Cookie, request: web.BaseRequest) -> str:
    return (
        f"the session's cookie {cookie.name!r} has path={cookie.path!r}, so browsers do not send it to "
        f"{request.rel_url.raw_path!r}, where a session can be read, as an empty one, but not changed; change it under "
        "that path, or give setup() a Cookie with another path"
    )


@cache
def _only_reading(kind: type) -> type:
    def refuse(session: Any, *_: object, **__: object) -> NoReturn:
        raise RuntimeError(vars(session)["_outside"])

    members: dict[str, Any] = {name: refuse for name in _WRITING if hasattr(kind, name)}
    for name, member in inspect.getmembers(kind, lambda member: isinstance(member, property)):
        if member.fset is not None:
            members[name] = property(member.fget, refuse)
    return type(kind.__name__, (kind,), members)
