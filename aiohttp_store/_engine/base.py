"""What every keeper of sessions does alike: times, encoded data, and what the browser is told."""

from __future__ import annotations

import asyncio
import math
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from aiohttp import hdrs, web

from .._log import log_once, log_throttled, logger
from ..codec import Codec, Envelope, JSONCodec, UndecodableError
from ..cookie import MAX_AGE, Cookie, CookieFinder, add_vary, forbid_caching
from ..errors import ConfigError
from ..session import Duration, Session, SessionManager, Snapshot, seconds
from .merge import merge

__all__ = ["IDLE_TIMEOUT", "PROLONG_AFTER", "BaseManager"]

T = TypeVar("T")

PROLONG_AFTER = 1 / 20
"""The share of the idle timeout after which a session that is only read is written again."""
IDLE_TIMEOUT = 86_400.0
"""Seconds."""
_LOCAL_HOST = re.compile(r"(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?$")


class BaseManager(SessionManager):
    """Knows how long sessions live, whether they have changed, and how to speak of them in headers."""

    keeps_in_cookie = False
    _reader: CookieFinder

    def __init__(
        self, *, cookie: Cookie | None, idle_timeout: Duration, lifetime: Duration | None, codec: Codec | None
    ) -> None:
        self.cookie = Cookie() if cookie is None else cookie
        if not isinstance(self.cookie, Cookie):
            raise ConfigError(f"cookie={cookie!r} must be a Cookie, as Cookie(name='session', samesite='Lax')")
        self.codec: Codec = JSONCodec() if codec is None else codec
        if not (callable(getattr(self.codec, "dumps", None)) and callable(getattr(self.codec, "loads", None))):
            raise ConfigError(f"codec={codec!r} must have the methods dumps and loads")
        self.clock: Callable[[], float] = time.time
        self._idle_timeout = seconds("idle_timeout", idle_timeout)
        self._lifetime = math.inf if lifetime is None else seconds("lifetime", lifetime)

    # The way in.

    def _live_one_of(self, found: Sequence[Session]) -> Session:
        """Give the one session that lives, of those whose cookies a request carried; else a new one."""
        live = [session for session in found if session._snapshot is not None]
        if len(live) > 1:
            log_throttled(
                logger.warning,
                "a request carried %d live sessions in cookies %r; it is treated as anonymous. A sibling domain may "
                "have set one of them, which a name that begins with __Host- prevents",
                len(live),
                self.cookie.name,
            )
        return live[0] if len(live) == 1 else self._new_session()

    def _new_session(self) -> Session:
        return Session(self, {})

    def _decode(self, data: bytes) -> tuple[Envelope, dict[str, Any]]:
        envelope = Envelope.unpack(data)
        return envelope, self._decoded(envelope.payload)

    def _decoded(self, payload: bytes) -> dict[str, Any]:
        try:
            decoded = self.codec.loads(payload)
        except Exception as error:
            raise UndecodableError(f"its data cannot be decoded ({type(error).__name__})") from error
        if not isinstance(decoded, dict):
            raise UndecodableError(f"its data is of type {type(decoded).__name__}, not dict")
        return decoded

    # The way out.

    def is_changed(self, session: Session) -> bool:
        """Tell whether the handler changed the session, or asked for its end or renewal."""
        if session._doomed or session._renewals:
            return True
        draft, stored = self._draft(session), session._snapshot
        return draft is not None and (stored is None or draft != stored.envelope.payload)

    def _changed_by(self, session: Session, change: Callable[[Session], T]) -> T:
        """Run the plain function that `Session.apply` was given, and have its result stored in any case."""
        result = change(session)
        if asyncio.iscoroutine(result):
            result.close()
            raise TypeError("apply() runs a plain function, and this one is async: await before apply()")
        session._forced = True  # also a result that changes nothing must rest on the newest data
        return result

    def _take_back(self, session: Session, life: int, pending: dict[str, Any], sent: dict[str, Any] | None) -> None:
        """Undo what `change` did, and keep what other tasks did to the session since."""
        if session._life == life:  # else `change` ended the session, and that stays
            session._data = pending if sent is None else merge(sent, self._copy(session._data), pending)
            session._touched, session._forced = True, False

    def _draft(self, session: Session) -> bytes | None:
        """Give the encoded data that is to be written, empty for a removal; `None` where there is nothing to do."""
        stored = session._snapshot
        if session._gone:
            return None
        if not session._data:
            return None if stored is None else b""
        if stored is None or session._forced or session._renewals:
            return self._encode(session._data)
        if (session._touched or session._exposed) and (changes := self._changes(session, stored)) is not None:
            return changes
        envelope = stored.envelope
        if session._idle_timeout != envelope.idle_timeout:
            return envelope.payload
        # A clock that was set back makes it due as well.
        is_due = session._extend and abs(self.clock() - envelope.written) > self._due_after(envelope)
        return envelope.payload if is_due else None

    def _changes(self, session: Session, stored: Snapshot) -> bytes | None:
        """Give the encoded data if it is not what is stored; times do not count."""
        payload = self._encode(session._data)
        if payload == stored.envelope.payload:
            return None
        # Another version of the codec may have written other bytes for the same data.
        return payload if session._touched or payload != self._encode(self._loads(stored.envelope.payload)) else None

    def _first_envelope(self, session: Session, payload: bytes) -> Envelope:
        return Envelope(session._created, self.clock(), session._idle_timeout, payload)

    def _next_envelope(self, session: Session, stored: Snapshot, payload: bytes) -> Envelope:
        written = self.clock() if session._extend else stored.envelope.written
        return Envelope(session._created, written, session._idle_timeout, payload)

    def _due_after(self, envelope: Envelope) -> float:
        """Give the seconds from one write to the next that prolongs."""
        return (envelope.idle_timeout or self._idle_timeout) * PROLONG_AFTER

    def _ends(self, envelope: Envelope) -> float:
        created, written, idle_timeout, _ = envelope
        return min(written + (idle_timeout or self._idle_timeout), created + self._lifetime)

    def _encode(self, data: dict[str, Any]) -> bytes:
        encoded = self.codec.dumps(data)
        return encoded.encode() if isinstance(encoded, str) else encoded

    def _loads(self, payload: bytes) -> dict[str, Any]:
        data: dict[str, Any] = self.codec.loads(payload)
        return data

    def _copy(self, data: dict[str, Any]) -> dict[str, Any]:
        return self._loads(self._encode(data))

    # What the browser is told.

    def _tell(self, request: web.BaseRequest, response: web.StreamResponse, session: Session) -> None:
        """Carry out the cookie's column of the end-of-request table."""
        add_vary(response.headers)
        if session._gone:
            return
        stored = session._snapshot
        if stored is None:
            if (session._cookie_id is not None or session._ended) and self._reader.is_in(request.headers):
                self._set_cookie(request, response, "", 0)
        elif (value := self._value_to_send(session, stored)) is not None:
            self._set_cookie(request, response, value, self._max_age(stored))

    @abstractmethod
    def _value_to_send(self, session: Session, stored: Snapshot) -> str | None:
        """Give what the session's cookie is to hold, if the browser is to be sent one."""

    def _is_persistent(self, stored: Snapshot) -> bool:
        return self.cookie.persistent or stored.envelope.idle_timeout is not None

    def _max_age(self, stored: Snapshot) -> int | None:
        if not self._is_persistent(stored):
            return None
        ends = self._ends(stored.envelope)
        return max(1, min(MAX_AGE, math.ceil(ends - self.clock())))

    def _set_cookie(
        self, request: web.BaseRequest, response: web.StreamResponse, value: str, max_age: int | None
    ) -> None:
        over_https = request.secure
        if not over_https:
            self._warn_of_plain_http(request)
        secure = self.cookie.is_secure(over_https)
        response.headers.add(hdrs.SET_COOKIE, self.cookie.header(value, secure=secure, max_age=max_age))
        taken_out = forbid_caching(response.headers)
        if taken_out:
            log_once(
                logger.warning,
                "Cache-Control: %s was taken from a response that sets the session's cookie",
                ", ".join(taken_out),
            )

    def _warn_of_plain_http(self, request: web.BaseRequest) -> None:
        if self.cookie.secure is True and not _LOCAL_HOST.match(request.host):
            log_once(
                logger.warning,
                "the session's cookie is for https only, and this request came by http, so browsers drop it; "
                "behind a proxy that ends TLS, let aiohttp-remotes set the request's scheme",
            )
        elif self.cookie.secure == "auto" and request.headers.get(hdrs.X_FORWARDED_PROTO, "").lower() == "https":
            log_once(
                logger.warning,
                "a proxy says that the browser uses https, but such headers are not trusted, so the session's cookie "
                "is sent without Secure; let aiohttp-remotes set the request's scheme",
            )
