"""`sqlite://`: a file of this machine that several processes share, through aiosqlite."""

# ruff: noqa: S608  (the table's name is a checked identifier, all values are parameters)

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from ..errors import ConfigError, SessionTooLarge, StorageRefused, StorageUnavailable
from ..storage import Outcome, Record, Saved, Storage, Write, new_version, outcome
from ..url import identifier, positive
from ._refusals import Unusable
from ._sqlite_connections import Lane, primary_code, transaction
from ._sweeping import SLICE, Sweeper, rest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..url import StorageURL

__all__ = ["SQLiteOptions", "SQLiteStorage"]

T = TypeVar("T")

_LARGEST = 1_000_000_000 - 1024
"""Bytes: SQLite's limit of a row, less what is not the data."""
_SHARE = 0.9  # of the deadline, in which a lock is waited for: what is left tells the caller so
# SQLite takes any type in any column; a column with another type holds what somebody else wrote.
_LAYOUT = {"id": ("TEXT", 1, 1), "version": ("BLOB", 1, 0), "data": ("BLOB", 1, 0), "expires": ("REAL", 1, 0)}
_NEVER = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}
_NEVER_SQLITE = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}


@dataclass(frozen=True, kw_only=True)
class SQLiteOptions:
    """The parameters of `sqlite://`."""

    table: str = "sessions"
    """The table of the records: letters, digits and underscores, at most 64, no digit first."""
    timeout: float = 2.0
    """Seconds within which each call answers or raises `StorageUnavailable`."""

    def __post_init__(self) -> None:
        identifier("table", self.table)
        positive("timeout", self.timeout)


def _record(version: object, data: object) -> Record | None:
    """Return the record of a row, or `None` if it holds what this storage never writes, as any column may."""
    return Record(version, data) if isinstance(version, bytes) and isinstance(data, bytes) else None


class SQLiteStorage(Storage):
    """Sessions in the rows of one table of a file, made where it is missing, for its owner alone.

    Args:
        path: of the file.
        options: the table, and how long a call may take.
    """

    def __init__(self, path: str | os.PathLike[str], options: SQLiteOptions | None = None) -> None:
        options = options or SQLiteOptions()
        self.path = Path(path).absolute()
        self.table = table = options.table
        self.timeout = options.timeout
        self.clock = time.time
        self._reader: Lane | None = None
        self._writer: Lane | None = None
        self._sweeper = Sweeper(self.sweep)
        live = f'FROM "{table}" WHERE id=? AND expires>?'
        self._find = f"SELECT version,data {live}"
        self._remove = f"DELETE {live} AND version=?"
        self._replace = f'UPDATE "{table}" SET version=?,data=?,expires=? WHERE id=? AND expires>? AND version=?'
        self._create = (
            f'INSERT INTO "{table}" (id,version,data,expires) VALUES (?,?,?,?) ON CONFLICT (id) DO UPDATE '
            "SET version=excluded.version,data=excluded.data,expires=excluded.expires WHERE expires<=?"
        )

    @classmethod
    def from_url(cls, url: StorageURL) -> Self:
        """Read `sqlite:///relative.db` and `sqlite:////absolute.db`."""
        path = url.path[1:]
        if url.hosts or url.user is not None or url.password is not None:
            raise ConfigError(
                f"{url} names a host; write sqlite:///file.db, or sqlite:////folder/file.db with four '/'"
            )
        if path in ("", ":memory:"):
            raise ConfigError(f"{url} names no file; write sqlite:///file.db, or memory:// to keep nothing")
        if "\0" in path:
            raise ConfigError(f"the path {path!r} holds a NUL; write sqlite:///file.db")
        return cls(path, url.options(SQLiteOptions))

    def __repr__(self) -> str:
        return f"<SQLiteStorage of {self.path}, table {self.table!r}>"

    async def open(self) -> None:
        """Make the file and the table where they are missing, and begin to sweep.

        Raises:
            ConfigError: the file cannot be made, read or written, is no database, or the table is of another layout.
        """
        if self._writer is not None:
            return
        self._writer, self._reader = Lane(self.path, self._prepare), Lane(self.path, self._prepare)
        async with self.opening(sqlite3.Error):
            try:
                async with self.answering(sqlite3.Error):
                    for lane in (self._writer, self._reader):
                        await lane.connected(self._until())
                await self.check()  # a database that may only be read is opened all the same
            except StorageRefused as error:
                raise ConfigError(str(error)) from error
        self._sweeper.start()

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        places = ",".join("?" * len(keys))
        statement = f'SELECT id,version,data FROM "{self.table}" WHERE id IN ({places}) AND expires>?'

        def read(connection: sqlite3.Connection) -> dict[str, Record]:
            rows = connection.execute(statement, (*keys, self.clock()))
            return {key: record for key, version, data in rows if (record := _record(version, data))}

        found = await self._run(self._reader, read)
        return [found.get(key) for key in keys]

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        for write in writes:
            if len(write.data or b"") > _LARGEST:
                raise SessionTooLarge(len(write.data or b""), _LARGEST, f"a record of {self!r}")
        drafts = [(write, b"" if write.data is None else new_version()) for write in writes]

        def carry_out(connection: sqlite3.Connection) -> list[Outcome]:
            now = self.clock()  # asked when the lock is ours, as it may have been long in coming
            return [self._carry_out(connection, write, version, now) for write, version in drafts]

        return await self._transact(carry_out)

    async def delete(self, keys: Sequence[str]) -> None:
        statement = f'DELETE FROM "{self.table}" WHERE id=?'
        await self._transact(lambda connection: connection.executemany(statement, [(key,) for key in keys]).rowcount)

    async def sweep(self) -> int:
        """Delete expired records in small batches, and tell how many.

        Several processes may be at it: each batch has the database to itself, and takes what is left.
        """
        loop, total = asyncio.get_running_loop(), 0
        table = f'"{self.table}"'
        old = f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} WHERE expires<=? LIMIT {SLICE})"
        while True:
            began = loop.time()
            swept = await self._transact(lambda connection: connection.execute(old, (self.clock(),)).rowcount)
            total += swept
            if swept < SLICE:
                return total
            await rest(began)

    def refusal(self, error: Exception) -> str | None:
        """Return what the operator must change, or nothing if waiting may help."""
        if isinstance(error, Unusable):
            return error.way_out
        code = primary_code(error)
        if code not in _NEVER_SQLITE and getattr(error, "errno", None) not in _NEVER:
            return None
        if code == sqlite3.SQLITE_NOTADB:
            return "it is not an SQLite database; name another file, or move it away"
        if self.path.is_dir():
            return "it is a folder; name a file in it"
        if not self.path.parent.is_dir():
            return f"there is no folder {self.path.parent}; make it, or name another"
        return "let this user read and write it and its folder, or name another file"

    async def close(self) -> None:
        """Close the file; a call that hangs is waited for, but not longer than `timeout`."""
        await self._sweeper.stop()
        lanes = [lane for lane in (self._reader, self._writer) if lane is not None]
        self._reader = self._writer = None
        until = time.monotonic() + self.timeout
        for lane in lanes:  # one after the other, as only the last of all connections tidies the write-ahead log up
            await lane.close(until)

    def _until(self) -> float:
        return time.monotonic() + _SHARE * self.timeout

    async def _run(self, lane: Lane | None, do: Callable[[sqlite3.Connection], T]) -> T:
        if lane is None:
            raise StorageUnavailable(f"{self!r} is not open")
        async with self.answering(sqlite3.Error):
            return await lane.run(do, self._until())

    async def _transact(self, do: Callable[[sqlite3.Connection], T]) -> T:
        def transact(connection: sqlite3.Connection) -> T:
            with transaction(connection):
                return do(connection)

        return await self._run(self._writer, transact)

    def _carry_out(self, connection: sqlite3.Connection, write: Write, version: bytes, now: float) -> Outcome:
        key, expected, data, ttl = write
        if data is None:
            done = connection.execute(self._remove, (key, now, expected))
        elif expected is None:
            done = connection.execute(self._create, (key, version, data, now + ttl, now))
        else:
            done = connection.execute(self._replace, (version, data, now + ttl, key, now, expected))
        if done.rowcount:
            return Saved(version)
        found = connection.execute(self._find, (key, now)).fetchone()
        record = None if found is None else _record(*found)
        if found is not None and record is None:
            raise sqlite3.DataError("the row under this key was not written by this storage")
        lost = outcome(write, version, record)
        assert lost is not None  # nothing that is in the way of a create goes while the lock is ours
        return lost

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Set up a new connection, and make the table where it is missing."""
        connection.execute("PRAGMA journal_mode=WAL")  # of the file, for good
        connection.execute("PRAGMA synchronous=FULL")  # a commit is on the disk before it is acknowledged
        if not self._columns(connection):
            kinds = " AND ".join(f"typeof({name})='{kind.lower()}'" for name, (kind, *_) in _LAYOUT.items())
            try:
                with transaction(connection):
                    connection.execute(
                        f'CREATE TABLE IF NOT EXISTS "{self.table}" (id TEXT NOT NULL PRIMARY KEY, '
                        f"version BLOB NOT NULL, data BLOB NOT NULL, expires REAL NOT NULL, CHECK ({kinds}))"
                    )
                    connection.execute(f'CREATE INDEX IF NOT EXISTS "{self.table}_expires" ON "{self.table}" (expires)')
            except sqlite3.OperationalError as error:
                if primary_code(error) != sqlite3.SQLITE_ERROR:
                    raise
                raise Unusable(str(error), "name another table with ?table=") from error
        if self._columns(connection) != _LAYOUT:
            raise Unusable("the table has another layout", "name another with ?table=, or drop it")

    def _columns(self, connection: sqlite3.Connection) -> dict[str, tuple[str, int, int]]:
        rows = connection.execute(f'PRAGMA table_info("{self.table}")')
        return {name: (kind, is_needed, is_primary) for _, name, kind, is_needed, _, is_primary in rows}
