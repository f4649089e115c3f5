"""Load by wrk: one measurement."""

from __future__ import annotations

import json
import subprocess
import tempfile
from typing import TypedDict

from . import ROOT
from .processes import Cores, Running


class Load(TypedDict):
    """What wrk tells of one measurement; the percentiles are in milliseconds."""

    rate: float
    p50: float
    p99: float
    errors: int


def measure(cores: Cores, app: Running, path: str, *, cookies: list[str], connections: int, seconds: int) -> Load:
    """Ask for a path with these cookies in turn, on so many connections at once."""
    app.rest()
    threads = min(len(cores.load), connections)
    with tempfile.NamedTemporaryFile("w", suffix=".cookies") as file, cores.starting(cores.load):
        file.write("\n".join(cookies))
        file.flush()
        command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}", "-s", str(ROOT / "benchmarks/wrk.lua")]
        output = subprocess.run(
            [*command, f"{app.address}{path}", "--", file.name], capture_output=True, text=True, check=True
        ).stdout
    told = json.loads(output.splitlines()[-1])
    return Load(rate=told["requests"] / told["seconds"], p50=told["p50"], p99=told["p99"], errors=told["errors"])
