"""`mysql://` and `mariadb://`: a table of a MySQL or MariaDB server, through aiomysql."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from ..errors import ConfigError, SessionTooLarge, StorageRefused
from ..storage import Outcome, Record, Saved, Storage, Write, new_version, outcome, retrying
from ..url import Host, TLSOptions, identifier, positive
from ._mysql_driver import LOCKED, OUTAGES, OUTDATED, GivenConnections, Result, error_code, execute, making_sense
from ._mysql_hosts import HostConnections
from ._mysql_refusals import advice
from ._mysql_statements import OVERHEAD, Draft, Table, fitting, groups, packets, transaction
from ._refusals import Unusable
from ._sweeping import SLICE, Sweeper, rest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..url import StorageURL

__all__ = ["MySQLOptions", "MySQLStorage", "MySQLURLOptions"]


# What a server may set otherwise for all its sessions, and what is built on here. An abandoned statement must not hold
# row locks (50 s by default) or metadata locks (a day).
_INIT = (
    "SET SESSION completion_type=0, SESSION sql_mode='STRICT_ALL_TABLES', SESSION sql_big_selects=1, "
    "SESSION sql_select_limit=18446744073709551615, SESSION sql_safe_updates=0, "
    "SESSION innodb_lock_wait_timeout={rows}, SESSION lock_wait_timeout={tables};"
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE"
)


@dataclass(frozen=True, kw_only=True)
class MySQLOptions:
    """How sessions are kept in a database of MySQL or MariaDB."""

    table: str = "sessions"
    """The name of the records' table, of letters, digits and underscores, at most 64, no digit first."""
    create_table: bool = True
    """Make the table if it is missing."""
    timeout: float = 2.0
    """Seconds within which each call answers or raises `StorageUnavailable`."""

    def __post_init__(self) -> None:
        identifier("table", self.table)
        positive("timeout", self.timeout)


@dataclass(frozen=True, kw_only=True)
class MySQLURLOptions(MySQLOptions, TLSOptions):
    """The parameters of `mysql://` and `mariadb://`: those of the storage, and those of its connections."""

    pool_size: int = 10
    """How many connections of a process serve requests at most; the sweep opens one more."""
    unix_socket: str | None = None
    """Path of the server's socket, instead of a host."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("pool_size", self.pool_size)


class MySQLStorage(Storage):
    """Sessions in the rows of one table.

    Args:
        pool: an `aiomysql.Pool` with `autocommit=True`; it is used as it is, and not closed.
        options: how the sessions are kept; the defaults if it is left out.

    Raises:
        ConfigError: a value that cannot work.
    """

    def __init__(self, pool: Any, options: MySQLOptions | None = None) -> None:
        self.options = options or MySQLOptions()
        self.timeout = self.options.timeout
        self._table = Table(self.options.table)
        self._connections = pool if isinstance(pool, HostConnections) else GivenConnections(pool)
        self._packet = self._largest = 0
        self._is_galera = False
        self._learned_from: Host | None = None
        self._sweeper = Sweeper(self.sweep)

    @classmethod
    def from_url(cls, url: StorageURL) -> Self:
        """Read `mysql://user:password@host:3306,host:3306/database?table=…`."""
        options = url.options(MySQLURLOptions)
        hosts = url.several_hosts(3306)
        database = url.path.removeprefix("/")
        if not database or "/" in database:
            raise ConfigError(
                f"the path of the URL must name one database; write {url.scheme}://user:password@host:3306/database"
            )
        if options.unix_socket and url.hosts not in ((), (Host("localhost", None),)):
            names = ", ".join(repr(host.name) for host in hosts)
            raise ConfigError(f"{url} names the host {names} and unix_socket=; leave one of them out")
        connections = HostConnections(
            options.pool_size,
            hosts,
            options.timeout,
            unix_socket=options.unix_socket,
            user=url.user,
            password=(url.password or "").encode().decode("latin-1"),  # aiomysql sends Latin-1, servers hash UTF-8
            db=database,
            ssl=options.context(),
            autocommit=True,
            init_command=_INIT.format(rows=max(1, int(options.timeout / 2)), tables=max(1, int(options.timeout))),
        )
        return cls(connections, options)

    def __repr__(self) -> str:
        return f"<MySQLStorage of {self._connections}, table {self.options.table!r}>"

    async def open(self) -> None:
        """Make the table if it is missing, and begin to sweep.

        Raises:
            ConfigError: the table is of another layout, or the given pool without autocommit.
        """
        if self._connections.is_open:
            return
        self._connections.open()
        self._packet = 0
        async with self.opening(*OUTAGES):
            try:
                await self._prepare()
            except Unusable as error:
                raise ConfigError(f"{self!r}: {error}; {error.way_out}") from error
        self._sweeper.start()

    def refusal(self, error: Exception) -> str | None:
        return advice(error)

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        if not keys:
            return []
        async with self.answering(*OUTAGES):
            await self._prepare()
            found = await self._select(keys)
        return [found.get(key) for key in keys]

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        outcomes: dict[str, Outcome] = {}
        # In order of keys, so that two batches never wait for each other.
        drafts = [
            Draft(write, b"" if write.data is None else new_version()) for write in sorted(writes, key=lambda w: w.key)
        ]
        async with self.answering(*OUTAGES):
            await self._prepare()
            while drafts:
                won = await self._carry_out(drafts)
                outcomes |= {write.key: Saved(version) for write, version in drafts if write.key in won}
                drafts = [draft for draft in drafts if draft.write.key not in won]
                found = await self._select([write.key for write, _ in drafts]) if drafts else {}
                for write, version in drafts:
                    if why := outcome(write, version, found.get(write.key)):
                        outcomes[write.key] = why
                drafts = [draft for draft in drafts if draft.write.key not in outcomes]
        return [outcomes[write.key] for write in writes]

    async def delete(self, keys: Sequence[str]) -> None:
        async with self.answering(*OUTAGES):
            await self._prepare()
            done = await self._transact([self._table.delete(key) for key in sorted(keys)])
            with making_sense():
                if len(done) != len(keys):
                    raise ValueError(f"{len(done)} results of {len(keys)} statements")

    async def sweep(self) -> int:
        """Delete expired records in small batches, unless another process is at it, and return how many.

        It has a connection to itself, which keeps the other processes out until it ends. A given pool lends it,
        and gets it back early if all its connections are in use.
        """
        total, loop, lock = 0, asyncio.get_running_loop(), self._table.lock()
        async with contextlib.AsyncExitStack() as stack:
            async with self.answering(*OUTAGES):
                await self._prepare()
                connection = await stack.enter_async_context(self._connections.lend_to_sweep())
                answers = await execute(connection, f"SELECT GET_LOCK({lock}, 0)")
                with making_sense():
                    ((_, ((elected,),)),) = answers
                    is_elected = bool(int(elected or 0))  # NULL if the server met an error
            while is_elected:
                began = loop.time()
                async with self.answering(*OUTAGES):
                    swept = await self._sweep_slice(connection)
                total += swept
                if swept < SLICE or self._connections.are_all_lent:
                    break
                await rest(began)
            async with self.answering(*OUTAGES):
                await execute(connection, f"DO RELEASE_LOCK({lock})")
        return total

    async def _sweep_slice(self, connection: Any) -> int:
        """Delete a few rows; again where the sweep of another Galera node, which has a lock of its own, came first."""
        while True:
            try:
                return (await execute(connection, self._table.sweep(SLICE)))[-1].changed
            except Exception as error:
                if error_code(error) not in LOCKED:
                    raise
            await asyncio.sleep(random.uniform(0, 0.02))  # noqa: S311  (jitter)

    async def close(self) -> None:
        await self._sweeper.stop()
        await self._connections.close()

    async def _prepare(self) -> None:
        """Learn the server's limits and look at the table: once, and again after what shows that they changed."""
        host = self._connections.host
        if self._packet and host == self._learned_from:
            return
        packet, columns, largest, is_ours = await self._look()
        if not columns:  # asked first, as CREATE wants its privilege also where the table exists
            if not self.options.create_table:
                raise StorageRefused(f"{self!r} refuses: the table is missing, and create_table=false; make it")
            await self._run(self._table.create())
            packet, columns, largest, is_ours = await self._look()
        if not is_ours:
            raise Unusable("the table has another layout", "name another with ?table=, or drop it")
        largest = min(largest, (packet - 2 * OVERHEAD) // 2)
        if largest < 1:
            raise StorageRefused(f"{self!r} refuses: max_allowed_packet={packet} is too small; raise it to 64K or more")
        self._packet, self._largest, self._learned_from = packet, largest, host

    async def _look(self) -> tuple[int, int, int, bool]:
        answers = await self._run(self._table.look())
        with making_sense():
            ((packet, columns, largest, is_ours),) = answers[0].rows
            self._is_galera = bool(answers[1].rows)
            if not int(columns):  # what is said of none is NULL
                return int(packet), 0, 0, False
            return int(packet), int(columns), int(largest), bool(int(is_ours))

    async def _carry_out(self, drafts: Sequence[Draft]) -> set[str]:
        """Attempt these writes, and return the keys of those that were carried out."""
        for draft in drafts:
            size = len(draft.write.data or b"")
            if size > self._largest:
                raise SessionTooLarge(size, self._largest, f"a record of {self!r}")
        steps = [([draft], self._table.write(draft)) for draft in drafts if not draft.is_update]
        updates = groups([draft for draft in drafts if draft.is_update], self._packet)
        steps += [(group, self._table.update(group)) for group in updates]
        results = iter(await self._transact([statement for _, statement in steps]))
        won: set[str] = set()
        with making_sense():
            for group, _ in steps:
                if next(results).changed >= len(group):
                    won |= {draft.write.key for draft in group}
                if len(group) > 1:
                    won |= {row[0].decode() for row in next(results).rows}
        return won

    async def _select(self, keys: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for some in fitting(keys, self._packet):
            answers = await self._run(self._table.select(some))
            with making_sense():
                (result,) = answers
                for key, version, data in result.rows:
                    if not isinstance(version, bytes) or not isinstance(data, bytes):
                        raise TypeError(f"{type(version)} and {type(data)} where bytes were due")
                    found[key.decode()] = Record(version, data)
        return found

    async def _transact(self, statements: Sequence[str]) -> list[Result]:
        """Carry the statements out, each packet of them as one transaction."""
        results: list[Result] = []
        for packet in packets(statements, self._packet):
            results += (await self._run(*transaction(packet, in_one_packet=not self._is_galera)))[2:-1]
        return results

    async def _run(self, *sql: str) -> list[Result]:
        """Carry out the statements of each packet, once more over a lost connection."""
        try:
            return await retrying(
                partial(self._attempt, *sql), lambda error: error_code(error) in self._connections.leaving
            )
        except Exception as error:
            if error_code(error) in OUTDATED:
                self._packet = 0
            raise

    async def _attempt(self, *sql: str) -> list[Result]:
        """Send packets, from the first again until others no longer hold the rows."""
        while True:
            try:
                async with self._connections.lend() as connection:
                    return await execute(connection, *sql)
            except Exception as error:
                if error_code(error) not in LOCKED:
                    raise
            await asyncio.sleep(random.uniform(0, 0.02))  # noqa: S311  (jitter; all of it was undone)
