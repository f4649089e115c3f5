"""The model for third parties: the example's storage keeps the contract, with a real server, and can be packaged."""

from __future__ import annotations

import ast
import asyncio
import importlib
import re
from typing import Any

import pytest

import aiohttp_store
from aiohttp_store import ConfigError, Saved, SessionTooLarge
from aiohttp_store.storages import storage_from_url
from aiohttp_store.testing import StorageContract

from ..conftest import PATIENCE, Servers
from ..support.one_key import create, data_of, new_key, save
from ..support.pages import PAGES

PAGE = PAGES["docs/writing-a-storage.rst"]

importlib.import_module("examples.postgresql_storage")


class TestPostgreSQL(StorageContract):
    password = "s@crêt"
    patience = 10.0 * PATIENCE

    @pytest.fixture
    def server(self, servers: Servers) -> tuple[str, int]:
        return "127.0.0.1", servers.own("postgresql").port

    @pytest.fixture
    def make_storage(self, server: tuple[str, int]) -> Any:
        def make(space: str, server: tuple[str, int] = server) -> aiohttp_store.Storage:
            host, port = server
            return storage_from_url(f"postgresql://visitor:s%40crêt@{host}:{port}/postgres?table={space}")

        return make


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://host", "must name one database; write postgresql://user@host/database"),
        ("postgresql://one,two/db", "postgresql:// takes one host"),
        ("postgresql://host/db?table=a;b", "table='a;b' must be"),
        ("postgresql://host/db?tabel=a", "did you mean 'table'?"),
        ("postgresql://host/db?timeout=0", "timeout=0.0 must be"),
    ],
)
def test_a_wrong_url_is_refused_with_the_way_out(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        storage_from_url(url)


async def test_a_record_over_the_limit_is_too_large(servers: Servers) -> None:
    async with aiohttp_store.open_storage(f"{servers.url('postgresql')}?table=limited&timeout={PATIENCE}") as storage:
        await create(storage, new_key(), bytes(16 << 20))
        with pytest.raises(SessionTooLarge) as caught:
            await save(storage, new_key(), bytes((16 << 20) + 1))
        assert caught.value.limit == 16 << 20


async def test_the_table_is_made_again_when_it_was_dropped(servers: Servers) -> None:
    async with aiohttp_store.open_storage(f"{servers.url('postgresql')}?table=dropped&timeout={PATIENCE}") as storage:
        await create(storage, new_key())
        await storage._ask("DROP TABLE dropped")  # type: ignore[attr-defined]
        key = new_key()
        assert isinstance(await save(storage, key, b"anew"), Saved)
        assert await data_of(storage, key) == b"anew"


async def test_the_sweep_runs_by_itself_and_in_one_process_at_a_time(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{servers.url('postgresql')}?table=swept&timeout={PATIENCE}"
    rows = "SELECT count(*) FROM swept"
    async with aiohttp_store.open_storage(url) as opened:
        storage: Any = opened
        for _ in range(3):
            await create(storage, new_key(), ttl=1)
        await asyncio.sleep(1.1)
        async with storage._connection() as other, other.transaction():
            await other.execute("SELECT pg_advisory_xact_lock(hashtext('aiohttp_store.swept'))")
            assert await storage.sweep() == 0
        assert (await storage._ask(rows))[0][0] == 3
    real = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda delay: real(delay and 0.01))
    async with aiohttp_store.open_storage(url) as opened:
        storage = opened
        while (await storage._ask(rows))[0][0]:
            await real(0.01)


# The page about it


def test_the_page_tells_what_an_author_gives_and_the_defaults() -> None:
    table = PAGE.read_text().partition("what you give  ")[2].partition("What cannot be tested")[0]
    rows = dict(re.findall(r"^``(\w+)`` +(.+?)  ", table, re.MULTILINE))
    settings = {name: value for name, value in vars(StorageContract).items() if isinstance(value, bool | float | None)}
    assert {name: ast.literal_eval(rows[name].strip("`")) for name in settings if name in rows} == {
        name: value for name, value in settings.items() if not name.startswith("__")
    }
    assert rows["make_storage"] == "must be given"
    assert set(rows) == {"make_storage", "server", "shared", "password", "patience"}
