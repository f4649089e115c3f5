"""The model for third parties: the example's storage keeps the contract, with a real server, and can be packaged."""

from __future__ import annotations

import ast
import asyncio
import importlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import aiohttp_store
from aiohttp_store import ConfigError, Saved, SessionTooLarge
from aiohttp_store.storages import storage_from_url
from aiohttp_store.testing import StorageContract

from .conftest import Servers
from .law import create, data_of, new_key, save
from .pages import PAGES, ROOT, blocks

EXAMPLE = ROOT / "examples/postgresql_storage.py"
PAGE = PAGES["docs/writing-a-storage.rst"]

importlib.import_module("examples.postgresql_storage")


class TestPostgreSQL(StorageContract):
    password = "s@crêt"

    @pytest.fixture
    def server(self, servers: Servers) -> tuple[str, int]:
        return "127.0.0.1", servers.own("postgresql").port

    @pytest.fixture
    def make_storage(self, server: tuple[str, int]) -> Any:
        def make(space: str, server: tuple[str, int] = server) -> aiohttp_store.Storage:
            host, port = server
            return storage_from_url(f"postgresql://visitor:s%40crêt@{host}:{port}/postgres?table={space}")

        return make


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://host", "must name one database; write postgresql://user@host/database"),
        ("postgresql://one,two/db", "postgresql:// takes one host"),
        ("postgresql://host/db?table=a;b", "table='a;b' must be"),
        ("postgresql://host/db?tabel=a", "did you mean 'table'?"),
        ("postgresql://host/db?timeout=0", "timeout=0.0 must be"),
    ],
)
def test_a_wrong_url_is_refused_with_the_way_out(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        storage_from_url(url)


async def test_a_record_over_the_limit_is_too_large(servers: Servers) -> None:
    async with aiohttp_store.open_storage(f"{servers.url('postgresql')}?table=limited&timeout=20") as storage:
        await create(storage, new_key(), bytes(16 << 20))
        with pytest.raises(SessionTooLarge) as caught:
            await save(storage, new_key(), bytes((16 << 20) + 1))
        assert caught.value.limit == 16 << 20


async def test_the_table_is_made_again_when_it_was_dropped(servers: Servers) -> None:
    async with aiohttp_store.open_storage(f"{servers.url('postgresql')}?table=dropped&timeout=20") as storage:
        await create(storage, new_key())
        await storage._ask("DROP TABLE dropped")  # type: ignore[attr-defined]
        key = new_key()
        assert isinstance(await save(storage, key, b"anew"), Saved)
        assert await data_of(storage, key) == b"anew"


async def test_the_sweep_runs_by_itself_and_in_one_process_at_a_time(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{servers.url('postgresql')}?table=swept&timeout=20"
    rows = "SELECT count(*) FROM swept"
    async with aiohttp_store.open_storage(url) as opened:
        storage: Any = opened
        for _ in range(3):
            await create(storage, new_key(), ttl=1)
        await asyncio.sleep(1.1)
        async with storage._connection() as other, other.transaction():
            await other.execute("SELECT pg_advisory_xact_lock(hashtext('aiohttp_store.swept'))")
            assert await storage.sweep() == 0
        assert (await storage._ask(rows))[0][0] == 3
    real = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda delay: real(delay and 0.01))
    async with aiohttp_store.open_storage(url) as opened:
        storage = opened
        while (await storage._ask(rows))[0][0]:
            await real(0.01)


# The page about it


def test_the_page_tells_what_an_author_gives_and_the_defaults() -> None:
    table = PAGE.read_text().partition("what you give  ")[2].partition("What cannot be tested")[0]
    rows = dict(re.findall(r"^``(\w+)`` +(.+?)  ", table, re.MULTILINE))
    settings = {name: value for name, value in vars(StorageContract).items() if isinstance(value, bool | float | None)}
    assert {name: ast.literal_eval(rows[name].strip("`")) for name in settings if name in rows} == {
        name: value for name, value in settings.items() if not name.startswith("__")
    }
    assert rows["make_storage"] == "must be given"
    assert set(rows) == {"make_storage", "server", "shared", "password", "patience"}


def make_wheel(folder: Path, project: dict[str, Any], module: str, source: str) -> Path:
    """Make what a build backend would."""
    name, version = project["name"].replace("-", "_"), project["version"]
    points = "".join(
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
        for group, entries in project["entry-points"].items()
    )
    about = f"{name}-{version}.dist-info"
    files = {
        f"{module}.py": source,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": points,
    }
    files[f"{about}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{about}/RECORD"))
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for place, text in files.items():
            wheel.writestr(place, text)
    return path


def test_an_installed_package_is_found_by_its_entry_point(tmp_path: Path, servers: Servers) -> None:
    (block,) = blocks(PAGE, "toml")
    settings = tomllib.loads(block.code)
    (module,) = settings["tool"]["setuptools"]["py-modules"]
    source = EXAMPLE.read_text().replace('aiohttp_store.register("postgresql", PostgreSQLStorage)', "")
    wheel = make_wheel(tmp_path, settings["project"], module, source)
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", str(site), str(wheel)], check=True)
    code = (
        "import asyncio, sys, aiohttp_store\n"
        "async def main():\n"
        "    async with aiohttp_store.open_storage(sys.argv[1]) as storage:\n"
        "        await storage.save([aiohttp_store.Write('key', None, b'kept', 60)])\n"
        "        print(type(storage).__module__, (await storage.load(['key']))[0].data)\n"
        f"assert {module!r} not in sys.modules\n"
        "asyncio.run(main())\n"
    )
    url = f"{servers.url('postgresql')}?table=packaged&timeout=20"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{site}"}
    done = subprocess.run([sys.executable, "-c", code, url], check=True, capture_output=True, env=environment)
    assert done.stdout.decode().split() == [module, "b'kept'"]
