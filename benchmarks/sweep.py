"""Requests while the housekeeping deletes expired rows from a MySQL table."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any, TypedDict

import pymysql  # type: ignore[import-untyped]
from yarl import URL

from .apps import DATA
from .contenders import CONTENDERS
from .load import Load, measure
from .processes import Processes
from .rounds import MANY, USUAL, WARM_UP

_BATCH = 5_000
_DATA = json.dumps(DATA).encode().hex()


class Sweep(TypedDict):
    """The rows that had expired, the loads before and during their sweep, and what that took."""

    rows: int
    before: list[Load]
    during: list[Load]
    seconds: float | None
    """`None`: it was not waited for."""
    left: int


def _connect(url: URL) -> Any:
    password = (url.password or "").encode()  # PyMySQL would send a string as Latin-1
    database = url.path.removeprefix("/")
    return pymysql.connect(
        host=url.host, port=url.port, user=url.user, password=password, database=database, autocommit=True
    )


def _fill(url: URL, rows: int) -> None:
    """Add rows that expired within the last day."""
    with _connect(url) as connection, connection.cursor() as cursor:
        for _ in range(0, rows, _BATCH):
            values = ",".join(
                f"('{secrets.token_urlsafe(32)}',x'{secrets.token_hex(8)}',x'{_DATA}',"
                f"UTC_TIMESTAMP(6)-INTERVAL {secrets.randbelow(86_400) + 1} SECOND)"
                for _ in range(_BATCH)
            )
            cursor.execute(f"INSERT INTO sessions (id,version,data,expires) VALUES {values}")  # noqa: S608


def _left(url: URL) -> int:
    with _connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM sessions WHERE expires<=UTC_TIMESTAMP(6)")
        return int(cursor.fetchone()[0])


def run(processes: Processes, rows: int, times: int, seconds: int, wait: float) -> Sweep:
    """Measure reads some times with expired rows lying there, then while they are swept, for at most `wait` seconds."""
    contender = CONTENDERS["ours mysql"]
    with processes.app(contender) as app:  # which makes the table
        url = URL(processes.server("mysql").url)
        _fill(url, rows)
        cookies = app.cookies(MANY)

        def reads(seconds: int) -> Load:
            return measure(processes.cores, app, "/read", cookies=cookies, connections=USUAL, seconds=seconds)

        reads(WARM_UP)
        result = Sweep(rows=rows, before=[reads(seconds) for _ in range(times)], during=[], seconds=None, left=0)
        give_up = time.monotonic() + wait
        while result["seconds"] is None and time.monotonic() < give_up:
            result["seconds"] = json.loads(app.get("/sweep")[0])
            result["during"].append(reads(seconds))
        result["left"] = _left(url)
    return result
