"""A server whose answers make no sense: an app starts, and what it cannot read is a 503 and never a 500."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiomysql  # type: ignore[import-untyped]
import pytest
from aiohttp import web

from aiohttp_store import Storage, StorageUnavailable, get_session
from aiohttp_store.storages import storage_from_url
from aiohttp_store.storages.mysql import MySQLOptions, MySQLStorage
from aiohttp_store.url import StorageURL

from ..conftest import PATIENCE, Serve, Servers
from ..support.fake_mysql import OK, Login, greeting, mysql_that, rows
from ..support.one_key import new_key
from ..support.proxy import Proxy
from ..support.timing import pace, until

EMPTY = b"0" * 8


async def count(request: web.Request) -> web.Response:
    session = await get_session(request)
    session["n"] = session.get("n", 0) + 1
    return web.json_response(session["n"])


async def leave(request: web.Request) -> web.Response:
    session = await get_session(request)
    session.invalidate()
    return web.json_response(None)


async def is_an_outage(serve: Serve, storage: Storage) -> None:
    """See that an app starts over this storage, and answers 503."""
    client = await serve(count, storage=storage)
    answer = await client.get("/count", headers={"Cookie": f"session={new_key()}"})
    assert answer.status == 503
    assert "Retry-After" in answer.headers
    answer = await client.get("/count")
    assert answer.status == 503


# Memcached

SETTINGS = b"STAT item_size_max 1048576\r\nEND\r\n"
MEMCACHED = {
    "a size that is no number": {b"stats": b"STAT item_size_max many\r\nEND\r\n"},
    "a negative size": {b"stats": b"STAT item_size_max -1\r\nEND\r\n"},
    "no size": {b"stats": b"STAT item_size_max\r\nEND\r\n"},
    "a size of nothing": {b"stats": b"STAT item_size_max 0\r\nEND\r\n"},
    "a size of many digits": {b"stats": b"STAT item_size_max %b\r\nEND\r\n" % (b"9" * 9000)},
    "settings of another form": {b"stats": b"STAT\r\nEND\r\n"},
    "an empty line": {b"stats": b"\r\n"},
    "a value's size that is no number": {b"gets": b"VALUE {key} 0 five 1\r\nvalue\r\nEND\r\n"},
    "a value's size below zero": {b"gets": b"VALUE {key} 0 -7 1\r\nvalue\r\nEND\r\n"},
    "a value that is longer": {b"gets": b"VALUE {key} 0 8 1\r\nmuch too long\r\nEND\r\n"},
    "a token below zero": {b"gets": b"VALUE {key} 0 9 -1\r\n%bx\r\nEND\r\n" % EMPTY},
    "a token of 65 bits": {b"gets": b"VALUE {key} 0 9 %d\r\n%bx\r\nEND\r\n" % (2**64, EMPTY)},
    "no token": {b"gets": b"VALUE {key} 0 9\r\n%bx\r\nEND\r\n" % EMPTY},
    "another key": {b"gets": b"VALUE other 0 9 1\r\n%bx\r\nEND\r\n" % EMPTY},
    "the answer of a write to a load": {b"gets": b"STORED\r\n", b"add": b"NOT_STORED\r\n"},
    "the answer of a load to a write": {b"add": b"END\r\n", b"gets": b"STORED\r\n"},
    "the answer of a delete to a write": {b"add": b"DELETED\r\n", b"gets": b"SERVER_ERROR\r\n"},
}


@contextlib.asynccontextmanager
async def memcached_that(answers: dict[bytes, bytes]) -> AsyncIterator[int]:
    right = {
        b"stats": SETTINGS,
        b"gets": b"END\r\n",
        b"add": b"STORED\r\n",
        b"cas": b"STORED\r\n",
        b"delete": b"DELETED\r\n",
    }

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):  # the loop ends before its clients
            while line := await reader.readuntil(b"\r\n"):
                word, key, *_ = (*line.split(), b"")
                if word in (b"add", b"cas"):
                    await reader.readuntil(b"\r\n")
                writer.write((right | answers)[word].replace(b"{key}", key))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("wrong", MEMCACHED)
async def test_what_memcached_cannot_have_meant_is_an_outage(wrong: str, serve: Serve) -> None:
    async with memcached_that(MEMCACHED[wrong]) as port:
        storage = storage_from_url(f"memcached://127.0.0.1:{port}?timeout={PATIENCE}")
        client = await serve(count, storage=storage)
        answers = [
            await client.get("/count", headers={"Cookie": f"session={new_key()}"}),
            await client.get("/count"),
        ]
        assert {answer.status for answer in answers} <= {200, 503}
        assert 503 in [answer.status for answer in answers]


@pytest.mark.parametrize("answer", [b"STORED", b"NOT_STORED", b"EXISTS", b"SERVER_ERROR object too large for cache"])
async def test_a_logout_that_memcached_did_not_confirm_is_no_logout(answer: bytes) -> None:
    async with memcached_that({b"delete": answer + b"\r\n"}) as port:
        storage = storage_from_url(f"memcached://127.0.0.1:{port}?timeout={PATIENCE}")
        await storage.open()
        with pytest.raises(StorageUnavailable):
            await storage.delete([new_key()])
        await storage.close()


# MySQL

LOOK, LOAD, SAVE, DELETE = b"@@max_allowed_packet", b"SELECT id,", b"INSERT", b"DELETE FROM"
MYSQL: dict[str, dict[bytes, list[bytes]]] = {
    "no row of limits": {LOOK: rows()},
    "NULL for all limits": {LOOK: rows((None, None, None, None))},
    "NULL for the layout": {LOOK: rows((b"16777216", b"4", b"4294967295", None))},
    "limits that are no numbers": {LOOK: rows((b"many", b"4", b"4294967295", b"1"))},
    "limits of a type that they are not": {LOOK: rows((b"\xff", b"\xff", b"\xff", b"\xff"), kind=3)},
    "limits of dates": {LOOK: rows((b"0000-13-45", b"4", b"4", b"1"), kind=12)},
    "two rows of limits": {LOOK: rows(*[(b"16777216", b"4", b"4294967295", b"1")] * 2)},
    "one column of limits": {LOOK: rows((b"16777216",))},
    "limits without rows": {LOOK: [OK]},
    "a load without rows": {LOAD: [OK]},
    "a load of NULL": {LOAD: rows((None, None, None))},
    "a load of data that are NULL": {LOAD: rows((b"{key}", EMPTY, None))},
    "a load of keys that are no text": {LOAD: rows((b"\xff\xfe", EMPTY, b"x"))},
    "a load of one column": {LOAD: rows((b"{key}",))},
    "a load of four columns": {LOAD: rows((b"{key}", EMPTY, b"x", b"y"))},
    "a load of numbers": {LOAD: rows((b"1", b"2", b"3"), kind=3)},
    "an empty packet": {LOAD: [b""]},
    "a column that is cut off": {LOAD: [b"\1", b"\3def"]},
    "a row that is cut off": {LOAD: [*rows()[:3], b"\x20short"]},
    "a row where the columns should end": {LOAD: [b"\1", rows()[1], b"\1x"]},
    "an error that is cut off": {LOAD: [b"\xff"], SAVE: [b"\xff\x15"]},
    "a wish for a file": {LOAD: [b"\xfb/etc/passwd"], SAVE: [b"\xfb/etc/passwd"]},
    "too few results of a write": {SAVE: [OK]},
    "rows where a count was due": {SAVE: rows((b"1",))},
}


def url_of(port: int) -> StorageURL:
    return StorageURL.parse(f"mysql://u@127.0.0.1:{port}/d?timeout={PATIENCE}")


def mysql(answers: dict[bytes, list[bytes]]) -> Callable[[Login], Any]:
    limits = rows((b"16777216", b"4", b"4294967295", b"1"))

    async def do(login: Login) -> None:
        await login.say(greeting("mysql_native_password"))
        await login.hear()
        await login.say(OK)
        while True:
            asked = await login.hear()
            found = next((wrong for word, wrong in answers.items() if word in asked), None)
            if found is None:
                found = limits if LOOK in asked else rows() if LOAD in asked else [OK]
            for packet in found:
                key = re.search(rb"x'([0-9a-f]{86})'", asked)
                await login.say(packet.replace(b"\5{key}", b"\x2b" + bytes.fromhex(key[1].decode()) if key else b""))

    return do


@pytest.mark.parametrize("given", [False, True], ids=["url", "pool"])
@pytest.mark.parametrize("wrong", MYSQL)
async def test_what_mysql_cannot_have_meant_is_an_outage(wrong: str, given: bool, serve: Serve) -> None:
    async with contextlib.AsyncExitStack() as stack:
        port, _ = await stack.enter_async_context(mysql_that(mysql(MYSQL[wrong])))
        if given:
            pool = await stack.enter_async_context(
                aiomysql.create_pool(host="127.0.0.1", port=port, user="u", db="d", minsize=0, autocommit=True)
            )
            storage = MySQLStorage(pool, MySQLOptions(timeout=PATIENCE))
        else:
            storage = MySQLStorage.from_url(url_of(port))
        await is_an_outage(serve, storage)
        await storage.close()


async def test_a_logout_of_which_mysql_confirmed_only_a_part_is_no_logout() -> None:
    async with mysql_that(mysql({DELETE: [OK]})) as (port, _):
        storage = MySQLStorage.from_url(url_of(port))
        await storage.open()
        with pytest.raises(StorageUnavailable):
            await storage.delete([new_key()])
        await storage.close()


@pytest.mark.parametrize("given", [False, True], ids=["url", "pool"])
@pytest.mark.parametrize(
    "first",
    [b"", b"\x0a", b"\x0a8.4.0\0", b"\x0anone\0" + b"\0" * 60, b"\xff", b"\xff\x10\x04", b"\x0a\xff\xfe\0" + b"\0" * 9],
)
async def test_a_greeting_that_is_none_is_an_outage(first: bytes, given: bool, serve: Serve) -> None:
    async def do(login: Login) -> None:
        await login.say(first)
        await login.hear()

    async with contextlib.AsyncExitStack() as stack:
        port, _ = await stack.enter_async_context(mysql_that(do))
        if given:
            pool = await stack.enter_async_context(
                aiomysql.create_pool(host="127.0.0.1", port=port, user="u", db="d", minsize=0, autocommit=True)
            )
            storage = MySQLStorage(pool, MySQLOptions(timeout=PATIENCE))
        else:
            storage = MySQLStorage.from_url(url_of(port))
        await is_an_outage(serve, storage)
        await storage.close()


# Any of them


class Distorting(Proxy):
    """Changes a part of the answers at random, while `distorts` is set."""

    distorts = False

    async def _pass_answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event
    ) -> None:
        while answer := await reader.read(1 << 20):
            if self.distorts and self.random.random() < 0.5:
                answer = self._distorted(bytearray(answer))
            writer.write(answer)
            await writer.drain()

    def _distorted(self, answer: bytearray) -> bytes:
        place, how = self.random.randrange(len(answer)), self.random.randrange(6)
        if how == 0:
            answer[place] = self.random.randrange(256)
        elif how == 1:
            del answer[place:]
        elif how == 2:
            del answer[place]
        elif how == 3:
            answer[place:place] = self.random.randbytes(3)
        elif how == 4:
            answer *= 2
        else:
            return re.sub(rb"[0-9]", lambda _: self.random.choice([b"9", b"-", b"x", b"\0"]), bytes(answer))
        return bytes(answer)


@pytest.mark.parametrize("storage_name", ["memcached", "mysql"])
@pytest.mark.parametrize("seed", range(6))
async def test_no_distorted_answer_is_a_500(
    storage_name: str, seed: int, servers: Servers, serve: Serve, make_url: Callable[..., str]
) -> None:
    async with Distorting(servers.own(storage_name).url) as proxy:
        url = make_url(timeout=0.3 * pace()).replace(f":{proxy.target}", f":{proxy.port}")
        proxy.random = random.Random(seed)
        storage = storage_from_url(url)
        await storage.open()
        proxy.distorts = True
        client = await serve(count, leave, storage=storage)
        for turn in range(12):
            answer = await client.get("/count" if turn % 5 else "/leave")
            assert answer.status in (200, 503)
        proxy.distorts = False
        client.session.cookie_jar.clear()

        async def is_served() -> bool:
            return (await client.get("/count")).status == 200

        await until(is_served)
        await storage.close()
