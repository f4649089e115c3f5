"""What happened to the requests, and what was found wrong."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

MOST_FINDINGS = 20
MOST_REASONS = 10


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
    unserved: int = 0
    """Visitors that waited in vain: for one answer, or for a 200 once nothing was broken any more."""
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
    reasons: list[str] = field(default_factory=list)
    """Why the app answered 500 and 503, what is worse or more frequent first."""
    began: float = field(default_factory=time.monotonic)

    def find(self, kind: str, what: str, times: int = 1) -> None:
        """Count something that must not be, and keep the first of them as evidence."""
        setattr(self, kind, getattr(self, kind) + times)
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(f"{time.monotonic() - self.began:7.2f} s  {kind}: {what}")

    def explain(self, met: Mapping[str, tuple[int, float, float]]) -> None:
        """Keep the reasons that the app tells: for each how often it met it, and when first and last."""
        worst = sorted(met.items(), key=lambda one: (one[0].startswith("503"), -one[1][0]))
        self.reasons = [
            f"{count} x {reason}, from {first - self.began:.2f} s to {last - self.began:.2f} s"
            for reason, (count, first, last) in worst[:MOST_REASONS]
        ]
        if len(worst) > MOST_REASONS:
            others = sum(count for _, (count, _, _) in worst[MOST_REASONS:])
            self.reasons.append(f"{others} x for {len(worst) - MOST_REASONS} other reasons")
