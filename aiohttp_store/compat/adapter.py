"""Storages written for aiohttp-session, at the seam below the middleware."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, MutableMapping
from typing import Any, TypeVar, cast

from aiohttp import hdrs, web

from .. import compat
from .._engine.manager import Options
from .._log import log_throttled, logger
from ..cookie import Cookie, add_vary, forbid_caching
from ..errors import ConfigError, StorageUnavailable
from ..session import Session as OurSession
from ..session import SessionManager
from .session import Session, StoredSession

__all__ = ["AiohttpSessionAdapter", "adopted", "put", "show_sessions_of"]

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds within which a storage must answer; drivers try again within that."""


class AiohttpSessionAdapter:
    """Keeps sessions in a storage that has `load_session` and `save_session`, and its own cookie.

    Such a storage knows no versions: of two requests that write at the same time the last wins.
    """

    keeps_in_cookie = False

    def __init__(self, storage: Any, options: Options) -> None:
        if options:
            raise ConfigError(
                f"setup() takes no {', '.join(options)} with a {type(storage).__name__}: storages written for "
                "aiohttp-session have their cookie and times from arguments of their own"
            )
        self.storage = storage
        self.clock: Callable[[], float] = time.time
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

    async def load(self, request: web.BaseRequest) -> OurSession:
        """Give the session of the request, or the one that a test has put there.

        Raises:
            StorageUnavailable: the storage did not answer in time, or could not reach its server.
            RuntimeError: it gave no session.
        """
        preset: Any = request.get(compat.SESSION_KEY)
        if issubclass(type(preset), Session) and not hasattr(preset, "_manager"):
            return self._keep(request, preset)
        return self._keep(request, await self._read(request))

    async def new(self, request: web.BaseRequest, old: OurSession | None) -> OurSession:
        """Give an empty session; the old one's record is emptied when it is saved, loaded or not."""
        ended = await self._read(request) if old is None else cast("Session", old)
        make = getattr(self.storage, "new_session", None)
        session = Session(None, data=None, new=True) if make is None else adopted(self.storage, await self._ask(make()))
        ended._begin_anew()
        session._doomed = ended._doomed
        return self._keep(request, session)

    async def save(self, request: web.BaseRequest, response: web.StreamResponse, session: OurSession) -> None:
        """Let the storage save the session if it has changed.

        Raises:
            StorageUnavailable: the storage did not answer in time, or could not reach its server.
            RuntimeError: the headers are sent, and the storage keeps the data in the cookie.
        """
        if not session._sealed:
            add_vary(response.headers)
        if self.is_changed(session):
            await self._write(request, response, cast("Session", session))

    def is_changed(self, session: OurSession) -> bool:
        """Tell whether there is anything to save: nested changes count, and an empty new session does not."""
        kept = cast("Session", session)
        if kept._gone:
            return False
        return bool(kept._doomed) or (_is_something(kept) and (kept._changed or repr(kept._data) != kept._image))

    async def commit(self, session: OurSession) -> None:
        """Save now; a cookie that this needs is set at the end, when the session is saved again."""
        kept = cast("Session", session)
        if not kept._gone:
            await self._write(kept._request, web.Response(), kept)
            kept._changed = not kept._sealed

    async def reload(self, session: OurSession) -> None:
        """Read the session again, as the request's cookie names it."""
        kept = cast("Session", session)
        if kept._kept_under != kept._loaded_under:  # the storage can only be asked by the request's cookie
            return
        read = await self._read(kept._request)
        if kept._kept_under is not None and read._kept_under != kept._kept_under:
            kept._gone = True
            return
        kept._data, kept._created, kept._changed = read._data, read._created, False
        kept._image = repr(kept._data)

    async def apply(self, session: OurSession, change: Callable[[Any], T]) -> T:
        """Run `change` once and save: such a storage cannot tell who else has written."""
        result = change(session)
        if asyncio.iscoroutine(result):
            result.close()
            raise TypeError("apply() runs a plain function, and this one is async: await before apply()")
        session.changed()
        await self.commit(session)
        return result

    def _keep(self, request: web.BaseRequest, session: Session) -> Session:
        session._manager, session._request = self, request
        session._image = repr(session._data)
        put(request, compat.SESSION_KEY, session)
        put(request, compat.STORAGE_KEY, self.storage)
        return session

    async def _read(self, request: web.BaseRequest) -> Session:
        try:
            return adopted(self.storage, await self._ask(self.storage.load_session(request)))
        except (ValueError, LookupError) as error:
            name, reason = type(self.storage).__name__, type(error).__name__
            log_throttled(logger.warning, "a %s could not read a session (%s); its visitor is anonymous", name, reason)
            return Session(None, data=None, new=True)

    async def _write(self, request: web.BaseRequest, response: web.StreamResponse, session: Session) -> None:
        before = response.cookies.output()
        has_records = None not in session._doomed  # else the cookie holds the data, and is one and the same
        if not (has_records and _is_something(session)):
            await self._end(request, response, session)
        self._learn_identity(response, session)  # where the handler has saved it by hand
        if _is_something(session):
            session._created = int(time.time())
            await self._ask(self.storage.save_session(request, response, session))
            sent = response.cookies.get(self.cookie.name)
            if session._sealed and sent is not None and sent.value and sent.value != str(session._identity):
                raise RuntimeError(
                    "the session is kept in its cookie and was changed after the response's headers were sent; "
                    "change it before `await response.prepare(request)`"
                )
            self._learn_identity(response, session)
        # After the new record is stored, so that an outage between the two loses nothing.
        await self._end(request, web.Response(), session)
        session._changed, session._image = False, repr(session._data)
        if response.cookies.output() != before:
            _tell(response)

    async def _end(self, request: web.BaseRequest, response: web.StreamResponse, session: Session) -> None:
        """Empty the records of ids that are not to be used again."""
        while session._doomed:
            ended = Session(session._doomed[0], data=None, new=False, max_age=session.max_age)
            await self._ask(self.storage.save_session(request, response, ended))
            session._doomed = session._doomed[1:]

    def _learn_identity(self, response: web.StreamResponse, session: Session) -> None:
        """Read from the cookie under which id a new session is stored, so that no second one is drawn for it."""
        cookie = response.cookies.get(self.cookie.name)
        if session._identity is None and cookie is not None and cookie.value:
            session._identity = session._kept_under = cookie.value

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
    data = {"created": theirs.created, "session": theirs._mapping}
    return Session(theirs.identity, data=cast("Any", data), new=theirs.new, max_age=theirs.max_age)


def put(request: web.BaseRequest, name: str, value: object) -> None:
    """Put something into the request under a string, past aiohttp's warning: others read it by this name."""
    request._state[name] = value


def show_sessions_of(manager: SessionManager) -> None:
    """Let those who look into the request for aiohttp-session's session find this keeper's."""
    load, new = manager.load, manager.new

    def shown(request: web.BaseRequest, session: OurSession) -> OurSession:
        if type(session) is OurSession:
            session.__class__ = StoredSession
        put(request, compat.SESSION_KEY, session)
        return session

    async def load_and_show(request: web.BaseRequest) -> OurSession:
        return shown(request, await load(request))

    async def make_and_show(request: web.BaseRequest, old: OurSession | None) -> OurSession:
        return shown(request, await new(request, old))

    manager.load, manager.new = load_and_show, make_and_show  # type: ignore[method-assign]


def _is_something(session: Session) -> bool:
    return not (session.empty and session._new and session._kept_under is None)


def _tell(response: web.StreamResponse) -> None:
    """Let no cache keep the response; and where its headers have been made of its cookies already, add the new."""
    forbid_caching(response.headers)
    if response.prepared:
        for cookie in response.cookies.values():
            text = cookie.OutputString()
            if text not in response.headers.getall(hdrs.SET_COOKIE, ()):
                response.headers.add(hdrs.SET_COOKIE, text)
