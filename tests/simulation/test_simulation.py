"""The simulation in its short form; `make simulate` tries as many orders of events as one wants."""

from __future__ import annotations

import pytest

from .faults import FAULTS, Fault, seed_that_finds
from .oracle import KNOWN
from .report import play, play_scenarios, simulate
from .scenarios import SCENARIOS

SEEDS = range(300)
EXAMPLES = [
    fault for fault in FAULTS if fault.name in ("a logout deletes nothing", "apply does not run again after a conflict")
]


def test_no_order_of_events_breaks_a_promise() -> None:
    report = simulate(SEEDS)
    print(report)
    assert report.is_as_expected
    assert report.acknowledged > 4 * report.schedules


def test_what_was_a_fault_once_is_none_or_a_known_one() -> None:
    report = play_scenarios()
    print(report)
    assert report.is_as_expected
    assert {known for known, _ in SCENARIOS.values() if known is not None} == set(KNOWN)


@pytest.mark.parametrize("seed", range(0, 1000, 50))
def test_a_seed_repeats_a_schedule_event_for_event(seed: int) -> None:
    first, second = play(seed, is_tracing=True), play(seed, is_tracing=True)
    assert len(first.trace) > 10
    assert first == second


@pytest.mark.parametrize("fault", EXAMPLES, ids=lambda fault: fault.name)
def test_a_fault_that_is_put_into_the_engine_is_found(fault: Fault) -> None:
    assert seed_that_finds(fault) is not None


def test_every_fault_fits_todays_code() -> None:
    for fault in FAULTS:
        assert fault.is_possible, fault.name
