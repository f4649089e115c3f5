"""`cookie://`: sessions that travel in the cookie itself, sealed, so that no server keeps them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from aiohttp import hdrs, web

from .._log import log_once, log_throttled, logger
from ..codec import Codec, UndecodableError, UnknownFormatError
from ..cookie import MAX_SIZE, Cookie, CookieFinder, Secret
from ..errors import ConfigError, SessionTooLarge
from ..session import Duration, Session
from ..url import StorageURL
from .cookie_writer import CookieWriter
from .lifetimes import IDLE_TIMEOUT, Lifetimes
from .manager import checked_cookie, explain, one_that_lives
from .sealing import LEAST, Seal, new_id, pack, unpack
from .session_codec import SessionCodec
from .state import EXPOSED, RENEW, SAVE, End, SessionState, Snapshot, refuse
from .writing import OnConflict

__all__ = ["CookieOptions", "CookieSessionManager", "no_storage"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CookieOptions:
    """The parameters of `cookie://`."""

    compress: bool = False
    """Compress the data where that makes it smaller; the cookie's length then tells more of its content."""


class CookieSessionManager:
    """Keeps sessions in their cookies.

    Nothing is known of a session but what the request carries, so none can be ended elsewhere than in its browser, and
    of two requests at the same time the one that is answered last wins.
    """

    keeps_in_cookie = True

    def __init__(
        self,
        url: StorageURL,
        *,
        secret: Secret | None = None,
        cookie: Cookie | None = None,
        idle_timeout: Duration = IDLE_TIMEOUT,
        lifetime: Duration | None = None,
        on_conflict: OnConflict = "overwrite",
        codec: Codec | None = None,
    ) -> None:
        if url.hosts or url.path or url.user is not None or url.password is not None:
            raise ConfigError(
                f"{url} has parts that cookie:// does not use; write cookie:// or cookie://?compress=true"
            )
        self._compress = url.options(CookieOptions).compress
        if secret is None:
            raise ConfigError(
                "cookie:// needs secret=…, under which cookies are sealed; make one with secrets.token_urlsafe(32), "
                "and keep it, as all sessions end with it"
            )
        if on_conflict != "overwrite":
            raise ConfigError(
                f"on_conflict={on_conflict!r} contradicts cookie://, where no request sees what another one changed; "
                "leave it out, or use a storage on a server"
            )
        cookie = checked_cookie(cookie)
        self.present: Callable[[SessionState], Session] = Session
        self.codec = SessionCodec(codec)
        self.lifetimes = Lifetimes(idle_timeout, lifetime)
        self._seal = Seal(cookie.name, secret)
        self._finder = CookieFinder(cookie.name, rf"([A-Za-z0-9_-]{{{LEAST},{MAX_SIZE}}})")
        self.cookies = CookieWriter(cookie, self._finder, _value_of, self.lifetimes, holds_data=True)
        _warn(is_compressing=self._compress)

    @property
    def cookie(self) -> Cookie:
        """What the browser keeps."""
        return self.cookies.cookie

    def now(self) -> float:
        """Return the seconds since the epoch."""
        return self.lifetimes.clock()

    async def open(self) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        """There is nothing to close."""

    # The way in.

    async def load(self, request: web.BaseRequest) -> SessionState:
        """Return the session that the request carries, or a new one."""
        found = self._carried_by(request)
        state = one_that_lives(found, self.cookie) or SessionState(self, {}, None)
        if state.snapshot is None:
            explain(request, self._finder, found)
        return state

    async def new(self, request: web.BaseRequest, old: SessionState | None) -> SessionState:
        """Return an empty session, which takes the place of the request's old one in the browser."""
        ends = [End(one.snapshot.key) for one in self._carried_by(request) if one.snapshot is not None]
        if old is not None:
            old.end()
            old.abandon()
        return SessionState(self, {}, None).in_place_of(ends)

    def _carried_by(self, request: web.BaseRequest) -> list[SessionState]:
        values = self._finder.found_in(request.headers.getall(hdrs.COOKIE, ()))
        return [self._read(value) for value in values]

    def _read(self, value: str) -> SessionState:
        """Make the session of a cookie; a new one, if it is not one of ours or its time is over."""
        opened = self._seal.open(value)
        if opened is None:
            return SessionState(self, {}, None)
        content, is_stale = opened
        try:
            session_id, envelope = unpack(content)
            data = self.codec.decode(envelope.payload)
        except (UndecodableError, UnknownFormatError) as error:
            what = "a session in a cookie cannot be read, and is taken for none: %s"
            log_throttled(logger.warning, what, error, about=self)
            is_foreign = isinstance(error, UnknownFormatError)
            return self._absent(f"its session is {'of another format' if is_foreign else 'damaged'}")
        now = self.lifetimes.clock()
        if now >= self.lifetimes.ends(envelope):
            return self._absent("its session has expired")
        if self.lifetimes.believed(envelope, now) is not envelope:
            return self._absent("its session is of the future")  # a copy would be believed again and again
        state = SessionState(self, data, Snapshot(session_id, session_id, value.encode(), envelope))
        if is_stale:
            state.ask(SAVE)
        else:
            state.clean_until = self.lifetimes.clean_until(envelope, now)
        return state

    def _absent(self, absence: str) -> SessionState:
        state = SessionState(self, {}, None)
        state.absence = absence
        return state

    # The way out.

    async def save(self, request: web.BaseRequest, response: web.StreamResponse, state: SessionState) -> None:  # noqa: ARG002  (what is written is the cookie)
        """Seal what became of the session.

        Raises:
            SessionTooLarge: a cookie cannot hold it.
            RuntimeError: it was changed after the headers were sent.
            TypeError: the data holds a value that JSON cannot hold.
        """
        if not state.request.headers_sent:
            is_exposed = state.dirty & EXPOSED
            self._write(state)
            if not is_exposed:
                self.lifetimes.rest(state)
        elif self.codec.is_changed(state, self.lifetimes):
            refuse()

    def answer(self, request: web.BaseRequest, response: web.StreamResponse, state: SessionState) -> None:
        """Send the session."""
        self.cookies.answer(request, response, state)

    def is_changed(self, state: SessionState) -> bool:
        """Whether the browser is to hear of anything that the handler did, saved or not."""
        return state.held is not state.snapshot or self.codec.is_changed(state, self.lifetimes)

    async def commit(self, state: SessionState) -> None:
        """Seal the session as it is now; it is sent with the headers.

        Raises:
            SessionTooLarge, TypeError: as in `save`.
        """
        state.ask(SAVE)
        self._write(state)

    async def apply(self, state: SessionState, change: Callable[[SessionState], T]) -> T:
        """Run `change`, once, on what the request carried, as there is nothing newer; then seal."""
        before, fork = map(state.fork, self.codec.copies(state.data))
        result = fork.changed_by(change)
        self._write(fork)
        if fork.is_gone:
            state.lose(0)
        else:
            state.adopt(before, fork, fork.snapshot)
        return result

    async def reload(self, state: SessionState) -> None:
        """Go back to what the request carried, or was sealed since."""
        snapshot = state.snapshot
        if state.is_gone or snapshot is None:
            state.drop_changes()
        elif self.lifetimes.is_over(snapshot.envelope):
            state.lose(0)
        else:
            asked = state.asked
            state.read_again(SessionState(self, self.codec.decode(snapshot.envelope.payload), snapshot))
            if SAVE in asked:  # as for a cookie that an older secret has sealed
                state.ask(SAVE)

    def _write(self, state: SessionState) -> None:
        """Seal what the session holds, if the browser does not hold it yet."""
        for end in state.ends:
            if end.key is not None:
                logger.info("session %s ended in its browser", end.key[:8])
        snapshot, draft, asked = state.snapshot, self.codec.draft(state, self.lifetimes), len(state.asked)
        if draft is None:
            state.settle(asked, snapshot)
        elif snapshot is not None and self.lifetimes.is_over(snapshot.envelope):
            state.lose(asked)  # its time ended while a long request used it
        elif draft:
            try:
                sealed = self._sealed(state, snapshot, draft)
            except SessionTooLarge as error:
                if snapshot is None or draft != snapshot.envelope.payload or RENEW in state.asked:
                    raise
                # It was only read; what compressed better when it was sealed stays as it is until its time is over.
                log_throttled(logger.warning, "a session is not prolonged: %s", error, about=self)
            else:
                state.settle(asked, sealed)
        else:
            assert snapshot is not None  # it is empty, and was not
            logger.info("session %s ended in its browser, as it was emptied", snapshot.id[:8])
            state.settle(asked, None)

    def _sealed(self, state: SessionState, snapshot: Snapshot | None, draft: bytes) -> Snapshot:
        if snapshot is None or RENEW in state.asked:
            session_id, envelope = new_id(), self.lifetimes.first(state, draft)
        else:
            session_id, envelope = (
                snapshot.id,
                self.lifetimes.next(state, snapshot.envelope, draft, self.lifetimes.clock()),
            )
        value = self._seal.close(pack(session_id, envelope, is_compressed=self._compress))
        size = len(self.cookie.name) + len(value)
        if size > MAX_SIZE:
            where = f"the cookie {self.cookie.name!r} (name and sealed value; the data alone takes {len(draft)})"
            raise SessionTooLarge(size, MAX_SIZE, where)
        if snapshot is None:
            logger.info("session %s created", session_id[:8])
        elif snapshot.id != session_id:
            logger.info("session %s renewed as %s", snapshot.id[:8], session_id[:8])
        return Snapshot(session_id, session_id, value.encode(), envelope)


def _value_of(snapshot: Snapshot) -> str:
    return snapshot.version.decode()


def no_storage(url: StorageURL) -> NoReturn:
    """Say that nothing can be opened here.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(f"{url} is no storage, as each browser keeps its own session; give the URL to setup()")


def _warn(*, is_compressing: bool) -> None:
    log_once(
        logger.warning,
        "cookie:// keeps no session on a server: a logout clears the cookie in one browser, and a copy of it works "
        "until its idle timeout, or as long as it is used where no lifetime= is set; and of two requests at the same "
        "time, the one that is answered last overwrites the other's changes. Use a storage on a server where that "
        "matters",
    )
    if is_compressing:
        log_once(
            logger.warning,
            "cookie://?compress=true: the cookie's length tells how well the session compresses, so who watches it and "
            "can put text into the session can guess a secret in it; leave it out where a session holds both",
        )
