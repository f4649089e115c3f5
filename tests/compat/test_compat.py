"""Apps, libraries and storages that were written for aiohttp-session."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import subprocess
import sys
import tarfile
import textwrap
import time
import types
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import aiohttp_session as real
import aiomcache
import pytest
from aiohttp import DummyCookieJar, WSMsgType, web
from aiohttp.test_utils import make_mocked_request
from aiohttp_session.cookie_storage import EncryptedCookieStorage as RealEncrypted
from aiohttp_session.memcached_storage import MemcachedStorage as RealMemcached
from aiohttp_session.nacl_storage import NaClCookieStorage as RealNaCl
from aiohttp_session.redis_storage import RedisStorage as RealRedis
from pymongo import AsyncMongoClient
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

import aiohttp_store
from aiohttp_store import ConfigError, SessionGone, SessionTooLarge, compat

from ..conftest import PATIENCE, AiohttpClient, Serve, Servers
from ..support.pages import ROOT
from ..support.timing import until

SDIST = ROOT / "build/tests/aiohttp_session-2.12.1.tar.gz"
GUIDE = ROOT / "docs/migrating.rst"
DEPENDENTS = re.compile(r"aiohttp_(session|security|csrf|flashbag|debugtoolbar)")

SECRET = b"32 bytes of secret, and no more!"
old_style_key = pytest.mark.filterwarnings("ignore:It is recommended to use web.(Request|App)Key")


@pytest.fixture
def alias(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stand in for aiohttp_session in this process until the end of the test."""
    for name in [name for name in sys.modules if DEPENDENTS.match(name)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("sys.meta_path", [*sys.meta_path])
    compat.install_as_aiohttp_session()
    yield
    for name in [name for name in sys.modules if DEPENDENTS.match(name)]:
        del sys.modules[name]


@pytest.fixture
async def redis(servers: Servers) -> AsyncIterator[Redis]:
    client = Redis.from_url(servers.url("redis"))
    yield client
    await client.aclose()


@pytest.fixture
async def memcached(servers: Servers) -> AsyncIterator[aiomcache.Client]:
    host, port = servers.url("memcached").partition("://")[2].split(":")
    client = aiomcache.Client(host, int(port))
    yield client
    await client.close()


# Their own tests.


def test_the_packages_own_tests_pass_but_those_that_the_guide_names(servers: Servers, tmp_path: Path) -> None:
    assert SDIST.exists(), f"{SDIST} is missing; run: make servers"
    suite = tmp_path / "theirs"
    suite.mkdir()
    with tarfile.open(SDIST) as archive:
        for member in archive.getmembers():
            source = archive.extractfile(member)
            if source is not None and re.search(r"/tests/(?!conftest)\w+\.py$", member.name):
                (suite / Path(member.name).name).write_bytes(source.read())
    (suite / "conftest.py").write_text((ROOT / "tests/compat/suite/fixtures.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    where = {name: servers.url(name) for name in ("redis", "memcached")}
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--asyncio-mode=auto"),
            *("--junitxml", "report.xml", "theirs"),
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "COMPAT_SUITE_REDIS": where["redis"],
            "COMPAT_SUITE_MEMCACHED": where["memcached"].partition("://")[2],
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    cases = list(ET.parse(tmp_path / "report.xml").iter("testcase"))
    differ = {
        f"{case.attrib['classname'].rpartition('.')[2]}.py::{case.attrib['name']}" for case in cases if len(case) > 0
    }
    section = (
        GUIDE.read_text().partition("Tests of aiohttp-session that differ\n")[2].partition("\nStorages written")[0]
    )
    named = set(re.findall(r"``(test_\w+\.py::test_\w+)``", section))
    assert differ == named, ran.stdout
    assert len(cases) == 79


# The formats, both ways.


def make_storage(kind: str, real_package: bool, redis: Redis, memcached: aiomcache.Client, **options: Any) -> Any:
    makers: dict[str, tuple[Any, Any, tuple[Any, ...]]] = {
        "simple": (real.SimpleCookieStorage, compat.SimpleCookieStorage, ()),
        "encrypted": (RealEncrypted, compat.EncryptedCookieStorage, (SECRET,)),
        "nacl": (RealNaCl, compat.NaClCookieStorage, (SECRET,)),
        "redis": (RealRedis, compat.RedisStorage, (redis,)),
        "memcached": (RealMemcached, compat.MemcachedStorage, (memcached,)),
    }
    theirs, ours, arguments = makers[kind]
    return (theirs if real_package else ours)(*arguments, **options)


def make_app(package: Any, storage: Any, *handlers: Any) -> web.Application:
    app = web.Application()
    package.setup(app, storage)
    for handler in handlers:
        app.router.add_route("*", f"/{handler.__name__}", handler)
    return app


def actions(package: Any) -> list[Any]:
    """Make handlers that use the session as the users of aiohttp-session do."""

    async def write(request: web.Request) -> web.Response:
        session = await package.get_session(request)
        session.update(request.query)
        session["list"] = [1, None, "é"]
        return web.Response()

    async def read(request: web.Request) -> web.Response:
        return web.json_response(dict(await package.get_session(request)))

    async def leave(request: web.Request) -> web.Response:
        (await package.get_session(request)).invalidate()
        return web.Response()

    return [write, read, leave]


def attributes(header: str) -> list[str]:
    """Give all of a cookie but its value and the moment of its end."""
    return [re.sub("expires=.*", "expires", part.lower()) for part in header.split("; ")[1:]]


@old_style_key
@pytest.mark.parametrize("kind", ["simple", "encrypted", "nacl", "redis", "memcached"])
async def test_sessions_are_written_as_by_the_package_itself_and_each_reads_the_others(
    kind: str, redis: Redis, memcached: aiomcache.Client, aiohttp_client: AiohttpClient
) -> None:
    name = f"S{uuid.uuid4().hex}"
    options = {"cookie_name": name, "max_age": 100, "samesite": "Lax", "secure": False}
    apps = [
        make_app(package, make_storage(kind, package is real, redis, memcached, **options), *actions(package))
        for package in (real, compat)
    ]
    theirs, ours = [await aiohttp_client(app, cookie_jar=DummyCookieJar()) for app in apps]
    headers = []
    for writer, reader in ((theirs, ours), (ours, theirs)):
        async with writer.get("/write", params={"a": "1"}) as response:
            headers.append(response.headers["Set-Cookie"])
            cookie = {"Cookie": headers[-1].partition(";")[0]}
        async with reader.get("/write", params={"b": "2"}, headers=cookie) as response:
            assert response.status == 200
            cookie = {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}
        for one in (writer, reader):
            async with one.get("/read", headers=cookie) as response:
                assert await response.json() == {"a": "1", "b": "2", "list": [1, None, "é"]}
                assert "Set-Cookie" not in response.headers
    assert attributes(headers[0]) == attributes(headers[1])
    if kind in ("redis", "memcached"):
        ids = [header.partition(";")[0].partition("=")[2] for header in headers]
        keys = [f"{name}_{one}" for one in ids]
        records = [await redis.get(key) if kind == "redis" else await memcached.get(key.encode()) for key in keys]
        texts = [re.sub(rb'"created": \d{10}', b"", record) for record in records]  # type: ignore[arg-type]
        assert texts == [b'{, "session": {"a": "1", "list": [1, null, "\\u00e9"], "b": "2"}}'] * 2
        async with ours.get("/leave", headers=cookie) as response:
            assert "Max-Age=0" in response.headers["Set-Cookie"]
        async with theirs.get("/read", headers=cookie) as response:
            assert await response.json() == {}


# Packages that import aiohttp_session.


async def texts(client: Any, *paths: str) -> list[str]:
    found = []
    for path in paths:
        async with client.get(path) as response:
            assert response.status == 200, await response.text()
            found.append(await response.text())
    return found


async def test_aiohttp_security_keeps_logins_in_the_session(alias: None, aiohttp_client: AiohttpClient) -> None:
    import aiohttp_security

    class Policy(aiohttp_security.AbstractAuthorizationPolicy):
        async def permits(self, identity: str | None, permission: Any, context: Any = None) -> bool:
            return identity == "ann"

        async def authorized_userid(self, identity: str) -> str | None:
            return identity

    async def login(request: web.Request) -> web.Response:
        response = web.Response()
        await aiohttp_security.remember(request, response, "ann")
        return response

    async def who(request: web.Request) -> web.Response:
        return web.Response(text=str(await aiohttp_security.authorized_userid(request)))

    async def logout(request: web.Request) -> web.Response:
        response = web.Response()
        await aiohttp_security.forget(request, response)
        return response

    app = make_app(aiohttp_store, "memory://", login, who, logout)
    aiohttp_security.setup(app, aiohttp_security.SessionIdentityPolicy(), Policy())
    client = await aiohttp_client(app)
    assert await texts(client, "/who", "/login", "/who", "/logout", "/who") == ["None", "", "ann", "", "None"]


@pytest.mark.parametrize("is_kept", [True, False])
async def test_the_alias_is_needed_as_long_as_a_library_imports_the_package(
    is_kept: bool, request: pytest.FixtureRequest, aiohttp_client: AiohttpClient
) -> None:
    """As the guide says: also where the app itself imports aiohttp_store alone."""
    if is_kept:
        request.getfixturevalue("alias")
    import aiohttp_security

    async def login(request: web.Request) -> web.Response:
        response = web.Response()
        await aiohttp_security.SessionIdentityPolicy().remember(request, response, "ann")
        return response

    client = await aiohttp_client(make_app(aiohttp_store, "memory://", login))
    async with client.get("/login") as response:
        assert (response.status, "session" in response.cookies) == ((200, True) if is_kept else (500, False))


@old_style_key
async def test_aiohttp_debugtoolbar_shows_the_session(alias: None, aiohttp_client: AiohttpClient) -> None:
    import aiohttp_debugtoolbar

    async def page(request: web.Request) -> web.Response:
        session = await (aiohttp_store.new_session if "new" in request.query else aiohttp_store.get_session)(request)
        session["item"] = f"tea{request.query_string}"
        return web.Response(text="<html><body></body></html>", content_type="text/html")

    app = make_app(aiohttp_store, "memory://", page)
    aiohttp_debugtoolbar.setup(app)
    client = await aiohttp_client(app)
    for query in ("?a", "?new"):
        [shown] = await texts(client, f"/page{query}")
        [number] = re.findall(r"/_debugtoolbar/(\d+)", shown)[:1]
        [panels] = await texts(client, f"/_debugtoolbar/{number}")
        assert f"tea{query[1:]}" in panels.partition("Session")[2]


@old_style_key
async def test_aiohttp_flashbag_and_aiohttp_session_flash_keep_messages(
    alias: None, aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # aiohttp_session_flash rests on asyncio.coroutine, gone in Python 3.11, and on middlewares made for an app.
    monkeypatch.setattr(asyncio, "coroutine", types.coroutine, raising=False)
    import aiohttp_flashbag
    import aiohttp_session_flash

    @web.middleware
    async def flash_middleware(request: web.Request, handler: Any) -> web.StreamResponse:
        process = aiohttp_session_flash.middleware(
            request.app, types.coroutine(lambda one: (yield from handler(one).__await__()))
        )
        return await process(request)  # type: ignore[no-any-return]

    async def say(request: web.Request) -> web.Response:
        aiohttp_flashbag.flashbag_append(request, "kind", "bagged")
        aiohttp_session_flash.flash(request, "flashed")
        return web.Response()

    async def hear(request: web.Request) -> web.Response:
        bagged = aiohttp_flashbag.flashbag_get(request, "kind", [])
        return web.json_response([*bagged, *aiohttp_session_flash.pop_flash(request)])

    app = make_app(aiohttp_store, "memory://", say, hear)
    app.middlewares.extend([aiohttp_flashbag.flashbag_middleware, flash_middleware])
    client = await aiohttp_client(app)
    assert await texts(client, "/say", "/hear", "/hear") == ["", '["bagged", "flashed"]', "[]"]


@old_style_key
async def test_aiohttp_csrf_keeps_its_token_in_the_session(alias: None, aiohttp_client: AiohttpClient) -> None:
    import aiohttp_csrf

    async def form(request: web.Request) -> web.Response:
        return web.Response(text=await aiohttp_csrf.generate_token(request))

    async def post(request: web.Request) -> web.Response:
        return web.Response()

    app = make_app(aiohttp_store, "memory://", *map(aiohttp_csrf.csrf_protect, (form, post)))
    storage = aiohttp_csrf.storage.SessionStorage("csrf", secret_phrase="a phrase")
    aiohttp_csrf.setup(app, policy=aiohttp_csrf.policy.FormPolicy("token"), storage=storage)
    client = await aiohttp_client(app)
    for forged, status in (("forged", 403), ("", 200)):
        [token] = await texts(client, "/form")
        async with client.post("/post", data={"token": forged or token}) as response:
            assert response.status == status


@pytest.mark.parametrize(("url", "options"), [("memory://", {}), ("cookie://", {"secret": "x" * 32})])
async def test_sessions_of_a_url_have_the_names_that_users_of_the_package_know(
    url: str, options: dict[str, Any], alias: None, serve: Serve
) -> None:
    import aiohttp_session

    found: list[Any] = []

    async def use(request: web.Request) -> web.Response:
        session: Any = await aiohttp_session.get_session(request)
        assert request["aiohttp_session"] is session
        assert isinstance(session, aiohttp_session.Session)
        assert (session._identity, session._new) == (session.identity, session.new)
        assert (session._created, session._max_age) == (session.created, session.max_age)
        found.append((session._changed, session._mapping, session.max_age, session.new, session.empty))
        if session.new:
            with pytest.raises(RuntimeError, match="renew"):
                session.set_new_identity(uuid.uuid4().hex)
            with pytest.raises(RuntimeError, match="renew"):
                session._identity = uuid.uuid4().hex
            session._mapping = {"gone": 1}
            session._mapping = {}
            session.max_age = 60
            session["cart"] = []
        else:
            session._mapping["cart"].append("tea")
            assert session._changed
        return web.Response()

    client = await serve(use, storage=url, **options)
    async with client.get("/use") as response:
        assert "Max-Age=60" in response.headers["Set-Cookie"]
    await texts(client, "/use", "/use")
    assert found[0][2:] == (None, True, True)
    assert found[1][2:] == (60, False, False)
    assert [one[0] for one in found] == [False, False, False]
    assert found[2][1]["cart"] == ["tea", "tea"]  # this request has appended as well


@pytest.mark.parametrize(("url", "options"), [("memory://", {}), ("cookie://", {"secret": "x" * 32})])
async def test_a_library_can_save_by_hand_before_it_opens_a_web_socket(
    url: str, options: dict[str, Any], alias: None, serve: Serve
) -> None:
    """As aiohttp-session-ws does."""
    import aiohttp_session

    async def socket(request: web.Request) -> web.StreamResponse:
        session: Any = await aiohttp_session.get_session(request)
        session["socket"] = "id"
        assert session._changed
        response = web.WebSocketResponse()
        storage: Any = request[aiohttp_session.STORAGE_KEY]
        assert storage.cookie_name == "session"
        assert await storage.load_session(request) is session
        await storage.save_session(request, response, session)
        await response.prepare(request)
        await response.close()
        return response

    async def read(request: web.Request) -> web.Response:
        return web.json_response(dict(await aiohttp_session.get_session(request)))

    client = await serve(socket, read, storage=url, **options)
    async with client.ws_connect("/socket") as opened:
        assert (await opened.receive()).type == WSMsgType.CLOSE
    assert await texts(client, "/read") == ['{"socket": "id"}']


# Storages written for aiohttp-session.


class ListStorage(compat.AbstractStorage):
    """As third parties write them: records by the cookie's value, emptied but never removed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(cookie_name="LIST", **options)
        self.records: dict[str, str] = {}

    async def load_session(self, request: web.Request) -> compat.Session:
        key = self.load_cookie(request)
        if key is None or key not in self.records:
            return compat.Session(None, data=None, new=True, max_age=self.max_age)
        return compat.Session(key, data=self._decoder(self.records[key]), new=False, max_age=self.max_age)

    async def save_session(self, request: web.Request, response: web.StreamResponse, session: compat.Session) -> None:
        key = session.identity
        if key is None:
            key = uuid.uuid4().hex
            self.save_cookie(response, key, max_age=session.max_age)
        else:
            self.save_cookie(response, "" if session.empty else str(key), max_age=session.max_age)
        self.records[str(key)] = self._encoder(self._get_session_data(session))


class DuckStorage:
    """One that only looks like a storage, and that is written for the real package."""

    def __init__(self) -> None:
        self.records: dict[str, Any] = {}

    async def load_session(self, request: web.Request) -> Any:
        key = request.cookies.get("duck")
        return real.Session(key, data=self.records.get(key or "", {}), new=False)

    async def save_session(self, request: web.Request, response: web.StreamResponse, session: Any) -> None:
        key = session.identity or uuid.uuid4().hex
        self.records[key] = {} if session.empty else {"created": session.created, "session": dict(session._mapping)}
        response.set_cookie("duck", key)


@pytest.fixture(params=["list", "duck", "mongo", "redis", "memcached", "encrypted"])
async def foreign(
    request: pytest.FixtureRequest, alias: None, servers: Servers, redis: Redis, memcached: aiomcache.Client
) -> AsyncIterator[Any]:
    """Give a storage that was written for aiohttp-session."""
    if request.param in ("list", "duck"):
        yield ListStorage() if request.param == "list" else DuckStorage()
    elif request.param == "mongo":
        from aiohttp_session_mongo import MongoStorage

        client: AsyncMongoClient[Any] = AsyncMongoClient(servers.url("mongodb"))
        yield MongoStorage(client["sessions"][f"c{uuid.uuid4().hex}"], max_age=1000)
        await client.close()
    else:
        yield make_storage(request.param, False, redis, memcached)


Setup = Callable[[web.Application, Any], None]


def bare(app: web.Application, storage: Any) -> None:
    app.middlewares.append(compat.session_middleware(storage))


async def use(request: web.Request) -> web.StreamResponse:
    """Do what the path says, and answer with the session's data."""
    session: Any = await aiohttp_store.get_session(request)
    match request.match_info["what"]:
        case "write":
            session["cart"] = {"items": []}
        case "nested":
            session["cart"]["items"].append("tea")
        case "renew":
            session.renew()
        case "leave":
            session.invalidate()
        case "again":
            session.invalidate()
            session["cart"] = "another"
        case "new":
            await aiohttp_store.new_session(request)
        case "empty":
            session["x"] = 1
            del session["x"]
        case "file":
            session["file"] = 1
            return web.FileResponse(__file__)
        case "prepared":
            response = web.Response()
            await response.prepare(request)
            return response
    return web.json_response(dict(await aiohttp_store.get_session(request)))


class Visitor:
    """A browser that tells what it was given."""

    def __init__(self, client: Any) -> None:
        self.client, self.cookie = client, ""

    async def __call__(self, what: str) -> tuple[Any, bool]:
        """Give the JSON, and whether a cookie came with it."""
        async with self.client.get(f"/{what}", headers={"Cookie": self.cookie}) as response:
            assert response.status == 200, await response.text()
            assert what == "prepared" or "Cookie" in response.headers["Vary"]
            sent = response.headers.getall("Set-Cookie", [])
            if sent:
                assert response.headers["Cache-Control"] == "no-store"
                self.cookie = "" if "Max-Age=0" in sent[-1] else sent[-1].partition(";")[0]
            return (await response.json() if what not in ("file", "prepared") else None), bool(sent)


async def visit(aiohttp_client: AiohttpClient, storage: Any, setup: Setup) -> Visitor:
    app = web.Application()
    app.router.add_get("/{what}", use)
    setup(app, storage)
    return Visitor(await aiohttp_client(app, cookie_jar=DummyCookieJar()))


@pytest.mark.parametrize("setup", [aiohttp_store.setup, compat.setup, bare])
async def test_storages_written_for_the_package_keep_sessions(
    foreign: Any, setup: Setup, aiohttp_client: AiohttpClient
) -> None:
    visitor = await visit(aiohttp_client, foreign, setup)
    assert await visitor("read") == ({}, False)
    assert await visitor("empty") == ({}, False)
    assert await visitor("leave") == ({}, False)
    assert await visitor("write") == ({"cart": {"items": []}}, True)
    assert await visitor("read") == ({"cart": {"items": []}}, False)
    await visitor("nested")
    assert await visitor("read") == ({"cart": {"items": ["tea"]}}, False)
    await visitor("prepared")
    await visitor("file")
    assert await visitor("read") == ({"cart": {"items": ["tea"]}, "file": 1}, False)
    in_cookie = isinstance(foreign, compat.EncryptedCookieStorage)
    for ending in ("renew", "again", "new", "leave"):
        before = visitor.cookie
        after = await visitor(ending)
        assert after[1]
        assert visitor.cookie != before or isinstance(foreign, DuckStorage)
        assert (await visitor("read"))[0] == after[0]
        thief = Visitor(visitor.client)
        thief.cookie = before
        if not in_cookie:
            assert await thief("read") == ({}, False)
        if ending == "new":
            await visitor("write")


@pytest.mark.parametrize("setup", [aiohttp_store.setup, compat.setup])
async def test_a_stream_is_saved_before_its_headers_and_stored_sessions_after_them(
    foreign: Any, setup: Setup, aiohttp_client: AiohttpClient
) -> None:
    in_cookie = isinstance(foreign, compat.EncryptedCookieStorage)

    seen: list[Any] = []

    async def stream(request: web.Request) -> web.StreamResponse:
        session: Any = await aiohttp_store.get_session(request)
        session["list"] = []
        response = web.StreamResponse()
        response.set_cookie("of_the_app", "1")
        if "by_hand" in request.query:
            await foreign.save_session(request, response, session)
        await response.prepare(request)
        seen.append(session._changed)
        if in_cookie:
            session["list"].append(1)
            with pytest.raises(RuntimeError) as unsaved:
                await session.save()
            seen.append(str(unsaved.value))
            session["list"].clear()
        else:
            session["list"].append(1)
        await response.write(b"x")
        return response

    async def late(request: web.Request) -> web.StreamResponse:
        session = await aiohttp_store.get_session(request)
        response = web.StreamResponse()
        await response.prepare(request)
        with pytest.raises(RuntimeError) as refused:
            session["late"] = 1
        await response.write(str(refused.value).encode())
        return response

    async def read(request: web.Request) -> web.Response:
        return web.json_response(dict(await aiohttp_store.get_session(request)))

    app = web.Application()
    app.router.add_get("/late", late)
    app.router.add_get("/stream", stream)
    app.router.add_get("/read", read)
    setup(app, foreign)
    client = await aiohttp_client(app)
    [refused] = await texts(client, "/late")
    assert "needs a cookie, but the response's headers have been sent" in refused
    async with client.get("/stream") as response:
        assert len(response.headers.getall("Set-Cookie")) == 2
        await response.read()
    [found] = await texts(client, "/read")
    if in_cookie:
        assert json.loads(found) == {"list": []}
        assert "was changed after the response's headers were sent" in seen[1]
    else:
        assert json.loads(found) == {"list": [1]}
    assert seen[0] is False
    if isinstance(foreign, ListStorage):
        async with client.get("/stream?by_hand") as response:
            assert len(response.headers.getall("Set-Cookie")) == 2


async def test_save_reload_and_apply_work_with_such_a_storage(foreign: Any, aiohttp_client: AiohttpClient) -> None:
    def add(session: Any) -> int:
        session["n"] = session.get("n", 0) + 1
        return int(session["n"])

    async def count(request: web.Request) -> web.Response:
        session = await aiohttp_store.get_session(request)
        found = await session.apply(add)
        await session.save()
        return web.json_response(found)

    async def drop(request: web.Request) -> web.Response:
        session = await aiohttp_store.get_session(request)
        session["n"] = 100
        await session.reload()
        return web.json_response(session["n"])

    async def watch(request: web.Request) -> web.Response:
        session = await aiohttp_store.get_session(request)
        async with client.get("/count"):
            pass
        await session.reload()
        return web.json_response(session["n"])

    async def lose(request: web.Request) -> web.Response:
        session = await aiohttp_store.get_session(request)
        session["n"] = 50
        async with client.get("/end"):
            pass
        with pytest.raises(SessionGone):
            await session.reload()
        return web.Response(text="gone")

    async def end(request: web.Request) -> web.Response:
        (await aiohttp_store.get_session(request)).invalidate()
        return web.Response()

    async def wrong(request: web.Request) -> web.Response:
        with pytest.raises(TypeError, match="plain function"):
            session: Any = await aiohttp_store.get_session(request)
            await session.apply(count)
        return web.Response()

    client = await aiohttp_client(make_app(aiohttp_store, foreign, count, drop, lose, end, wrong, watch))
    assert await texts(client, "/count", "/count", "/drop", "/count", "/wrong") == ["1", "2", "2", "3", ""]
    for path in ("/drop", "/watch"):
        async with client.get(path) as response:
            assert "Set-Cookie" not in response.headers
    if isinstance(foreign, ListStorage):
        assert len(foreign.records) == 1
    if not isinstance(foreign, compat.EncryptedCookieStorage):
        assert await texts(client, "/lose", "/count") == ["gone", "1"]


async def test_a_renewal_in_an_outage_loses_nothing(aiohttp_client: AiohttpClient) -> None:
    class Full(ListStorage):
        """It has no room for another record."""

        async def save_session(self, request: Any, response: Any, session: Any) -> None:
            if session.identity is None and self.records:
                raise aiohttp_store.StorageUnavailable("full")
            await super().save_session(request, response, session)

    async def put(request: web.Request) -> web.Response:
        (await aiohttp_store.get_session(request))["a"] = 1
        return web.Response()

    async def renew(request: web.Request) -> web.Response:
        (await aiohttp_store.get_session(request)).renew()
        return web.Response()

    async def show(request: web.Request) -> web.Response:
        return web.json_response(dict(await aiohttp_store.get_session(request)))

    client = await aiohttp_client(make_app(aiohttp_store, Full(), put, renew, show))
    for path, status in (("/put", 200), ("/renew", 503), ("/show", 200)):
        async with client.get(path) as response:
            assert response.status == status
            found = await response.text()
    assert json.loads(found) == {"a": 1}


@pytest.mark.parametrize("is_renewed", [False, True])
async def test_what_was_saved_under_a_new_id_is_still_there_after_reload(
    aiohttp_client: AiohttpClient, *, is_renewed: bool
) -> None:
    async def begin(request: web.Request) -> web.Response:
        session = await aiohttp_store.get_session(request)
        session["a"] = session.get("a", 0) + 1
        if is_renewed:
            session.renew()
        await session.save()
        await session.reload()
        return web.json_response(session["a"])

    client = await aiohttp_client(make_app(aiohttp_store, ListStorage(), begin))
    for turn in (1, 2):
        async with client.get("/begin") as response:
            assert (response.status, await response.json()) == (200, turn)


@pytest.mark.parametrize("package", [aiohttp_store, compat])
async def test_a_session_saved_by_hand_gets_one_record(
    package: Any, foreign: Any, aiohttp_client: AiohttpClient
) -> None:
    async def by_hand(request: web.Request) -> web.Response:
        session: Any = await compat.get_session(request)
        session["a"] = 1
        response = web.Response()
        storage: Any = request[compat.STORAGE_KEY]
        assert storage is foreign
        await storage.save_session(request, response, session)
        session["b"] = 2
        return response

    app = make_app(package, foreign, by_hand, *actions(compat))
    client = await aiohttp_client(app)
    assert json.loads((await texts(client, "/by_hand", "/read"))[1]) == {"a": 1, "b": 2}
    if isinstance(foreign, ListStorage):
        assert len(foreign.records) == 1


async def test_a_storage_is_known_to_handlers_that_ask_for_no_session(aiohttp_client: AiohttpClient) -> None:
    async def name(request: web.Request) -> web.Response:
        return web.Response(text=request[compat.STORAGE_KEY].cookie_name)

    for setup in (compat.setup, bare):
        app = web.Application()
        app.router.add_get("/name", name)
        setup(app, ListStorage())
        assert await texts(await aiohttp_client(app), "/name") == ["LIST"]


async def test_nested_setups_keep_each_its_own_session(aiohttp_client: AiohttpClient) -> None:
    outer, inner = ListStorage(), ListStorage()
    inner._cookie_name = "INNER"
    below = make_app(compat, inner, *actions(compat))
    app = make_app(compat, outer, *actions(compat))
    app.add_subapp("/below", below)

    @web.middleware
    async def use_outer(request: web.Request, handler: Any) -> web.StreamResponse:
        (await compat.get_session(request))["outer"] = 1
        return await handler(request)  # type: ignore[no-any-return]

    app.middlewares.append(use_outer)
    client = await aiohttp_client(app)
    assert json.loads((await texts(client, "/below/write?a=1", "/below/read"))[1]) == {"a": "1", "list": [1, None, "é"]}
    assert [json.loads(one)["session"] for one in outer.records.values()] == [{"outer": 1}]
    assert len(inner.records) == 1


# What is taken back, given up and let go of.


@pytest.mark.parametrize("end", ["new", "leave", "again"])
async def test_a_session_that_is_ended_and_saved_at_once_does_not_come_back(
    foreign: Any, end: str, aiohttp_client: AiohttpClient
) -> None:
    async def anew(request: web.Request) -> web.Response:
        session = await aiohttp_store.get_session(request)
        if end == "new":
            session = await aiohttp_store.new_session(request)
        else:
            session.invalidate()
        await session.save()
        if end == "again":
            session["a"] = 2
            await session.save()
            session.invalidate()
            await session.save()
        return web.Response()

    client = await aiohttp_client(make_app(aiohttp_store, foreign, anew, *actions(compat)))
    await texts(client, "/write")
    async with client.get("/anew") as response:
        assert isinstance(foreign, DuckStorage) or "Max-Age=0" in response.headers["Set-Cookie"]
    assert await texts(client, "/read") == ["{}"]


async def test_reload_does_not_bring_back_a_session_that_has_ended(foreign: Any, aiohttp_client: AiohttpClient) -> None:
    async def anew(request: web.Request) -> web.Response:
        session = await aiohttp_store.new_session(request)
        await session.reload()
        return web.json_response(dict(session))

    async def ended(request: web.Request) -> web.Response:
        session = await aiohttp_store.get_session(request)
        session.invalidate()
        await session.reload()
        return web.json_response(dict(session))

    client = await aiohttp_client(make_app(aiohttp_store, foreign, anew, ended, *actions(compat)))
    for path in ("/anew", "/ended"):
        assert await texts(client, "/write", path, "/read") == ["", "{}", "{}"]


async def test_the_old_session_cannot_be_written_after_new_session(foreign: Any, aiohttp_client: AiohttpClient) -> None:
    async def anew(request: web.Request) -> web.Response:
        old = await aiohttp_store.get_session(request)
        session = await aiohttp_store.new_session(request)
        session["cart"] = old["list"]  # what is to be taken along can still be read
        old["late"] = 1
        calls: list[Callable[[], Any]] = [old.save, old.reload, lambda: old.apply(lambda one: one.update(x=1))]
        for call in calls:
            with pytest.raises(SessionGone):
                await call()
        return web.Response()

    client = await aiohttp_client(make_app(aiohttp_store, foreign, anew, *actions(compat)))
    assert await texts(client, "/write", "/anew", "/read") == ["", "", '{"cart": [1, null, "\\u00e9"]}']
    if isinstance(foreign, ListStorage | DuckStorage):
        assert "late" not in str(foreign.records)
        assert len([one for one in foreign.records.values() if one not in ("{}", {})]) == 1


async def test_a_change_that_fails_is_taken_back_as_a_whole(foreign: Any, aiohttp_client: AiohttpClient) -> None:
    def fail(session: Any) -> None:
        session["list"].append("nested")
        session["a"] = 2
        session.max_age = 7
        session.renew()
        session.invalidate()
        session["b"] = 5
        raise ZeroDivisionError

    async def apply(request: web.Request) -> web.Response:
        session = await aiohttp_store.get_session(request)
        kept = session["list"]
        session["pending"] = 1
        with pytest.raises(ZeroDivisionError):
            await session.apply(fail)
        assert session["list"] is kept
        return web.Response()

    client = await aiohttp_client(make_app(aiohttp_store, foreign, apply, *actions(compat)))
    await texts(client, "/write?a=1", "/apply")
    [found] = await texts(client, "/read")
    assert json.loads(found) == {"a": "1", "list": [1, None, "é"], "pending": 1}


async def test_a_change_that_cannot_be_stored_is_taken_back(aiohttp_client: AiohttpClient) -> None:
    class Full(ListStorage):
        async def save_session(self, request: Any, response: Any, session: Any) -> None:
            if "big" in session:
                raise aiohttp_store.StorageUnavailable("full")
            await super().save_session(request, response, session)

    async def apply(request: web.Request) -> web.Response:
        session = await aiohttp_store.get_session(request)
        with pytest.raises(aiohttp_store.StorageUnavailable):
            await session.apply(lambda one: one.update(big=1))
        return web.json_response(dict(session))

    client = await aiohttp_client(make_app(aiohttp_store, Full(), apply, *actions(compat)))
    assert json.loads((await texts(client, "/write", "/apply"))[1]) == {"list": [1, None, "é"]}


async def test_two_tasks_of_a_request_can_both_apply_and_keep_what_the_handler_holds(
    foreign: Any, aiohttp_client: AiohttpClient
) -> None:
    def add(session: Any) -> None:
        session["n"] = session.get("n", 0) + 1

    async def count(request: web.Request) -> web.Response:
        session = await aiohttp_store.get_session(request)
        held = session.setdefault("held", [])
        await asyncio.gather(session.apply(add), session.apply(add))
        held.append(1)
        return web.Response()

    client = await aiohttp_client(make_app(aiohttp_store, foreign, count, *actions(compat)))
    await texts(client, "/count", "/count")
    assert json.loads((await texts(client, "/read"))[0]) == {"held": [1, 1], "n": 4}


@pytest.mark.parametrize("query", ["", "?new", "?unused"])
async def test_a_request_and_its_session_are_freed_without_the_garbage_collector(
    foreign: Any, query: str, aiohttp_client: AiohttpClient
) -> None:
    seen: list[weakref.ref[Any]] = []

    async def see(request: web.Request) -> web.Response:
        session = await aiohttp_store.get_session(request)
        seen.extend([weakref.ref(request), weakref.ref(session)])
        if query != "?unused":
            session["a"] = 1
        if query == "?new":
            another = await aiohttp_store.new_session(request)
            another["b"] = 1
            seen.append(weakref.ref(another))
        response = web.Response()
        response.force_close()  # aiohttp keeps a connection's last request until the connection ends
        return response

    client = await aiohttp_client(make_app(aiohttp_store, foreign, see, *actions(compat)))
    await texts(client, "/write")
    gc.disable()
    try:
        await texts(client, f"/see{query}")
        await until(lambda: all(one() is None for one in seen))
    finally:
        gc.enable()


@old_style_key
async def test_a_background_task_saves_after_its_request_has_ended(aiohttp_client: AiohttpClient) -> None:
    over, tasks = asyncio.Event(), []

    class Asking(ListStorage):
        """It looks at the request as it saves."""

        async def save_session(self, request: Any, response: Any, session: Any) -> None:
            assert request.app is not None
            assert request["of_the_app"] == 1
            await super().save_session(request, response, session)

    async def begin(request: web.Request) -> web.Response:
        request["of_the_app"] = 1
        session = await aiohttp_store.get_session(request)
        session["a"] = 1

        async def late() -> None:
            await over.wait()
            session["late"] = 1
            await session.save()

        tasks.append(asyncio.create_task(late()))
        return web.Response()

    storage = Asking()
    client = await aiohttp_client(make_app(aiohttp_store, storage, begin))
    await texts(client, "/begin")
    over.set()
    await tasks[0]
    assert [json.loads(one)["session"] for one in storage.records.values()] == [{"a": 1, "late": 1}]


# What real apps do with the package's insides.


@old_style_key
@pytest.mark.parametrize("setup", [aiohttp_store.setup, compat.setup, bare])
async def test_an_app_can_replace_the_constructor_of_sessions(
    foreign: Any, setup: Setup, aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one that sets the package's private names, as the package's own does."""
    monkeypatch.setattr(compat.Session, "__init__", real.Session.__init__)
    await test_storages_written_for_the_package_keep_sessions(foreign, setup, aiohttp_client)


async def test_a_subclass_of_the_session_has_its_own_constructor_and_attributes(
    alias: None, aiohttp_client: AiohttpClient
) -> None:
    import aiohttp_session

    class Login(aiohttp_session.Session):
        def __init__(self, identity: Any, *, data: Any, new: bool, max_age: Any = None) -> None:
            super().__init__(identity, data={"session": {"roles": []}} if new else data, new=new, max_age=max_age)
            self.lasts = 60

        @property
        def roles(self) -> list[str]:
            return self._mapping["roles"]  # type: ignore[no-any-return]

        def add(self, role: str) -> None:
            self._mapping["roles"] = [*self.roles, role]
            self._changed = True

    class Storage(ListStorage):
        async def new_session(self) -> Any:
            return Login(None, data=None, new=True)

        async def load_session(self, request: web.Request) -> Any:
            key = self.load_cookie(request)
            if key is None or key not in self.records:
                return await self.new_session()
            return Login(key, data=self._decoder(self.records[key]), new=False)

        async def save_session(self, request: Any, response: Any, session: Any) -> None:
            if not session.empty:
                assert session.lasts == 60
            await super().save_session(request, response, session)

    async def add(request: web.Request) -> web.Response:
        login: Any = await aiohttp_session.get_session(request)
        assert (type(login), isinstance(login, aiohttp_session.Session)) == (Login, True)
        await login.apply(lambda one: one.add("reader"))
        login.add("writer")
        return web.json_response(login.roles)

    storage: Any = Storage()
    app = web.Application()
    app.router.add_get("/add", add)
    aiohttp_session.setup(app, storage)
    client = await aiohttp_client(app)
    assert await texts(client, "/add", "/add") == [
        '["reader", "writer"]',
        '["reader", "writer", "reader", "writer"]',
    ]
    assert len(storage.records) == 1


@pytest.mark.parametrize("end", ["leave", "new"])
async def test_a_storage_can_give_the_same_session_to_several_requests(end: str, aiohttp_client: AiohttpClient) -> None:
    """As one that remembers what it has decrypted."""

    class Remembering(compat.EncryptedCookieStorage):
        def __init__(self) -> None:
            super().__init__(SECRET, cookie_name="__Host-SC", secure=True)
            self.known: dict[str, compat.Session] = {}

        async def load_session(self, request: web.Request) -> compat.Session:
            cookie = self.load_cookie(request)
            if cookie is None:
                return await self.new_session()
            if cookie not in self.known:
                self.known[cookie] = await super().load_session(request)
            return self.known[cookie]

    async def anew(request: web.Request) -> web.Response:
        if end == "new":
            await compat.new_session(request)
        else:
            (await compat.get_session(request)).invalidate()
        return web.Response()

    async def slow(request: web.Request) -> web.Response:
        session = await compat.get_session(request)
        async with client.get("/anew", headers=cookie):
            pass
        session["late"] = 1
        return web.Response()

    app = make_app(compat, Remembering(), anew, slow, *actions(compat))
    client = await aiohttp_client(app, cookie_jar=DummyCookieJar())
    async with client.get("/write") as response:
        cookie = {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}
    for _ in range(2):
        async with client.get("/slow", headers=cookie) as response:
            written = response.headers["Set-Cookie"]
            assert not written.startswith("__Host-SC=;")
        async with client.get("/read", headers={"Cookie": written.partition(";")[0]}) as response:
            assert "late" in await response.json()


async def test_an_app_can_give_a_session_another_id_by_its_private_name(
    alias: None, aiohttp_client: AiohttpClient
) -> None:
    drawn = uuid.uuid4().hex

    async def rotate(request: web.Request) -> web.Response:
        session: Any = await compat.get_session(request)
        if "guess" in request.query:
            with pytest.raises(ValueError, match="guessed"):
                session._identity = "alice"
        session._identity = None if "none" in request.query else drawn
        return web.Response(text=str(session.identity))

    async def chosen(request: web.Request) -> web.Response:
        session: Any = await compat.get_session(request)
        session._new = True
        session.set_new_identity(drawn[::-1])
        session.changed()
        return web.Response(text=session.identity)

    storage = ListStorage()
    client = await aiohttp_client(make_app(compat, storage, rotate, chosen, *actions(compat)))
    await texts(client, "/write")
    given = {"/rotate": drawn, "/chosen": drawn[::-1], "/rotate?none": "None", "/rotate?guess": drawn}
    for path, shown in given.items():
        assert await texts(client, path) == [shown]
        assert json.loads((await texts(client, "/read"))[0]) == {"list": [1, None, "é"]}
        [live] = [key for key, record in storage.records.items() if record != "{}"]
        assert shown in (live, "None")


@pytest.mark.parametrize("key", ["aiohttp_session", "session"])
async def test_an_apps_own_middleware_saves_what_get_session_gives(
    alias: None, key: str, aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    import aiohttp_session

    monkeypatch.setattr(aiohttp_session, "SESSION_KEY", key)
    storage = compat.EncryptedCookieStorage(SECRET)

    @web.middleware
    async def factory(request: web.Request, handler: Any) -> web.StreamResponse:
        request._state[aiohttp_session.STORAGE_KEY] = storage
        response: web.StreamResponse = await handler(request)
        session = request.get(aiohttp_session.SESSION_KEY)
        if session is not None and session._changed:
            await storage.save_session(request, response, session)
        return response

    app = web.Application(middlewares=[factory])
    for handler in actions(aiohttp_session):
        app.router.add_get(f"/{handler.__name__}", handler)
    client = await aiohttp_client(app)
    found = await texts(client, "/write?a=1", "/read", "/leave", "/read")
    assert (json.loads(found[1])["a"], found[3]) == ("1", "{}")


async def test_a_middleware_can_be_made_for_each_request(alias: None, aiohttp_client: AiohttpClient) -> None:
    import aiohttp_session

    storage: Any = ListStorage()

    @web.middleware
    async def per_request(request: web.Request, handler: Any) -> web.StreamResponse:
        return await aiohttp_session.session_middleware(storage)(request, handler)

    app = web.Application(middlewares=[per_request])
    for handler in actions(aiohttp_session):
        app.router.add_get(f"/{handler.__name__}", handler)
    client = await aiohttp_client(app)
    assert json.loads((await texts(client, "/write?a=1", "/read"))[1])["a"] == "1"


async def test_storages_can_have_their_own_way_with_the_cookie(alias: None, aiohttp_client: AiohttpClient) -> None:
    import aiohttp_session
    from aiohttp_session.cookie_storage import EncryptedCookieStorage

    class Shared(EncryptedCookieStorage):
        """For all subdomains, which it learns from the request."""

        def params(self, request: web.Request, given: aiohttp_session._CookieParams) -> Any:
            return {**given, "path": f"/{request.host.partition(':')[0]}"}

        async def save_session(self, request: Any, response: Any, session: Any) -> None:
            response._req = request
            await super().save_session(request, response, session)

        def save_cookie(self, response: Any, cookie_data: str, *, max_age: Any = None) -> None:
            params = self.params(response._req, self._cookie_params.copy())
            response.headers.add("X-Path", params["path"])
            response.headers.add("Set-Cookie", f"{self._cookie_name}={cookie_data}; Path=/")

    assert {"domain", "path"} <= set(aiohttp_session._CookieParams.__annotations__)

    class ByQuery(EncryptedCookieStorage):
        def load_cookie(self, request: web.Request) -> str | None:
            return request.query.get("session")

    client = await aiohttp_client(make_app(aiohttp_session, Shared(SECRET), *actions(aiohttp_session)))
    async with client.get("/write?a=1") as response:
        assert response.headers["X-Path"] == "/127.0.0.1"
    assert json.loads((await texts(client, "/read"))[0])["a"] == "1"
    client = await aiohttp_client(make_app(aiohttp_session, ByQuery(SECRET), *actions(aiohttp_session)))
    async with client.get("/write?a=1") as response:
        given = response.cookies["AIOHTTP_SESSION"].value
    assert json.loads((await texts(client, f"/read?session={given}"))[0])["a"] == "1"


async def test_a_storage_can_keep_the_very_sessions_under_ids_that_they_have_from_the_start(
    alias: None, aiohttp_client: AiohttpClient
) -> None:
    import aiohttp_session

    class Objects(aiohttp_session.AbstractStorage):
        def __init__(self) -> None:
            super().__init__(max_age=300)
            self.sessions: dict[Any, Any] = {}

        async def new_session(self) -> Any:
            return aiohttp_session.Session(uuid.uuid4().hex, data=None, new=True, max_age=self.max_age)

        async def load_session(self, request: web.Request) -> Any:
            return self.sessions.get(self.load_cookie(request)) or await self.new_session()

        async def save_session(self, request: Any, response: Any, session: Any) -> None:
            self.sessions[session.identity] = session
            self.save_cookie(response, session.identity, max_age=session.max_age)

    storage = Objects()
    client = await aiohttp_client(make_app(aiohttp_session, storage, *actions(aiohttp_session)))
    found = await texts(client, "/write?a=1", "/read", "/write?b=2", "/read", "/leave", "/read")
    assert [sorted(json.loads(one)) for one in (found[1], found[3], found[5])] == [
        ["a", "list"],
        ["a", "b", "list"],
        [],
    ]


# Faults that are not copied.


@pytest.mark.parametrize(
    "record",
    [
        b"", b"{oops", b"null", b"[1]", b"5", b'"x"', b"\xff", b'{"foo": 1}', b'{"created": "x", "session": {"a": 1}}',
        b'{"created": 1, "session": [1]}', b'{"created": 1, "session": {"a": 1}}', b"{}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("decodes", [True, False])
async def test_a_record_that_is_no_session_is_an_anonymous_visitor_and_its_id_is_not_used(
    record: bytes, decodes: bool, servers: Servers, redis: Redis, aiohttp_client: AiohttpClient
) -> None:
    name = f"S{uuid.uuid4().hex}"
    async with Redis.from_url(servers.url("redis"), decode_responses=decodes) as given:
        storage = compat.RedisStorage(given, cookie_name=name, max_age=1000)
        client = await aiohttp_client(make_app(compat, storage, *actions(compat)))
        await redis.set(f"{name}_known", record)
        async with client.get("/read", headers={"Cookie": f"{name}=known"}) as response:
            assert (response.status, await response.json()) == (200, {})
        async with client.get("/write", headers={"Cookie": f"{name}=known"}) as response:
            assert response.cookies[name].value not in ("", "known")
        assert await redis.get(f"{name}_known") == record


@pytest.mark.parametrize("kind", ["simple", "encrypted", "nacl", "redis", "memcached"])
async def test_a_decoder_may_raise_anything(
    kind: str, redis: Redis, memcached: aiomcache.Client, aiohttp_client: AiohttpClient
) -> None:
    def refuse(text: str) -> Any:
        raise EOFError(text)

    storage = make_storage(kind, False, redis, memcached, decoder=refuse)
    client = await aiohttp_client(make_app(compat, storage, *actions(compat)))
    assert await texts(client, "/write", "/read") == ["", "{}"]


async def test_a_record_that_a_storage_cannot_read_is_an_anonymous_visitor(aiohttp_client: AiohttpClient) -> None:
    storage = ListStorage()
    storage.records["known"] = "{oops"
    client = await aiohttp_client(make_app(aiohttp_store, storage, *actions(compat)))
    async with client.get("/write", params={"a": "1"}, headers={"Cookie": "LIST=known"}) as response:
        assert response.status == 200
        assert response.cookies["LIST"].value != "known"


@pytest.mark.parametrize("value", ["garbage", "", "\udcff", '"a b\\012"', "x" * 300, "{}", "W"])
@pytest.mark.parametrize("kind", ["simple", "encrypted", "nacl", "redis", "memcached"])
async def test_a_bad_cookie_is_an_anonymous_visitor(
    kind: str, value: str, redis: Redis, memcached: aiomcache.Client, aiohttp_client: AiohttpClient
) -> None:
    await redis.lpush("AIOHTTP_SESSION_W", "of another type")
    storage = make_storage(kind, False, redis, memcached)
    client = await aiohttp_client(make_app(compat, storage, *actions(compat)))
    async with client.get("/read", headers={"Cookie": f"AIOHTTP_SESSION={value}"}) as response:
        assert (response.status, await response.json()) == (200, {})


@pytest.mark.parametrize("kind", ["redis", "memcached"])
async def test_a_late_save_does_not_undo_a_logout(
    kind: str, redis: Redis, memcached: aiomcache.Client, aiohttp_client: AiohttpClient
) -> None:
    loaded, left = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        session = await compat.get_session(request)
        session["late"] = 1
        loaded.set()
        await left.wait()
        if "tell" in request.query:
            with pytest.raises(SessionGone):
                await session.save()
        return web.Response()

    storage = make_storage(kind, False, redis, memcached)
    client = await aiohttp_client(make_app(compat, storage, slow, *actions(compat)), cookie_jar=DummyCookieJar())
    for query in ("", "?tell"):
        loaded.clear()
        left.clear()
        async with client.get("/write") as response:
            cookie = {"Cookie": f"AIOHTTP_SESSION={response.cookies['AIOHTTP_SESSION'].value}"}
        waiting = asyncio.ensure_future(client.get(f"/slow{query}", headers=cookie))
        await loaded.wait()
        async with client.get("/leave", headers=cookie):
            left.set()
        async with await waiting as response:
            assert response.status == 200
            assert "Set-Cookie" not in response.headers
        async with client.get("/read", headers=cookie) as response:
            assert await response.json() == {}


async def test_a_cookie_that_browsers_would_drop_is_an_error(aiohttp_client: AiohttpClient) -> None:
    storage, given = compat.SimpleCookieStorage(cookie_name="four"), web.Response()
    storage.save_cookie(given, "x" * 4092)
    assert given.cookies["four"].value == "x" * 4092
    with pytest.raises(SessionTooLarge, match="4097 bytes"):
        storage.save_cookie(given, "x" * 4093)
    assert not given.cookies
    client = await aiohttp_client(make_app(compat, compat.EncryptedCookieStorage(SECRET), *actions(compat)))
    async with client.get("/write", params={"a": "x" * 4000}) as response:
        assert response.status == 500
        assert "Set-Cookie" not in response.headers


async def test_the_removal_of_a_cookie_carries_what_browsers_demand_of_its_name() -> None:
    response = web.Response()
    compat.SimpleCookieStorage(cookie_name="__Host-s", secure=True, samesite="Strict").save_cookie(response, "")
    header = response.cookies["__Host-s"].OutputString()
    assert {"Secure", "SameSite=Strict", "Max-Age=0", "Path=/"} <= set(header.split("; "))


async def test_an_outage_is_503_within_the_time_that_a_storage_has(
    aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiohttp_store.compat.adapter.PATIENCE", 0.1)
    ended, released = [], asyncio.Event()

    class Hangs(ListStorage):
        async def load_session(self, request: web.Request) -> compat.Session:
            await released.wait()
            await asyncio.sleep(0.05)
            ended.append(True)
            raise ConnectionRefusedError

    class Refuses(ListStorage):
        async def load_session(self, request: web.Request) -> compat.Session:
            raise ConnectionRefusedError

    for storage in (Refuses(), Hangs()):
        client = await aiohttp_client(make_app(aiohttp_store, storage, *actions(compat)))
        async with client.get("/read") as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
    monkeypatch.setattr("aiohttp_store.compat.adapter.PATIENCE", PATIENCE)
    released.set()
    await client.close()
    assert ended == [True]  # a command that was begun is not cancelled, and is waited for


@pytest.mark.parametrize("kind", ["redis", "memcached"])
async def test_a_server_that_is_down_is_503(kind: str, aiohttp_client: AiohttpClient) -> None:
    port = 9  # nobody listens there
    redis, memcached = Redis(port=port, retry=Retry(NoBackoff(), 0)), aiomcache.Client("127.0.0.1", port)
    client = await aiohttp_client(make_app(compat, make_storage(kind, False, redis, memcached), *actions(compat)))
    for path, cookie in (("/read", {"Cookie": "AIOHTTP_SESSION=x"}), ("/write", {})):
        async with client.get(path, headers=cookie) as response:
            assert response.status == 503
    await redis.aclose()
    await memcached.close()


@pytest.mark.parametrize("lasts", [0, -1, 1.5, 31 * 86_400])
@pytest.mark.parametrize("kind", ["redis", "memcached"])
async def test_any_max_age_ends_the_session_when_it_says(
    kind: str, lasts: float, redis: Redis, memcached: aiomcache.Client, aiohttp_client: AiohttpClient
) -> None:
    async def hold(request: web.Request) -> web.Response:
        session: Any = await compat.get_session(request)
        session.max_age = lasts
        return web.Response()

    client = await aiohttp_client(make_app(compat, make_storage(kind, False, redis, memcached), hold, *actions(compat)))
    await texts(client, "/write")
    [key] = [cookie.value for cookie in client.session.cookie_jar]
    async with client.get("/hold") as response:
        assert f"Max-Age={max(0, -int(-lasts // 1))}" in response.headers["Set-Cookie"]
    stored = f"AIOHTTP_SESSION_{key}"
    found = await redis.get(stored) if kind == "redis" else await memcached.get(stored.encode())
    assert (found is not None) is (lasts > 0)


@pytest.mark.parametrize("identity", ["alice", 7, "alice@example.org, who lives here", "", None])
def test_a_session_takes_no_id_that_can_be_guessed(identity: Any) -> None:
    session = compat.Session(None, data=None, new=True)
    with pytest.raises(ValueError, match="guessed") as raised:
        session.set_new_identity(identity)
    assert not identity or str(identity) not in str(raised.value)
    session.set_new_identity(uuid.uuid4().hex)


# The interface.


async def test_a_session_is_new_empty_and_changed_as_in_the_package(aiohttp_client: AiohttpClient) -> None:
    async def remember(request: web.Request) -> web.StreamResponse:
        session: Any = await compat.new_session(request)
        assert (session.new, session.empty, session.identity, session._changed) == (True, True, None, False)
        session.idle_timeout = 90
        assert (session.max_age, session.idle_timeout) == (90, 90)
        session._mapping = {"a": []}
        session.changed()
        response = web.StreamResponse()
        await response.prepare(request)
        with pytest.raises(RuntimeError, match="headers have been sent"):
            session.renew()
        with pytest.raises(RuntimeError, match="headers have been sent"):
            await compat.new_session(request)
        await response.write(b"all of it")
        return response

    storage = ListStorage()
    client = await aiohttp_client(make_app(compat, storage, remember, *actions(compat)))
    async with client.get("/remember") as response:
        assert "Max-Age=90" in response.headers["Set-Cookie"]
        assert await response.text() == "all of it"
    assert await texts(client, "/read") == ['{"a": []}']
    for data in ({}, {"created": 5, "session": {"a": 1}}):
        ended = compat.Session("known", data=data, new=False, max_age=100)  # type: ignore[arg-type]
        assert (ended.new, ended.identity, ended.empty) == (True, None, True)
    session = compat.Session("known", data={"created": 5, "session": {"a": 1}}, new=False)
    assert (session.created, session.identity, dict(session)) == (5, "known", {"a": 1})
    with pytest.raises(RuntimeError, match="only a session that is new"):
        session.set_new_identity(uuid.uuid4().hex)


@pytest.mark.parametrize("where", ["list", "memory://", "bare memory://", "alias"])
async def test_the_attributes_of_their_sessions_work_and_others_are_theirs_as_well(
    aiohttp_client: AiohttpClient, where: str, request: pytest.FixtureRequest
) -> None:
    ann = object()

    @web.middleware
    async def mark(request: web.Request, handler: Any) -> web.StreamResponse:
        session: Any = await compat.get_session(request)
        session.account = ann  # for this request, as an app may have it
        return await handler(request)  # type: ignore[no-any-return]

    async def show(request: web.Request) -> web.Response:
        session: Any = await compat.get_session(request)
        assert session.account is ann
        session["a"] = 1
        session.max_age = 90
        assert session.max_age == 90
        assert session._changed
        assert session._mapping == {"a": 1}
        with pytest.raises(AttributeError, match="its data are keys"):
            _ = session.cart
        with pytest.raises(AttributeError, match=r"session\.invalidate\(\) ends it"):
            session.flush()
        return web.Response()

    app = web.Application()
    app.router.add_get("/", show)
    if where == "alias":
        request.getfixturevalue("alias")
        aiohttp_store.setup(app)
    elif where.startswith("bare"):
        app.middlewares.append(compat.session_middleware("memory://"))
    else:
        compat.setup(app, ListStorage() if where == "list" else where)
    app.middlewares.append(mark)
    client = await aiohttp_client(app)
    async with client.get("/") as response:
        assert "Max-Age=90" in response.headers["Set-Cookie"]


@pytest.mark.usefixtures("alias")
@old_style_key
async def test_outside_its_path_a_session_refuses_changes_also_for_libraries(aiohttp_client: AiohttpClient) -> None:
    async def show(request: web.Request) -> web.Response:
        session: Any = await compat.get_session(request)
        assert request["aiohttp_session"] is session
        for name, value in (("max_age", 60), ("idle_timeout", 60), ("_changed", True)):
            with pytest.raises(RuntimeError, match="has path='/shop'"):
                setattr(session, name, value)
        with pytest.raises(RuntimeError, match="has path='/shop'"):
            session["a"] = 1
        assert session._mapping == {}
        return web.Response()

    app = web.Application()
    aiohttp_store.setup(app, cookie=aiohttp_store.Cookie(path="/shop"))
    app.router.add_get("/", show)
    client = await aiohttp_client(app)
    async with client.get("/") as response:
        assert response.status == 200
        assert "Set-Cookie" not in response.headers


async def test_a_changed_session_lasts_from_its_last_change(
    aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nested(request: web.Request) -> web.Response:
        (await compat.get_session(request))["list"].append(1)
        return web.Response()

    client = await aiohttp_client(make_app(compat, ListStorage(max_age=100), nested, *actions(compat)))
    began, moved = time.time(), [0]
    monkeypatch.setattr("time.time", lambda: began + moved[0])
    await texts(client, "/write")
    for moved[0], path in ((90, "/nested"), (180, "/nested"), (270, "/read")):
        [found] = await texts(client, path)
    assert json.loads(found) == {"list": [1, None, "é", 1, 1]}
    moved[0] = 290
    assert await texts(client, "/read") == ["{}"]


@old_style_key
async def test_apps_can_preset_a_session_in_a_mocked_request() -> None:
    for session in (compat.Session("id", data=None, new=False), {"user": "ann"}):
        request = make_mocked_request("GET", "/")
        request[compat.SESSION_KEY] = session
        assert await compat.get_session(request) is session


@old_style_key
async def test_a_preset_session_is_used_and_saved_in_an_app(aiohttp_client: AiohttpClient) -> None:
    storage = ListStorage()

    @web.middleware
    async def preset(request: web.Request, handler: Any) -> web.StreamResponse:
        data: Any = {"created": int(time.time()), "session": {"user": "ann"}}
        request[compat.SESSION_KEY] = compat.Session(None, data=data, new=True)
        return await handler(request)  # type: ignore[no-any-return]

    app = make_app(compat, storage, *actions(compat))
    app.middlewares.append(preset)
    client = await aiohttp_client(app)
    assert json.loads((await texts(client, "/read"))[0]) == {"user": "ann"}
    await texts(client, "/write")
    assert [json.loads(one)["session"]["user"] for one in storage.records.values()] == ["ann"]


@pytest.mark.parametrize("key", ["SESSION_KEY"])
async def test_apps_can_give_the_session_another_place_in_the_request(
    key: str, monkeypatch: pytest.MonkeyPatch, aiohttp_client: AiohttpClient
) -> None:
    monkeypatch.setattr(compat, key, "session")

    async def look(request: web.Request) -> web.Response:
        session = await compat.get_session(request)
        return web.json_response([request["session"] is session, "aiohttp_session" in request])

    client = await aiohttp_client(make_app(compat, ListStorage(), look))
    assert await texts(client, "/look") == ["[true, false]"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: compat.setup(web.Application(), 5), RuntimeError, "5 is no storage"),
        (lambda: compat.session_middleware(object()), RuntimeError, "is no storage"),
        (lambda: aiohttp_store.setup(web.Application(), ListStorage(), lifetime=9), ConfigError, "takes no lifetime"),  # type: ignore[arg-type]
        (lambda: compat.setup(web.Application(), ListStorage(path="x")), ConfigError, "path must"),
        (lambda: compat.RedisStorage("redis://localhost"), TypeError, "not a str"),
        (lambda: compat.Nothing, AttributeError, "Nothing"),
    ],
)
def test_what_cannot_work_is_said_at_once(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


async def test_setup_takes_a_url_as_well(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(make_app(compat, "memory://", *actions(compat)))
    assert json.loads((await texts(client, "/write?a=1", "/read"))[1])["a"] == "1"


def run(code: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


BLOCK = "import sys\nfor name in ('cryptography', 'nacl', 'redis', 'aiomcache'): sys.modules[name] = None\n"
DROP_IN = textwrap.dedent(
    re.findall(r"^    from aiohttp_store.compat import .+\n\n    .+\n", GUIDE.read_text(), re.MULTILINE)[0]
)
TRY = "try: {}\nexcept {} as error: print(error)\n"


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        ("import aiohttp_store, sys; print([name for name in sys.modules if 'store.compat' in name])", r"\[\]"),
        (
            "import aiohttp_session\nfrom aiohttp_store.compat import install_as_aiohttp_session as install\n"
            + TRY.format("install()", "RuntimeError"),
            r"was imported already, from '.*aiohttp_session.__init__\.py'; call install_as",
        ),
        (
            "from aiohttp_store import compat\n"
            "compat.install_as_aiohttp_session()\n"
            "compat.install_as_aiohttp_session()\nimport aiohttp_session, aiohttp_session.cookie_storage\n"
            "from aiohttp_session.redis_storage import RedisStorage\n"
            "from aiohttp_session import cookie_storage, memcached_storage, nacl_storage\n"
            "print(aiohttp_session is compat, RedisStorage is compat.RedisStorage, "
            "cookie_storage.__spec__.name, cookie_storage.EncryptedCookieStorage is compat.EncryptedCookieStorage)\n"
            + TRY.format("import aiohttp_session.nothing", "ModuleNotFoundError"),
            "True True aiohttp_store.compat.cookie_storage True\nNo module named 'aiohttp_session.nothing'",
        ),
        (DROP_IN + "import aiohttp_session\nprint(aiohttp_session.setup.__module__)", "aiohttp_store.compat.web"),
        (BLOCK + "from aiohttp_store import compat\n"
         + TRY.format("compat.EncryptedCookieStorage", "ImportError")
         + TRY.format("compat.NaClCookieStorage", "ImportError")
         + TRY.format("compat.MemcachedStorage", "ImportError")
         + TRY.format("compat.RedisStorage(None)", "RuntimeError"),
         r"(?s)aiohttp_store\[cookie\].*pip install pynacl.*aiohttp_store\[memcached\].*aiohttp_store\[redis\]"),
    ],
)  # fmt: skip
def test_importing(code: str, printed: str) -> None:
    assert re.search(printed, run(code))
