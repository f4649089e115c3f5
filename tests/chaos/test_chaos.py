"""The chaos suite in its short form; `make chaos` is the long one, which also holds the times to their targets."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from ..conftest import STORAGES
from ..support.servers import MongoDB
from ..support.timing import pace
from .__main__ import missed, table
from .app import MOST_REASONS, Reasons, make_app
from .run import SHORT, SUBJECTS, run
from .tally import Tally

SEED = "1"
TIMES = {"longest_wait", "longest_stall", "longest_recovery"}
LONGEST_STALL = 1.0  # of the event loop alone: the time that the machine gave to others is taken out
SLACK = 3.0  # beyond two budgets; what comes later is a driver's own 5, 10 or 30 s


@pytest.mark.parametrize("storage_name", SUBJECTS)
def test_nothing_is_lost_mixed_up_or_late_while_servers_and_networks_fail(storage_name: str, tmp_path: Path) -> None:
    slowness = pace()
    plan = SHORT.slower(slowness)
    tally = run(storage_name, plan, SEED, tmp_path)
    print(table({storage_name: tally}, plan), f"recovery took longest after {tally.slowest}", *tally.reasons, sep="\n")
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


async def test_a_run_tells_why_requests_were_answered_500_and_503() -> None:
    reasons, tally = Reasons(), Tally()
    app = make_app("redis://127.0.0.1:1?timeout=0.5")
    app.middlewares.insert(0, reasons.middleware())
    async with TestClient(TestServer(app)) as client:
        for path, status in (("/probe", 503), ("/probe?nonce=1", 503), ("/no-such-act", 500), ("/nothing/here", 404)):
            response = await client.post(path, headers={"Cookie": f"session={'x' * 43}"} if status == 503 else {})
            assert response.status == status
    tally.explain(reasons.met)
    crash, outage = tally.reasons
    assert crash.startswith("1 x 500 KeyError: 'visitor' (app.py:")
    assert outage.startswith("2 x 503 StorageUnavailable: <RedisStorage 127.0.0.1:1 db=0> failed: ConnectionError: ")
    assert " from ConnectionRefusedError: " in outage
    assert "redis_connections.py:" in outage


def test_what_a_run_tells_of_its_reasons_has_a_bound() -> None:
    reasons, tally = Reasons(), Tally()
    for number in range(2 * MOST_REASONS):
        reasons._add(503, ValueError(f"of many: {'x' * number}"))
    reasons._add(500, KeyError("once"))
    assert len(reasons.met) == MOST_REASONS + 2
    tally.explain(reasons.met)
    assert len(tally.reasons) <= 11
    assert tally.reasons[0].startswith("1 x 500 ")


def test_a_server_that_has_come_to_a_halt_is_told_from_what_is_tested(tmp_path: Path) -> None:
    server = MongoDB(tmp_path / "mongodb")
    server.start()
    try:
        server.must_answer()
        server.pause()
        with pytest.raises(RuntimeError, match="the server itself has come to a halt.* did not answer ping"):
            server.must_answer(within=0.5)
        assert server.process is None
    finally:
        server.kill()
