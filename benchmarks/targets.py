"""What this library means to reach."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .contenders import CONTENDERS
from .results import Case, Requests
from .rounds import MANY, MODES, USUAL

SHARES = {
    "ours memory": {"untouched": 0.97, "read": 0.90, "write": 0.85},
    "ours redis": {"untouched": 0.97, "read": 0.85, "write": 0.70},
    "ours memcached": {"untouched": 0.97, "read": 0.80, "write": 0.55},
    "ours mysql": {"untouched": 0.97, "read": 0.65, "write": 0.40},
}
_TIMES_AIOHTTP_SESSION = (("read", USUAL, 2.8), ("write", USUAL, 3.5), ("read", 1, 1.0), ("write", 1, 1.0))
_CROWDS = (256, 1000)
_CROWDED = 256
_STEADY = 0.7
_TAIL = 2.0
OURS = [name for name in CONTENDERS if name.startswith("ours ")]


def rows(requests: Requests) -> Iterator[list[str]]:
    """Give rows of what is wanted, the target, what was reached, and whether that is enough; for what was measured."""
    for name, shares in SHARES.items():
        for mode, target in shares.items():
            case = Case(name, mode, USUAL, MANY)
            if case in requests:
                share = requests.share(case)
                yield _row(f"{name}, {mode}: share", f">= {target:.2f}", str(share), share.median >= target)
    for mode, connections, target in _TIMES_AIOHTTP_SESSION:
        case = Case("ours redis", mode, connections, MANY)
        other = case.of("aiohttp-session redis")
        if case in requests and other in requests:
            ratio = requests.ratio(case, other)
            what = f"ours redis, {mode} at {connections}: times aiohttp-session's"
            yield _row(what, f">= {target:.1f}", str(ratio), ratio.median >= target)
    for connections in _CROWDS:
        cases = [Case(name, mode, connections, MANY) for name in OURS for mode in MODES]
        if measured := [case for case in cases if case in requests]:
            errors = sum(map(requests.errors, measured))
            yield _row(f"ours, all storages at {connections}: errors", "0", str(errors), not errors)
    for name in SHARES:  # the least of all rounds, as a standstill now and then is hidden in a median
        steady = [
            (requests.share(crowded).least / requests.share(usual).median, usual.mode)
            for usual, crowded in ((Case(name, mode, USUAL, MANY), Case(name, mode, _CROWDED, MANY)) for mode in MODES)
            if usual in requests and crowded in requests
        ]
        if steady:
            part, mode = min(steady)
            what = f"{name}: the worst share at {_CROWDED} / that at {USUAL}"
            yield _row(what, f">= {_STEADY}", f"{part:.2f} ({mode})", part >= _STEADY)
    for name in SHARES:
        times = {
            case.mode: requests.milliseconds(case)
            for case in (Case(name, mode, USUAL, MANY) for mode in MODES)
            if case in requests
        }
        if times:
            tail, mode = max((p99 / p50 if p50 else math.inf, mode) for mode, (p50, p99) in times.items())
            yield _row(f"{name}: p99 / p50, the worst mode", f"<= {_TAIL:.0f}", f"{tail:.2f} ({mode})", tail <= _TAIL)


def _row(what: str, target: str, reached: str, enough: bool) -> list[str]:
    return [what, target, reached, "yes" if enough else "no"]
