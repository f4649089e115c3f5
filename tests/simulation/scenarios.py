"""Orders of events that were a fault once, written down; each is a plan that needs no luck."""

from __future__ import annotations

from .plan import DAY, TIMEOUT, Beside, Jump, Plan, Round, Step, Visit, Weather

__all__ = ["SCENARIOS"]

LOGIN = Round(visits=(Visit(steps=(Step("begin"), Step("put"))),))
LATER = Step("pause", 0.5)
SOON = 0.000_001
SLOW_LAST_SAVE = (SOON,) * 4 + (0.1,) * 2
"""The login's save and the load of the next request are quick, and the save of that one is not."""


def _beside_last_save(*steps: Step) -> Plan:
    """Take steps in a task while the last save of its request is under way."""
    during = Step("spawn", Beside(0.05, steps))
    return Plan(rounds=(LOGIN, Round(visits=(Visit(steps=(during, Step("put"))),))), pauses=SLOW_LAST_SAVE)


SCENARIOS: dict[str, tuple[str | None, Plan]] = {
    "a logout meets a renewal": (
        None,
        Plan(
            rounds=(
                LOGIN,
                Round(visits=(Visit(steps=(LATER, Step("invalidate"))), Visit(steps=(Step("renew"),), at=0.1))),
            ),
            pauses=(),
        ),
    ),
    "a logout brings an id that was renewed": (
        None,
        Plan(
            rounds=(
                LOGIN,
                Round(
                    visits=(
                        Visit(steps=(Step("renew"),)),
                        Visit(cookie="old", at=0.5, steps=(Step("invalidate"),)),
                    )
                ),
            ),
            pauses=(),
        ),
    ),
    "a logout brings two sessions that live": (
        None,
        Plan(
            rounds=(
                LOGIN,
                Round(visits=(Visit(cookie="none", steps=(Step("put"),)),)),
                Round(visits=(Visit(cookie="both", steps=(Step("invalidate"),)),)),
            ),
            pauses=(),
        ),
    ),
    "a logout brings a session that one clock takes for expired": (
        None,
        Plan(
            rounds=(LOGIN, Round(visits=(Visit(process=1, steps=(Step("invalidate"),)),), pause=1.0)),
            processes=2,
            jumps=(Jump(0.5, 1, 10 * DAY),),
            pauses=(),
        ),
    ),
    "a session begins while the clock is years ahead": (
        None,
        Plan(
            rounds=(
                Round(visits=LOGIN.visits, pause=1.0),
                *(Round(visits=(Visit(),), pause=20.0) for _ in range(8)),
            ),
            jumps=(Jump(0.5, 0, 3650 * DAY), Jump(10.0, 0, -3650 * DAY)),
            are_corrected=True,
            idle_timeout=60.0,
            lifetime=100.0,
            pauses=(),
        ),
    ),
    "a session is ended during the last save": (None, _beside_last_save(Step("invalidate"))),
    "a new id is asked for during the last save": (None, _beside_last_save(Step("renew"))),
    "a key is set during the last save": (None, _beside_last_save(Step("put"), Step("changed"))),
    "another session begins during the last save of one that was ended": (
        None,
        Plan(
            rounds=(
                LOGIN,
                Round(
                    visits=(
                        Visit(
                            steps=(
                                Step("spawn", Beside(0.001, (Step("begin"),))),
                                Step("pause", 0.001),
                                Step("invalidate"),
                            )
                        ),
                    )
                ),
            ),
            pauses=(SOON,) * 4 + (0.1,) * 2,
        ),
    ),
    "a request saves after the idle timeout what others have used since": (
        None,
        Plan(
            rounds=(
                LOGIN,
                Round(
                    visits=(
                        Visit(steps=(Step("pause", 75.0), Step("put"))),
                        Visit(at=25.0),
                        Visit(at=50.0, steps=(Step("put"),)),
                    )
                ),
            ),
            pauses=(),
            idle_timeout=60.0,
        ),
    ),
    "the answer to each command of a renewal is lost": (
        None,
        Plan(
            rounds=(LOGIN, Round(visits=(Visit(steps=(Step("put"), Step("renew"))),), pause=1.0)),
            weather=(Weather(0.0, "calm"), Weather(0.5, "repeating"), Weather(2.0, "calm")),
            pauses=(),
        ),
    ),
    "a session begins while it is read again": (
        None,
        Plan(
            rounds=(
                LOGIN,
                Round(
                    visits=(
                        Visit(steps=(Step("join", Beside(0.0, (Step("reload"),))), Step("put"))),
                        Visit(steps=(Step("spawn", Beside(0.0, (Step("reload"),))), Step("begin"), Step("put"))),
                    )
                ),
            ),
        ),
    ),
    "a logout is saved at once, and its request crashes": (
        None,
        Plan(rounds=(LOGIN, Round(visits=(Visit(steps=(Step("invalidate"), Step("save"), Step("crash"))),)))),
    ),
    "an outage after a conflict": (
        None,
        Plan(
            rounds=(
                LOGIN,
                Round(
                    visits=(
                        Visit(steps=(Step("put"), LATER, Step("put"))),
                        Visit(steps=(Step("put"),), at=0.1),
                    )
                ),
            ),
            processes=2,
            weather=(Weather(0.0, "calm"), Weather(0.55, "silent"), Weather(0.6 + TIMEOUT, "calm")),
            pauses=(),
        ),
    ),
}
"""For each the known fault that it still shows, if it shows one."""
