"""What was acknowledged, and so what every session that is shown must and must not hold.

The oracle counts events. A change is acknowledged by the event at which its response, or the return of
`save()`, reached whoever had asked for it; what begins later must be shown it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .plan import Plan, Visit

__all__ = ["KNOWN", "NEVER", "Act", "Attempt", "Cookie", "Finding", "Oracle", "Truth"]

NEVER = math.inf
PROLONGED = 0.95
"""The share of the idle timeout after which a session that was only read may end."""
SLACK = 15.0
"""Seconds by which a time may be off: rounding, and what a request takes from its question to its write."""
FOLLOWED = 3500.0
"""Seconds within which a renewed id leads a logout to its session."""

KNOWN: dict[str, str] = {}
"""The faults of the engine that are not mended yet; the simulation fails when one of them no longer occurs."""


class Finding(NamedTuple):
    """Something that must not be."""

    kind: str
    """A column of the table."""
    known: str | None
    """The name in `KNOWN`, if it is one of these."""
    what: str


@dataclass(eq=False)
class Cookie:
    """One id that the engine drew, or that a visitor made up."""

    value: str
    truth: Truth | None = None
    delivered: float = NEVER
    changes: list[Act] = field(default_factory=list)
    """The ends and renewals that were asked for in requests that had it."""


@dataclass(eq=False)
class Act:
    """One change of one session that a request asked for; each has a token of its own."""

    kind: str
    """`put`, `nest`, `replace`, `apply`, `remove`, `end` or `renew`."""
    attempt: Attempt
    truth: Truth
    token: int
    asked: int
    cookie: Cookie | None = None
    """The id that the session had when its renewal was asked for."""
    removal: Act | None = None
    acknowledged: float = NEVER


@dataclass(eq=False)
class Truth:
    """One session from its beginning to its end, whatever ids it has; times are virtual seconds."""

    sid: int
    owner: str
    began: float
    renewed: float
    """When its lifetime may have begun anew."""
    touched: float
    """When it may have been used last."""
    idle: list[float]
    """Every idle timeout that it may have."""
    used: float = -math.inf
    """When it was used last for sure."""
    acts: dict[int, Act] = field(default_factory=dict)
    """Its changes by their tokens."""
    ends: list[Act] = field(default_factory=list)
    renewals: list[Act] = field(default_factory=list)
    is_lost: bool = False
    """Whether its server may have lost it in a restart."""


@dataclass(eq=False)
class Attempt:
    """One request, and what it has asked for."""

    number: int
    visit: Visit
    owner: str
    cookie: Cookie | None
    others: tuple[Cookie, ...]
    """What it presented besides."""
    started: int
    began: float
    """Virtual time."""
    ended: float = NEVER
    """The event of its response, if there was one."""
    is_answered: bool = False
    """Whether the headers were sent."""
    is_refused: bool = False
    """Whether its response was an error."""
    has_background: bool = False
    """Whether it went on after its headers were sent, in a task or a stream."""
    pending: list[Act] = field(default_factory=list)
    shown: Truth | None = None
    emptied: Act | None = None
    """The end that it asked for by leaving no data."""
    has_ended: bool = False
    """Whether it has asked for the end or another id of a session itself."""


class Oracle:
    """Keeps the truth, and finds what contradicts it."""

    def __init__(self, plan: Plan, now: Callable[[], float], *, is_tracing: bool = False) -> None:
        self.plan = plan
        self.now = now
        self.events = 0
        self.acknowledged = 0
        self.sessions: dict[int, Truth] = {}
        self.cookies: dict[str, Cookie] = {}
        self.attempts: list[Attempt] = []
        self.findings: list[Finding] = []
        self.trace: list[str] | None = [] if is_tracing else None

    def event(self, *what: object) -> int:
        """Count an event."""
        self.events += 1
        if what and self.trace is not None:
            self.trace.append(f"{self.now():12.6f}  {' '.join(map(str, what))}")
        return self.events

    def find(self, kind: str, what: str, known: str | None = None) -> None:
        """Note something that must not be."""
        self.event("FOUND", kind, known or "", what)
        self.findings.append(Finding(kind, known, what))

    def cookie(self, value: str) -> Cookie:
        """Return what is known of an id."""
        return self.cookies.setdefault(value, Cookie(value))

    # What is asked for.

    def start(self, visit: Visit, owner: str, values: Sequence[str]) -> Attempt:
        """Note that a request is sent."""
        cookie, others = (None, ()) if not values else (self.cookie(values[0]), tuple(map(self.cookie, values[1:])))
        number = len(self.attempts)
        attempt = Attempt(number, visit, owner, cookie, others, self.event(f"#{number} is sent by {owner}"), self.now())
        self.attempts.append(attempt)
        return attempt

    def begin(self, owner: str) -> Truth:
        """Note that a session begins."""
        now = self.now()
        truth = Truth(len(self.sessions) + 1, owner, now, now, now, [self.plan.idle_timeout])
        self.sessions[truth.sid] = truth
        return truth

    def ask(self, attempt: Attempt, kind: str, truth: Truth, cookie: Cookie | None = None) -> Act:
        """Note that a request asks for a change."""
        asked = self.event(f"#{attempt.number} asks for {kind} of session {truth.sid}")
        act = Act(kind, attempt, truth, asked, asked, cookie)
        truth.acts[act.token] = act
        truth.touched = self.now()
        attempt.pending.append(act)
        if kind == "end":
            truth.ends.append(act)
            self.drop(attempt, truth)
        elif kind == "renew":
            truth.renewals.append(act)
            truth.renewed = self.now()
        if kind in ("end", "renew"):
            attempt.has_ended = True
            for one in {cookie, attempt.cookie, *attempt.others}:
                if one is not None:
                    one.changes.append(act)
        return act

    def end(self, attempt: Attempt, own: Truth | None) -> None:
        """Note that a request asks for the end of its own session, and so of all whose ids it brought."""
        cookies = attempt.others if attempt.cookie is None else (attempt.cookie, *attempt.others)
        for truth in {one.truth.sid: one.truth for one in cookies if one.truth is not None}.values():
            if truth is not own:
                act = self.ask(attempt, "end", truth)
                if any(self.now() - one.attempt.began > FOLLOWED for one in truth.renewals):
                    attempt.pending.remove(act)  # it may end
        if own is not None:
            self.ask(attempt, "end", own)

    def drop(self, attempt: Attempt, truth: Truth | None) -> None:
        """Expect nothing of what the request has asked for and has not been acknowledged, but for ends."""
        attempt.pending = [act for act in attempt.pending if act.kind == "end" or act.truth is not truth]

    def acknowledge(self, attempt: Attempt, acts: Iterable[Act]) -> None:
        """Note that these are to be seen from now on, unless another request has asked for the session's end."""
        at = self.event(f"#{attempt.number} is acknowledged")
        for act in list(acts):
            if act not in attempt.pending:
                continue
            attempt.pending.remove(act)
            if act.kind != "end" and self._is_overtaken(attempt, act):
                continue
            act.acknowledged = at
            self.acknowledged += 1

    def _is_overtaken(self, attempt: Attempt, act: Act) -> bool:
        """Whether the session may have ended, or have another id, by another request in the meantime."""
        truth = act.truth
        if truth.is_lost or any(
            one.attempt is not attempt and one.acknowledged > attempt.started for one in (*truth.ends, *truth.renewals)
        ):
            return True
        return self.plan.on_conflict == "overwrite" and not self.is_alone(attempt)

    def is_alone(self, attempt: Attempt) -> bool:
        """Whether no other request went on during this one."""
        return all(
            other is attempt or (other.ended < attempt.started and not other.has_background) for other in self.attempts
        )

    def lose(self) -> None:
        """Note that the server has lost what it kept."""
        for truth in self.sessions.values():
            truth.is_lost = True

    # What is shown.

    def show(self, attempt: Attempt, data: dict[str, Any], since: int, *, is_first: bool) -> None:
        """Compare what a session holds with what it must hold for a question that was asked at the event `since`."""
        who = f"#{attempt.number}"
        self.event(who, "is shown", data)
        owner, truth = data.get("owner"), self.sessions.get(data.get("sid", 0))
        if owner not in (None, attempt.owner):
            self.find("foreign", f"{who} of {attempt.owner} is shown the session of {owner}")
        if is_first and data and (attempt.cookie is None or attempt.cookie.delivered == NEVER):
            self.find("foreign", f"{who} brought no id that was given out, and is shown {data}")
        if truth is None:
            if (
                is_first
                and attempt.cookie is not None
                and not attempt.others
                and self._must_live(attempt.cookie, attempt)
            ):
                self.find("lost", f"{who} is shown no session, and nothing has ended it")
            return
        if is_first:
            attempt.shown = truth
            self._look_for_revived(attempt, truth, since)
        truth.touched = max(truth.touched, self.now())
        self._look_for_lost(who, truth, data, since)

    def _look_for_revived(self, attempt: Attempt, truth: Truth, since: float) -> None:
        who = f"#{attempt.number}"
        self.look_for_ended(truth, since, f"{who} is shown")
        assert attempt.cookie is not None
        for act in [] if attempt.others else attempt.cookie.changes:
            if act.kind == "renew" and act.cookie is attempt.cookie and act.acknowledged < since:
                self.find("revived", f"{who} is served under an id that was renewed")
        spread, now = 2 * self.plan.spread + SLACK, attempt.began
        if now - truth.touched > max(truth.idle) + spread:
            self.find("revived", f"{who} is shown session {truth.sid}, which nobody has used for {now - truth.touched}")
        if self.plan.lifetime is not None and now - truth.renewed > self.plan.lifetime + spread:
            self.find("revived", f"{who} is shown session {truth.sid} after its lifetime")

    def look_for_ended(self, truth: Truth, since: float, how: str) -> None:
        """Find a session that lives although its end was acknowledged."""
        for end in truth.ends:
            if end.acknowledged < since:
                self.find("revived", f"{how} session {truth.sid} after its end")
                return

    def _must_live(self, cookie: Cookie, attempt: Attempt) -> bool:
        truth = cookie.truth
        if truth is None or cookie.delivered > attempt.started or cookie.changes or truth.ends or truth.is_lost:
            return False
        spread = 2 * self.plan.spread + SLACK
        if self.now() - truth.used + spread > PROLONGED * min(truth.idle):
            return False
        return self.plan.lifetime is None or self.now() - truth.began + spread < self.plan.lifetime

    def _look_for_lost(self, who: str, truth: Truth, data: dict[str, Any], since: float) -> None:
        log = data.get("log", [])
        nest = data.get("nest", {})
        for act in truth.acts.values():
            if act.kind in ("put", "nest", "apply"):
                place = {"put": data, "nest": nest, "apply": log}[act.kind]
                key = act.token if act.kind == "apply" else f"w{act.token}"
                if act.removal is None and act.acknowledged < since and key not in place:
                    self.find("lost", f"{who} misses {act.kind} {act.token}: {data}")
                elif act.removal is not None and act.removal.acknowledged < since and key in place:
                    self.find("lost", f"{who} is shown {act.token}, which was removed: {data}")
            if act.kind == "refuse" and f"w{act.token}" in data:
                self.find("lost", f"{who} is shown {act.token}, which was taken back: {data}")
        if self.plan.is_undisturbed and len(set(log)) < len(log):
            self.find("doubled", f"{who} is shown a change that was made twice: {log}")
        self._look_at_register(who, truth, data.get("n"), since)

    def _look_at_register(self, who: str, truth: Truth, shown: int | None, since: float) -> None:
        """Look at the key that many write: whoever asked after another was acknowledged has won."""
        shown_act = truth.acts.get(shown or 0)
        ended = -1.0 if shown_act is None else shown_act.acknowledged
        later = [
            act
            for act in truth.acts.values()
            if act.kind == "replace" and act.acknowledged < since and act.asked > ended and act is not shown_act
        ]
        if later:
            self.find("lost", f"{who} is shown n={shown}, and {later[-1].token} was acknowledged later")
