"""python -m tests.simulation.faults: put faults into the engine by hand, and look whether the simulation finds each.

A simulation that finds nothing tells something only if it finds what is there.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

__all__ = ["FAULTS", "Fault", "seed_that_finds"]

ROOT = Path(__file__).parents[2]
SEEDS = 20_000
ENDLESS = 1200.0
"""Seconds after which a fault counts as found, as the simulation does not end."""


class Fault(NamedTuple):
    """One replacement in one file of the package."""

    name: str
    file: str
    right: str
    wrong: str

    @property
    def is_possible(self) -> bool:
        """Whether the file holds what is replaced, once."""
        return (ROOT / "aiohttp_store" / self.file).read_text().count(self.right) == 1


FAULTS = [
    Fault(
        "a conflict is taken for a success",
        "_engine/manager.py",
        "        if type(outcome) is Conflict:\n            return outcome.record\n",
        "        if type(outcome) is Conflict:\n            return None\n",
    ),
    Fault(
        "another's change is overwritten instead of merged",
        "_engine/manager.py",
        "session._data = merge(base, mine, theirs)",
        "session._data = mine",
    ),
    Fault(
        "one's own change is dropped instead of merged",
        "_engine/manager.py",
        "session._data = merge(base, mine, theirs)",
        "session._data = theirs",
    ),
    Fault(
        "the merge takes values that nobody has changed from the older side",
        "_engine/merge.py",
        "chosen = there if _same(old, here) else here",
        "chosen = here",
    ),
    Fault(
        "nested dicts are merged as values",
        "_engine/merge.py",
        "if isinstance(here, dict) and isinstance(there, dict):",
        "if False:",
    ),
    Fault(
        "a merge forgets which data it rests on",
        "_engine/manager.py",
        "session._snapshot = stored._replace(version=record.version, envelope=envelope)",
        "session._snapshot = stored._replace(version=record.version)",
    ),
    Fault(
        "a renewal leaves the old id alive",
        "_engine/manager.py",
        "outcome = await self._batcher.save(Write(stored.key, stored.version, TOMBSTONE, self._longest_trip()))",
        'outcome = Saved(b"")',
    ),
    Fault(
        "a renewal that lost leaves its copy",
        "_engine/manager.py",
        "if fresh is not None and not isinstance(outcome, Saved):",
        "if False:",
    ),
    Fault(
        "a renewal is not told to the browser",
        "_engine/manager.py",
        "if session._cookie_id != stored.id or session._cookie_stale or is_prolonged:",
        "if session._cookie_id is None or session._cookie_stale or is_prolonged:",
    ),
    Fault(
        "a logout deletes nothing",
        "session.py",
        "            self._doomed += (self._snapshot.key,)\n",
        "            pass\n",
    ),
    Fault(
        "a new session leaves the one before alive",
        "_engine/manager.py",
        "doomed = [one.key for one in self._reader.read(request.headers)]",
        "doomed: list[str] = []",
    ),
    Fault(
        "a session that was deleted is written again",
        "_engine/manager.py",
        "        outcome = await self._batcher.save(write, asker)\n",
        "        outcome = await self._batcher.save(write, asker)\n"
        "        if isinstance(outcome, Gone):\n"
        "            outcome = await self._batcher.save(write._replace(expected=None), asker)\n",
    ),
    Fault(
        "apply does not run again after a conflict",
        "_engine/manager.py",
        "                    if record is None:\n                        return result\n",
        "                    return result\n",
    ),
    Fault(
        "what a refused change did is kept",
        "_engine/manager.py",
        "error:\n                    self._take_back(session, life, pending, sent)\n",
        "error:\n",
    ),
    Fault(
        "a wrong guess is taken for a success",
        "_engine/manager.py",
        "        if record is not None or twin._gone:\n            return False\n",
        "        if record is not None or twin._gone:\n            return True\n",
    ),
    Fault(
        "what was read again keeps the data of before",
        "_engine/manager.py",
        "session._data, session._snapshot = read._data, read._snapshot",
        "session._snapshot = read._snapshot",
    ),
    Fault(
        "the idle timeout does not end a session",
        "_engine/base.py",
        "return min(written + (idle_timeout or self._idle_timeout), created + self._lifetime)",
        "return min(written + 10 * (idle_timeout or self._idle_timeout), created + self._lifetime)",
    ),
    Fault(
        "the lifetime does not end a session",
        "_engine/base.py",
        "return min(written + (idle_timeout or self._idle_timeout), created + self._lifetime)",
        "return written + (idle_timeout or self._idle_timeout)",
    ),
    Fault(
        "a session that is only read is not prolonged",
        "_engine/base.py",
        "is_due = session._extend and",
        "is_due = False and",
    ),
    Fault(
        "changes of nested values are not seen",
        "_engine/base.py",
        "if (session._touched or session._exposed) and (changes",
        "if session._touched and (changes",
    ),
    Fault(
        "a redirect saves nothing",
        "_lifecycle/middleware.py",
        "                session = _to_be_saved(visit, raised)\n",
        "                session = None\n",
    ),
    Fault(
        "an outage at the end of a request is not told",
        "_lifecycle/middleware.py",
        "        except (StorageUnavailable, SessionConflict, SessionGone) as error:\n",
        "        except StorageUnavailable:\n            return response\n"
        "        except (SessionConflict, SessionGone) as error:\n",
    ),
    Fault(
        "a stream's headers are sent before its session is saved",
        "_lifecycle/middleware.py",
        "        elif not session._sealed:\n",
        "        elif False:\n",
    ),
    Fault(
        "answers of a batch reach the wrong visitors",
        "_engine/batching.py",
        "for sharing, record in zip(waiters, answers, strict=True):",
        "for sharing, record in zip(waiters, reversed(answers), strict=True):",
    ),
    Fault(
        "of two writes of one key in a batch the first is forgotten",
        "_engine/batching.py",
        "            elif change.key in taken:\n                later.append(change)\n",
        "",
    ),
    Fault(
        "a trip that has ended keeps its place",
        "_engine/batching.py",
        "            self._trips.pop(asyncio.current_task(), None)  # type: ignore[arg-type]\n",
        "",
    ),
    Fault(
        "all ids have one key",
        "_engine/manager.py",
        "return key_of_id(session_id, self.cookie.name)",
        'return key_of_id("", self.cookie.name)',
    ),
    Fault(
        "a load replaces the session that another task has begun",
        "_lifecycle/middleware.py",
        "            if visit.session is None:  # else new_session was called meanwhile\n",
        "            if True:\n",
    ),
    Fault(
        "a writer never gives the lock back after an outage",
        "_engine/locks.py",
        "        try:\n            yield\n        finally:\n            self.release(name)\n",
        "        yield\n        self.release(name)\n",
    ),
]


def seed_that_finds(fault: Fault, seeds: int = SEEDS) -> str | None:
    """Return the seed that finds a fault in a copy of the package, and as what; `None` if none does."""
    assert fault.is_possible, f"{fault.file} does not hold once what {fault.name!r} replaces"
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "aiohttp_store"
        shutil.copytree(ROOT / "aiohttp_store", package, ignore=shutil.ignore_patterns("__pycache__"))
        (Path(folder) / "tests").symlink_to(ROOT / "tests")
        source = package / fault.file
        source.write_text(source.read_text().replace(fault.right, fault.wrong))
        command = [sys.executable, "-m", "tests.simulation", "--until-found", "--seeds", str(seeds)]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=ENDLESS)
        except subprocess.TimeoutExpired:
            return "hung"
    if done.returncode not in (0, 1) or (done.returncode and not done.stdout):
        raise RuntimeError(done.stderr)
    found = re.search(r"^(seed \d+): (\w+):", done.stdout, re.MULTILINE)
    return None if found is None else f"{found[1]}, {found[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="to try for each (%(default)d)")
    arguments = parser.parse_args()
    missed = 0
    for fault in FAULTS:
        found = seed_that_finds(fault, arguments.seeds)
        missed += found is None
        print(f"{found or 'NOT FOUND':<22} {fault.name}", flush=True)
    print(f"{len(FAULTS) - missed} of {len(FAULTS)} faults found")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
