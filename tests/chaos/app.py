"""The app under test, in a process of its own: sessions that merge, and below /strict sessions that refuse to."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

import aiohttp_store
from aiohttp_store import Cookie, Session, SessionGone, get_session, new_session, setup

from .child import obey

IDLE_TIMEOUT = 100.0
"""Seconds; sessions are prolonged after a twentieth of it, so that this happens too."""
LOG_LENGTH = 64
MOST_REASONS = 40
_LONGEST_REASON = 240
_PACKAGE = str(Path(aiohttp_store.__file__).parent)
_CHANGING = re.compile(
    r"0x[0-9a-f]+|[0-9a-f]{24,}|(?<![\d.])\d+\.\d+(?!\.?\d)|:\d{4,5}\b"
)  # addresses of objects, ids, times, ports
_TICK = 0.01
_WAITED_FOR_PROCESSOR = Path("/proc/self/schedstat")  # of the main thread, which is the loop's


class Loop:
    """Measures how long the event loop stood still, without what the machine gave to other processes."""

    longest = 0.0

    async def measure(self) -> None:
        last, waited = time.monotonic(), self._waited()
        while True:
            await asyncio.sleep(_TICK)
            now, waited_now = time.monotonic(), self._waited()
            self.longest = max(self.longest, now - last - _TICK - (waited_now - waited))
            last, waited = now, waited_now

    @staticmethod
    def _waited() -> float:
        try:
            return int(_WAITED_FOR_PROCESSOR.read_bytes().split()[1]) / 1e9
        except (OSError, IndexError):  # this kernel does not tell
            return 0.0


class Cancellations:
    """Counts the requests that ended because their client went away, in the handler or while they were saved."""

    count = 0

    def middleware(self) -> Middleware:
        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                return await handler(request)
            except asyncio.CancelledError:
                self.count += 1
                raise

        return middleware


class Reasons:
    """Keeps why requests were answered 500 and 503: each reason once, how often it was met, and when first and last."""

    def __init__(self) -> None:
        self.met: dict[str, tuple[int, float, float]] = {}

    def middleware(self) -> Middleware:
        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                return await handler(request)
            except web.HTTPException as answer:
                if answer.status >= 500:
                    self._add(answer.status, answer.__cause__ or answer)
                raise
            except Exception as error:
                self._add(500, error)
                raise

        return middleware

    def _add(self, status: int, error: BaseException) -> None:
        reason = f"{status} {reason_of(error)}"
        if reason not in self.met and len(self.met) >= MOST_REASONS:
            reason = f"{status} for other reasons"
        now = time.monotonic()
        count, first, _ = self.met.get(reason, (0, now, now))
        self.met[reason] = (count + 1, first, now)


def reason_of(error: BaseException | None) -> str:
    """Return the error and what caused it, without what always differs, and the lines where the cause was met."""
    reasons, lines = [], {}
    while error is not None:
        reasons.append(_CHANGING.sub("#", f"{type(error).__name__}: {error}")[:_LONGEST_REASON])
        for frame in traceback.extract_tb(error.__traceback__):
            lines[frame.filename.startswith(_PACKAGE)] = f"{Path(frame.filename).name}:{frame.lineno}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return f"{' from '.join(reasons)} ({', '.join(lines.values())})"


class Complaints(logging.Handler):
    """Keeps what was logged as an error: a crashed handler, an exception that nobody retrieved."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logging.Formatter().format(record))


async def show(request: web.Request, session: Session) -> None:
    """Change nothing."""


async def write(request: web.Request, session: Session) -> None:
    """Plain assignments: a key that no other request writes, one that each writes, and old ones taken out."""
    token = int(request.query["token"])
    session["n"] = token
    session[f"w{token}"] = token
    for old in request.query.getall("old", []):
        session.pop(f"w{old}", None)


async def part(request: web.Request, session: Session) -> None:
    """One of several requests at once, each with a key of its own."""
    token = int(request.query["token"])
    session[f"w{token}"] = token


async def apply(request: web.Request, session: Session) -> None:
    token = int(request.query["token"])

    def count(session: Session) -> None:
        session["count"] = session.get("count", 0) + 1
        session["log"] = [*session.get("log", []), token][-LOG_LENGTH:]

    await session.apply(count)


async def renew(request: web.Request, session: Session) -> None:
    session.renew(login=True)


async def logout(request: web.Request, session: Session) -> None:
    session.invalidate()


ACTS: dict[str, Callable[[web.Request, Session], Awaitable[None]]] = {
    "show": show,
    "write": write,
    "part": part,
    "apply": apply,
    "renew": renew,
    "logout": logout,
}


def answer(request: web.Request, data: dict[str, Any]) -> web.Response:
    return web.json_response({"nonce": request.query["nonce"], "data": data})


async def act(request: web.Request) -> web.Response:
    """Show what was in the session, and then change it if it is the visitor's own."""
    session = await get_session(request)
    data = json.loads(json.dumps(dict(session)))
    if data.get("owner") == request.query["visitor"]:
        try:
            await ACTS[request.match_info["act"]](request, session)
        except SessionGone:
            data = {}
    return answer(request, data)


async def login(request: web.Request) -> web.Response:
    session = await new_session(request)
    session["owner"] = request.query["visitor"]
    return answer(request, dict(session))


async def probe(request: web.Request) -> web.Response:
    """Look for a session, and begin one."""
    session = await get_session(request)
    session["probed"] = True
    return answer(request, {})


def make_app(url: str, **options: Any) -> web.Application:
    app = web.Application()
    app.router.add_post("/login", login)
    app.router.add_post("/probe", probe)
    app.router.add_post("/{act}", act)
    setup(app, url, idle_timeout=IDLE_TIMEOUT, **options)
    return app


async def main(url: str) -> None:
    complaints = Complaints()
    logging.basicConfig(handlers=[complaints], level=logging.ERROR)
    loop, cancellations, reasons = Loop(), Cancellations(), Reasons()

    async def tell(request: web.Request) -> web.Response:
        return web.json_response(
            {
                "longest_stall": loop.longest,
                "cancelled": cancellations.count,
                "complaints": complaints.lines,
                "reasons": reasons.met,
            }
        )

    app = make_app(url)
    app.middlewares[:0] = [cancellations.middleware(), reasons.middleware()]  # around the one that saves
    app.add_subapp("/strict", make_app(url, on_conflict="raise", cookie=Cookie(name="strict")))
    app.router.add_get("/loop", tell)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    measuring = asyncio.create_task(loop.measure())
    host, port = runner.addresses[0]

    async def do(*words: Any) -> None:
        raise ValueError(f"{words} is nothing that the app does")

    await obey(f"http://{host}:{port}", do)
    measuring.cancel()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
