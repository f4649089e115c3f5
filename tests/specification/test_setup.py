"""What `setup` accepts, refuses, opens and closes."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import aiohttp_store
from aiohttp_store import (
    ConfigError,
    Cookie,
    Record,
    Storage,
    StorageRefused,
    StorageURL,
    Write,
    get_session,
    get_storage,
    setup,
)
from aiohttp_store.compat import SimpleCookieStorage
from aiohttp_store.storages.memory import MemoryOptions, MemoryStorage

from ..conftest import PATIENCE, AiohttpClient, Serve, Servers
from ..support.remote import kept
from ..support.timing import AT_LAST


async def count(request: web.Request) -> web.Response:
    session = await get_session(request)
    session["n"] = session.get("n", 0) + 1
    return web.json_response(session["n"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "rediz://x"}, r"unknown storage 'rediz://'; did you mean 'redis://'\?"),
        ({"storage": "memory"}, "'memory' is not a storage URL"),
        ({"storage": "memory://?max_session=5"}, r"no parameter 'max_session'; did you mean 'max_sessions'\?"),
        ({"storage": "memory://?max_sessions=five"}, "max_sessions='five' is not of type int"),
        ({"storage": "memory://?max_sessions=0"}, "max_sessions=0 must be a finite number above 0"),
        ({"storage": "memory://?max_sessions=1&max_sessions=2"}, "'max_sessions' is given twice"),
        ({"storage": "memory://host"}, "parts that memory:// does not use"),
        ({"storage": 5}, "5 is no storage; give a URL"),
        ({"secret": "short"}, "secret 1 of 1 has 5 bytes, and 32 are the least"),
        ({"secret": ["x" * 32, "short"]}, "secret 2 of 2 has 5 bytes"),
        ({"secret": []}, "holds no secret"),
        ({"secret": bytearray(b"a secret of more than thirty-two bytes")}, "secret is of type bytearray"),
        ({"secret": memoryview(b"a secret of more than thirty-two bytes")}, "secret is of type memoryview"),
        ({"secret": [b"a secret of more than thirty-two bytes", 99]}, "give str or bytes, or a list of them"),
        ({"secret": 99}, "secret is of type int"),
        ({"idle_timeout": 0}, "idle_timeout=0 must be seconds or a timedelta, and above 0"),
        ({"idle_timeout": -1}, "idle_timeout=-1 must"),
        ({"idle_timeout": "60"}, "idle_timeout='60' must"),
        ({"idle_timeout": True}, "idle_timeout=True must"),
        ({"idle_timeout": float("nan")}, "idle_timeout=nan must"),
        ({"lifetime": timedelta(0)}, "lifetime=datetime.timedelta"),
        ({"lifetime": float("inf")}, "lifetime=inf must"),
        ({"on_conflict": "panic"}, "on_conflict='panic' must be 'merge', 'overwrite' or 'raise'"),
        ({"codec": object()}, "must have the methods dumps and loads"),
        ({"cookie": "session"}, "cookie='session' must be a Cookie"),
        ({"check": "no"}, "check='no' must be True or False"),
        ({"storage": SimpleCookieStorage(), "check": True}, "check=True cannot check a SimpleCookieStorage"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_with_the_way_out(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        setup(web.Application(), **{"storage": "memory://", **options})


def test_a_second_setup_of_one_app_is_refused() -> None:
    app = web.Application()
    setup(app)
    with pytest.raises(ConfigError, match="called twice"):
        setup(app)


async def test_nested_setups_with_one_cookie_are_refused_at_start_up() -> None:
    app, middle, below = web.Application(), web.Application(), web.Application()
    setup(below)
    middle.add_subapp("/below/", below)
    app.add_subapp("/middle/", middle)
    setup(app)
    runner = web.AppRunner(app)
    with pytest.raises(ConfigError, match="an app and its sub-app both keep sessions in the cookie 'session'"):
        await runner.setup()
    await runner.cleanup()


async def test_a_sub_app_with_its_own_cookie_has_its_own_session(aiohttp_client: AiohttpClient) -> None:
    app, below = web.Application(), web.Application()
    setup(app)
    setup(below, cookie=Cookie(name="below"))
    for one in (app, below):
        one.router.add_get("/count", count)
    app.add_subapp("/sub/", below)
    client = await aiohttp_client(app)
    counts = []
    for path in ("/count", "/count", "/sub/count", "/count", "/sub/count"):
        async with client.get(path) as response:
            counts.append(await response.json())
    assert counts == [1, 2, 1, 3, 2]
    assert sorted(cookie.key for cookie in client.session.cookie_jar) == ["below", "session"]


async def test_a_sub_app_without_setup_shares_its_parents_session(aiohttp_client: AiohttpClient) -> None:
    app, below = web.Application(), web.Application()
    setup(app)
    for one in (app, below):
        one.router.add_get("/count", count)
    app.add_subapp("/sub/", below)
    client = await aiohttp_client(app)
    counts = []
    for path in ("/count", "/sub/count"):
        async with client.get(path) as response:
            counts.append(await response.json())
    assert counts == [1, 2]


async def test_a_middleware_of_the_parent_keeps_its_session_around_a_sub_app(aiohttp_client: AiohttpClient) -> None:
    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        response = await handler(request)
        (await get_session(request))["outer"] = True
        return response  # type: ignore[no-any-return]

    async def show(request: web.Request) -> web.Response:
        return web.json_response(dict(await get_session(request)))

    app, below = web.Application(middlewares=[outer]), web.Application()
    setup(app)
    setup(below, cookie=Cookie(name="below"))
    below.router.add_get("/count", count)
    app.router.add_get("/show", show)
    app.add_subapp("/sub/", below)
    client = await aiohttp_client(app)
    async with client.get("/sub/count") as response:
        assert len(response.headers.getall("Set-Cookie")) == 2
    async with client.get("/show") as response:
        assert await response.json() == {"outer": True}


class Recording(Storage):
    def __init__(self) -> None:
        self.calls: list[str] = []

    async def open(self) -> None:
        self.calls.append("open")

    async def load(self, keys: Any) -> list[Record | None]:
        self.calls.append("load")
        return [None for _ in keys]

    async def save(self, writes: Any) -> list[Any]:
        self.calls.append("save")
        return [aiohttp_store.Saved(b"12345678") for _ in writes]

    async def delete(self, keys: Any) -> None:
        self.calls.append("delete")

    async def close(self) -> None:
        self.calls.append("close")


async def test_the_storage_is_opened_and_closed_with_the_app(serve: Serve) -> None:
    storage = Recording()
    client = await serve(count, storage=storage)
    assert storage.calls == ["open"]
    async with client.get("/count"):
        pass
    await client.close()
    assert storage.calls == ["open", "save", "close"]
    assert client.app is not None
    assert get_storage(client.app) is storage


class Refusing(Recording):
    async def save(self, writes: Any) -> list[Any]:
        await super().save(writes)
        raise PermissionError

    def refusal(self, error: Exception) -> str | None:
        return "grant the right to write" if isinstance(error, PermissionError) else None


class Down(Recording):
    async def save(self, writes: Any) -> list[Any]:
        await super().save(writes)
        raise ConnectionRefusedError


async def test_with_check_a_storage_that_refuses_fails_the_start_and_is_closed() -> None:
    storage, app = Refusing(), web.Application()
    setup(app, storage, check=True)
    runner = web.AppRunner(app)
    with pytest.raises(StorageRefused, match="refuses: PermissionError: ; grant the right to write"):
        await runner.setup()
    assert storage.calls == ["open", "save", "close"]
    await runner.cleanup()
    assert storage.calls == ["open", "save", "close"]


@pytest.mark.parametrize("kind", [Recording, Down])
async def test_with_check_a_storage_that_serves_or_is_down_lets_the_app_start(
    serve: Serve, kind: type[Recording], caplog: pytest.LogCaptureFixture
) -> None:
    storage = kind()
    await serve(count, storage=storage, check=True)
    assert storage.calls[:2] == ["open", "save"]
    assert ("does not answer" in caplog.text) is (kind is Down)


async def test_with_check_every_storage_starts(serve: Serve, storage_url: str) -> None:
    client = await serve(count, storage=storage_url, check=True)
    async with client.get("/count") as response:
        assert await response.json() == 1


@pytest.mark.parametrize(
    ("server", "url"),
    [
        ("redis", "redis://nobody:wrong@{}/0"),
        ("redis_cluster", "redis+cluster://nobody:wrong@{}"),
        ("redis", "memcached://{}"),
        ("mysql", "mysql://nobody:wrong@{}/test"),
        ("redis", "mysql://nobody@{}/test"),
        ("redis", "mongodb://{}/test"),
    ],
)
async def test_with_check_a_server_that_refuses_fails_the_start(servers: Servers, server: str, url: str) -> None:
    hosts = ",".join(f"{name}:{port}" for name, port in StorageURL.parse(servers.url(server)).hosts)
    app = web.Application()
    setup(app, f"{url.format(hosts)}?timeout={PATIENCE / 10}", check=True)
    runner = web.AppRunner(app)
    with pytest.raises(StorageRefused):
        await runner.setup()
    await runner.cleanup()


async def test_check_is_off_by_default_and_has_nothing_to_do_for_a_cookie(serve: Serve) -> None:
    storage = Refusing()
    await serve(count, storage=storage)
    assert storage.calls == ["open"]
    await serve(count, storage="cookie://", secret="s" * 32, check=True)


def test_an_app_without_setup_has_no_storage_and_no_sessions() -> None:
    with pytest.raises(RuntimeError, match=r"call aiohttp_store.setup\(app, storage\) first"):
        get_storage(web.Application())


async def test_a_request_without_setup_is_told_so(aiohttp_client: AiohttpClient) -> None:
    async def handler(request: web.Request) -> web.Response:
        with pytest.raises(RuntimeError, match="call aiohttp_store.setup"):
            await get_session(request)
        return web.Response()

    app = web.Application()
    app.router.add_get("/", handler)
    client = await aiohttp_client(app)
    async with client.get("/") as response:
        assert response.status == 200


async def test_the_bare_middleware_opens_its_storage_at_first_use(aiohttp_client: AiohttpClient) -> None:
    storage = Recording()
    app = web.Application(middlewares=[aiohttp_store.session_middleware(storage)])
    app.router.add_get("/count", count)
    client = await aiohttp_client(app)
    assert storage.calls == []
    for _ in range(2):
        async with client.get("/count") as response:
            assert response.status == 200
    assert storage.calls == ["open", "save", "load", "save"]


async def test_the_bare_middleware_refuses_a_change_that_it_cannot_save(
    aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        session = await get_session(request)
        if "change" in request.query:
            session["n"] = 1
        response = web.StreamResponse()
        await response.prepare(request)
        return response

    app = web.Application(middlewares=[aiohttp_store.session_middleware()])
    app.router.add_get("/stream", stream)
    client = await aiohttp_client(app)
    async with client.get("/stream") as response:
        assert response.status == 200
    assert not caplog.records
    async with client.get("/stream?change=1"):
        pass
    assert "use aiohttp_store.setup(app, storage)" in caplog.text


class Shouting(aiohttp_store.Storage):
    """A third party's storage."""

    @classmethod
    def from_url(cls, url: StorageURL) -> Shouting:
        assert url.host(7).port == 7
        return cls()

    async def load(self, keys: Any) -> list[Record | None]:
        return [None for _ in keys]

    async def save(self, writes: Any) -> list[Any]:
        return [aiohttp_store.Gone() for _ in writes]

    async def delete(self, keys: Any) -> None:
        pass


@pytest.mark.parametrize("target", [Shouting, Shouting.from_url, "tests.specification.test_setup:Shouting"])
async def test_a_registered_scheme_is_known_to_setup_and_open_storage(
    target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiohttp_store.storages.SCHEMES", {})
    aiohttp_store.register("shout", target)
    async with aiohttp_store.open_storage("shout://host") as storage:
        assert type(storage).__name__ == "Shouting"
        assert await storage.save([Write("k", b"v", b"d", 1)]) == [aiohttp_store.Gone()]


@pytest.mark.parametrize(
    ("scheme", "target", "message"),
    [
        ("Not A Scheme", Shouting, "'Not A Scheme' cannot be a URL scheme"),
        ("x", "module-without-a-name", "write 'package.module:name'"),
        ("x", 5, "5 is no storage"),
    ],
)
def test_a_wrong_registration_is_refused(scheme: str, target: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        aiohttp_store.register(scheme, target)


def test_a_registered_target_that_gives_no_storage_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiohttp_store.storages.SCHEMES", {})
    aiohttp_store.register("odd", str)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="and not a Storage"):
        setup(web.Application(), "odd://")


def test_a_storage_without_a_url_says_so() -> None:
    with pytest.raises(ConfigError, match="pass an instance to setup"):
        Recording.from_url(StorageURL.parse("recording://"))


@pytest.mark.parametrize(
    ("scheme", "installed", "extra"),
    [
        ("redis", set(), "redis"),
        ("redis+cluster", set(), "redis"),
        ("memcached", set(), "memcached"),
        ("mongodb", set(), "mongodb"),
        ("mongodb", {"bson", "pymongo"}, "mongodb"),
        ("mongodb+pymongo", set(), "mongodb"),
        ("mysql", set(), "mysql"),
        ("cookie", set(), "cookie"),
        ("sqlite", set(), "sqlite"),
    ],
)
def test_a_missing_driver_names_the_extra_to_install(scheme: str, installed: set[str], extra: str) -> None:
    code = (
        "import sys; from aiohttp import web\n"
        f"known = {{'aiohttp_store', *{installed}, *sys.stdlib_module_names, *sys.modules}}\n"
        "class Bare:\n"
        "    def find_spec(name, *_):\n"
        "        if name.partition('.')[0] not in known: raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Bare)\n"
        f"import aiohttp_store; aiohttp_store.setup(web.Application(), '{scheme}://localhost/db')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"pip install 'aiohttp_store[{extra}]'" in result.stderr.splitlines()[-1]
    assert "bson" not in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("debug", [False, True])
async def test_memory_is_warned_about_outside_debug_mode(
    debug: bool, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    import asyncio

    asyncio.get_running_loop().set_debug(debug)
    with caplog.at_level(logging.WARNING, "aiohttp_store"):
        await serve(count)
    assert ("for development only" in caplog.text) is not debug


async def test_memory_holds_at_most_max_sessions(serve: Serve) -> None:
    client = await serve(count, storage="memory://?max_sessions=3")
    ids = []
    for _ in range(4):
        client.session.cookie_jar.clear()
        async with client.get("/count") as response:
            ids.append(response.cookies["session"].value)
    counts = []
    for one in reversed(ids):
        client.session.cookie_jar.clear()
        async with client.get("/count", headers={"Cookie": f"session={one}"}) as response:
            counts.append(await response.json())
    assert counts == [2, 2, 2, 1]  # the oldest had to go


async def test_memory_forgets_what_has_expired_by_itself_a_part_at_a_time_and_gives_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aiohttp_store.storages.memory._ROUND", 0.1)
    storage = MemoryStorage(MemoryOptions(max_sessions=50_000))
    size = sum(map(sys.getsizeof, storage._parts))
    await storage.save([Write(f"short{number}", None, b"", 10) for number in range(40_000)])
    await storage.save([Write("long", None, b"", 100)])
    assert sum(map(sys.getsizeof, storage._parts)) > 20 * size
    clock = storage.clock
    storage.clock = lambda: clock() + 50
    await storage.open()
    steps, left = [], 40_001
    async with asyncio.timeout(AT_LAST):
        while left > 1:
            await asyncio.sleep(0)
            before, left = left, sum(map(len, storage._parts))
            steps.append(before - left)
    await storage.close()
    assert max(steps) <= 2048
    assert list(kept(storage)) == ["long"]
    assert sum(map(sys.getsizeof, storage._parts)) < 2 * size


def test_no_dictionary_of_memory_grows_large_however_many_sessions_there_are() -> None:
    storage = MemoryStorage(MemoryOptions(max_sessions=100_000))
    storage.save_now([Write(f"{number}", None, b"", 10) for number in range(150_000)])
    assert max(map(len, storage._parts)) <= 2048
    assert 95_000 < len(kept(storage)) <= 100_000
    newest, oldest = range(149_000, 150_000), range(1000)
    assert None not in storage.load_now([str(number) for number in newest])
    assert set(storage.load_now([str(number) for number in oldest])) == {None}


def test_an_installed_package_offers_schemes_by_its_entry_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shouting-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1\n")
    (folder / "entry_points.txt").write_text(
        "[aiohttp_store.storages]\nshout = tests.specification.test_setup:Shouting\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    app = web.Application()
    setup(app, "shout://host")
    assert type(get_storage(app)).__name__ == "Shouting"
    with pytest.raises(ConfigError, match=r"unknown storage 'shoot://'; did you mean 'shout://'\?"):
        setup(web.Application(), "shoot://host")


async def test_a_middleware_that_answers_first_and_a_handler_that_gives_nothing_are_left_to_aiohttp(
    aiohttp_client: AiohttpClient,
) -> None:
    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path == "/guarded":
            return web.Response(text="guarded")
        response: web.StreamResponse = await handler(request)
        return response

    async def nothing(request: web.Request) -> None:
        session = await get_session(request)
        session["n"] = 1

    app = web.Application()
    app.router.add_get("/nothing", nothing)  # type: ignore[arg-type]
    setup(app)
    app.middlewares.insert(0, guard)
    client = await aiohttp_client(app)
    async with client.get("/guarded") as response:
        assert (response.status, await response.text(), response.headers.get("Vary")) == (200, "guarded", None)
    async with client.get("/nothing") as response:
        assert response.status == 500
        assert not response.cookies
