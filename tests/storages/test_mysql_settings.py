"""What a MySQL server may set for all its sessions, and what nothing of it may change."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiomysql  # type: ignore[import-untyped]
import pytest
from aiohttp import web

from aiohttp_store import Saved, Storage, Write, get_session
from aiohttp_store.storages.mysql import MySQLStorage

from ..conftest import PATIENCE, Serve, opening
from ..support.one_key import new_key
from ..support.servers import MariaDB
from .test_mysql import ask, setting


class Logging(MariaDB):
    """A server whose settings a test may change, with the binary log that many have."""

    def command(self) -> list[str]:
        return [*super().command(), "--log-bin=log", "--server-id=1"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    started = Logging(tmp_path_factory.mktemp("settings") / "mysql")
    started.start()
    yield started
    started.kill()


@pytest.fixture
async def root(server: MariaDB) -> AsyncIterator[Any]:
    connection = await aiomysql.connect(host="127.0.0.1", port=server.port, user="root", db="sessions", autocommit=True)
    yield connection
    await connection.ensure_closed()


@pytest.fixture
def url(server: MariaDB) -> str:
    return f"{server.url}?table=t{secrets.token_hex(6)}&timeout={PATIENCE}"


async def serves_a_batch(storage: Storage, number: int) -> None:
    """See that every verb does its work for so many keys at once."""
    keys = [new_key() for _ in range(number)]
    data = {key: b"" if place % 2 else key.encode() for place, key in enumerate(keys)}
    made = await storage.save([Write(key, None, data[key], 60) for key in keys])
    assert {type(outcome) for outcome in made} == {Saved}
    found = await storage.load(keys)
    assert [record and record.data for record in found] == list(data.values())
    changed = await storage.save(
        [Write(key, record.version, b"x", 60) for key, record in zip(keys, found, strict=True) if record]
    )
    assert [type(outcome) for outcome in changed] == [Saved] * number
    assert {record and record.data for record in await storage.load(keys)} == {b"x"}
    await storage.delete(keys)
    assert await storage.load(keys) == [None] * number


async def count(request: web.Request) -> web.Response:
    session = await get_session(request)
    session["n"] = session.get("n", 0) + 1
    return web.json_response(session["n"])


async def leave(request: web.Request) -> web.Response:
    (await get_session(request)).invalidate()
    return web.json_response(None)


SETTINGS = {
    "completion_type": ["'CHAIN'", "'RELEASE'"],
    "autocommit": ["0"],
    "tx_isolation": ["'READ-UNCOMMITTED'", "'REPEATABLE-READ'", "'SERIALIZABLE'"],
    "tx_read_only": ["1"],
    "sql_select_limit": ["1"],
    "sql_safe_updates": ["1"],
    "sql_big_selects": ["0"],
    "max_join_size": ["1"],
    "time_zone": ["'+05:00'"],
    "character_set_results": ["utf16"],
    "character_set_client": ["latin1"],
    "collation_connection": ["utf8mb4_bin"],
    "innodb_lock_wait_timeout": ["1"],
    "query_cache_type": ["1"],
    "sql_mode": [
        *("'ANSI_QUOTES'", "'NO_BACKSLASH_ESCAPES'", "'EMPTY_STRING_IS_NULL'", "'PAD_CHAR_TO_FULL_LENGTH'"),
        *("'ORACLE'", "'MSSQL'", "'PIPES_AS_CONCAT,IGNORE_SPACE,HIGH_NOT_PRECEDENCE'", "'TRADITIONAL'"),
        *("'NO_UNSIGNED_SUBTRACTION'", "'TIME_ROUND_FRACTIONAL'", "'NO_ENGINE_SUBSTITUTION'", "''"),
    ],
    "init_connect": [
        *('"SET autocommit=0"', '"SET completion_type=1"', '"SET sql_select_limit=2"', '"SET NAMES latin1"'),
        *('"SET SESSION TRANSACTION READ ONLY"', '"SET character_set_results=NULL"', '"BEGIN"'),
        *("\"SET sql_mode='EMPTY_STRING_IS_NULL'\"", '"SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"'),
    ],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in SETTINGS.items() for value in values])
async def test_no_setting_of_the_servers_sessions_changes_what_is_kept(
    root: Any, url: str, serve: Serve, name: str, value: str
) -> None:
    async with setting(root, name, value), opening(f"{url}&pool_size=2") as storage:
        for _ in range(2):
            await serves_a_batch(storage, 30)
        assert isinstance(storage, MySQLStorage)
        assert await storage.sweep() == 0
        client = await serve(count, leave, storage=url)
        answers = [(await (await client.get("/count")).json()) for _ in range(4)]
        assert answers == [1, 2, 3, 4]
        assert (await client.get("/leave")).status == 200
        assert await (await client.get("/count")).json() == 1


@pytest.mark.parametrize("size", [1 << 16, 1 << 13])
async def test_a_batch_is_divided_to_fit_a_small_packet(root: Any, url: str, size: int) -> None:
    small = setting(root, "net_buffer_length", "1024"), setting(root, "max_allowed_packet", str(size))
    async with small[0], small[1], opening(url) as storage:
        await serves_a_batch(storage, 1000)


async def test_a_load_that_fits_one_packet_is_one_statement(root: Any, url: str) -> None:
    asked = "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME='COM_SELECT'"
    async with opening(url) as storage:
        ((before,),) = await ask(root, asked)
        await storage.load([new_key() for _ in range(1000)])
        ((after,),) = await ask(root, asked)
    assert int(after) - int(before) == 2  # and the question itself
