"""The connections that a storage lends to its calls."""

from __future__ import annotations

import asyncio

import pytest

from aiohttp_store.storages._pool import Pool

from ..support.timing import AT_LAST


class Server:
    """Hands out numbers for connections; each may be told to hang or to fail."""

    def __init__(self, size: int) -> None:
        self.made = 0
        self.open: set[int] = set()
        self.dead: set[int] = set()
        self.answers = asyncio.Event()
        self.answers.set()
        self.refuses = False
        self.goodbyes: list[int] = []
        self.pool: Pool[int] = Pool(size, connect=self.connect, is_alive=self.is_alive, abort=self.open.discard)

    async def connect(self) -> int:
        await self.answers.wait()
        if self.refuses:
            raise ConnectionRefusedError
        self.made += 1
        self.open.add(self.made)
        return self.made

    async def is_alive(self, connection: int) -> bool:
        await self.answers.wait()
        return connection not in self.dead

    async def say_goodbye(self, connection: int) -> None:
        self.goodbyes.append(connection)
        await asyncio.sleep(0)

    async def is_whole(self, size: int) -> None:
        """See that every place can still be taken, and no more than those."""
        async with asyncio.timeout(AT_LAST):
            lent = [await self.pool.acquire() for _ in range(size)]
        assert len({*lent}) == size
        waiting = asyncio.create_task(self.pool.acquire())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        assert self.open == {*lent}
        for connection in lent:
            self.pool.release(connection, is_clean=True)
        self.pool.release(await waiting, is_clean=True)


async def test_the_connection_used_last_is_used_again() -> None:
    server = Server(2)
    one, other = await server.pool.acquire(), await server.pool.acquire()
    server.pool.release(other, is_clean=True)
    server.pool.release(one, is_clean=True)
    assert await server.pool.acquire() == one
    assert server.made == 2


async def test_a_connection_on_which_an_answer_may_still_come_is_used_by_nobody_else() -> None:
    server = Server(1)
    server.pool.release(await server.pool.acquire(), is_clean=False)
    assert server.open == set()
    assert await server.pool.acquire() == 2


async def test_dead_connections_are_replaced() -> None:
    server = Server(3)
    for connection in [await server.pool.acquire() for _ in range(3)]:
        server.pool.release(connection, is_clean=True)
    server.dead = {2, 3}
    assert await server.pool.acquire() == 1
    assert server.open == {1}
    assert await server.pool.acquire() == 4


async def test_what_waits_goes_on_in_order_when_connections_come_back_or_fail() -> None:
    server = Server(1)
    connection = await server.pool.acquire()
    served = []

    async def call(number: int) -> None:
        lent = await server.pool.acquire()
        served.append(number)
        server.pool.release(lent, is_clean=bool(number % 2))

    calls = [asyncio.create_task(call(number)) for number in range(6)]
    await asyncio.sleep(0)
    calls[3].cancel()
    server.pool.release(connection, is_clean=False)
    async with asyncio.timeout(AT_LAST):
        await asyncio.gather(*calls, return_exceptions=True)
    assert served == [0, 1, 2, 4, 5]
    await server.is_whole(1)


async def test_a_connection_that_cannot_be_made_takes_no_place() -> None:
    server = Server(2)
    server.refuses = True
    for _ in range(5):
        with pytest.raises(ConnectionRefusedError):
            await server.pool.acquire()
    server.refuses = False
    await server.is_whole(2)


@pytest.mark.parametrize("idle", [0, 1, 2])
async def test_a_call_that_is_cancelled_at_any_await_loses_no_place_and_leaves_nothing_open(idle: int) -> None:
    for turns in range(6):
        server = Server(2)
        for connection in [await server.pool.acquire() for _ in range(idle)]:
            server.pool.release(connection, is_clean=True)
        server.answers.clear()
        calls = [asyncio.create_task(server.pool.acquire()) for _ in range(4)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        server.answers.set()
        await asyncio.gather(*calls, return_exceptions=True)
        await server.is_whole(2)


async def test_to_forget_leaves_those_that_are_lent() -> None:
    server = Server(3)
    lent, *others = [await server.pool.acquire() for _ in range(3)]
    for connection in others:
        server.pool.release(connection, is_clean=True)
    server.pool.forget()
    assert server.open == {lent}
    server.pool.release(lent, is_clean=True)
    assert await server.pool.acquire() == lent


async def test_a_closed_pool_lends_nothing_and_keeps_nothing() -> None:
    server = Server(1)
    lent = await server.pool.acquire()
    waiting = asyncio.create_task(server.pool.acquire())
    await asyncio.sleep(0)
    await server.pool.close(server.say_goodbye)
    assert server.goodbyes == []
    server.pool.release(lent, is_clean=True)
    assert server.open == set()
    for call in (waiting, server.pool.acquire()):
        with pytest.raises(ConnectionError, match="closed"):
            await call
    assert server.made == 1


async def test_closing_says_goodbye_on_each_idle_connection() -> None:
    server = Server(2)
    for connection in [await server.pool.acquire() for _ in range(2)]:
        server.pool.release(connection, is_clean=True)
    await server.pool.close(server.say_goodbye)
    await server.pool.close(server.say_goodbye)
    assert sorted(server.goodbyes) == [1, 2]
    assert server.open == set()


async def test_a_pool_can_be_drained_before_it_is_closed() -> None:
    server = Server(2)
    lent = [await server.pool.acquire() for _ in range(2)]
    waiting = asyncio.create_task(server.pool.acquire())
    draining = asyncio.create_task(server.pool.drain())
    await asyncio.sleep(0)
    server.pool.release(lent[0], is_clean=True)
    server.pool.release(lent[1], is_clean=False)
    server.pool.release(await waiting, is_clean=True)
    async with asyncio.timeout(AT_LAST):
        await draining
    await server.pool.close()
    assert server.open == set()
