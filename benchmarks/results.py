"""What was measured, as it is saved, and the medians that are shown of it."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

from .contenders import CONTENDERS
from .imports import Imported
from .memory import Cost
from .rounds import Measured
from .sizes import Sized
from .sweep import Sweep


class Results(TypedDict):
    """All of one run, with the sections that were measured again."""

    machine: list[list[str]]
    again: dict[str, list[list[str]]]
    """The sections that were measured by a later run, and on which machine."""
    left_out: list[str]
    rounds: int
    seconds: int
    requests: list[Measured]
    memory: list[Cost]
    sweep: Sweep | None
    sizes: list[Sized]
    imports: list[Imported]


def read(file: Path) -> Results:
    """Give what was saved, also before there were all of the sections."""
    return cast("Results", {"again": {}, "imports": [], **json.loads(file.read_text())})


@dataclass(frozen=True)
class Spread:
    """The median of several rounds, and how far they lie apart."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.least:.3f}-{self.most:.3f})"


def spread(values: Iterable[float]) -> Spread:
    """Put the values of several rounds together."""
    known = sorted(values)
    return Spread(statistics.median(known), known[0], known[-1])


@dataclass(frozen=True, order=True)
class Case:
    """One thing that was measured in several rounds."""

    contender: str
    mode: str
    connections: int
    sessions: int

    def of(self, contender: str) -> Case:
        """Give the same case of another contender."""
        return Case(contender, self.mode, self.connections, self.sessions)


class Requests:
    """The measurements of requests, by case."""

    def __init__(self, measured: Iterable[Measured]) -> None:
        self._rounds: defaultdict[Case, list[Measured]] = defaultdict(list)
        for one in measured:
            case = Case(one["contender"], one["mode"], one["connections"], one["sessions"])
            self._rounds[case].append(one)

    def __contains__(self, case: Case) -> bool:
        return case in self._rounds

    def cases(self) -> list[Case]:
        """Give all cases, in the order of the contenders."""
        names = list(CONTENDERS)
        return sorted(self._rounds, key=lambda case: names.index(case.contender))

    def rate(self, case: Case) -> Spread:
        """Give the requests per second."""
        return spread(one["load"]["rate"] for one in self._rounds[case])

    def milliseconds(self, case: Case) -> tuple[float, float]:
        """Give the medians of p50 and p99."""
        loads = [one["load"] for one in self._rounds[case]]
        return statistics.median(load["p50"] for load in loads), statistics.median(load["p99"] for load in loads)

    def errors(self, case: Case) -> int:
        """Count what was not answered, or not with success, in all rounds."""
        return sum(one["load"]["errors"] for one in self._rounds[case])

    def ratio(self, case: Case, to: Case) -> Spread:
        """Compare each round of a case with the median of another's."""
        other = self.rate(to).median
        return spread(one["load"]["rate"] / other for one in self._rounds[case])

    def share(self, case: Case) -> Spread:
        """Compare with the same framework without sessions."""
        return self.ratio(case, case.of(CONTENDERS[case.contender].baseline))
