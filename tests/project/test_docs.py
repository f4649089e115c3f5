"""What the documents say is what the code does."""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import runpy
from dataclasses import fields, is_dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from aiohttp import WSMsgType, WSServerHandshakeError

import aiohttp_store
from aiohttp_store import Storage, StorageURL
from aiohttp_store._engine.lifetimes import IDLE_TIMEOUT, PROLONG_AFTER
from aiohttp_store._engine.manager import StorageSessionManager
from aiohttp_store._engine.merge import merge
from aiohttp_store._engine.sealing import MAX_INFLATED
from aiohttp_store._engine.state import SessionState
from aiohttp_store._lifecycle.middleware import RETRY_AFTER
from aiohttp_store._lifecycle.request_state import MANAGER
from aiohttp_store.codec import MAX_DEPTH
from aiohttp_store.cookie import MAX_AGE, MAX_LOOKED_AT, MAX_REMEMBERED, MAX_REMEMBERED_SIZE, MAX_SIZE
from aiohttp_store.storages import _EXTRAS, SCHEMES
from aiohttp_store.storages._mongodb_url import URLOptions, settings_beside
from aiohttp_store.storages.memory import MemoryOptions, MemoryStorage

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
        assert shown == "left to the app" or {*re.findall(r"``(.+?)``", shown)} <= known, demand
        assert shown


def test_the_page_names_tests_that_exist() -> None:
    """Also outside of its table."""
    assert {*re.findall(r"``(test_\w+)``", SECURITY.read_text())} <= names_of_tests()


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
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["Strict-Transport-Security"].startswith("max-age=31536000")
    async with client.ws_connect("/chat", headers={"Cookie": cookie}) as socket:
        await socket.send_str("hello")
        assert await socket.receive_str() == "ann: hello"
        async with client.post("/logout", headers={"Cookie": cookie}, allow_redirects=False) as response:
            assert response.headers["Set-Cookie"].startswith("__Host-session=; Path=/; Max-Age=0")
            assert response.headers["Clear-Site-Data"] == '"cache", "storage"'
        await socket.send_str("still there?")
        assert (await socket.receive()).type is WSMsgType.CLOSE
    async with client.get("/account", headers={"Cookie": cookie}) as response:
        assert response.status == 403
        assert "Strict-Transport-Security" in response.headers


@pytest.mark.parametrize(
    ("sent", "is_ours"),
    [
        ({}, True),  # a program
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, True),  # from a page with Referrer-Policy: no-referrer
        ({"Origin": "{ours}"}, True),  # an old browser
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "{ours}"}, False),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://evil.shop.example"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "{ours}.evil.example"}, False),
        ({"Origin": "https{ours_without_scheme}"}, False),
        ({"Origin": "null"}, False),  # a sandboxed frame
    ],
)
async def test_the_hardened_set_up_refuses_what_another_site_sends(
    sent: dict[str, str], is_ours: bool, servers: Servers, aiohttp_client: AiohttpClient
) -> None:
    made: dict[str, Any] = {}
    exec(redirected(python_of(SECURITY), {"redis": servers.url("redis")}), made)
    client = await aiohttp_client(made["app"])
    ours = f"http://{client.host}:{client.port}"
    headers = {
        name: value.format(ours=ours, ours_without_scheme=ours.removeprefix("http")) for name, value in sent.items()
    }
    form = {"user": "ann", "password": "correct horse"}
    async with client.post("/login", data=form, headers=headers, allow_redirects=False) as response:
        assert (response.status, "Set-Cookie" in response.headers) == ((303, True) if is_ours else (403, False))
    async with client.post("/login", data=form, allow_redirects=False) as response:
        cookie = response.headers["Set-Cookie"].partition(";")[0]
    async with client.get("/account", headers={"Cookie": cookie, **headers}) as response:
        assert response.status == 200  # which changes nothing, and its answer is not for another site's scripts
    if is_ours:
        async with client.ws_connect("/chat", headers={"Cookie": cookie, **headers}) as socket:
            await socket.send_str("hello")
            assert await socket.receive_str() == "ann: hello"
    else:
        with pytest.raises(WSServerHandshakeError, match="403"):
            await client.ws_connect("/chat", headers={"Cookie": cookie, **headers})


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
                    "_sqlite_connections.py",
                    "_sweeping.py",
                }, path


SESSION, CONCURRENCY, SECURE = (
    " ".join(PAGES[f"docs/{page}.rst"].read_text().split()) for page in ("session", "concurrency", "security")
)


def test_each_row_of_the_merge_table_is_what_comes_of_it() -> None:
    rows = table(PAGES["docs/concurrency.rst"], "", "both loaded", "this request has", "stored meanwhile", "the result")
    assert len(rows) == 16
    for what, *values in rows:
        base, mine, theirs, result = (ast.literal_eval(value.strip("`")) for value in values)
        assert json.dumps(merge(base, mine, theirs), sort_keys=True) == json.dumps(result, sort_keys=True), what


@pytest.mark.parametrize(
    ("page", "said", "value", "meant"),
    [
        (SECURE, "``memory://`` holds 100,000 sessions", MemoryOptions().max_sessions, 100_000),
        (SECURE, "The ``Cookie`` headers of 2048 visitors, none above 2 KB", MAX_REMEMBERED, 2048),
        (SECURE, "none above 2 KB", MAX_REMEMBERED_SIZE, 2 << 10),
        (SECURE, "64 KB, with ``compress`` as well", MAX_INFLATED, 64 << 10),
        (SESSION, "unless over a twentieth of the idle timeout has passed", PROLONG_AFTER, 1 / 20),
        (SESSION, "that long: a day, unless", IDLE_TIMEOUT, 24 * 3600),
        (SESSION, "keep none longer than 400 days", MAX_AGE, 400 * 24 * 3600),
        (SESSION, "at most 254 levels deep", MAX_DEPTH, 254),
        (SESSION, "holds at most 4096 bytes, with its name", MAX_SIZE, 4096),
        (SESSION, "its ``timeout`` (2 seconds)", Storage.timeout, 2),
        (SESSION, "``Retry-After: 1``", RETRY_AFTER, 1),
        (SESSION, "Up to 4 different ones that have the form of ours", MAX_LOOKED_AT, 4),
        (CONCURRENCY, "one ``timeout`` of the storage (2 seconds)", Storage.timeout, 2),
    ],
)
def test_the_numbers_in_the_pages_are_the_codes(page: str, said: str, value: float, meant: float) -> None:
    assert said in page
    assert value == meant


# Tables that are generated.

TABLES = runpy.run_path(str(ROOT / "docs/tables.py"))


def test_the_generated_tables_are_as_the_code_has_them() -> None:
    stale = [name for name, page in PAGES.items() if TABLES["generated"](page.read_text()) != page.read_text()]
    assert stale == [], "run `make tables`"


def test_each_generated_table_has_one_place() -> None:
    places = [name for page in PAGES.values() for name in TABLES["PLACE"].findall(page.read_text())]
    assert sorted(places) == sorted(TABLES["TABLES"])


def test_the_parameters_of_every_storage_have_a_table() -> None:
    documented = {base for declared in chain(*TABLES["PARAMETERS"].values()) for base in declared.__mro__}
    for path in (PACKAGE / "storages").glob("*.py"):
        for name, found in vars(import_module(f"aiohttp_store.storages.{path.stem}")).items():
            assert not (is_dataclass(found) and name.endswith("Options")) or found in documented, f"{name} in {path}"


@pytest.mark.parametrize("declared", [*chain(*TABLES["PARAMETERS"].values())])
def test_a_default_may_be_written_in_a_url_as_the_table_shows_it(declared: type[Any]) -> None:
    shown = {option.name: TABLES["default_in_url"](option.default).strip("`") for option in fields(declared)}
    query = urlencode({name: default for name, default in shown.items() if default != "none"})
    assert StorageURL.parse(f"any://?{query}").options(declared) == declared()


# The page on storages.

HEADINGS = ["URL", "Parameters", "What it guarantees", "What it cannot", "What to set on the server", "In Python"]


def test_the_sections_on_storages_have_the_same_headings_in_the_same_order() -> None:
    storages = dict(re.findall(r"^\.\. _(storage-[a-z-]+):\n((?:(?!\.\. _).*\n)*)", STORAGES, re.MULTILINE))
    assert len(storages) > 8
    for label, text in storages.items():
        headings = re.findall(r"^(.+)\n-+$", text, re.MULTILINE)
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
    settings = {
        name: "timeout" if value == 7000 else str(value)
        for name, value in settings_beside({}, URLOptions(timeout=7)).items()
    }
    assert told == {name: value.replace("True", "true") for name, value in settings.items()}
