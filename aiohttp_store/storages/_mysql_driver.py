"""What aiomysql is told, and what is mended in it: connections that end at once, and many statements in one packet."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import aiomysql  # type: ignore[import-untyped]
from pymysql.constants import CLIENT, CR, ER  # type: ignore[import-untyped]

from ..errors import SessionError, StorageUnavailable
from ._refusals import Unusable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from ..url import Host

__all__ = [
    "LOCKED",
    "LOST",
    "NOT_WRITABLE",
    "OUTAGES",
    "OUTDATED",
    "UNREACHABLE",
    "Connection",
    "GivenConnections",
    "Result",
    "error_code",
    "execute",
    "making_sense",
]

# aiomysql asserts what it expects of the protocol, and its pool says RuntimeError once it is closed.
OUTAGES = (aiomysql.MySQLError, AssertionError, RuntimeError)
_CONNECTION_KILLED, _IDLE_TOO_LONG = 1927, 4031  # PyMySQL has no names for MariaDB's and MySQL 8's
_READ_ONLY_MODE = 1836  # nor for this one
_LOST_TO_ANOTHER_PRIMARY = 3101  # nor for MySQL's group replication, where several are written
LOST = {
    *(CR.CR_SERVER_GONE_ERROR, CR.CR_SERVER_LOST, ER.SERVER_SHUTDOWN, _CONNECTION_KILLED, _IDLE_TOO_LONG),
    # A Galera node that is cut off from its cluster, or still catches up with it, calls every command unknown. Behind a
    # balancer, another connection leads to another node.
    ER.UNKNOWN_COM_ERROR,
}
UNREACHABLE = {CR.CR_CONN_HOST_ERROR, CR.CR_SERVER_HANDSHAKE_ERR}
NOT_WRITABLE = {ER.OPTION_PREVENTS_STATEMENT, ER.OPEN_AS_READONLY, _READ_ONLY_MODE}
LOCKED = {ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT, _LOST_TO_ANOTHER_PRIMARY}
OUTDATED = {
    *(ER.NO_SUCH_TABLE, ER.NET_PACKET_TOO_LARGE, ER.BAD_FIELD_ERROR, ER.NO_DEFAULT_FOR_FIELD),
    *(ER.DATA_TOO_LONG, ER.TRUNCATED_WRONG_VALUE_FOR_FIELD),
}
"""The errors that show that the table or the server's limits have changed."""
# No line of it is a command to any server, and most say so. Exactly as long as the header that MongoDB waits for.
_PROBE = b"PING\r\nPING\r\n\r\n\r\n"
_SHOWN = 40
_LARGEST_GREETING = 4096
_PROTOCOL = 10
_CLEAR, _OLD = "mysql_clear_password", "mysql_old_password"


class Connection(aiomysql.Connection):  # type: ignore[misc]
    """A connection to one host.

    Args:
        place: the host.
        guard: a statement that goes ahead of all others.
        patience: seconds within which a MySQL server says something, and after which another kind is asked for a word.
        settings: of `aiomysql.Connection`.
    """

    def __init__(self, place: Host, guard: str, patience: float, **settings: Any) -> None:
        super().__init__(host=place.name, port=place.port, **settings)
        self.place = place
        self.guard = guard
        self._patience = patience

    async def connect(self) -> None:
        await self._connect()

    def close(self) -> None:
        if self._writer:  # close() would wait up to 30 s for the server's end of TLS
            self._writer.transport.abort()
        super().close()

    async def _get_server_information(self) -> None:
        self._read_bytes = self._read_greeting  # only once: no other read is to pay for it
        await super()._get_server_information()
        if self.protocol_version != _PROTOCOL:
            raise ValueError(f"its protocol is {self.protocol_version}, and MySQL's is {_PROTOCOL}")

    async def _read_greeting(self, size: int) -> bytes:
        del self._read_bytes
        try:
            async with asyncio.timeout(self._patience):
                header: bytes = await super()._read_bytes(size)
        except TimeoutError:
            self._write_bytes(_PROBE)
            said = await self._reader.read(_SHOWN)
            if said[3:5] == bytes([0, _PROTOCOL]):  # its greeting, as of a server that was stalled, and not an answer
                raise
            raise ValueError(f"it says nothing unasked, and answers {said!r}") from None
        if header[3] or int.from_bytes(header[:3], "little") > _LARGEST_GREETING:
            raise ValueError(f"it begins with {header!r}")
        return header

    async def _request_authentication(self) -> None:
        try:
            # aiomysql would go on without encryption, and whoever is in between decides what the server seems to offer.
            if self._ssl_context and not self.server_capabilities & CLIENT.SSL:
                raise aiomysql.OperationalError(CR.CR_SSL_CONNECTION_ERROR, "the server offers no TLS")
            self._refuse_plugin(self._server_auth_plugin)
            await super()._request_authentication()
        except BaseException:  # aiomysql leaves it open where this is cancelled during TLS's handshake
            self.close()
            raise

    async def _process_auth(self, plugin_name: bytes, auth_packet: Any) -> Any:
        self._refuse_plugin(plugin_name.decode("latin-1"))
        return await super()._process_auth(plugin_name, auth_packet)

    def _refuse_plugin(self, name: str) -> None:
        """Refuse to send the password in clear, whoever asks for it, and as a hash of 64 bits that is as good as that.

        MySQL's own clients do so as well, and aiomysql does what the server wants.
        """
        is_private = self._ssl_context or self._unix_socket
        if name == _OLD or (name == _CLEAR and not is_private):
            why = "is asked for" if name == _OLD else "is asked for, and the connection is not encrypted"
            raise aiomysql.OperationalError(CR.CR_AUTH_PLUGIN_CANNOT_LOAD, f"{name} {why}")


class _Cursor(aiomysql.Cursor):  # type: ignore[misc]
    async def _show_warnings(self, connection: Any) -> None:
        """Spare the round trip: what warns is a table made by two at once, and MySQL 8 of `VALUES()`."""


class Result(NamedTuple):
    """What one statement did: how many rows it changed, and those that it selected."""

    changed: int
    rows: Sequence[Any]

    def __repr__(self) -> str:
        return f"<Result: {self.changed} changed, {len(self.rows)} rows>"

    def __sentry_repr__(self) -> str:  # Sentry shows the items of a tuple, whatever its repr is
        return repr(self)


async def execute(connection: Any, sql: str, *others: str) -> list[Result]:
    """Send statements in one packet, and return what each of them did.

    The guard goes ahead of them if the connection has one. `others` follow in packets of their own, without it.
    """
    guard = connection.guard if isinstance(connection, Connection) else ""
    cursor = await connection.cursor(_Cursor)
    results: list[Result] = []
    for packet in (guard + sql, *others):
        with making_sense():
            try:
                await cursor.execute(packet)
            except aiomysql.MySQLError as error:
                if guard and error_code(error) == ER.SUBQUERY_NO_1_ROW:
                    raise aiomysql.OperationalError(ER.OPTION_PREVENTS_STATEMENT, "the server is read-only") from None
                raise
            results.append(Result(cursor.rowcount, await cursor.fetchall()))
            while await cursor.nextset():
                results.append(Result(cursor.rowcount, await cursor.fetchall()))
    return results[bool(guard) :]


@contextmanager
def making_sense() -> Iterator[None]:
    """Turn what the block says of an answer that nobody can read into an error of the driver.

    aiomysql raises whatever its parser stumbles over.
    """
    try:
        yield
    except (aiomysql.MySQLError, SessionError, OSError, RuntimeError):
        raise
    except Exception as error:
        raise aiomysql.InternalError(CR.CR_MALFORMED_PACKET, f"the answer makes no sense: {error!r}") from error


def error_code(error: BaseException) -> int | None:
    return error.args[0] if isinstance(error, aiomysql.MySQLError) and error.args else None


class GivenConnections:
    """The connections of an application's own `aiomysql.Pool`, which is used as it is and never closed."""

    leaving = LOST
    """The errors after which a statement is sent once more."""
    host: Host | None = None

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._places: asyncio.Semaphore | None = None

    def __repr__(self) -> str:
        return "a given pool"

    @property
    def is_open(self) -> bool:
        return self._places is not None

    @property
    def are_all_lent(self) -> bool:
        """Whether requests may wait for a connection that the sweep has."""
        return self._places is not None and self._places.locked()

    def open(self) -> None:
        # aiomysql's pool does not wake up those who wait for a connection when one is closed: nobody shall wait in it.
        self._places = asyncio.Semaphore(self._pool.maxsize or sys.maxsize)

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Any]:
        """Lend a connection; after anything but success it is closed, which also undoes an open transaction."""
        if self._places is None:
            raise StorageUnavailable(f"{self!r} is not open")
        async with self._places:
            with making_sense():
                connection = await self._pool.acquire()
            try:
                _refuse_unfit(connection)
                yield connection
            except BaseException:
                connection.close()
                raise
            finally:
                self._pool.release(connection)  # not awaited: aiomysql's waits while someone else connects

    lend_to_sweep = lend

    async def close(self) -> None:
        self._places = None


def _refuse_unfit(connection: Any) -> None:
    if not connection.get_autocommit():
        raise Unusable("the pool's connections do not commit", "make it with autocommit=True")
    if connection.client_flag & CLIENT.FOUND_ROWS:
        raise Unusable("the pool's connections do not count changed rows", "make it without CLIENT.FOUND_ROWS")
