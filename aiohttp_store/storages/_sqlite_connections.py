"""Connections to one file of SQLite: each has a thread, in which whole transactions run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, TypeVar

import aiosqlite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["Lane", "primary_code", "transaction"]

T = TypeVar("T")

_LONGEST_PAUSE = 0.01
_CLOSING_PAUSE = 0.002
_creating = threading.Lock()


class _Moved(OSError):
    """Another file stands at the path, or none."""


class _Connection(aiosqlite.Connection):
    """A connection whose thread runs whole transactions, and does not keep the process from ending."""

    def __init__(self, path: Path) -> None:
        super().__init__(self._open_file, iter_chunk_size=64)
        self._thread.daemon = True
        self._path = path
        self._file: tuple[int, int] | None = None

    async def run(self, do: Callable[[sqlite3.Connection], T], until: float) -> T:
        """Run this in the thread, again while the database is locked.

        What nobody waits for any more is not begun. Closures are sent, as aiosqlite logs its arguments.
        """
        left = threading.Event()
        try:
            return await self._execute(lambda: self._persist(do, until, left))  # type: ignore[no-any-return, no-untyped-call]
        finally:
            left.set()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _open_file(self) -> sqlite3.Connection:
        # Only what did not exist, as closing a database's file drops the locks that this process has on it.
        with _creating, contextlib.suppress(FileExistsError):
            os.close(os.open(os.path.realpath(self._path), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        self._file = self._identity()
        return sqlite3.connect(self._path, timeout=0, isolation_level=None)

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _persist(self, do: Callable[[sqlite3.Connection], T], until: float, left: threading.Event) -> T:
        if self._identity() != self._file:
            raise _Moved
        while not left.is_set():
            try:
                return do(self._conn)
            except sqlite3.Error as error:
                if not _is_locked(error) or time.monotonic() >= until:
                    raise
            left.wait(random.uniform(0, _LONGEST_PAUSE))  # noqa: S311  (jitter)
        raise TimeoutError


class Lane:
    """One connection, opened again after an error, and when another file stands at the path."""

    def __init__(self, path: Path, prepare: Callable[[sqlite3.Connection], None]) -> None:
        self._path = path
        self._prepare = prepare
        self._connection: _Connection | None = None
        self._left: list[_Connection] = []
        self._connecting = asyncio.Lock()
        self._closed = False

    async def run(self, do: Callable[[sqlite3.Connection], T], until: float) -> T:
        while True:
            connection = await self.connected(until)
            try:
                return await connection.run(do, until)
            except _Moved:
                self._leave(connection)
            except sqlite3.Error as error:
                if not _is_locked(error):
                    self._leave(connection)
                raise

    async def connected(self, until: float) -> _Connection:
        if self._connection is not None:
            return self._connection
        async with self._connecting:
            if self._closed:
                raise OSError("it was closed")
            if self._connection is None:
                connection = _Connection(self._path)
                try:
                    await connection
                    await connection.run(self._prepare, until)
                except BaseException:
                    self._leave(connection)
                    raise
                self._connection = connection
            return self._connection

    def _leave(self, connection: _Connection) -> None:
        """Let its thread close it after what it has to do."""
        if self._connection is connection:
            self._connection = None
        self._left = [left for left in self._left if left.is_alive and left is not connection] + [connection]
        connection.stop()

    async def close(self, until: float) -> None:
        """Wait for the threads, which report to this event loop, but not for those that hang."""
        self._closed = True
        async with self._connecting:
            if self._connection is not None:
                self._leave(self._connection)
        while any(left.is_alive for left in self._left) and time.monotonic() < until:  # noqa: ASYNC110  (no event tells)
            await asyncio.sleep(_CLOSING_PAUSE)


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


def primary_code(error: BaseException | None) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # what is above says more closely what it is


def _is_locked(error: BaseException) -> bool:
    return primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
