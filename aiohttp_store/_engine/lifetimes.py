"""When a session ends, when it is due for another write, and how long its record and its cookie last."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ..codec import Envelope
from ..cookie import MAX_AGE
from ..session import Duration, seconds
from .state import SessionState

__all__ = ["IDLE_TIMEOUT", "PROLONG_AFTER", "Lifetimes"]

PROLONG_AFTER = 1 / 20
"""The share of the idle timeout after which a session that is only read is written again."""
IDLE_TIMEOUT = 86_400.0
"""Seconds."""
SKEW = 60.0
"""Seconds by which the clock of another machine may be ahead of ours."""


class Lifetimes:
    """The times of an app's sessions, by one clock."""

    def __init__(self, idle_timeout: Duration, lifetime: Duration | None) -> None:
        self.clock: Callable[[], float] = time.time
        self.idle_timeout = seconds("idle_timeout", idle_timeout)
        self.lifetime = math.inf if lifetime is None else seconds("lifetime", lifetime)

    def ends(self, envelope: Envelope) -> float:
        """Return when a session ends that is not used again: seconds since the epoch."""
        created, written, idle_timeout, _, _ = envelope
        return min(written + (idle_timeout or self.idle_timeout), created + self.lifetime)

    def believed(self, envelope: Envelope, now: float) -> Envelope:
        """Return what was stored, with no time in the future: a wrong clock had made the session live until then."""
        if max(envelope.created, envelope.written) <= now + SKEW:
            return envelope
        return envelope._replace(created=min(envelope.created, now), written=min(envelope.written, now))

    def is_over(self, envelope: Envelope) -> bool:
        return self.clock() >= self.ends(envelope)

    def is_due(self, envelope: Envelope) -> bool:
        """Whether a session that is used must be written again, as also after the clock was set back."""
        return abs(self.clock() - envelope.written) > (envelope.idle_timeout or self.idle_timeout) * PROLONG_AFTER

    def clean_until(self, envelope: Envelope, now: float) -> float:
        """Return when a session that is only read is due: seconds since the epoch."""
        _, written, idle_timeout, _, _ = envelope
        # A clock that was set back makes it due now.
        return 0.0 if now < written else written + (idle_timeout or self.idle_timeout) * PROLONG_AFTER

    def rest(self, state: SessionState) -> None:
        """Take note that a session was written whole, so that until it is due there is nothing to look for."""
        if state.snapshot is not None:
            state.rest(self.clean_until(state.snapshot.envelope, self.clock()))

    def first(self, state: SessionState, payload: bytes) -> Envelope:
        """Return what is to be stored under a new id."""
        return Envelope(state.created, self.clock(), state.idle_timeout, payload, state.fields)

    def next(self, state: SessionState, before: Envelope, payload: bytes, now: float) -> Envelope:
        """Return what is to be stored in the place of `before`."""
        written = now if state.request.extends else before.written
        return Envelope(state.created, written, state.idle_timeout, payload, state.fields)

    def ttl(self, envelope: Envelope, now: float) -> int:
        """Return the seconds after which a storage may drop the record."""
        return max(1, math.ceil(self.ends(envelope) - now))

    def max_age(self, envelope: Envelope) -> int:
        """Return the seconds after which a browser may drop the cookie."""
        return min(MAX_AGE, self.ttl(envelope, self.clock()))
