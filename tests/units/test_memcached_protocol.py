"""Memcached's commands and answers, as bytes."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from aiohttp_store.storages import _memcached_protocol as protocol
from aiohttp_store.storages._memcached_protocol import Found, MemcachedError

DAY = 86_400


def reader_of(answer: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(answer)
    reader.feed_eof()
    return reader


def test_the_six_commands() -> None:
    assert protocol.gets([b"a", b"b"]) == b"gets a b\r\n"
    assert protocol.add(b"a", 60, b"value") == b"add a 0 60 5\r\nvalue\r\n"
    assert protocol.cas(b"a", 60, b"value", 7) == b"cas a 0 60 5 7\r\nvalue\r\n"
    assert protocol.remove(b"a", 7) == b"cas a 0 -1 0 7\r\n\r\n"
    assert protocol.delete(b"a") == b"delete a\r\n"
    assert protocol.SETTINGS.split() == [b"stats", b"settings"]


@pytest.mark.parametrize(
    ("ttl", "sent"), [(0, 1), (1, 1), (30 * DAY, 30 * DAY), (30 * DAY + 1, None), (2**33, 2**31 - 1)]
)
def test_a_time_beyond_thirty_days_is_sent_as_a_date(ttl: int, sent: int | None) -> None:
    found = int(protocol.add(b"a", ttl, b"").split()[3])
    assert found == sent if sent else abs(found - time.time() - ttl) < 60


async def test_values_are_read_with_their_tokens_whatever_is_in_them() -> None:
    reader = reader_of(b"VALUE a 0 5 7\r\nEND\r\n\r\nVALUE b 1 2 8\r\nxx\r\nEND\r\nmore")
    assert await protocol.read_values(reader) == {b"a": Found(b"END\r\n", 7), b"b": Found(b"", 8)}
    assert await reader.read() == b"more"


async def test_settings_are_read() -> None:
    reader = reader_of(b"STAT item_size_max 1048576\r\nSTAT inter NULL x\r\nSTAT empty\r\nEND\r\n")
    found = await protocol.read_settings(reader)
    assert found == {b"item_size_max": b"1048576", b"inter": b"NULL x", b"empty": b""}


READERS: dict[bytes, Callable[[asyncio.StreamReader], Awaitable[object]]] = {
    b"VALUE": protocol.read_values,
    b"STAT": protocol.read_settings,
    b"STORED": partial(protocol.read_answer, command=b"add a 0 60 0\r\n"),
}


@pytest.mark.parametrize(
    "answer",
    [
        *(b"SERVER_ERROR busy", b"VALUE ", b"VALUE a b c d", b"HTTP/1.1 400 Bad Request", b" ", b"\x00\xff\x1b[0m"),
        *(b"VALUE a 0 -1 7", b"VALUE a 0 five 7", b"VALUE a 0 5 -7", b"VALUE a 0 0x5 7", b"VALUE a 0 5 7 9"),
        *(b"VALUE a 0 %b 7" % (b"9" * 5000), b"VALUE a 0 5 %b" % (b"9" * 5000)),
    ],
)
async def test_what_is_not_an_answer_is_an_error_that_shows_it(answer: bytes) -> None:
    for read in READERS.values():
        with pytest.raises(MemcachedError, match=re.escape(repr(answer[:200])[2:-1])):
            await read(reader_of(answer + b"\r\n"))


@pytest.mark.parametrize(
    "answer",
    [
        *(b"VALUE a 0 5 %d\r\nvalue\r\nEND\r\n" % 2**64, b"VALUE a 0 4 7\r\nvalue\r\nEND\r\n"),
        *(b"VALUE a 0 3 7\r\nvalue\r\nEND\r\n", b"x" * 70_000, b"x" * 70_000 + b"\r\n"),
        *(b"J\0\0\0\x0a5.5.5-10.11-MariaDB", b"+PO", b"SSH-2.0"),
    ],
)
async def test_an_answer_that_contradicts_itself_or_is_of_another_protocol_is_an_error(answer: bytes) -> None:
    for read in READERS.values():
        with pytest.raises(MemcachedError):
            await read(reader_of(answer))


@pytest.mark.parametrize(
    ("command", "answers"),
    [
        (b"add", {b"STORED", b"NOT_STORED", protocol.TOO_LARGE}),
        (b"cas", {b"STORED", b"EXISTS", b"NOT_FOUND", protocol.TOO_LARGE}),
        (b"delete", {b"DELETED", b"NOT_FOUND"}),
    ],
)
async def test_each_command_has_its_own_answers(command: bytes, answers: set[bytes]) -> None:
    for answer in (b"STORED", b"NOT_STORED", b"EXISTS", b"NOT_FOUND", b"DELETED", b"END", protocol.TOO_LARGE):
        reading = protocol.read_answer(reader_of(answer + b"\r\n"), command + b" a")
        if answer in answers:
            assert await reading == answer
        else:
            with pytest.raises(MemcachedError):
                await reading


@pytest.mark.parametrize("cut", [b"", b"VALUE a 0 5 7\r\nEND", b"STAT x 1\r\n", b"STOR"])
async def test_an_answer_that_is_cut_off_is_lost(cut: bytes) -> None:
    read = next((read for word, read in READERS.items() if cut.startswith(word)), READERS[b"STORED"])
    with pytest.raises(EOFError):
        await read(reader_of(cut))
