"""What a response says of the session: the cookie, and who may keep the response."""

from __future__ import annotations

import re
from collections.abc import Callable

from aiohttp import hdrs, web

from .._caching import add_vary, forbid_caching, take_back
from .._log import log_once, logger
from ..cookie import Cookie, CookieFinder
from .lifetimes import Lifetimes
from .state import SessionState, Snapshot

__all__ = ["CookieWriter"]

_LOCAL_HOST = re.compile(r"((.+\.)?localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?$", re.IGNORECASE)
_HTTPS = re.compile(r"\s*https\s*(,|$)", re.IGNORECASE)
_ON = re.compile(r"\s*(on|1)\s*(,|$)", re.IGNORECASE)
_SCHEME_OF_BROWSER = {
    "X-Forwarded-Proto": _HTTPS,
    "Forwarded": re.compile(r'[^,]*\bproto="?https\b', re.IGNORECASE),  # RFC 7239
    "X-Forwarded-Scheme": _HTTPS,
    "X-Forwarded-Protocol": _HTTPS,
    "X-Scheme": _HTTPS,
    "X-Forwarded-Ssl": _ON,
    "Front-End-Https": _ON,
    "CloudFront-Forwarded-Proto": _HTTPS,
}
"""Headers in which proxies say how the browser came to them, and what they say of https."""


class CookieWriter:
    """Sends the cookie when the browser should hold another than it does."""

    def __init__(
        self,
        cookie: Cookie,
        finder: CookieFinder,
        value_of: Callable[[Snapshot], str],
        lifetimes: Lifetimes,
        *,
        holds_data: bool = False,
    ) -> None:
        """Take what finds the app's cookies and makes their value; with `holds_data` each write needs a new one."""
        self.cookie = cookie
        self._finder = finder
        self._value_of = value_of
        self._lifetimes = lifetimes
        self._holds_data = holds_data

    def answer(self, request: web.BaseRequest, response: web.StreamResponse, state: SessionState) -> None:
        """Carry out the cookie's column of the end-of-request table; what was said before is said anew."""
        add_vary(response.headers)
        held, wanted = state.held, state.snapshot
        if state.said:
            if state.said_for is wanted and state.said in response.headers.getall(hdrs.SET_COOKIE, ()):
                self._forbid_caching(response)
                return
            take_back(response.headers, state.said)
            state.said = ""
        if wanted is held or state.is_gone:
            return
        if wanted is None:
            if self._finder.is_in(request.headers):
                self._send(request, response, state, "", 0)
        elif self._differs(held, wanted):
            is_persistent = self.cookie.persistent or wanted.envelope.idle_timeout is not None
            max_age = self._lifetimes.max_age(wanted.envelope) if is_persistent else None
            self._send(request, response, state, self._value_of(wanted), max_age)

    def _differs(self, held: Snapshot | None, wanted: Snapshot) -> bool:
        if held is None or held.id != wanted.id:
            return True
        idle_timeout = wanted.envelope.idle_timeout
        if held.envelope.idle_timeout != idle_timeout:
            return True
        # Another Max-Age, or other data.
        is_told_each = self._holds_data or self.cookie.persistent or idle_timeout is not None
        return is_told_each and held.version != wanted.version

    def _send(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        state: SessionState,
        value: str,
        max_age: int | None,
    ) -> None:
        cookie, over_https = self.cookie, request.secure
        if not over_https:
            _warn_of_plain_http(cookie, request)
        secure = cookie.is_secure(over_https)
        state.said = cookie.header(value, secure=secure, max_age=max_age, over_https=over_https)
        state.said_for = state.snapshot
        response.headers.add(hdrs.SET_COOKIE, state.said)
        self._forbid_caching(response)

    def _forbid_caching(self, response: web.StreamResponse) -> None:
        taken_out = forbid_caching(response.headers)
        if taken_out:
            log_once(
                logger.warning,
                "Cache-Control: %s was taken from a response that sets the session's cookie",
                ", ".join(taken_out),
                about=self.cookie,
            )


def _warn_of_plain_http(cookie: Cookie, request: web.BaseRequest) -> None:
    if cookie.is_secure(over_https=False):
        if not _LOCAL_HOST.match(request.host):
            log_once(
                logger.warning,
                "the session's cookie is for https only, and this request came by http, so browsers drop it; "
                "behind a proxy that ends TLS, let aiohttp-remotes set the request's scheme",
                about=cookie,
            )
    elif cookie.secure == "auto" and _says_https(request):
        log_once(
            logger.warning,
            "a proxy says that the browser uses https, but such headers are not trusted, so the session's cookie "
            "is sent without Secure; let aiohttp-remotes set the request's scheme",
            about=cookie,
        )


def _says_https(request: web.BaseRequest) -> bool:
    """Whether a proxy says that the browser uses https. Of several proxies the first is the browser's."""
    for name, https in _SCHEME_OF_BROWSER.items():
        if name in request.headers and https.match(",".join(request.headers.getall(name))):
            return True
    return False
