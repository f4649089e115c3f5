"""How long importing takes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import TypedDict

from . import ROOT
from .processes import Cores

MODULES = ("aiohttp", "aiohttp.web", "aiohttp_store")
ROUNDS = 31
_PROGRAM = "import time; began = time.perf_counter(); import {}; print((time.perf_counter() - began) * 1000)"


class Imported(TypedDict):
    """One import, in a process of its own."""

    module: str
    round: int
    milliseconds: float


def run(cores: Cores, rounds: int) -> Iterator[Imported]:
    """Import each module in turn."""
    # Without compiled files it would be the compiler that is measured; the first round makes them.
    others = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory(prefix="compiled-") as compiled:
        for number in range(-1, rounds):
            for module in MODULES:
                with cores.starting(cores.app):
                    output = subprocess.run(
                        [sys.executable, "-c", _PROGRAM.format(module)],
                        cwd=ROOT,
                        env={**others, "PYTHONPYCACHEPREFIX": compiled},
                        check=True,
                        capture_output=True,
                    ).stdout
                if number >= 0:
                    yield Imported(module=module, round=number, milliseconds=float(output))
