"""An app in a process of its own, for what one process cannot show: several of them, and how one ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from aiohttp_store import Session, get_session, setup

ROOT = Path(__file__).parents[2]


ENDING = "no more connections"
LEAVES_WITHIN = 30.0
"""Seconds that threads of a driver have to see that they were stopped, also on a busy machine."""
ENDS_WITHIN = 120.0
"""Seconds after which an app that was told to end does not end any more."""


class AppProcess:
    """Runs this file with a storage's URL.

    Whatever is left behind at its end is said on its standard error: warnings, tasks, sockets,
    and threads. What the package logs goes to the standard output.
    """

    def __init__(self, url: str, *, secret: str = "", shutdown_timeout: float = 10) -> None:
        from .servers import free_port  # with a driver, which the app itself is to load or not

        arguments = (url, str(free_port()), str(shutdown_timeout), secret)
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-X", "dev", "-W", "error", "-m", "tests.support.app", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONASYNCIODEBUG": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def says(self, pattern: str) -> str:
        """Read its output as far as this pattern, and give what matched."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = re.search(pattern, line)
            if found is not None:
                return found[0]
        raise RuntimeError(f"the app has ended: {self.wait(ENDS_WITHIN)[1]}")

    def address(self) -> str:
        """Wait until it serves."""
        return self.says("http://[0-9.:]+")

    def send(self, how: signal.Signals) -> None:
        self._process.send_signal(how)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait(self, within: float) -> tuple[int, str]:
        """Give the exit code, and what the app wrote to its standard error."""
        _, errors = self._process.communicate(timeout=within)
        return self._process.returncode, errors

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.is_running():
            self.send(how)
        try:
            self.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


class _Gate:
    """Holds requests between the loading of their session and its change."""

    def __init__(self) -> None:
        self.held = 0
        self.opened = asyncio.Event()

    async def act(self, request: web.Request) -> web.Response:
        """Do with the session what the query says, after adding the JSON sent to it."""
        sent, query = await request.json(), request.query
        session = await get_session(request)
        if "hold" in query:
            self.held += 1
            await self.opened.wait()
        session.update(sent)
        if "renew" in query:
            session.renew()
        if "end" in query:
            session.invalidate()
        if "add" in query:
            return web.json_response(await session.apply(_add))
        return web.json_response(dict(session))

    async def wait(self, request: web.Request) -> web.Response:
        """Answer when as many requests as `?for=` are held."""
        while self.held < int(request.query["for"]):
            await asyncio.sleep(0.005)
        return web.Response()

    async def open(self, request: web.Request) -> web.Response:
        self.opened.set()
        self.held, self.opened = 0, asyncio.Event()
        return web.Response()


def _add(session: Session) -> int:
    session["n"] = session.get("n", 0) + 1
    return int(session["n"])


def _sockets() -> set[str]:
    found = set()
    for name in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile, as the one that lists them
            found.add(str(name.readlink()))
    return {name for name in found if name.startswith("socket:")}


async def _leave_nothing(app: web.Application) -> AsyncIterator[None]:
    asyncio.get_running_loop().slow_callback_duration = 60  # slow machines are not the matter
    sockets = _sockets()
    yield
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    give_up = time.monotonic() + LEAVES_WITHIN
    while (left := [*_sockets() - sockets, *_driver_threads()]) and time.monotonic() < give_up:
        await asyncio.sleep(0.01)
    for what in [*tasks, *left]:
        print("left behind:", what, file=sys.stderr)


def _driver_threads() -> list[str]:
    drivers = ("pymongo", "_connection_worker_thread")  # the latter is aiosqlite's
    return [thread.name for thread in threading.enumerate() if any(name in thread.name for name in drivers)]


async def _say(app: web.Application) -> None:
    print(ENDING)


def main(url: str, port: str, shutdown_timeout: str, secret: str) -> None:
    """Serve, and print the address. An older aiohttp prints the port that was asked for, so that cannot be 0."""
    log = logging.getLogger("aiohttp_store")
    log.addHandler(logging.StreamHandler(sys.stdout))
    log.propagate = False
    gate, app = _Gate(), web.Application()
    app.router.add_post("/act", gate.act)
    app.router.add_get("/wait", gate.wait)
    app.router.add_post("/open", gate.open)
    app.cleanup_ctx.append(_leave_nothing)  # before ours, and so ends after it
    app.on_shutdown.append(_say)
    setup(app, url, secret=secret or None)
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(port),
        shutdown_timeout=float(shutdown_timeout),
        access_log=None,
        print=lambda text: print(text.replace("\n", " ")),
    )
    gc.collect()


if __name__ == "__main__":
    main(*sys.argv[1:])
