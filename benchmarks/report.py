"""The results as tables, for the terminal and for the document."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import wrap

from . import ROOT, imports, plot, targets
from .contenders import CONTENDERS
from .results import Case, Requests, Results, Spread, spread
from .rounds import MANY, MODES, USUAL

_TEMPLATE = Path(__file__).parent / "performance.rst.in"
_DOCUMENT = ROOT / "docs/performance.rst"
_PLOT = ROOT / "docs/performance.svg"
_README = ROOT / "README.rst"
_SPEED = re.compile(r"(?<=^\.\. speed, written by make bench\n).*?(?=^\.\. end of speed$)", re.MULTILINE | re.DOTALL)
_NONE = "Not measured in this run."
_KIB = 1024
_WIDE = 95


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Make a table that is read as well in a terminal as in a document."""
    lines = [list(headers), *map(list, rows)]
    if len(lines) == 1:
        return _NONE
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([rule, text[0], rule, *text[1:], rule])


def _whole(spread: Spread) -> str:
    return f"{spread.median:.0f} ({spread.least:.0f}-{spread.most:.0f})"


def _machine(results: Results) -> str:
    rows = [*results["machine"], ["rounds", f"{results['rounds']}, with {results['seconds']} s for each measurement"]]
    for section, machine in results["again"].items():
        rows += [[f"{section}:", f"{name} {text}"] for name, text in machine if [name, text] not in rows]
    return _table(
        ["what", "which"],
        # A row whose first cell is blank goes on with the one above.
        ([name if not number else "", line] for name, text in rows for number, line in enumerate(wrap(text, _WIDE))),
    )


def _overview(requests: Requests) -> str:
    """Give one row for each contender and mode, and one column for each load."""
    cases = requests.cases()
    loads = sorted({(case.sessions != MANY, case.connections, case.sessions) for case in cases})

    def cell(case: Case) -> str:
        if case not in requests:
            return "-"
        p50, p99 = requests.milliseconds(case)
        errors = requests.errors(case)
        return f"{requests.share(case).median:.3f} {p50:.1f}/{p99:.1f}{f' E{errors}' if errors else ''}"

    return _table(
        ["contender", "mode", *(f"{connections}{' (1 session)' if one else ''}" for one, connections, _ in loads)],
        (
            [name, mode, *(cell(Case(name, mode, connections, sessions)) for _, connections, sessions in loads)]
            for mode in MODES
            for name in CONTENDERS
            if any((case.contender, case.mode) == (name, mode) for case in cases)
        ),
    )


def _every_number(requests: Requests) -> str:
    def row(case: Case) -> list[str]:
        p50, p99 = requests.milliseconds(case)
        return [
            *(case.contender, case.mode, str(case.connections), str(case.sessions)),
            *(_whole(requests.rate(case)), str(requests.share(case))),
            *(f"{p50:.2f}", f"{p99:.2f}", str(requests.errors(case))),
        ]

    headers = ["contender", "mode", "connections", "sessions", "requests/s", "share", "p50 ms", "p99 ms", "errors"]
    order = {mode: number for number, mode in enumerate(MODES)}
    by_load = sorted(requests.cases(), key=lambda case: (order[case.mode], -case.sessions, case.connections))
    return _table(headers, map(row, by_load))


def _memory(results: Results) -> str:
    return _table(
        ["sessions", "bytes each", "load µs", "save µs"],
        (
            [f"{cost['sessions']:,}", f"{cost['bytes']:.0f}", f"{cost['load']:.2f}", f"{cost['save']:.2f}"]
            for cost in results["memory"]
        ),
    )


def _sweep(results: Results) -> str:
    sweep = results["sweep"]
    if sweep is None:
        return _NONE
    took = (
        f"The sweep of {sweep['rows']:,} rows took {sweep['seconds']:.1f} s."
        if sweep["seconds"] is not None
        else f"The sweep was not waited for: {sweep['left']:,} of {sweep['rows']:,} rows were left."
    )
    table = _table(
        ["reads", "requests/s", "p99 ms", "errors"],
        (
            [
                name,
                _whole(spread(load["rate"] for load in loads)),
                f"{statistics.median(load['p99'] for load in loads):.2f}",
                str(sum(load["errors"] for load in loads)),
            ]
            for name, loads in (("without the sweep", sweep["before"]), ("during the sweep", sweep["during"]))
        ),
    )
    return f"{took}\n\n{table}"


def _sizes(results: Results) -> str:
    rates: defaultdict[tuple[str, str, int], list[float]] = defaultdict(list)
    nothing: defaultdict[str, list[float]] = defaultdict(list)
    for one in results["sizes"]:
        of = rates[one["contender"], one["mode"], one["size"]] if one["size"] else nothing[one["mode"]]
        of.append(one["load"]["rate"])
    sizes = sorted({size for _, _, size in rates})
    return _table(
        ["contender", "mode", *(f"{size / _KIB:.0f} KiB" if size >= _KIB else f"{size} B" for size in sizes)],
        (
            [
                name,
                mode,
                *(
                    str(spread(rate / statistics.median(nothing[mode]) for rate in rates[name, mode, size]))
                    for size in sizes
                ),
            ]
            for name, mode in dict.fromkeys((name, mode) for name, mode, _ in rates)
        ),
    )


def _imports(results: Results) -> str:
    took: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for one in results["imports"]:
        took[one["module"]][one["round"]] = one["milliseconds"]

    def row(module: str, rounds: dict[int, float]) -> list[str]:
        others = imports.MODULES[:2]
        return [
            f"import {module}",
            _whole(spread(rounds.values())),
            *(str(spread(time / took[other][number] for number, time in rounds.items())) for other in others),
        ]

    headers = ["program", "ms", *(f"times {module}" for module in imports.MODULES[:2])]
    return _table(headers, (row(module, rounds) for module, rounds in took.items()))


def _speed(results: Results) -> str:
    """Give what the README tells."""
    requests = Requests(results["requests"])

    def row(name: str) -> list[str]:
        cases = [Case(name, mode, USUAL, MANY) for mode in MODES]
        shares = [f"{requests.share(case).median:.3f}" if case in requests else "-" for case in cases]
        read = Case(name, "read", USUAL, MANY)
        times = "/".join(f"{time:.1f}" for time in requests.milliseconds(read)) if read in requests else "-"
        return [plot.title(name), *shares, times]

    known = {case.contender for case in requests.cases()}
    table = _table(["sessions of", *MODES, "read: p50/p99 ms"], (row(name) for name in plot.SHOWN if name in known))
    return f"\n{table}\n\n"


def _parts(results: Results) -> dict[str, str]:
    requests = Requests(results["requests"])
    left_out = "\n".join(f"- left out: {line}" for line in results["left_out"])
    return {
        "machine": _machine(results),
        "left_out": left_out,
        "overview": _overview(requests),
        "targets": _table(["what", "target", "reached", "enough"], targets.rows(requests)),
        "memory": _memory(results),
        "sweep": _sweep(results),
        "sizes": _sizes(results),
        "imports": _imports(results),
        "every_number": _every_number(requests),
        "usual": str(USUAL),
        "many": str(MANY),
    }


_TITLES = {
    "machine": "Machine and versions",
    "left_out": "",
    "every_number": "Every number: median (least-most) of all rounds",
    "overview": "Share of the same framework without sessions, and p50/p99 in ms, by connections (E: errors)",
    "targets": f"Targets, at {USUAL} connections and {MANY} sessions unless said otherwise",
    "memory": "memory://, by the number of sessions",
    "sweep": "Reads on MySQL while expired rows are swept",
    "imports": "Importing",
    "sizes": f"Share by the size of the session, at {USUAL} connections",
}


def text(results: Results) -> str:
    """Show all that was measured."""
    parts = _parts(results)
    shown = ((title, parts[name]) for name, title in _TITLES.items() if parts[name] not in ("", _NONE))
    return "\n\n".join(f"{title}\n\n{part}" if title else part for title, part in shown)


def write_docs(results: Results) -> None:
    """Write the document, its plot, and the table of the README."""
    _DOCUMENT.write_text(_TEMPLATE.read_text().format(**_parts(results)))
    _README.write_text(_SPEED.sub(_speed(results), _README.read_text()))
    _PLOT.write_text(plot.svg(Requests(results["requests"])))
