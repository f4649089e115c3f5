"""Sessions in a storage: how they are found for a request, and saved at its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypedDict, TypeVar, cast

from aiohttp import web

from .._log import log_throttled, logger
from ..codec import Codec, TombstoneError, UndecodableError, UnknownFormatError, unpack_envelope
from ..cookie import Cookie, CookieFinder, CookieReader, PresentedId, Secret
from ..errors import ConfigError, StorageRefused, StorageUnavailable
from ..session import Duration, Session
from ..storage import Record, Storage, Write
from .access import Background, StorageAccess
from .batching import Batcher
from .cookie_writer import CookieWriter
from .lifetimes import IDLE_TIMEOUT, Lifetimes
from .session_codec import SessionCodec
from .state import SAVE, End, SessionState, Snapshot
from .writing import OnConflict, SessionWriter

__all__ = ["Options", "StorageSessionManager", "Takeover", "checked_cookie", "explain", "one_that_lives"]

T = TypeVar("T")


class Options(TypedDict, total=False):
    """The keywords of `setup` and of `session_middleware`."""

    secret: Secret | None
    """What signs the cookie, 32 bytes or more, as from `secrets.token_urlsafe(32)`; by default nothing does.

    Of a list the first signs, and all are accepted. `cookie://` needs one, and seals the session with it.
    """
    cookie: Cookie | None
    """How the browser keeps the id; a `Cookie()` by default."""
    idle_timeout: Duration
    """Seconds or `timedelta` of disuse after which a session ends, up to a twentieth early; a day by default."""
    lifetime: Duration | None
    """Seconds or `timedelta` after which a session ends, however busy it is; `None`, the default, sets no bound."""
    on_conflict: OnConflict | None
    """What to do if another request has changed the session since it was loaded.

    `"merge"` merges both changes key by key; `"overwrite"` lets the last one win; `"raise"` raises `SessionConflict`,
    which becomes a 409. `None`, the default, is `"merge"`, and under `cookie://`, where nothing else is possible,
    `"overwrite"`.
    """
    codec: Codec | None
    """Anything with `dumps` and `loads`; JSON by default."""


class Takeover(Protocol):
    """Sessions of another library that become ours one by one."""

    def watch(self, request: web.BaseRequest, state: SessionState) -> None:
        """Remember which old cookie must not bring back what ends here."""

    async def adopt(self, request: web.BaseRequest, state: SessionState) -> PresentedId | None:
        """Return the id of the session that has taken the place of the one in the request's old cookie."""

    async def supersede(self, request: web.BaseRequest, state: SessionState) -> None:
        """End what the old cookie names beside a live session of ours, and have that cookie removed."""

    async def forget(self, state: SessionState) -> str | None:
        """End what the old cookie of a session's request could bring back; return the key of its successor."""

    def answer(self, request: web.BaseRequest, response: web.StreamResponse, state: SessionState) -> None:
        """Remove the old cookie from the browser."""


class StorageSessionManager:
    """Keeps sessions in a storage, and only their ids in cookies."""

    keeps_in_cookie = False

    def __init__(
        self,
        storage: Storage,
        *,
        secret: Secret | None = None,
        cookie: Cookie | None = None,
        idle_timeout: Duration = IDLE_TIMEOUT,
        lifetime: Duration | None = None,
        on_conflict: OnConflict = "merge",
        codec: Codec | None = None,
    ) -> None:
        if on_conflict not in ("merge", "overwrite", "raise"):
            raise ConfigError(f"on_conflict={on_conflict!r} must be 'merge', 'overwrite' or 'raise'")
        cookie = checked_cookie(cookie)
        self.storage = storage
        self.present: Callable[[SessionState], Session] = Session
        self.codec = SessionCodec(codec)
        self.lifetimes = Lifetimes(idle_timeout, lifetime)
        self.access = StorageAccess(storage)
        self.background = Background()
        self._reader = CookieReader(cookie.name, secret)
        self.cookies = CookieWriter(cookie, self._reader, self._value_of, self.lifetimes)
        self._batcher = Batcher(storage, self._read, self._finish)
        self.writer = SessionWriter(
            self.access,
            self._batcher,
            self.codec,
            self.lifetimes,
            self.background,
            cookie_name=cookie.name,
            on_conflict=on_conflict,
        )
        self._takeover: Takeover | None = None

    @property
    def cookie(self) -> Cookie:
        """What the browser keeps."""
        return self.cookies.cookie

    def now(self) -> float:
        """Return the seconds since the epoch."""
        return self.lifetimes.clock()

    def take_over(self, takeover: Takeover) -> None:
        """Look for a session of another library where a request has none of ours."""
        self._takeover = self.writer.takeover = takeover

    async def open(self) -> None:
        """Open the storage, once."""
        await self.access.open()

    async def check(self) -> None:
        """See whether the storage serves; a server that does not answer may serve later.

        Raises:
            StorageRefused: it answers, and will not serve.
        """
        try:
            async with self.access.budget():
                await self.storage.check()
        except StorageRefused:
            raise
        except StorageUnavailable as error:
            logger.warning("not checked, as it does not answer: %s", error)

    async def close(self) -> None:
        """Finish the saves that are under way, then close the storage: within six of its `timeout`.

        Two pass at most until those saves and what they leave to be removed have had their budgets,
        one until every batch has been answered or is stopped, and three until the storage is closed or given up.
        """
        await self.background.finish()
        await self._batcher.finish(self.storage.timeout)
        await self.access.close()

    # The way in.

    def load(self, request: web.BaseRequest) -> Awaitable[SessionState]:
        """Return the session of the request's cookie, or a new one; ids that are not stored are never adopted.

        Raises:
            StorageUnavailable: the storage did not answer in time.
        """
        presented = self._reader.read(request.headers)
        if len(presented) == 1 and self.access.is_open and self._takeover is None:
            return self._batcher.load(presented[0].key, presented[0])
        return self._load_one_of(request, presented)

    async def _load_one_of(self, request: web.BaseRequest, presented: Sequence[PresentedId]) -> SessionState:
        """Return the session of the one cookie whose session lives."""
        if not presented and self._takeover is None:
            explain(request, self._reader, [])
            return self._new_session()
        async with self.access.budget():  # the bare middleware opens its storage at the first use
            found = await asyncio.gather(*[self._batcher.load(one.key, one) for one in presented])
            state = one_that_lives(found, self.cookie) or self._new_session()
            state.presented = tuple(end for one in found if one is not state for end in one.own_and_presented)
            if self._takeover is not None:
                if state.snapshot is not None:
                    await self._takeover.supersede(request, state)
                    return state
                if (successor := await self._takeover.adopt(request, state)) is not None:
                    state = await self._batcher.load(successor.key, successor)
                    state.be_unknown_to_browser()
                self._takeover.watch(request, state)
            if state.snapshot is None and (len(presented) != 1 or self._takeover is not None):
                explain(request, self._reader, found)
            return state

    def _new_session(self) -> SessionState:
        return SessionState(self, {}, None)

    def _absent(self, presented: PresentedId, absence: str, *ends: End) -> SessionState:
        """Return a new session in the place of one that is not there, and say why at DEBUG; a logout `ends` these."""
        if presented.is_only and self._takeover is None:
            logger.debug("a request has no session: %s", absence)
        state = self._new_session()
        state.absence, state.presented = absence, ends
        return state

    async def new(self, request: web.BaseRequest, old: SessionState | None) -> SessionState:
        """Return an empty session that, when it is saved, ends the request's old one, loaded or not."""
        ends = [End(one.key) for one in self._reader.read(request.headers)]
        if old is not None:
            old.end()
            ends += old.ends
            old.abandon()
        state = self._new_session().in_place_of(ends)
        if self._takeover is not None:
            self._takeover.watch(request, state)
        return state

    def _read(self, presented: PresentedId, record: Record | None) -> SessionState:
        """Make the session of a record; a new one, if there is none that can be read and whose time is not over."""
        if record is None:
            return self._absent(presented, "its session is not stored: it has ended, or never began")
        session_id, key, is_stale, _ = presented
        version, encoded = record
        try:
            envelope = unpack_envelope(encoded)
            data = self.codec.decode(envelope.payload)
        except TombstoneError as renewed:
            return self._absent(presented, "its session has been renewed, and has another id", End(renewed.successor))
        except UnknownFormatError as error:
            log_throttled(logger.warning, "session %s is left alone: %s", key[:8], error, about=self.storage)
            return self._absent(presented, "its session is of another format", End(key, version))
        except UndecodableError as error:
            log_throttled(logger.warning, "session %s is removed: %s", key[:8], error, about=self.storage)
            self.background.spawn(self._remove_damaged(key, version))
            return self._absent(presented, "its session is damaged", End(key, version))
        now = self.lifetimes.clock()
        if now >= self.lifetimes.ends(envelope):
            return self._absent(presented, "its session has expired", End(key, version))
        believed = self.lifetimes.believed(envelope, now)
        state = SessionState(self, data, Snapshot(session_id, key, version, believed))
        if is_stale:
            state.be_unknown_to_browser()
        elif believed is envelope:
            state.clean_until = self.lifetimes.clean_until(envelope, now)
        if believed is not envelope:
            state.ask(SAVE)
        return state

    async def _remove_damaged(self, key: str, version: bytes) -> None:
        try:
            await self._batcher.save(Write(key, version, None, 1))
        except Exception as error:  # noqa: BLE001  (housekeeping: the record's time will end)
            logger.debug("session %s is damaged, and was not removed: %s", key[:8], error)

    # The way out.

    def save(
        self,
        request: web.BaseRequest,  # noqa: ARG002  (nothing of it is stored)
        response: web.StreamResponse,  # noqa: ARG002  (likewise)
        state: SessionState,
    ) -> Awaitable[None]:
        """Store what became of the session.

        Raises:
            SessionConflict, SessionTooLarge, StorageUnavailable: see `Session.save`.
            TypeError: the data holds a value that JSON cannot hold.
        """
        return self.writer.save(state)

    def answer(self, request: web.BaseRequest, response: web.StreamResponse, state: SessionState) -> None:
        """Say in the response's headers what the browser must know."""
        self.cookies.answer(request, response, state)
        if self._takeover is not None:
            self._takeover.answer(request, response, state)

    def is_changed(self, state: SessionState) -> bool:
        """Whether the handler changed the session, or asked for its end or renewal."""
        return self.codec.is_changed(state, self.lifetimes)

    async def commit(self, state: SessionState) -> None:
        """Make the storage hold what the session holds, whatever others did to it meanwhile, by a write in any case.

        If another deleted the record, the session is marked as gone and its changes are dropped.

        Raises:
            SessionConflict, SessionTooLarge, StorageUnavailable, RuntimeError, TypeError: see `Session.save`.
        """
        state.ask(SAVE)
        await self.background.shield(self.writer.write(state))

    async def apply(self, state: SessionState, change: Callable[[SessionState], T]) -> T:
        """Run `change`, again after each conflict, until what it made is stored."""
        result = await self.background.shield(self.writer.write(state, change))
        return cast("T", result)

    async def reload(self, state: SessionState) -> None:
        """Read the record again and drop what was not saved."""
        async with self.access.budget(), self.writer.locks.hold(id(state)):
            if state.is_gone or state.snapshot is None:
                state.drop_changes()
            elif (read := await self.writer.read_again(state)) is not None:
                state.read_again(read)

    def _finish(self, state: SessionState, outcome: Any) -> None:
        self.writer.take_over(state, outcome)

    def _value_of(self, snapshot: Snapshot) -> str:
        return self._reader.value(snapshot.id)


def checked_cookie(cookie: Cookie | None) -> Cookie:
    """Return the cookie's settings.

    Raises:
        ConfigError: they are of another type.
    """
    cookie = Cookie() if cookie is None else cookie
    if not isinstance(cookie, Cookie):
        raise ConfigError(f"cookie={cookie!r} must be a Cookie, as Cookie(name='session', samesite='Lax')")
    return cookie


def explain(request: web.BaseRequest, finder: CookieFinder, found: Sequence[SessionState]) -> None:
    """Say at DEBUG why a request has no session.

    Args:
        request: it may carry cookies.
        finder: looks for them.
        found: what their sessions are.
    """
    if logger.isEnabledFor(logging.DEBUG):
        live = sum(state.snapshot is not None for state in found)
        why = " and ".join(dict.fromkeys(state.absence for state in found if state.absence))
        if live > 1:
            why = f"it carries {live} live ones in cookies {finder.name!r}"
        logger.debug("a request has no session: %s", why or finder.why_none(request.headers))


def one_that_lives(found: Sequence[SessionState], cookie: Cookie) -> SessionState | None:
    """Return the session that lives of those whose cookies a request carried, if it is one."""
    live = [state for state in found if state.snapshot is not None]
    if len(live) > 1:
        log_throttled(
            logger.warning,
            "a request carried %d live sessions in cookies %r; it is treated as anonymous. A sibling domain may "
            "have set one of them, which a name that begins with __Host- prevents",
            len(live),
            cookie.name,
            about=cookie.name,
        )
    return live[0] if len(live) == 1 else None
