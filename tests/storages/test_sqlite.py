"""What is SQLite's own: a file, its locks, its owner, and what may become of it while an app runs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from aiohttp_store import (
    ConfigError,
    Conflict,
    Gone,
    Saved,
    SessionTooLarge,
    Storage,
    StorageRefused,
    StorageUnavailable,
    Write,
    _log,
    get_session,
)
from aiohttp_store.storages import _sweeping as sweeping
from aiohttp_store.storages import storage_from_url
from aiohttp_store.storages.sqlite import SQLiteOptions, SQLiteStorage

from ..conftest import PATIENCE, Client, Serve
from ..support.one_key import create, data_of, load, new_key, save
from ..support.pages import ROOT
from ..support.ticking import ticking
from ..support.timing import AT_LAST, pace, until, within

TIMEOUT = 0.5
SLACK = 2.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@contextmanager
def python(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run this in a process of its own, and end it with the block."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2].split(";"):
    connection.execute(statement)
print("locked")
sys.stdin.read()
"""
ALONE = "PRAGMA locking_mode=EXCLUSIVE; BEGIN EXCLUSIVE; COMMIT"  # no other process may even read


@contextmanager
def locked(path: Path, how: str = "BEGIN EXCLUSIVE") -> Iterator[None]:
    """Have another process hold the lock."""
    with python(LOCK, path, how) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield


def rows(path: Path, statement: str = "SELECT id FROM sessions") -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "_connection_worker_thread" in thread.name]


async def no_threads_left() -> None:
    await until(lambda: not threads())


class Opened:
    def __init__(self, path: Path, **options: Any) -> None:
        self.storage = SQLiteStorage(path, SQLiteOptions(**{"timeout": PATIENCE, **options}))

    async def __aenter__(self) -> SQLiteStorage:
        await self.storage.open()
        return self.storage

    async def __aexit__(self, *_: object) -> None:
        await self.storage.close()


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///shop.db", Path.cwd() / "shop.db"),
        ("sqlite:///data/shop.db?table=x&timeout=0.5", Path.cwd() / "data/shop.db"),
        ("sqlite:////var/lib/shop.db", Path("/var/lib/shop.db")),
        ("sqlite:////srv/a%20b%3f%23.db", Path("/srv/a b?#.db")),
    ],
)
def test_a_url_names_a_relative_file_by_three_slashes_and_an_absolute_one_by_four(url: str, path: Path) -> None:
    storage = storage_from_url(url)
    assert isinstance(storage, SQLiteStorage)
    assert storage.path == path
    assert (storage.table, storage.timeout) == (("x", 0.5) if "?" in url else ("sessions", 2.0))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "names no file; .* or memory://"),
        ("sqlite:///", "names no file; .* or memory://"),
        ("sqlite:///:memory:", "names no file; .* or memory://"),
        ("sqlite://shop.db", "names a host; write sqlite:///file.db"),
        ("sqlite://u:p@/shop.db", "names a host"),
        ("sqlite:///a%00b.db", "holds a NUL"),
        ("sqlite:///a.db?table=a-b", "table='a-b' must be 1 to 64 letters"),
        ("sqlite:///a.db?timeout=0", "timeout=0.0 must be a finite number above 0"),
        ("sqlite:///a.db?tabel=x", "no parameter 'tabel'; did you mean 'table'"),
    ],
)
def test_a_url_that_cannot_work_is_refused_and_the_way_out_told(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        storage_from_url(url)


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("missing/a.db", "sessions", "there is no folder .*/missing; make it"),
        ("garbage/a.db", "sessions", "there is no folder .*/garbage; make it"),
        ("folder", "sessions", "it is a folder; name a file in it"),
        ("garbage", "sessions", "it is not an SQLite database; name another file"),
        ("dangling", "sessions", "let this user read and write it"),
        ("other.db", "other", "the table has another layout; name another with .table="),
        ("new.db", "sqlite_x", "object name reserved"),
    ],
)
async def test_a_file_that_cannot_be_used_is_told_at_open_and_left_alone(
    tmp_path: Path, name: str, table: str, message: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "garbage").write_bytes(b"no database at all, but rather long " * 100)
    (tmp_path / "dangling").symlink_to(tmp_path / "missing/file")
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE other (id TEXT PRIMARY KEY, data BLOB)")
    storage = SQLiteStorage(tmp_path / name, SQLiteOptions(table=table, timeout=PATIENCE))
    with pytest.raises(ConfigError, match=message) as caught:
        await storage.open()
    assert str(tmp_path / name) in str(caught.value)
    assert (tmp_path / "garbage").read_bytes().startswith(b"no database")
    assert threads() == []
    with pytest.raises(StorageUnavailable, match="not open"):
        await storage.load([new_key()])


AS_NOBODY = """
import asyncio, os, sys
from pathlib import Path
from aiohttp_store import ConfigError, StorageRefused
from aiohttp_store.storages.sqlite import SQLiteStorage
from tests.support.one_key import create, data_of, new_key
import encodings.idna
folder = Path(sys.argv[1])
if os.getuid() == 0:
    os.setuid(65534)
folder.chmod(0o700)

async def main():
    file = folder / "given.db"
    file.write_bytes(b"")
    for mode in 0o400, 0o200, 0:
        file.chmod(mode)
        try:
            await SQLiteStorage(file).open()
        except ConfigError as error:
            assert "given.db" in str(error) and "let this user read and write it" in str(error), error
        else:
            raise AssertionError(oct(mode))
    file.chmod(0o600)
    storage = SQLiteStorage(file)
    await storage.open()
    await storage.close()
    file.chmod(0o400)  # it can be opened and read, as it has a table and a log already
    try:
        await SQLiteStorage(file).open()
    except ConfigError as error:
        assert "readonly" in str(error) and "let this user read and write it" in str(error), error
    else:
        raise AssertionError("read-only")
    for name in folder.iterdir():
        name.chmod(0o600)
    await storage.open()
    key = new_key()
    await create(storage, key)
    for name in folder.iterdir():
        name.unlink()
    folder.chmod(0o500)
    for ask in storage.load([key]), storage.delete([key]):
        try:
            await ask
        except StorageRefused as error:
            assert "let this user read and write it" in str(error), error
        else:
            raise AssertionError(ask)
    try:
        await SQLiteStorage(folder / "new.db").open()
    except ConfigError as error:
        assert "new.db" in str(error), error
    else:
        raise AssertionError("made")
    folder.chmod(0o700)
    await create(storage, key, b"again")
    assert await data_of(storage, key) == b"again"
    await storage.close()

asyncio.run(main())
print("done")
"""


def test_what_this_user_may_not_write_is_told_at_open_and_is_an_outage_later() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if os.getuid() == 0:
            os.chown(folder, 65534, 65534)
        with python(AS_NOBODY, folder) as process:
            assert process.communicate(timeout=AT_LAST)[0] == "done\n"


async def test_only_its_owner_reads_a_file_that_was_made_and_a_given_one_keeps_its_mode(tmp_path: Path) -> None:
    given = tmp_path / "given.db"
    given.touch()
    given.chmod(0o660)
    before = os.umask(0)
    try:
        async with Opened(tmp_path / "made.db") as made, Opened(given) as kept:
            await create(made, new_key())
            await create(kept, new_key())
            modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    finally:
        os.umask(before)
    ends = ("", "-wal", "-shm")
    assert modes == {f"made.db{end}": 0o600 for end in ends} | {f"given.db{end}": 0o660 for end in ends}


async def test_a_commit_is_on_the_disk_before_it_is_acknowledged(path: Path) -> None:
    async with Opened(path) as storage:
        asked = "SELECT journal_mode, synchronous FROM pragma_journal_mode, pragma_synchronous"
        for lane in (storage._reader, storage._writer):
            assert lane is not None
            assert await lane.run(lambda connection: connection.execute(asked).fetchall(), 0) == [("wal", 2)]


async def test_a_locked_database_is_an_outage_of_writes_alone_and_ends_with_the_lock(path: Path) -> None:
    timeout = 2.0 * pace()  # of which a tenth is left to say that it is locked
    async with Opened(path, timeout=timeout) as storage:
        key, late = new_key(), new_key()
        version = await create(storage, key)
        with locked(path):
            async with ticking(timeout / 2):
                verbs = save(storage, late, b"late"), save(storage, key, b"late", version), storage.delete([key])
                with within(timeout + SLACK):
                    answers = await asyncio.gather(*verbs, storage.sweep(), return_exceptions=True)
            assert [type(answer) for answer in answers] == [StorageUnavailable] * 4
            assert "database is locked" in str(answers[0])
            assert await data_of(storage, key) == b"data"
        assert await storage.load([late]) == [None]
        assert isinstance(await save(storage, key, b"after", version), Saved)


async def test_a_write_waits_for_a_lock_that_is_given_up_in_time_and_reads_do_not(path: Path) -> None:
    async with Opened(path) as storage:
        key = new_key()
        await create(storage, key)
        with locked(path):
            waiting = asyncio.create_task(create(storage, new_key()))
            done, _ = await asyncio.wait({waiting}, timeout=0.2)
            assert not done
            assert await data_of(storage, key) == b"data"
            assert not waiting.done()
        await waiting


async def test_a_database_that_is_locked_at_the_start_is_an_outage_that_ends(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Opened(path) as storage:
        await create(storage, new_key())
    with locked(path, ALONE):
        storage = SQLiteStorage(path, SQLiteOptions(timeout=TIMEOUT))
        await storage.open()
        assert "opened without its server" in caplog.text
        assert str(path) in caplog.text
        with pytest.raises(StorageUnavailable):
            await storage.load([new_key()])
    storage.timeout = PATIENCE
    await asyncio.gather(*(create(storage, new_key()) for _ in range(8)))  # all find it closed, one opens it
    await storage.close()
    assert threads() == []


async def test_a_cancelled_call_is_not_begun_later_and_leaves_nothing_open(path: Path) -> None:
    async with Opened(path) as storage:
        keys = [new_key() for _ in range(4)]
        with locked(path):
            calls = [asyncio.create_task(create(storage, key)) for key in keys]
            await asyncio.sleep(0.05)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            with pytest.raises(TimeoutError), within(TIMEOUT + SLACK):
                async with asyncio.timeout(TIMEOUT):
                    await create(storage, keys[0])
        assert await storage.load(keys) == [None] * 4
        await create(storage, keys[0])


@pytest.mark.parametrize(
    ("data", "ttl", "error"), [("no bytes", 60, StorageUnavailable), (b"too long", 10**400, OverflowError)]
)
async def test_a_batch_that_fails_half_way_writes_nothing_and_holds_no_lock(
    path: Path, data: Any, ttl: int, error: type[Exception]
) -> None:
    async with Opened(path) as storage, Opened(path) as other:
        keys = [new_key() for _ in range(4)]
        with pytest.raises(error):
            await storage.save([Write(keys[0], None, b"1", 60), Write(keys[1], None, data, ttl)])
        await create(other, keys[2])
        await create(storage, keys[3])
        assert await storage.load(keys[:2]) == [None] * 2


async def test_close_does_not_wait_for_what_hangs_and_a_process_ends_without_it(path: Path) -> None:
    storage = SQLiteStorage(path, SQLiteOptions(timeout=TIMEOUT))
    await storage.open()
    assert storage._writer is not None
    release = threading.Event()
    hanging = asyncio.create_task(storage._writer.run(lambda _: release.wait(), 0))
    await asyncio.sleep(0.05)
    with pytest.raises(StorageUnavailable, match="did not answer"):
        await create(storage, new_key())
    with within(TIMEOUT + SLACK):
        await storage.close()
    release.set()
    await hanging
    await no_threads_left()
    assert rows(path) == []  # what had timed out was not begun
    code = (
        "import asyncio, sys\nfrom aiohttp_store.storages.sqlite import SQLiteStorage\n"
        "async def main():\n    global storage\n    storage = SQLiteStorage(sys.argv[1])\n    await storage.open()\n"
        "asyncio.run(main())\nprint('left open')"
    )
    with python(code, path) as process:
        assert process.communicate(timeout=AT_LAST)[0] == "left open\n"


async def test_close_ends_a_call_that_waits_for_a_lock(path: Path) -> None:
    storage = SQLiteStorage(path, SQLiteOptions(timeout=TIMEOUT))
    await storage.open()
    with locked(path):
        writer = storage._writer
        assert writer is not None
        calls = [asyncio.create_task(create(storage, new_key())) for _ in range(3)]
        await asyncio.sleep(0.05)
        with within(TIMEOUT + SLACK):
            await storage.close()
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(answer, StorageUnavailable)
    with pytest.raises(OSError, match="closed"):  # a call that was about to open it again
        await writer.run(lambda _: None, 0)
    assert threads() == []


def test_a_storage_can_be_opened_in_one_event_loop_after_another(path: Path) -> None:
    storage, key = SQLiteStorage(path, SQLiteOptions(timeout=PATIENCE)), new_key()

    async def once() -> bytes | None:
        await storage.open()
        await storage.open()
        found = await data_of(storage, key)
        if found is None:
            await create(storage, key)
        await storage.close()
        assert [file.name for file in path.parent.iterdir()] == [path.name]  # all of it is in the one file
        assert threads() == []
        return found

    assert [asyncio.run(once()) for _ in range(20)] == [None, *[b"data"] * 19]


WRITER = """
import asyncio, json, sys
from aiohttp_store import Write
from aiohttp_store.storages.sqlite import SQLiteOptions, SQLiteStorage

async def main():
    storage = SQLiteStorage(sys.argv[1], SQLiteOptions(timeout=60))
    await storage.open()
    keys = json.loads(sys.argv[2])
    versions = [record and record.version for record in await storage.load(keys)]
    for number in range(int(sys.argv[3]), 1 << 30):
        writes = [Write(key, version, b"%d" % number, 60) for key, version in zip(keys, versions)]
        versions = [outcome.version for outcome in await storage.save(writes)]
        print(number)

asyncio.run(main())
"""


def test_a_process_that_is_killed_loses_no_acknowledged_write_and_tears_no_batch(path: Path) -> None:
    keys = [new_key() for _ in range(16)]
    last = 0
    for _ in range(3):
        with python(WRITER, path, json.dumps(keys), last + 1) as process:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(40)]
            process.kill()
            acknowledged = int([*said, *process.stdout][-1])
        assert rows(path, "PRAGMA integrity_check") == [("ok",)]
        (number,) = {int(data) for (data,) in rows(path, "SELECT data FROM sessions")}  # all of a batch are alike
        assert acknowledged <= number <= acknowledged + 1
        assert len(rows(path)) == len(keys)
        last = number


async def test_two_storages_of_one_file_see_each_others_writes_at_once(path: Path) -> None:
    async with Opened(path) as one, Opened(path) as other:
        key = new_key()
        version = await create(one, key)
        for number in range(50):
            outcome = await save(one, key, b"%d" % number, version)
            assert isinstance(outcome, Saved)
            assert isinstance(await save(other, key, b"late", version), Conflict)
            assert await load(other, key) == (outcome.version, b"%d" % number)
            version = outcome.version
        await other.delete([key])
        assert await save(one, key, b"late", version) == Gone()


async def test_two_tables_of_one_file_are_two_spaces(path: Path) -> None:
    async with Opened(path) as one, Opened(path, table="other") as other:
        key = new_key()
        await create(one, key)
        assert await other.load([key]) == [None]
        await create(other, key, b"other")
        await other.delete([key])
        assert await data_of(one, key) == b"data"


async def test_a_sweep_takes_what_is_expired_in_small_batches_and_its_space_is_used_again(path: Path) -> None:
    async with Opened(path) as storage:
        statements: list[str] = []
        now = time.time()
        sizes = []
        live = new_key()
        await create(storage, live, ttl=3600)
        for _ in range(3):
            storage.clock = lambda: now - 1000
            await storage.save([Write(new_key(), None, b"x" * 300, 60) for _ in range(1200)])
            storage.clock = lambda: now
            assert len(rows(path)) == 1201
            assert storage._writer is not None
            await storage._writer.run(lambda connection: connection.set_trace_callback(statements.append), 0)
            assert await storage.sweep() == 1200
            assert rows(path) == [(live,)]
            assert len([statement for statement in statements if statement.startswith("DELETE")]) == 3
            statements.clear()
            await storage._writer.run(lambda connection: connection.execute("PRAGMA wal_checkpoint").fetchall(), 0)
            sizes.append(path.stat().st_size)
        assert max(sizes) < 1.2 * sizes[0]


async def test_a_storage_sweeps_by_itself_also_after_a_sweep_that_failed(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aiohttp_store")
    monkeypatch.setattr(sweeping, "EVERY", 0.05)
    async with Opened(path, timeout=TIMEOUT) as storage:
        with locked(path):
            await until(lambda: "no sweep: " in caplog.text)
        storage.timeout, storage.clock = PATIENCE, lambda: time.time() - 1000
        lasting = new_key()
        await create(storage, new_key())
        await create(storage, lasting, ttl=3600)
        storage.clock = time.time
        await until(lambda: rows(path) == [(lasting,)])


async def test_the_clock_of_the_machine_decides_and_no_write_is_lost_where_it_is_set_back(path: Path) -> None:
    async with Opened(path) as storage:
        now = time.time()
        key = new_key()
        storage.clock = lambda: now
        version = await create(storage, key, ttl=60)
        for moved, is_there in ((59, True), (61, False), (-3600, True)):
            storage.clock = partial(float, now + moved)
            assert (await storage.load([key]) != [None]) is is_there
            assert isinstance(await save(storage, key, b"x", b"another"), Conflict if is_there else Gone)
        outcome = await save(storage, key, b"back", version, ttl=60)
        assert isinstance(outcome, Saved)
        assert isinstance(await save(storage, key, b"late", version), Conflict)
        storage.clock = lambda: now
        assert await storage.load([key]) == [None]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond this size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def fill(storage: Storage, keys: list[str]) -> None:
    for key in keys:
        await create(storage, key, key.encode() * 2000)


@pytest.mark.parametrize("how", ["limit", "pages"])
async def test_a_full_disk_is_an_outage_that_ends_with_it_and_loses_nothing(
    path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Opened(path) as storage:
        kept, more = new_key(), [new_key() for _ in range(40)]
        version = await create(storage, kept)
        if how == "limit":
            with files_of_at_most(1 << 20), pytest.raises(StorageUnavailable, match="disk"):
                await fill(storage, more)
            assert await data_of(storage, kept) == b"data"
        else:
            assert storage._writer is not None
            await storage._writer.run(lambda connection: connection.execute("PRAGMA max_page_count=100"), 0)
            with pytest.raises(StorageUnavailable, match="database or disk is full"):
                await fill(storage, more)
        assert isinstance(await save(storage, kept, b"after", version), Saved)
        found = [key for key in more if await data_of(storage, key)]
        assert found == more[: len(found)]
        assert 0 < len(found) < 40
        await fill(storage, more[len(found) :])
        assert rows(path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_damaged_file_is_an_outage_and_is_left_as_it_is(path: Path) -> None:
    keys = [new_key() for _ in range(500)]
    async with Opened(path) as storage:
        await storage.save([Write(key, None, b"x" * 500, 3600) for key in keys])
    with path.open("r+b") as file:
        file.seek(2 * 4096)
        file.write(os.urandom(path.stat().st_size - 2 * 4096))
    damaged = path.read_bytes()
    async with Opened(path) as storage:
        with pytest.raises(StorageUnavailable, match="malformed"):
            await storage.load(keys)
        with pytest.raises(StorageUnavailable, match="malformed"):
            await storage.delete(keys)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("to", ["nothing", "a copy"])
async def test_a_file_that_was_deleted_or_replaced_is_noticed_at_once(path: Path, to: str) -> None:
    async with Opened(path) as one, Opened(path) as other:
        key, later = new_key(), new_key()
        await create(one, key, b"copied")
        rows(path, f"VACUUM INTO '{path}.copy'")
        version = (await load(one, key)).version
        await save(other, key, b"newer", version)
        for file in path.parent.glob("sessions.db-*"):
            file.unlink()
        if to == "nothing":
            path.unlink()
        else:
            path.with_name("sessions.db.copy").replace(path)
        await create(one, later)
        for storage in (one, other):
            assert await data_of(storage, key) == (None if to == "nothing" else b"copied")
            assert await data_of(storage, later) == b"data"
    assert len(rows(path)) == (1 if to == "nothing" else 2)
    assert threads() == []


async def count(request: web.Request) -> web.Response:
    session = await get_session(request)
    session["n"] = session.get("n", 0) + 1
    return web.json_response(session["n"])


async def statuses(client: Client, number: int) -> list[int]:
    return [(await client.get("/count")).status for _ in range(number)]


async def test_a_table_that_was_dropped_while_the_app_runs_is_made_again_with_its_index(
    path: Path, serve: Serve
) -> None:
    client = await serve(count, storage=SQLiteStorage(path, SQLiteOptions(timeout=PATIENCE)))
    assert await statuses(client, 2) == [200, 200]
    rows(path, "DROP TABLE sessions")
    assert await statuses(client, 3) == [503, 200, 200]
    assert rows(path, "SELECT name FROM sqlite_master WHERE name='sessions_expires'") == [("sessions_expires",)]
    for file in path.parent.iterdir():
        file.unlink()
    assert await statuses(client, 2) == [200, 200]


@pytest.mark.parametrize(
    ("how", "back", "says"),
    [
        ("ALTER TABLE sessions ADD COLUMN more", "ALTER TABLE sessions DROP COLUMN more", None),
        ("ALTER TABLE sessions RENAME COLUMN data TO old", "ALTER TABLE sessions RENAME COLUMN old TO data", "layout"),
        ("ALTER TABLE sessions RENAME TO old; CREATE VIEW sessions AS SELECT 1", "DROP VIEW sessions", "layout"),
        ("DROP TABLE sessions; CREATE TABLE x (y); CREATE INDEX sessions ON x (y)", "DROP TABLE x", "already an index"),
    ],
)
async def test_a_table_that_was_changed_while_the_app_runs_refuses_until_it_is_mended(
    path: Path, serve: Serve, caplog: pytest.LogCaptureFixture, how: str, back: str, says: str | None
) -> None:
    client = await serve(count, storage=SQLiteStorage(path, SQLiteOptions(timeout=PATIENCE)))
    assert await statuses(client, 1) == [200]
    with closing(sqlite3.connect(path)) as other:
        other.executescript(how)
        if says is not None:
            await statuses(client, 1)
            caplog.clear()
            _log._last.clear()
            assert await statuses(client, 2) == [503, 503]
            (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
            assert says in said
            assert "name another" in said
        other.executescript(back)
    await statuses(client, 1)
    assert await statuses(client, 2) == [200, 200]


async def test_a_folder_that_is_away_is_a_refusal_until_it_is_back(path: Path, serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    storage = SQLiteStorage(folder / "sessions.db", SQLiteOptions(timeout=PATIENCE))
    client = await serve(count, storage=storage)
    assert await statuses(client, 1) == [200]
    folder.rename(tmp_path / "away")
    assert await statuses(client, 2) == [503, 503]
    with pytest.raises(StorageRefused, match="there is no folder"):
        await storage.load([new_key()])
    (tmp_path / "away").rename(folder)
    assert await statuses(client, 2) == [200, 200]


async def test_a_row_that_another_program_wrote_in_another_type_is_absent(path: Path) -> None:
    key = new_key()
    columns = "id TEXT NOT NULL PRIMARY KEY, version BLOB NOT NULL, data BLOB NOT NULL, expires REAL NOT NULL"
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"CREATE TABLE sessions ({columns})")
        other.execute("INSERT INTO sessions VALUES (?, 'text', 'text', 1e12)", (key,))
        other.commit()
    async with Opened(path) as storage:
        assert await storage.load([key]) == [None]
        with pytest.raises(StorageUnavailable, match="not written by this storage"):
            await save(storage, key, b"new")
        await storage.delete([key])
        await create(storage, key)


async def test_a_value_over_sqlites_limit_is_too_large(path: Path) -> None:
    async with Opened(path) as storage:
        with pytest.raises(SessionTooLarge) as caught:
            await save(storage, new_key(), bytes(10**9))  # of pages that nobody touches
        assert (caught.value.size, caught.value.limit) == (10**9, 10**9 - 1024)
        assert rows(path) == []


async def test_the_drivers_log_shows_neither_keys_nor_data(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with Opened(path) as storage:
        key = new_key()
        await create(storage, key, b"secret data")
        await storage.load([key])
        await storage.delete([key])
    assert "operation" in caplog.text
    assert key not in caplog.text
    assert "secret" not in caplog.text
