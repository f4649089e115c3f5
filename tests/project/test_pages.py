"""The documents build without a warning and a dead link, and what they show runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest

import aiohttp_store
import aiohttp_store.compat
import aiohttp_store.testing

from ..conftest import AiohttpClient, Servers
from ..support.pages import PAGES, ROOT, SERVERS, blocks, python_of, redirected, schemes_of

SETUP = (ROOT / "setup.py").read_text()
EXTRAS = set(re.findall(r'^        "(\w+)": ', SETUP.partition("extras_require={")[2].partition("},")[0], re.MULTILINE))
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

PYTEST = ["-m", "pytest", "-W", "error", "-p", "no:cacheprovider"]


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, on this package."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, env=environment)


class Document(HTMLParser):
    """What a built page has: places to link to, links and files that it shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.places.add(value)
            elif name in ("href", "src", "data") and value:
                self.links.add(value)


class Built(NamedTuple):
    folder: Path
    documents: dict[Path, Document]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("documents").resolve()
    command = ["-m", "sphinx", "-n", "-W", "--keep-going", "--quiet", "-d", str(folder / "doctrees")]
    done = run([*command, str(ROOT / "docs"), str(folder / "html")], folder)
    assert (done.returncode, done.stderr) == (0, "")
    pages = (folder / "html").rglob("*.html")
    return Built(folder / "html", {page: Document(page.read_text()) for page in pages})


def test_the_documents_build_without_a_warning_and_each_page_is_reached_from_the_first(built: Built) -> None:
    reached = {built.folder / urlsplit(link).path for link in built.documents[built.folder / "index.html"].links}
    sources = [page.relative_to(ROOT / "docs") for page in PAGES.values() if page.is_relative_to(ROOT / "docs")]
    pages = {built.folder / page.with_suffix(".html") for page in sources}
    assert len(pages) > 15
    assert pages <= built.documents.keys()
    assert pages - reached <= {built.folder / "index.html"}
    # Furo has one beside the page, and shows an error in the place of this one.
    assert [page.name for page in pages if 'class="contents' in page.read_text()] == [], "leave out `contents::`"


def test_no_link_within_the_documents_is_dead_and_all_images_are_there(built: Built) -> None:
    dead = []
    for page, document in built.documents.items():
        for link in document.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            places = built.documents[target].places if target in built.documents else {parts.fragment}
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in places):
                dead.append(f"{page.name}: {link}")
    assert dead == []


def test_the_reference_has_every_public_name_and_no_docstring_is_cut_at_its_colon(built: Built) -> None:
    places = built.documents[built.folder / "api.html"].places
    modules = (aiohttp_store, aiohttp_store.testing, aiohttp_store.compat)
    public = [f"{module.__name__}.{name}" for module in modules for name in module.__all__]
    assert len(public) > 40
    assert [name for name in public if name not in places] == []
    # An attribute's docstring that reads "this: that" is taken for one of type `this`.
    assert '>Type<span class="colon">' not in (built.folder / "api.html").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs_its_apps_serve_and_its_tests_pass(
    page: str, servers: Servers, tmp_path: Path
) -> None:
    text = PAGES[page].read_text()
    hidden = re.findall(r"^(?! *\.\.).*::$|^ *\.\. (?:code|sourcecode|parsed-literal)::.*", text, re.MULTILINE)
    assert hidden == [], "write a `code-block` with its language, so that what is Python is run"
    if not blocks(PAGES[page], "python"):
        return
    urls = {scheme: servers.url(SERVERS[scheme]) for scheme in schemes_of(PAGES[page])}
    done = run(["-W", "error", "-m", "tests.support.pages", str(PAGES[page]), *map("=".join, urls.items())], tmp_path)
    assert done.returncode == 0, done.stderr
    python = python_of(PAGES[page])
    if tests := re.findall(r"^ *(?:async )?def test_", python, re.MULTILINE):
        (tmp_path / "test_page.py").write_text(redirected(python, urls))
        options = ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"]
        done = run([*PYTEST, *options, "test_page.py"], tmp_path)
        assert f"{len(tests)} passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_commands_on_a_page_name_targets_and_extras_that_exist(page: str) -> None:
    text = PAGES[page].read_text()
    commands = [line for block in blocks(PAGES[page], "console") for line in block.code.splitlines()]
    named = [re.findall(r"\bmake (\w+)", line) for line in commands if line.startswith("$ ")]
    targets = {*re.findall(r"``(?:\S+=\S+ )*make (\w+)", text), *(target for found in named for target in found)}
    assert targets - TARGETS == set()
    extras = {name for found in re.findall(r"aiohttp_store\[([\w,]+)\]", text) for name in found.split(",")}
    assert extras - EXTRAS == set()


def test_the_tests_of_the_quick_start_pass_as_it_says(tmp_path: Path) -> None:
    page = PAGES["docs/quickstart.rst"]
    for block in [*blocks(page, "python"), *blocks(page, "ini")]:
        if block.file:
            (tmp_path / block.file).write_text(block.code)
    commands = [line for block in blocks(page, "console") for line in block.code.splitlines()]
    (command,) = (line for line in commands if line.startswith("$ pytest"))
    done = run([*PYTEST, *command.split()[2:]], tmp_path)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


async def test_the_first_response_of_the_quick_start_is_what_it_shows(aiohttp_client: AiohttpClient) -> None:
    page = PAGES["docs/quickstart.rst"]
    names: dict[str, Any] = {}
    exec(blocks(page, "python")[0].code, names)
    (shown,) = (block.code for block in blocks(page, "text") if block.code.startswith("HTTP/"))
    head, _, body = shown.partition("\n\n")
    client = await aiohttp_client(names["app"])
    async with client.get("/") as response:
        lines = [f"HTTP/1.1 {response.status} {response.reason}", *map(": ".join, response.headers.items())]
        assert await response.text() == body.strip()
    without_id = {re.sub(r"(?<=session=)[\w-]{43}", "…", line) for line in lines}
    assert {re.sub(r"(?<=session=)[\w-]+…", "…", line) for line in head.splitlines()} <= without_id
