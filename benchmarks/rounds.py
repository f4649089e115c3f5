"""Every contender in turn, round after round, in a new process each time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

from .contenders import Contender
from .load import Load, measure
from .processes import Processes

MODES = ("untouched", "read", "write")
CONNECTIONS = (1, 16, 64, 256, 1000)
USUAL = 64  # the connections that the targets are set for
MANY = 256
WARM_UP = 1


class Measured(TypedDict):
    """One measurement, and what was measured."""

    contender: str
    mode: str
    connections: int
    sessions: int
    round: int
    load: Load


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure."""

    contenders: Sequence[Contender]
    modes: Sequence[str]
    connections: Sequence[int]
    one_session: bool
    rounds: int
    seconds: int

    def situations(self, number: int) -> Iterator[tuple[int, int]]:
        """Give the connections and sessions of a round: every second one keeps to the usual ones."""
        usual = [connections for connections in self.connections if connections == USUAL]
        for connections in usual if usual and number % 2 else self.connections:
            yield connections, MANY
            if self.one_session and connections == USUAL and not number % 2:
                yield connections, 1


def run(processes: Processes, plan: Plan) -> Iterator[Measured]:
    """Measure all that is planned, one at a time."""
    for number in range(plan.rounds):
        for contender in plan.contenders:
            with processes.app(contender) as app:
                cookies = app.cookies(MANY)
                measure(processes.cores, app, "/read", cookies=cookies, connections=USUAL, seconds=WARM_UP)
                for connections, sessions in plan.situations(number):
                    for mode in plan.modes:
                        load = measure(
                            processes.cores,
                            app,
                            f"/{mode}",
                            cookies=cookies[:sessions],
                            connections=connections,
                            seconds=plan.seconds,
                        )
                        yield Measured(
                            contender=contender.name,
                            mode=mode,
                            connections=connections,
                            sessions=sessions,
                            round=number,
                            load=load,
                        )
