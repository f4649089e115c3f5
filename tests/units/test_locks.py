"""One writer at a time, in the order in which they came."""

from __future__ import annotations

import asyncio

from aiohttp_store._engine.locks import WriterLock

from ..support.timing import AT_LAST


async def test_turns_are_given_in_order_and_passed_on_when_their_taker_is_cancelled() -> None:
    turns: WriterLock[str] = WriterLock()
    had = []

    async def take(number: int) -> None:
        async with turns.hold("name"):
            had.append(number)
            await asyncio.sleep(0)

    assert turns.try_acquire("name", "other")
    assert not turns.try_acquire("third", "name")
    assert turns.try_acquire("third")
    tasks = [asyncio.create_task(take(number)) for number in range(5)]
    await asyncio.sleep(0)
    tasks[1].cancel()  # while it waits
    turns.release("name", "other", "third")
    tasks[0].cancel()  # when the turn is its, and it does not know yet
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), AT_LAST)
    assert had == [2, 3, 4]
    assert turns._waiting == {}


async def test_a_turn_is_given_back_when_its_block_fails() -> None:
    turns: WriterLock[str] = WriterLock()
    try:
        async with turns.hold("name"):
            raise ZeroDivisionError
    except ZeroDivisionError:
        assert turns.try_acquire("name")


async def test_what_was_written_is_left_to_those_who_wait() -> None:
    turns: WriterLock[str] = WriterLock()
    assert turns.try_acquire("name")
    turns.publish("name", "nobody waits for it")
    found: list[str | None] = []

    async def take(written: str | None) -> None:
        async with turns.hold("name"):
            found.append(turns.latest("name"))
            if written:
                turns.publish("name", written)

    waiting = [asyncio.create_task(take(written)) for written in (None, "second", "third", None, None)]
    await asyncio.sleep(0)
    assert turns.latest("other") is None
    turns.release("name")
    await asyncio.gather(*waiting)
    assert found == [None, None, "second", "third", "third"]
    assert turns.latest("name") is None  # the queue has ended
