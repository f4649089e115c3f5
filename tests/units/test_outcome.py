"""Why a write lost, from what was found afterwards."""

from __future__ import annotations

import pytest

from aiohttp_store import Conflict, Gone, Outcome, Record, Saved, Write
from aiohttp_store.storage import new_version, outcome

OURS, OLD = new_version(), new_version()
THEIRS = Record(new_version(), b"theirs")

CREATE = Write("key", None, b"data", 60)
UPDATE = Write("key", OLD, b"data", 60)
REMOVAL = Write("key", OLD, None, 60)
NO_RECORD = Write("key", None, None, 60)


@pytest.mark.parametrize(
    ("write", "version", "found", "why"),
    [
        pytest.param(CREATE, OURS, None, None, id="create, nothing: again"),
        pytest.param(UPDATE, OURS, None, Gone(), id="update, nothing"),
        pytest.param(REMOVAL, b"", None, Gone(), id="removal, nothing"),
        pytest.param(NO_RECORD, b"", None, Saved(b""), id="removal of nothing, nothing"),
        pytest.param(CREATE, OURS, Record(OURS, b"data"), Saved(OURS), id="create, its own"),
        pytest.param(UPDATE, OURS, Record(OURS, b"data"), Saved(OURS), id="update, its own"),
        pytest.param(CREATE, OURS, THEIRS, Conflict(THEIRS), id="create, another"),
        pytest.param(UPDATE, OURS, THEIRS, Conflict(THEIRS), id="update, another"),
        pytest.param(REMOVAL, b"", THEIRS, Conflict(THEIRS), id="removal, another"),
        pytest.param(NO_RECORD, b"", THEIRS, Conflict(THEIRS), id="removal of nothing, another"),
    ],
)
def test_what_was_found_says_why_a_write_lost(
    write: Write, version: bytes, found: Record | None, why: Outcome | None
) -> None:
    assert outcome(write, version, found) == why
