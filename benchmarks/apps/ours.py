"""aiohttp_store on any of its storages: ours.py PORT URL.

/sweep begins the housekeeping of a MySQL table, and tells at later calls how many seconds it took, if it has ended.
"""

from __future__ import annotations

import asyncio
import sys
import time

from aiohttp import web

import aiohttp_store
from aiohttp_store.storages import _sweeping as sweeping
from aiohttp_store.storages import mysql

from .plain import app_with, run

_SWEEPS: web.AppKey[list[asyncio.Task[float]]] = web.AppKey("sweeps", list)


async def _sweep(storage: mysql.MySQLStorage) -> float:
    began = time.monotonic()
    await storage.sweep()
    return time.monotonic() - began


async def sweep(request: web.Request) -> web.Response:
    sweeps = request.app[_SWEEPS]
    if not sweeps:
        storage = aiohttp_store.get_storage(request.app)
        assert isinstance(storage, mysql.MySQLStorage)
        sweeps.append(asyncio.create_task(_sweep(storage)))
    return web.json_response(sweeps[0].result() if sweeps[0].done() else None)


def main(port: str, url: str) -> None:
    sweeping.EVERY = 86_400.0  # only when we say so
    app = app_with(aiohttp_store.get_session)
    app[_SWEEPS] = []
    app.router.add_get("/sweep", sweep)
    aiohttp_store.setup(app, url)
    run(app, int(port))


if __name__ == "__main__":
    main(*sys.argv[1:])
