"""aiohttp-session with its JSON encoder, its records kept for a day as ours are: aiohttp_session.py PORT URL."""

from __future__ import annotations

import sys

import aiohttp_session
import aiomcache
from aiohttp import web
from aiohttp_session.memcached_storage import MemcachedStorage
from aiohttp_session.redis_storage import RedisStorage
from redis.asyncio import Redis
from yarl import URL

from .plain import app_with, run

_A_DAY = 86_400
_POOL = 4  # as in our memcached storage; the default is 2


def _redis(url: URL) -> aiohttp_session.AbstractStorage:
    return RedisStorage(Redis.from_url(str(url)), max_age=_A_DAY)


def _memcached(url: URL) -> aiohttp_session.AbstractStorage:
    return MemcachedStorage(aiomcache.Client(url.host or "", url.port or 0, pool_size=_POOL), max_age=_A_DAY)


async def app_on(url: URL) -> web.Application:
    app = app_with(aiohttp_session.get_session)
    aiohttp_session.setup(app, {"redis": _redis, "memcached": _memcached}[url.scheme](url))
    return app


if __name__ == "__main__":
    run(app_on(URL(sys.argv[2])), int(sys.argv[1]))
