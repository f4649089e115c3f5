"""What the documents say is what the code does."""

from __future__ import annotations

import ast
import base64
import math
import os
import re
from pathlib import Path

import pytest

import aiohttp_store
from aiohttp_store import Cookie
from aiohttp_store.cookie import MAX_AGE, MAX_LOOKED_AT, MIN_SECRET
from aiohttp_store.manager import Manager
from aiohttp_store.storages.memory import MemoryStorage

ROOT = Path(__file__).parent.parent
PACKAGE = Path(aiohttp_store.__file__).parent  # which is installed where the tests are those of the sdist
SECURITY = (ROOT / "docs/security.rst").read_text()


def names_of_tests() -> set[str]:
    return {
        node.name
        for path in [*(ROOT / "tests").glob("test_*.py"), PACKAGE / "testing/contract.py"]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def rows_of_security() -> list[list[str]]:
    table = SECURITY.partition(".. list-table::")[2].partition("\nNot promised")[0]
    rows = re.split(r"\n   \* - ", table)[2:]  # what stands before the first row, and the header
    return [[cell.strip() for cell in re.split(r"\n     - ", row)] for row in rows]


def test_each_demand_of_the_security_page_has_a_test_or_is_left_to_the_app() -> None:
    known, rows = names_of_tests(), rows_of_security()
    assert len(rows) > 40
    for demand, answer, shown in rows:
        assert demand
        assert answer
        assert shown == "left to the app" or shown.strip("`") in known, demand


def test_the_documented_defaults_are_the_codes() -> None:
    documented = dict(
        re.findall(r"^(\S.*?)  +(.+)$", SECURITY.partition("Defaults\n")[2].partition("Demands\n")[0], re.MULTILINE)
    )
    manager = Manager(MemoryStorage())
    assert documented["``idle_timeout``"] == f"{manager._idle_timeout:.0f} seconds"
    assert documented["``lifetime``"] == ("none" if manager._lifetime == math.inf else manager._lifetime)
    assert documented["least bytes of a secret"] == str(MIN_SECRET)
    assert documented["well-formed cookies of our name that one request"] == str(MAX_LOOKED_AT)
    assert documented["longest time that a browser keeps a cookie"] == f"{MAX_AGE} seconds"
    default = Cookie().header("…", secure=True, max_age=None)
    assert documented["cookie"] == f"``{default}`` (on https)"


async def test_ids_have_256_bits_from_the_systems_random_source(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def token_bytes(size: int) -> bytes:
        drawn.append(os.urandom(size))
        return drawn[-1]

    monkeypatch.setattr("secrets.token_bytes", token_bytes)  # what token_urlsafe encodes
    ids = []
    for _ in range(100):
        session = aiohttp_store.Session(Manager(MemoryStorage()), {"a": 1})
        await session.save()
        assert session.identity is not None
        ids.append(base64.urlsafe_b64decode(f"{session.identity}="))
    assert ids == drawn
    assert {len(one) * 8 for one in ids} == {256}
    assert len(set(ids)) == 100


def test_the_changes_name_the_version() -> None:
    assert aiohttp_store.__version__ in (ROOT / "CHANGES.rst").read_text()


def test_no_source_imports_what_runs_stored_bytes() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                assert not {"pickle", "marshal", "shelve", "random"} & set(imported) or path.name in {
                    "mysql.py",
                    "redis_cluster.py",
                    "sqlite.py",
                    "sweeping.py",
                }, path
