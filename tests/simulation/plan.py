"""What happens in one run, drawn from a seed or written down as a scenario."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

__all__ = ["CALM", "Beside", "Jump", "Plan", "Round", "Step", "Visit", "Weather", "draw"]

TIMEOUT = 2.0
"""Seconds: the storage's, and so the unit of every wait."""
DAY = 86_400.0

WeatherKind = Literal["calm", "slow", "lossy", "repeating", "refusing", "silent"]

CookieKind = Literal["own", "old", "none", "made up", "both"]
"""Which id a visit brings; `both` are its own and an old one."""
StorageKind = Literal["remote", "sharded", "immediate"]


class Step(NamedTuple):
    """One thing that a handler does."""

    does: str
    """The name of a method of `Handler`."""
    what: Any = None


class Beside(NamedTuple):
    """What a task of a request does, next to its handler."""

    delay: float
    """Seconds until it begins."""
    steps: tuple[Step, ...]


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One request."""

    steps: tuple[Step, ...] = ()
    at: float = 0.0
    """Seconds after the beginning of its round."""
    process: int = 0
    cookie: CookieKind = "own"
    leaves_after: float | None = None
    """Seconds after which the client drops its connection, if it has no answer by then."""
    is_tolerant: bool = False
    """Whether the handler catches what `save()`, `reload()` and `apply()` raise."""
    extends: bool = True
    is_blind: bool = False
    """Whether the handler begins with `new_session`, and without a look at the session that there is."""
    opening: tuple[Beside, ...] = ()
    """What tasks of the request do before anybody has loaded its session; the handler goes on when all have ended."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """Visits of one visitor that may meet; the next round begins when all of them have ended."""

    visits: tuple[Visit, ...]
    visitor: int = 0
    pause: float = 0.0
    """Seconds before it."""


class Weather(NamedTuple):
    """How the storage's servers behave from a time on."""

    since: float
    kind: WeatherKind


class Jump(NamedTuple):
    """A process' clock is set."""

    at: float
    process: int
    by: float
    """Seconds."""


CALM = (Weather(0.0, "calm"),)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run."""

    rounds: tuple[Round, ...]
    processes: int = 1
    storage: StorageKind = "remote"
    weather: tuple[Weather, ...] = CALM
    restarts: tuple[tuple[float, bool], ...] = ()
    """When the server is restarted, and whether it keeps its records."""
    jumps: tuple[Jump, ...] = ()
    on_conflict: Literal["merge", "overwrite", "raise"] = "merge"
    are_corrected: bool = False
    """Whether the clocks agree again when somebody looks at how long a session lives."""
    idle_timeout: float = DAY
    lifetime: float | None = None
    is_cancelling: bool = True
    """Whether a handler is cancelled when its client leaves."""
    pauses: tuple[float, ...] | None = None
    """Seconds that the storage's first commands and answers are under way, in order; `None` draws all of them."""

    @property
    def is_calm(self) -> bool:
        """Whether nothing gives a reason for a 503."""
        return self.weather == CALM and not self.restarts

    @property
    def is_undisturbed(self) -> bool:
        """Whether also no client leaves and no handler crashes."""
        visits = [visit for one in self.rounds for visit in one.visits]
        return self.is_calm and not any(
            visit.leaves_after is not None or any(step.does == "crash" for step in visit.steps) for visit in visits
        )

    @property
    def spread(self) -> float:
        """The seconds by which two of the clocks may differ at most."""
        return 0.0 if self.are_corrected else sum(abs(jump.by) for jump in self.jumps)


COOKIES: tuple[CookieKind, ...] = ("own", "old", "none", "made up")
STORAGES: tuple[StorageKind, ...] = ("remote", "remote", "remote", "sharded", "immediate")
WRITES = {"put": 10, "remove": 4, "nest": 4, "replace": 5, "apply": 8, "refuse": 1}
CALLS = {"save": 4, "reload": 2, "changed": 1, "idle": 1}
ENDS = {"renew": 4, "invalidate": 4, "begin": 2}
PAUSES = (0.0, 0.0, 0.001, 0.01, 0.05, 0.3)
DELAYS = (0.0, 0.0, 0.001, 0.01, 0.1)


def draw(seed: int) -> Plan:
    """Draw the plan of a seed."""
    return _Draw(random.Random(f"plan {seed}"), _Draw(random.Random(f"opening {seed}"))).plan()


class _Draw:
    def __init__(self, source: random.Random, openings: _Draw | None = None) -> None:
        self.random = source
        self.openings = openings or self
        """Draws them apart, so that whether a visit has one decides nothing else."""

    def plan(self) -> Plan:
        chance = self.random.random
        processes = self.random.choice((1, 1, 2, 3))
        idle = self.random.choice((DAY, DAY, DAY, 600.0, 60.0))
        visitors = self.random.choice((1, 1, 1, 2))
        rounds = [Round(visits=(self.login(processes),), visitor=visitor) for visitor in range(visitors)]
        rounds += [
            self.round(processes, self.random.randrange(visitors), idle) for _ in range(self.random.randint(1, 3))
        ]
        if idle < DAY and chance() < 0.3:
            rounds += [self.reading(processes, idle) for _ in range(4)]
        length = 2.0 + sum(one.pause for one in rounds)
        storage = self.random.choice(STORAGES)
        has_server = storage != "immediate"
        return Plan(
            rounds=tuple(rounds),
            processes=processes,
            storage=storage,
            weather=self.weather(length) if has_server and chance() < 0.5 else CALM,
            restarts=((self.random.uniform(0, length), chance() < 0.7),) if has_server and chance() < 0.1 else (),
            jumps=self.jumps(processes, length) if chance() < 0.15 else (),
            on_conflict=self.random.choices(("merge", "overwrite", "raise"), (8, 1, 1))[0],
            idle_timeout=idle,
            lifetime=1.2 * idle if idle < DAY and chance() < 0.3 else None,
            is_cancelling=chance() < 0.7,
        )

    def login(self, processes: int) -> Visit:
        steps = [Step("begin"), *(Step("put") for _ in range(self.random.randint(0, 2)))]
        return Visit(steps=tuple(steps), process=self.random.randrange(processes))

    def round(self, processes: int, visitor: int, idle: float) -> Round:
        together = self.random.choice((1, 2, 2, 3, 4))
        if self.random.random() < 0.06:
            visits = tuple(self.writer(processes) for _ in range(8))
        else:
            visits = tuple(self.visit(processes, is_alone=together == 1) for _ in range(together))
        pauses = (0.0, 0.0, 0.0, 0.1, 0.06 * idle, 0.7 * idle, 1.5 * idle)
        pause = self.random.choice(pauses if idle < DAY else pauses[:5])
        return Round(visits=visits, visitor=visitor, pause=pause)

    def reading(self, processes: int, idle: float) -> Round:
        """A visit that only reads; several of these take longer than the idle timeout, and each prolongs."""
        return Round(visits=(Visit(process=self.random.randrange(processes)),), pause=0.4 * idle)

    def writer(self, processes: int) -> Visit:
        """One of a crowd that write to one session."""
        return Visit(
            steps=tuple(Step(self.random.choice(list(WRITES))) for _ in range(self.random.randint(1, 2))),
            at=self.random.choice((0.0, self.random.uniform(0, 0.05))),
            process=self.random.randrange(processes),
        )

    def visit(self, processes: int, *, is_alone: bool) -> Visit:
        chance = self.random.random
        steps = [self.step() for _ in range(self.random.choice((0, 1, 1, 2, 2, 3, 4)))]
        if chance() < 0.15:
            steps.insert(self.random.randint(0, len(steps)), Step("spawn", self.beside(2)))
        if chance() < 0.15:
            steps.insert(self.random.randint(0, len(steps)), Step("join", self.beside(3)))
        if chance() < 0.4:
            steps.insert(self.random.randint(0, len(steps)), Step("pause", self.random.choice(PAUSES)))
        if chance() < 0.08:
            steps.insert(self.random.randint(0, len(steps)), Step("prepare"))
        if is_alone and chance() < 0.05:
            steps.append(Step("empty"))
        if chance() < 0.04:
            steps.append(Step("crash"))
        elif chance() < 0.05:
            steps.append(Step("redirect"))
        cookie = self.random.choices(COOKIES, (90, 6, 3, 1))[0]
        if cookie == "own" and self.openings.random.random() < 0.04:
            cookie = "both"
        return Visit(
            steps=tuple(steps),
            at=self.random.choice((0.0, 0.0, self.random.uniform(0, 0.05), self.random.uniform(0, 1))),
            process=self.random.randrange(processes),
            cookie=cookie,
            leaves_after=self.random.choice((0.0, 0.002, 0.02, 0.3)) * chance() if chance() < 0.1 else None,
            is_tolerant=chance() < 0.3,
            extends=chance() < 0.9,
            is_blind=chance() < 0.05,
            opening=self.openings.opening(),
        )

    def opening(self) -> tuple[Beside, ...]:
        if self.random.random() >= 0.04:
            return ()
        tasks = [self.beside(2) for _ in range(self.random.choice((2, 2, 3)))]
        if self.random.random() < 0.5:  # while the others load the session
            place = self.random.randrange(len(tasks))
            tasks[place] = tasks[place]._replace(steps=(Step("begin"), *tasks[place].steps))
        return tuple(tasks)

    def beside(self, most: int) -> Beside:
        return Beside(self.random.choice(DELAYS), tuple(self.step() for _ in range(self.random.randint(1, most))))

    def step(self) -> Step:
        kinds = WRITES | CALLS | ENDS
        (does,) = self.random.choices(list(kinds), list(kinds.values()))
        what: Any = None
        if does == "renew":
            what = self.random.random() < 0.5
        elif does == "idle":
            what = self.random.choice((None, 300.0, 3600.0))
        return Step(does, what)

    def weather(self, length: float) -> tuple[Weather, ...]:
        kinds: tuple[WeatherKind, ...] = ("slow", "lossy", "lossy", "repeating", "refusing", "silent")
        found, at = [Weather(0.0, "calm")], 0.0
        for _ in range(self.random.randint(1, 2)):
            at += self.random.uniform(0, length / 2)
            found.append(Weather(at, self.random.choice(kinds)))
            at += self.random.choice((0.1, 1.0, 5.0))
            found.append(Weather(at, "calm"))
        return tuple(found)

    def jumps(self, processes: int, length: float) -> tuple[Jump, ...]:
        sizes = (-3600.0, -40.0, -5.0, 5.0, 40.0, 3600.0, 10 * DAY)
        return tuple(
            Jump(self.random.uniform(0, length), self.random.randrange(processes), self.random.choice(sizes))
            for _ in range(self.random.randint(1, 2))
        )
