"""The session: a dictionary that knows how it is kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast

from ._engine.state import EXPOSED, SAVE, TOUCHED, SessionState, refuse
from ._keywords import attribute_error
from .errors import ConfigError, SessionGone, StorageUnavailable

__all__ = ["Data", "Duration", "Session", "seconds"]

T = TypeVar("T")

if TYPE_CHECKING:  # defaults of type variables come with Python 3.13
    from typing import Self

    from typing_extensions import TypeVar as TypeVarWithDefault

    Data = TypeVarWithDefault("Data", bound=Mapping[str, Any], default=Any)
else:
    Data = TypeVar("Data")

Duration = float | timedelta
"""Seconds, or a `timedelta`."""


_PLAIN = frozenset({str, int, bool, type(None)})
"""Types of values that JSON holds as they are, whatever the value."""
_SCALARS = _PLAIN | {float}


class Session(MutableMapping[str, Any], Generic[Data]):
    """One visitor's data: a dictionary of JSON values, saved at the end of the request.

    Values are str, bool, None, finite float, 64-bit int, and lists and dicts of these with str
    keys; a tuple comes back as a list. Changes in nested lists and dicts are seen.

    `Session[Cart]`, where `Cart` is a `TypedDict`, tells a type checker what `data` holds.

    It has no attributes but these. Setting or reading another is an `AttributeError` that names what to write instead.
    """

    _state: SessionState

    def __init__(self, state: SessionState) -> None:
        self.__dict__["_state"] = state

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
        snapshot = self._state.snapshot
        return None if snapshot is None or self._state.is_gone else snapshot.id

    @property
    def new(self) -> bool:
        """Whether this request began the session."""
        return self._state.is_new

    @property
    def created(self) -> float:
        """When the session began, in seconds since the epoch; saving and prolonging leave it alone."""
        return self._state.created

    @property
    def empty(self) -> bool:
        """Whether there is no data; an empty session is not stored."""
        return not self._state.data

    @property
    def idle_timeout(self) -> float | None:
        """Seconds of disuse after which this session ends; `None` where `setup` decides.

        Setting it, to seconds or a `timedelta` ("remember me"), stores it with the session and makes its cookie
        outlive the browser.

        Raises:
            ConfigError: on setting what is not a duration above 0.
            RuntimeError: on setting after the response's headers have been sent.
        """
        return self._state.idle_timeout

    @idle_timeout.setter
    def idle_timeout(self, timeout: Duration | None) -> None:
        if self._state.request.headers_sent:
            refuse("another idle_timeout needs a new cookie")
        self._state.touch(0)
        self._state.idle_timeout = None if timeout is None else seconds("idle_timeout", timeout)

    def invalidate(self) -> None:
        """End this session: its record is deleted and its cookie cleared when the response is saved.

        What is written afterwards starts a new session under a new id. Under `cookie://` only this browser forgets it.

        Raises:
            RuntimeError: under `cookie://`, the response's headers have been sent.
        """
        self._refuse_as_in_cookie()
        self._state.end()

    def renew(self, *, login: bool = False) -> None:
        """Give the session a new id and keep its data; the old id is dead once the response is saved.

        For every gain of rights (OWASP Session Management, "Renew the Session ID After Any Privilege
        Level Change"). With `login`, `created` and so the `lifetime` begin anew.

        Raises:
            RuntimeError: the response's headers have been sent.
        """
        if self._state.request.headers_sent:
            refuse("renew() needs a new cookie")
        self._state.renew(is_login=login)

    def changed(self) -> None:
        """Save the session even if its data looks the same; changes of nested values are seen without it.

        Raises:
            RuntimeError: under `cookie://`, the response's headers have been sent.
        """
        self._refuse_as_in_cookie()
        self._state.ask(SAVE)

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
        state = self._state
        self._refuse_as_in_cookie()
        if state.request.headers_sent and state.snapshot is None and state.data:
            refuse("a new session needs a cookie")
        await self._asked(state.manager.commit(state))
        self._tell_if_gone()

    async def reload(self) -> None:
        """Read the session again; unsaved changes are dropped, and nested values are new objects.

        Raises:
            SessionGone: the session has ended meanwhile, as by a logout.
            StorageUnavailable: the storage did not answer in time.
        """
        self._state.touch(0)
        await self._asked(self._state.manager.reload(self._state))
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
        self._state.touch(0)
        result = await self._asked(self._state.manager.apply(self._state, lambda fork: change(self._of(fork))))
        self._tell_if_gone()
        return result

    async def _asked(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except StorageUnavailable as error:
            self._state.request.failed(error)
            raise

    def _of(self, fork: SessionState) -> Self:
        """Return this session as what a fork of its state makes of it."""
        session = object.__new__(type(self))
        vars(session).update(vars(self), _state=fork)
        return session

    def _tell_if_gone(self) -> None:
        if self._state.is_gone:
            raise SessionGone("the session was deleted meanwhile, as by a logout")

    def _refuse_as_in_cookie(self) -> None:
        if self._state.request.headers_sent and self._state.manager.keeps_in_cookie:
            refuse()

    def __getitem__(self, key: str) -> Any:
        value = self._state.data[key]
        if type(value) not in _SCALARS:
            self._state.touch(EXPOSED)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        state = self._state
        if state.request.headers_sent:
            self._refuse_as_in_cookie()
            if state.snapshot is None and not state.is_gone:
                refuse("a new session needs a cookie")
        state.data[key] = value
        state.touch(TOUCHED if type(value) in _PLAIN else TOUCHED | EXPOSED)

    def __delitem__(self, key: str) -> None:
        self._refuse_as_in_cookie()
        del self._state.data[key]
        self._state.touch()

    def __iter__(self) -> Iterator[str]:
        return iter(self._state.data)

    def __len__(self) -> int:
        return len(self._state.data)

    def __contains__(self, key: object) -> bool:
        return key in self._state.data

    if not TYPE_CHECKING:  # type checkers would believe that it has every attribute

        def __getattr__(self, name: str) -> NoReturn:
            raise attribute_error(self, name, is_set=False)

        def __setattr__(self, name: str, value: object) -> None:
            if getattr(getattr(type(self), name, None), "fset", None) is None:
                raise attribute_error(self, name, is_set=True)
            super().__setattr__(name, value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session cannot be pickled, as that would copy its id; pickle dict(session)")

    def __repr__(self) -> str:
        status = "gone" if self._state.is_gone else "new" if self.new else "stored"
        return f"<Session {status}, {len(self)} keys>"


def seconds(name: str, duration: Duration) -> float:
    """Read a duration as seconds.

    Raises:
        ConfigError: it is no duration, or not above 0, or longer than a thousand years.
    """
    value = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1000 * 366 * 86_400:
        raise ConfigError(f"{name}={duration!r} must be seconds or a timedelta, and above 0")
    return float(value)
