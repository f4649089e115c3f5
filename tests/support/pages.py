"""The documents: the blocks of code on a page, and a process of its own in which all Python of a page runs.

python -m tests.support.pages docs/session.rst redis=redis://127.0.0.1:7000/0
"""

from __future__ import annotations

import ast
import asyncio
import re
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web_urldispatcher import PlainResource

ROOT = Path(__file__).parents[2]
PAGES = {str(page.relative_to(ROOT)): page for page in sorted([*ROOT.glob("*.rst"), *ROOT.glob("docs/**/*.rst")])}
"""Every page there is, by its path in the repository."""

SERVERS = {
    "redis": "redis",
    "valkey": "redis",
    "redis+cluster": "redis_cluster",
    "memcached": "memcached",
    "mongodb": "mongodb",
    "mongodb+pymongo": "mongodb",
    "mysql": "mysql",
    "mariadb": "mysql",
    "postgresql": "postgresql",
}
"""Which of the tests' servers stands for the server of a URL on a page."""

_BLOCK = re.compile(r"^( *)\.\. code-block:: (\w+)\n((?:\1   :.*\n)*)((?:\1   .*\n| *\n)+)", re.MULTILINE)
_TABLE = re.compile(r"^(=+(?: +=+)+)\n(.+)\n\1\n((?:.*\n)+?)\1$", re.MULTILINE)
_LIST_TABLE = re.compile(r"^\.\. list-table::.*\n(?:   :.*\n)*\n((?:   .*\n|\n)+)", re.MULTILINE)
_ADDRESS = re.compile(r"""(?<=["'])(?P<scheme>[a-z+]+)://[^?"']*""")


class Block(NamedTuple):
    """The content of a `code-block`."""

    line: int
    """Of the page, where the code begins."""
    file: str
    """Its caption: the name of the file that a reader makes of it; empty where there is none."""
    code: str


def blocks(page: Path, language: str) -> list[Block]:
    """Give the blocks of a page in this language, in order."""
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        if match[2] == language:
            caption = re.search(r":caption: (.+)", match[3])
            code = textwrap.dedent(match[4])
            line = text.count("\n", 0, match.start(4)) + 1 + len(code) - len(code.lstrip("\n"))
            found.append(Block(line, caption[1] if caption else "", code.strip("\n") + "\n"))
    return found


def python_of(page: Path) -> str:
    """Give the Python of a page, two blank lines between its blocks."""
    return "\n\n".join(block.code for block in blocks(page, "python"))


def _tables(text: str) -> Iterator[list[list[str]]]:
    """Give the rows of each table, the heads first."""
    for border, first, rest in _TABLE.findall(text):
        edges = [column.start() for column in re.finditer("=+", border)]
        parts = [slice(*ends) for ends in zip(edges, [*edges[1:], None], strict=True)]
        rows: list[list[str]] = []
        for line in ([line[part].strip() for part in parts] for line in [first, *rest.splitlines()]):
            if line[0]:
                rows.append(line)
            else:  # goes on with the row above
                rows[-1] = [f"{cell} {more}".strip() for cell, more in zip(rows[-1], line, strict=True)]
        yield rows
    for listed in _LIST_TABLE.findall(text):
        lines = re.split(r"^   \* -", listed, flags=re.MULTILINE)[1:]
        yield [[" ".join(cell.split()) for cell in re.split(r"^     -", line, flags=re.MULTILINE)] for line in lines]


def table(page: Path, *heads: str) -> list[list[str]]:
    """Give the rows of a page's tables that have these heads, simple ones and `list-table`s.

    Raises:
        LookupError: there is none.
    """
    if found := [rows for head, *rows in _tables(page.read_text()) if head == [*heads]]:
        return [row for rows in found for row in rows]
    raise LookupError(f"{page} has no table with the heads {', '.join(heads)}")


def schemes_of(page: Path) -> set[str]:
    """Give the schemes of the URLs in a page's Python that name a server."""
    return {match["scheme"] for match in _ADDRESS.finditer(python_of(page)) if match["scheme"] in SERVERS}


def redirected(code: str, urls: dict[str, str]) -> str:
    """Put the tests' servers, by the scheme, in the place of those that the code names."""

    def address(match: re.Match[str]) -> str:
        scheme = match["scheme"]
        return f"{scheme}://{urls[scheme].partition('://')[2]}" if scheme in urls else match[0]

    return _ADDRESS.sub(address, code)


async def execute(page: Path, urls: dict[str, str]) -> None:
    """Run the Python of a page block by block, write those that are files, and serve each `app` that they make."""
    module = types.ModuleType("page")
    sys.modules["page"] = module  # where classes on the page are looked up
    names = vars(module)
    apps: list[web.Application] = []
    for line, file, text in blocks(page, "python"):
        source = redirected(text, urls)
        if file:
            Path(file).write_text(source)
        code = compile("\n" * (line - 1) + source, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        waiting = eval(code, names)
        if waiting is not None:
            await waiting
        app = names.get("app")
        if isinstance(app, web.Application) and not any(app is one for one in apps):
            apps.append(app)
    for app in apps:
        await visit(app)


async def visit(app: web.Application) -> None:
    """Serve the app, and get each of its pages that has no parameter."""
    async with TestClient(TestServer(app)) as client:
        for route in app.router.routes():
            if route.method in ("GET", "*") and isinstance(route.resource, PlainResource):
                path = route.resource.canonical
                async with client.get(path, allow_redirects=False) as response:
                    if response.status >= 500:
                        raise AssertionError(f"GET {path} was answered {response.status}")


if __name__ == "__main__":
    replaced: Any = [argument.partition("=")[::2] for argument in sys.argv[2:]]
    asyncio.run(execute(Path(sys.argv[1]), dict(replaced)))
