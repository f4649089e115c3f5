"""What the comparison says of this package and of aiohttp-session is what both do, on a real Redis."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import pkgutil
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import aiohttp_session
import pytest
from aiohttp import ClientSession, DummyCookieJar, TCPConnector, web
from aiohttp.test_utils import TestServer
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from aiohttp_session.redis_storage import RedisStorage
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

import aiohttp_store
from aiohttp_store import ConfigError, Cookie
from aiohttp_store.storages import SCHEMES
from aiohttp_store.testing import Clock, freeze

from ..conftest import PATIENCE, AiohttpServer, Servers
from ..support.pages import PAGES, table
from ..support.proxy import Proxy
from ..support.servers import free_port

pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web.NotAppKeyWarning")  # theirs: keys that are strings

PAGE = PAGES["docs/comparison.rst"]
HEADS = ("aiohttp_store", "aiohttp-session", "express-session", "Django", "Spring Session")
NOT_RUN = {
    "expired rows in SQL",  # the suites of SQLite and MySQL show the sweep
    "end all sessions of a user",  # what is not there cannot be run
    "an id in a header, without cookies",
    "events",
    "framework",
    "third-party storages",
    "age",
}
"""The rows of the page that no scenario can show."""
HANDLERS = (
    *("show", "write", "slow", "leave", "nest", "crash", "count", "identity", "prepared"),
    *("renew", "move", "remember"),
)
LIMIT = 100
AT_ONCE = 150
"""More than the connections that a client of redis-py opens by default: 100 since redis-py 8."""
SECRET, OTHER_SECRET = b"one secret of exactly 32 bytes..", b"the other, it is as long: 32 ..."


class Answer(NamedTuple):
    status: int
    data: Any
    header: str
    """The `Set-Cookie`, if there is one."""

    @property
    def cookie(self) -> str:
        return self.header.partition(";")[0]


class Product:
    """One of the two packages, as an app uses it, with a space of its own in Redis."""

    package: ClassVar[Any]
    idle: ClassVar[dict[str, int]]
    """The option that ends a session which is not used for `LIMIT` seconds, or comes closest to that."""
    absolute: ClassVar[dict[str, int]]
    """Likewise the one that ends it however busy it is."""

    def __init__(self, url: str, redis: Redis, start: AiohttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url, self.redis, self.start, self.monkeypatch = url, redis, start, monkeypatch
        self.space = f"T{secrets.token_hex(6)}"
        self.server: TestServer | None = None
        self.loaded = asyncio.Event()
        """A handler that waits has its session."""
        self.go_on = asyncio.Event()

    async def serve(self, **options: Any) -> web.Application:
        """Serve the app; from here on `ask` asks this one."""
        app = web.Application()
        self.install(app, **options)
        return await self.serve_app(app)

    async def serve_app(self, app: web.Application) -> web.Application:
        for name in HANDLERS:
            app.router.add_get(f"/{name}", getattr(self, name))
        self.server = await self.start(app)
        return app

    async def ask(self, path: str, cookie: str = "", browser: ClientSession | None = None) -> Answer:
        assert self.server is not None
        if browser is None:
            async with ClientSession(cookie_jar=DummyCookieJar()) as one:
                return await self.ask(path, cookie, one)
        async with browser.get(self.server.make_url(path), headers={"Cookie": cookie}) as response:
            text = await response.text()
            data = json.loads(text) if response.status == 200 and text.startswith("{") else text
            return Answer(response.status, data, response.headers.get("Set-Cookie", ""))

    async def begin(self) -> str:
        """Begin a session, and give the cookie."""
        answer = await self.ask("/write?user=ann")
        assert answer.cookie
        return answer.cookie

    async def records(self) -> dict[str, bytes]:
        """Give all that is stored in this space."""
        redis: Any = self.redis  # its types know of text alone, or of bytes
        return {key.decode(): await redis.get(key) async for key in redis.scan_iter(f"*{self.space}*")}

    # The handlers of the app.

    async def session(self, request: web.Request) -> Any:
        return await self.package.get_session(request)

    async def show(self, request: web.Request) -> web.Response:
        return web.json_response(dict(await self.session(request)))

    async def write(self, request: web.Request) -> web.Response:
        (await self.session(request)).update(request.query)
        return web.json_response({})

    async def slow(self, request: web.Request) -> web.Response:
        session = await self.session(request)
        session.update(request.query)
        self.loaded.set()
        await self.go_on.wait()
        return web.json_response({})

    async def leave(self, request: web.Request) -> web.Response:
        (await self.session(request)).invalidate()
        return web.json_response({})

    async def nest(self, request: web.Request) -> web.Response:
        session = await self.session(request)
        session.setdefault("cart", {}).setdefault("items", []).append(1)
        return web.json_response({})

    async def crash(self, request: web.Request) -> web.Response:
        (await self.session(request))["crashed"] = 1
        raise RuntimeError("the handler crashes")

    async def count(self, request: web.Request) -> web.Response:
        session = await self.session(request)
        session.get("n")
        if "slow" in request.query:
            self.loaded.set()
            await self.go_on.wait()
        await self.count_in(session)
        return web.json_response({})

    async def identity(self, request: web.Request) -> web.Response:
        return web.json_response({"id": (await self.session(request)).identity})

    async def prepared(self, request: web.Request) -> web.StreamResponse:
        session = await self.session(request)
        session["before"] = 1
        socket = "socket" in request.query
        response: web.StreamResponse = web.WebSocketResponse() if socket else web.StreamResponse()
        await response.prepare(request)
        session["after"] = 1
        return response

    # What the two do differently.

    def install(self, app: web.Application, **options: Any) -> None:
        raise NotImplementedError

    def uses_of_secrets(self) -> list[Callable[..., None]]:
        """Give functions that set up an app with one secret or several, for each use that secrets have."""
        raise NotImplementedError

    def cookie_options(self, **options: Any) -> dict[str, Any]:
        raise NotImplementedError

    def lifetimes(self, app: web.Application) -> Any:
        """Give a context in which time moves when the test says so."""
        raise NotImplementedError

    async def count_in(self, session: Any) -> None:
        raise NotImplementedError

    async def renew(self, request: web.Request) -> web.Response:
        """Ask for another id of this very session."""
        raise NotImplementedError

    async def move(self, request: web.Request) -> web.Response:
        """Bring the data under another id, in whatever way there is."""
        raise NotImplementedError

    async def remember(self, request: web.Request) -> web.Response:
        """Let this session live ten times as long as others."""
        raise NotImplementedError

    async def all_have_asked(self, asking: Callable[[], int]) -> None:
        """Return when nothing more happens until Redis answers, other than failures."""
        raise NotImplementedError


class Ours(Product):
    package: ClassVar[Any] = aiohttp_store
    idle: ClassVar[dict[str, int]] = {"idle_timeout": LIMIT}
    absolute: ClassVar[dict[str, int]] = {"lifetime": LIMIT}

    def install(self, app: web.Application, *, timeout: float = PATIENCE, **options: Any) -> None:
        aiohttp_store.setup(app, f"{self.url}?prefix={self.space}:&timeout={timeout}", **options)

    def uses_of_secrets(self) -> list[Callable[..., None]]:
        return [
            lambda app, *secrets: self.install(app, secret=secrets),
            lambda app, *secrets: aiohttp_store.setup(app, "cookie://", secret=secrets),
        ]

    def cookie_options(self, **options: Any) -> dict[str, Any]:
        return {"cookie": Cookie(**options)}

    def lifetimes(self, app: web.Application) -> Any:
        return freeze(app)

    async def count_in(self, session: Any) -> None:
        await session.apply(lambda session: session.update(n=session.get("n", 0) + 1))

    async def renew(self, request: web.Request) -> web.Response:
        (await self.session(request)).renew()
        return web.json_response({})

    async def move(self, request: web.Request) -> web.Response:
        return await self.renew(request)

    async def remember(self, request: web.Request) -> web.Response:
        (await self.session(request)).idle_timeout = 10 * LIMIT
        return web.json_response({})

    async def all_have_asked(self, asking: Callable[[], int]) -> None:
        while asking() < AT_ONCE:
            await asyncio.sleep(0.01)


class Theirs(Product):
    package: ClassVar[Any] = aiohttp_session
    idle: ClassVar[dict[str, int]] = {"max_age": LIMIT}
    absolute: ClassVar[dict[str, int]] = idle

    def install(self, app: web.Application, **options: Any) -> None:
        client = Redis.from_url(self.url, retry=Retry(NoBackoff(), 0))

        async def close(_: web.Application) -> None:
            await client.aclose()

        app.on_cleanup.append(close)
        aiohttp_session.setup(app, RedisStorage(client, **{"cookie_name": self.space, **options}))

    def uses_of_secrets(self) -> list[Callable[..., None]]:
        def encrypt(app: web.Application, *secrets: Any) -> None:
            secret: Any = secrets[0] if len(secrets) == 1 else secrets
            aiohttp_session.setup(app, EncryptedCookieStorage(secret))

        return [encrypt]

    def cookie_options(self, **options: Any) -> dict[str, Any]:
        return {("cookie_name" if name == "name" else name): value for name, value in options.items()}

    @contextmanager
    def lifetimes(self, app: web.Application) -> Iterator[Clock]:
        clock = Clock(time.time())
        with self.monkeypatch.context() as patch:
            patch.setattr(aiohttp_session, "time", SimpleNamespace(**{**vars(time), "time": lambda: clock.now}))
            yield clock

    async def count_in(self, session: Any) -> None:
        session["n"] = session.get("n", 0) + 1

    async def renew(self, request: web.Request) -> web.Response:
        try:
            (await self.session(request)).set_new_identity(secrets.token_hex())
        except RuntimeError as error:
            raise web.HTTPNotImplemented from error
        return web.json_response({})

    async def move(self, request: web.Request) -> web.Response:
        old = await self.session(request)
        (await aiohttp_session.new_session(request)).update(old)
        return web.json_response({})

    async def remember(self, request: web.Request) -> web.Response:
        session = await self.session(request)
        session.max_age = 10 * LIMIT
        session.changed()
        return web.json_response({})

    async def all_have_asked(self, asking: Callable[[], int]) -> None:
        await asyncio.Event().wait()  # so the first failure ends the wait


Scenario = Callable[[Product], Awaitable[str]]
SCENARIOS: dict[str, Scenario] = {}


def row(name: str) -> Callable[[Scenario], Scenario]:
    """Make this the scenario of the row of that name; it returns how the cells of its row begin."""

    def add(scenario: Scenario) -> Scenario:
        SCENARIOS[name] = scenario
        return scenario

    return add


async def race(product: Product, slow: str, meanwhile: str) -> Any:
    """Let one request load the session, another be answered, and then the first end; give what is stored then."""
    cookie = await product.begin()
    first = asyncio.create_task(product.ask(slow, cookie))
    await product.loaded.wait()
    assert (await product.ask(meanwhile, cookie)).status == 200
    product.go_on.set()
    assert (await first).status == 200
    return (await product.ask("/show", cookie)).data


@row("storages that come with it")
async def _storages(product: Product) -> str:
    if isinstance(product, Ours):
        ours = [str(target) for target in SCHEMES.values() if str(target).startswith("aiohttp_store.")]
        modules = {target.partition(":")[0].rpartition(".")[2] for target in ours}
        return str(len({module.removesuffix("_cluster") for module in modules}))
    names = [module.name for module in pkgutil.iter_modules(aiohttp_session.__path__, "aiohttp_session.")]
    return str(
        len(
            {
                one
                for name in ["aiohttp_session", *names]
                for _, one in inspect.getmembers(importlib.import_module(name), inspect.isclass)
                if issubclass(one, aiohttp_session.AbstractStorage) and not inspect.isabstract(one)
            }
        )
    )


@row("one URL or setting selects it")
async def _one_url(product: Product) -> str:
    app = web.Application()
    try:
        product.package.setup(app, product.url)
    except RuntimeError:
        return "no"
    await product.serve_app(app)
    return "yes" if (await product.ask("/show", await product.begin())).data == {"user": "ann"} else "no"


@row("where the data lives")
async def _where(product: Product) -> str:
    await product.serve()
    cookie = await product.begin()
    assert "ann" not in cookie
    return "server" if [b"ann" in record for record in (await product.records()).values()] == [True] else "cookie"


@row("stored as")
async def _stored_as(product: Product) -> str:
    await product.serve()
    await product.begin()
    [record] = (await product.records()).values()
    return "JSON" if b'{"user":"ann"}' in record.replace(b" ", b"") else "else"


@row("a change in a nested value")
async def _nested(product: Product) -> str:
    await product.serve()
    cookie = (await product.ask("/nest")).cookie
    await product.ask("/nest", cookie)
    return "seen" if (await product.ask("/show", cookie)).data == {"cart": {"items": [1, 1]}} else "not seen"


@row("two requests, different keys")
async def _different_keys(product: Product) -> str:
    await product.serve()
    kept = await race(product, "/slow?slow=1", "/write?fast=1")
    return "both kept" if {"slow", "fast"} <= set(kept) else "one lost"


@row("two requests, the same key")
async def _same_key(product: Product) -> str:
    await product.serve()
    kept = await race(product, "/slow?key=slow", "/write?key=fast")
    return "the later" if kept["key"] == "slow" else "the earlier"


@row("an exact counter")
async def _counter(product: Product) -> str:
    await product.serve()
    return "yes" if (await race(product, "/count?slow", "/count"))["n"] == 2 else "no"


@row("a save after a logout")
async def _late_save(product: Product) -> str:
    await product.serve()
    return "dropped" if await race(product, "/slow?key=late", "/leave") == {} else "revives"


@row("a handler that crashes")
async def _crash(product: Product) -> str:
    await product.serve()
    cookie = await product.begin()
    assert (await product.ask("/crash", cookie)).status == 500
    return "saved" if "crashed" in (await product.ask("/show", cookie)).data else "not saved"


@row("streams and WebSockets")
async def _streams(product: Product) -> str:
    await product.serve()
    kept = []
    for path in ("/prepared", "/prepared?socket"):
        cookie = await product.begin()
        if "socket" in path:
            assert product.server is not None
            async with ClientSession(cookie_jar=DummyCookieJar()) as browser:
                url = product.server.make_url(path)
                async with browser.ws_connect(url, headers={"Cookie": cookie}) as socket:
                    await socket.receive()  # until the handler has ended
        else:
            await product.ask(path, cookie)
        kept.append({"before", "after"} <= set((await product.ask("/show", cookie)).data))
    return {(True, True): "saved", (False, False): "dropped"}.get((kept[0], kept[1]), "one of them")


@row("a new id for the same data")
async def _renewal(product: Product) -> str:
    await product.serve()
    cookie = await product.begin()
    renewed = await product.ask("/renew", cookie)
    if renewed.status == 501:
        return "no"
    return "yes" if renewed.cookie != cookie and (await product.ask("/show", renewed.cookie)).data else "no"


@row("the old id afterwards")
async def _old_id(product: Product) -> str:
    await product.serve()
    cookie = await product.begin()
    moved = (await product.ask("/move", cookie)).cookie
    assert moved not in ("", cookie)
    return "alive" if (await product.ask("/show", cookie)).data else "dead"


@row("renewed at login by itself")
async def _at_login(product: Product) -> str:
    await product.serve()
    cookie = (await product.ask("/write?seen=1")).cookie
    await product.ask("/write?user=ann", cookie)
    return "no" if (await product.ask("/show", cookie)).data == {"seen": "1", "user": "ann"} else "yes"


@row("the id in the database")
async def _stored_id(product: Product) -> str:
    await product.serve()
    cookie = await product.begin()
    found = (await product.ask("/identity", cookie)).data["id"]
    return "plain" if any(found in key for key in await product.records()) else "hashed"


@row("the id in the cookie is signed")
async def _signed(product: Product) -> str:
    await product.serve(**({"secret": SECRET} if isinstance(product, Ours) else {}))
    cookie = await product.begin()
    found = (await product.ask("/identity", cookie)).data["id"]
    forged = [f"{cookie.partition('=')[0]}={found}{signature}" for signature in ("", f".{'A' * 43}")]
    return "no" if any([(await product.ask("/show", one)).data for one in forged]) else "yes"


@row("several secrets, to change them")
async def _rotation(product: Product) -> str:
    kept = []
    for install in product.uses_of_secrets():
        app = web.Application()
        install(app, SECRET)
        await product.serve_app(app)
        cookie = await product.begin()
        app = web.Application()
        try:
            install(app, OTHER_SECRET, SECRET)
        except TypeError:
            return "no"
        await product.serve_app(app)
        kept.append((await product.ask("/show", cookie)).data == {"user": "ann"})
    return "yes" if all(kept) else "no"


@row("rules of ``__Host-`` checked")
async def _prefixes(product: Product) -> str:
    try:
        product.install(web.Application(), **product.cookie_options(name="__Host-s", domain="example.org"))
    except ConfigError:
        return "yes"
    return "no"


@row("``Partitioned``, ``Priority``")
async def _attributes(product: Product) -> str:
    try:
        options = product.cookie_options(partitioned=True, priority="High", samesite="None")
        await product.serve(**options)
    except TypeError:
        return "neither"
    header = (await product.ask("/write?user=ann")).header
    return "both" if {"Partitioned", "Priority=High"} <= set(header.split("; ")) else "neither"


@row("``SameSite`` by default")
async def _same_site(product: Product) -> str:
    await product.serve()
    found = re.search("SameSite=(.*)", (await product.ask("/write?user=ann")).header)
    return "none" if found is None else found[1]


@row("idle timeout by default")
async def _default_timeout(product: Product) -> str:
    await product.serve()
    await product.begin()
    [key] = await product.records()
    left = await product.redis.ttl(key)
    return "none" if left == -1 else "a day" if 86_000 < left <= 86_400 else f"{left} seconds"


@row("a read prolongs")
async def _reads_prolong(product: Product) -> str:
    app = await product.serve(**product.idle)
    with product.lifetimes(app) as clock:
        cookie = await product.begin()
        clock.advance(LIMIT * 0.6)
        assert (await product.ask("/show", cookie)).data
        clock.advance(LIMIT * 0.6)
        prolonged = bool((await product.ask("/show", cookie)).data)
        clock.advance(LIMIT * 1.2)
        assert (await product.ask("/show", cookie)).data == {}
    return "yes" if prolonged else "no"


@row("lifetime, however busy")
async def _lifetime(product: Product) -> str:
    app = await product.serve(**product.absolute)
    with product.lifetimes(app) as clock:
        cookie = await product.begin()
        clock.advance(LIMIT * 0.6)
        await product.ask("/write?busy=1", cookie)
        clock.advance(LIMIT * 0.6)
        return "no" if (await product.ask("/show", cookie)).data else "yes"


@row("a timeout of one session alone")
async def _own_timeout(product: Product) -> str:
    app = await product.serve(**product.idle)
    with product.lifetimes(app) as clock:
        cookie = await product.begin()
        await product.ask("/remember", cookie)
        clock.advance(LIMIT * 2)
        return "yes" if (await product.ask("/show", cookie)).data else "no"


@row("the storage is away")
async def _away(product: Product) -> str:
    await product.serve()
    cookie = await product.begin()
    product.url = re.sub(r":\d+", f":{free_port()}", product.url)
    await product.serve(**({"timeout": 1} if isinstance(product, Ours) else {}))
    return str((await product.ask("/show", cookie)).status)


@row("150 requests at once")
async def _many_at_once(product: Product) -> str:
    async with Proxy(product.url) as proxy:
        product.url = proxy.url
        await product.serve()
        assert product.server is not None
        cookie = await product.begin()
        proxy.answering.clear()
        loading, show = 0, product.session

        async def session(request: web.Request) -> Any:
            nonlocal loading
            loading += 1
            return await show(request)

        product.monkeypatch.setattr(product, "session", session)
        async with ClientSession(connector=TCPConnector(limit=0), cookie_jar=DummyCookieJar()) as browser:
            asked = [asyncio.create_task(product.ask("/show", cookie, browser)) for _ in range(AT_ONCE)]
            all_have_asked = asyncio.create_task(product.all_have_asked(lambda: loading))
            await asyncio.wait({*asked, all_have_asked}, return_when=asyncio.FIRST_COMPLETED)
            all_have_asked.cancel()
            proxy.answering.set()
            statuses = {answer.status for answer in await asyncio.gather(*asked)}
        await product.server.close()
    return "all served" if statuses == {200} else "some fail"


@row("type hints")
async def _typed(product: Product) -> str:
    return "yes" if (files(product.package) / "py.typed").is_file() else "no"


@pytest.fixture
async def redis(servers: Servers) -> AsyncIterator[Redis]:
    client = Redis.from_url(servers.url("redis"))
    yield client
    await client.aclose()


@pytest.mark.parametrize(("product", "column"), [(Ours, 1), (Theirs, 2)], ids=["aiohttp_store", "aiohttp-session"])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_the_comparison_says_what_both_packages_do(
    name: str,
    product: type[Product],
    column: int,
    servers: Servers,
    redis: Redis,
    aiohttp_server: AiohttpServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "150 requests at once" and product is Theirs and redis.connection_pool.max_connections > AT_ONCE:
        pytest.skip("redis-py before 8 opens a connection for each, and the page is about the newest")
    (said,) = (cells[column] for cells in table(PAGE, "", *HEADS) if cells[0] == name)
    happened = await SCENARIOS[name](product(servers.url("redis"), redis, aiohttp_server, monkeypatch))
    assert re.match(rf"{re.escape(happened)}(?!\w)", said), f"the page says {said!r}, and it is {happened!r}"


def test_each_row_of_the_comparison_is_run_or_cannot_be() -> None:
    rows = table(PAGE, "", *HEADS)
    assert sorted(name for name, *_ in rows) == sorted([*SCENARIOS, *NOT_RUN])
    assert {len(cells) for cells in rows} == {1 + len(HEADS)}
    assert all(cell for cells in rows for cell in cells)


def test_the_comparison_names_the_versions_that_are_run() -> None:
    text = PAGE.read_text()
    assert f"aiohttp_store {aiohttp_store.__version__}" in text
    assert f"aiohttp-session {aiohttp_session.__version__}" in text
