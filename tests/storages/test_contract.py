"""The contract finds out each storage that breaks it, and asks no plugin of an author."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ..conftest import Servers
from ..support.pages import ROOT
from .broken_storages import CASES, FINDS

_quiet = {name: value for name, value in os.environ.items() if name != "CI"}  # where pytest tells everything twice
SCOPE = "-oasyncio_default_fixture_loop_scope=function"  # pytest-asyncio warns where it is not set
BROKEN = "tests/storages/broken_storages.py"
AT_ONCE = 3
"""In how many processes the broken storages are tried, since most of that is waiting for a time to pass."""
BARE = [f"-pno:{plugin}" for plugin in ("asyncio", "aiohttp", "xdist", "cov", "timeout", "cacheprovider")]


def run_pytest(*arguments: str, **environment: str) -> str:
    """Run pytest as somebody else would, who has none of our settings, and give what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={ROOT}", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**_quiet, "PYTHONPATH": str(ROOT), "COLUMNS": "300", **environment},
        check=False,
    )
    return done.stdout + done.stderr


def test_each_broken_storage_fails_the_cases_of_its_promise(servers: Servers) -> None:
    """Also without any plugin; and each failure says what was promised."""
    port = str(servers.own("postgresql").port)
    tests = [f"{BROKEN}::Test{kind.__name__}" for kind in FINDS]

    def run(part: int) -> str:
        return run_pytest(*BARE, *tests[part::AT_ONCE], "--tb=short", POSTGRESQL_PORT=port)

    with ThreadPoolExecutor() as threads:
        report = "\n".join(threads.map(run, range(AT_ONCE)))
    failed = set(re.findall(r"^FAILED \S*::Test(\w+)::(\w+)", report, re.MULTILINE))
    expected = {(kind.__name__, name) for kind, names in FINDS.items() for name in names}
    assert failed == expected, report
    assert report.count("The promise: ") == len(re.findall(r"^FAILED ", report, re.MULTILINE))
    assert "`Gone`, and it stays absent. Update, never upsert." in report


def test_each_case_is_failed_by_a_broken_storage() -> None:
    assert {name for names in FINDS.values() for name in names} == set(CASES)


@pytest.mark.parametrize(
    "settings",
    [
        BARE,
        ["-pno:aiohttp", "-oasyncio_mode=strict", SCOPE],
        ["-oasyncio_mode=strict", SCOPE],
        ["-oasyncio_mode=auto", SCOPE],
    ],
    ids=["no plugin", "asyncio, strict", "aiohttp, strict", "aiohttp, auto"],
)
def test_a_sound_storage_passes_and_is_told_what_was_not_tested(settings: list[str]) -> None:
    report = run_pytest(*settings, f"{BROKEN}::TestSound", "-Werror", "-rs", "-k", "not ttl")
    assert re.search(r"\d\d passed, 11 skipped", report), report
    assert "not tested: what happens on the way to the server; override the fixture server" in report
    assert "not tested: two storages on the same records; shared = False says that there are none" in report


def test_an_author_who_gives_no_storage_is_told_to(tmp_path: Path) -> None:
    module = tmp_path / "test_mine.py"
    module.write_text("from aiohttp_store.testing import StorageContract\nclass TestMine(StorageContract): pass\n")
    report = run_pytest(*BARE, str(module), "-k", "missing")
    assert "TestMine must override the fixture make_storage: give a function that makes a storage" in report


def test_nobody_needs_pytest_who_does_not_test() -> None:
    code = (
        "import sys, aiohttp_store\n"
        "assert 'aiohttp_store.testing' not in sys.modules\n"
        "import aiohttp_store.testing as testing\n"
        "assert 'pytest' not in sys.modules\n"
        "assert not hasattr(testing, 'Nothing')\n"
        "assert testing.StorageContract.__name__ in testing.__all__\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
