"""The statements over one table, and how many of them fit into a packet."""

# ruff: noqa: S608  (the table's name is a checked identifier, all values are hexadecimal literals)

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ..storage import Write

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["OVERHEAD", "Draft", "Table", "fitting", "groups", "packets", "transaction"]

T = TypeVar("T")

_BEGIN = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED;START TRANSACTION;"  # without gap locks creates do not meet
OVERHEAD = 1024  # more than a statement is without its data
_NOW = "UTC_TIMESTAMP(6)"  # the server's clock; UNIX_TIMESTAMP(NOW(6)) is an hour off when summer time ends
_LONGEST = 100 * 366 * 86_400


class Draft(NamedTuple):
    """A write, and the version that it leaves."""

    write: Write
    version: bytes

    @property
    def is_update(self) -> bool:
        return self.write.expected is not None and self.write.data is not None


class Table(NamedTuple):
    """The table of the records; its name is a checked identifier."""

    name: str

    def look(self) -> str:
        """Select the server's packet size, the number of columns, the size of `data`, and whether the layout fits.

        A second statement selects a row if the server is a Galera node; MySQL has no such variable.
        """
        binary = "DATA_TYPE IN ('binary', 'varbinary')"
        return (
            "SELECT @@max_allowed_packet, COUNT(*), MAX(IF(COLUMN_NAME='data', CHARACTER_OCTET_LENGTH, 0)), "
            "4 = SUM(IS_NULLABLE='NO' AND CASE COLUMN_NAME "
            f"WHEN 'id' THEN COLUMN_KEY='PRI' AND {binary} WHEN 'version' THEN CHARACTER_OCTET_LENGTH=8 AND {binary} "
            "WHEN 'data' THEN DATA_TYPE LIKE '%blob' WHEN 'expires' THEN DATA_TYPE='datetime' ELSE 0 END) "
            f"FROM information_schema.COLUMNS WHERE TABLE_SCHEMA=DATABASE() AND TABLE_NAME='{self.name}';"
            "SHOW GLOBAL VARIABLES WHERE Variable_name='wsrep_on' AND Value='ON'"
        )

    def create(self) -> str:
        return (
            f"CREATE TABLE IF NOT EXISTS `{self.name}` (id VARBINARY(64) NOT NULL PRIMARY KEY, "
            "version BINARY(8) NOT NULL, data LONGBLOB NOT NULL, expires DATETIME(6) NOT NULL, INDEX (expires)) "
            "ENGINE=InnoDB ROW_FORMAT=DYNAMIC"
        )

    def select(self, keys: Sequence[str]) -> str:
        """Select the records that are there; without its LIMIT, the server's `sql_select_limit` would hold."""
        wanted = ",".join(map(_text, keys))
        return f"SELECT id,version,data FROM `{self.name}` WHERE id IN ({wanted}) AND expires>{_NOW} LIMIT {len(keys)}"

    def delete(self, key: str) -> str:
        return f"DELETE FROM `{self.name}` WHERE id={_text(key)};"

    def write(self, draft: Draft) -> str:
        """Change one row if it is as expected; as many rows are changed."""
        write, version = draft
        live = f"WHERE id={_text(write.key)} AND version={_hex(write.expected or b'')} AND expires>{_NOW};"
        if write.data is None:
            return f"DELETE FROM `{self.name}` {live}"
        stored, data = _hex(version), _hex(write.data)
        expires = f"{_NOW}+INTERVAL {_ttl(write)} SECOND"
        if write.expected is not None:
            return f"UPDATE `{self.name}` SET version={stored},data={data},expires={expires} {live}"
        # One atomic step: 1 row where there was none, 2 where an expired one is replaced, 0 where one lives.
        # `expires` comes last, because assignments take effect from left to right.
        return (
            f"INSERT INTO `{self.name}` (id,version,data,expires) "
            f"VALUES ({_text(write.key)},{stored},{data},{expires}) "
            f"ON DUPLICATE KEY UPDATE version=IF(expires>{_NOW},version,VALUES(version)),"
            f"data=IF(expires>{_NOW},data,VALUES(data)),expires=IF(expires>{_NOW},expires,VALUES(expires));"
        )

    def update(self, group: Sequence[Draft]) -> str:
        """Change several rows in one statement, as the answer to each costs more than the rest of it.

        If not all of them were as expected, a second one tells which have their new version.
        """
        if len(group) == 1:
            return self.write(group[0])
        keys = [_text(draft.write.key) for draft in group]

        def each(values: Iterable[str]) -> str:
            return (
                f"CASE id {' '.join(f'WHEN {key} THEN {value}' for key, value in zip(keys, values, strict=True))} END"
            )

        these, stored = f"id IN ({','.join(keys)})", each(_hex(draft.version) for draft in group)
        expected = each(_hex(draft.write.expected or b"") for draft in group)
        return (
            f"UPDATE `{self.name}` FORCE INDEX (PRIMARY) SET version={stored},"
            f"data={each(_hex(draft.write.data or b'') for draft in group)},"
            f"expires={_NOW}+INTERVAL {each(str(_ttl(draft.write)) for draft in group)} SECOND "
            f"WHERE {these} AND version={expected} AND expires>{_NOW};"
            f"SELECT id FROM `{self.name}` FORCE INDEX (PRIMARY) "
            f"WHERE ROW_COUNT()<{len(group)} AND {these} AND version={stored} LIMIT {len(group)};"
        )

    def sweep(self, limit: int) -> str:
        """Delete expired rows; one that is prolonged is not, as each is looked at again once it is locked."""
        return (
            "SET TRANSACTION ISOLATION LEVEL READ COMMITTED;"
            f"DELETE FROM `{self.name}` WHERE expires<={_NOW} ORDER BY expires LIMIT {limit}"
        )

    def lock(self) -> str:
        """Return the name of the lock under which one process sweeps, at most 64 characters."""
        return f"CONCAT('aiohttp_store.', SHA1(CONCAT(DATABASE(), '.{self.name}')))"


def fitting(keys: Iterable[str], packet: int) -> Iterator[list[str]]:
    """Divide keys by what the packet of a `select` holds."""
    return _divided(((key, len(_text(key)) + 1) for key in keys), packet)


def groups(updates: Iterable[Draft], packet: int) -> Iterator[list[Draft]]:
    """Divide updates by what a packet holds."""
    sized = ((draft, OVERHEAD + 2 * len(draft.write.data or b"")) for draft in updates)
    return _divided(sized, packet)


def packets(statements: Iterable[str], packet: int) -> Iterator[list[str]]:
    """Divide statements by what a packet holds."""
    return _divided(((statement, len(statement)) for statement in statements), packet)


def transaction(statements: Iterable[str], *, in_one_packet: bool) -> list[str]:
    """Return the packets that carry the statements out as one transaction.

    A Galera node needs one for each statement. When a write on another node aborts the transaction between two
    statements of one packet, the node does not report it: it goes on, and answers COMMIT with OK.
    """
    body = f"{''.join(statements)}COMMIT"
    if in_one_packet:
        return [_BEGIN + body]
    first, *others = body.split(";")  # nothing else has a semicolon: the values are hexadecimal
    return [_BEGIN + first, *others]


def _divided(sized: Iterable[tuple[T, int]], packet: int) -> Iterator[list[T]]:
    part: list[T] = []
    room = packet - OVERHEAD
    for one, size in sized:
        if part and size > room:
            yield part
            part, room = [], packet - OVERHEAD
        part.append(one)
        room -= size
    if part:
        yield part


def _hex(value: bytes) -> str:
    """Return the literal of these bytes: right under every sql_mode and character set, and quick to make."""
    return f"x'{value.hex()}'"


def _text(key: str) -> str:
    return _hex(key.encode())


def _ttl(write: Write) -> int:
    return min(int(write.ttl), _LONGEST)
