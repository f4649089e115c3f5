"""What the documents say is what the code does."""

from __future__ import annotations

import ast
import base64
import json
import math
import os
import re
import typing
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest

import aiohttp_store
from aiohttp_store import Cookie, Storage, StorageURL
from aiohttp_store._engine import cookie_manager
from aiohttp_store._engine.lifetimes import IDLE_TIMEOUT, PROLONG_AFTER
from aiohttp_store._engine.manager import StorageSessionManager
from aiohttp_store._engine.merge import merge
from aiohttp_store._engine.state import SessionState
from aiohttp_store._lifecycle.middleware import RETRY_AFTER
from aiohttp_store._lifecycle.request_state import MANAGER
from aiohttp_store._log import THROTTLE
from aiohttp_store.codec import MAX_DEPTH
from aiohttp_store.cookie import MAX_AGE, MAX_LOOKED_AT, MAX_SIZE, MIN_SECRET
from aiohttp_store.storages import _EXTRAS, SCHEMES, memcached, memory, mongodb, mysql, redis, sqlite
from aiohttp_store.storages.memory import MemoryStorage

from ..conftest import AiohttpClient, Servers
from ..support.pages import PAGES, ROOT, python_of, redirected, table
from .test_readme import extra_of

PACKAGE = Path(aiohttp_store.__file__).parent  # which is installed where the tests are those of the sdist
SECURITY = PAGES["docs/security.rst"]
STORAGES = PAGES["docs/storages.rst"].read_text()


def names_of_tests() -> set[str]:
    return {
        node.name
        for path in [*(ROOT / "tests").rglob("test_*.py"), PACKAGE / "testing/contract.py"]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_each_demand_of_the_security_page_has_a_test_or_is_left_to_the_app() -> None:
    known, rows = names_of_tests(), table(SECURITY, "demand", "what this package does", "test")
    assert len(rows) > 40
    for demand, answer, shown in rows:
        assert demand
        assert answer
        assert shown == "left to the app" or shown.strip("`") in known, demand


def test_the_documented_defaults_are_the_codes() -> None:
    documented: dict[str, str] = dict(table(SECURITY, "setting", "default"))
    manager = StorageSessionManager(MemoryStorage())
    assert documented["``idle_timeout``"] == f"{manager.lifetimes.idle_timeout:.0f} seconds"
    assert documented["``lifetime``"] == (
        "none" if manager.lifetimes.lifetime == math.inf else manager.lifetimes.lifetime
    )
    assert documented["least bytes of a secret"] == str(MIN_SECRET)
    assert documented["cookies of our name that are tried in one request"] == str(MAX_LOOKED_AT)
    assert documented["longest time that a browser keeps a cookie"] == f"{MAX_AGE} seconds"
    default = Cookie().header("…", secure=True, max_age=None)
    assert documented["cookie"] == f"``{default}`` (on https)"


async def test_the_hardened_set_up_is_what_the_page_says(servers: Servers, aiohttp_client: AiohttpClient) -> None:
    made: dict[str, Any] = {}
    exec(redirected(python_of(SECURITY), {"redis": servers.url("redis")}), made)
    manager = made["app"][MANAGER]
    assert (manager.lifetimes.idle_timeout, manager.lifetimes.lifetime) == (15 * 60, 12 * 3600)
    client = await aiohttp_client(made["app"])
    async with client.post("/login", data={"user": "ann", "password": "wröng"}) as response:
        assert response.status == 403
    form = {"user": "ann", "password": "correct horse"}
    async with client.post("/login", data=form, allow_redirects=False) as response:
        cookie, _, attributes = response.headers["Set-Cookie"].partition("; ")
    assert re.fullmatch(r"__Host-session=[\w-]{43}\.[\w-]+", cookie)
    assert attributes == "Path=/; Secure; HttpOnly; SameSite=Strict"
    async with client.get("/account", headers={"Cookie": cookie}) as response:
        assert await response.json() == {"user": "ann"}
    async with client.post("/logout", headers={"Cookie": cookie}, allow_redirects=False) as response:
        assert response.headers["Set-Cookie"].startswith("__Host-session=; Path=/; Max-Age=0")
    async with client.get("/account", headers={"Cookie": cookie}) as response:
        assert response.status == 403


async def test_ids_have_256_bits_from_the_systems_random_source(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def token_bytes(size: int) -> bytes:
        drawn.append(os.urandom(size))
        return drawn[-1]

    monkeypatch.setattr("secrets.token_bytes", token_bytes)  # what token_urlsafe encodes
    ids = []
    for _ in range(100):
        session = aiohttp_store.Session(SessionState(StorageSessionManager(MemoryStorage()), {"a": 1}, None))
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
                    "_sweeping.py",
                }, path


SESSION, CONCURRENCY = (" ".join(PAGES[f"docs/{page}.rst"].read_text().split()) for page in ("session", "concurrency"))


def test_each_row_of_the_merge_table_is_what_comes_of_it() -> None:
    rows = table(PAGES["docs/concurrency.rst"], "", "both loaded", "this request has", "stored meanwhile", "the result")
    assert len(rows) == 16
    for what, *values in rows:
        base, mine, theirs, result = (ast.literal_eval(value.strip("`")) for value in values)
        assert json.dumps(merge(base, mine, theirs), sort_keys=True) == json.dumps(result, sort_keys=True), what


def logged() -> dict[str, tuple[str, str]]:
    """Give what the package logs, apart from single storages and aiohttp-session's: at which level, and how often."""
    found = {}
    for path in [one for one in PACKAGE.rglob("*.py") if one.parent.name not in ("storages", "compat", "_takeover")]:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        named = {
            target.id: node.value
            for node in nodes
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in nodes:
            if not isinstance(node, ast.Call):
                continue
            match node.func, node.args:
                case ast.Name("log_once" | "log_throttled" as way), [ast.Attribute(_, level), message, *_]:
                    often = {"log_once": "once", "log_throttled": "once a minute"}[way]
                case ast.Attribute(ast.Name("logger"), level), [message, *_]:
                    often = "each time"
                case _:
                    continue
            if isinstance(message, ast.Name):
                message = named[message.id]
            found[ast.literal_eval(message)] = level, often
    return found


def test_the_log_table_names_each_warning_with_its_level_and_how_often_it_comes() -> None:
    documented = [
        (text, level, often)
        for level, what, often in table(PAGES["docs/session.rst"], "level", "what", "how often")
        for text in re.findall("``(.+?)``", what)
        if text != "cookie://"
    ]
    known = logged()
    for text, *said in documented:
        assert said in [list(kind) for message, kind in known.items() if message.startswith(text)], text
    for message, (level, _) in known.items():
        assert level != "warning" or any(message.startswith(text) for text, *_ in documented), message


@pytest.mark.parametrize(
    ("page", "said", "value", "meant"),
    [
        (SESSION, "unless over a twentieth of the idle timeout has passed", PROLONG_AFTER, 1 / 20),
        (SESSION, "that long: a day, unless", IDLE_TIMEOUT, 24 * 3600),
        (SESSION, "keep none longer than 400 days", MAX_AGE, 400 * 24 * 3600),
        (SESSION, "at most 254 levels deep", MAX_DEPTH, 254),
        (SESSION, "holds at most 4096 bytes, with its name", MAX_SIZE, 4096),
        (SESSION, "its ``timeout`` (2 seconds)", Storage.timeout, 2),
        (SESSION, "``Retry-After: 1``", RETRY_AFTER, 1),
        (SESSION, "Up to 4 that have the form of ours", MAX_LOOKED_AT, 4),
        (SESSION, "- once a minute", THROTTLE, 60),
        (CONCURRENCY, "one ``timeout`` of the storage (2 seconds)", Storage.timeout, 2),
    ],
)
def test_the_numbers_in_the_pages_are_the_codes(page: str, said: str, value: float, meant: float) -> None:
    assert said in page
    assert value == meant


# The page on storages.

OPTIONS: dict[str, tuple[type[Any], ...]] = {
    "storage-memory": (memory.Options,),
    "storage-sqlite": (sqlite.Options,),
    "storage-cookie": (cookie_manager.CookieOptions,),
    "storage-redis": (redis.TCPOptions, redis.UnixOptions),
    "storage-redis-sentinel": (redis.SentinelOptions,),
    "storage-redis-cluster": (redis.Options,),
    "storage-memcached": (memcached.Options,),
    "storage-mongodb": (mongodb.Options,),
    "storage-mysql": (mysql.Options,),
}
KINDS = {bool: {"true/false"}, int: {"whole number"}, float: {"seconds"}, str: {"text", "path"}}
HEADINGS = ["URL", "Parameters", "What it guarantees", "What it cannot", "What to set on the server", "In Python"]


class Row(NamedTuple):
    kind: str
    default: str
    meaning: str


def section(label: str) -> str:
    return STORAGES.partition(f"\n.. _{label}:\n")[2].partition("\n.. _")[0]


def rows_of(text: str) -> dict[str, Row]:
    kinds = "|".join(set().union(*KINDS.values()))
    rows = re.findall(rf"^``(\w+)``  +({kinds})  +(\S.*?)  +(\S.*)$", text, re.MULTILINE)
    named = {name: Row(*cells) for name, *cells in rows}
    assert len(named) == len(rows)
    return named


def documented(label: str) -> dict[str, Row]:
    """Give the parameters that a section names, in its own table and in those that it refers to."""
    text = section(label).partition("\nParameters\n")[2].partition("\nWhat it guarantees\n")[0]
    rows = rows_of(text)
    for other in re.findall(r":ref:`(?:[^<`]+<)?([a-z-]+)>?`", text):
        for name, row in rows_of(section(other)).items():
            only = re.search(r"of ``(.+?://)`` only", row.meaning)
            if only is None or only[1] in section(label):
                rows[name] = row
    return rows


@pytest.mark.parametrize("label", OPTIONS)
def test_the_documented_parameters_of_a_storage_are_the_codes(label: str) -> None:
    rows = documented(label)
    assert set(rows) == {option.name for declared in OPTIONS[label] for option in fields(declared)}
    for declared in OPTIONS[label]:
        hints = typing.get_type_hints(declared)
        for option in fields(declared):
            row = rows[option.name]
            (kind,) = {*(typing.get_args(hints[option.name]) or (hints[option.name],))} - {NoneType}
            assert row.kind in KINDS[kind], option.name
            assert (row.default == "none") is (option.default is None), option.name
        given = {option.name: rows[option.name].default.strip("`") for option in fields(declared)}
        query = urlencode({name: default for name, default in given.items() if default != "none"})
        assert StorageURL.parse(f"any://?{query}").options(declared) == declared()


def test_the_sections_on_storages_have_the_same_headings_in_the_same_order() -> None:
    assert re.findall(r"\.\. _(storage-[a-z-]+):", STORAGES) == [*OPTIONS]
    for label in OPTIONS:
        headings = re.findall(r"^(.+)\n-+$", section(label), re.MULTILINE)
        assert headings == [heading for heading in HEADINGS if heading in headings], label
        assert {"URL", "Parameters", "What it guarantees", "What it cannot"} <= {*headings}, label


def test_the_page_names_every_scheme_with_its_driver_and_extra() -> None:
    schemes = set()
    heads = ("server", "serves", "outlives a restart", "a crash may lose", "a logout is final", "extra: driver")
    for storage, *_, needed in table(PAGES["docs/storages.rst"], "storage", *heads):
        named = {*re.findall(r"([a-z+]+)://", storage)}
        extra, _, drivers = needed.removeprefix("none").partition(": ")
        assert {*map(extra_of, named)} == {extra.strip("`")}
        assert not extra or {_EXTRAS[name] for name in drivers.split(" or ")} == {extra.strip("`")}
        schemes |= named
    ours = {scheme for scheme, target in SCHEMES.items() if str(target).startswith("aiohttp_store.")}
    assert schemes == ours  # and not those that a test has registered


def test_what_mongodbs_driver_is_told_is_documented() -> None:
    rows = table(PAGES["docs/storages.rst"], "parameter of MongoDB", "set to", "why")
    told = {name.strip("`"): value.strip("`") for name, value, _ in rows}
    options = mongodb.Options(timeout=7)
    settings = {
        name: "timeout" if value == 7000 else str(value) for name, value in mongodb._settings({}, options).items()
    }
    assert told == {name: value.replace("True", "true") for name, value in settings.items()}
