"""What a session is made of while a request uses it, and every way in which that changes.

A handler changes `data`, `created`, `idle_timeout` and `fields`, and adds to what is `asked` for. The `snapshot` is
what the storage holds, and `held` what the browser holds. A write carries out the first so many things that were asked
for; when it has won, they are taken off. Whatever was asked for later stays, so nothing is forgotten, and an `End`
among that says that the write was for the session before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

from aiohttp import web

from ..codec import Envelope, Fields, merge_fields
from ..cookie import Cookie
from ..errors import StorageUnavailable
from .merge import is_same, merge

__all__ = [
    "EXPOSED",
    "NO_REQUEST",
    "RENEW",
    "SAVE",
    "TOUCHED",
    "UNKNOWN",
    "Apart",
    "End",
    "RequestLink",
    "SessionManager",
    "SessionState",
    "Snapshot",
    "refuse",
]

T = TypeVar("T")
State = TypeVar("State")


class SessionManager(Protocol[State]):
    """Loads sessions for requests and saves them with responses: what the middleware is plugged into."""

    keeps_in_cookie: bool
    """Whether the cookie is the whole session, sealed."""

    @property
    def cookie(self) -> Cookie:
        """What the browser keeps."""

    def now(self) -> float:
        """Return the seconds since the epoch."""

    async def open(self) -> None:
        """Prepare for use; called when the app starts."""

    async def close(self) -> None:
        """Finish what is under way, and give back what `open` took."""

    def load(self, request: web.BaseRequest) -> Awaitable[State]:
        """Return, when it is awaited, the session of the request's cookie, or a new one."""

    @property
    def present(self) -> Callable[[State], Any]:
        """Returns the session that a handler sees."""

    async def new(self, request: web.BaseRequest, old: State | None) -> State:
        """Return an empty session that, when it is saved, ends the request's old one."""

    def save(self, request: web.BaseRequest, response: web.StreamResponse, state: State) -> Awaitable[None]:
        """Store what became of the session."""

    def answer(self, request: web.BaseRequest, response: web.StreamResponse, state: State) -> None:
        """Say in the response's headers what the browser must know."""

    def is_changed(self, state: State) -> bool:
        """Whether `save` would have anything to write for the handler's sake."""

    async def commit(self, state: State) -> None:
        """Store the session now, even where nothing has changed."""

    async def reload(self, state: State) -> None:
        """Read the session again."""

    async def apply(self, state: State, change: Callable[[State], T]) -> T:
        """Store what `change` makes of the newest data."""


class RequestLink(Protocol):
    """What a session asks its request for."""

    @property
    def headers_sent(self) -> bool:
        """Whether the response's headers are sent, or on their way."""

    @property
    def extends(self) -> bool:
        """Whether the request counts as use of the session."""

    def failed(self, error: StorageUnavailable) -> None:
        """Take note of an outage, which becomes a 503 even if it is caught and shown as a 500."""


@dataclass(frozen=True)
class Apart:
    """A request that is over, or that a session never had."""

    headers_sent: bool
    extends: bool

    def failed(self, error: StorageUnavailable) -> None:
        """Do nothing: nobody waits for a response."""


NO_REQUEST = Apart(headers_sent=False, extends=False)


class Snapshot(NamedTuple):
    """What the storage holds for a session, as far as this process knows."""

    id: str
    key: str
    version: bytes
    """Under `cookie://` the cookie's value."""
    envelope: Envelope

    def __repr__(self) -> str:
        return f"<Snapshot of session {self.key[:8]}, {self.envelope!r}>"

    def __sentry_repr__(self) -> str:  # Sentry shows the items of a tuple, whatever its repr is
        return repr(self)


UNKNOWN = Snapshot("", "", b"", Envelope(0, 0, None, b""))
"""What a browser holds of which only is known that it is to be replaced."""


class Ask(Enum):
    """What a handler asks for, apart from an `End`."""

    SAVE = "save"
    """A write, even if nothing has changed."""
    RENEW = "renew"
    """Another id."""


SAVE, RENEW = Ask.SAVE, Ask.RENEW


class End(NamedTuple):
    """The end of a session was asked for."""

    key: str | None
    """Of its record, if it had one."""
    version: bytes | None = None
    """Of that record, if it is known."""

    def __repr__(self) -> str:
        return "<End>" if self.key is None else f"<End of session {self.key[:8]}>"

    def __sentry_repr__(self) -> str:  # Sentry shows the items of a tuple, whatever its repr is
        return repr(self)


def refuse(why: str = "under cookie:// a change needs a new cookie") -> NoReturn:
    """Raise what says that it is too late.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        f"{why}, but the response's headers have been sent; do it before `await response.prepare(request)`"
    )


EXPOSED, TOUCHED = 1, 2
"""Flags: why the data may differ from the snapshot. A value that can be changed was handed out; a key was set."""


class SessionState:
    """The state of one session in one request."""

    # What most sessions never change stands here once, and not in each of them.
    fields: Fields = ()
    asked: tuple[Ask | End, ...] = ()
    presented: tuple[End, ...] = ()  # other records whose ids the request brought, which a logout ends as well
    is_new = False
    is_gone = False  # another has ended the session
    dirty = 0
    clean_until = 0.0  # before this time there is nothing to save: only scalars were read
    request: RequestLink = NO_REQUEST
    said = ""  # the cookie that was put into the response's headers, and for what
    said_for: Snapshot | None = None
    absence = ""  # why a cookie's session is not there

    def __init__(self, manager: SessionManager[SessionState], data: dict[str, Any], snapshot: Snapshot | None) -> None:
        self.manager = manager
        self.data = data
        self.snapshot = self.held = snapshot
        if snapshot is None:
            self.is_new = True
            self.created = manager.now()
            self.idle_timeout: float | None = None
        else:
            self.created, _, self.idle_timeout, _, self.fields = snapshot.envelope

    # What a handler does.

    def touch(self, dirty: int = TOUCHED) -> None:
        """Note that the data may differ from the snapshot."""
        self.clean_until = 0.0
        self.dirty |= dirty

    def ask(self, what: Ask) -> None:
        self.clean_until = 0.0
        self.asked += (what,)

    def renew(self, *, is_login: bool) -> None:
        self.ask(RENEW)
        if is_login:
            self.created = self.manager.now()

    def changed_by(self, change: Callable[[SessionState], T]) -> T:
        """Run the plain function that `Session.apply` was given, and have its result stored in any case.

        Raises:
            TypeError: it is no plain function.
        """
        result = change(self)
        if asyncio.iscoroutine(result):
            result.close()
            raise TypeError("apply() runs a plain function, and this one is async: await before apply()")
        self.ask(SAVE)  # also a result that changes nothing must rest on the newest data
        return result

    def end(self) -> None:
        """Begin a new session in the place of this one."""
        self.clean_until = 0.0
        self.asked += self.own_and_presented or (End(None),)
        self.data, self.presented = {}, ()
        self.snapshot = self.idle_timeout = None
        self.fields = ()
        self.held = self.held or UNKNOWN
        self.is_new, self.is_gone = True, False
        self.created = self.manager.now()

    def in_place_of(self, ends: Iterable[End]) -> SessionState:
        """Return this new session as what ends others."""
        self.asked = tuple({one.key: one for one in ends}.values()) or (End(None),)
        self.held = UNKNOWN
        return self

    def abandon(self) -> None:
        """Be a session that nobody can use any more, and whose ends are left to another."""
        self.is_gone = True

    def be_unknown_to_browser(self) -> None:
        """Send the cookie again, because the browser holds an older one."""
        self.clean_until = 0.0
        self.held = UNKNOWN

    # What a write does.

    def fork(self, data: dict[str, Any]) -> SessionState:
        """Return a copy with other data, on which a write can work without anybody seeing what has not won."""
        fork = object.__new__(SessionState)
        vars(fork).update(vars(self), data=data)
        return fork

    def rebase(self, before: Snapshot, newest: Snapshot) -> None:
        """Rest on what is stored now instead of `before`."""
        if self.created == before.envelope.created:
            self.created = newest.envelope.created
        if self.idle_timeout == before.envelope.idle_timeout:
            self.idle_timeout = newest.envelope.idle_timeout
        self.fields = merge_fields(before.envelope.fields, self.fields, newest.envelope.fields)
        self.snapshot, self.dirty = newest, TOUCHED

    def adopt(self, before: SessionState, fork: SessionState, written: Snapshot | None) -> None:
        """Become the fork that was written; what other tasks have changed since `before` stays theirs."""
        if self.settle(len(before.asked), written) and fork is not before:
            mine, merged = self.data, merge(before.data, self.data, fork.data)
            # What is the same stays the very object, as a handler may hold it.
            kept = {key for key in mine.keys() & merged.keys() if is_same(mine[key], merged[key])}
            self.data = {key: mine[key] if key in kept else value for key, value in merged.items()}
            if self.created == before.created:
                self.created = fork.created
            if self.idle_timeout == before.idle_timeout:
                self.idle_timeout = fork.idle_timeout
            self.fields = merge_fields(before.fields, self.fields, fork.fields)
            self.is_new, self.held = fork.is_new, fork.held
            self.touch()

    def settle(self, carried_out: int, written: Snapshot | None) -> bool:
        """Take note of a write that carried out so much of what was asked for; whether it was for this session."""
        if self.asked:
            self.asked = self.asked[carried_out:]
        if self.asked and self.has_ended:
            if written is not None and all(one.key != written.key for one in self.ends):
                self.asked = (End(written.key, written.version), *self.asked)
            return False
        if written is None and self.snapshot is not None:  # it was emptied: what comes now begins under another id
            self.created = self.manager.now()
        self.snapshot = written
        return True

    def rest(self, until: float) -> None:
        """Take note that the storage holds all that the session holds, and that it is not due before this time."""
        self.clean_until, self.dirty = until, 0

    def lose(self, carried_out: int) -> bool:
        """Take note of a write that found the session ended by another; whether it was for this session."""
        self.asked = self.asked[carried_out:]
        if self.has_ended:
            return False
        self.is_gone = True
        return True

    def drop_changes(self) -> None:
        """Hold nothing, as nothing is stored."""
        self.data = {}

    def read_again(self, read: SessionState) -> None:
        """Become what is stored now; what was not saved is dropped, apart from an end."""
        self.data, self.snapshot = read.data, read.snapshot
        self.created, self.idle_timeout, self.fields = read.created, read.idle_timeout, read.fields
        self.asked = self.ends
        self.dirty = 0

    @property
    def own_and_presented(self) -> tuple[End, ...]:
        """The records that a logout ends."""
        snapshot = self.snapshot
        return self.presented if snapshot is None else (End(snapshot.key, snapshot.version), *self.presented)

    @property
    def ends(self) -> tuple[End, ...]:
        """What was asked for to be ended."""
        return tuple(one for one in self.asked if isinstance(one, End))

    @property
    def only_saves(self) -> bool:
        """Whether nothing else was asked for."""
        return all(one is SAVE for one in self.asked)

    @property
    def has_ended(self) -> bool:
        return bool(self.ends)
