"""The sessions of aiohttp-session, and what of its interface our own sessions have for its users."""

from __future__ import annotations

import re
import time
from abc import ABCMeta
from typing import Any, NoReturn, TypedDict, cast

from aiohttp import web

from ..session import Duration, SessionManager, seconds
from ..session import Session as OurSession

__all__ = ["Session", "SessionData", "StoredSession"]

_UNGUESSABLE = re.compile(r"[A-Za-z0-9_-]{22,}")
"""What 128 random bits take in base64url; no user name, number or address in most apps."""


class SessionData(TypedDict, total=False):
    """What is stored for a session."""

    created: int
    """Seconds since the epoch, of the last write."""
    session: dict[str, Any]


class _AnySession(ABCMeta):
    def __instancecheck__(cls, instance: object) -> bool:
        """Let those who check for an `aiohttp_session.Session` accept our own."""
        return isinstance(instance, OurSession) if cls is Session else super().__instancecheck__(instance)


class Session(OurSession, metaclass=_AnySession):
    """A session that a storage written for aiohttp-session makes and saves.

    `data` is `None`, or what `AbstractStorage._get_session_data` gave. What is no session, is
    empty, or is older than `max_age` seconds makes a new session, and its id is not used again.
    """

    _manager: SessionManager
    _request: web.BaseRequest
    _doomed: tuple[Any, ...] = ()
    _image = "{}"  # the data at the last load or save, so that changes of nested values are seen

    def __init__(self, identity: Any, *, data: SessionData | None, new: bool, max_age: int | None = None) -> None:
        now = int(time.time())
        stored = {} if data is None else _readable(data, max_age, now)
        is_new = new or stored is None
        self._identity = None if stored is None else identity
        self._kept_under = None if is_new else self._identity  # what the storage knows it by
        self._loaded_under = self._kept_under  # and what the request's cookie names
        self._new = is_new
        self._data = dict(stored["session"]) if stored else {}
        self._created = now if is_new or not stored else stored.get("created") or now
        self._max_age = max_age
        self._changed = False
        self._idle_timeout = None
        self._snapshot = None

    @property
    def identity(self) -> Any:
        """The id in the cookie; `None` where nothing is stored yet, or where the cookie holds the data."""
        return self._identity

    @property
    def created(self) -> int:
        """When the session was last written, in seconds since the epoch; `max_age` counts from then."""
        return cast("int", self._created)

    @property
    def max_age(self) -> int | None:
        """Seconds from the last write to the end of record and cookie. It is not stored with the session."""
        return self._max_age

    @max_age.setter
    def max_age(self, value: int | None) -> None:
        self._changed |= value != self._max_age
        self._max_age = value

    @property
    def idle_timeout(self) -> float | None:
        """As `max_age`."""
        return self._max_age

    @idle_timeout.setter
    def idle_timeout(self, timeout: Duration | None) -> None:
        self.max_age = None if timeout is None else int(seconds("idle_timeout", timeout))

    @property
    def _mapping(self) -> dict[str, Any]:
        return self._data

    @_mapping.setter
    def _mapping(self, mapping: dict[str, Any]) -> None:
        self._data = mapping

    def changed(self) -> None:
        """Save the session even if its data looks the same."""
        self._changed = True

    def invalidate(self) -> None:
        """End this session; what is written afterwards starts a new one under a new id."""
        self._data = {}
        self._changed = self._ended = True

    def renew(self, *, login: bool = False) -> None:
        """Give the session a new id and keep its data; the old record is emptied. See `aiohttp_store.Session`."""
        if self._sealed:
            self._refuse("renew() needs a new cookie")
        self._begin_anew()
        self._changed = True

    def set_new_identity(self, identity: Any) -> None:
        """Choose the id of a new session.

        Raises:
            RuntimeError: it is not new.
            ValueError: the id may be guessed, and whoever knows it has the session.
        """
        if not self._new:
            raise RuntimeError("only a session that is new can be given an id; renew() gives any session a new one")
        if not isinstance(identity, str) or not _UNGUESSABLE.fullmatch(identity):
            raise ValueError(
                "the id given to set_new_identity() can be guessed, and whoever knows it has the session; leave it to "
                "the storage, or give at least 22 characters from secrets.token_urlsafe() or uuid4().hex"
            )
        self._identity = identity

    async def save(self) -> None:
        """Store the session now; see `aiohttp_store.Session`."""
        await self._manager.commit(self)
        self._tell_if_gone()

    def _begin_anew(self) -> None:
        if not self._new or self._kept_under is not None:
            self._doomed += (self._identity,)
        self._identity = self._kept_under = None
        self._new, self._ended = True, False

    def __setitem__(self, key: str, value: Any) -> None:
        if self._ended:
            self._begin_anew()
        if self._sealed and self._kept_under is None:
            self._refuse("a new session, and one that is kept in its cookie, needs a cookie")
        self._data[key] = value
        self._changed = True
        self._created = int(time.time())

    def __delitem__(self, key: str) -> None:
        del self._data[key]
        self._changed = True
        self._created = int(time.time())

    def __repr__(self) -> str:
        state = f"new:{self._new}, changed:{self._changed}, created:{self._created}"
        return f"<{type(self).__name__} [{state}] {self._data!r}>"


class StoredSession(OurSession):
    """One of our own sessions, with the names that users of aiohttp-session know besides."""

    @property
    def max_age(self) -> float | None:
        """As `idle_timeout`."""
        return self.idle_timeout

    @max_age.setter
    def max_age(self, value: Duration | None) -> None:
        self.idle_timeout = value

    def set_new_identity(self, identity: Any) -> NoReturn:
        """Refuse: ids are drawn here.

        Raises:
            RuntimeError: always; `renew()` gives another id.
        """
        raise RuntimeError("ids of sessions are drawn at random and cannot be chosen; renew() gives a new one")

    @property
    def _changed(self) -> bool:
        return self._manager.is_changed(self)

    @_changed.setter
    def _changed(self, is_changed: bool) -> None:
        if is_changed:
            self.changed()

    @property
    def _mapping(self) -> dict[str, Any]:
        self._exposed, self._quiet_until = True, 0.0
        return self._data


def _readable(data: object, max_age: int | None, now: int) -> Any:
    """Give the data if it is a session's and not too old, else `None`."""
    if not isinstance(data, dict) or not isinstance(data.get("session"), dict):
        return None
    created = data.get("created") or 0
    if isinstance(created, bool) or not isinstance(created, int | float):
        return None
    return None if max_age is not None and now - created > max_age else data
