"""What happened to the requests, and what was found wrong."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

MOST_FINDINGS = 20


@dataclass
class Tally:
    """One storage's figures; times in seconds."""

    requests: int = 0
    unavailable: int = 0
    cancelled: int = 0
    """Requests whose visitor dropped its connection."""
    cancelled_handlers: int = 0
    """How many of them the app had begun."""
    conflicts: int = 0
    """Answers 409 where no other write can have come between."""
    errors: int = 0
    """Answers that are no session's: 500, dropped connections, and what the app logged as an error."""
    longest_wait: float = 0.0
    longest_stall: float = 0.0
    longest_recovery: float = 0.0
    acknowledged: int = 0
    lost: int = 0
    foreign: int = 0
    undone: int = 0
    doubled: int = 0
    slowest: str = ""
    """The fault from which recovery took longest."""
    ended: int = 0
    """Sessions that ended with a server that keeps nothing."""
    findings: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def find(self, kind: str, what: str, times: int = 1) -> None:
        """Count something that must not be, and keep the first of them as evidence."""
        setattr(self, kind, getattr(self, kind) + times)
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(f"{time.monotonic() - self.began:7.2f} s  {kind}: {what}")

    def note(self, what: str) -> None:
        self.findings.append(f"{time.monotonic() - self.began:7.2f} s  {what}")
