"""`mysql://` and `mariadb://`: a table of a MySQL or MariaDB server, through aiomysql."""

# ruff: noqa: S608  (the table's name is a checked identifier, all values are hexadecimal literals)

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import aiomysql  # type: ignore[import-untyped]
from pymysql.constants import CLIENT, CR, ER  # type: ignore[import-untyped]

from ..errors import ConfigError, SessionTooLarge, StorageUnavailable
from ..storage import Conflict, Gone, Outcome, Record, Saved, Storage, Write, new_version
from ..url import Host, TLSOptions, identifier, positive
from ._sweeping import SLICE, Sweeper, rest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    from ..url import StorageURL

__all__ = ["MySQLStorage"]

_log = logging.getLogger(__name__)

# aiomysql asserts what it expects of the protocol, and its pool says RuntimeError once it is closed.
_OUTAGES = (aiomysql.MySQLError, AssertionError, RuntimeError)
_CONNECTION_KILLED, _IDLE_TOO_LONG = 1927, 4031  # PyMySQL has no names for MariaDB's and MySQL 8's
_READ_ONLY_MODE = 1836  # nor for this one
_LOST = {CR.CR_SERVER_GONE_ERROR, CR.CR_SERVER_LOST, ER.SERVER_SHUTDOWN, _CONNECTION_KILLED, _IDLE_TOO_LONG}
_UNREACHABLE = {CR.CR_CONN_HOST_ERROR, CR.CR_SERVER_HANDSHAKE_ERR}
# Galera's nodes that are cut off from their cluster, or still catch up with it, call every command unknown.
_NOT_WRITABLE = {ER.OPTION_PREVENTS_STATEMENT, ER.OPEN_AS_READONLY, _READ_ONLY_MODE, ER.UNKNOWN_COM_ERROR}
_LOCKED = {ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT}
_BEGIN = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED;START TRANSACTION;"  # without gap locks creates do not meet
_OVERHEAD = 1024  # more than a statement is without its data
_NOW = "UTC_TIMESTAMP(6)"  # the server's clock; UNIX_TIMESTAMP(NOW(6)) is an hour off when summer time ends
_LONGEST = 100 * 366 * 86_400
# Ahead of all that is sent where there are several hosts, and fails on one that is read-only: also for a user who may
# write nevertheless, and for a load, which would read what is out of date. MySQL's super_read_only implies read_only.
_GUARD = (
    "SET @writable=IF(CONCAT(@@GLOBAL.read_only) IN ('0','OFF') AND NOT @@GLOBAL.innodb_read_only,0,"
    "(SELECT 1 UNION ALL SELECT 2));"
)
_STAGGER = 0.25
_SEARCH_PAUSE = 0.1  # so that an outage is no storm of reconnects
_IDLE = 45.0  # proxies and firewalls drop what was silent for 60 s, often without a word


@dataclass(frozen=True, kw_only=True)
class MySQLOptions(TLSOptions):
    """The parameters of `mysql://` and `mariadb://`."""

    table: str = "sessions"
    """The table of the records: letters, digits and underscores, at most 64, no digit first."""
    create_table: bool = True
    """Make the table if it is missing."""
    timeout: float = 2.0
    """Seconds within which each call answers or raises `StorageUnavailable`."""
    pool_size: int = 10
    """How many connections of a process serve requests at most; the sweep opens one more."""
    unix_socket: str | None = None
    """Path of the server's socket, instead of a host."""

    def __post_init__(self) -> None:
        identifier("table", self.table)
        positive("timeout", self.timeout)
        positive("pool_size", self.pool_size)


class MySQLStorage(Storage):
    """Sessions in the rows of one table.

    Args:
        pool: an `aiomysql.Pool` with `autocommit=True`; it is used as it is, and not closed.
        table: its name, of letters, digits and underscores.
        timeout: seconds within which every verb answers or raises `StorageUnavailable`.
        create_table: whether it is made where it is missing.

    Raises:
        ConfigError: a value that cannot work.
    """

    def __init__(self, pool: Any, *, table: str = "sessions", timeout: float = 2.0, create_table: bool = True) -> None:
        options = MySQLOptions(table=table, timeout=timeout, create_table=create_table)
        self.table = options.table
        self.timeout = options.timeout
        self.create_table = options.create_table
        self._pool = pool
        self._slots: asyncio.Semaphore | None = None
        self._packet = self._largest = 0
        self._learned_from: Host | None = None
        self._sweeper = Sweeper(self.sweep)

    @classmethod
    def from_url(cls, url: StorageURL) -> Self:
        """Read `mysql://user:password@host:3306,host:3306/database?table=…`."""
        options = url.options(MySQLOptions)
        hosts = url.several_hosts(3306)
        database = url.path.removeprefix("/")
        if not database or "/" in database:
            raise ConfigError(f"{url} must name one database; write {url.scheme}://user:password@host:3306/database")
        if options.unix_socket and url.hosts not in ((), (Host("localhost", None),)):
            names = ", ".join(repr(host.name) for host in hosts)
            raise ConfigError(f"{url} names the host {names} and unix_socket=; leave one of them out")
        pool = _Pool(
            options.pool_size,
            hosts,
            options.timeout,
            unix_socket=options.unix_socket,
            user=url.user,
            password=(url.password or "").encode().decode("latin-1"),  # aiomysql sends Latin-1, servers hash UTF-8
            db=database,
            ssl=options.context(),
            autocommit=True,
            # What nobody waits for any more must not hold rows, or a connection, for the servers' 50 s and 1 day.
            init_command=f"SET SESSION innodb_lock_wait_timeout={max(1, int(options.timeout / 2))}, "
            f"SESSION lock_wait_timeout={max(1, int(options.timeout))}",
        )
        return cls(pool, table=options.table, timeout=options.timeout, create_table=options.create_table)

    def __repr__(self) -> str:
        where = self._pool if isinstance(self._pool, _Pool) else "a given pool"
        return f"<MySQLStorage of {where}, table {self.table!r}>"

    async def open(self) -> None:
        """Make the table where it is missing, and begin to sweep.

        Raises:
            ConfigError: the table is of another layout, or the given pool without autocommit.
        """
        if self._slots is not None:
            return
        # aiomysql's pool does not wake up those who wait for a connection when one is closed: nobody shall wait in it.
        self._slots = asyncio.Semaphore(self._pool.maxsize or sys.maxsize)
        if isinstance(self._pool, _Pool):
            self._pool.closed = False
        self._packet = 0
        try:
            async with self.answering(*_OUTAGES):
                await self._prepare()
        except StorageUnavailable as error:
            _log.warning("opened without its server: %s", error)
        except BaseException:
            await self.close()
            raise
        self._sweeper.start()

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        if not keys:
            return []
        async with self.answering(*_OUTAGES):
            await self._prepare()
            found = await self._select(keys)
        return [found.get(key) for key in keys]

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        outcomes: dict[str, Outcome] = {}
        # In order of keys, so that two batches never wait for each other.
        drafts = [
            _Draft(write, b"" if write.data is None else new_version()) for write in sorted(writes, key=lambda w: w.key)
        ]
        async with self.answering(*_OUTAGES):
            await self._prepare()
            while drafts:
                won = await self._carry_out(drafts)
                lost = [draft for draft in drafts if draft.write.key not in won]
                outcomes |= {write.key: Saved(version) for write, version in drafts if write.key in won}
                drafts = []
                found = await self._select([write.key for write, _ in lost]) if lost else {}
                for write, version in lost:
                    record = found.get(write.key)
                    if record is None and write.expected is None and write.data is not None:
                        drafts.append(_Draft(write, version))  # what was in its way has gone since
                    elif record is None:  # also a removal that was tried again because its answer was lost
                        outcomes[write.key] = Gone() if write.expected is not None else Saved(b"")
                    elif record.version == version:  # the answer to the first attempt was lost
                        outcomes[write.key] = Saved(version)
                    else:
                        outcomes[write.key] = Conflict(record)
        return [outcomes[write.key] for write in writes]

    async def delete(self, keys: Sequence[str]) -> None:
        async with self.answering(*_OUTAGES):
            await self._prepare()
            await self._transact([f"DELETE FROM `{self.table}` WHERE id={_text(key)};" for key in sorted(keys)])

    async def sweep(self) -> int:
        """Delete expired records in small batches, unless another process is at it, and tell how many.

        It has a connection to itself, which keeps the other processes out until it ends. A given pool lends it,
        and gets it back early where all its connections are in use.
        """
        lock = f"CONCAT('aiohttp_store.', SHA1(CONCAT(DATABASE(), '.{self.table}')))"  # at most 64 characters
        # A prolonged row is not deleted: each row is looked at again once it is locked, and no gap is.
        old = (
            "SET TRANSACTION ISOLATION LEVEL READ COMMITTED;"
            f"DELETE FROM `{self.table}` WHERE expires<={_NOW} ORDER BY expires LIMIT {SLICE}"
        )
        total, loop, slot = 0, asyncio.get_running_loop(), self._slot()
        is_given = not isinstance(self._pool, _Pool)
        async with contextlib.AsyncExitStack() as stack:
            async with self.answering(*_OUTAGES):
                await self._prepare()
                if is_given:
                    await stack.enter_async_context(slot)
                connection = await stack.enter_async_context(self._borrowed())
                ((_, ((elected,),)),) = await _execute(connection, f"SELECT GET_LOCK({lock}, 0)")
            while int(elected):
                began = loop.time()
                async with self.answering(*_OUTAGES):
                    swept = (await _execute(connection, old))[-1].changed
                total += swept
                if swept < SLICE or (is_given and slot.locked()):
                    break
                await rest(began)
            async with self.answering(*_OUTAGES):
                await _execute(connection, f"DO RELEASE_LOCK({lock})")
        return total

    async def close(self) -> None:
        await self._sweeper.stop()
        self._slots = None
        if isinstance(self._pool, _Pool):
            await self._pool.close()

    async def _prepare(self) -> None:
        """Learn the server's limits and look at the table: once, and again after what shows that they changed."""
        host = self._pool.host if isinstance(self._pool, _Pool) else None
        if self._packet and host == self._learned_from:
            return
        binary = "DATA_TYPE IN ('binary', 'varbinary')"
        look = (
            "SELECT @@max_allowed_packet, COUNT(*), MAX(IF(COLUMN_NAME='data', CHARACTER_OCTET_LENGTH, 0)), "
            "4 = SUM(IS_NULLABLE='NO' AND CASE COLUMN_NAME "
            f"WHEN 'id' THEN COLUMN_KEY='PRI' AND {binary} WHEN 'version' THEN CHARACTER_OCTET_LENGTH=8 AND {binary} "
            "WHEN 'data' THEN DATA_TYPE LIKE '%blob' WHEN 'expires' THEN DATA_TYPE='datetime' ELSE 0 END) "
            f"FROM information_schema.COLUMNS WHERE TABLE_SCHEMA=DATABASE() AND TABLE_NAME='{self.table}'"
        )
        ((packet, columns, largest, fitting),) = (await self._run(look))[0].rows
        if not int(columns):  # asked first, as CREATE wants its privilege also where the table exists
            if not self.create_table:
                raise StorageUnavailable(f"{self!r} failed: the table is missing, and create_table=false")
            await self._run(
                f"CREATE TABLE IF NOT EXISTS `{self.table}` (id VARBINARY(64) NOT NULL PRIMARY KEY, "
                "version BINARY(8) NOT NULL, data LONGBLOB NOT NULL, expires DATETIME(6) NOT NULL, INDEX (expires)) "
                "ENGINE=InnoDB ROW_FORMAT=DYNAMIC"
            )
            ((packet, columns, largest, fitting),) = (await self._run(look))[0].rows
        if not int(fitting):
            raise ConfigError(f"{self!r}: the table has another layout; name another with ?table=, or drop it")
        self._packet, self._largest = int(packet), min(int(largest), (int(packet) - 2 * _OVERHEAD) // 2)
        self._learned_from = host

    async def _carry_out(self, drafts: Sequence[_Draft]) -> set[str]:
        """Attempt these writes, and give the keys of those that were carried out."""
        steps = [([draft], self._statement(draft)) for draft in drafts if not draft.is_update]
        steps += [(group, self._update(group)) for group in self._groups([one for one in drafts if one.is_update])]
        results = iter(await self._transact([statement for _, statement in steps]))
        won: set[str] = set()
        for group, _ in steps:
            if next(results).changed >= len(group):
                won |= {draft.write.key for draft in group}
            if len(group) > 1:
                won |= {row[0].decode() for row in next(results).rows}
        return won

    def _groups(self, updates: Sequence[_Draft]) -> Iterator[list[_Draft]]:
        """Divide these by what a packet holds."""
        group: list[_Draft] = []
        room = self._packet - _OVERHEAD
        for draft in updates:
            size = _OVERHEAD + 2 * len(draft.write.data or b"")
            if group and size > room:
                yield group
                group, room = [], self._packet - _OVERHEAD
            group.append(draft)
            room -= size
        if group:
            yield group

    def _update(self, group: Sequence[_Draft]) -> str:
        """Write several records in one statement, as the answer to each costs more than the rest of it.

        Where not all of them were as expected, a second one tells which have their new version.
        """
        if len(group) == 1:
            return self._statement(group[0])
        keys = [_text(draft.write.key) for draft in group]

        def each(values: Iterable[str]) -> str:
            return (
                f"CASE id {' '.join(f'WHEN {key} THEN {value}' for key, value in zip(keys, values, strict=True))} END"
            )

        for draft in group:
            self._refuse_too_large(draft)
        these, stored = f"id IN ({','.join(keys)})", each(_hex(draft.version) for draft in group)
        expected = each(_hex(draft.write.expected or b"") for draft in group)
        return (
            f"UPDATE `{self.table}` FORCE INDEX (PRIMARY) SET version={stored},"
            f"data={each(_hex(draft.write.data or b'') for draft in group)},"
            f"expires={_NOW}+INTERVAL {each(str(_ttl(draft.write)) for draft in group)} SECOND "
            f"WHERE {these} AND version={expected} AND expires>{_NOW};"
            f"SELECT id FROM `{self.table}` FORCE INDEX (PRIMARY) "
            f"WHERE ROW_COUNT()<{len(group)} AND {these} AND version={stored};"
        )

    def _refuse_too_large(self, draft: _Draft) -> None:
        size = len(draft.write.data or b"")
        if size > self._largest:
            raise SessionTooLarge(size, self._largest, f"a record of {self!r}")

    def _statement(self, draft: _Draft) -> str:
        write, version = draft
        live = f"WHERE id={_text(write.key)} AND version={_hex(write.expected or b'')} AND expires>{_NOW};"
        if write.data is None:
            return f"DELETE FROM `{self.table}` {live}"
        self._refuse_too_large(draft)
        stored, data = _hex(version), _hex(write.data)
        expires = f"{_NOW}+INTERVAL {_ttl(write)} SECOND"
        if write.expected is not None:
            return f"UPDATE `{self.table}` SET version={stored},data={data},expires={expires} {live}"
        # One atomic step: 1 row where there was none, 2 where an expired one is replaced, 0 where one lives.
        # `expires` comes last, because assignments take effect from left to right.
        return (
            f"INSERT INTO `{self.table}` (id,version,data,expires) "
            f"VALUES ({_text(write.key)},{stored},{data},{expires}) "
            f"ON DUPLICATE KEY UPDATE version=IF(expires>{_NOW},version,VALUES(version)),"
            f"data=IF(expires>{_NOW},data,VALUES(data)),expires=IF(expires>{_NOW},expires,VALUES(expires));"
        )

    async def _select(self, keys: Sequence[str]) -> dict[str, Record]:
        wanted = ",".join(map(_text, keys))
        (result,) = await self._run(
            f"SELECT id,version,data FROM `{self.table}` WHERE id IN ({wanted}) AND expires>{_NOW}"
        )
        return {row[0].decode(): Record(row[1], row[2]) for row in result.rows}

    async def _transact(self, statements: Sequence[str]) -> list[_Result]:
        """Carry the statements out, each packet of them as one transaction."""
        results: list[_Result] = []
        for packet in self._packets(statements):
            results += (await self._run(f"{_BEGIN}{''.join(packet)}COMMIT"))[2:-1]
        return results

    def _packets(self, statements: Sequence[str]) -> Iterator[list[str]]:
        packet: list[str] = []
        room = self._packet - _OVERHEAD
        for statement in statements:
            if packet and len(statement) > room:
                yield packet
                packet, room = [], self._packet - _OVERHEAD
            packet.append(statement)
            room -= len(statement)
        if packet:
            yield packet

    async def _run(self, sql: str) -> list[_Result]:
        """Send these until they are carried out: once more over a lost connection, and while others hold the rows."""
        lost = False
        while True:
            try:
                async with self._slot(), self._borrowed() as connection:
                    return await _execute(connection, sql)
            except aiomysql.MySQLError as error:
                code = _code(error)
                if code in _LOCKED:  # all of it was undone
                    await asyncio.sleep(random.uniform(0, 0.02))  # noqa: S311  (jitter)
                elif code in self._leaving and not lost:
                    lost = True
                else:
                    if code in (ER.NO_SUCH_TABLE, ER.NET_PACKET_TOO_LARGE):
                        self._packet = 0
                    raise

    @property
    def _leaving(self) -> set[int]:
        """The errors after which free connections are forgotten, and a statement is sent once more."""
        return self._pool.leaving if isinstance(self._pool, _Pool) else _LOST

    def _slot(self) -> asyncio.Semaphore:
        if self._slots is None:
            raise StorageUnavailable(f"{self!r} is not open")
        return self._slots

    @asynccontextmanager
    async def _borrowed(self) -> AsyncIterator[Any]:
        """Lend a connection; after anything but success it is closed, which also undoes an open transaction."""
        connection = await self._pool.acquire()
        try:
            if not connection.get_autocommit():
                raise ConfigError(f"{self!r} needs connections that commit; make the pool with autocommit=True")
            if connection.client_flag & CLIENT.FOUND_ROWS:
                raise ConfigError(f"{self!r} must count changed rows; make the pool without CLIENT.FOUND_ROWS")
            yield connection
        except BaseException as error:
            connection.close()
            if isinstance(self._pool, _Pool):
                self._pool.blame(connection.place, error)
            raise
        finally:
            self._pool.release(connection)  # not awaited: aiomysql's waits while someone else connects


def _hex(value: bytes) -> str:
    """Give the literal of these bytes: right under every sql_mode and character set, and quick to make."""
    return f"x'{value.hex()}'"


def _text(key: str) -> str:
    return _hex(key.encode())


def _ttl(write: Write) -> int:
    return min(int(write.ttl), _LONGEST)


def _code(error: BaseException) -> int | None:
    return error.args[0] if isinstance(error, aiomysql.MySQLError) and error.args else None


async def _execute(connection: Any, sql: str) -> list[_Result]:
    """Send these, where there are several hosts behind the guard, and give what each of them did."""
    guard = connection.guard if isinstance(connection, _Connection) else ""
    cursor = await connection.cursor(_Cursor)
    try:
        await cursor.execute(guard + sql)
    except aiomysql.MySQLError as error:
        if guard and _code(error) == ER.SUBQUERY_NO_1_ROW:
            raise aiomysql.OperationalError(ER.OPTION_PREVENTS_STATEMENT, "the server is read-only") from None
        raise
    results = [_Result(cursor.rowcount, await cursor.fetchall())]
    while await cursor.nextset():
        results.append(_Result(cursor.rowcount, await cursor.fetchall()))
    return results[bool(guard) :]


class _Cursor(aiomysql.Cursor):  # type: ignore[misc]
    async def _show_warnings(self, connection: Any) -> None:
        """Spare the round trip: what warns is a table made by two at once, and MySQL 8 of `VALUES()`."""


class _Connection(aiomysql.Connection):  # type: ignore[misc]
    def __init__(self, place: Host, guard: str, **settings: Any) -> None:
        super().__init__(host=place.name, port=place.port, **settings)
        self.place = place
        self.guard = guard

    def close(self) -> None:
        if self._writer:  # close() would wait up to 30 s for the server's end of TLS
            self._writer.transport.abort()
        super().close()

    async def _request_authentication(self) -> None:
        try:
            # aiomysql would go on without encryption, and whoever is in between decides what the server seems to offer.
            if self._ssl_context and not self.server_capabilities & CLIENT.SSL:
                raise aiomysql.OperationalError(CR.CR_SSL_CONNECTION_ERROR, "the server offers no TLS")
            await super()._request_authentication()
        except BaseException:  # aiomysql leaves it open where this is cancelled during TLS's handshake
            self.close()
            raise


class _Result(NamedTuple):
    """What one statement did: how many rows it changed, and those that it selected."""

    changed: int
    rows: Sequence[Any]


class _Draft(NamedTuple):
    """A write, and the version that it leaves."""

    write: Write
    version: bytes

    @property
    def is_update(self) -> bool:
        return self.write.expected is not None and self.write.data is not None


class _Pool:
    """Connections that are made without a lock: in aiomysql's own pool a slow one holds up those that are free.

    All of them lead to one host. Where there are several, it is the first that was found writable, until it is not
    any more, refuses, or is silent for too long.
    """

    def __init__(self, maxsize: int, hosts: Sequence[Host], timeout: float, **settings: Any) -> None:
        several = len(hosts) > 1
        self.maxsize = maxsize
        self.closed = True
        self.leaving = _LOST | _UNREACHABLE | _NOT_WRITABLE if several else _LOST
        self.host: Host | None = None if several else hosts[0]
        """Where the connections lead; `None` while that is to be found out."""
        self._hosts = hosts
        # A call has the time to leave a host that is silent, and to learn that another one is as well.
        self._share = timeout / 3 if several else None
        self._stagger = min(_STAGGER, timeout / (4 * len(hosts)))
        self._settings = settings
        self._free: list[_Connection] = []
        self._search: asyncio.Task[str] | None = None
        self._next_search = 0.0

    def __repr__(self) -> str:
        where = self._settings["unix_socket"] or ",".join(map(_address, self._hosts))
        return f"{where}/{self._settings['db']}"

    async def acquire(self) -> _Connection:
        now = asyncio.get_running_loop().time()
        while True:
            while self._free:
                connection = self._free.pop()
                if now - connection.last_usage < _IDLE:
                    return connection
                connection.close()
            place = self.host
            if place is None:
                await self._find_host()
                continue
            try:
                return await self._connect(place)
            except aiomysql.MySQLError as error:
                self.blame(place, error)
                if self.host is not None:
                    raise

    async def _connect(self, place: Host) -> _Connection:
        """Open a connection: where there are several hosts, within a share of the deadline and to a writable one."""
        connection = _Connection(place, _GUARD if len(self._hosts) > 1 else "", **self._settings)
        try:
            async with asyncio.timeout(self._share):
                await connection._connect()
                if connection.guard:
                    await _execute(connection, "DO 0")
        except BaseException as error:
            connection.close()
            if isinstance(error, TimeoutError):
                reason = f"{_address(place)} was silent for {self._share:.2g} s"
                raise aiomysql.OperationalError(CR.CR_CONN_HOST_ERROR, reason) from error
            if isinstance(error, aiomysql.MySQLError):
                why = [str(error.__cause__)] if error.__cause__ else []  # aiomysql leaves it out
                raise type(error)(*error.args, *why) from error
            if isinstance(error, Exception):  # whatever its parser says of bytes that are not MySQL's
                reason = f"the handshake failed: {error!r}"
                raise aiomysql.OperationalError(CR.CR_SERVER_HANDSHAKE_ERR, reason) from error
            raise
        return connection

    async def _find_host(self) -> None:
        """Wait for the search that all share, and that goes on where one of them gives up."""
        if self.closed:
            raise RuntimeError("the pool is closed")
        if self._search is None or self._search.done():
            self._search = asyncio.create_task(self._look_for_host())
        search = self._search
        await asyncio.wait({search})
        complaint = "the pool is closed" if search.cancelled() else search.result()
        if complaint:
            raise StorageUnavailable(f"no host of {self!r} is writable: {complaint}")

    async def _look_for_host(self) -> str:
        """Find the first host that is writable, or give what each of them said."""
        loop = asyncio.get_running_loop()
        attempts: dict[Host, asyncio.Task[_Connection]] = {}
        said: list[str] = []
        try:
            await asyncio.sleep(self._next_search - loop.time())
            for place in self._hosts:  # each begins when the one before has failed, or was silent for a moment
                attempts[place] = asyncio.create_task(self._connect(place))
                waiting = [attempt for attempt in attempts.values() if not attempt.done()]
                done, _ = await asyncio.wait(waiting, timeout=self._stagger, return_when=asyncio.FIRST_COMPLETED)
                if any(attempt.exception() is None for attempt in done):
                    break
            for place, attempt in attempts.items():
                try:
                    connection = await attempt
                except aiomysql.MySQLError as error:
                    said.append(f"{_address(place)}: {error}")
                else:
                    del attempts[place]
                    self.host = place
                    self._free.append(connection)
                    return ""
            return "; ".join(said)
        finally:
            self._next_search = loop.time() + _SEARCH_PAUSE
            for attempt in attempts.values():
                if not attempt.cancel() and not attempt.cancelled() and attempt.exception() is None:
                    attempt.result().close()  # it came too late
            await asyncio.gather(*attempts.values(), return_exceptions=True)

    def blame(self, place: Host, error: BaseException) -> None:
        """Forget the free connections where what ended one has likely ended them all, and a host that must be left.

        With several hosts, a call that was stopped counts as one that a silent server has kept waiting.
        """
        several = len(self._hosts) > 1
        if place == self.host and (
            _code(error) in self.leaving or (several and isinstance(error, asyncio.CancelledError))
        ):
            self.forget()
            if several:
                self.host = None

    def release(self, connection: _Connection) -> None:
        if self.closed or connection.place != self.host:
            connection.close()
        elif not connection.closed:
            self._free.append(connection)

    def forget(self) -> None:
        """Close the free connections."""
        while self._free:
            self._free.pop().close()

    async def close(self) -> None:
        self.closed = True
        if self._search is not None and not self._search.done():
            self._search.cancel()
            await asyncio.wait({self._search})
        while self._free:
            with contextlib.suppress(OSError):
                await self._free.pop().ensure_closed()  # says goodbye, so that the server does not log an abort


def _address(place: Host) -> str:
    return f"[{place.name}]:{place.port}" if ":" in place.name else f"{place.name}:{place.port}"
