"""What an operator may do to a MySQL server: no setting of its sessions matters, and a table that is gone is made."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiomysql  # type: ignore[import-untyped]
import pytest
from aiohttp import web

from aiohttp_store import Saved, Storage, StorageRefused, Write, _log, get_session, get_storage
from aiohttp_store.storages.mysql import MySQLOptions, MySQLStorage

from ..conftest import PATIENCE, Client, Serve, opening
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
def table() -> str:
    return f"t{secrets.token_hex(6)}"


@pytest.fixture
def url(server: MariaDB, table: str) -> str:
    return f"{server.url}?table={table}&timeout={PATIENCE}"


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sql_select_limit", "1"),
        ("tx_isolation", "'SERIALIZABLE'"),
        ("sql_mode", "'ORACLE'"),
        ("sql_safe_updates", "1"),
    ],
)
async def test_a_given_pool_keeps_the_servers_settings_and_loses_nothing(
    server: MariaDB, root: Any, table: str, name: str, value: str
) -> None:
    async with (
        setting(root, name, value),
        aiomysql.create_pool(
            host="127.0.0.1", port=server.port, user="root", db="sessions", minsize=0, autocommit=True
        ) as pool,
    ):
        storage = MySQLStorage(pool, MySQLOptions(table=table, timeout=PATIENCE))
        await storage.open()
        await serves_a_batch(storage, 30)
        await storage.close()


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


# What becomes of the table while an app runs


async def statuses(client: Client, number: int) -> list[int]:
    return [(await client.get("/count")).status for _ in range(number)]


async def test_a_table_that_was_dropped_while_the_app_runs_is_made_again_with_its_index(
    root: Any, url: str, table: str, serve: Serve
) -> None:
    client = await serve(count, storage=url)
    assert await statuses(client, 2) == [200, 200]
    await ask(root, f"DROP TABLE {table}")
    assert await statuses(client, 3) == [503, 200, 200]
    assert {row[4] for row in await ask(root, f"SHOW INDEX FROM {table}")} == {"id", "expires"}


@pytest.mark.parametrize(
    ("how", "back"),
    [
        ("CHANGE data old LONGBLOB NOT NULL", "CHANGE old data LONGBLOB NOT NULL"),
        ("MODIFY version BINARY(8) NULL, DROP expires", None),
        ("DROP PRIMARY KEY, DROP id", None),
        ("RENAME TO {table}_old, ADD more INT NOT NULL", None),
    ],
)
async def test_a_table_that_was_changed_while_the_app_runs_refuses_until_it_is_mended(
    root: Any, url: str, table: str, serve: Serve, caplog: pytest.LogCaptureFixture, how: str, back: str | None
) -> None:
    client = await serve(count, storage=url)
    assert await statuses(client, 1) == [200]
    await ask(root, f"ALTER TABLE {table} {how.format(table=table)}")
    is_renamed = "RENAME" in how
    if is_renamed:
        await ask(root, f"CREATE VIEW {table} AS SELECT id, version FROM {table}_old")
    await statuses(client, 1)
    _log._last.clear()
    caplog.clear()
    assert await statuses(client, 2) == [503, 503]
    (said,) = caplog.records
    assert said.levelname == "ERROR"
    assert "another layout; name another with ?table=, or drop it" in said.getMessage()
    if back is None:
        await ask(root, f"DROP VIEW {table}" if is_renamed else f"DROP TABLE {table}")
    else:
        await ask(root, f"ALTER TABLE {table} {back}")
    await statuses(client, 1)
    assert await statuses(client, 2) == [200, 200]


async def test_a_database_that_was_dropped_while_the_app_runs_refuses_until_it_is_there(
    server: MariaDB, root: Any, serve: Serve
) -> None:
    await ask(root, "CREATE DATABASE other")
    await ask(root, "GRANT ALL ON other.* TO visitor@'%'")
    client = await serve(count, storage=f"{server.url.replace('/sessions', '/other')}?timeout={PATIENCE}")
    assert await statuses(client, 1) == [200]
    await ask(root, "DROP DATABASE other")
    assert await statuses(client, 2) == [503, 503]
    storage = get_storage(client.app)
    with pytest.raises(StorageRefused, match="create the database"):
        await storage.load([new_key()])
    await ask(root, "CREATE DATABASE other")
    await statuses(client, 1)
    assert await statuses(client, 2) == [200, 200]
    await ask(root, "DROP DATABASE other")


async def test_a_pool_whose_connections_stop_to_commit_is_refused_and_no_500(
    server: MariaDB, root: Any, table: str, serve: Serve
) -> None:
    pool = await aiomysql.create_pool(
        host="127.0.0.1", port=server.port, user="root", db="sessions", minsize=0, maxsize=1, autocommit=True
    )
    client = await serve(count, storage=MySQLStorage(pool, MySQLOptions(table=table, timeout=PATIENCE)))
    assert await statuses(client, 1) == [200]
    async with pool.acquire() as connection:
        await connection.autocommit(False)
    assert await statuses(client, 1) == [503]
    assert await statuses(client, 1) == [200]  # as the connection is closed
    pool.close()
    await pool.wait_closed()
