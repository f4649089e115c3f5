"""What larger sessions cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TypedDict

from .apps import DATA
from .contenders import CONTENDERS
from .load import Load, measure
from .processes import Processes
from .rounds import MANY, USUAL, WARM_UP

SIZES = (100, 1_024, 10_240, 102_400)
MODES = ("read", "write")
STORAGES = ("ours memory", "ours redis")
_OF_DATA = len(json.dumps(DATA, separators=(",", ":")))
_OF_KEY = len(',"padding":""')


class Sized(TypedDict):
    """One measurement; the size is that of the session's JSON, in bytes."""

    contender: str
    mode: str
    size: int
    round: int
    load: Load


def run(processes: Processes, sizes: Sequence[int], rounds: int, seconds: int) -> Iterator[Sized]:
    """Measure all storages with all sizes, and an app without sessions, which has none."""
    for number in range(rounds):
        for name in ("nothing", *STORAGES):
            with processes.app(CONTENDERS[name]) as app:
                measure(processes.cores, app, "/read", cookies=app.cookies(MANY), connections=USUAL, seconds=WARM_UP)
                for size in sizes if name in STORAGES else [0]:
                    cookies = app.cookies(MANY, max(0, size - _OF_DATA - _OF_KEY))
                    for mode in MODES:
                        load = measure(
                            processes.cores, app, f"/{mode}", cookies=cookies, connections=USUAL, seconds=seconds
                        )
                        yield Sized(contender=name, mode=mode, size=size, round=number, load=load)
