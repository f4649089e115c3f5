"""What many runs have found, as one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .oracle import KNOWN
from .plan import draw
from .scenarios import SCENARIOS
from .world import Run, run

__all__ = ["COLUMNS", "Report", "play", "play_scenarios", "simulate"]

COLUMNS = ("lost", "revived", "foreign", "unlisted", "doubled", "errors", "hung")
MOST_SHOWN = 10
ENOUGH = 1000
"""Schedules among which each known fault occurs."""


@dataclass
class Report:
    """What was tried and found."""

    schedules: int = 0
    acknowledged: int = 0
    found: Counter[str] = field(default_factory=Counter)
    """Schedules with a fault that is not known, by its kind."""
    known: Counter[str] = field(default_factory=Counter)
    """Schedules with a known fault, by its name."""
    first: dict[str, str] = field(default_factory=dict)
    """What showed each known fault first."""
    shown: list[str] = field(default_factory=list)
    healed: list[str] = field(default_factory=list)
    """Known faults that no longer occur."""

    def add(self, name: str, what: Run) -> None:
        """Take a run into account."""
        self.schedules += 1
        self.acknowledged += what.acknowledged
        self.known.update({one.known for one in what.findings if one.known is not None})
        for one in what.findings:
            if one.known is not None:
                self.first.setdefault(one.known, name)
        unknown = [one for one in what.findings if one.known is None]
        self.found.update({one.kind for one in unknown})
        self.shown += [f"{name}: {one.kind}: {one.what}" for one in unknown[:1]]

    def join(self, other: Report) -> None:
        """Take what another has found into account; its seeds are later ones."""
        self.schedules += other.schedules
        self.acknowledged += other.acknowledged
        self.found += other.found
        self.known += other.known
        self.first = other.first | self.first
        self.shown += other.shown
        self.healed += other.healed

    def look_for_healed(self) -> None:
        """Note the known faults that many schedules have not shown."""
        if self.schedules >= ENOUGH:
            self.healed += [f"{name} occurred in no schedule" for name in KNOWN if not self.known[name]]

    @property
    def is_as_expected(self) -> bool:
        return not self.found and not self.healed

    def __str__(self) -> str:
        rows = [
            ["schedules", "acknowledged", *COLUMNS],
            [f"{number:,}" for number in (self.schedules, self.acknowledged, *(self.found[one] for one in COLUMNS))],
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.rjust, row, widths)) for row in rows]
        lines += [
            f"known: {name}, {KNOWN[name]}: in {count:,} schedules, first by {self.first[name]}"
            for name, count in sorted(self.known.items())
        ]
        return "\n".join([*lines, *self.shown[:MOST_SHOWN], *(f"take it off KNOWN: {one}" for one in self.healed)])


def play(seed: int, *, is_tracing: bool = False) -> Run:
    """Run the schedule of a seed."""
    return run(draw(seed), str(seed), is_tracing=is_tracing)


def simulate(seeds: Iterable[int], *, is_stopping: bool = False) -> Report:
    """Run the schedules of these seeds, with `is_stopping` only until one shows a fault that is not known."""
    report = Report()
    for seed in seeds:
        report.add(f"seed {seed}", play(seed))
        if is_stopping and report.found:
            break
    return report


def play_scenarios() -> Report:
    """Run every scenario, and look whether it still shows the known fault that it names."""
    report = Report()
    for name, (known, plan) in SCENARIOS.items():
        result = run(plan, name)
        report.add(f"scenario {name!r}", result)
        if known is not None and known not in {one.known for one in result.findings}:
            report.healed.append(f"{known} in the scenario {name!r}")
    return report
