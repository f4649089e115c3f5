"""Which storages the suite runs over, and the servers behind them."""

from __future__ import annotations

import gc
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import pytest_asyncio
from aiohttp import pytest_plugin, web
from aiohttp.test_utils import TestClient
from aiohttp.typedefs import Handler

import aiohttp_store
from aiohttp_store import Storage

from .support.servers import SERVERS, Server, ServerSet

# A new storage adds a line here, and every suite runs over it: its name, its server, its URL's scheme.
STORAGES = {
    "memory": (None, "memory"),
    "redis": ("redis", "redis"),
    "redis_cluster": ("redis_cluster", "redis+cluster"),
    "memcached": ("memcached", "memcached"),
    "memcached_nodes": ("memcached_nodes", "memcached"),
    "mongodb": ("mongodb", "mongodb"),
    "pymongo": ("mongodb", "mongodb+pymongo"),
    "mysql": ("mysql", "mysql"),
    "sqlite": (None, "sqlite"),
}
SHARED = [name for name in STORAGES if name != "memory"]
"""The storages whose sessions several processes see."""
SERVED = [name for name, (server, _) in STORAGES.items() if server is not None]
"""Those that have a server."""
ONE_SERVER = [name for name in SERVED if not issubclass(SERVERS[STORAGES[name][0] or ""], ServerSet)]
"""Those that a proxy can stand before."""

PATIENCE = 60
"""Seconds a storage has where a test is not about deadlines, so that a slow machine fails none."""

hypothesis.settings.register_profile(
    "suite", max_examples=40, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("fuzz", hypothesis.settings.get_profile("suite"), max_examples=1000)
hypothesis.settings.load_profile("suite")

TRACED = "memory"
"""The storage over which a test of something else is traced for the coverage; test_storages.py is over every one."""
UNTRACED = {
    *("test_browser.py", "test_browser_cookies.py", "test_browser_other_sites.py", "test_browser_page.py"),
    "test_chaos.py",
    *("test_example_apps.py", "test_example_deployments.py", "test_examples.py", "test_outages.py"),
    *("test_mutants.py", "test_nginx_headers.py", "test_simulation.py"),
}
"""Files that reach no line of the package that others do not; most of it runs in processes of their own there."""


ABOVE_DRIVERS = {
    *("test_conflicts.py", "test_identity.py", "test_lifetimes.py", "test_odd_data.py", "test_requests.py"),
    *("test_hostile_input.py", "test_websockets.py", "test_failed_and_late.py", "test_cookie_path.py"),
    *("test_express.py", "test_fields.py"),
}
"""Files about what stands above the three verbs: of one server's two drivers the first is enough for them."""


@pytest.hookimpl(trylast=True)  # hypothesis marks its tests first
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only repeats; and of the coverage too, as whatever a traced test does takes twice as long."""
    items[:] = [one for one in items if one.path.name not in ABOVE_DRIVERS or _storage_of(one) != "pymongo"]
    if not config.pluginmanager.hasplugin("_cov"):
        return
    for item in items:
        is_of_another = item.path.name != "test_storages.py" and _storage_of(item) != TRACED
        if is_of_another or item.path.name in UNTRACED or item.get_closest_marker("hypothesis"):
            item.add_marker("no_cover")


def _storage_of(item: pytest.Item) -> str:
    """Return the storage over which a test runs; those that name none use memory."""
    call = getattr(item, "callspec", None)
    return "memory" if call is None else str(call.params.get("storage_name", "memory"))


def pytest_collection_finish() -> None:
    """Leave what is there for good out of each later search for garbage, of which the tests make many."""
    gc.collect()
    gc.freeze()


class Servers:
    """Starts each server at its first use; a URL in the environment takes the place of one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, Server] = {}

    def url(self, name: str) -> str:
        return os.environ.get(f"AIOHTTP_STORE_TEST_{name.upper()}_URL") or self.own(name).url

    def own(self, name: str) -> Server:
        """Give a server that the suite started itself, and so may be stopped and killed."""
        if name not in self.running:
            server = SERVERS[name](self.folder / name)
            server.start()
            self.running[name] = server
        return self.running[name]


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    running = Servers(tmp_path_factory.mktemp("servers"))
    yield running
    for server in running.running.values():
        server.kill()


@pytest.fixture(params=STORAGES)
def storage_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def new_url(servers: Servers, storage_name: str, **parameters: object) -> str:
    """Give a URL of a storage that names a space of its own."""
    server, scheme = STORAGES[storage_name]
    if storage_name == "memory":
        base = "memory://"
    elif server is None:
        base = f"{scheme}:///{servers.folder / secrets.token_hex(6)}.db"
        parameters = {"timeout": PATIENCE, **parameters}
    else:
        base = scheme + "://" + servers.url(server).partition("://")[2]
        space = {"mysql": "table", "mongodb": "collection"}.get(server, "prefix")
        parameters = {space: f"t{secrets.token_hex(6)}", "timeout": PATIENCE, **parameters}
    query = "&".join(f"{key}={value}" for key, value in parameters.items())
    return base + ("&" if "?" in base else "?") * bool(query) + query


def patient(storage: Storage) -> Storage:
    """Return the storage, whose URL may have no timeout, with `PATIENCE`."""
    storage.timeout = PATIENCE
    return storage


@asynccontextmanager
async def opening(url: str) -> AsyncIterator[Storage]:
    """Open the storage of a URL, with `PATIENCE` if that says nothing else."""
    if "timeout=" not in url:
        url += f"{'&' if '?' in url else '?'}timeout={PATIENCE}"
    async with aiohttp_store.open_storage(url) as storage:
        yield storage


@pytest.fixture
def make_url(storage_name: str, servers: Servers) -> Callable[..., str]:
    """Give a maker of URLs of the storage under test; each call names a space of its own."""
    return partial(new_url, servers, storage_name)


@pytest.fixture
def storage_url(make_url: Callable[..., str]) -> str:
    return make_url()


@pytest.fixture
async def storage(storage_url: str) -> AsyncIterator[Storage]:
    async with aiohttp_store.open_storage(storage_url) as opened:
        yield patient(opened)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Any]:
    """Give Chromium, started once for the tests of a file, which share its event loop."""
    from .support.browser import chromium

    async with chromium() as started:
        yield started


AiohttpClient = pytest_plugin.AiohttpClient
AiohttpServer = pytest_plugin.AiohttpServer
Client = TestClient[web.Request, web.Application]
Serve = Callable[..., Awaitable[Client]]


@pytest.fixture
def serve(aiohttp_client: AiohttpClient) -> Serve:
    """Give a function that serves handlers, each at a path of its name, and gives a client."""

    async def start(*handlers: Handler, storage: str | Storage = "memory://", **options: Any) -> Client:
        app = web.Application()
        for handler in handlers:
            app.router.add_route("*", f"/{handler.__name__}", handler)
        aiohttp_store.setup(app, storage, **options)
        if storage == "memory://":
            patient(aiohttp_store.get_storage(app))
        return await aiohttp_client(app)

    return start


@pytest.fixture(autouse=True)
def warn_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what was logged seldom, so that no test depends on another."""
    monkeypatch.setattr("aiohttp_store._log._last", {})
