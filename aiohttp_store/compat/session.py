"""The sessions of aiohttp-session, and what of its interface our own sessions have for its users."""

from __future__ import annotations

import time
from abc import ABCMeta
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict

from .._engine.lifetimes import SKEW
from .._engine.state import EXPOSED, refuse
from ..session import Duration, seconds
from ..session import Session as OurSession
from .kept import Kept, unguessable

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Session", "SessionData", "StoredSession", "kept_of", "with_state"]


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

    _state: Kept  # type: ignore[assignment]
    if not TYPE_CHECKING:
        __setattr__ = object.__setattr__  # as theirs, on which middlewares leave objects for handlers

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Make the state, which an app's own `__init__` fills by aiohttp-session's private names."""
        session = super().__new__(cls)
        session._state = Kept()
        return session

    def __init__(self, identity: Any, *, data: SessionData | None, new: bool, max_age: int | None = None) -> None:
        now = int(time.time())
        stored = {} if data is None else _readable(data, max_age, now)
        is_new = new or stored is None
        identity = None if stored is None else identity
        kept_under = None if is_new else identity
        self._state = Kept(
            identity,
            data=dict(stored["session"]) if stored else {},
            created=now if is_new or not stored else stored.get("created") or now,
            max_age=max_age,
            is_new=is_new,
            kept_under=kept_under,
            loaded_under=kept_under,
        )

    @property
    def identity(self) -> Any:
        """The id in the cookie; `None` where nothing is stored yet, or where the cookie holds the data."""
        return self._state.identity

    @property
    def created(self) -> int:
        """When the session was last written, in seconds since the epoch; `max_age` counts from then."""
        return self._state.created

    @property
    def max_age(self) -> int | None:
        """Seconds from the last write to the end of record and cookie. It is not stored with the session."""
        return self._state.max_age

    @max_age.setter
    def max_age(self, value: int | None) -> None:
        self._state.is_changed |= value != self._state.max_age
        self._state.max_age = value

    @property
    def idle_timeout(self) -> float | None:
        """As `max_age`."""
        return self._state.max_age

    @idle_timeout.setter
    def idle_timeout(self, timeout: Duration | None) -> None:
        self.max_age = None if timeout is None else int(seconds("idle_timeout", timeout))

    @property
    def _changed(self) -> bool:
        return self._state.is_changed

    @_changed.setter
    def _changed(self, is_changed: bool) -> None:
        self._state.is_changed = is_changed

    @property
    def _mapping(self) -> dict[str, Any]:
        return self._state.data

    @_mapping.setter
    def _mapping(self, mapping: dict[str, Any]) -> None:
        self._state.data = mapping

    @property
    def _identity(self) -> Any:
        return self._state.identity

    @_identity.setter
    def _identity(self, identity: Any) -> None:
        state = self._state
        if state.manager is None:
            state.identity = identity
        elif identity != state.identity:
            chosen = None if identity is None else unguessable(identity)
            state.begin_anew()
            state.identity, state.is_changed = chosen, True

    @property
    def _new(self) -> bool:
        return self._state.is_new

    @_new.setter
    def _new(self, is_new: bool) -> None:
        if is_new and self._state.manager is not None:
            self._state.begin_anew()
        self._state.is_new = is_new

    @property
    def _created(self) -> int:
        return self._state.created

    @_created.setter
    def _created(self, created: int) -> None:
        self._state.created = created

    @property
    def _max_age(self) -> int | None:
        return self._state.max_age

    @_max_age.setter
    def _max_age(self, max_age: int | None) -> None:
        self._state.max_age = max_age

    def changed(self) -> None:
        """Save the session even if its data looks the same."""
        self._state.is_changed = True

    def invalidate(self) -> None:
        """End this session; what is written afterwards starts a new one under a new id."""
        self._state.data = {}
        self._state.is_changed = self._state.has_ended = True

    def renew(self, *, login: bool = False) -> None:
        """Give the session a new id and keep its data; the old record is emptied. See `aiohttp_store.Session`."""
        if self._state.request.headers_sent:
            refuse("renew() needs a new cookie")
        self._state.begin_anew()
        self._state.is_changed = True

    def set_new_identity(self, identity: Any) -> None:
        """Choose the id of a new session.

        Raises:
            RuntimeError: it is not new.
            ValueError: the id may be guessed, and whoever knows it has the session.
        """
        if not self.new:
            raise RuntimeError("only a session that is new can be given an id; renew() gives any session a new one")
        self._state.identity = unguessable(identity)

    async def save(self) -> None:
        """Store the session now; see `aiohttp_store.Session`."""
        await self._state.manager.commit(self._state)
        self._tell_if_gone()

    def __setitem__(self, key: str, value: Any) -> None:
        state = self._state
        if state.has_ended:
            state.begin_anew()
        if state.request.headers_sent and state.kept_under is None and not state.is_gone:
            refuse("a new session, and one that is kept in its cookie, needs a cookie")
        state.data[key] = value
        state.use()

    def __delitem__(self, key: str) -> None:
        del self._state.data[key]
        self._state.use()

    def __repr__(self) -> str:
        state = f"new:{self.new}, changed:{self._changed}, created:{self.created}"
        return f"<{type(self).__name__} [{state}] {self._mapping!r}>"


def kept_of(session: Session) -> Kept:
    """Return the state of a session that a storage has made."""
    return session._state  # noqa: SLF001  (what storages are given is the session)


def with_state(session: Session, kept: Kept) -> Session:
    """Return a copy of a session, with the attributes that an app has given it, that has another state."""
    return session._of(kept)  # type: ignore[arg-type]  # noqa: SLF001  (likewise)


class StoredSession(OurSession):
    """One of our own sessions, with the names that users of aiohttp-session know besides."""

    if not TYPE_CHECKING:
        __setattr__ = object.__setattr__  # likewise

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
        return self._state.manager.is_changed(self._state)

    @_changed.setter
    def _changed(self, is_changed: bool) -> None:
        if is_changed:
            self.changed()

    @property
    def _mapping(self) -> dict[str, Any]:
        self._state.touch(EXPOSED)
        return self._state.data

    @_mapping.setter
    def _mapping(self, mapping: dict[str, Any]) -> None:
        self.clear()
        self.update(mapping)

    @property
    def _identity(self) -> str | None:
        return self.identity

    @_identity.setter
    def _identity(self, identity: object) -> None:
        self.set_new_identity(identity)

    @property
    def _new(self) -> bool:
        return self.new

    @property
    def _created(self) -> float:
        return self.created

    @property
    def _max_age(self) -> float | None:
        return self.idle_timeout


def _readable(data: object, max_age: int | None, now: int) -> Any:
    """Give the data if it is a session's and not too old, else `None`."""
    if not isinstance(data, dict) or not isinstance(data.get("session"), dict):
        return None
    created = data.get("created") or 0
    if isinstance(created, bool) or not isinstance(created, int | float):
        return None
    return None if max_age is not None and not -SKEW <= now - created <= max_age else data
