"""What the README shows and says is so."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientSession, CookieJar, web

import aiohttp_store
from aiohttp_store import Options, Session, Storage, StorageURL
from aiohttp_store._engine.lifetimes import IDLE_TIMEOUT
from aiohttp_store.storages import SCHEMES, storage_from_url

from ..conftest import Servers
from ..support.pages import PAGES, ROOT, blocks, redirected, table
from ..support.servers import free_port
from ..support.timing import AT_LAST
from .test_comparison import HEADS, PAGE
from .test_pages import EXTRAS, SETUP

README = PAGES["README.rst"]
TEXT = README.read_text()
LITERALS = re.findall(r"``(.+?)``", TEXT)
FIRST = blocks(README, "python")[0].code

WHOLE = {
    # What a scheme of the table needs before it names a server.
    "redis+unix": "/run/redis.sock",
    "redis+sentinel": "h1,h2/service/0",
    "mongodb": "h1",
    "mongodb+pymongo": "h1",
    "mongodb+srv": "cluster.example.org",
    "mysql": "h1/db",
    "mariadb": "h1/db",
}


@asynccontextmanager
async def started(*command: str, folder: Path, **environment: str) -> AsyncIterator[tuple[str, str]]:
    """Run what serves an app, and give what it says and its address."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        said = (await asyncio.wait_for(process.stdout.readuntil(b"(Press"), AT_LAST)).decode()
        (address,) = re.findall(r"http://[0-9.:]+", said)
        yield said, address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        await asyncio.wait_for(process.communicate(), AT_LAST)


async def visits(address: str) -> list[str]:
    async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as visitor:
        found = []
        for _ in range(2):
            async with visitor.get(address) as response:
                assert response.status == 200, await response.text()
                found.append(await response.text())
        return found


async def test_the_first_app_counts_the_visits_of_each_visitor(servers: Servers, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(redirected(FIRST, {"redis": servers.url("redis")}))
    served = (
        "import functools, runpy\n"
        "from aiohttp import web\n"
        f"web.run_app = functools.partial(web.run_app, host='127.0.0.1', port={free_port()})\n"
        "runpy.run_path('app.py', run_name='__main__')\n"
    )
    async with started(sys.executable, "-W", "error", "-c", served, folder=tmp_path) as (_, address):
        for _ in range(2):
            assert await visits(address) == ['{"visits": 1}', '{"visits": 2}']
    assert blocks(PAGES["docs/index.rst"], "python")[0].code == FIRST


@pytest.mark.parametrize("url", [None, "redis"])
async def test_make_demo_serves_the_demo_that_keeps_sessions_where_it_is_told(
    url: str | None, servers: Servers, tmp_path: Path
) -> None:
    for name in ("Makefile", "setup.py", "constraints.txt", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("made", "installed"):  # what `make demo` would install, it takes from where the tests run
        (tmp_path / ".venv" / name).touch()
    make = [shutil.which("make") or "make", "demo", f"BIN={Path(sys.executable).parent}", "LATEST=", "OLDEST="]
    environment = {"PORT": str(free_port())} | ({"URL": servers.url(url)} if url else {})
    async with started(*make, folder=tmp_path, **environment) as (said, address):
        assert f"Sessions are kept in {servers.url(url) if url else 'sqlite:///demo.db'}\n" in said
        for number, page in enumerate(await visits(address)):
            assert f'<strong id="visits">{number + 1}</strong>' in page
    assert (tmp_path / "demo.db").exists() is (url is None)


# The storages.


ROWS = table(README, "URL", "install", "notes")
URLS = {url: install.strip("`") for forms, install, _ in ROWS for url in re.findall(r"``(.+?)``", forms)}


def scheme_of(url: str) -> str:
    return StorageURL.parse(url).scheme


def extra_of(scheme: str) -> str:
    """Give the smallest extra that holds what the module of a scheme and its neighbours import, or nothing."""
    folder, _, module = str(SCHEMES[scheme]).partition(":")[0].rpartition(".")
    imported: set[str] = set()
    files, seen = [module], {module}
    while files:
        source = inspect.getsource(import_module(f"{folder}.{files.pop()}"))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                imported |= {one.name.partition(".")[0] for one in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add((node.module or "").partition(".")[0])
            elif isinstance(node, ast.ImportFrom) and node.level == 1 and node.module not in seen:
                seen.add(node.module or "")
                files.append(node.module or "")
    with_drivers = {"bson", "hiredis"}  # which come with PyMongo and redis[hiredis]
    drivers = imported - sys.stdlib_module_names - {"aiohttp", *with_drivers}
    if not drivers:
        return ""
    requirements = re.findall(r"^(\w+) = (\[.+)", SETUP, re.MULTILINE)
    extras: dict[str, set[str]] = {extra: {*re.findall(r'"([\w-]+)', listed.lower())} for extra, listed in requirements}
    return min((extra for extra, holds in extras.items() if drivers <= holds), key=lambda extra: len(extras[extra]))


def test_the_table_of_urls_has_every_scheme_with_the_extra_that_installs_its_driver() -> None:
    own = {scheme for scheme, target in SCHEMES.items() if str(target).startswith("aiohttp_store.")}
    assert {scheme_of(url) for url in URLS} == own
    assert {url: extra_of(scheme_of(url)) for url in URLS} == URLS


@pytest.mark.parametrize("url", [one for one in LITERALS if re.match(r"[a-z+]+://", one)])
def test_every_url_makes_its_storage(url: str) -> None:
    scheme = scheme_of(url)
    if scheme == "cookie":
        aiohttp_store.setup(web.Application(), url, secret=bytes(32))
    else:
        whole = url + WHOLE[scheme] if url == f"{scheme}://" and scheme in WHOLE else url
        assert isinstance(storage_from_url(whole), Storage)


def test_the_extras_that_pip_is_told_exist() -> None:
    (line,) = (line for block in blocks(README, "console") for line in block.code.splitlines() if "pip install" in line)
    command, _, others = line.partition("#")
    named = {*re.findall(r"\[(\w+)\]", command), *re.findall(r"\w+", others.replace("or ", ""))}
    assert len(named) > 2
    assert named <= EXTRAS


# The session.


def test_the_table_of_members_has_all_of_a_session_and_no_other() -> None:
    named = {
        re.sub(r"await |\(.*", "", member)
        for members, _ in table(README, "member", "meaning")
        for member in re.findall(r"``(.+?)``", members)
    }
    assert named == {name for name in vars(Session) if not name.startswith("_")}


def test_the_calls_in_the_table_of_members_are_those_of_the_session() -> None:
    for members, _ in table(README, "member", "meaning"):
        for member in re.findall(r"``(.+?)``", members):
            called = re.fullmatch(r"(await )?(\w+)\((.*)\)", member)
            found: Any = vars(Session)[re.sub(r"await |\(.*", "", member)]
            assert isinstance(found, property) is (called is None), member
            if called is not None:
                assert inspect.iscoroutinefunction(found) is bool(called[1]), member
                parameters = [str(one) for one in inspect.signature(found).parameters.values()][1:]
                shown = [re.sub(r": [^=]+?( = |$)", lambda match: match[1].strip(), one) for one in parameters]
                assert ", ".join(shown) == called[3], member


def test_every_keyword_of_setup_is_named_and_the_defaults_are_those_of_the_code() -> None:
    assert Options.__annotations__.keys() <= {one.partition("=")[0] for one in LITERALS}
    assert "``idle_timeout`` (a day)" in TEXT
    assert timedelta(seconds=IDLE_TIMEOUT) == timedelta(days=1)
    assert "503**, within two seconds" in TEXT
    assert Storage.timeout == 2
    (python,) = re.findall(r"Python (3\.\d+) or later", TEXT)
    assert f'python_requires=">={python}"' in SETUP


# Next to others, and the examples.


def test_the_comparison_is_part_of_the_page_whose_columns_are_run() -> None:
    page = {name: cells for name, *cells in table(PAGE, "", *HEADS)}
    rows = table(README, "what", *HEADS)
    assert len(rows) > 10
    for name, *cells in rows:
        for cell, whole in zip(cells, page[name], strict=True):
            assert re.match(rf"{re.escape(cell)}(?!\w)", whole), name


def test_the_table_of_examples_has_each_of_them() -> None:
    named = [link for cell, _ in table(README, "file", "what it shows") for link in re.findall("<(.+)>", cell)]
    assert sorted(named) == sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("examples/*.py"))


def test_every_link_and_file_of_the_readme_is_there() -> None:
    links = [*re.findall(r"<([^<>\s]+)>`_", TEXT), *re.findall(r"^\.\. (?:image|figure):: (\S+)", TEXT, re.MULTILINE)]
    files = [
        one for one in LITERALS if re.fullmatch(r"(docs|examples|benchmarks|tests)/(?!_build/)\S*|\w+\.(rst|md)", one)
    ]
    assert len(links) > 2
    assert [one for one in links + files if not urlsplit(one).scheme and not (ROOT / one).exists()] == []
