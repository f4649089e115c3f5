"""A mutant: the package without one of its defences, and what the tests say of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp_store

from ..conftest import STORAGES
from ..support.pages import PAGES, ROOT, table

__all__ = ["HEADING", "SECURITY", "Mutant", "Result", "Suite", "named_for", "rows"]

PACKAGE = Path(aiohttp_store.__file__).parent  # which is installed where the tests are those of the sdist
SECURITY = PAGES["docs/security.rst"]
PATIENCE = 600.0
"""Seconds after which the tests of one mutant are given up: it counts as caught, since they do not end with it."""

_NOT_COPIED = shutil.ignore_patterns(
    *(".git", ".venv*", ".*_cache", ".hypothesis", ".coverage*", "__pycache__", "_build", "node_modules"),
    *("build", "dist", "*.egg-info", "*.db*", "aiohttp_store"),
)
_PYTEST = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout", "120")


class Mutant(NamedTuple):
    """A defence, and one replacement in one file of the package, or of the documents, that puts it out."""

    row: str
    """How the demand begins in its row of the page."""
    defence: str
    """What the package does no longer."""
    file: str
    right: str
    wrong: str
    storage: str = "memory"
    """Over which the tests run that can be run over each."""

    @property
    def source(self) -> str:
        """The file without the defence; the same as the file if nothing fits."""
        return self._read().replace(self.right, self.wrong, 1)

    @property
    def is_possible(self) -> bool:
        """Whether the file holds what is replaced, once."""
        return self._read().count(self.right) == 1

    def _read(self) -> str:
        folder = ROOT if self.file.startswith("docs/") else PACKAGE.parent
        return (folder / self.path).read_text()

    @property
    def path(self) -> str:
        """Return where the file is in the repository."""
        return self.file if self.file.startswith("docs/") else f"aiohttp_store/{self.file}"


def rows() -> dict[str, list[str]]:
    """Return the page's demands, and the names of the tests in the row of each; none where it is left to the app."""
    found = table(SECURITY, "demand", "what this package does", "test")
    return {demand: re.findall(r"``(test_\w+)``", shown) for demand, _, shown in found}


def named_for(row: str) -> list[str]:
    """Return the names of the tests in the row that begins so.

    Raises:
        LookupError: no row does, or several do.
    """
    found = [tests for demand, tests in rows().items() if demand.startswith(row)]
    if len(found) != 1:
        raise LookupError(f"{len(found)} rows of {SECURITY} begin with {row!r}")
    return found[0]


class Result(NamedTuple):
    """What the tests say of a mutant."""

    mutant: Mutant
    tests: int
    """How many were to run."""
    caught_by: str | None
    """The first that failed; `None` if all of them passed."""

    def __str__(self) -> str:
        verdict = "SURVIVED" if self.caught_by is None else "caught"
        return f"{verdict:<8}  {self.tests:>5}  {self.mutant.defence:<72}  {self.caught_by or '-'}"


HEADING = f"{'verdict':<8}  {'tests':>5}  {'what was put out':<72}  caught by"


class Suite:
    """The tests that are in the rows of some mutants, by their names."""

    def __init__(self, mutants: Sequence[Mutant]) -> None:
        """Collect them.

        Raises:
            RuntimeError: that does not work.
        """
        self._mutants = mutants
        words = {name for mutant in mutants for name in named_for(mutant.row)} | {"(StorageContract)"}
        texts = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
        files = [path for path, text in texts.items() if any(word in text for word in words)]
        with copied() as folder:
            done = _pytest(folder, "--collect-only", *(str(path.relative_to(ROOT)) for path in files))
        if done.returncode != 0:
            raise RuntimeError(done.stdout + done.stderr)
        self._found: dict[str, list[str]] = {}
        for test in re.findall(r"^tests/.*::.*$", done.stdout, re.MULTILINE):
            self._found.setdefault(test.partition("[")[0].rpartition("::")[2], []).append(test)

    def of(self, mutant: Mutant) -> list[str]:
        """Return the tests of a mutant's row, over its storage where they can be run over each."""
        named = [test for name in named_for(mutant.row) for test in self._found[name]]
        return [test for test in named if _storages_of(test) <= {mutant.storage}]

    def fails_without_any(self) -> str | None:
        """Return the first test that fails although nothing is put out; `None` if none does."""
        with copied() as folder:
            return _first_failure(folder, [*{test: None for mutant in self._mutants for test in self.of(mutant)}])

    def try_on(self, mutant: Mutant) -> Result:
        """Run the tests of a mutant's row against it.

        Raises:
            RuntimeError: no test ran, for example because the patched package cannot be imported.
        """
        assert mutant.is_possible, f"{mutant.file} does not hold once what {mutant.defence!r} replaces"
        tests = self.of(mutant)
        with copied() as folder:
            (folder / mutant.path).write_text(mutant.source)
            return Result(mutant, len(tests), _first_failure(folder, tests))


@contextmanager
def copied() -> Iterator[Path]:
    """Make a copy of the package and its tests, which can be changed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT, folder, ignore=_NOT_COPIED, dirs_exist_ok=True)
        shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        yield folder


def _storages_of(test: str) -> set[str]:
    """Return the storages in a test's parameters."""
    return STORAGES.keys() & set(re.split(r"[\[\]-]", test.partition("[")[2]))


def _first_failure(folder: Path, tests: Sequence[str]) -> str | None:
    """Return the first test that fails; `None` if all pass."""
    try:
        done = _pytest(folder, *tests)
    except subprocess.TimeoutExpired:
        return "their time, which they exceed"
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) [^\[]*::(.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode != 1 or failed is None:
        raise RuntimeError(f"pytest ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return failed[1]


def _pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *_PYTEST, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
