"""One run of a plan: apps, their clocks and their clients, on one virtual loop."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from aiohttp import web

import aiohttp_store
from aiohttp_store import (
    Session,
    SessionConflict,
    SessionError,
    SessionGone,
    Storage,
    StorageUnavailable,
    get_session,
    new_session,
)
from aiohttp_store._lifecycle.request_state import MANAGER
from aiohttp_store.codec import successor_of, unpack_envelope
from aiohttp_store.cookie import key_of_id

from ..support.remote import kept
from .loop import StandstillError, VirtualLoop
from .network import Linked, LinkedShards, Server
from .oracle import NEVER, Attempt, Finding, Oracle, Truth
from .plan import TIMEOUT, Beside, Plan, Step, Visit

__all__ = ["Run", "run"]

EPOCH = 1_700_000_000.0
SHARDS = 3
COOKIE = "session"
WAITING = {"save", "reload", "apply", "refuse"}
"""The steps that ask the storage, each within a budget of its own."""
KNOCKS = 6
SETTLED = 8 * TIMEOUT
"""Seconds after which nothing that was begun goes on."""


class Refusal(Exception):
    """What a change raises that must not be made."""


class Run(NamedTuple):
    """What came of a plan."""

    acknowledged: int
    findings: list[Finding]
    trace: list[str]


class Wire(asyncio.Transport):
    """A client's connection: takes the response apart as it comes."""

    def __init__(self, on_headers: Callable[[int, list[str]], None]) -> None:
        super().__init__()
        self.on_headers = on_headers
        self.received = b""
        self.is_open = True
        self.headers: list[str] | None = None
        self.status = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def write(self, data: Any) -> None:
        if not self.is_open:
            return
        self.received += data
        if self.headers is None and b"\r\n\r\n" in self.received:
            head, _, self.received = self.received.partition(b"\r\n\r\n")
            first, *self.headers = head.decode().split("\r\n")
            self.status = int(first.split()[1])
            self.on_headers(self.status, self.headers)
        if self.headers is not None and not self.done.done():
            fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in self.headers)}
            size = fields.get("content-length")
            if self.received.endswith(b"0\r\n\r\n") if size is None else len(self.received) >= int(size):
                self.done.set_result(None)

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        self.is_open = False
        if not self.done.done():
            self.done.set_result(None)

    abort = close

    def is_closing(self) -> bool:
        return not self.is_open

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """Do nothing: a request comes at once."""

    resume_reading = pause_reading


class Process:
    """One app with sessions of its own kind, and the clock of its machine."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.offset = 0.0
        plan = world.plan
        self.app = web.Application()
        self.app.router.add_post("/", world.handle)
        aiohttp_store.setup(
            self.app,
            world.new_storage(),
            on_conflict=plan.on_conflict,
            idle_timeout=plan.idle_timeout,
            lifetime=plan.lifetime,
        )
        manager: Any = self.app[MANAGER]
        manager.lifetimes.clock = self.clock
        self.runner = web.AppRunner(
            self.app,
            handle_signals=False,
            access_log=None,
            keepalive_timeout=0,
            handler_cancellation=plan.is_cancelling,
        )

    def clock(self) -> float:
        return EPOCH + self.world.loop.time() + self.offset


class World:
    """The processes, the servers and the visitors of one plan."""

    def __init__(self, plan: Plan, seed: str, *, is_tracing: bool) -> None:
        self.plan = plan
        self.random = random.Random(seed)
        self.loop = asyncio.get_running_loop()
        self.oracle = Oracle(plan, self.loop.time, is_tracing=is_tracing)
        count = SHARDS if plan.storage == "sharded" else 1
        self.servers = [Server(plan.weather, plan.pauses, self.random, self.oracle.event) for _ in range(count)]
        self.jars: dict[int, str | None] = {}
        self.background: set[asyncio.Task[None]] = set()
        self.processes = [Process(self, number) for number in range(plan.processes)]

    def new_storage(self) -> Storage:
        if self.plan.storage == "sharded":
            return LinkedShards(self.servers)
        return self.servers[0].memory if self.plan.storage == "immediate" else Linked(self.servers[0])

    async def live(self) -> None:
        """Carry the plan out, then look at everything once more."""
        for process in self.processes:
            await process.runner.setup()
        for at, keeps in self.plan.restarts:
            self.loop.call_at(at, self.restart, keeps)
        for jump in self.plan.jumps:
            self.loop.call_at(jump.at, self.jump, jump.process, jump.by)
        for one in self.plan.rounds:
            await asyncio.sleep(one.pause)
            await asyncio.gather(*[self.visit(visit, one.visitor) for visit in one.visits])
        last = max([weather.since for weather in self.plan.weather] + [at for at, _ in self.plan.restarts] + [0.0])
        await asyncio.sleep(max(last - self.loop.time(), 0) + SETTLED)
        await self.look()
        for process in self.processes:
            await self.end(process)
        if left := asyncio.all_tasks() - {asyncio.current_task()}:
            self.oracle.find("hung", f"{len(left)} tasks are left, such as {min(map(repr, left))}")
        self.scan()

    def restart(self, keeps: bool) -> None:
        self.oracle.event("the server is restarted", "" if keeps else "and has lost its records")
        for server in self.servers:
            server.restart(keeps=keeps)
        if not keeps:
            self.oracle.lose()

    def jump(self, process: int, by: float) -> None:
        self.oracle.event(f"the clock of process {process} is set by {by:g} s")
        self.processes[process].offset += by

    # Clients.

    async def visit(self, visit: Visit, visitor: int) -> None:
        await asyncio.sleep(visit.at)
        values: list[str | None] = []
        if visit.cookie in ("own", "both"):
            values.append(self.jars.get(visitor))
        if visit.cookie in ("old", "both"):
            given = [one.value for one in self.oracle.cookies.values() if self._is_of(visitor, one.truth)]
            values.append(self.random.choice(given) if given else None)
        if visit.cookie == "made up":
            values.append(secrets.token_urlsafe(32))
        await self.ask(visit, visitor, *dict.fromkeys(value for value in values if value is not None))

    def _is_of(self, visitor: int, truth: Truth | None) -> bool:
        return truth is not None and truth.owner == f"v{visitor}"

    async def ask(self, visit: Visit, visitor: int, *values: str) -> None:
        """Send a request, and wait for its response or leave."""
        oracle = self.oracle
        attempt = oracle.start(visit, f"v{visitor}", values)
        process = self.processes[visit.process]
        wire = Wire(lambda status, headers: self.take(attempt, visitor, status, headers))
        server = process.runner.server
        assert server is not None
        protocol = server()
        protocol.connection_made(wire)
        sent = f"Cookie: {'; '.join(f'{COOKIE}={value}' for value in values)}\r\n" if values else ""
        protocol.data_received(
            f"POST /?attempt={attempt.number} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n{sent}\r\n".encode()
        )
        patience = visit.leaves_after
        bound = _longest(visit)
        try:
            async with asyncio.timeout(bound if patience is None else min(patience, bound)):
                await wire.done
        except TimeoutError:
            if patience is None or patience > bound:
                oracle.find("hung", f"#{attempt.number} got no response within {bound:g} s")
            oracle.event(f"#{attempt.number} leaves")
        else:
            if wire.status in (200, 302, 409, 503) or self._is_scripted(attempt, wire.status):
                attempt.ended = oracle.event(f"#{attempt.number} has its response")
        wire.is_open = False
        protocol.connection_lost(None)

    def _is_scripted(self, attempt: Attempt, status: int) -> bool:
        """Whether a 500 is what the handler's script asks for."""
        return status == 500 and any(step.does == "crash" for step in attempt.visit.steps)

    def take(self, attempt: Attempt, visitor: int, status: int, headers: list[str]) -> None:
        """Take the headers of a response as a browser does, and what they acknowledge."""
        oracle = self.oracle
        attempt.is_answered = True
        oracle.event(f"#{attempt.number} is answered {status}")
        cookies = [line.partition(": ")[2] for line in headers if line.lower().startswith("set-cookie:")]
        for cookie in cookies:
            value = cookie.partition(";")[0].partition("=")[2]
            if value:
                known = oracle.cookie(value)
                if known is attempt.cookie and known.delivered == NEVER:
                    oracle.find("foreign", f"#{attempt.number} made an id up, and was given it")
                known.delivered = min(known.delivered, oracle.event())
                known.truth = self.truth_of(value) or known.truth
            self.jars[visitor] = value or None
        if status in (200, 302):
            if attempt.shown is not None:
                attempt.shown.touched = self.loop.time()
                if attempt.visit.extends:
                    attempt.shown.used = max(attempt.shown.used, attempt.began)
            for act in attempt.pending:
                if attempt.visit.extends:
                    act.truth.used = max(act.truth.used, attempt.began)
            oracle.acknowledge(attempt, attempt.pending)
        elif cookies and status != 500:
            oracle.find("errors", f"#{attempt.number} was answered {status}, and its cookie was changed")
        if status not in (200, 302):
            attempt.is_refused = True
            attempt.pending.clear()  # it was dropped, and a task that goes on gets the session as it is stored
            if not self._is_scripted(attempt, status) and not self._is_explained(attempt, status):
                oracle.find("errors", f"#{attempt.number} was answered {status}")

    def _is_explained(self, attempt: Attempt, status: int) -> bool:
        """Whether something has happened that may be answered so."""
        if status == 503:
            return not self.plan.is_calm
        # 409: another write has come between, or the session has ended.
        return status == 409 and (
            not self.plan.is_calm
            or attempt.has_ended
            or not self.oracle.is_alone(attempt)
            or self.plan.spread > self.plan.idle_timeout
        )

    def truth_of(self, value: str) -> Truth | None:
        """Return the session that is stored under an id now."""
        data = self.records().get(key_of_id(value, COOKIE))
        return None if data is None else self.oracle.sessions.get(data.get("sid", 0))

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the data of all sessions that live in the servers."""
        found = {}
        for server in self.servers:
            keys = list(kept(server.memory))
            for key, record in zip(keys, server.memory.load_now(keys), strict=True):
                if record is not None and successor_of(record.data) is None:
                    found[key] = json.loads(unpack_envelope(record.data).payload)
        return found

    # The end.

    async def look(self) -> None:
        """Show each visitor its session by each process, and try every id that was ever given out."""
        for visitor, value in list(self.jars.items()):
            for number in range(len(self.processes)):
                await self.ask(Visit(process=number), visitor, *([] if value is None else [value]))
        for cookie in list(self.oracle.cookies.values())[-KNOCKS:]:
            if cookie.truth is not None:
                visitor = int(cookie.truth.owner.removeprefix("v"))
                await self.ask(Visit(extends=False), visitor, cookie.value)

    async def end(self, process: Process) -> None:
        try:
            async with asyncio.timeout(6 * TIMEOUT + 0.5):
                await process.runner.cleanup()
        except TimeoutError:
            self.oracle.find("hung", f"process {process.number} does not end")

    def scan(self) -> None:
        """Look at what the servers hold in the end."""
        oracle, records = self.oracle, self.records()
        given = {key_of_id(one.value, COOKIE) for one in oracle.cookies.values() if one.delivered < NEVER}
        is_clean = self.plan.is_undisturbed and not any(
            attempt.is_refused or attempt.has_background for attempt in oracle.attempts
        )
        for key, data in records.items():
            truth = oracle.sessions.get(data.get("sid", 0))
            if key in given and truth is not None:
                oracle.look_for_ended(truth, NEVER, "the storage holds")
            elif is_clean and key not in given:
                oracle.find("unlisted", f"nobody was given the id of {key[:6]}: {data}")

    # Handlers.

    async def handle(self, request: web.Request) -> web.StreamResponse:
        attempt = self.oracle.attempts[int(request.query["attempt"])]
        handler = Handler(self, request, attempt)
        try:
            await handler.open()
            await handler.take_all(attempt.visit.steps)
        except Exception:
            attempt.pending.clear()  # what a handler has done that fails is dropped
            raise
        if handler.response is not None:
            await handler.response.write_eof()
        if attempt.visit.steps and attempt.visit.steps[-1].does == "redirect":
            raise web.HTTPFound("/")
        return handler.response or web.Response(text="done")


class Handler:
    """What a handler does with its session, step by step."""

    def __init__(self, world: World, request: web.Request, attempt: Attempt) -> None:
        self.world = world
        self.oracle = world.oracle
        self.request = request
        self.attempt = attempt
        self.response: web.StreamResponse | None = None
        self.has_session = False
        """Whether a task of the request was given the session, or has begun one."""
        self.calls = 0
        """How many tasks of the request wait for the storage."""

    async def open(self) -> None:
        """Load the session or begin one, or let several tasks do it at the same time."""
        visit = self.attempt.visit
        if visit.opening:
            await asyncio.gather(*map(self._beside, visit.opening))
        else:
            await (self.begin_blindly() if visit.is_blind else self.session())

    async def session(self) -> Session:
        session = await get_session(self.request, extend=self.attempt.visit.extends)
        if not self.has_session:
            self.has_session = True
            self.oracle.show(self.attempt, _plain(session), self.attempt.started, is_first=True)
        return session

    async def take_all(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            if step.does == "begin" and not self.has_session:
                await self.begin_blindly()
                continue
            method: Callable[[Session, Any], Awaitable[None]] = getattr(self, step.does)
            await method(await self.session(), step.what)

    def truth(self, session: Session) -> Truth | None:
        return self.oracle.sessions.get(session.get("sid", 0))

    def started(self, session: Session) -> Truth:
        """Return what the session is, and begin one if it is not one yet."""
        truth = self.truth(session)
        if truth is None:
            truth = self.oracle.begin(self.attempt.owner)
            session["sid"], session["owner"] = truth.sid, truth.owner
        return truth

    def cookie(self, session: Session) -> Any:
        return None if session.identity is None else self.oracle.cookie(session.identity)

    # Steps that change.

    async def put(self, session: Session, what: Any) -> None:
        act = self.oracle.ask(self.attempt, "put", self.started(session))
        session[f"w{act.token}"] = act.token

    async def nest(self, session: Session, what: Any) -> None:
        act = self.oracle.ask(self.attempt, "nest", self.started(session))
        session.setdefault("nest", {})[f"w{act.token}"] = act.token

    async def replace(self, session: Session, what: Any) -> None:
        act = self.oracle.ask(self.attempt, "replace", self.started(session))
        session["n"] = act.token

    async def remove(self, session: Session, what: Any) -> None:
        truth = self.truth(session)
        for act in [] if truth is None else list(truth.acts.values()):
            is_there = act.kind == "put" and act.removal is None and act.acknowledged < NEVER
            if is_there and f"w{act.token}" in session:
                assert truth is not None
                act.removal = self.oracle.ask(self.attempt, "remove", truth)
                del session[f"w{act.token}"]
                return

    async def apply(self, session: Session, what: Any) -> None:
        act = self.oracle.ask(self.attempt, "apply", self.started(session))
        self.attempt.pending.remove(act)

        def change(session: Session) -> None:
            session["log"] = [*session.get("log", []), act.token]

        if await self.tried(session.apply(change)):
            self.attempt.pending.append(act)
            self.oracle.acknowledge(self.attempt, [act])

    async def refuse(self, session: Session, what: Any) -> None:
        act = self.oracle.ask(self.attempt, "refuse", self.started(session))
        self.attempt.pending.remove(act)

        def change(session: Session) -> None:
            session[f"w{act.token}"] = act.token
            raise Refusal

        with suppress(Refusal):
            await self.tried(session.apply(change))

    # Steps that ask the storage.

    async def tried(self, call: Awaitable[object]) -> bool:
        """Whether a call succeeds; a tolerant handler goes on if it does not."""
        self.calls += 1
        try:
            await call
        except (SessionGone, SessionConflict, StorageUnavailable) as error:
            self.oracle.event(f"#{self.attempt.number} is told {type(error).__name__}")
            if isinstance(error, SessionGone):
                self.attempt.pending = [act for act in self.attempt.pending if act.kind == "end"]
            if not self.attempt.visit.is_tolerant:
                raise
            return False
        finally:
            self.calls -= 1
        return True

    async def save(self, session: Session, what: Any) -> None:
        acts = list(self.attempt.pending)
        if await self.tried(session.save()):
            self.oracle.acknowledge(self.attempt, acts)

    async def reload(self, session: Session, what: Any) -> None:
        since = self.oracle.event(f"#{self.attempt.number} reloads")
        reloaded = await self.tried(session.reload())
        emptied = self.attempt.emptied  # without data again, it would have ended; with it, it has not
        self.attempt.pending = [act for act in self.attempt.pending if act.kind == "end" and act is not emptied]
        if reloaded and session.identity is not None:
            self.oracle.show(self.attempt, _plain(session), since, is_first=False)

    async def changed(self, session: Session, what: Any) -> None:
        session.changed()

    async def idle(self, session: Session, timeout: float | None) -> None:
        truth = self.truth(session)
        if truth is not None and self.attempt.visit.extends:
            session.idle_timeout = timeout
            truth.idle.append(self.world.plan.idle_timeout if timeout is None else timeout)

    # Steps that end.

    async def begin(self, session: Session, what: Any) -> None:
        if not self.attempt.is_answered:
            truth = self.truth(session)
            self.attempt.has_ended = True
            fresh = await new_session(self.request)
            self.oracle.end(self.attempt, truth)
            self.started(fresh)

    async def begin_blindly(self) -> None:
        """Begin a session without a look at the one whose id was presented, which ends all the same."""
        self.attempt.has_ended = self.has_session = True
        fresh = await new_session(self.request)
        self.oracle.end(self.attempt, None)
        self.started(fresh)

    async def renew(self, session: Session, login: bool) -> None:
        truth, cookie = self.truth(session), self.cookie(session)
        session.renew(login=login)
        if truth is not None:
            self.oracle.ask(self.attempt, "renew", truth, cookie)

    async def invalidate(self, session: Session, what: Any) -> None:
        truth = self.truth(session)
        session.invalidate()
        self.oracle.end(self.attempt, truth)

    async def empty(self, session: Session, what: Any) -> None:
        truth, cookie = self.truth(session), self.cookie(session)
        session.clear()
        if truth is not None:
            self.attempt.emptied = self.oracle.ask(self.attempt, "end", truth, cookie)

    # Steps that are not about the session.

    async def pause(self, session: Session, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def crash(self, session: Session, what: Any) -> None:
        raise LookupError("as the script says")

    async def redirect(self, session: Session, what: Any) -> None:
        """Do nothing: the handler raises it at its end."""

    async def prepare(self, session: Session, what: Any) -> None:
        """Send the headers; what is changed afterwards needs `save()`."""
        if self.response is None:
            self.response = web.StreamResponse()
            self.attempt.has_background = True
            await self.response.prepare(self.request)

    async def spawn(self, session: Session, what: Beside) -> None:
        """Take steps in a task that the request does not wait for."""
        self.attempt.has_background = True
        task = asyncio.create_task(self._beside(what))
        self.world.background.add(task)
        task.add_done_callback(self.world.background.discard)

    async def _beside(self, what: Beside) -> None:
        await asyncio.sleep(what.delay)
        try:
            await self.take_all(what.steps)
        except (SessionError, RuntimeError, LookupError):
            self.oracle.event(f"#{self.attempt.number}: a task beside it was refused")

    async def join(self, session: Session, what: Beside) -> None:
        """Take steps in a task, and wait for it."""
        await asyncio.create_task(self._beside(what))


def _plain(session: Session) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dict(session)))
    return plain


def _longest(visit: Visit) -> float:
    """Return the seconds within which a visit is answered: a budget for loading, saving, and each call between."""

    def calls(steps: tuple[Step, ...]) -> tuple[int, float]:
        count, pauses = 0, 0.1
        for step in steps:
            if step.does == "join":
                more, longer = calls(step.what.steps)
                count, pauses = count + more, pauses + longer + step.what.delay
            count += step.does in WAITING
            pauses += step.what if step.does == "pause" else 0
        return count, pauses

    count, pauses = calls((*visit.steps, *(Step("join", task) for task in visit.opening)))
    return (2 + count) * TIMEOUT + pauses + 0.5


def run(plan: Plan, seed: str, *, is_tracing: bool = False) -> Run:
    """Carry a plan out; the same plan and seed give the same events."""
    world: World | None = None
    errors: list[str] = []

    async def main() -> None:
        nonlocal world
        world = World(plan, seed, is_tracing=is_tracing)
        await world.live()

    with _silence(), _entropy(random.Random(f"entropy {seed}")):
        loop = VirtualLoop()
        loop.set_exception_handler(lambda _, context: errors.append(str(context.get("exception", context["message"]))))
        task = loop.create_task(main())
        try:
            loop.run_until_complete(task)
        except StandstillError:
            assert world is not None
            world.oracle.find("hung", "somebody waits for what does not come, or runs in a circle")
        finally:
            left = asyncio.all_tasks(loop)
            for one in left:
                one.cancel()
            loop.close()
    assert world is not None
    for error in errors:
        world.oracle.find("errors", f"the loop was told: {error}")
    return Run(world.oracle.acknowledged, world.oracle.findings, world.oracle.trace or [])


@contextmanager
def _silence() -> Iterator[None]:
    """Log nothing: what is refused here is refused on purpose, thousands of times."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _entropy(source: random.Random) -> Iterator[None]:
    """Draw ids from the seed, as they decide of which server they are."""
    real = secrets.token_bytes
    secrets.token_bytes = lambda nbytes=None: source.randbytes(nbytes or 32)
    try:
        yield
    finally:
        secrets.token_bytes = real
