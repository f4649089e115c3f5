"""A storage of your own: sessions in a table of a PostgreSQL server, through asyncpg.

Run it with: python examples/postgresql_storage.py postgresql://user:password@localhost/database
"""

# ruff: noqa: S608  (the table's name is a checked identifier, all values are parameters)

import argparse
import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import asyncpg
from aiohttp import web

import aiohttp_store
from aiohttp_store import Conflict, Gone, Outcome, Record, Saved, SessionTooLarge, StorageUnavailable, Write
from aiohttp_store.storage import new_version
from aiohttp_store.url import TLSOptions, identifier, positive

LARGEST = 16 << 20  # PostgreSQL takes 1 GiB, but no visitor waits for that
OUTAGES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

TABLE = """CREATE TABLE IF NOT EXISTS {table} (
    id text PRIMARY KEY, version bytea NOT NULL, data bytea NOT NULL, expires timestamptz NOT NULL, UNIQUE (expires, id))"""
LOAD = "SELECT id, version, data FROM {table} WHERE id = ANY($1::text[]) AND expires > now()"
# One statement, and so one transaction. Rows are locked in the order of their keys, so that two batches never wait for
# each other, and a statement that has waited looks at each row again as it is then.
SAVE = """WITH wanted AS (
    SELECT id, expected, version, data, now() + ttl * interval '1 second' AS expires
    FROM unnest($1::text[], $2::bytea[], $3::bytea[], $4::bytea[], $5::bigint[]) AS w (id, expected, version, data, ttl)
), locked AS (
    SELECT id FROM {table} WHERE id = ANY($1::text[]) ORDER BY id FOR UPDATE
), removed AS (
    DELETE FROM {table} AS t USING locked JOIN wanted AS w USING (id)
    WHERE t.id = w.id AND t.version = w.expected AND t.expires > now() AND w.data IS NULL
    RETURNING t.id
), changed AS (
    UPDATE {table} AS t SET version = w.version, data = w.data, expires = w.expires
    FROM locked JOIN wanted AS w USING (id)
    WHERE t.id = w.id AND t.version = w.expected AND t.expires > now() AND w.data IS NOT NULL
    RETURNING t.id
), created AS (
    INSERT INTO {table} AS t (id, version, data, expires)
    SELECT id, version, data, expires FROM wanted WHERE expected IS NULL AND data IS NOT NULL ORDER BY id
    ON CONFLICT (id) DO UPDATE SET version = excluded.version, data = excluded.data, expires = excluded.expires
    WHERE t.expires <= now()
    RETURNING t.id
) SELECT id FROM removed UNION ALL SELECT id FROM changed UNION ALL SELECT id FROM created"""
DELETE = """DELETE FROM {table} WHERE id IN (
    SELECT id FROM {table} WHERE id = ANY($1::text[]) ORDER BY id FOR UPDATE)"""
SWEEP = """DELETE FROM {table} WHERE id IN (
    SELECT id FROM {table}
    WHERE expires <= now() AND (SELECT pg_try_advisory_xact_lock(hashtext('aiohttp_store.{table}')))
    ORDER BY expires LIMIT 500 FOR UPDATE SKIP LOCKED) RETURNING id"""


@dataclass(frozen=True, kw_only=True)
class Options(TLSOptions):
    """The parameters of `postgresql://`, with those for TLS."""

    table: str = "sessions"
    timeout: float = 2.0
    pool_size: int = 10

    def __post_init__(self) -> None:
        identifier("table", self.table)
        positive("timeout", self.timeout)
        positive("pool_size", self.pool_size)


class PostgreSQLStorage(aiohttp_store.Storage):
    """Sessions in the rows of one table."""

    def __init__(self, options: Options, **server: Any) -> None:
        self.timeout = options.timeout
        self._options = options
        self._server = server
        self._pool: Any = None
        self._is_ready = False
        self._sweeper: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: aiohttp_store.StorageURL) -> Self:
        options, (host, port) = url.options(Options), url.host(5432)
        database = url.path.removeprefix("/")
        if not database or "/" in database:
            raise aiohttp_store.ConfigError(f"{url} must name one database; write postgresql://user@host/database")
        tls = options.context() or False
        return cls(options, host=host, port=port, user=url.user, password=url.password, database=database, ssl=tls)

    def __repr__(self) -> str:
        return "<PostgreSQLStorage of {host}:{port}/{database}>".format_map(self._server)

    async def open(self) -> None:
        if self._pool is not None:
            return
        self._pool = await asyncpg.create_pool(min_size=0, max_size=self._options.pool_size, **self._server)
        try:
            await self.load([""])  # makes the table
        except StorageUnavailable as error:
            logging.getLogger(__name__).warning("opened without its server: %s", error)
        self._sweeper = asyncio.create_task(self._sweep_forever())

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        async with self.answering(*OUTAGES):
            found = await self._select(keys)
        return [found.get(key) for key in keys]

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        largest = max((len(write.data or b"") for write in writes), default=0)
        if largest > LARGEST:  # before anything is written: the batch is then sent again one by one
            raise SessionTooLarge(largest, LARGEST, f"a record of {self!r}")
        outcomes: dict[str, Outcome] = {}
        # Drawn here, once for each write: what is sent again after a lost answer finds its own version and is saved.
        drafts = {write.key: (write, b"" if write.data is None else new_version()) for write in writes}
        async with self.answering(*OUTAGES):
            while drafts:
                rows = [(write.key, write.expected, version, write.data, write.ttl) for write, version in drafts.values()]
                won = await self._ask(SAVE, *zip(*rows, strict=True))
                outcomes |= {key: Saved(drafts.pop(key)[1]) for (key,) in won}
                there = await self._select(list(drafts)) if drafts else {}
                for key, (write, version) in list(drafts.items()):
                    if key in there:
                        is_mine = there[key].version == version
                        outcomes[key] = Saved(version) if is_mine else Conflict(there[key])
                    elif write.expected is not None:
                        outcomes[key] = Gone()
                    elif write.data is None:
                        outcomes[key] = Saved(b"")
                    else:
                        continue  # what was in the way of this create has gone since
                    del drafts[key]
        return [outcomes[write.key] for write in writes]

    async def delete(self, keys: Sequence[str]) -> None:
        async with self.answering(*OUTAGES):
            await self._ask(DELETE, keys)

    async def sweep(self) -> int:
        """Delete expired records, a few at a time, unless another process is at it; tell how many."""
        total = 0
        while True:
            async with self.answering(*OUTAGES):
                swept = len(await self._ask(SWEEP))
            total += swept
            if swept == 0:
                return total
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        if self._pool is None:
            return
        pool, self._pool, self._is_ready = self._pool, None, False
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait({self._sweeper})
        with contextlib.suppress(StorageUnavailable):  # the connections are then dropped without a word
            async with self.answering(*OUTAGES):
                await pool.close()

    async def _select(self, keys: Sequence[str]) -> dict[str, Record]:
        return {key: Record(version, data) for key, version, data in await self._ask(LOAD, keys)}

    async def _ask(self, statement: str, *arguments: Any) -> list[Any]:
        """Run a statement, once more where its answer was lost or it was undone, for each of them may be repeated."""
        for last in (False, True):
            try:
                async with self._connection() as connection:
                    if not self._is_ready:
                        await connection.execute(TABLE.format(table=self._options.table))
                        self._is_ready = True
                    found: list[Any] = await connection.fetch(statement.format(table=self._options.table), *arguments)
                    return found
            except (OSError, *OUTAGES):
                self._is_ready = False
                if last:
                    raise
        raise AssertionError

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        if self._pool is None:
            raise StorageUnavailable(f"{self!r} is not open")
        pool = self._pool
        connection = await pool.acquire()
        try:
            yield connection
        except BaseException:
            connection.terminate()  # asyncpg would wait, past any deadline, for the server to confirm a cancellation
            raise
        finally:
            await pool.release(connection)

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(60)
            with contextlib.suppress(StorageUnavailable):  # the next one may do better
                await self.sweep()


aiohttp_store.register("postgresql", PostgreSQLStorage)


async def index(request: web.Request) -> web.Response:
    session = await aiohttp_store.get_session(request)
    session["visits"] = session.get("visits", 0) + 1
    return web.Response(text=f"Your visits: {session['visits']}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Count visits, in PostgreSQL.")
    parser.add_argument("storage", help="as postgresql://user:password@localhost/database")
    parser.add_argument("--port", type=int, default=8080, help="0: any free one")
    options = parser.parse_args()
    app = web.Application()
    app.router.add_get("/", index)
    aiohttp_store.setup(app, options.storage)
    web.run_app(app, host="127.0.0.1", port=options.port)


if __name__ == "__main__":
    main()
