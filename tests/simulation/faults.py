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
        "_engine/writing.py",
        "return outcome if type(outcome) is Conflict else Gone()",
        "return snapshot",
    ),
    Fault(
        "another's change is overwritten instead of merged",
        "_engine/writing.py",
        "fork.data = merge(self._codec.decode(before.envelope.payload), fork.data, theirs)",
        "pass",
    ),
    Fault(
        "one's own change is dropped instead of merged",
        "_engine/writing.py",
        "fork.data = merge(self._codec.decode(before.envelope.payload), fork.data, theirs)",
        "fork.data = theirs",
    ),
    Fault(
        "the merge takes values that nobody has changed from the older side",
        "_engine/merge.py",
        "chosen = there if is_same(old, here) else here",
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
        "_engine/state.py",
        "self.snapshot, self.dirty = newest, TOUCHED",
        "self.snapshot, self.dirty = before._replace(version=newest.version), TOUCHED",
    ),
    Fault(
        "a renewal leaves the old id alive",
        "_engine/writing.py",
        "outcome = await self._batcher.save(Write(snapshot.key, snapshot.version, tombstone, TOMBSTONE_TTL))",
        'outcome = Saved(b"")',
    ),
    Fault(
        "a renewal that lost leaves its copy",
        "_engine/writing.py",
        "            if not isinstance(outcome, Saved):\n                self.discard(fresh.key)",
        "            if False:\n                self.discard(fresh.key)",
    ),
    Fault(
        "a renewal is not told to the browser",
        "_engine/cookie_writer.py",
        "if held is None or held.id != wanted.id:",
        "if held is None:",
    ),
    Fault(
        "a logout deletes nothing",
        "_engine/state.py",
        "self.asked += self.own_and_presented or (End(None),)",
        "self.asked += (End(None),)",
    ),
    Fault(
        "a logout does not follow a renewal that came first",
        "_engine/writing.py",
        "successor = successor_of(outcome.record.data)",
        "successor = None",
    ),
    Fault(
        "a logout with an id that was renewed finds nothing",
        "_engine/manager.py",
        '"its session has been renewed, and has another id", End(renewed.successor))',
        '"its session has been renewed, and has another id")',
    ),
    Fault(
        "a logout ends one of the sessions that the request presented",
        "_engine/manager.py",
        "state.presented = tuple(end for one in found if one is not state for end in one.own_and_presented)",
        "pass",
    ),
    Fault(
        "a logout leaves what another clock takes for expired",
        "_engine/manager.py",
        'return self._absent(presented, "its session has expired", End(key, version))',
        'return self._absent(presented, "its session has expired")',
    ),
    Fault(
        "a new session leaves the one before alive",
        "_engine/manager.py",
        "ends = [End(one.key) for one in self._reader.read(request.headers)]",
        "ends: list[End] = []",
    ),
    Fault(
        "a time in the future is believed",
        "_engine/lifetimes.py",
        "if max(envelope.created, envelope.written) <= now + SKEW:",
        "if True:",
    ),
    Fault(
        "a session that was deleted is written again",
        "_engine/writing.py",
        "        outcome = await self._batcher.save(write, asker)\n        if type",
        (
            "        outcome = await self._batcher.save(write, asker)\n"
            "        if type(outcome) is Gone:\n"
            "            outcome = await self._batcher.save(write._replace(expected=None), asker)\n"
            "        if type"
        ),
    ),
    Fault(
        "apply does not run again after a conflict",
        "_engine/writing.py",
        ("                if isinstance(outcome, Conflict):\n                    contest.count()\n"),
        (
            "                if isinstance(outcome, Conflict) and change is not None:\n"
            "                    return result\n"
            "                if isinstance(outcome, Conflict):\n"
            "                    contest.count()\n"
        ),
    ),
    Fault(
        "what a refused change did is kept",
        "_engine/writing.py",
        "before, fork = map(state.fork, self._codec.copies(state.data))",
        "before, fork = state.fork(self._codec.copy(state.data)), state.fork(state.data)",
    ),
    Fault(
        "a wrong guess is taken for a success",
        "_engine/writing.py",
        ("                if isinstance(outcome, Conflict):\n                    contest.count()\n"),
        (
            "                if isinstance(outcome, Conflict) and not is_fresh:\n"
            "                    return result\n"
            "                if isinstance(outcome, Conflict):\n"
            "                    contest.count()\n"
        ),
    ),
    Fault(
        "what was read again keeps the data of before",
        "_engine/state.py",
        "self.data, self.snapshot = read.data, read.snapshot",
        "self.snapshot = read.snapshot",
    ),
    Fault(
        "the idle timeout does not end a session",
        "_engine/lifetimes.py",
        "return min(written + (idle_timeout or self.idle_timeout), created + self.lifetime)",
        "return min(written + 10 * (idle_timeout or self.idle_timeout), created + self.lifetime)",
    ),
    Fault(
        "the lifetime does not end a session",
        "_engine/lifetimes.py",
        "return min(written + (idle_timeout or self.idle_timeout), created + self.lifetime)",
        "return written + (idle_timeout or self.idle_timeout)",
    ),
    Fault(
        "a session that is only read is not prolonged",
        "_engine/session_codec.py",
        "is_other or (state.request.extends and lifetimes.is_due(envelope))",
        "is_other",
    ),
    Fault(
        "changes of nested values are not seen",
        "_engine/session_codec.py",
        "if not state.dirty:",
        "if not state.dirty & TOUCHED:",
    ),
    Fault(
        "an outage at the end of a request is not told",
        "_lifecycle/middleware.py",
        "                raise as_response(error, visit.manager) from error\n",
        "                return web.Response()\n",
    ),
    Fault(
        "a stream's headers are sent before its session is saved",
        "_lifecycle/before_headers.py",
        "                if not _is_saved(one, request, response):\n",
        "                if not _is_saved(one, request, response) and one.has_left:\n",
    ),
    Fault(
        "answers of a batch reach the wrong visitors",
        "_engine/batching.py",
        "for loads, record in zip(waiters, answers, strict=True):",
        "for loads, record in zip(waiters, reversed(answers), strict=True):",
    ),
    Fault(
        "of two writes of one key in a batch the first is forgotten",
        "_engine/batching.py",
        ("            elif pending.key in taken:\n                later.append(pending)\n"),
        "",
    ),
    Fault(
        "a batch that has ended keeps its place",
        "_engine/batching.py",
        "            self._running.end()\n",
        "",
    ),
    Fault(
        "all ids have one key",
        "_engine/writing.py",
        "return key_of_id(session_id, self._cookie_name)",
        'return key_of_id("", self._cookie_name)',
    ),
    Fault(
        "a load replaces the session that another task has begun",
        "_lifecycle/middleware.py",
        "    if visit.session is None:  # else new_session was called meanwhile\n",
        "    if True:\n",
    ),
    Fault(
        "a writer never gives the lock back after an outage",
        "_engine/locks.py",
        ("        try:\n            yield\n        finally:\n            self.release(name)\n"),
        ("        yield\n        self.release(name)\n"),
    ),
    Fault(
        "what was asked for during a write is forgotten",
        "_engine/state.py",
        "            self.asked = self.asked[carried_out:]\n",
        "            self.asked = ()\n",
    ),
    Fault(
        "a session that was ended during its write lives on",
        "_engine/state.py",
        "if written is not None and all(one.key != written.key for one in self.ends):",
        "if False:",
    ),
    Fault(
        "what other tasks changed during a write is forgotten",
        "_engine/state.py",
        "mine, merged = self.data, merge(before.data, self.data, fork.data)",
        "mine, merged = self.data, fork.data",
    ),
    Fault(
        "the end of a request does not look for what came during its save",
        "_engine/writing.py",
        "            if not is_changed:\n                self._lifetimes.rest(state)\n                return\n",
        "            self._lifetimes.rest(state)\n            return\n",
    ),
    Fault(
        "another session that began during the last save is not saved",
        "_lifecycle/middleware.py",
        "while saved is not visit.state:",
        "while saved is None:",
    ),
    Fault(
        "a fork that lost is adopted",
        "_engine/writing.py",
        ("                elif isinstance(outcome, Gone):\n                    self._lose(state, len(before.asked))\n"),
        (
            "                elif isinstance(outcome, Gone):\n"
            "                    state.adopt(before, fork, fork.snapshot)\n"
            "                    return result\n"
        ),
    ),
]


def seed_that_finds(fault: Fault, seeds: int = SEEDS) -> str | None:
    """Return the seed or scenario that finds a fault in a copy of the package, and as what; `None` if none does."""
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
    found = re.search(r"^(seed \d+|scenario '.+'): (\w+):", done.stdout, re.MULTILINE)
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
