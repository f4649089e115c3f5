"""One writer at a time, in the order in which they came."""

from __future__ import annotations

import asyncio

from aiohttp_store._engine.locks import Turns

from ..support.timing import AT_LAST


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
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), AT_LAST)
    assert had == [2, 3, 4]
    assert turns._waiting == {}


async def test_a_turn_is_given_back_when_its_block_fails() -> None:
    turns: Turns[str] = Turns()
    try:
        async with turns.of("name"):
            raise ZeroDivisionError
    except ZeroDivisionError:
        assert turns.take_now("name")


async def test_what_was_written_is_left_to_those_who_wait() -> None:
    turns: Turns[str] = Turns()
    assert turns.take_now("name")
    turns.leave("name", "nobody waits for it")
    found: list[str | None] = []

    async def take(written: str | None) -> None:
        async with turns.of("name"):
            found.append(turns.left("name"))
            if written:
                turns.leave("name", written)

    waiting = [asyncio.create_task(take(written)) for written in (None, "second", "third", None, None)]
    await asyncio.sleep(0)
    assert turns.left("other") is None
    turns.give("name")
    await asyncio.gather(*waiting)
    assert found == [None, None, "second", "third", "third"]
    assert turns.left("name") is None  # the queue has ended
