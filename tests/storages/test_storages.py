"""The contract of `aiohttp_store.storage`, over every storage."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from aiohttp_store import Saved, SessionTooLarge, Storage, Write
from aiohttp_store.storages import storage_from_url
from aiohttp_store.storages.memory import MemoryStorage
from aiohttp_store.testing import StorageContract

from ..conftest import ONE_SERVER, PATIENCE, STORAGES, Servers, new_url
from ..support.one_key import new_key, save

SWEEPING = ["mysql", "sqlite"]


class TestStorages(StorageContract):
    """One suite, every URL."""

    password = "s@crêt"
    patience = 10.0 * PATIENCE

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Ask each storage for what it has, so that nothing is skipped."""
        if "storage_name" in metafunc.fixturenames:
            sweeps, fails = "sweep" in metafunc.definition.name, "server" in metafunc.fixturenames
            names = SWEEPING if sweeps else ONE_SERVER if fails else list(STORAGES)
            metafunc.parametrize("storage_name", names, indirect=True)

    @pytest.fixture
    def storage_name(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def server(self, storage_name: str, servers: Servers) -> tuple[str, int]:
        address = urlsplit(servers.url(STORAGES[storage_name][0] or ""))
        return address.hostname or "", address.port or 0

    @pytest.fixture
    def make_storage(self, storage_name: str, servers: Servers) -> Callable[..., Storage]:
        urls: dict[str, str] = {}
        parts: dict[str, Any] = {}

        def make(space: str, server: tuple[str, int] | None = None) -> Storage:
            if storage_name == "memory":
                memory = MemoryStorage()
                memory._parts = parts.setdefault(space, memory._parts)
                return memory
            if server is not None:
                url = new_url(servers, storage_name, timeout=2)
                return storage_from_url(url.replace(f":{urlsplit(url).port}", f":{server[1]}"))
            if space not in urls:
                urls[space] = new_url(servers, storage_name)
            return storage_from_url(urls[space])

        return make


async def test_a_value_over_the_servers_limit_is_too_large_and_fails_alone(storage_name: str, storage: Storage) -> None:
    server, _ = STORAGES[storage_name]
    limit = {"memcached": 1 << 20, "memcached_nodes": 1 << 20, "mysql": 16 << 20, "mongodb": 16 << 20}.get(server or "")
    if limit is None:
        assert isinstance(await save(storage, new_key(), b"x" * (17 << 20)), Saved)  # as large as memory allows
        return
    small, large = new_key(), new_key()
    with pytest.raises(SessionTooLarge) as caught:
        await storage.save([Write(large, None, b"x" * (limit + 1), 60)])
    assert caught.value.size > caught.value.limit
    assert isinstance(await save(storage, small, b"small"), Saved)
    assert await storage.load([large]) == [None]


def test_processes_that_were_forked_draw_other_versions() -> None:
    draw = "[new_version() for _ in range(9)]"
    code = (
        "import os, sys\n"
        "from aiohttp_store.storage import new_version\n"
        "new_version()\n"
        "read, write = os.pipe()\n"
        "if os.fork() == 0:\n"
        f"    os.write(write, b''.join({draw}))\n"
        "    os._exit(0)\n"
        f"mine, others = {draw}, os.read(read, 72)\n"
        "os.wait()\n"
        "theirs = [others[start:start + 8] for start in range(0, 72, 8)]\n"
        "sys.exit(len({*mine, *theirs}) != 18)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
