"""One writer at a time, in the order in which they came."""

from __future__ import annotations

import asyncio

from aiohttp_store.turns import Turns


async def test_turns_are_given_in_order_and_passed_on_when_their_taker_is_cancelled() -> None:
    turns, had = Turns(), []

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
    turns = Turns()
    try:
        async with turns.of("name"):
            raise ZeroDivisionError
    except ZeroDivisionError:
        assert turns.take_now("name")
