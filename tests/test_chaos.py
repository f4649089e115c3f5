"""The chaos suite in its short form; `make chaos` is the long one, which also holds the times to their targets."""

from __future__ import annotations

from pathlib import Path

import pytest

from .chaos.__main__ import missed, table
from .chaos.run import SHORT, SUBJECTS, run
from .chaos.tally import Tally
from .conftest import STORAGES
from .timing import pace

SEED = "1"
TIMES = {"longest_wait", "longest_stall", "longest_recovery"}
LONGEST_STALL = 1.0  # of the event loop alone: the time that the machine gave to others is taken out
SLACK = 3.0  # beyond two budgets; what comes later is a driver's own 5, 10 or 30 s


@pytest.mark.parametrize("storage_name", SUBJECTS)
def test_nothing_is_lost_mixed_up_or_late_while_servers_and_networks_fail(storage_name: str, tmp_path: Path) -> None:
    slowness = pace()
    plan = SHORT.slower(slowness)
    tally = run(storage_name, plan, SEED, tmp_path)
    print(table({storage_name: tally}, plan))
    assert not tally.findings
    assert not missed(tally, plan) - TIMES
    assert tally.longest_stall < LONGEST_STALL * slowness
    assert max(tally.longest_wait, tally.longest_recovery) < 2 * plan.timeout + SLACK * slowness
    assert_there_was_chaos(storage_name, tally)


def assert_there_was_chaos(storage_name: str, tally: Tally) -> None:
    assert tally.acknowledged > 200
    if STORAGES[storage_name][0] is None:  # the calm control, which answers before anybody can leave
        assert not tally.unavailable
    else:
        assert tally.unavailable
        assert tally.cancelled_handlers
