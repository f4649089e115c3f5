"""python -m tests.chaos: let things go wrong under every storage, and print one table of what came of it."""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .run import DURABLE, LONG, SUBJECTS, Plan, run
from .tally import Tally

LONGEST_STALL = 0.1
LONGEST_RECOVERY = 1.0
WAIT_BEYOND_BUDGETS = 0.5

_MUST_BE_ZERO = ("conflicts", "errors", "unserved", "lost", "foreign", "undone", "doubled")
_MISSED = "!"


def missed(tally: Tally, plan: Plan) -> set[str]:
    """Give the names of the figures that are not what they should be."""
    bounds = {
        "longest_wait": 2 * plan.timeout + WAIT_BEYOND_BUDGETS,
        "longest_stall": LONGEST_STALL,
        "longest_recovery": LONGEST_RECOVERY,
        **dict.fromkeys(_MUST_BE_ZERO, 0),
    }
    return {name for name, most in bounds.items() if getattr(tally, name) > most}


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"


_COLUMNS: list[tuple[str, str, Callable[[float], str]]] = [
    ("requests", "requests", _count),
    ("unavailable", "503", _count),
    ("conflicts", "409", _count),
    ("errors", "500", _count),
    ("unserved", "unserved", _count),
    ("cancelled", "cancelled", _count),
    ("longest_wait", "longest wait", _milliseconds),
    ("longest_stall", "longest stall", _milliseconds),
    ("longest_recovery", "recovery", _milliseconds),
    ("lost", "writes lost", _count),
    ("foreign", "foreign answers", _count),
    ("undone", "logouts undone", _count),
    ("doubled", "writes doubled", _count),
    ("ended", "ended with server", _count),
]


def table(tallies: dict[str, Tally], plan: Plan) -> str:
    """Lay the figures out; one that misses its target is marked."""
    rows = [["storage", *(title for _, title, _ in _COLUMNS)]]
    for name, tally in tallies.items():
        marks = missed(tally, plan)
        figures = [show(getattr(tally, key)) + _MISSED * (key in marks) for key, _, show in _COLUMNS]
        rows.append([name + ("*" if name in DURABLE else ""), *figures])
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="What comes of broken servers.")
    parser.add_argument("--seconds", type=float, default=LONG.seconds, help="for each storage (%(default)g)")
    parser.add_argument("--storage", action="append", choices=SUBJECTS, help="of these only; may be repeated")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="that of an earlier run, to repeat it")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    plan = replace(LONG, seconds=arguments.seconds)
    print(f"{plan.visitors} visitors, timeout {plan.timeout:g} s, seed {arguments.seed}", flush=True)
    tallies: dict[str, Tally] = {}
    for name in arguments.storage or SUBJECTS:
        print(f"{time.strftime('%H:%M:%S')}  {name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            tallies[name] = run(name, plan, arguments.seed, Path(folder))
        if "longest_recovery" in missed(tallies[name], plan):
            print(f"  recovery took longest after: {tallies[name].slowest}", file=sys.stderr, flush=True)
        told = tallies[name].findings or (tallies[name].reasons if missed(tallies[name], plan) else [])
        for line in told:
            print(f"  {line}", file=sys.stderr, flush=True)
    print(table(tallies, plan))
    print(
        f"* keeps its sessions when it dies.  {_MISSED} misses its target: a wait of two budgets and "
        f"{WAIT_BEYOND_BUDGETS:g} s, a stall of the event loop of {LONGEST_STALL:g} s, a recovery of "
        f"{LONGEST_RECOVERY:g} s, and no 409, 500, visitor unserved, lost or doubled write, foreign answer or logout "
        "undone."
    )
    if any(missed(tally, plan) for tally in tallies.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
