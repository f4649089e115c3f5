"""A visitor that knows what its session must hold, and looks whether it does.

A write that was answered 200 is acknowledged: from then on the session holds it. Whatever ended
otherwise (503, 409, dropped by the visitor) is unsure: it may have been carried out, now or a little
later, but no more than once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiohttp import ClientError, ClientSession, hdrs

from .tally import Tally

GIVE_UP = 60.0
"""Seconds after which a visitor gives an answer up for lost: beyond every budget and a driver's own 30 s."""
_KEYS = 12  # plain writes that a session keeps
_LOGGED = 16  # counted writes that are looked for, of the last 64 that the app keeps
_DEAD = 4  # old cookies that a visitor remembers


class Answer(NamedTuple):
    """What came of one request."""

    act: str
    status: int | None
    """`None`: the visitor dropped its connection."""
    data: dict[str, Any]
    cookie: str | None
    sent: float

    @property
    def is_acknowledged(self) -> bool:
        return self.status == 200


@dataclass
class World:
    """What all visitors of one storage share."""

    http: ClientSession
    url: str
    tally: Tally
    timeout: float
    is_durable: bool
    think: float
    """Seconds between two requests of a visitor, on average."""
    last_kill: float = 0.0
    """When the server died last, as far as sessions on it died too."""
    stopping: bool = False

    @property
    def afterwards(self) -> float:
        """Seconds in which a request that was given up may still write: its two budgets, and the trip's own."""
        return 4 * self.timeout + 1


@dataclass
class Known:
    """What one session must hold."""

    cookie: str
    seen: float
    """When the last request was sent whose answer showed the session."""
    kept: list[int] = field(default_factory=list)
    logged: deque[int] = field(default_factory=lambda: deque(maxlen=_LOGGED))
    last: int | None = None
    """The last acknowledged value of the key that every plain write sets."""
    unsure: dict[int, tuple[float, bool]] = field(default_factory=dict)
    """Plain writes that may be carried out: when they were given up, and whether they may go on in the app."""
    given_up: float = 0.0
    """When the visitor last dropped a request, which may go on in the app and write again over what others wrote."""
    excused: set[int] = field(default_factory=set)
    """Counted writes that may count twice, since others may have come between."""
    doubled: set[int] = field(default_factory=set)
    quiet: bool = True
    """Whether every request since the last acknowledged write was answered 200."""
    may_be_over: bool = False
    """Whether a renewal or an end of it was asked for, and not acknowledged."""

    @property
    def acknowledged(self) -> int:
        return len(self.kept) + len(self.logged) + (self.last is not None) + 1


class Visitor:
    """One client: one request after the other, but for those that are meant to meet."""

    def __init__(self, world: World, number: int, seed: str) -> None:
        self.world = world
        self.tally = world.tally
        self.random = random.Random(f"{seed}/{number}")
        self.is_strict = number % 4 == 3
        """On the app that raises at each conflict, and so without requests that go on while the next is sent."""
        self.name = f"v{number}"
        self.known: Known | None = None
        self.dead: deque[str] = deque(maxlen=_DEAD)
        self.tokens = 0
        self.acts: dict[Callable[[], Coroutine[Any, Any, object]], int] = {
            self.show: 15,
            self.write: 20,
            self.apply: 20,
            self.meet: 0 if self.is_strict else 15,
            self.race: 0 if self.is_strict else 6,
            self.renew: 8,
            self.log_in_anew: 5,
            self.log_out: 5,
            self.knock: 10,
        }

    async def live(self) -> None:
        """Act at random until the world stops, then look at everything once more."""
        while not self.world.stopping:
            await asyncio.sleep(self.random.uniform(0, 2 * self.world.think))
            if self.known is None:
                await self.log_in()
            elif self.known.may_be_over:
                await self.log_out()
            else:
                (act,) = self.random.choices(list(self.acts), list(self.acts.values()))
                await act()
        if self.known is not None:
            await self.insist(self.show)
        while self.dead:
            await self.insist(self.knock)

    async def insist(self, act: Callable[[], Coroutine[Any, Any, Answer]]) -> None:
        """Act until it is answered 200, as nothing is broken any more."""
        try:
            async with asyncio.timeout(GIVE_UP):
                while not (await act()).is_acknowledged:
                    await asyncio.sleep(0.1)
        except TimeoutError:
            self.find("unserved", "is not served any more, though nothing is broken")
            self.dead.clear()

    # What a visitor does.

    async def log_in(self) -> None:
        answer = await self.ask("login", None)
        if answer.is_acknowledged and answer.cookie:
            self.known = Known(answer.cookie, answer.sent)
        elif answer.is_acknowledged:
            self.find("errors", "logged in, and was given no cookie")

    async def log_in_anew(self) -> None:
        await self._change_cookie("login")

    async def renew(self) -> None:
        await self._change_cookie("renew")

    async def show(self) -> Answer:
        return await self._visit("show")

    async def write(self) -> None:
        known, token = self._here(), self._token()
        old, known.kept = known.kept[:-_KEYS], known.kept[-_KEYS:]
        answer = await self._visit("write", token=token, old=old)
        if self.known is not known:
            return
        if answer.is_acknowledged:
            known.kept.append(token)
            known.last = token
            for other, (ended, goes_on) in list(known.unsure.items()):
                if not goes_on or ended + self.world.afterwards < answer.sent:  # its version is no more
                    del known.unsure[other]
        else:
            known.unsure[token] = time.monotonic(), answer.status is None

    async def apply(self) -> None:
        known, token = self._here(), self._token()
        if known.given_up + self.world.afterwards > time.monotonic():
            known.excused.add(token)
        answer = await self._visit("apply", token=token)
        if answer.status is None:
            known.excused.add(token)
        if self.known is known and answer.is_acknowledged:
            known.logged.append(token)

    async def meet(self) -> None:
        """Change different keys, or one by `apply`, in requests under way at once: both changes stay."""
        known = self._here()
        asked = [(self.random.choice(["part", "apply"]), self._token()) for _ in range(2)]
        known.excused |= {token for _, token in asked}
        answers = await asyncio.gather(*[self._visit(act, token=token) for act, token in asked])
        for (act, token), answer in zip(asked, answers, strict=True):
            if self.known is known and answer.is_acknowledged:
                (known.kept if act == "part" else known.logged).append(token)

    async def race(self) -> None:
        """End the session's id while another request writes to it: the write does not bring it back."""
        known, end = self._here(), self.random.choice([self.log_out, self.renew])
        await asyncio.gather(self.ask("part", known.cookie, token=self._token()), end())

    async def log_out(self) -> None:
        known = self._here()
        answer = await self.ask("logout", known.cookie)
        if answer.is_acknowledged:
            self._look(known, answer)
            self.known = None
            self.dead.append(known.cookie)
        else:
            known.may_be_over = True

    async def knock(self) -> Answer:
        """Try a cookie whose session was ended."""
        if not self.dead:
            return await self.show()
        cookie = self.dead.popleft()
        answer = await self.ask("show", cookie)
        if not answer.is_acknowledged:
            self.dead.append(cookie)
        elif answer.data:
            self.find("undone", f"the session of {cookie[:16]}… lives, though its end was acknowledged: {answer.data}")
        elif not self.world.stopping and self.random.random() < 0.5:
            self.dead.append(cookie)
        return answer

    async def _change_cookie(self, act: str) -> None:
        known = self._here()
        answer = await self.ask(act, known.cookie)
        if not answer.is_acknowledged:
            known.may_be_over = True
            return
        if act == "login":
            known = Known("", answer.sent)
        else:
            self._look(known, answer)
            if self.known is None:
                return
        if not answer.cookie:  # it ended between the request's reading and its writing
            self._judge_end(known, answer)
            return
        self.dead.append(self._here().cookie)
        self.known, known.cookie = known, answer.cookie
        # What is late from here on meets the old id.
        known.given_up, known.quiet = 0.0, True
        known.unsure = dict.fromkeys(known.unsure, (0.0, False))

    # How it asks, and how it looks at what it is shown.

    def _here(self) -> Known:
        assert self.known is not None
        return self.known

    def _token(self) -> int:
        self.tokens += 1
        return self.tokens

    def find(self, kind: str, what: str, times: int = 1) -> None:
        self.tally.find(kind, f"{self.name} {what}", times)

    async def _visit(self, act: str, **query: Any) -> Answer:
        known = self._here()
        answer = await self.ask(act, known.cookie, **query)
        if answer.is_acknowledged:
            known.quiet |= act != "show"
            self._look(known, answer)
        else:
            known.quiet = False
            if answer.status is None:
                known.given_up = time.monotonic()
        return answer

    async def ask(self, act: str, cookie: str | None, **query: Any) -> Answer:
        """Send one request, and count what comes of it."""
        self.tally.requests += 1
        nonce = self.random.randbytes(8).hex()
        url = self.world.url + ("/strict/" if self.is_strict else "/") + act
        headers = {hdrs.COOKIE: cookie} if cookie else {}
        patience = GIVE_UP if self.is_strict or self.world.stopping else self._patience()
        sent = time.monotonic()
        answer = Answer(act, None, {}, None, sent)
        try:
            async with (
                asyncio.timeout(patience),
                self.world.http.post(
                    url, params={"visitor": self.name, "nonce": nonce, **query}, headers=headers
                ) as response,
            ):
                body = await response.read()
                set_cookie = response.headers.get(hdrs.SET_COOKIE, "").partition(";")[0]
                answer = answer._replace(status=response.status, cookie=set_cookie or None)
                if response.status == 200:
                    self.tally.acknowledged += 1
                    shown = await response.json()
                    answer = answer._replace(data=shown["data"])
                    if shown["nonce"] != nonce or shown["data"].get("owner", self.name) != self.name:
                        self.find("foreign", f"asked {act} and was answered {shown}")
                elif response.status == 503:
                    self.tally.unavailable += 1
                elif response.status == 409 and self.is_strict and self.known and not self.known.quiet:
                    pass  # a write that was given up has come between
                elif response.status == 409:
                    self.find("conflicts", f"was answered 409 to {act} {query}")
                else:
                    self.find("errors", f"was answered {response.status} to {act}: {body[:200]!r}")
        except TimeoutError:
            if patience == GIVE_UP:
                self.find("unserved", f"got no answer to {act} within {GIVE_UP:g} s")
            else:
                self.tally.cancelled += 1
                return answer._replace(status=None)
        except ClientError as error:
            self.find("errors", f"had its connection dropped at {act}: {error!r}")
        self.tally.longest_wait = max(self.tally.longest_wait, time.monotonic() - sent)
        return answer

    def _patience(self) -> float:
        """Give the seconds after which the visitor goes away: most stay."""
        choice = self.random.random()
        if choice < 0.05:
            return self.random.uniform(0, 0.02)  # while the storage is asked, if it answers
        if choice < 0.1:
            return self.random.uniform(0, 2 * self.world.timeout)  # if it does not
        return GIVE_UP

    def _look(self, known: Known, answer: Answer) -> None:
        """Compare what the session was shown to hold with what it must hold."""
        data = answer.data
        if self.known is not known or data.get("owner", self.name) != self.name:
            return
        if not data:
            self._judge_end(known, answer)
            return
        known.seen = max(known.seen, answer.sent)
        self._look_for_lost(known, data)
        log = data.get("log", [])
        twice = {token for token in log if log.count(token) > 1} - known.excused - known.doubled
        if twice:
            known.doubled |= twice
            self.find("doubled", f"counted {twice} twice: {log[-10:]}", len(twice))

    def _look_for_lost(self, known: Known, data: dict[str, Any]) -> None:
        log = data.get("log", [])
        lost = [token for token in known.kept if f"w{token}" not in data]
        lost += [token for token in known.logged if token not in log]
        n = data.get("n")
        if n != known.last and n not in known.unsure:
            lost.append(known.last or 0)
            known.last = n
        if lost:
            known.kept = [token for token in known.kept if token not in lost]
            known.logged = deque([token for token in known.logged if token not in lost], _LOGGED)
            self.find("lost", f"misses {lost} of its acknowledged writes, and is shown {data}", len(lost))

    def _judge_end(self, known: Known, answer: Answer) -> None:
        """Tell why the session is gone."""
        self.known = None
        if known.may_be_over:
            return
        if self.world.last_kill >= known.seen:
            self.tally.ended += 1
        else:
            what = f"is shown no session after {answer.act}, and so lost {known.acknowledged} writes"
            self.find("lost", what, known.acknowledged)
