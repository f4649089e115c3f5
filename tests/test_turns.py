"""One writer at a time, in the order in which they came."""

from __future__ import annotations

import asyncio

from aiohttp_store.turns import KNOWN, Turns


async def test_turns_are_given_in_order_and_passed_on_when_their_taker_is_cancelled() -> None:
    turns: Turns[str] = Turns()
    had = []

    async def take(number: int) -> None:
        async with turns.of("name"):
            had.append(number)
            await asyncio.sleep(0)

    assert turns.take_now("name", "other")
    assert not turns.take_now("third", "name")
    assert turns.take_now("third")
    tasks = [asyncio.create_task(take(number)) for number in range(5)]
    await asyncio.sleep(0)
    tasks[1].cancel()  # while it waits
    turns.give("name", "other", "third")
    tasks[0].cancel()  # when the turn is its, and it does not know yet
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert had == [2, 3, 4]
    assert turns._waiting == {}


async def test_a_turn_is_given_back_when_its_block_fails() -> None:
    turns: Turns[str] = Turns()
    try:
        async with turns.of("name"):
            raise ZeroDivisionError
    except ZeroDivisionError:
        assert turns.take_now("name")


async def test_what_was_written_is_left_to_those_who_wait_and_know_a_version_before_it() -> None:
    turns: Turns[str] = Turns()
    assert turns.take_now("name")
    turns.leave("name", b"0", "nobody waits for it")
    assert turns.written_after("name", b"0") is None
    found: list[str | None] = []

    async def take(*versions: bytes) -> None:
        async with turns.of("name"):
            found.extend(turns.written_after("name", version) for version in versions)

    first = asyncio.create_task(take(b"0", b"1", b"2", b"3"))
    await asyncio.sleep(0)
    turns.leave("name", b"1", "second")
    turns.leave("name", b"2", "third")
    assert turns.written_after("other", b"1") is None
    turns.give("name")
    await first
    assert found == [None, "third", "third", None]
    assert turns.written_after("name", b"1") is None  # the queue has ended


async def test_versions_long_past_are_forgotten() -> None:
    turns: Turns[int] = Turns()
    assert turns.take_now("name")
    waiting = asyncio.create_task(turns.of("name").__aenter__())
    await asyncio.sleep(0)
    for number in range(KNOWN + 1):
        turns.leave("name", b"%d" % number, number)
    assert turns.written_after("name", b"0") is None
    assert turns.written_after("name", b"1") == KNOWN
    turns.give("name")
    await waiting
