"""What `make bench` makes of what was measured, also by earlier runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as program
from benchmarks import imports, machine, report
from benchmarks.processes import Cores
from benchmarks.results import Results, read

from ..support.pages import ROOT

OLD: dict[str, Any] = {
    "machine": [["CPU", "old"], ["commit", "old"]],
    "left_out": [],
    "rounds": 3,
    "seconds": 1,
    "memory": [],
    "sweep": None,
    "sizes": [],
    "requests": [
        {
            "contender": contender,
            "mode": mode,
            "connections": 64,
            "sessions": 256,
            "round": number,
            "load": {"rate": rate + number, "p50": 1.5, "p99": 2.5, "errors": 0},
        }
        for contender, rate in (("nothing", 1000.0), ("ours redis", 500.0))
        for mode in ("untouched", "read")
        for number in range(3)
    ],
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Give results from before imports were measured."""
    file = tmp_path / "results.json"
    file.write_text(json.dumps(OLD))
    return file


def begun(saved: Path, *sections: str) -> Results:
    arguments = argparse.Namespace(save=saved, sections=sections or list(program._SECTIONS), rounds=1, seconds=2)
    return program._begun(arguments, Cores())


def test_old_results_are_shown_and_the_readme_gets_the_shares(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, path in (("_DOCUMENT", "performance.rst"), ("_PLOT", "performance.svg"), ("_README", "README.rst")):
        monkeypatch.setattr(report, name, tmp_path / path)
    readme = (ROOT / "README.rst").read_text()
    for _ in range(2):  # the second time in the place of the first
        (tmp_path / "README.rst").write_text(readme)
        report.write_docs(read(saved))
        readme = (tmp_path / "README.rst").read_text()
    before, _, rest = (ROOT / "README.rst").read_text().partition(".. speed, written by make bench\n")
    after = rest.partition(".. end of speed\n")[2]
    assert readme.startswith(before)
    assert readme.endswith(after)
    assert readme[len(before) : -len(after)].splitlines()[4:8] == [
        "===================  =========  =====  =====  ================",
        "aiohttp_store redis  0.500      0.500  -      1.5/2.5",
        "===================  =========  =====  =====  ================",
        "",
    ]
    importing = (tmp_path / "performance.rst").read_text().partition("Importing it\n")[2].partition("Every number")[0]
    assert "Not measured in this run." in importing
    assert "aiohttp_store redis" in (tmp_path / "performance.svg").read_text()


def test_a_section_that_is_measured_again_leaves_the_others_and_says_where(saved: Path) -> None:
    results = begun(saved, "imports")
    results["imports"] = [
        {"module": module, "round": number, "milliseconds": 100.0 + 10 * place + number}
        for place, module in enumerate(imports.MODULES)
        for number in range(3)
    ]
    assert results["requests"] == OLD["requests"]
    shown = report.text(results)
    assert "import aiohttp_store  121 (120-122)  1.198 (1.196-1.200)  1.090 (1.089-1.091)" in shown
    assert "CPU       old\ncommit    old\n" in shown
    assert "\nimports:  commit " in shown


def test_a_run_of_all_sections_keeps_nothing_of_an_earlier_one(saved: Path) -> None:
    results = begun(saved)
    assert (results["requests"], results["rounds"], results["again"]) == ([], 1, {})


def test_the_machine_is_described_where_there_are_no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.describe(Cores())[-1] == ["commit", "unknown"]


def test_each_module_is_imported_in_turn() -> None:
    took = list(imports.run(Cores(), 1))
    assert [one["module"] for one in took] == list(imports.MODULES)
    assert all(one["milliseconds"] > 0 for one in took)
