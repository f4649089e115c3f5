"""Sessions in Redis, in the layout of aiohttp-session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

try:
    from redis import VERSION as REDIS_VERSION
    from redis import asyncio as aioredis
    from redis.exceptions import RedisError, ResponseError
except ModuleNotFoundError:
    aioredis = None  # type: ignore[assignment]

from .abstract import CookieOptions
from .records import RecordStorage, random_key

__all__ = ["RedisStorage"]


class RedisStorage(RecordStorage):
    """Keeps sessions in Redis, through a client of the app's own.

    Args:
        redis_pool: a `redis.asyncio.Redis`, which is not closed.
        key_factory: draws an id that nobody can guess.
        **options: the cookie's name and attributes; records last for `max_age` seconds after each write.

    Raises:
        RuntimeError: redis is not installed, or is too old.
        TypeError: it is another client.
    """

    def __init__(
        self, redis_pool: Any, *, key_factory: Callable[[], str] = random_key, **options: Unpack[CookieOptions]
    ) -> None:
        if aioredis is None:
            raise RuntimeError("RedisStorage needs redis; install it with: pip install 'aiohttp_store[redis]'")
        if REDIS_VERSION < (4, 3):
            raise RuntimeError(f"RedisStorage needs redis 4.3, and {REDIS_VERSION} is installed")
        if not isinstance(redis_pool, aioredis.Redis):
            raise TypeError(f"RedisStorage takes a redis.asyncio.Redis, not a {type(redis_pool).__name__}")
        super().__init__(key_factory, **options)
        self._redis = redis_pool

    async def get_record(self, key: str) -> bytes | str | None:
        with self._answering(RedisError, OSError):
            try:
                found: bytes | str | None = await self._redis.get(key)
            except ResponseError as error:
                if not str(error).startswith("WRONGTYPE"):
                    raise
                return None
            return found

    async def set_record(self, key: str, record: str, lasts: int | None, *, must_exist: bool) -> bool:
        with self._answering(RedisError, OSError):
            return bool(await self._redis.set(key, record, ex=lasts, xx=must_exist))

    async def delete_record(self, key: str) -> None:
        with self._answering(RedisError, OSError):
            await self._redis.delete(key)
