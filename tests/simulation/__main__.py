"""python -m tests.simulation: try many orders of events, and print one table of what came of them."""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from .plan import draw
from .report import Report, play, play_scenarios, simulate

CHUNK = 500
"""Seeds that a process tries at a time."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000, help="how many schedules (%(default)d)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (%(default)d)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one schedule, and print every event of it")
    parser.add_argument("--until-found", action="store_true", help="stop at the first fault; scenarios come last")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="run in so many (%(default)d)")
    return parser.parse_args()


def replay(seed: int) -> Report:
    """Print the plan and the events of one seed."""
    plan = draw(seed)
    for one in plan.rounds:
        print(one)
    print({name: value for name, value in vars(plan).items() if name != "rounds"})
    result = play(seed, is_tracing=True)
    print("\n".join(result.trace))
    report = Report()
    report.add(f"seed {seed}", result)
    return report


def main() -> None:
    arguments = _arguments()
    if arguments.replay is not None:
        report = replay(arguments.replay)
    else:
        report = Report() if arguments.until_found else play_scenarios()
        seeds = range(arguments.first, arguments.first + arguments.seeds)
        chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
        with ProcessPoolExecutor(arguments.processes) as pool:
            for part in pool.map(partial(simulate, is_stopping=arguments.until_found), chunks):
                report.join(part)
                if arguments.until_found and report.found:
                    pool.shutdown(cancel_futures=True)
                    break
        if arguments.until_found and not report.found:
            report.join(play_scenarios())
        report.look_for_healed()
    print(report)
    sys.exit(not report.is_as_expected)


if __name__ == "__main__":
    main()
