"""What memory:// takes for each session and each operation: python -m benchmarks.memory SESSIONS."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from aiohttp_store.storage import Saved, Write
from aiohttp_store.storages.memory import MemoryOptions, MemoryStorage

from . import ROOT
from .apps import DATA
from .processes import Cores

SIZES = (1_000, 100_000, 1_000_000)
_SAMPLE = 1_000
_TIMES = 25
_A_DAY = 86_400


class Cost(TypedDict):
    """What one number of sessions costs: bytes for each, microseconds for each operation."""

    sessions: int
    bytes: float
    load: float
    save: float


def cost(cores: Cores, size: int) -> Cost:
    """Measure one number of sessions, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", str(size)]
    with cores.starting(cores.app):
        output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    measured: Cost = json.loads(output)
    return measured


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def _key(number: int) -> str:
    """Make the same key each time, so that none is kept but the storage's."""
    return base64.urlsafe_b64encode(hashlib.sha256(str(number).encode()).digest()).decode().rstrip("=")


def _data(number: int) -> bytes:
    return json.dumps(DATA | {"n": number}).encode()


def _microseconds(operation: Callable[[Any], object], arguments: Callable[[], list[Any]]) -> float:
    """Give the median time of an operation."""
    took = []
    for _ in range(_TIMES):
        prepared = arguments()
        began = time.perf_counter()
        for argument in prepared:
            operation(argument)
        took.append((time.perf_counter() - began) / len(prepared) * 1e6)
    return statistics.median(took)


def _cost(size: int) -> Cost:
    storage = MemoryStorage(MemoryOptions(max_sessions=size))
    before = _resident()
    for number in range(size):
        storage.save_now([Write(_key(number), None, _data(number), _A_DAY)])
    taken = _resident() - before

    def keys() -> list[str]:
        return [_key(number) for number in random.sample(range(size), _SAMPLE)]

    def writes() -> list[Write]:
        sample = keys()
        found = zip(sample, storage.load_now(sample), strict=True)
        return [Write(key, record.version, _data(-1), _A_DAY) for key, record in found if record]

    assert all(isinstance(outcome, Saved) for outcome in storage.save_now(writes()))
    return Cost(
        sessions=size,
        bytes=taken / size,
        load=_microseconds(lambda key: storage.load_now([key]), keys),
        save=_microseconds(lambda write: storage.save_now([write]), writes),
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_cost(int(sys.argv[1]))))
