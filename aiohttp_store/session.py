"""The session: a dictionary that knows how it is kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, Protocol, TypeVar, cast

from aiohttp import web

from .codec import Envelope
from .cookie import Cookie
from .errors import ConfigError, SessionGone

__all__ = ["Data", "Duration", "Session", "SessionManager", "Snapshot", "seconds"]

T = TypeVar("T")

if TYPE_CHECKING:  # defaults of type variables come with Python 3.13
    from typing_extensions import TypeVar as TypeVarWithDefault

    Data = TypeVarWithDefault("Data", bound=Mapping[str, Any], default=Any)
else:
    Data = TypeVar("Data")

Duration = float | timedelta
"""Seconds, or a `timedelta`."""


_SCALARS = frozenset({str, int, float, bool, type(None)})


class SessionManager(Protocol):
    """Loads sessions for requests and saves them with responses: the seam below the middleware."""

    clock: Callable[[], float]
    """Seconds since the epoch."""
    cookie: Cookie
    """What the browser keeps."""
    keeps_in_cookie: bool
    """Whether that is the whole session, sealed."""

    async def open(self) -> None:
        """Prepare for use; called when the app starts."""

    async def close(self) -> None:
        """Finish what is under way, and give back what `open` took."""

    def load(self, request: web.BaseRequest) -> Awaitable[Session]:
        """Give, when it is awaited, the session of the request's cookie, or a new one."""

    async def save(self, request: web.BaseRequest, response: web.StreamResponse, session: Session) -> None:
        """Store what became of the session, and say in the response's headers what the browser must know."""

    async def new(self, request: web.BaseRequest, old: Session | None) -> Session:
        """Give an empty session that, when it is saved, ends the request's old one."""

    def is_changed(self, session: Session) -> bool:
        """Tell whether `save` would have anything to write for the handler's sake."""

    async def commit(self, session: Session) -> None:
        """Store the session now, even where nothing has changed."""

    async def reload(self, session: Session) -> None:
        """Read the session again."""

    async def apply(self, session: Session, change: Callable[[Session], T]) -> T:
        """Store what `change` makes of the newest data."""


class Snapshot(NamedTuple):
    """What the storage holds for a session, as far as this process knows."""

    id: str
    key: str
    version: bytes
    envelope: Envelope


class Session(MutableMapping[str, Any], Generic[Data]):
    """One visitor's data: a dictionary of JSON values, saved at the end of the request.

    Values are str, bool, None, finite float, 64-bit int, and lists and dicts of these with str
    keys; a tuple comes back as a list. Changes in nested lists and dicts are seen.

    `Session[Cart]`, where `Cart` is a `TypedDict`, tells a type checker what `data` holds.
    """

    # What most sessions never change stands here once, and not in each of them.
    _quiet_until = 0.0  # before this time, `save` has nothing to do: loaded, and only scalars were read from it
    _exposed = False  # a value that can be changed in place was handed out
    _touched = False  # a key was set or deleted
    _extend = False
    _forced = False
    _renewals = 0  # how often a new id was asked for since the last was given
    _life = 0  # counts invalidate(), so that a write under way knows that it was for the session before
    _gone = False
    _sealed = False  # the response's headers are sent
    _in_cookie = False  # the browser keeps the data, so that every change needs a new cookie
    _written = False
    _ended = False
    _cookie_stale = False
    _doomed: tuple[str, ...] = ()
    _legacy_request: Any = None  # whose old cookie must not bring back what ends here; see migrating.py
    _left_alone = False  # an old session that cannot be taken over now, but may be when the app is set up otherwise

    def __init__(self, manager: SessionManager, data: dict[str, Any], stored: Snapshot | None = None) -> None:
        self._manager = manager
        self._data = data
        self._snapshot = stored
        if stored is None:
            self._new = True
            self._cookie_id: str | None = None
            self._created = manager.clock()
            self._idle_timeout: float | None = None
        else:
            self._new = False
            self._cookie_id = stored.id
            self._created = stored.envelope.created
            self._idle_timeout = stored.envelope.idle_timeout

    @property
    def data(self) -> Data:
        """This very session, which type checkers take for a `Cart` where it is a `Session[Cart]`.

        Nothing is checked when the app runs. It is no dict: where one is demanded, take `dict(session)`.
        """
        return cast(Data, self)

    @property
    def identity(self) -> str | None:
        """The id in the cookie; `None` while nothing is stored.

        Under `cookie://` it is no key to anything, but names the session as it does elsewhere.
        """
        return None if self._snapshot is None or self._gone else self._snapshot.id

    @property
    def new(self) -> bool:
        """Whether this request began the session."""
        return self._new

    @property
    def created(self) -> float:
        """When the session began, in seconds since the epoch; saving and prolonging leave it alone."""
        return self._created

    @property
    def empty(self) -> bool:
        """Whether there is no data; an empty session is not stored."""
        return not self._data

    @property
    def idle_timeout(self) -> float | None:
        """Seconds of disuse after which this session ends; `None` where `setup` decides.

        Setting it, to seconds or a `timedelta` ("remember me"), stores it with the session and makes its cookie
        outlive the browser.

        Raises:
            ConfigError: on setting what is not a duration above 0.
            RuntimeError: on setting after the response's headers have been sent.
        """
        return self._idle_timeout

    @idle_timeout.setter
    def idle_timeout(self, timeout: Duration | None) -> None:
        if self._sealed:
            self._refuse("another idle_timeout needs a new cookie")
        self._quiet_until = 0.0
        self._idle_timeout = None if timeout is None else seconds("idle_timeout", timeout)

    def invalidate(self) -> None:
        """End this session: its record is deleted and its cookie cleared when the response is saved.

        What is written afterwards starts a new session under a new id. Under `cookie://` only this browser forgets it.

        Raises:
            RuntimeError: under `cookie://`, the response's headers have been sent.
        """
        self._refuse_as_in_cookie()
        self._quiet_until = 0.0
        if self._snapshot is not None:
            self._doomed += (self._snapshot.key,)
        self._data = {}
        self._snapshot = None
        self._idle_timeout = None
        self._new = self._ended = True
        self._gone = self._forced = False
        self._renewals = 0
        self._life += 1
        self._created = self._manager.clock()

    def renew(self, *, login: bool = False) -> None:
        """Give the session a new id and keep its data; the old id is dead once the response is saved.

        For every gain of rights (OWASP Session Management, "Renew the Session ID After Any Privilege
        Level Change"). With `login`, `created` and so the `lifetime` begin anew.

        Raises:
            RuntimeError: the response's headers have been sent.
        """
        if self._sealed:
            self._refuse("renew() needs a new cookie")
        self._quiet_until = 0.0
        self._renewals += 1
        if login:
            self._created = self._manager.clock()

    def changed(self) -> None:
        """Save the session even if its data looks the same; changes of nested values are seen without it.

        Raises:
            RuntimeError: under `cookie://`, the response's headers have been sent.
        """
        self._refuse_as_in_cookie()
        self._quiet_until = 0.0
        self._forced = True

    async def save(self) -> None:
        """Store the session now, not at the end of the request: for long WebSockets and streams.

        Raises:
            SessionGone: the session has ended meanwhile, as by a logout.
            SessionConflict: as `on_conflict="raise"` says, or merging did not end in time.
            StorageUnavailable: the storage did not answer in time.
            SessionTooLarge: the storage or the cookie cannot hold it.
            RuntimeError: a new session, or any under `cookie://`, would need a cookie, and the headers have been sent.
            TypeError: the data holds a value that JSON cannot hold.
        """
        self._refuse_as_in_cookie()
        if self._sealed and self._snapshot is None and self._data:
            self._refuse("a new session needs a cookie")
        self._quiet_until = 0.0
        await self._manager.commit(self)
        self._tell_if_gone()

    async def reload(self) -> None:
        """Read the session again; unsaved changes are dropped, and nested values are new objects.

        Raises:
            SessionGone: the session has ended meanwhile, as by a logout.
            StorageUnavailable: the storage did not answer in time.
        """
        self._quiet_until = 0.0
        await self._manager.reload(self)
        self._tell_if_gone()

    async def apply(self, change: Callable[[Session[Data]], T]) -> T:
        """Store what the plain function `change(session)` makes of the newest data, and give its result.

        No concurrent change is lost: `change` runs again on fresh data, over what was pending, until
        the write wins. It may run several times, so it changes the session and nothing else. What it
        raises rests on data as new as the call.

        Raises:
            SessionGone: the session has ended meanwhile, as by a logout.
            SessionConflict: others wrote first each time, until the deadline.
            StorageUnavailable: the storage did not answer in time.
            SessionTooLarge: the storage or the cookie cannot hold it.
            RuntimeError: as in `save`.
            TypeError: the data holds a value that JSON cannot hold.
        """
        self._refuse_as_in_cookie()
        self._quiet_until = 0.0
        result = await self._manager.apply(self, change)
        self._tell_if_gone()
        return result

    def _tell_if_gone(self) -> None:
        if self._gone:
            raise SessionGone("the session was deleted meanwhile, as by a logout")

    def _refuse_as_in_cookie(self) -> None:
        if self._sealed and self._in_cookie:
            self._refuse("under cookie:// a change needs a new cookie")

    def _refuse(self, why: str) -> NoReturn:
        raise RuntimeError(
            f"{why}, but the response's headers have been sent; do it before `await response.prepare(request)`"
        )

    def __getitem__(self, key: str) -> Any:
        value = self._data[key]
        if type(value) not in _SCALARS:
            self._exposed = True
            self._quiet_until = 0.0
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        if self._sealed:
            self._refuse_as_in_cookie()
            if self._snapshot is None and not self._gone:
                self._refuse("a new session needs a cookie")
        self._data[key] = value
        self._touched = True
        self._quiet_until = 0.0

    def __delitem__(self, key: str) -> None:
        self._refuse_as_in_cookie()
        del self._data[key]
        self._touched = True
        self._quiet_until = 0.0

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __contains__(self, key: object) -> bool:
        return key in self._data

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session cannot be pickled, as that would copy its id; pickle dict(session)")

    def __repr__(self) -> str:
        state = "gone" if self._gone else "new" if self._new else "stored"
        return f"<Session {state}, {len(self._data)} keys>"


def seconds(name: str, duration: Duration) -> float:
    """Read a duration as seconds.

    Raises:
        ConfigError: it is no duration, or not above 0, or longer than a thousand years.
    """
    value = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1000 * 366 * 86_400:
        raise ConfigError(f"{name}={duration!r} must be seconds or a timedelta, and above 0")
    return float(value)
