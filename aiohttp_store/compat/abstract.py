"""What storages for aiohttp-session are built on, and those that keep the data in the cookie."""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, TypedDict, Unpack

from aiohttp import web

from .._log import log_once, log_throttled, logger
from ..cookie import MAX_SIZE
from ..errors import SessionTooLarge
from .session import Session, SessionData, kept_of

__all__ = ["AbstractStorage", "CookieOptions", "SealedCookieStorage", "SimpleCookieStorage"]


class CookieParams(TypedDict):
    """The cookie's attributes, as `StreamResponse.set_cookie` takes them."""

    domain: str | None
    max_age: int | None
    path: str
    secure: bool | None
    httponly: bool
    samesite: str | None


class CookieOptions(TypedDict, total=False):
    """The keywords of every storage."""

    cookie_name: str
    domain: str | None
    max_age: int | None
    """Seconds from the last write to the end of the session; `None` keeps it until the browser is closed."""
    path: str
    secure: bool | None
    httponly: bool
    samesite: str | None
    encoder: Callable[[object], str]
    decoder: Callable[[str], Any]


class AbstractStorage(ABC):
    """The base of storages that load and save sessions, cookie included."""

    def __init__(
        self,
        *,
        cookie_name: str = "AIOHTTP_SESSION",
        domain: str | None = None,
        max_age: int | None = None,
        path: str = "/",
        secure: bool | None = None,
        httponly: bool = True,
        samesite: str | None = None,
        encoder: Callable[[object], str] = json.dumps,
        decoder: Callable[[str], Any] = json.loads,
    ) -> None:
        self._cookie_name = cookie_name
        self._max_age = max_age
        self._cookie_params = CookieParams(
            domain=domain, max_age=max_age, path=path, secure=secure, httponly=httponly, samesite=samesite
        )
        self._encoder = encoder
        self._decoder = decoder

    @property
    def cookie_name(self) -> str:
        """The cookie's name, and the first part of each stored key."""
        return self._cookie_name

    @property
    def max_age(self) -> int | None:
        """Seconds from the last write to the end of the session."""
        return self._max_age

    @property
    def cookie_params(self) -> CookieParams:
        """The cookie's attributes; what is changed in this dict counts from the next response on."""
        return self._cookie_params

    def _get_session_data(self, session: Session) -> SessionData:
        return {} if session.empty else {"created": session.created, "session": kept_of(session).data}

    async def new_session(self) -> Session:
        """Give an empty session that is not stored."""
        return Session(None, data=None, new=True, max_age=self.max_age)

    @abstractmethod
    async def load_session(self, request: web.Request) -> Session:
        """Give the session of the request's cookie, or a new one."""

    @abstractmethod
    async def save_session(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        """Store the session, and set or clear the response's cookie."""

    def load_cookie(self, request: web.Request) -> str | None:
        """Give the value of the request's cookie."""
        return request.cookies.get(self._cookie_name)

    def save_cookie(self, response: web.StreamResponse, cookie_data: str, *, max_age: float | None = None) -> None:
        """Set the cookie, or clear it where there is nothing to put in it.

        Raises:
            SessionTooLarge: browsers would drop it without a word.
        """
        name, options = self._cookie_name, {**self._cookie_params}
        if not cookie_data:
            for default in ("max_age", "httponly"):
                del options[default]
            response.del_cookie(name, **options)  # type: ignore[arg-type]
            return
        if max_age is not None:
            options["max_age"] = math.ceil(max_age)
            day, date, month, year, clock, zone = formatdate(time.time() + max_age, usegmt=True).split()
            options["expires"] = f"{day} {date}-{month}-{year} {clock} {zone}"
        response.set_cookie(name, cookie_data, **options)  # type: ignore[arg-type]
        size = len(name) + len(response.cookies[name].coded_value)
        if size > MAX_SIZE:
            del response.cookies[name]
            raise SessionTooLarge(size, MAX_SIZE, "a cookie")


class SimpleCookieStorage(AbstractStorage):
    """Keeps the data in the cookie as it is, for tests: every visitor can write into it."""

    async def load_session(self, request: web.Request) -> Session:
        """Read the cookie."""
        log_once(
            logger.warning, "SimpleCookieStorage believes whatever a visitor writes into the cookie; it is for tests"
        )
        cookie = self.load_cookie(request)
        if cookie is None:
            return await self.new_session()
        try:
            data = self._decoder(cookie)
        except Exception:  # noqa: BLE001  (a decoder of the app's own may raise anything)
            data = {}
        return Session(None, data=data, new=False, max_age=self.max_age)

    async def save_session(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        """Write the cookie; that of an empty session holds `{}`."""
        self.save_cookie(response, self._encoder(self._get_session_data(session)), max_age=session.max_age)


class SealedCookieStorage(AbstractStorage):
    """Keeps the data in the cookie, sealed by a secret of the server's."""

    def __init__(self, **options: Unpack[CookieOptions]) -> None:
        super().__init__(**options)

    @abstractmethod
    def seal(self, data: bytes) -> bytes: ...

    @abstractmethod
    def unseal(self, cookie: bytes) -> bytes:
        """Give what was sealed; any exception means that these bytes were not, or too long ago."""

    async def load_session(self, request: web.Request) -> Session:
        """Open the cookie; one that cannot be opened makes a new session."""
        cookie = self.load_cookie(request)
        if cookie is None:
            return await self.new_session()
        try:
            data = self._decoder(self.unseal(cookie.encode()).decode())
        except Exception as error:  # noqa: BLE001  (whatever a visitor can make a library raise)
            reason = type(error).__name__
            what = "a session's cookie cannot be opened (%s); its visitor is anonymous"
            log_throttled(logger.warning, what, reason, about=self)
            data = {}
        return Session(None, data=data, new=False, max_age=self.max_age)

    async def save_session(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        """Seal the data and set the cookie; that of an empty session is cleared."""
        data = self._get_session_data(session)
        sealed = self.seal(self._encoder(data).encode()).decode() if data else ""
        self.save_cookie(response, sealed, max_age=session.max_age)
