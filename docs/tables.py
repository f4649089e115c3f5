"""Tables of the documents that are made from the code: `make tables` writes them between two comments of a page.

`.. begin generated: NAME` says which table stands there, and `.. end generated` where it ends.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any

import aiohttp_store
from aiohttp_store import Cookie
from aiohttp_store._engine import cookie_manager
from aiohttp_store._engine.manager import StorageSessionManager
from aiohttp_store._log import THROTTLE
from aiohttp_store._takeover.legacy import LegacyOptions
from aiohttp_store.cookie import MAX_AGE, MAX_LOOKED_AT, MIN_SECRET
from aiohttp_store.storages import _mongodb_url, _redis_url, memcached, memory, mysql, sqlite

ROOT = Path(__file__).parents[1]
PACKAGE = Path(aiohttp_store.__file__).parent
PAGES = sorted([*ROOT.glob("*.rst"), *ROOT.glob("docs/*.rst")])
WIDTH = 120

Row = tuple[str, ...]


# Parameters of the storages.

PARAMETERS: dict[str, tuple[type[Any], ...]] = {
    "memory": (memory.MemoryOptions,),
    "sqlite": (sqlite.SQLiteOptions,),
    "cookie": (cookie_manager.CookieOptions,),
    "redis": (_redis_url.RedisClusterOptions, _redis_url.TCPOptions, _redis_url.UnixOptions),
    "redis-sentinel": (_redis_url.SentinelOptions,),
    "memcached": (memcached.MemcachedURLOptions,),
    "mongodb": (_mongodb_url.URLOptions,),
    "mysql": (mysql.MySQLURLOptions,),
    "migrate": (LegacyOptions,),
}
"""The dataclasses of each table. A table leaves out what is inherited from a class that has a table of its own."""

KINDS = {bool: "true/false", int: "whole number", float: "seconds", str: "text"}


def parameters(table: str) -> list[Row]:
    """Return the fields of the dataclasses, with their attribute docstrings as their meaning."""
    bases = {base for declared in PARAMETERS[table] for base in declared.__mro__[1:]}
    others = itertools.chain(*PARAMETERS.values())
    elsewhere = {field.name for other in others if other in bases for field in fields(other)}
    rows = {}
    for declared in PARAMETERS[table]:
        hints, meanings = typing.get_type_hints(declared), attribute_docstrings(declared)
        defaults = {field.name: field.default for field in fields(declared) if field.name not in elsewhere}
        if missing := defaults.keys() - meanings.keys():
            raise LookupError(f"{declared.__qualname__} has no docstring for {', '.join(sorted(missing))}")
        for name in [name for name in meanings if name in defaults]:
            (kind,) = {*(typing.get_args(hints[name]) or (hints[name],))} - {NoneType}
            rows[name] = literal(name), KINDS[kind], default_in_url(defaults[name]), meanings[name]
    return [("parameter", "type", "default", "meaning"), *rows.values()]


def attribute_docstrings(declared: type) -> dict[str, str]:
    """Return the first paragraph of each attribute docstring of a class, followed by those that it inherits."""
    found: dict[str, str] = {}
    for base in declared.__mro__[:-1]:
        (definition,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(definition, ast.ClassDef)
        for attribute, text in itertools.pairwise(definition.body):
            match attribute, text:
                case ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(words))):
                    found.setdefault(name, first_paragraph(words))
    return found


def default_in_url(value: object) -> str:
    """Return a default as one would write it in a URL."""
    match value:
        case None:
            return "none"
        case bool():
            return literal(str(value).lower())
        case float():
            return literal(f"{value:g}")
    return literal(str(value))


# Messages in the log.

LEVELS = ("critical", "error", "exception", "warning", "info", "debug")
HOW_OFTEN = {"log_once": "once", "log_throttled": f"once in {THROTTLE:g} s"}


def log_messages() -> list[Row]:
    """Return what the package logs, read from the calls in its source."""
    found = {row for path in PACKAGE.rglob("*.py") for row in logged_by(ast.parse(path.read_text()))}
    ordered = sorted(found, key=lambda row: (LEVELS.index(row[0]), row[-1].lower()))
    return [("level", "how often", "message"), *ordered]


def logged_by(module: ast.Module) -> Iterator[Row]:
    """Yield a row for each call of `log_once`, `log_throttled` or a method of the logger."""
    nodes = list(ast.walk(module))
    for node in nodes:
        match node:
            case ast.Call(ast.Name("log_once" | "log_throttled" as way), [ast.Attribute(_, level), message, *_]):
                yield level, HOW_OFTEN[way], shown(message, nodes)
            case ast.Call(ast.Attribute(ast.Name(), level), [message, *_]) if level in LEVELS:  # by whatever name
                yield level, "each time", shown(message, nodes)


def shown(message: ast.expr, nodes: list[ast.AST]) -> str:
    """Return a message with `…` for each of its values; of a variable, what was assigned to it last before the call."""
    if isinstance(message, ast.Name):
        assigned = {
            node.lineno: node.value
            for node in nodes
            if isinstance(node, ast.Assign) and node.lineno < message.lineno
            if [ast.unparse(target) for target in node.targets] == [message.id]
        }
        message = assigned[max(assigned)]
    return literal(re.sub(r"%[a-z]", "…", ast.literal_eval(message)))


# Where a line belongs.

LAYERS = (
    ("errors.py", "_log.py"),
    ("_foreign_words.py", "_keywords.py", "_opened.py"),
    ("url.py", "_caching.py", "cookie.py", "codec.py"),
    ("storage.py",),
    ("_takeover/legacy.py",),
    ("storages/",),
    ("_engine/merge.py", "_engine/state.py", "session.py"),
    ("_engine/",),
    ("_takeover/",),
    ("_lifecycle/",),
    ("compat/",),
    ("__init__.py",),
    ("testing/",),
)
"""A file imports only what stands in its own row or above, which a test checks; a folder stands for its other files."""


def layers() -> list[Row]:
    """Return each row of `LAYERS` with the first sentences of the docstrings."""
    rows = [(", ".join(map(literal, names)), " ".join(map(purpose, names))) for names in LAYERS]
    return [("file or folder", "what it holds"), *rows]


def purpose(name: str) -> str:
    """Return the first sentence of a module's or package's docstring."""
    path = PACKAGE / name
    words = ast.get_docstring(ast.parse((path / "__init__.py" if path.is_dir() else path).read_text()))
    if not words:
        raise LookupError(f"{name} has no docstring, which says what it holds")
    return re.split(r"(?<=\.)\s", first_paragraph(words))[0]


# Defaults that matter for security.


def security_defaults() -> list[Row]:
    """Return what holds where `setup` is told nothing else."""
    signature = inspect.signature(StorageSessionManager).parameters
    lifetime = signature["lifetime"].default
    return [
        ("setting", "default"),
        ("``idle_timeout``", f"{signature['idle_timeout'].default:.0f} seconds"),
        ("``lifetime``", "none" if lifetime is None else f"{lifetime:.0f} seconds"),
        ("bits of an id", "256"),  # a test counts them
        ("least bytes of a secret", f"{MIN_SECRET}"),
        ("different cookies of our name in one request, at most", f"{MAX_LOOKED_AT}"),
        ("longest time that a browser keeps a cookie", f"{MAX_AGE} seconds"),
        ("cookie, on https", literal(Cookie().header("…", secure=True, max_age=None))),
    ]


# Tables in pages.

TABLES: dict[str, Callable[[], list[Row]]] = {
    **{f"parameters {table}": partial(parameters, table) for table in PARAMETERS},
    "log messages": log_messages,
    "layers": layers,
    "security defaults": security_defaults,
}
PLACE = re.compile(r"^\.\. begin generated: (.+)\n(?:.*\n)*?\.\. end generated$", re.MULTILINE)


def first_paragraph(docstring: str) -> str:
    """Return it on one line, as reStructuredText of a page."""
    return re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", " ".join(docstring.partition("\n\n")[0].split()))


def literal(text: str) -> str:
    """Return text that a page shows as code."""
    return f"``{text}``"


def simple_table(rows: list[Row]) -> str:
    """Lay out a table whose last column is wrapped, the heads first."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    room = WIDTH - sum(width + 2 for width in widths)
    lines = []
    for *cells, last in rows:
        wrapped = textwrap.wrap(last, room, break_long_words=False, break_on_hyphens=False)
        for line, text in zip(itertools.chain([cells], itertools.repeat([""] * len(cells))), wrapped, strict=False):
            lines.append("  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=True)), text]))
    border = "  ".join("=" * width for width in [*widths, max(map(len, lines)) - sum(width + 2 for width in widths)])
    return "\n".join([border, lines[0], border, *lines[1:], border])


def generated(page: str) -> str:
    """Return the text of a page with its tables made anew."""

    def made(place: re.Match[str]) -> str:
        if place[1] not in TABLES:
            raise LookupError(f"there is no table {place[1]!r}; known: {', '.join(TABLES)}")
        return f".. begin generated: {place[1]}\n\n{simple_table(TABLES[place[1]]())}\n\n.. end generated"

    return PLACE.sub(made, page)


def main() -> None:
    """Write the tables into the pages, and print the names of those that changed."""
    for page in PAGES:
        before = page.read_text()
        after = generated(before)
        if after != before:
            page.write_text(after)
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
