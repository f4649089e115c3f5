"""An event loop without a clock of its own: time passes only when nothing is left to do, and then at once."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["StandstillError", "VirtualLoop"]

LATEST = 1_000_000.0
"""Seconds of virtual time after which something goes on that should have ended."""
RESTLESS = 100_000
"""Turns of the loop in which no time passes, after which somebody runs in a circle."""


class StandstillError(Exception):
    """Somebody waits for what does not come, or runs in a circle."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs callbacks in the order that asyncio promises; only external events, which are timers here, come at random.

    Nothing is read from the machine, so a run depends on its seed alone.
    """

    _selector: Any

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._locks = 0
        self._selector = self
        self.set_debug(False)

    def time(self) -> float:
        """Return the seconds of virtual time that have passed."""
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        """Let the time pass for which the loop has nothing to do."""
        self._locks = 0 if timeout else self._locks + 1
        if timeout is None or self._now > LATEST or self._locks > RESTLESS:
            raise StandstillError
        self._now += timeout
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """Do nothing: there are no sockets."""

    def _write_to_self(self) -> None:
        """Do nothing: no other thread wakes this loop."""
