"""What the storages have in common: why a write lost, one retry, and a server that is down at the start."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from aiohttp_store import (
    ConfigError,
    Conflict,
    Gone,
    Outcome,
    Record,
    Saved,
    Storage,
    StorageRefused,
    StorageUnavailable,
    Write,
)
from aiohttp_store.storage import outcome, retrying

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest import LogCaptureFixture

OWN, LOADED, OTHER = b"own     ", b"loaded  ", b"other   "


def record(version: bytes) -> Record:
    return Record(version, b"data")


@pytest.mark.parametrize(
    ("expected", "data", "found", "became"),
    [
        (None, b"", None, None),
        (None, b"", record(OWN), Saved(OWN)),
        (None, b"", record(OTHER), Conflict(record(OTHER))),
        (LOADED, b"", None, Gone()),
        (LOADED, b"", record(OWN), Saved(OWN)),
        (LOADED, b"", record(LOADED), None),
        (LOADED, b"", record(OTHER), Conflict(record(OTHER))),
        (None, None, None, Saved(b"")),
        (None, None, record(OTHER), Conflict(record(OTHER))),
        (LOADED, None, None, Gone()),
        (LOADED, None, record(LOADED), None),
        (LOADED, None, record(OTHER), Conflict(record(OTHER))),
    ],
)
def test_what_is_found_tells_why_a_write_lost(
    expected: bytes | None, data: bytes | None, found: Record | None, became: Outcome | None
) -> None:
    version = b"" if data is None else OWN
    assert outcome(Write("key", expected, data, 60), version, found) == became


@pytest.mark.parametrize(
    ("errors", "calls", "raised"),
    [
        ([], 1, None),
        ([EOFError("lost")], 2, None),
        ([EOFError("lost"), EOFError("again")], 2, "again"),
        ([EOFError("lost"), ValueError("another")], 2, "another"),
        ([ValueError("another")], 1, "another"),
    ],
)
async def test_a_call_whose_connection_was_lost_is_repeated_once(
    errors: list[Exception], calls: int, raised: str | None
) -> None:
    made = 0

    async def call() -> str:
        nonlocal made
        made += 1
        if errors:
            raise errors.pop(0)
        return "answer"

    calling = retrying(call, lambda error: isinstance(error, EOFError))
    if raised is None:
        assert await calling == "answer"
    else:
        with pytest.raises((EOFError, ValueError), match=raised):
            await calling
    assert made == calls


async def test_a_cancelled_call_is_not_repeated() -> None:
    made = 0

    async def call() -> None:
        nonlocal made
        made += 1
        await asyncio.Event().wait()

    calling = asyncio.create_task(retrying(call, lambda _: True))
    await asyncio.sleep(0)
    calling.cancel()
    await asyncio.wait({calling})
    assert calling.cancelled()
    assert made == 1


class Broken(Storage):
    """Meets an error when it is opened."""

    def __init__(self, error: BaseException | None) -> None:
        self.timeout = 0.05
        self.error = error
        self.went_on = self.is_closed = False

    async def open(self) -> None:
        async with self.opening(LookupError):
            if self.error is None:
                await asyncio.Event().wait()
            else:
                raise self.error
        self.went_on = True

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        raise NotImplementedError

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        raise NotImplementedError

    async def delete(self, keys: Sequence[str]) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize(
    "error", [None, ConnectionRefusedError(), LookupError(), TimeoutError(), StorageUnavailable("no host")]
)
async def test_a_storage_opens_without_its_server(error: BaseException | None, caplog: LogCaptureFixture) -> None:
    storage = Broken(error)
    await storage.open()
    assert storage.went_on
    assert not storage.is_closed
    assert "opened without its server: " in caplog.text


class Refusing(Broken):
    def refusal(self, error: Exception) -> str | None:
        return "check the password" if isinstance(error, PermissionError) else None


async def test_a_refusal_at_the_start_is_an_error_that_says_what_to_check(caplog: LogCaptureFixture) -> None:
    await Refusing(PermissionError("wrong password")).open()
    (said,) = caplog.records
    assert said.levelname == "ERROR"
    assert said.getMessage().endswith("refuses: PermissionError: wrong password; check the password")


class Mute(Refusing):
    """Opens, and lets nobody write."""

    async def open(self) -> None:
        async with self.opening():
            pass

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        async with self.answering():
            raise PermissionError("no right to write")


async def test_a_storage_is_tried_when_it_is_opened(caplog: LogCaptureFixture) -> None:
    storage = Mute(None)
    storage.timeout = 2.0
    await storage.open()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    with pytest.raises(StorageRefused, match="no right to write; check the password"):
        await storage.check()


@pytest.mark.parametrize("error", [ConfigError("another layout"), ValueError("a mistake"), asyncio.CancelledError()])
async def test_a_storage_that_cannot_be_used_is_closed_again(error: BaseException) -> None:
    storage = Broken(error)
    with pytest.raises(type(error)):
        await storage.open()
    assert storage.is_closed
    assert not storage.went_on
