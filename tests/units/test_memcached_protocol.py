"""Memcached's commands and answers, as bytes."""

from __future__ import annotations

import asyncio
import time

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
    assert protocol.SETTINGS == b"stats settings\r\n"


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


@pytest.mark.parametrize("answer", [b"SERVER_ERROR busy", b"VALUE ", b"VALUE a b c d", b"HTTP/1.1 400 Bad Request"])
async def test_what_is_not_an_answer_is_an_error_that_shows_it(answer: bytes) -> None:
    for read in (protocol.read_values, protocol.read_settings, protocol.read_answer):
        with pytest.raises(MemcachedError, match=answer.decode().rstrip()):
            await read(reader_of(answer + b"\r\n"))


@pytest.mark.parametrize("cut", [b"", b"VALUE a 0 5 7\r\nEND", b"STAT x 1\r\n", b"STOR"])
async def test_an_answer_that_is_cut_off_is_lost(cut: bytes) -> None:
    kind = {b"V": protocol.read_values, b"S": protocol.read_settings}.get(cut[:1], protocol.read_answer)
    with pytest.raises(EOFError):
        await kind(reader_of(cut))
