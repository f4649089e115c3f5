"""Connections to one server: a limited number, each lent to one call at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

__all__ = ["Pool"]

C = TypeVar("C")


class Pool(Generic[C]):
    """Lends idle connections that are still alive, otherwise new ones; when all are lent, further calls wait.

    `connect` leaves nothing open when it fails, and `abort` waits for no server. No `await` stands where a connection
    comes back, so a cancelled call loses neither its connection nor its place.

    A pool belongs to one event loop: make it in `open`.
    """

    def __init__(
        self,
        size: int,
        *,
        connect: Callable[[], Awaitable[C]],
        is_alive: Callable[[C], Awaitable[bool]],
        abort: Callable[[C], None],
    ) -> None:
        self._size = size
        self._places = asyncio.Semaphore(size)
        self._connect = connect
        self._is_alive = is_alive
        self._abort = abort
        self._idle: list[C] = []
        self._is_closed = False

    async def acquire(self) -> C:
        """Return a connection that is the caller's alone until `release`.

        Raises:
            ConnectionError: the pool is closed.
        """
        await self._places.acquire()
        try:
            if self._is_closed:
                raise ConnectionError("the connections are closed")
            connection = await self._reused()
            return await self._connect() if connection is None else connection
        except BaseException:
            self._places.release()
            raise

    def release(self, connection: C, *, is_clean: bool) -> None:
        """Take a connection back.

        It is used again if it `is_clean`, so that no answer is still to come on it; otherwise it is aborted.
        """
        if is_clean and not self._is_closed:
            self._idle.append(connection)
        else:
            self._abort(connection)
        self._places.release()

    def forget(self) -> None:
        """Abort the idle connections: what ended one of them has probably ended all."""
        while self._idle:
            self._abort(self._idle.pop())

    async def drain(self) -> None:
        """Wait until every call is done that has a connection or waits for one; later calls get none."""
        for _ in range(self._size):
            await self._places.acquire()

    async def close(self, say_goodbye: Callable[[C], Awaitable[None]] | None = None) -> None:
        """Close the idle connections now, and those that are lent when they come back."""
        self._is_closed = True
        while self._idle and say_goodbye is not None:
            connection = self._idle.pop()
            try:
                await say_goodbye(connection)
            finally:
                self._abort(connection)
        self.forget()
        await asyncio.sleep(0)  # the loop closes the socket of an aborted transport in its next turn

    async def _reused(self) -> C | None:
        while self._idle:
            connection, is_alive = self._idle.pop(), False  # the one used last
            try:
                is_alive = await self._is_alive(connection)
            finally:
                if not is_alive:
                    self._abort(connection)
            if is_alive:
                return connection
        return None
