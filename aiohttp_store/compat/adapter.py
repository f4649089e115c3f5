"""Storages written for aiohttp-session, at the seam below the middleware."""

from __future__ import annotations

import asyncio
import copy
import time
import weakref
from collections.abc import Callable, Collection, Coroutine, MutableMapping
from typing import Any, TypeVar, cast

from aiohttp import hdrs, web

from .. import compat
from .._caching import add_vary, forbid_caching
from .._engine.state import SessionState
from .._lifecycle.middleware import get_session
from .._lifecycle.request_state import REQUEST_STATE, RequestState
from .._log import log_throttled, logger
from ..cookie import Cookie
from ..errors import ConfigError, StorageUnavailable
from ..session import Session as OurSession
from .kept import Kept
from .session import Session, StoredSession, kept_of, with_state

__all__ = ["AiohttpSessionAdapter", "adopted", "make_session", "put"]

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds within which a storage must answer; drivers try again within that."""


class AiohttpSessionAdapter:
    """Keeps sessions in a storage that has `load_session` and `save_session`, and its own cookie.

    Such a storage knows no versions: of two requests that write at the same time the last wins.
    """

    keeps_in_cookie = False

    def __init__(self, storage: Any, options: Collection[str]) -> None:
        if options:
            raise ConfigError(
                f"setup() takes no {', '.join(options)} with a {type(storage).__name__}: storages written for "
                "aiohttp-session have their cookie and times from arguments of their own"
            )
        self.storage = storage
        attributes = getattr(storage, "cookie_params", {})
        self.cookie = Cookie(
            name=getattr(storage, "cookie_name", None) or f"of-storage-{id(storage)}",  # one that has no cookie
            path=attributes.get("path") or "/",
            domain=attributes.get("domain") or None,
        )
        self._tasks: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Do nothing: its client is the app's."""

    async def close(self) -> None:
        """Let what is under way end, within the time that the storage has to answer."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=PATIENCE)

    def now(self) -> float:
        """Return the seconds since the epoch."""
        return time.time()

    def present(self, kept: Kept) -> Session:
        """Return the session that the storage made, and put it where libraries look for it."""
        session, request = _session_of(kept), _request_of(kept)
        kept.presented = weakref.ref(session)  # the request holds it
        put(request, compat.SESSION_KEY, session)
        put(request, compat.STORAGE_KEY, self.storage)
        return session

    async def load(self, request: web.BaseRequest) -> Kept:
        """Return the session of the request, or the one that a test has put there.

        Raises:
            StorageUnavailable: the storage did not answer in time, or could not reach its server.
            RuntimeError: it gave no session.
        """
        preset: Any = request.get(compat.SESSION_KEY)
        if issubclass(type(preset), Session) and kept_of(preset).manager is None:
            return self._keep(request, preset)
        return self._keep(request, await self._read(request))

    async def new(self, request: web.BaseRequest, old: Kept | None) -> Kept:
        """Return an empty session; the old one's record is emptied when it is saved, loaded or not."""
        ended = self._keep(request, await self._read(request)) if old is None else old
        make = getattr(self.storage, "new_session", None)
        session = Session(None, data=None, new=True) if make is None else adopted(self.storage, await self._ask(make()))
        kept = self._keep(request, session)
        ended.begin_anew()
        kept.ended, ended.ended = ended.ended, ()
        ended.is_gone = True
        return kept

    async def save(self, request: web.BaseRequest, response: web.StreamResponse, kept: Kept) -> None:
        """Let the storage save the session if it has changed.

        Raises:
            StorageUnavailable: the storage did not answer in time, or could not reach its server.
            RuntimeError: the headers are sent, and the storage keeps the data in the cookie.
        """
        if self.is_changed(kept):
            await self._write(request, response, _session_of(kept))

    def answer(self, _request: web.BaseRequest, response: web.StreamResponse, _kept: Kept) -> None:
        """Say that the response depends on the cookie, which the storage has set."""
        add_vary(response.headers)

    def is_changed(self, kept: Kept) -> bool:
        """Whether there is anything to save: nested changes count, and an empty new session does not."""
        if kept.is_gone:
            return False
        return bool(kept.ended) or (kept.is_something and (kept.is_changed or repr(kept.data) != kept.image))

    async def commit(self, kept: Kept) -> None:
        """Save now; a cookie that this needs is set at the end, when the session is saved again."""
        if not kept.is_gone:
            await self._commit(_session_of(kept))

    async def _commit(self, session: Session) -> None:
        kept = kept_of(session)
        ended = kept.ended
        await self._write(_request_of(kept), web.Response(), session)
        kept.is_changed = not kept.request.headers_sent
        if kept.is_changed and (None in ended or not kept.is_something):
            kept.ended = ended  # whose cookie is to be cleared in the response

    async def reload(self, kept: Kept) -> None:
        """Read the session again, as the request's cookie names it."""
        # The storage can only be asked by the request's cookie.
        if kept.is_gone or kept.ended or kept.has_ended or kept.kept_under != kept.loaded_under:
            return
        read = kept_of(await self._read(_request_of(kept)))
        if kept.kept_under is not None and read.kept_under != kept.kept_under:
            kept.is_gone = True
            return
        kept.data, kept.created, kept.is_changed = read.data, read.created, False
        kept.image = repr(kept.data)

    async def apply(self, kept: Kept, change: Callable[[Kept], T]) -> T:
        """Run `change` once on a copy and save that: such a storage cannot tell who else has written."""
        async with kept.lock:
            if kept.is_gone:
                return cast("T", None)
            before, fork = kept.fork(), kept.fork()
            result = change(fork)
            if asyncio.iscoroutine(result):
                result.close()
                raise TypeError("apply() runs a plain function, and this one is async: await before apply()")
            fork.is_changed = True
            await self._commit(with_state(_session_of(kept), fork))
            if fork.is_gone:
                kept.is_gone = True
            else:
                kept.adopt(before, fork)
        return result

    def _keep(self, request: web.BaseRequest, session: Session) -> Kept:
        """Make a session that of a request; if the storage gave it to another before, as from a cache, a copy of it."""
        kept = kept_of(session)
        if kept.manager is not None:
            known = {"identity": kept.identity, "kept_under": kept.kept_under, "is_new": not kept.data}
            kept = Kept(data=copy.deepcopy(kept.data), created=kept.created, max_age=kept.max_age, **known)
            session = with_state(session, kept)
        elif not kept.is_new:
            kept.kept_under = kept.identity
        kept.loaded_under = kept.kept_under
        kept.manager, kept.loaded_for = self, _apart(request)
        kept.image = repr(kept.data)
        kept.presented = lambda: session  # until the request holds it
        return kept

    async def _read(self, request: web.BaseRequest) -> Session:
        try:
            return adopted(self.storage, await self._ask(self.storage.load_session(request)))
        except (ValueError, LookupError) as error:
            name, reason = type(self.storage).__name__, type(error).__name__
            what = "a %s could not read a session (%s); its visitor is anonymous"
            log_throttled(logger.warning, what, name, reason, about=self.storage)
            return Session(None, data=None, new=True)

    async def _write(self, request: web.BaseRequest, response: web.StreamResponse, session: Session) -> None:
        kept = kept_of(session)
        before = response.cookies.output()
        has_records = None not in kept.ended  # else the cookie holds the data, and is one and the same
        if not (has_records and kept.is_something):
            await self._end(request, response, kept)
        self._learn_identity(response, kept)  # where the handler has saved it by hand
        if kept.is_something:
            kept.created = int(time.time())
            await self._ask(self.storage.save_session(request, response, session))
            sent = response.cookies.get(self.cookie.name)
            if kept.request.headers_sent and sent is not None and sent.value and sent.value != str(kept.identity):
                raise RuntimeError(
                    "the session is kept in its cookie and was changed after the response's headers were sent; "
                    "change it before `await response.prepare(request)`"
                )
            self._learn_identity(response, kept)
        # After the new record is stored, so that an outage between the two loses nothing.
        await self._end(request, web.Response(), kept)
        kept.is_changed, kept.image = False, repr(kept.data)
        if response.cookies.output() != before:
            _tell(response)

    async def _end(self, request: web.BaseRequest, response: web.StreamResponse, kept: Kept) -> None:
        """Empty the records of ids that are not to be used again."""
        while kept.ended:
            ended = Session(kept.ended[0], data=None, new=False, max_age=kept.max_age)
            await self._ask(self.storage.save_session(request, response, ended))
            kept.ended = kept.ended[1:]

    def _learn_identity(self, response: web.StreamResponse, kept: Kept) -> None:
        """Read from the cookie under which id a new session is stored, so that no second one is drawn for it."""
        cookie = response.cookies.get(self.cookie.name)
        if kept.identity is None and cookie is not None and cookie.value:
            kept.identity = kept.kept_under = cookie.value

    async def _ask(self, call: Coroutine[Any, Any, T]) -> T:
        """Wait for the storage, but never cancel it: what a driver was waiting for may reach the next visitor."""
        task = asyncio.get_running_loop().create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait({task}, timeout=PATIENCE)
        if not done:
            raise StorageUnavailable(f"{type(self.storage).__name__} did not answer within {PATIENCE:g} s")
        try:
            return task.result()
        except (OSError, EOFError) as error:
            raise StorageUnavailable(f"{type(self.storage).__name__} failed: {error!r}") from error

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("%s failed: %r", type(self.storage).__name__, error)


def adopted(storage: Any, session: Any) -> Session:
    """Give what a storage made as a session of ours, also where it uses the real aiohttp-session.

    Raises:
        RuntimeError: it is no session.
    """
    if issubclass(type(session), Session):
        return cast("Session", session)
    if not isinstance(session, MutableMapping) or not hasattr(session, "_mapping"):
        raise RuntimeError(f"{type(storage).__name__} must give a Session, and gave {session!r}")
    theirs: Any = session
    data = {"created": theirs.created, "session": theirs._mapping}  # noqa: SLF001  (as their storages do)
    return Session(theirs.identity, data=cast("Any", data), new=theirs.new, max_age=theirs.max_age)


def put(request: web.BaseRequest, name: str, value: object) -> None:
    """Put something into the request under a string, past aiohttp's warning: others read it by this name."""
    request._state[name] = value  # noqa: SLF001  (aiohttp has no other way)


def _session_of(kept: Kept) -> Session:
    session = kept.presented()
    assert session is not None  # its owner holds it
    return session


def _request_of(kept: Kept) -> web.BaseRequest:
    """Return the request that a session is for, or a copy of it once that has ended."""
    visit = kept.request
    current = (visit.request or visit.received) if isinstance(visit, RequestState) else None
    return cast("web.BaseRequest", kept.loaded_for) if current is None else current


def _apart(request: web.BaseRequest) -> web.BaseRequest:
    """Return a copy of a request without its session, so that the session can have it without being its own owner."""
    apart = copy.copy(request)
    without = (REQUEST_STATE, compat.SESSION_KEY)
    apart._state = {key: value for key, value in request._state.items() if key not in without}  # noqa: SLF001  (likewise)
    return apart


def make_session(state: SessionState) -> StoredSession:
    """Return one of our own sessions, and put it where libraries look for aiohttp-session's, and for its storage."""
    session, visit = StoredSession(state), state.request
    if isinstance(visit, RequestState) and visit.received is not None:
        request = visit.request or visit.received
        put(request, compat.SESSION_KEY, session)
        put(request, compat.STORAGE_KEY, StoredSessions(visit.manager.cookie))
    return session


class StoredSessions:
    """What libraries find as the storage of our own sessions, for those that save by hand."""

    max_age = None

    def __init__(self, cookie: Cookie) -> None:
        self.cookie_name = cookie.name

    async def load_session(self, request: web.Request) -> OurSession:
        """Return the request's session."""
        return await get_session(request)

    async def save_session(
        self,
        request: web.Request,
        response: web.StreamResponse,
        session: OurSession,
    ) -> None:
        """Store the session now."""
        await session.save()


def _tell(response: web.StreamResponse) -> None:
    """Let no cache keep the response; and where its headers have been made of its cookies already, add the new."""
    forbid_caching(response.headers)
    if response.prepared:
        for cookie in response.cookies.values():
            text = cookie.OutputString()
            if text not in response.headers.getall(hdrs.SET_COOKIE, ()):
                response.headers.add(hdrs.SET_COOKIE, text)
