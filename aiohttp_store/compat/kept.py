"""The state of a session that a storage written for aiohttp-session keeps."""

from __future__ import annotations

import asyncio
import copy
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .._engine.merge import is_same, merge
from .._engine.state import NO_REQUEST, RequestLink

if TYPE_CHECKING:
    from .session import Session

__all__ = ["Kept", "unguessable"]

_UNGUESSABLE = re.compile(r"[A-Za-z0-9_-]{22,}")
"""What 128 random bits take in base64url; no user name, number or address in most apps."""


def unguessable(identity: object) -> str:
    """Return an id that an app has chosen.

    Raises:
        ValueError: it may be guessed, and whoever knows it has the session.
    """
    if not isinstance(identity, str) or not _UNGUESSABLE.fullmatch(identity):
        raise ValueError(
            "the id given to set_new_identity() can be guessed, and whoever knows it has the session; leave it to "
            "the storage, or give at least 22 characters from secrets.token_urlsafe() or uuid4().hex"
        )
    return identity


def _nobody() -> None:
    """Return no session: none has been made for a request."""


@dataclass(eq=False, repr=False)
class Kept:
    """The state of a session that a storage written for aiohttp-session keeps."""

    identity: Any = None
    data: dict[str, Any] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))
    max_age: int | None = None
    is_new: bool = True
    kept_under: Any = None
    """The id that the storage knows it by, if it is stored."""
    loaded_under: Any = None
    """The id that the request's cookie names."""
    ended: tuple[Any, ...] = ()
    """The ids of records that are to be emptied."""
    has_ended: bool = False
    """The next write begins another session."""
    is_changed: bool = False
    is_gone: bool = False
    image: str = "{}"
    """The data at the last load or save, so that changes of nested values are seen."""
    manager: Any = None
    loaded_for: Any = None
    """A copy of the request that asked for it, for what is saved after its end."""
    request: RequestLink = NO_REQUEST
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Of the tasks that `apply` a change."""
    clean_until: float = 0.0
    said: str = ""
    snapshot: None = None
    presented: Callable[[], Session | None] = _nobody
    """Returns the session. It holds this state, and not the other way round: both are freed without the collector."""

    @property
    def is_something(self) -> bool:
        """Whether there is anything to store, or to remove."""
        return bool(self.data) or not self.is_new or self.kept_under is not None

    def touch(self, dirty: int = 0) -> None:
        """Do nothing: changes are seen by comparison."""

    def use(self) -> None:
        """Note that the data has changed."""
        self.is_changed = True
        self.created = int(time.time())

    def begin_anew(self) -> None:
        """Have another id, and the record under this one emptied."""
        if not self.is_new or self.kept_under is not None:
            self.ended += (self.identity,)
        self.identity = self.kept_under = None
        self.is_new, self.has_ended = True, False

    def fork(self) -> Kept:
        """Return a copy, on which a change can work without anybody seeing what fails."""
        return replace(self, data=copy.deepcopy(self.data))

    def adopt(self, before: Kept, fork: Kept) -> None:
        """Become the fork that was saved; what other tasks have changed since `before` stays theirs."""
        mine, merged = self.data, merge(before.data, self.data, fork.data)
        # What is the same stays the very object, as a handler may hold it.
        kept = {key for key in mine.keys() & merged.keys() if is_same(mine[key], merged[key])}
        data = {key: mine[key] if key in kept else value for key, value in merged.items()}
        vars(self).update(vars(fork), request=self.request, data=data)
