"""What is MySQL's own: its driver's traps, its table, its locks, its errors."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import secrets
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiomysql  # type: ignore[import-untyped]
import pytest
from pymysql.constants import CLIENT  # type: ignore[import-untyped]

from aiohttp_store import ConfigError, Conflict, Gone, Record, Saved, SessionTooLarge, StorageUnavailable, Write
from aiohttp_store.storages import _mysql_hosts as mysql_hosts
from aiohttp_store.storages import _sweeping as sweeping
from aiohttp_store.storages import mysql, storage_from_url
from aiohttp_store.storages._mysql_hosts import HostConnections
from aiohttp_store.storages._mysql_statements import Draft, Table
from aiohttp_store.storages.mysql import MySQLOptions, MySQLStorage
from aiohttp_store.url import StorageURL

from ..conftest import PATIENCE, Servers, opening
from ..support.certificates import make_certificates
from ..support.one_key import create, data_of, load, new_key, save
from ..support.proxy import Proxy
from ..support.servers import MariaDB
from ..support.ticking import ticking
from ..support.timing import pace, until, within

PASSWORD = "s@crêt"


class Private(MariaDB):
    """A server of this file's own, with TLS, that a test may pause, kill and set up as it likes."""

    def prepare(self) -> None:
        super().prepare()
        make_certificates(self.folder)

    def command(self) -> list[str]:
        files = {"ssl-ca": "ca.pem", "ssl-cert": "server.pem", "ssl-key": "server.key"}
        return super().command() + [f"--{option}={self.folder / name}" for option, name in files.items()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Private]:
    started = Private(tmp_path_factory.mktemp("private") / "mysql")
    started.start()
    yield started
    started.kill()


@pytest.fixture
async def root(server: Private) -> AsyncIterator[Any]:
    connection = await aiomysql.connect(host="127.0.0.1", port=server.port, user="root", db="sessions", autocommit=True)
    yield connection
    await connection.ensure_closed()


async def ask(connection: Any, sql: str) -> Any:
    cursor = await connection.cursor()
    await cursor.execute(sql)
    return await cursor.fetchall()


async def all_connections_end(root: Any) -> None:
    async def have_ended() -> bool:
        return not await ask(root, "SELECT 1 FROM information_schema.PROCESSLIST WHERE USER='visitor'")

    await until(have_ended)


async def someone_waits_for_a_lock(root: Any) -> None:
    async def waits() -> bool:
        return bool(await ask(root, "SELECT 1 FROM information_schema.INNODB_TRX WHERE trx_state='LOCK WAIT'"))

    await until(waits, every=0.1)  # InnoDB renews this table every 0.1 s


@contextlib.asynccontextmanager
async def setting(root: Any, name: str, value: str) -> AsyncIterator[None]:
    """Set a global variable of the server, and set it back."""
    ((before,),) = await ask(root, f"SELECT @@GLOBAL.{name}")
    await ask(root, f"SET GLOBAL {name}={value}")
    try:
        yield
    finally:
        await ask(root, f"SET GLOBAL {name}=" + (str(before) if isinstance(before, int | float) else f"'{before}'"))


@pytest.fixture
def table() -> str:
    return f"t{secrets.token_hex(6)}"


@pytest.fixture
def url(server: Private, table: str) -> str:
    return f"{server.url}?table={table}"


@pytest.fixture
def timeout() -> float:
    """Seconds that are soon over, and in which a busy machine still serves."""
    return 0.6 * pace()


@pytest.fixture
def hasty_url(url: str, timeout: float) -> str:
    return f"{url}&timeout={timeout}"


@pytest.fixture
async def hasty(hasty_url: str) -> AsyncIterator[MySQLStorage]:
    async with opening(hasty_url) as opened:
        assert isinstance(opened, MySQLStorage)
        yield opened


@pytest.fixture
async def storage(url: str) -> AsyncIterator[MySQLStorage]:
    async with opening(url) as opened:
        assert isinstance(opened, MySQLStorage)
        yield opened


@pytest.fixture
async def proxy(url: str) -> AsyncIterator[Proxy]:
    async with Proxy(url) as running:
        yield running


def connections_of(storage: MySQLStorage) -> HostConnections:
    assert isinstance(storage._connections, HostConnections)
    return storage._connections


async def expire(root: Any, table: str, *keys: str) -> None:
    wanted = ",".join(f"'{key}'" for key in keys)
    await ask(root, f"UPDATE {table} SET expires=UTC_TIMESTAMP(6) - INTERVAL 1 SECOND WHERE id IN ({wanted})")


# The URL


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mysql://u:hidden@h/db?tabel=x", "did you mean 'table'"),
        ("mysql://u:hidden@h1,h2:3306,H1:3306/db", "h1:3306 twice"),
        ("mysql://u:hidden@h1,h2/db?unix_socket=/s", "'h1', 'h2'"),
        ("mysql://u:hidden@h", "must name one database"),
        ("mysql://u:hidden@h/", "must name one database"),
        ("mysql://u:hidden@h/a/b", "must name one database"),
        ("mysql://u:hidden@h/db?table=a`b", "table="),
        ("mysql://u:hidden@h/db?timeout=0", "timeout="),
        ("mysql://u:hidden@h/db?pool_size=0", "pool_size="),
        ("mysql://u:hidden@h/db?unix_socket=/s", "'h'"),
        ("mysql://u:hidden@h/db?tls_ca=/nowhere", "tls=true"),
        ("mysql://u:hidden@h/db?tls=true&tls_ca=/nowhere", "/nowhere"),
        ("mysql://u:hidden@h/db?create_table=perhaps", "create_table="),
    ],
)
def test_a_url_that_cannot_work_is_refused_with_the_way_out(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        storage_from_url(text)
    assert says in str(caught.value)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["mysql", "mariadb"])
async def test_both_schemes_are_served(server: Private, url: str, scheme: str) -> None:
    async with opening(url.replace("mysql", scheme, 1)) as storage:
        assert await storage.load([new_key()]) == [None]
        assert repr(storage).startswith(f"<MySQLStorage of 127.0.0.1:{server.port}/sessions")


@pytest.mark.parametrize("host", ["", "localhost"])
async def test_a_unix_socket_takes_the_place_of_a_host(server: Private, table: str, host: str) -> None:
    path = server.folder / "mysql.sock"
    async with opening(f"mysql://visitor:s%40crêt@{host}/sessions?table={table}&unix_socket={path}") as storage:
        assert isinstance(storage, MySQLStorage)
        await create(storage, new_key())
        assert str(path) in repr(storage)


async def test_no_more_connections_than_pool_size_are_open(proxy: Proxy) -> None:
    async with opening(f"{proxy.url}&pool_size=2") as storage:
        await asyncio.gather(*(storage.load([new_key()]) for _ in range(30)))
        assert proxy.accepted == 2


# TLS


async def test_tls_checks_the_certificate_and_encrypts(server: Private, url: str) -> None:
    async with opening(f"{url}&tls=true&tls_ca={server.folder}/ca.pem") as storage:
        assert isinstance(storage, MySQLStorage)
        await create(storage, new_key())
        ((_, ((_, version),)),) = await storage._run("SHOW STATUS LIKE 'Ssl_version'")
        assert version.startswith("TLS")
        await storage.close()
        await storage.open()
        await create(storage, new_key())


async def test_a_certificate_of_an_unknown_authority_is_refused(url: str) -> None:
    async with opening(f"{url}&tls=true") as storage:
        with pytest.raises(StorageUnavailable, match=r"(?i)certificate"):
            await storage.load([new_key()])


async def test_a_server_without_tls_gets_no_plain_session(servers: Servers, server: Private, table: str) -> None:
    plain = servers.own("mysql").url
    async with opening(f"{plain}?table={table}&tls=true&tls_ca={server.folder}/ca.pem") as storage:
        with pytest.raises(StorageUnavailable, match="no TLS"):
            await storage.load([new_key()])


async def test_a_client_shows_its_own_certificate(server: Private, root: Any, table: str) -> None:
    await ask(root, "CREATE OR REPLACE USER certified@'%' REQUIRE X509")
    await ask(root, "GRANT ALL ON sessions.* TO certified@'%'")
    folder = server.folder
    base = f"mysql://certified@127.0.0.1:{server.port}/sessions?table={table}&tls=true&tls_ca={folder}/ca.pem"
    async with opening(f"{base}&tls_cert={folder}/client.pem&tls_key={folder}/client.key") as storage:
        assert await storage.load([new_key()]) == [None]
    async with opening(base) as storage:
        with pytest.raises(StorageUnavailable, match="Access denied"):
            await storage.load([new_key()])


async def test_cancelling_while_connecting_leaves_nothing_behind(server: Private, url: str) -> None:
    """At every step of the handshake; a connection left open would be a ResourceWarning."""
    async with opening(f"{url}&tls=true&tls_ca={server.folder}/ca.pem&pool_size=1") as storage:
        assert isinstance(storage, MySQLStorage)
        for turn in range(40):
            await storage._connections.close()
            storage._connections.open()
            task = asyncio.create_task(storage.load([new_key()]))
            for _ in range(turn):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert await storage.load([new_key()]) == [None]


# Outages


async def test_a_wrong_password_is_told_and_not_shown(server: Private, table: str) -> None:
    async with opening(f"mysql://visitor:wr%C3%B6ng@127.0.0.1:{server.port}/sessions?table={table}") as storage:
        with pytest.raises(StorageUnavailable, match="Access denied") as caught:
            await storage.load([new_key()])
    assert "wröng" not in str(caught.value)
    assert "wr%C3" not in str(caught.value)


async def test_a_password_of_any_characters_is_sent_as_utf_8(server: Private, root: Any, table: str) -> None:
    await ask(root, "SET NAMES utf8mb4")
    await root.query("CREATE OR REPLACE USER wide@'%' IDENTIFIED BY 'пароль€ê'".encode())
    await ask(root, "GRANT ALL ON sessions.* TO wide@'%'")
    async with opening(f"mysql://wide:пароль€ê@127.0.0.1:{server.port}/sessions?table={table}") as storage:
        assert await storage.load([new_key()]) == [None]


async def test_an_unknown_database_is_told(server: Private) -> None:
    async with opening(server.url.replace("/sessions", "/nowhere")) as storage:
        with pytest.raises(StorageUnavailable, match="nowhere"):
            await storage.load([new_key()])


async def test_a_server_that_refuses_is_told_with_the_reason(tmp_path: Path) -> None:
    async with opening(MariaDB(tmp_path).url) as storage:
        for verb in (
            storage.load([new_key()]),
            storage.delete([new_key()]),
            storage.save([Write(new_key(), None, b"", 9)]),
        ):
            with pytest.raises(StorageUnavailable, match=r"(?i)refused|connect call failed"):
                await verb


@pytest.mark.parametrize(
    "greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\x05\0\0\0\x0a5\0", b"\x01\0\0\0\xff"]
)
async def test_a_server_of_another_kind_is_told(greeting: bytes) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        async with opening(f"mysql://127.0.0.1:{port}/db") as storage:
            with pytest.raises(StorageUnavailable):
                await storage.load([new_key()])


async def test_a_server_that_accepts_and_says_nothing_is_told_in_time(proxy: Proxy, timeout: float) -> None:
    proxy.answering.clear()
    async with opening(f"{proxy.url}&timeout={timeout}") as storage:
        with pytest.raises(StorageUnavailable, match="did not answer"), within(timeout + 0.5):
            await storage.load([new_key()])


async def test_a_server_that_is_down_at_open_serves_once_it_is_up(server: Private, url: str) -> None:
    server.stop()
    try:
        storage = storage_from_url(url)
        assert isinstance(storage, MySQLStorage)
        await storage.open()
    finally:
        server.start()
    await create(storage, new_key())
    await storage.close()


async def test_closed_is_unavailable(storage: MySQLStorage) -> None:
    await storage.close()
    with pytest.raises(StorageUnavailable, match="not open"):
        await storage.load([new_key()])


# Connections


@pytest.mark.parametrize("idle", [1, 5])
async def test_connections_that_the_server_closed_meanwhile_are_replaced(
    root: Any, storage: MySQLStorage, idle: int
) -> None:
    key = new_key()
    version = await create(storage, key)
    await asyncio.gather(*(storage.load([key]) for _ in range(idle)))
    for (number,) in await ask(root, "SELECT ID FROM information_schema.PROCESSLIST WHERE USER='visitor'"):
        await ask(root, f"KILL {number}")
    assert isinstance(await save(storage, key, b"more", version), Saved)
    assert await asyncio.gather(*(data_of(storage, key) for _ in range(idle))) == [b"more"] * idle


async def test_a_server_that_times_idle_connections_out_is_not_noticed(root: Any, url: str) -> None:
    async with setting(root, "wait_timeout", "1"), opening(url) as storage:
        assert isinstance(storage, MySQLStorage)
        version = await create(storage, key := new_key())
        await asyncio.sleep(1.5)
        assert isinstance(await save(storage, key, b"more", version), Saved)


class Farewell(Proxy):
    """Can say what MySQL 8 says before it closes an idle connection; MariaDB closes it without a word."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.clients: list[asyncio.StreamWriter] = []

    async def _pass_answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event
    ) -> None:
        self.clients.append(writer)
        await super()._pass_answers(reader, writer, losing)

    def say(self, number: int) -> None:
        error = b"\xff" + struct.pack("<H", 4031) + b"#HY000The client was disconnected because of inactivity."
        for client in self.clients:
            client.write(struct.pack("<I", len(error))[:3] + bytes([number]) + error)


@pytest.mark.parametrize("number", [0, 1])
async def test_a_server_that_says_why_it_ends_an_idle_connection_is_not_noticed(url: str, number: int) -> None:
    async with Farewell(url) as proxy, opening(proxy.url) as storage:
        assert isinstance(storage, MySQLStorage)
        version = await create(storage, key := new_key())
        proxy.say(number)
        before = proxy.accepted
        assert isinstance(await save(storage, key, b"more", version), Saved)
        assert proxy.accepted == before + 1
        proxy.cut()


async def test_a_connection_that_was_idle_for_long_is_not_used(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opening(proxy.url) as storage:
        before = proxy.accepted
        await storage.load([new_key()])
        assert proxy.accepted == before
        monkeypatch.setattr(mysql_hosts, "_IDLE", 0.0)
        await storage.load([new_key()])
        assert proxy.accepted == before + 1


async def test_a_slow_connect_does_not_hold_up_free_connections(proxy: Proxy, timeout: float) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with opening(f"{proxy.url}&timeout={timeout}") as storage:
            await storage.load([new_key()])
            proxy.target = silent.getsockname()[1]
            calls = [asyncio.create_task(storage.load([new_key()])) for _ in range(2)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)  # the other one waits for its connection
            assert await storage.load([new_key()]) == [None]
            assert sum(call.done() for call in calls) == 1, "the other one's deadline is over"
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert sorted(type(result).__name__ for result in results) == ["StorageUnavailable", "list"]


@pytest.mark.parametrize("given", [False, True])
async def test_waiters_get_the_place_of_a_connection_that_was_closed(
    server: Private, url: str, table: str, given: bool
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        if given:
            pool = await stack.enter_async_context(own_pool(server, maxsize=1))
            storage = MySQLStorage(pool, MySQLOptions(table=table, timeout=PATIENCE))
            await storage.open()
            stack.push_async_callback(storage.close)
        else:
            opened = await stack.enter_async_context(opening(url + "&pool_size=1"))
            assert isinstance(opened, MySQLStorage)
            storage = opened
        for _ in range(5):
            first = asyncio.create_task(storage.load([new_key()]))
            await asyncio.sleep(0)
            waiting = [asyncio.create_task(storage.load([new_key()])) for _ in range(3)]
            await asyncio.sleep(0)
            first.cancel()
            assert await asyncio.gather(*waiting) == [[None]] * 3


# Lost answers


async def test_a_create_whose_answer_was_lost_is_saved_once(proxy: Proxy) -> None:
    async with opening(proxy.url) as storage:
        assert isinstance(storage, MySQLStorage)
        key = new_key()
        proxy.lose_answers = 1
        version = await create(storage, key)
        assert proxy.lose_answers == 0
        assert await storage.load([key]) == [(version, b"data")]


async def test_an_update_whose_answer_was_lost_is_saved_once(proxy: Proxy) -> None:
    async with opening(proxy.url) as storage:
        assert isinstance(storage, MySQLStorage)
        keys = sorted(new_key() for _ in range(8))
        versions = [await create(storage, key) for key in keys]
        proxy.lose_answers = 1
        outcomes = await storage.save([Write(key, old, b"more", 60) for key, old in zip(keys, versions, strict=True)])
        found = await storage.load(keys)
        for outcome, record in zip(outcomes, found, strict=True):
            assert record is not None
            assert outcome == Saved(record.version)
            assert record.data == b"more"


async def test_a_removal_whose_answer_was_lost_leaves_nothing(proxy: Proxy) -> None:
    async with opening(proxy.url) as storage:
        assert isinstance(storage, MySQLStorage)
        version = await create(storage, key := new_key())
        proxy.lose_answers = 1
        assert await save(storage, key, None, version) == Gone()
        await create(storage, key)
        proxy.lose_answers = 1
        await storage.delete([key])
        proxy.lose_answers = 1
        assert await storage.load([key]) == [None]


async def test_a_write_that_never_arrived_is_saved(proxy: Proxy) -> None:
    async with opening(proxy.url) as storage:
        assert isinstance(storage, MySQLStorage)
        version = await create(storage, key := new_key())
        proxy.lose_requests = 1
        assert isinstance(await save(storage, key, b"more", version), Saved)
        assert await data_of(storage, key) == b"more"


async def test_a_second_loss_is_told(proxy: Proxy) -> None:
    async with opening(proxy.url) as storage:
        assert isinstance(storage, MySQLStorage)
        version = await create(storage, key := new_key())
        proxy.lose_requests = 2
        with pytest.raises(StorageUnavailable, match="Lost connection"):
            await save(storage, key, b"more", version)
        assert await data_of(storage, key) == b"data"


# Locks


async def other_session(server: Private) -> Any:
    connection = await aiomysql.connect(
        host="127.0.0.1", port=server.port, user="root", db="sessions", autocommit=False
    )
    await ask(connection, "SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
    return connection


async def test_a_deadlock_is_tried_again(server: Private, root: Any, storage: MySQLStorage, table: str) -> None:
    low, high = sorted(new_key() for _ in range(2))
    versions = {key: await create(storage, key) for key in (low, high)}
    other = await other_session(server)
    heavy = ",".join(f"('x{number}','{number:08}','',UTC_TIMESTAMP(6))" for number in range(200))
    await ask(other, f"INSERT INTO {table} VALUES {heavy}")  # so that InnoDB chooses the storage's transaction to undo
    await ask(other, f"SELECT 1 FROM {table} WHERE id='{high}' FOR UPDATE")
    task = asyncio.create_task(storage.save([Write(key, versions[key], b"more", 60) for key in (low, high)]))
    await someone_waits_for_a_lock(root)
    await ask(other, f"SELECT 1 FROM {table} WHERE id='{low}' FOR UPDATE")
    await other.commit()
    assert [type(outcome) for outcome in await task] == [Saved, Saved]
    await other.ensure_closed()


async def test_a_locked_row_is_told_in_time_and_leaves_no_transaction_behind(
    server: Private, root: Any, hasty_url: str, table: str
) -> None:
    async with opening(hasty_url) as storage:
        assert isinstance(storage, MySQLStorage)
        free, locked = sorted(new_key() for _ in range(2))
        versions = {key: await create(storage, key) for key in (free, locked)}
        other = await other_session(server)
        await ask(other, f"SELECT 1 FROM {table} WHERE id='{locked}' FOR UPDATE")
        with pytest.raises(StorageUnavailable, match="did not answer|Lock wait timeout"):
            await storage.save([Write(key, versions[key], b"late", 60) for key in (free, locked)])

        async def is_alone() -> bool:
            return bool(await ask(root, "SELECT COUNT(*) FROM information_schema.INNODB_TRX") == ((1,),))

        await until(is_alone, "its transaction is still there", every=0.1)
        assert isinstance(await save(storage, free, b"more", versions[free]), Saved)
        await other.rollback()
        assert isinstance(await save(storage, locked, b"more", versions[locked]), Saved)
        await other.ensure_closed()


async def test_creates_do_not_wait_for_each_others_neighbours(
    server: Private, storage: MySQLStorage, table: str
) -> None:
    """With gap locks, the insert next to a row that another transaction looked for would wait."""
    keys = [f"{number:043}" for number in range(0, 20, 2)]
    other = await other_session(server)
    await ask(other, f"DELETE FROM {table} WHERE id='{1:043}'")
    await ask(other, f"INSERT INTO {table} VALUES ('{3:043}','00000000','',UTC_TIMESTAMP(6))")
    outcomes = await storage.save([Write(key, None, b"data", 60) for key in keys])
    assert all(isinstance(outcome, Saved) for outcome in outcomes)
    await other.rollback()
    await other.ensure_closed()


async def test_a_late_write_of_an_absent_key_blocks_no_create(
    server: Private, root: Any, storage: MySQLStorage, table: str
) -> None:
    """Under REPEATABLE READ it would lock the gap that it found, here for as long as its batch waits."""
    middle, last = "m" * 43, "z" * 43
    versions = {key: await create(storage, key) for key in (middle, last)}
    other = await other_session(server)
    await ask(other, f"SELECT 1 FROM {table} WHERE id='{last}' FOR UPDATE")
    late = [Write("a" * 43, b"12345678", b"late", 60), Write(last, versions[last], b"more", 60)]
    waiting = asyncio.create_task(storage.save(late))
    await someone_waits_for_a_lock(root)
    await create(storage, "b" * 43)
    assert isinstance(await save(storage, middle, b"more", versions[middle]), Saved)
    await other.rollback()
    assert [type(outcome) for outcome in await waiting] == [Gone, Saved]
    await other.ensure_closed()


async def test_batches_in_any_order_never_deadlock(root: Any, storage: MySQLStorage) -> None:
    count = "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME='INNODB_DEADLOCKS'"
    before = await ask(root, count)
    keys = [new_key() for _ in range(30)]
    await storage.save([Write(key, None, b"data", 60) for key in keys])

    async def batch(order: list[str]) -> None:
        records = await storage.load(order)
        await storage.save([Write(key, got.version, b"x", 60) for key, got in zip(order, records, strict=True) if got])

    for _ in range(20):
        await asyncio.gather(*(batch(keys[::step]) for step in (1, -1) * 4))
    assert await ask(root, count) == before


# Creating over what is there


async def test_a_create_replaces_an_expired_row_wholly(root: Any, storage: MySQLStorage, table: str) -> None:
    old = await create(storage, key := new_key(), b"old")
    await expire(root, table, key)
    version = await create(storage, key, b"new")
    assert version != old
    assert await storage.load([key]) == [(version, b"new")]


async def test_of_many_creates_over_an_expired_row_one_wins(root: Any, storage: MySQLStorage, table: str) -> None:
    for _ in range(5):
        await create(storage, key := new_key(), b"old")
        await expire(root, table, key)
        outcomes = await asyncio.gather(*(save(storage, key, b"%d" % number) for number in range(20)))
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Conflict"] * 19 + ["Saved"]
        winner = next(number for number, outcome in enumerate(outcomes) if isinstance(outcome, Saved))
        assert await data_of(storage, key) == b"%d" % winner


async def test_a_removal_of_what_must_not_exist_finds_it_or_nothing(storage: MySQLStorage) -> None:
    key = new_key()
    assert await save(storage, key, None) == Saved(b"")
    await create(storage, key)
    assert isinstance(await save(storage, key, None), Conflict)


async def test_creates_and_deletes_of_one_key_all_get_an_answer_of_the_law(storage: MySQLStorage) -> None:
    key = new_key()
    outcomes = await asyncio.gather(
        *(save(storage, key, b"x") if turn % 2 else storage.delete([key]) for turn in range(60))
    )
    assert {type(outcome) for outcome in outcomes[1::2]} <= {Saved, Conflict}


async def test_a_create_is_tried_again_when_what_was_in_its_way_went_before_it_was_seen(
    root: Any, url: str, table: str
) -> None:
    class Late(MySQLStorage):
        """Looks at the record that won just after it was deleted."""

        async def _select(self, keys: Sequence[str]) -> dict[str, Record]:
            await ask(root, f"DELETE FROM {table}")
            return await super()._select(keys)

    storage = Late.from_url(StorageURL.parse(url))
    await storage.open()
    await create(storage, key := new_key(), b"first")
    assert isinstance(await save(storage, key, b"second"), Saved)
    assert await ask(root, f"SELECT data FROM {table}") == ((b"second",),)
    await storage.close()


# The table


async def test_the_table_compares_bytes_and_reaches_past_2038(root: Any, storage: MySQLStorage, table: str) -> None:
    await create(storage, key := new_key(), ttl=30 * 366 * 86_400)
    assert await data_of(storage, key) == b"data"
    ((year,),) = await ask(root, f"SELECT YEAR(expires) FROM {table}")
    assert year >= 2050
    await create(storage, new_key(), ttl=10**15)
    indexes = await ask(root, f"SHOW INDEX FROM {table}")
    assert {row[4] for row in indexes} == {"id", "expires"}


async def test_expiry_does_not_know_time_zones(root: Any, url: str, table: str) -> None:
    async with opening(url) as storage:
        assert isinstance(storage, MySQLStorage)
        await create(storage, key := new_key(), ttl=60)
    async with setting(root, "time_zone", "'+05:00'"), opening(url) as storage:
        assert isinstance(storage, MySQLStorage)
        assert await data_of(storage, key) == b"data"
        await create(storage, other := new_key(), ttl=60)
    async with opening(url) as storage:
        assert isinstance(storage, MySQLStorage)
        assert await data_of(storage, other) == b"data"
        ((left,),) = await ask(root, f"SELECT MAX(TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(6), expires)) FROM {table}")
        assert 50 <= left <= 60


async def test_a_user_who_may_not_create_uses_the_table_that_is_there(
    server: Private, root: Any, storage: MySQLStorage, table: str
) -> None:
    await ask(root, "CREATE OR REPLACE USER limited@'%'")
    await ask(root, f"GRANT SELECT, INSERT, UPDATE, DELETE ON sessions.{table} TO limited@'%'")
    base = f"mysql://limited@127.0.0.1:{server.port}/sessions"
    async with opening(f"{base}?table={table}") as other:
        assert isinstance(other, MySQLStorage)
        await create(other, key := new_key())
        assert await data_of(storage, key) == b"data"
    async with opening(f"{base}?table=missing") as other:
        with pytest.raises(StorageUnavailable, match="denied"):
            await other.load([new_key()])


async def test_many_processes_may_make_the_table_at_once(url: str, caplog: pytest.LogCaptureFixture) -> None:
    storages = [storage_from_url(url) for _ in range(12)]
    await asyncio.gather(*(storage.open() for storage in storages))
    assert not caplog.records  # aiomysql makes a warning of "already exists"
    assert await asyncio.gather(*(storage.load([new_key()]) for storage in storages)) == [[None]] * 12
    for storage in storages:
        await storage.close()


async def test_a_failed_statement_undoes_its_batch_and_leaves_no_lock(
    server: Private, root: Any, storage: MySQLStorage, table: str
) -> None:
    good, bad = sorted(new_key() for _ in range(2))
    await ask(root, f"ALTER TABLE {table} ADD CONSTRAINT CHECK (data <> 'bad')")
    with pytest.raises(StorageUnavailable):
        await storage.save([Write(good, None, b"good", 60), Write(bad, None, b"bad", 60)])
    other = await other_session(server)
    await ask(other, "SET innodb_lock_wait_timeout=1")
    await ask(other, f"INSERT INTO {table} VALUES ('{good}','00000000','',UTC_TIMESTAMP(6))")
    await other.rollback()
    await other.ensure_closed()
    assert await storage.load([good, bad]) == [None, None]
    await create(storage, good)


async def test_no_table_is_made_where_that_is_not_wanted(root: Any, url: str, table: str) -> None:
    async with opening(url + "&create_table=false") as storage:
        with pytest.raises(StorageUnavailable, match="missing"):
            await storage.load([new_key()])
        assert not await ask(root, f"SHOW TABLES LIKE '{table}'")


async def test_a_table_that_was_dropped_is_told_and_then_made_again(
    root: Any, storage: MySQLStorage, table: str
) -> None:
    await create(storage, key := new_key())
    await ask(root, f"DROP TABLE {table}")
    with pytest.raises(StorageUnavailable, match="doesn't exist"):
        await storage.load([key])
    assert await storage.load([key]) == [None]


@pytest.mark.parametrize(
    "columns",
    [
        "id INT, name TEXT",
        "id BINARY(43) NOT NULL, version BINARY(8) NOT NULL, data LONGBLOB NOT NULL, expires DATETIME(6) NOT NULL",
        "id VARCHAR(64) PRIMARY KEY, version BINARY(8) NOT NULL, data LONGBLOB NOT NULL, expires DATETIME(6) NOT NULL",
        "id BINARY(43) PRIMARY KEY, version BINARY(16) NOT NULL, data LONGBLOB NOT NULL, expires DATETIME(6) NOT NULL",
        "id BINARY(43) PRIMARY KEY, version BINARY(8) NOT NULL, data LONGTEXT NOT NULL, expires DATETIME(6) NOT NULL",
        "id BINARY(43) PRIMARY KEY, version BINARY(8) NOT NULL, data LONGBLOB, expires DATETIME(6) NOT NULL",
        "id BINARY(43) PRIMARY KEY, version BINARY(8) NOT NULL, data LONGBLOB NOT NULL, expires INT NOT NULL",
    ],
)
async def test_a_table_of_another_layout_is_refused_at_open(root: Any, url: str, table: str, columns: str) -> None:
    await ask(root, f"CREATE TABLE {table} ({columns})")
    with pytest.raises(ConfigError, match="layout"):
        async with opening(url):
            pass


async def test_a_table_of_the_users_own_making_sets_the_limit(root: Any, url: str, table: str) -> None:
    columns = "id BINARY(43) PRIMARY KEY, version BINARY(8) NOT NULL, data BLOB NOT NULL, expires DATETIME(6) NOT NULL"
    await ask(root, f"CREATE TABLE {table} ({columns})")
    async with setting(root, "sql_mode", "''"), opening(url) as storage:  # this mode would cut in silence
        assert isinstance(storage, MySQLStorage)
        await create(storage, new_key(), b"x" * 65_535)
        with pytest.raises(SessionTooLarge) as caught:
            await save(storage, new_key(), b"x" * 65_536)
        assert caught.value.limit == 65_535


async def test_rows_made_by_other_hands_disturb_nobody(root: Any, storage: MySQLStorage, table: str) -> None:
    foreign, own = new_key(), new_key()
    await ask(
        root,
        f"INSERT INTO {table} VALUES ('{foreign}','','',UTC_TIMESTAMP(6) + INTERVAL 1 DAY), ('é','','','9999-12-31')",
    )
    await create(storage, own)
    assert (await storage.load([foreign, own]))[1] is not None
    assert [
        type(outcome) for outcome in await storage.save([Write(foreign, None, b"x", 60), Write(own, None, b"x", 60)])
    ] == [
        Conflict,
        Conflict,
    ]
    await storage.delete([foreign])
    await create(storage, foreign)


async def test_a_read_only_server_loads_and_tells_of_writes(root: Any, url: str) -> None:
    async with opening(url) as storage:
        assert isinstance(storage, MySQLStorage)
        await create(storage, key := new_key())
    async with setting(root, "read_only", "1"), opening(url) as storage:
        assert isinstance(storage, MySQLStorage)
        assert await data_of(storage, key) == b"data"
        with pytest.raises(StorageUnavailable, match="read-only"):
            await create(storage, new_key())


# Values


@pytest.mark.parametrize(
    "mode", ["", "NO_BACKSLASH_ESCAPES", "ANSI,ORACLE", "NO_BACKSLASH_ESCAPES,ANSI_QUOTES,PIPES_AS_CONCAT"]
)
async def test_every_byte_is_kept_under_every_sql_mode(root: Any, url: str, mode: str) -> None:
    data = bytes(range(256)) + rb"""\' \\' '' "" %s ; -- \0 \Z` """
    async with setting(root, "sql_mode", f"'{mode}'"), opening(url) as storage:
        assert isinstance(storage, MySQLStorage)
        version = await create(storage, key := new_key(), data)
        assert await data_of(storage, key) == data
        assert isinstance(await save(storage, key, data[::-1], version), Saved)
        assert await data_of(storage, key) == data[::-1]


async def test_a_key_is_data_whatever_is_in_it(storage: MySQLStorage) -> None:
    for key in ("' OR 1=1 -- ", "\\", "%s", "x' , 'y", "é"):
        assert await data_of(storage, key) is None
        await create(storage, key, key.encode())
        assert await data_of(storage, key) == key.encode()


async def test_a_batch_that_is_larger_than_a_packet_is_sent_in_parts(root: Any, url: str) -> None:
    async with setting(root, "max_allowed_packet", str(1 << 20)), opening(url) as storage:
        assert isinstance(storage, MySQLStorage)
        keys = [new_key() for _ in range(8)]
        outcomes = await storage.save([Write(key, None, key.encode() * 6000, 60) for key in keys])
        assert all(isinstance(outcome, Saved) for outcome in outcomes)
        assert [await data_of(storage, key) for key in keys] == [key.encode() * 6000 for key in keys]


async def test_the_largest_value_passes_and_one_byte_more_does_not(root: Any, url: str) -> None:
    async with setting(root, "max_allowed_packet", str(1 << 20)), opening(url) as storage:
        assert isinstance(storage, MySQLStorage)
        small, large = new_key(), new_key()
        with pytest.raises(SessionTooLarge) as caught:
            await storage.save([Write(small, None, b"x", 60), Write(large, None, b"x" * (1 << 20), 60)])
        limit = caught.value.limit
        assert await storage.load([small, large]) == [None, None]
        version = await create(storage, large, b"x" * limit)
        assert isinstance(await save(storage, large, b"y" * limit, version), Saved)
        assert await data_of(storage, large) == b"y" * limit
        with pytest.raises(SessionTooLarge):
            await create(storage, small, b"x" * (limit + 1))


async def test_a_limit_that_was_lowered_meanwhile_is_learned(root: Any, storage: MySQLStorage) -> None:
    async with setting(root, "max_allowed_packet", str(1 << 20)):
        connections_of(storage).forget()  # the limit is that of a connection's beginning
        with pytest.raises(StorageUnavailable):
            await create(storage, new_key(), b"x" * (1 << 20))
        with pytest.raises(SessionTooLarge):
            await create(storage, new_key(), b"x" * (1 << 20))


# A pool of the user's


@contextlib.asynccontextmanager
async def own_pool(server: Private, **settings: Any) -> AsyncIterator[Any]:
    settings = {"autocommit": True, "minsize": 0, "maxsize": 3, **settings}
    password = PASSWORD.encode().decode("latin-1")
    login = {"host": "127.0.0.1", "port": server.port, "user": "visitor", "password": password, "db": "sessions"}
    pool = await aiomysql.create_pool(**login, **settings)
    yield pool
    pool.close()
    await pool.wait_closed()


@pytest.mark.parametrize("cursor", [aiomysql.Cursor, aiomysql.DictCursor, aiomysql.SSCursor])
async def test_a_given_pool_is_used_and_not_closed(server: Private, table: str, cursor: type) -> None:
    async with own_pool(server, cursorclass=cursor) as pool:
        storage = MySQLStorage(pool, MySQLOptions(table=table, timeout=PATIENCE))
        await storage.open()
        version = await create(storage, key := new_key())
        assert isinstance(await save(storage, key, b"more", version), Saved)
        assert await data_of(storage, key) == b"more"
        assert await storage.sweep() == 0
        await storage.close()
        assert PASSWORD not in repr(storage)
        assert not pool.closed
        async with pool.acquire() as connection:
            assert connection.get_autocommit()


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"autocommit": False}, "autocommit=True"), ({"client_flag": CLIENT.FOUND_ROWS}, "FOUND_ROWS")],
)
async def test_a_given_pool_that_cannot_work_is_refused(
    server: Private, table: str, settings: dict[str, Any], says: str
) -> None:
    async with own_pool(server, **settings) as pool:
        storage = MySQLStorage(pool, MySQLOptions(table=table, timeout=PATIENCE))
        with pytest.raises(ConfigError, match=says):
            await storage.open()


async def test_a_given_pool_that_was_closed_is_unavailable(server: Private, table: str) -> None:
    async with own_pool(server) as pool:
        storage = MySQLStorage(pool, MySQLOptions(table=table, timeout=PATIENCE))
        await storage.open()
    with pytest.raises(StorageUnavailable):
        await storage.load([new_key()])
    await storage.close()


# The sweep


async def test_a_sweep_deletes_what_is_expired_and_only_that(
    root: Any, storage: MySQLStorage, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql, "SLICE", 4)
    old, live = [new_key() for _ in range(10)], [new_key() for _ in range(3)]
    await storage.save([Write(key, None, b"data", 60) for key in old + live])
    await expire(root, table, *old)
    assert await storage.sweep() == 10
    rows = await ask(root, f"SELECT id FROM {table}")
    assert {row[0].decode() for row in rows} == set(live)


async def test_a_large_sweep_is_of_small_batches_and_one_process_and_disturbs_nobody(
    root: Any, url: str, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "PAUSE", 0)
    monkeypatch.setattr(sweeping, "REST", 0)
    async with opening(f"{url}&pool_size=1") as storage, opening(url) as other:
        assert isinstance(storage, MySQLStorage)
        assert isinstance(other, MySQLStorage)
        await create(storage, key := new_key())
        old = "SELECT seq,'12345678',REPEAT('x',300),UTC_TIMESTAMP(6) - INTERVAL seq SECOND FROM seq_1_to_20000"
        await ask(root, f"INSERT INTO {table} {old}")
        await ask(root, f"CREATE TABLE {table}_swept (at DATETIME(6), rows_swept INT, PRIMARY KEY (at))")
        await ask(  # NOW() is when the statement began
            root,
            f"CREATE TRIGGER {table}_swept AFTER DELETE ON {table} FOR EACH ROW "
            f"INSERT INTO {table}_swept VALUES (NOW(6), 1) ON DUPLICATE KEY UPDATE rows_swept=rows_swept+1",
        )
        batch = f"DELETE FROM {table} WHERE expires<=UTC_TIMESTAMP(6) ORDER BY expires LIMIT 500"
        ((*_, kind, _, used, _, _, _, _),) = await ask(root, f"EXPLAIN {batch}")
        assert (kind, used) == ("range", "expires")
        sweep = asyncio.create_task(storage.sweep())
        async with ticking():
            while not await ask(root, f"SELECT 1 FROM {table}_swept LIMIT 1"):
                await asyncio.sleep(0.01)
            while not sweep.done():
                assert await other.sweep() == 0
                assert await data_of(storage, key) == b"data", "the sweep keeps no connection from requests"
                await asyncio.sleep(0.01)
        assert await sweep == 20_000
        ((batches, most, total),) = await ask(
            root, f"SELECT COUNT(*), MAX(rows_swept), SUM(rows_swept) FROM {table}_swept"
        )
        assert (batches, most, total) == (40, 500, 20_000)
        assert await data_of(storage, key) == b"data"
        await ask(root, f"DROP TABLE {table}_swept")


async def test_a_row_that_is_prolonged_while_the_sweep_waits_for_it_is_kept(
    server: Private, root: Any, storage: MySQLStorage, table: str
) -> None:
    keys = [new_key() for _ in range(3)]
    for key in keys:
        await create(storage, key)
    await expire(root, table, *keys)
    other = await other_session(server)
    await ask(other, f"UPDATE {table} SET expires=UTC_TIMESTAMP(6) + INTERVAL 1 DAY WHERE id='{keys[1]}'")
    sweep = asyncio.create_task(storage.sweep())
    await someone_waits_for_a_lock(root)
    await other.commit()
    await other.ensure_closed()
    assert await sweep == 2
    assert [await data_of(storage, key) for key in keys] == [None, b"data", None]


async def test_a_sweep_that_waits_keeps_no_session_from_being_made(
    server: Private, root: Any, storage: MySQLStorage, table: str
) -> None:
    """Under REPEATABLE READ it would lock the gap up to the first live row, where new ones go."""
    await create(storage, old := new_key())
    await create(storage, live := new_key(), ttl=3600)
    await expire(root, table, old)
    other = await other_session(server)
    await ask(other, f"UPDATE {table} SET expires=expires + INTERVAL 1 SECOND WHERE id='{live}'")
    sweep = asyncio.create_task(storage.sweep())
    await someone_waits_for_a_lock(root)
    await create(storage, new_key(), ttl=60)
    assert not sweep.done()
    await other.rollback()
    await other.ensure_closed()
    assert await sweep == 1


async def test_a_sweep_that_is_stopped_leaves_no_lock_and_the_next_one_goes_on(
    server: Private, root: Any, storage: MySQLStorage, hasty: MySQLStorage, table: str
) -> None:
    await create(storage, key := new_key())
    await expire(root, table, key)
    other = await other_session(server)
    await ask(other, f"SELECT 1 FROM {table} WHERE id='{key}' FOR UPDATE")
    with pytest.raises(StorageUnavailable, match="did not answer|Lock wait timeout"):  # which of them ends first
        await hasty.sweep()
    sweep = asyncio.create_task(hasty.sweep())
    await asyncio.sleep(0.1)  # it waits for the row by now, or is on its way
    sweep.cancel()
    await asyncio.gather(sweep, return_exceptions=True)
    await other.rollback()
    await other.ensure_closed()
    lock = f"CONCAT('aiohttp_store.', SHA1('sessions.{table}'))"

    async def is_free() -> bool:  # a server looks at its connection when the statement has ended
        return bool(await ask(root, f"SELECT IS_FREE_LOCK({lock})") == ((1,),))

    await until(is_free)
    await storage.sweep()
    assert not await ask(root, f"SELECT 1 FROM {table}")


async def test_a_given_pool_is_lent_to_requests_before_the_sweep_goes_on(
    server: Private, root: Any, table: str
) -> None:
    async with own_pool(server, maxsize=1) as pool:
        storage = MySQLStorage(pool, MySQLOptions(table=table, timeout=PATIENCE))
        await storage.open()
        old = "SELECT seq,'12345678','',UTC_TIMESTAMP(6) - INTERVAL seq SECOND FROM seq_1_to_1200"
        await ask(root, f"INSERT INTO {table} {old}")
        assert [await storage.sweep() for _ in range(3)] == [500, 500, 200]
        await storage.close()
    async with own_pool(server, maxsize=2) as pool:
        storage = MySQLStorage(pool, MySQLOptions(table=table, timeout=PATIENCE))
        await storage.open()
        await ask(root, f"INSERT INTO {table} {old}")
        assert await storage.sweep() == 1200
        await storage.close()


async def test_only_one_process_sweeps_at_a_time(root: Any, storage: MySQLStorage, table: str) -> None:
    await create(storage, key := new_key())
    await expire(root, table, key)
    lock = f"CONCAT('aiohttp_store.', SHA1('sessions.{table}'))"
    assert await ask(root, f"SELECT GET_LOCK({lock}, 0)") == ((1,),)
    assert await storage.sweep() == 0
    await ask(root, f"DO RELEASE_LOCK({lock})")
    assert await storage.sweep() == 1
    assert await ask(root, f"SELECT IS_FREE_LOCK({lock})") == ((1,),)


async def test_the_sweep_runs_by_itself_and_survives_an_outage(
    server: Private, url: str, table: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sweeping, "EVERY", 0.05)
    caplog.set_level(logging.DEBUG, "aiohttp_store")
    async with opening(url) as storage:
        assert isinstance(storage, MySQLStorage)
        server.kill()
        try:
            await until(lambda: "no sweep" in caplog.text)
        finally:
            server.start()
        assert PASSWORD not in caplog.text
        await create(storage, key := new_key())
        connection = await aiomysql.connect(
            host="127.0.0.1", port=server.port, user="root", db="sessions", autocommit=True
        )
        await expire(connection, table, key)

        async def is_swept() -> bool:
            return not await ask(connection, f"SELECT 1 FROM {table}")

        await until(is_swept)
        await connection.ensure_closed()


async def test_closing_says_goodbye(root: Any, url: str) -> None:
    count = "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME='ABORTED_CLIENTS'"
    await all_connections_end(root)  # those of the tests before
    before = await ask(root, count)
    async with opening(url) as storage:
        await asyncio.gather(*(storage.load([new_key()]) for _ in range(5)))
    await all_connections_end(root)
    assert await ask(root, count) == before


async def test_a_verb_that_outlives_closing_keeps_no_connection(
    server: Private, root: Any, storage: MySQLStorage, table: str
) -> None:
    version = await create(storage, key := new_key())
    other = await other_session(server)
    await ask(other, f"SELECT 1 FROM {table} WHERE id='{key}' FOR UPDATE")
    task = asyncio.create_task(save(storage, key, b"more", version))
    await someone_waits_for_a_lock(root)
    await storage.close()
    await other.rollback()
    await other.ensure_closed()
    assert isinstance(await task, Saved)
    await all_connections_end(root)


def test_an_outage_under_tls_leaves_no_socket_behind(server: Private, hasty_url: str) -> None:
    """A TLS connection that is closed politely waits for the server, up to 30 s."""

    async def use() -> None:
        async with opening(f"{hasty_url}&tls=true&tls_ca={server.folder}/ca.pem") as storage:
            server.pause()
            with pytest.raises(StorageUnavailable):
                await storage.load([new_key()])

    try:
        asyncio.run(use())
        gc.collect()  # an open socket would be a ResourceWarning
    finally:
        server.resume()


async def test_closing_leaves_no_task_and_no_connection(root: Any, url: str) -> None:
    async with opening(url) as storage:
        await asyncio.gather(*(storage.load([new_key()]) for _ in range(5)))
    assert len(asyncio.all_tasks()) == 1
    await all_connections_end(root)


def test_a_storage_serves_one_event_loop_after_another(url: str) -> None:
    storage = storage_from_url(url)
    assert isinstance(storage, MySQLStorage)

    async def use() -> None:
        await storage.open()
        await asyncio.gather(*(create(storage, new_key()) for _ in range(20)))
        await storage.close()

    asyncio.run(use())
    asyncio.run(use())


def test_ssl_is_what_the_driver_gets(server: Private) -> None:
    storage = storage_from_url(f"{server.url}?tls=true&tls_ca={server.folder}/ca.pem")
    assert isinstance(storage, MySQLStorage)
    assert isinstance(connections_of(storage)._settings["ssl"], ssl.SSLContext)


# Batches in one statement


async def test_each_update_of_a_batch_has_its_own_condition_data_and_time(
    storage: MySQLStorage, root: Any, table: str
) -> None:
    keys = sorted(new_key() for _ in range(60))
    right, stale, expired, missing = (keys[start::4] for start in range(4))
    versions = {key: await create(storage, key) for key in keys if key not in missing}
    newer = {key: await save(storage, key, b"newer", versions[key]) for key in stale}
    await expire(root, table, *expired)
    new, other = sorted(new_key() for _ in range(2)), new_key()
    gone = await create(storage, other)
    writes = [
        Write(key, versions.get(key, b"\1" * 8), bytes(number) + b"'\"\\%s", 100 + number)
        for number, key in enumerate(keys)
    ]
    writes += [Write(key, None, b"new", 60) for key in new] + [Write(other, gone, None, 1)]
    outcomes = dict(zip([write.key for write in writes], await storage.save(writes[::-1]), strict=True))
    outcomes = dict(zip([write.key for write in writes[::-1]], outcomes.values(), strict=True))
    for key in right + new:
        assert isinstance(outcomes[key], Saved)
        (record,) = await storage.load([key])
        assert record is not None
        assert outcomes[key] == Saved(record.version)
    for number, key in enumerate(keys):
        if key in right:
            assert await data_of(storage, key) == bytes(number) + b"'\"\\%s"
            ((left,),) = await ask(
                root, f"SELECT TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(6), expires) FROM {table} WHERE id='{key}'"
            )
            assert 95 + number <= left <= 100 + number
    for key in stale:
        saved = newer[key]
        assert isinstance(saved, Saved)
        assert outcomes[key] == Conflict(Record(saved.version, b"newer"))
    assert {key: outcomes[key] for key in expired + missing} == dict.fromkeys(expired + missing, Gone())
    assert outcomes[other] == Saved(b"")
    assert await storage.load([*expired, *missing, other]) == [None] * 31


async def test_a_batch_reads_the_rows_of_its_keys_and_no_others(storage: MySQLStorage, root: Any, table: str) -> None:
    drafts = [Draft(Write(new_key(), b"v" * 8, b"data", 60), b"w" * 8) for _ in range(32)]
    for draft in drafts:
        await create(storage, draft.write.key)
    for statement in Table(table).update(drafts).split(";")[:2]:
        ((*_, kind, keys, used, _, _, rows, _),) = await ask(root, f"EXPLAIN {statement.replace('ROW_COUNT()', '0')}")
        assert (kind, keys, used, int(rows)) == ("range", "PRIMARY", "PRIMARY", 32)


async def test_updates_that_are_larger_than_a_packet_together_are_sent_in_parts(root: Any, url: str) -> None:
    async with setting(root, "max_allowed_packet", str(1 << 20)), opening(url) as storage:
        keys = [new_key() for _ in range(20)]
        versions = [await create(storage, key) for key in keys]
        sizes = [300_000, 200_000, *range(100_000, 118_000, 1000)]
        writes = [
            Write(key, version, bytes(size), 60) for key, version, size in zip(keys, versions, sizes, strict=True)
        ]
        assert all(isinstance(outcome, Saved) for outcome in await storage.save(writes))
        assert [len((await load(storage, key)).data) for key in keys] == sizes
