"""An app in a process of its own, for what one process cannot show: several of them, and how one ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from aiohttp import web

from aiohttp_store import Session, get_session, setup

ROOT = Path(__file__).parent.parent


class AppProcess:
    """Runs this file with a storage's URL; its address is known once `address` has been read."""

    def __init__(self, url: str, *, flags: tuple[str, ...] = (), **options: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-u", *flags, "-m", "tests.app", url, json.dumps(options)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._address: str | None = None

    @property
    def address(self) -> str:
        if self._address is None:
            assert self._process.stdout is not None
            line = self._process.stdout.readline()
            found = re.search(r"http://[0-9.:]+", line)
            if found is None:
                self.end(signal.SIGKILL)
                raise RuntimeError(f"the app does not start: {line}")
            self._address = found[0]
        return self._address

    def send(self, how: signal.Signals) -> None:
        self._process.send_signal(how)

    def wait(self, within: float) -> tuple[int, str]:
        """Give the exit code, and what the app wrote to its standard error."""
        _, errors = self._process.communicate(timeout=within)
        return self._process.returncode, errors

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process.poll() is None:
            self.send(how)
        try:
            self.wait(20)
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


def main() -> None:
    """Serve on a free port, and print the address."""
    gate, app = _Gate(), web.Application()
    app.router.add_post("/act", gate.act)
    app.router.add_get("/wait", gate.wait)
    app.router.add_post("/open", gate.open)
    setup(app, sys.argv[1], **json.loads(sys.argv[2]))
    web.run_app(app, host="127.0.0.1", port=0, print=lambda text: print(text.replace("\n", " ")))


if __name__ == "__main__":
    main()
