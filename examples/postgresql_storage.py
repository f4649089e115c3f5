"""A storage of your own: sessions in a table of a PostgreSQL server, through asyncpg.

Run it with: python examples/postgresql_storage.py postgresql://user:password@localhost/database
"""

import argparse
import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import asyncpg  # type: ignore[import-untyped]
from aiohttp import web

import aiohttp_store
from aiohttp_store import Outcome, Record, Saved, SessionTooLarge, StorageUnavailable, Write
from aiohttp_store.storage import new_version, outcome
from aiohttp_store.url import TLSOptions, identifier, positive

LARGEST = 16 << 20  # PostgreSQL takes 1 GiB, but no visitor waits for that
OUTAGES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

TABLE = """CREATE TABLE IF NOT EXISTS {table} (id text PRIMARY KEY, version bytea NOT NULL, data bytea NOT NULL,
    expires timestamptz NOT NULL, UNIQUE (expires, id))"""
LOAD = "SELECT id, version, data FROM {table} WHERE id = ANY($1::text[]) AND expires > now()"
# One statement, and so one transaction. Rows are locked in the order of their keys, so that batches never wait for each
# other in a circle; and a statement that has waited for a row looks at it again, as it is then.
# All five arrays are of text, since asyncpg asks the server about every other type of array, in a query that is slow
# behind PgBouncer.
SAVE = """WITH wanted AS (
    SELECT id, decode(expected, 'hex') AS expected, decode(version, 'hex') AS version, decode(data, 'hex') AS data,
        now() + ttl::bigint * interval '1 second' AS expires
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) AS w (id, expected, version, data, ttl)
), locked AS (
    SELECT id FROM {table} WHERE id = ANY($1::text[]) ORDER BY id FOR UPDATE
), removed AS (
    DELETE FROM {table} AS t USING locked JOIN wanted AS w USING (id)
    WHERE t.id = w.id AND t.version = w.expected AND t.expires > now() AND w.data IS NULL RETURNING t.id
), changed AS (
    UPDATE {table} AS t SET version = w.version, data = w.data, expires = w.expires
    FROM locked JOIN wanted AS w USING (id)
    WHERE t.id = w.id AND t.version = w.expected AND t.expires > now() AND w.data IS NOT NULL RETURNING t.id
), created AS (
    INSERT INTO {table} AS t (id, version, data, expires)
    SELECT id, version, data, expires FROM wanted WHERE expected IS NULL AND data IS NOT NULL ORDER BY id
    ON CONFLICT (id) DO UPDATE SET version = excluded.version, data = excluded.data, expires = excluded.expires
    WHERE t.expires <= now() RETURNING t.id
) SELECT id FROM removed UNION ALL SELECT id FROM changed UNION ALL SELECT id FROM created"""
DELETE = "DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE id = ANY($1::text[]) ORDER BY id FOR UPDATE)"
SWEEP = """DELETE FROM {table} WHERE id IN (SELECT id FROM {table}
    WHERE expires <= now() AND (SELECT pg_try_advisory_xact_lock(hashtext('aiohttp_store.{table}')))
    ORDER BY expires LIMIT 500 FOR UPDATE SKIP LOCKED) RETURNING id"""


@dataclass(frozen=True, kw_only=True)
class Options(TLSOptions):
    table: str = "sessions"
    timeout: float = 2.0
    pool_size: int = 10

    def __post_init__(self) -> None:
        identifier("table", self.table)
        positive("timeout", self.timeout)
        positive("pool_size", self.pool_size)


class PostgreSQLStorage(aiohttp_store.Storage):
    def __init__(self, options: Options, **server: Any) -> None:
        self.timeout, self._options, self._server = options.timeout, options, server
        self._pool: Any = None
        self._has_table = False

    @classmethod
    def from_url(cls, url: aiohttp_store.StorageURL) -> Self:
        options, (host, port), database = url.options(Options), url.host(5432), url.path.removeprefix("/")
        if not database or "/" in database:
            raise aiohttp_store.ConfigError(f"{url} must name one database; write postgresql://user@host/database")
        tls = options.context() or False
        return cls(options, host=host, port=port, user=url.user, password=url.password, database=database, ssl=tls)

    def __repr__(self) -> str:
        return "<PostgreSQLStorage of {host}:{port}/{database}>".format_map(self._server)

    async def open(self) -> None:
        if self._pool is not None:
            return
        # Behind PgBouncer in transaction mode each statement may reach another of the server's connections, which has
        # nothing of what was prepared or set in the last one. The cache's round trip is saved by resetting nothing.
        self._pool = await asyncpg.create_pool(
            min_size=0, max_size=self._options.pool_size, statement_cache_size=0, reset=_keep, **self._server
        )
        try:
            await self.load([])  # makes the table
        except StorageUnavailable as error:
            logging.getLogger(__name__).warning("opened without its server: %s", error)
        self._sweeper = asyncio.create_task(self._sweep_forever())

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        async with self.answering(*OUTAGES):
            found = await self._select(keys)
        return [found.get(key) for key in keys]

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        largest = max((len(write.data or b"") for write in writes), default=0)
        if largest > LARGEST:  # before anything is written, as the batch is then sent again one by one
            raise SessionTooLarge(largest, LARGEST, f"a record of {self!r}")
        outcomes: dict[str, Outcome] = {}
        # Drawn here, once for each write: what is sent again after a lost answer finds its own version and is saved.
        drafts = {write.key: (write, b"" if write.data is None else new_version()) for write in writes}
        async with self.answering(*OUTAGES):
            while drafts:
                rows = [
                    (key, _hex(write.expected), _hex(version), _hex(write.data), str(write.ttl))
                    for key, (write, version) in drafts.items()
                ]
                won = await self._ask(SAVE, *zip(*rows, strict=True))
                outcomes |= {key: Saved(drafts.pop(key)[1]) for (key,) in won}
                there = await self._select(list(drafts)) if drafts else {}
                for key, (write, version) in list(drafts.items()):
                    why = outcome(write, version, there.get(key))
                    if why is not None:  # or what was in the way of this create has gone since: it is sent again
                        outcomes[key] = why
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
            if swept == 0:
                return total
            total += swept
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        pool, self._pool, self._has_table = self._pool, None, False
        if pool is not None:
            self._sweeper.cancel()
            await asyncio.wait({self._sweeper})
            with contextlib.suppress(StorageUnavailable):  # the connections are then dropped without a word
                async with self.answering(*OUTAGES):
                    await pool.close()

    async def _select(self, keys: Sequence[str]) -> dict[str, Record]:
        return {key: Record(version, data) for key, version, data in await self._ask(LOAD, keys)}

    async def _ask(self, statement: str, *arguments: Any) -> list[Any]:
        """Run a statement, once more where its answer was lost or it was undone: each of them may be repeated."""
        try:
            return await self._ask_once(statement, *arguments)
        except (OSError, *OUTAGES):
            self._has_table = False  # perhaps it was dropped
            return await self._ask_once(statement, *arguments)

    async def _ask_once(self, statement: str, *arguments: Any) -> list[Any]:
        async with self._connection() as connection:
            if not self._has_table:
                await connection.execute(TABLE.format(table=self._options.table))
                self._has_table = True
            return await connection.fetch(statement.format(table=self._options.table), *arguments)  # type: ignore[no-any-return]

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


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


async def _keep(connection: Any) -> None:
    """Reset nothing when a connection comes back: no statement leaves anything in it."""


aiohttp_store.register("postgresql", PostgreSQLStorage)


async def index(request: web.Request) -> web.Response:
    session = await aiohttp_store.get_session(request)
    session["visits"] = session.get("visits", 0) + 1
    return web.Response(text=f"Your visits: {session['visits']}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Count visits, in PostgreSQL.")
    parser.add_argument("storage", help="as postgresql://user:password@localhost/database")
    parser.add_argument("--port", type=int, default=8080, help="0: any free one")
    given = parser.parse_args()
    app = web.Application()
    app.router.add_get("/", index)
    try:
        aiohttp_store.setup(app, given.storage)
        web.run_app(app, host="127.0.0.1", port=given.port)
    except (aiohttp_store.ConfigError, OSError) as error:  # a wrong URL, a port that is taken
        parser.error(str(error))
