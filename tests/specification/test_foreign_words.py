"""Words and arguments that people bring from elsewhere are answered with ours."""

from __future__ import annotations

import inspect
import re
import typing
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import aiomcache
import pytest
from aiohttp import web
from pymongo import AsyncMongoClient
from redis.asyncio import Redis
from yarl import URL

from aiohttp_store import (
    ConfigError,
    Cookie,
    Options,
    StorageURL,
    get_session,
    get_storage,
    new_session,
    open_storage,
    session_middleware,
    setup,
)
from aiohttp_store._foreign_words import ROWS, answer
from aiohttp_store.compat import SimpleCookieStorage
from aiohttp_store.storages import SCHEMES, _mongodb_url, _redis_url, memcached, mysql, sqlite
from aiohttp_store.storages.memory import MemoryStorage

from ..conftest import AiohttpClient

Function = Callable[..., Any]


# Keywords.


def test_the_signature_of_setup_names_its_keywords_and_their_defaults() -> None:
    by_name = inspect.signature(setup).parameters
    assert list(by_name)[:2] == ["app", "storage"]
    assert by_name["storage"].default == "memory://"
    assert by_name["idle_timeout"].default == 86_400
    hints, options = typing.get_type_hints(setup), typing.get_type_hints(Options)
    assert {name: hints[name] for name in options} == options
    assert all(one.kind is one.KEYWORD_ONLY for name, one in by_name.items() if name in options)
    assert inspect.signature(session_middleware).parameters.keys() == {"storage", *options}
    assert setup.__name__ == "setup"


@pytest.mark.parametrize("function", [setup, session_middleware])
@pytest.mark.parametrize(
    ("keyword", "way"),
    [
        ("idle_timout", r"has no keyword 'idle_timout'; did you mean 'idle_timeout'\?; it knows .*secret"),
        ("Secret", "did you mean 'secret'"),
        ("zzz", "has no keyword 'zzz'; it knows .*codec"),
        *[
            (word, "idle_timeout=3600")
            for word in ("max_age", "maxAge", "ttl", "expires", "PERMANENT_SESSION_LIFETIME")
        ],
        ("SESSION_COOKIE_AGE", "idle_timeout=3600"),
        ("SESSION_EXPIRE_AT_BROWSER_CLOSE", r"Cookie\(persistent=True\)"),
        *[(word, r"cookie=Cookie\(name=") for word in ("cookie_name", "name", "session_cookie", "SESSION_COOKIE_NAME")],
        *[(word, r"cookie=Cookie\(httponly=") for word in ("httponly", "httpOnly", "SESSION_COOKIE_HTTPONLY")],
        *[(word, r"cookie=Cookie\(secure=") for word in ("secure", "https_only")],
        *[(word, r"cookie=Cookie\(samesite=") for word in ("samesite", "same_site", "SESSION_COOKIE_SAMESITE")],
        ("domain", r"cookie=Cookie\(domain="),
        ("path", r"cookie=Cookie\(path="),
        *[(word, "secret=") for word in ("secret_key", "keys", "SESSION_USE_SIGNER")],
        *[(word, "codec=") for word in ("encoder", "decoder", "SESSION_SERIALIZER")],
        *[(word, r"setup\(app, 'redis://") for word in ("store", "redis_pool", "SESSION_TYPE", "SESSION_ENGINE")],
        *[(word, "leave it out: a session is saved if it has changed") for word in ("resave", "saveUninitialized")],
        *[(word, "leave it out: ids are random") for word in ("genid", "key_factory")],
        *[(word, "in its URL|the storage's URL") for word in ("prefix", "pool_size", "tls", "timeout", "password")],
    ],
)
def test_a_keyword_from_elsewhere_is_answered_with_ours(function: Function, keyword: str, way: str) -> None:
    arguments = (web.Application(),) if function is setup else ()
    with pytest.raises(ConfigError, match=way) as caught:
        function(*arguments, **{keyword: 1})
    assert str(caught.value).startswith(f"{function.__name__}() has no keyword {keyword!r}; ")


@pytest.mark.parametrize(
    ("keyword", "way"),
    [
        ("max_age", "idle_timeout=3600"),
        ("same_site", r"Cookie\(samesite="),
        ("httpOnly", r"Cookie\(httponly="),
        ("nam", "did you mean 'name'"),
        ("zzz", "it knows name, path"),
    ],
)
def test_a_keyword_from_elsewhere_is_answered_by_cookie_as_well(keyword: str, way: str) -> None:
    with pytest.raises(ConfigError, match=rf"Cookie\(\) has no keyword {keyword!r}; .*{way}"):
        Cookie(**{keyword: 1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: setup(web.Application(), "memory://", "s" * 32), "write setup(app, storage, secret=…)"),  # type: ignore[call-arg]
        (lambda: Cookie("session"), "write Cookie(name=…, path=…)"),  # type: ignore[call-arg]
        (lambda: session_middleware(web.Application()), "give a URL"),  # type: ignore[arg-type]
    ],
)
def test_a_value_by_position_that_is_not_taken_is_answered_with_a_right_call(call: Function, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        call()


# Arguments.


@pytest.mark.parametrize(
    ("app", "message"),
    [
        ("memory://", "'memory://' is no web.Application; the app comes first, as in setup(app, 'redis://"),
        (None, "None is no web.Application; the app comes first"),
        (web.Application, "the class Application is no web.Application; give an instance of it"),
        (MemoryStorage(), "an object of type aiohttp_store.storages.memory.MemoryStorage is no web.Application"),
        ("redis://:topsecret@localhost", "an object of type builtins.str is no web.Application"),
    ],
)
def test_what_is_no_app_is_named_by_setup(app: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        setup(app, web.Application())  # type: ignore[arg-type]
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        (5, "5 is no storage; give a URL"),
        (None, "is an environment variable not set?"),
        (lambda: Redis(password="topsecret"), "RedisStorage(client), from aiohttp_store.storages.redis"),
        (lambda: aiomcache.Client("localhost"), "MemcachedStorage(client), from aiohttp_store.storages.memcached"),
        (lambda: AsyncMongoClient(connect=False), "MongoDBStorage(client), from aiohttp_store.storages.mongodb"),
        (Path("sessions.db"), "'sqlite:///file.db'"),
        (URL("redis://localhost"), "give str(url)"),
        (StorageURL.parse("redis://localhost"), "give the URL as a str"),
        (lambda: open_storage("memory://"), "async with open_storage(url) as storage"),
        (MemoryStorage, "the class MemoryStorage is no storage"),
        (SimpleCookieStorage, "the class SimpleCookieStorage is no storage"),
        (web.Application(), "an object of type aiohttp.web_app.Application is no storage"),
        (Cookie(), "an object of type aiohttp_store.cookie.Cookie is no storage"),
        ({"url": "redis://" + "h" * 500}, "an object of type builtins.dict is no storage"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
async def test_what_is_no_storage_is_named_by_its_type_with_the_way_out(storage: Any, message: str) -> None:
    storage = storage() if inspect.isfunction(storage) else storage
    app = web.Application()
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        setup(app, storage)
    assert len(str(caught.value)) < 250
    assert "topsecret" not in str(caught.value)
    setup(app)  # nothing was done


async def test_a_storage_or_nothing_in_place_of_a_url_is_named_by_open_storage() -> None:
    for wrong in (None, MemoryStorage(), Path("sessions.db")):
        with pytest.raises(ConfigError, match=r"open_storage\(\) takes a URL"):
            async with open_storage(wrong):  # type: ignore[arg-type]
                raise AssertionError


def test_open_storage_says_that_its_parameters_are_in_the_url() -> None:
    for keyword, way in (("pool_size", r"\?pool_size=16"), ("timeout", r"\?timeout=2"), ("zzz", "it knows url")):
        with pytest.raises(ConfigError, match=rf"open_storage\(\) has no keyword '{keyword}'; .*{way}"):
            open_storage("memory://", **{keyword: 5})
    with pytest.raises(ConfigError, match=r"write async with open_storage\(url\) as storage"):
        open_storage("memory://", 5)  # type: ignore[call-arg]


async def test_what_is_no_request_is_named_by_get_session_and_new_session(aiohttp_client: AiohttpClient) -> None:
    told = []

    async def show(request: web.Request) -> web.Response:
        view = web.View(request)
        with pytest.raises(ConfigError, match=r"write get_storage\(request\.app\)"):
            get_storage(request)  # type: ignore[arg-type]
        wrongs: tuple[Any, ...] = (request.app, None, "request", {}, await get_session(request), view)
        for function in (get_session, new_session):
            for wrong in wrongs:
                with pytest.raises(TypeError) as caught:
                    await function(wrong)
                told.append(str(caught.value))
        return web.Response()

    app = web.Application()
    setup(app)
    app.router.add_get("/", show)
    client = await aiohttp_client(app)
    async with client.get("/") as response:
        assert response.status == 200
    assert told[0] == (
        "get_session() takes the request, and was given an object of type aiohttp.web_app.Application; "
        "write get_session(request)"
    )
    assert told[1] == "get_session() takes the request, and was given None; write get_session(request)"
    assert "write get_session(self.request)" in told[5]
    assert all(one.startswith("new_session() takes the request, and was given") for one in told[6:])


@web.middleware
async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
    for function in (get_session, new_session):
        with pytest.raises(RuntimeError, match="before the request came to the sessions' middleware") as caught:
            await function(request)
        assert "call aiohttp_store.setup" not in str(caught.value)
        assert "append that one to app.middlewares" in str(caught.value)
    return await handler(request)  # type: ignore[no-any-return]


async def test_a_middleware_around_the_sessions_is_told_so_and_not_to_call_setup(aiohttp_client: AiohttpClient) -> None:
    async def show(request: web.Request) -> web.Response:
        return web.json_response(dict(await get_session(request)))

    by_setup, by_middleware, around = web.Application(), web.Application(), web.Application(middlewares=[outer])
    setup(by_setup)
    by_setup.middlewares.insert(0, outer)
    by_middleware.middlewares.extend([outer, session_middleware()])
    below = web.Application()
    setup(below)
    for app in (by_setup, by_middleware, below):
        app.router.add_get("/", show)
    around.add_subapp("/below", below)
    for app, path in ((by_setup, "/"), (by_middleware, "/"), (around, "/below/")):
        client = await aiohttp_client(app)
        async with client.get(path) as response:
            assert await response.json() == {}


@pytest.mark.filterwarnings("ignore:old-style middleware")
async def test_a_middleware_that_was_not_made_is_told_how_to_make_it(
    aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
) -> None:
    app = web.Application()
    app.middlewares.append(session_middleware)  # type: ignore[arg-type]
    client = await aiohttp_client(app)
    async with client.get("/") as response:
        assert response.status == 500
    assert "write app.middlewares.append(session_middleware(storage, secret=…))" in caplog.text


# Parameters and schemes of URLs.


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://h?ssl=true", "redis:// has no parameter 'ssl'; write tls=true"),
        ("mysql://h/d?ssl_mode=REQUIRED", "write tls=true"),
        ("memcached://h?use_ssl=1", "write tls=true"),
        ("redis://h?ssl_cert_reqs=none", "the certificate is always checked"),
        ("redis://h?ssl_ca_certs=a", "write tls_ca=…"),
        ("redis://h?ssl_certfile=a", "write tls_cert=…"),
        ("redis://h?ssl_keyfile=a", "write tls_key=…"),
        ("redis://h?max_connections=5", "write pool_size=16"),
        ("mysql://h/d?maxsize=5", "write pool_size=16"),
        ("mongodb://h?max_connections=5", "write pool_size=16"),
        ("redis://h?db=3", "the path names the database, as in redis://localhost/3"),
        ("mysql://h?database=d", "the path names the database"),
        ("mongodb://h?db=d", "the path names the database"),
        ("mysql://h/d?charset=utf8mb4", "leave it out: sessions are bytes to a server"),
        ("redis://h?decode_responses=1", "leave it out: sessions are bytes to a server"),
        ("redis://h?socket_timeout=5", "write timeout=2"),
        ("mysql://h/d?connect_timeout=5", "write timeout=2"),
        ("sqlite:///a.db?busy_timeout=5", "write timeout=2"),
        ("redis://h?key_prefix=a", "write prefix=…"),
        ("mysql://h/d?prefix=a", "write table=…"),
        ("mongodb://h?table=a", "write collection=…"),
        ("redis://h?password=a", "user and password stand before the host"),
        ("redis://h?ttl=5", "times are keywords of setup(): idle_timeout=3600"),
        ("redis://h?idle_timeout=5", "it is a keyword of setup(), such as setup(app, url, idle_timeout=3600)"),
        ("memory://?secret=a", "it is a keyword of setup()"),
        ("redis://h?cookie_name=a", "give setup() cookie=Cookie(name=…)"),
        ("redis://h?zzz=1", "it knows pool_size, prefix, replicas, timeout, tls, tls_ca, tls_cert, tls_key, migrate, "),
        ("memory://?tls=true", "memory:// has no parameter 'tls'; it knows max_sessions"),
    ],
)
def test_a_parameter_from_elsewhere_is_answered_with_ours(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        setup(web.Application(), url)


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("postgresql", "examples/postgresql_storage.py"),
        ("postgres", "examples/postgresql_storage.py"),
        ("postgresql+asyncpg", "examples/postgresql_storage.py"),
        ("mysql+aiomysql", "write mysql:// or mariadb://"),
        ("sqlite3", "write sqlite:///file.db"),
        ("redis+tls", "write rediss://"),
        ("redis-sentinel", "write redis+sentinel://"),
        ("unix", "write redis+unix:///path/to.sock"),
        ("keydb", "write redis://"),
        ("memcache", "write memcached://"),
        ("mongo", "write mongodb:// or mongodb+srv://"),
        ("locmem", "write memory://"),
        ("dynamodb", "register()"),
    ],
)
def test_a_scheme_from_elsewhere_is_answered_with_ours(
    scheme: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(SCHEMES, scheme, raising=False)  # where the example of a storage has registered one
    with pytest.raises(ConfigError, match=re.escape(f"unknown storage '{scheme}://'; ")) as caught:
        setup(web.Application(), f"{scheme}://host/path")
    assert message in str(caught.value)


# The table.


def test_the_table_answers_each_word_once_in_a_place_and_names_only_what_there_is() -> None:
    places = ("keyword", "attribute", "parameter", "scheme", "ours")
    answered = Counter(
        (word, place) for row in ROWS for word in row.words.split() for place in places if getattr(row, place)
    )
    assert [one for one, times in answered.items() if times > 1] == []
    assert all(re.fullmatch(r"[a-z0-9+]+", word) for word, _ in answered)
    urls = (_redis_url.SentinelOptions, memcached.MemcachedURLOptions, mysql.MySQLURLOptions, sqlite.SQLiteOptions)
    parameters = {field.name for kind in (*urls, _mongodb_url.URLOptions) for field in fields(kind)}
    assert {one.partition("=")[0] for row in ROWS for one in row.ours.split()} <= parameters
    by_keyword = " ".join(row.keyword for row in ROWS)
    named = {*re.findall(r"(?<![\w(?])(\w+)=", re.sub(r"Cookie\([^)]*\)|'[^']*'", "", by_keyword))}
    assert named - parameters <= Options.__annotations__.keys()
    assert {*re.findall(r"Cookie\((\w+)=", by_keyword)} <= {field.name for field in fields(Cookie)}
    assert answer("no such word", "keyword") == ""
