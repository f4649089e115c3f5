"""python -m benchmarks: measure, show, and write docs/performance.rst."""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from . import imports, machine, memory, report, rounds, sizes, sweep
from .contenders import CONTENDERS, Contender
from .processes import Cores, Processes
from .results import Results, read

_SWEPT = 1_000_000


def _names(known: Iterable[Any]) -> Callable[[str], list[Any]]:
    """Read a list with commas, of these."""
    by_name = {str(one): one for one in known}

    def names(text: str) -> list[Any]:
        if unknown := [name for name in text.split(",") if name not in by_name]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(by_name)}")
        return [one for name, one in by_name.items() if name in text.split(",")]

    return names


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What sessions cost.")
    parser.add_argument("--quick", action="store_true", help="a look, in less than two minutes")
    parser.add_argument("--sections", type=_names(_SECTIONS), default=list(_SECTIONS), help=", ".join(_SECTIONS))
    parser.add_argument("--only", type=_names(CONTENDERS), default=list(CONTENDERS), help=", ".join(CONTENDERS))
    parser.add_argument("--modes", type=_names(rounds.MODES), default=rounds.MODES, help=", ".join(rounds.MODES))
    parser.add_argument("--connections", type=_names(rounds.CONNECTIONS), help="1, 16, 64, 256, 1000")
    parser.add_argument("--rounds", type=int, help="how often each contender starts anew")
    parser.add_argument("--seconds", type=int, default=1, help="for each measurement")
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep the results, and those of other sections")
    parser.add_argument("--from", type=Path, metavar="FILE", dest="saved", help="show such results, measure nothing")
    parser.add_argument(
        "--write-docs", action="store_true", help="write the document, its plot, and the README's table"
    )
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 5)
    arguments.connections = arguments.connections or ((rounds.USUAL,) if arguments.quick else rounds.CONNECTIONS)
    return arguments


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {text}\n")


def _contenders(wanted: Iterable[str], results: Results) -> list[Contender]:
    """Give what is wanted and can be run here, and the baselines that it is compared with."""
    names = {name for one in wanted for name in (one, CONTENDERS[one].baseline)}
    chosen = []
    for name in filter(names.__contains__, CONTENDERS):
        if missing := CONTENDERS[name].app.missing():
            results["left_out"].append(f"{name}, for want of {missing}")
        else:
            chosen.append(CONTENDERS[name])
    return chosen


def _requests(processes: Processes, arguments: argparse.Namespace, results: Results) -> None:
    results["left_out"] = []
    results["rounds"], results["seconds"] = arguments.rounds, arguments.seconds
    plan = rounds.Plan(
        contenders=_contenders(arguments.only, results),
        modes=arguments.modes,
        connections=arguments.connections,
        one_session=not arguments.quick,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
    )
    results["requests"] = []
    for one in _told(rounds.run(processes, plan)):
        results["requests"].append(one)


def _sizes(processes: Processes, arguments: argparse.Namespace, results: Results) -> None:
    some = sizes.SIZES[2:3] if arguments.quick else sizes.SIZES
    results["sizes"] = []
    for one in _told(sizes.run(processes, some, min(3, arguments.rounds), arguments.seconds)):
        results["sizes"].append(one)


def _told(measured: Iterator[Any]) -> Iterator[Any]:
    """Say at each change of contender who is measured."""
    contender = None
    for one in measured:
        if one["contender"] != contender:
            contender = one["contender"]
            _say(f"round {one['round'] + 1}: {contender}")
        yield one


def _memory(processes: Processes, arguments: argparse.Namespace, results: Results) -> None:
    some = memory.SIZES[:2] if arguments.quick else memory.SIZES
    results["memory"] = [memory.cost(processes.cores, size) for size in some]


def _sweep(processes: Processes, arguments: argparse.Namespace, results: Results) -> None:
    rows, times, wait = (_SWEPT // 50, 2, 15.0) if arguments.quick else (_SWEPT, 20, 300.0)
    results["sweep"] = sweep.run(processes, rows, times, arguments.seconds, wait)


def _imports(processes: Processes, arguments: argparse.Namespace, results: Results) -> None:
    results["imports"] = list(imports.run(processes.cores, 5 if arguments.quick else imports.ROUNDS))


_SECTIONS = {"requests": _requests, "memory": _memory, "sweep": _sweep, "sizes": _sizes, "imports": _imports}
_WITHOUT_LOAD = {"memory", "imports"}


def _begun(arguments: argparse.Namespace, cores: Cores) -> Results:
    """Give empty results, or those that this run measures some sections of again."""
    described = machine.describe(cores)
    if arguments.save and arguments.save.exists() and len(arguments.sections) < len(_SECTIONS):
        results = read(arguments.save)
        results["again"].update(dict.fromkeys(arguments.sections, described))
        return results
    return Results(
        machine=described,
        again={},
        left_out=[],
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        requests=[],
        memory=[],
        sweep=None,
        sizes=[],
        imports=[],
    )


def _measure(arguments: argparse.Namespace) -> Results:
    if not shutil.which("wrk") and not _WITHOUT_LOAD.issuperset(arguments.sections):
        raise SystemExit("The load comes from wrk, which is not installed: apt-get install wrk")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with Processes() as processes:
        results = _begun(arguments, processes.cores)
        try:
            for name in arguments.sections:
                _say(name)
                _SECTIONS[name](processes, arguments, results)
        finally:  # also what there is of a run that was broken off
            if arguments.save:
                arguments.save.write_text(json.dumps(results, indent=1))
    return results


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    results: Results = read(arguments.saved) if arguments.saved else _measure(arguments)
    sys.stdout.write(f"{report.text(results)}\n")
    if arguments.write_docs:
        report.write_docs(results)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
