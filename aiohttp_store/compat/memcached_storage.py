"""Sessions in Memcached, in the layout of aiohttp-session."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Unpack

try:
    import aiomcache
    from aiomcache.exceptions import ClientException
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "MemcachedStorage needs aiomcache; install it with: pip install 'aiohttp_store[memcached]'", name="aiomcache"
    ) from error

from .abstract import CookieOptions
from .records import RecordStorage, random_key

__all__ = ["MemcachedStorage"]

MAX_RELATIVE = 30 * 86_400
"""Seconds; Memcached takes more than these for a time since the epoch."""


class MemcachedStorage(RecordStorage):
    """Keeps sessions in Memcached, through a client of the app's own.

    Args:
        memcached_conn: an `aiomcache.Client`, which is not closed.
        key_factory: draws an id that nobody can guess.
        **options: the cookie's name and attributes; records last for `max_age` seconds after each write.
    """

    def __init__(
        self,
        memcached_conn: aiomcache.Client,
        *,
        key_factory: Callable[[], str] = random_key,
        **options: Unpack[CookieOptions],
    ) -> None:
        super().__init__(key_factory, **options)
        self.conn = memcached_conn

    async def get_record(self, key: str) -> bytes | None:
        with self._answering(ClientException, OSError):
            return await self.conn.get(key.encode())

    async def set_record(self, key: str, record: str, lasts: int | None, *, must_exist: bool) -> bool:
        expires = lasts or 0
        if expires > MAX_RELATIVE:
            expires += int(time.time())
        write = self.conn.replace if must_exist else self.conn.set
        with self._answering(ClientException, OSError):
            return await write(key.encode(), record.encode(), exptime=expires)

    async def delete_record(self, key: str) -> None:
        with self._answering(ClientException, OSError):
            await self.conn.delete(key.encode())
