"""Everything about sessions that is not storage: ids, times, conflicts, and the end of a request."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Literal, TypedDict, TypeVar
from weakref import WeakValueDictionary

from aiohttp import hdrs, web

from .batching import Batcher
from .codec import Codec, Envelope, JSONCodec, UndecodableError, UnknownFormatError
from .cookie import MAX_AGE, Cookie, CookieReader, Secret, add_vary, forbid_caching
from .errors import ConfigError, SessionConflict, StorageUnavailable
from .log import logger, seldom
from .merge import merge
from .session import Duration, Session, Stored, seconds
from .storage import Conflict, Gone, Outcome, Record, Saved, Storage, Write

__all__ = ["Manager", "OnConflict", "Options", "key_of_id"]

T = TypeVar("T")

OnConflict = Literal["merge", "overwrite", "raise"]

PROLONG_AFTER = 1 / 20
"""The share of the idle timeout after which a session that is only read is written again."""
_LOCAL_HOST = re.compile(r"(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?$")


class Options(TypedDict, total=False):
    """The keywords of `setup` and of `session_middleware`."""

    secret: Secret | None
    """Signs the cookie; of a list the first signs and all verify. At least 32 bytes each."""
    cookie: Cookie | None
    """How the browser keeps the id."""
    idle_timeout: Duration
    """Seconds or `timedelta` (a day): a session unused for this long ends, up to a twentieth early."""
    lifetime: Duration | None
    """Seconds or `timedelta`: a session this old ends, however busy it is."""
    on_conflict: OnConflict
    """When another request has changed the session: `"merge"` key by key, `"overwrite"`, or `"raise"` (409)."""
    codec: Codec | None
    """Anything with `dumps` and `loads`; JSON by default."""


class Manager:
    """Keeps sessions in a storage, and only their ids in cookies."""

    def __init__(
        self,
        storage: Storage,
        *,
        secret: Secret | None = None,
        cookie: Cookie | None = None,
        idle_timeout: Duration = 86_400.0,
        lifetime: Duration | None = None,
        on_conflict: OnConflict = "merge",
        codec: Codec | None = None,
    ) -> None:
        self.storage = storage
        self.cookie = Cookie() if cookie is None else cookie
        if not isinstance(self.cookie, Cookie):
            raise ConfigError(f"cookie={cookie!r} must be a Cookie, as Cookie(name='session', samesite='Lax')")
        if on_conflict not in ("merge", "overwrite", "raise"):
            raise ConfigError(f"on_conflict={on_conflict!r} must be 'merge', 'overwrite' or 'raise'")
        self.codec: Codec = JSONCodec() if codec is None else codec
        if not (callable(getattr(self.codec, "dumps", None)) and callable(getattr(self.codec, "loads", None))):
            raise ConfigError(f"codec={codec!r} must have the methods dumps and loads")
        self.clock: Callable[[], float] = time.time
        self._reader = CookieReader(self.cookie.name, secret)
        self._idle_timeout = seconds("idle_timeout", idle_timeout)
        self._lifetime = math.inf if lifetime is None else seconds("lifetime", lifetime)
        self._on_conflict = on_conflict
        self._batcher = Batcher(storage)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._opening = asyncio.Lock()
        self._is_open = False

    async def open(self) -> None:
        """Open the storage, once."""
        async with self._opening:
            if not self._is_open:
                await self.storage.open()
                self._is_open = True

    async def close(self) -> None:
        """Finish the saves that are under way, each of which has its budget, then close the storage."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._batcher.finish(self.storage.timeout)
        self._is_open = False
        await self.storage.close()

    # The way in.

    async def load(self, request: web.BaseRequest) -> Session:
        """Give the session of the request's cookie, or a new one; ids that are not stored are never adopted.

        Raises:
            StorageUnavailable: the storage did not answer in time.
        """
        presented = self._reader.read(request.headers)
        if not presented:
            return Session(self, {})
        keys = [key_of_id(one.id) for one in presented]
        async with self._within_budget():
            if not self._is_open:
                await self.open()
            records = await asyncio.gather(*map(self._batcher.load, keys))
        live = []
        for one, key, record in zip(presented, keys, records, strict=True):
            found = None if record is None else self._read(one.id, key, record)
            if found is not None:
                session = Session(self, *found)
                session._cookie_stale = one.stale
                live.append(session)
        if len(live) > 1:
            seldom(
                logger.warning,
                "a request carried %d live sessions in cookies %r; it is treated as anonymous. A sibling domain may "
                "have set one of them, which a name that begins with __Host- prevents",
                len(live),
                self.cookie.name,
            )
        return live[0] if len(live) == 1 else Session(self, {})

    async def new(self, request: web.BaseRequest, old: Session | None) -> Session:
        """Give an empty session that, when it is saved, ends the request's old one, loaded or not."""
        session = Session(self, {})
        if old is None:
            session._doomed = [key_of_id(one.id) for one in self._reader.read(request.headers)]
        else:
            old.invalidate()
            session._doomed = old._doomed
            old._doomed = []
            old._gone = True
        session._ended = True
        return session

    def _read(self, session_id: str, key: str, record: Record) -> tuple[dict[str, Any], Stored] | None:
        """Decode a record, if it is a session whose time is not over."""
        try:
            envelope, data = self._decode(record.data)
        except UnknownFormatError as error:
            seldom(logger.warning, "session %s is left alone: %s", key[:8], error)
            return None
        except UndecodableError as error:
            seldom(logger.warning, "session %s is removed: %s", key[:8], error)
            self._spawn(self._remove_damaged(key, record.version))
            return None
        if self.clock() >= self._ends(envelope.created, envelope.written, envelope.idle_timeout):
            return None
        return data, _stored(session_id, key, record.version, envelope)

    def _decode(self, data: bytes) -> tuple[Envelope, dict[str, Any]]:
        envelope = Envelope.unpack(data)
        try:
            decoded = self.codec.loads(envelope.payload)
        except Exception as error:
            raise UndecodableError(f"its data cannot be decoded ({type(error).__name__})") from error
        if not isinstance(decoded, dict):
            raise UndecodableError(f"its data is of type {type(decoded).__name__}, not dict")
        return envelope, decoded

    async def _remove_damaged(self, key: str, version: bytes) -> None:
        try:
            await self._batcher.save(Write(key, version, None, 1))
        except StorageUnavailable as error:
            logger.debug("session %s is damaged, and was not removed: %s", key[:8], error)

    # The way out.

    async def save(self, request: web.BaseRequest, response: web.StreamResponse, session: Session) -> None:
        """Store what became of the session, then say it in the response's headers, unless they are sent.

        Raises:
            SessionConflict, SessionTooLarge, StorageUnavailable: nothing is said in the headers.
            TypeError: the data holds a value that JSON cannot hold.
        """
        if self._has_work(session):
            await self.commit(session)
        if not session._sealed:
            self._tell(request, response, session)

    def is_changed(self, session: Session) -> bool:
        """Tell whether the handler changed the session, or asked for its end or renewal."""
        if session._gone:
            return False
        stored = session._stored
        if session._doomed or (session._renewing and stored is not None) or (stored is None and session._data):
            return True
        return stored is not None and (session._forced or self._differs(session, stored, self._encode(session._data)))

    async def commit(self, session: Session) -> None:
        """Make the storage hold what the session holds, whatever others did to it meanwhile.

        If another deleted the record, the session is marked as gone and its changes are dropped.

        Raises:
            SessionConflict, SessionTooLarge, StorageUnavailable, RuntimeError, TypeError: see `Session.save`.
        """
        await self._protected(self._commit(session))

    async def apply(self, session: Session, change: Callable[[Session], T]) -> T:
        """Run `change`, again after each conflict, until what it made is stored."""
        return await self._protected(self._apply(session, change))

    async def _commit(self, session: Session) -> None:
        async with self._writing(session) as attempt:
            while (record := await attempt()) is not None:
                self._rebase(session, record)

    async def _apply(self, session: Session, change: Callable[[Session], T]) -> T:
        async with self._writing(session) as attempt:
            while True:
                pending = self._copy(session._data)
                try:
                    result = change(session)
                except BaseException:
                    session._data = pending
                    raise
                if asyncio.iscoroutine(result):
                    result.close()
                    session._data = pending
                    raise TypeError("apply() runs a plain function, and this one is async: await before apply()")
                session._forced = True  # also a result that changes nothing must rest on the newest data
                sent = self._copy(session._data)
                record = await attempt()
                if record is None:
                    return result
                session._data = merge(sent, self._copy(session._data), pending)  # take back what `change` did
                self._rebase(session, record)

    async def reload(self, session: Session) -> None:
        """Read the record again and drop what was not saved."""
        async with session._lock, self._within_budget():
            stored = session._stored
            if session._gone or stored is None:
                session._data = {}
                return
            record = await self._batcher.load(stored.key)
            found = None if record is None else self._read(stored.id, stored.key, record)
            if found is None:
                self._lose(session, stored)
                return
            session._data, session._stored = found
            session._created, session._idle_timeout = session._stored.created, session._stored.idle_timeout
            session._renewing = session._forced = False

    @asynccontextmanager
    async def _writing(self, session: Session) -> AsyncIterator[Callable[[], Coroutine[Any, Any, Record | None]]]:
        """Queue up behind other writers of this session, in one budget, and give the way to attempt a write."""
        conflicts = 0

        async def attempt() -> Record | None:
            nonlocal conflicts
            record = await self._attempt(session)
            conflicts += record is not None
            return record

        try:
            async with self._within_budget(), session._lock, self._turn(session):
                if not self._is_open:
                    await self.open()
                yield attempt
        except StorageUnavailable as error:
            if conflicts and isinstance(error.__cause__, TimeoutError):
                raise SessionConflict(
                    f"other requests won {conflicts} times within {self.storage.timeout:g} s"
                ) from error
            raise

    def _turn(self, session: Session) -> asyncio.Lock:
        if session._stored is None:
            return asyncio.Lock()  # nobody else knows of it
        turn = self._turns.get(session._stored.key)
        if turn is None:
            turn = self._turns[session._stored.key] = asyncio.Lock()
        return turn

    async def _attempt(self, session: Session) -> Record | None:
        """Carry out the storage's column of the end-of-request table; a record that is in the way is returned."""
        while session._doomed:
            await self._batcher.delete(session._doomed[-1])
            logger.info("session %s destroyed", session._doomed.pop()[:8])
        if session._gone:
            return None
        stored, payload = session._stored, self._encode(session._data)
        if stored is None:
            if session._data:
                await self._create(session, payload)
            return None
        if session._renewing:
            return await self._renew(session, stored, payload)
        if not (session._forced or self._is_due(session, stored) or self._differs(session, stored, payload)):
            return None
        envelope = self._envelope(session, stored, payload)
        data = envelope.pack() if session._data else None
        outcome = await self._batcher.save(Write(stored.key, stored.version, data, self._ttl(envelope)))
        match outcome:
            case Saved(version) if data is not None:
                self._settle(session, _stored(stored.id, stored.key, version, envelope))
            case Saved():
                self._settle(session, None)
                logger.info("session %s destroyed, as it was emptied", stored.key[:8])
            case Gone():
                self._lose(session, stored)
            case Conflict(record):
                return record
        return None

    async def _create(self, session: Session, payload: bytes) -> None:
        if session._sealed:
            session._refuse("a new session needs a cookie")
        envelope = self._envelope(session, None, payload)
        self._settle(session, await self._put_under_new_id(envelope))

    async def _renew(self, session: Session, stored: Stored, payload: bytes) -> Record | None:
        """Store under a new id, then remove the old one on condition that nobody touched it meanwhile."""
        fresh = None
        envelope = self._envelope(session, None, payload)
        if session._data:
            fresh = await self._put_under_new_id(envelope)
        outcome: Outcome | None = None
        try:
            outcome = await self._batcher.save(Write(stored.key, stored.version, None, 1))
        finally:
            if fresh is not None and not isinstance(outcome, Saved):
                self._spawn(self._discard(fresh.key))  # nobody knows its id
        match outcome:
            case Saved():
                self._settle(session, fresh)
                logger.info("session %s renewed as %s", stored.key[:8], fresh.key[:8] if fresh else "nothing")
            case Gone():
                self._lose(session, stored)
            case Conflict(record):
                return record
        return None

    async def _put_under_new_id(self, envelope: Envelope) -> Stored:
        while True:
            session_id = secrets.token_urlsafe(32)
            key = key_of_id(session_id)
            outcome = await self._batcher.save(Write(key, None, envelope.pack(), self._ttl(envelope)))
            if isinstance(outcome, Saved):
                logger.info("session %s created", key[:8])
                return _stored(session_id, key, outcome.version, envelope)

    async def _discard(self, key: str) -> None:
        try:
            await self._batcher.delete(key)
        except StorageUnavailable as error:
            logger.debug("session %s is unused, and was not removed: %s", key[:8], error)

    def _settle(self, session: Session, stored: Stored | None) -> None:
        if stored is not None and session._stored is not None and stored.idle_timeout != session._stored.idle_timeout:
            session._cookie_stale = True
        session._stored = stored
        session._forced = session._renewing = False
        session._written = True

    def _lose(self, session: Session, stored: Stored) -> None:
        session._gone = True
        logger.info("session %s was deleted meanwhile; a request's changes to it are dropped", stored.key[:8])

    def _rebase(self, session: Session, record: Record) -> None:
        """Take over what is stored, and put what this request changed on top of it."""
        stored = session._stored
        assert stored is not None  # only a stored session meets a conflict
        try:
            envelope, theirs = self._decode(record.data)
        except (UndecodableError, UnknownFormatError) as error:
            seldom(logger.warning, "session %s was replaced by a record that cannot be read: %s", stored.key[:8], error)
            self._lose(session, stored)
            return
        mine = self._copy(session._data)
        base = self._loads(stored.payload)
        is_pending = self._differs(session, stored, self._encode(session._data))
        if envelope.payload != stored.payload:
            logger.debug("session %s: conflict, resolved by %s", stored.key[:8], self._on_conflict)
            if is_pending and self._on_conflict == "raise":
                raise SessionConflict("another request changed the session at the same time")
            if not (is_pending and self._on_conflict == "overwrite"):
                session._data = merge(base, mine, theirs)
        if session._created == stored.created:
            session._created = envelope.created
        if session._idle_timeout == stored.idle_timeout:
            session._idle_timeout = envelope.idle_timeout
        session._stored = _stored(stored.id, stored.key, record.version, envelope)

    # What the browser is told.

    def _tell(self, request: web.BaseRequest, response: web.StreamResponse, session: Session) -> None:
        """Carry out the cookie's column of the end-of-request table."""
        add_vary(response.headers)
        if session._gone:
            return
        stored = session._stored
        if stored is None:
            if (session._cookie_id is not None or session._ended) and self._reader.is_in(request.headers):
                self._set_cookie(request, response, "", 0)
            return
        is_prolonged = session._written and self._is_persistent(stored)
        if session._cookie_id != stored.id or session._cookie_stale or is_prolonged:
            self._set_cookie(request, response, self._reader.value(stored.id), self._max_age(stored))

    def _is_persistent(self, stored: Stored) -> bool:
        return self.cookie.persistent or stored.idle_timeout is not None

    def _max_age(self, stored: Stored) -> int | None:
        if not self._is_persistent(stored):
            return None
        ends = self._ends(stored.created, stored.written, stored.idle_timeout)
        return max(1, min(MAX_AGE, math.ceil(ends - self.clock())))

    def _set_cookie(
        self, request: web.BaseRequest, response: web.StreamResponse, value: str, max_age: int | None
    ) -> None:
        over_https = request.secure
        if not over_https:
            self._warn_of_plain_http(request)
        secure = self.cookie.is_secure(over_https)
        response.headers.add(hdrs.SET_COOKIE, self.cookie.header(value, secure=secure, max_age=max_age))
        taken_out = forbid_caching(response.headers)
        if taken_out:
            seldom(
                logger.warning,
                "Cache-Control: %s was taken from a response that sets the session's cookie",
                ", ".join(taken_out),
            )

    def _warn_of_plain_http(self, request: web.BaseRequest) -> None:
        if self.cookie.secure is True and not _LOCAL_HOST.match(request.host):
            seldom(
                logger.warning,
                "the session's cookie is for https only, and this request came by http, so browsers drop it; "
                "behind a proxy that ends TLS, let aiohttp-remotes set the request's scheme",
            )
        elif self.cookie.secure == "auto" and request.headers.get(hdrs.X_FORWARDED_PROTO, "").lower() == "https":
            seldom(
                logger.warning,
                "a proxy says that the browser uses https, but such headers are not trusted, so the session's cookie "
                "is sent without Secure; let aiohttp-remotes set the request's scheme",
            )

    # Times, bytes and budgets.

    def _has_work(self, session: Session) -> bool:
        if self.is_changed(session):
            return True
        return session._stored is not None and not session._gone and self._is_due(session, session._stored)

    def _differs(self, session: Session, stored: Stored, payload: bytes) -> bool:
        """Tell whether the session is not what is stored; times do not count."""
        if session._idle_timeout != stored.idle_timeout or not session._data:
            return True
        return payload not in (stored.payload, self._encode(self._loads(stored.payload)))

    def _is_due(self, session: Session, stored: Stored) -> bool:
        """Tell whether the session is to be prolonged; a clock that was set back makes it due as well."""
        idle = stored.idle_timeout or self._idle_timeout
        return session._extend and abs(self.clock() - stored.written) > idle * PROLONG_AFTER

    def _envelope(self, session: Session, stored: Stored | None, payload: bytes) -> Envelope:
        written = self.clock() if session._extend or stored is None else stored.written
        return Envelope(session._created, written, session._idle_timeout, payload)

    def _ends(self, created: float, written: float, idle_timeout: float | None) -> float:
        return min(written + (idle_timeout or self._idle_timeout), created + self._lifetime)

    def _ttl(self, envelope: Envelope) -> int:
        return max(1, math.ceil(self._ends(envelope.created, envelope.written, envelope.idle_timeout) - self.clock()))

    def _encode(self, data: dict[str, Any]) -> bytes:
        encoded = self.codec.dumps(data)
        return encoded.encode() if isinstance(encoded, str) else encoded

    def _loads(self, payload: bytes) -> dict[str, Any]:
        data: dict[str, Any] = self.codec.loads(payload)
        return data

    def _copy(self, data: dict[str, Any]) -> dict[str, Any]:
        return self._loads(self._encode(data))

    @asynccontextmanager
    async def _within_budget(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.storage.timeout) as budget:
                yield
        except TimeoutError as error:
            if not budget.expired():
                raise
            raise StorageUnavailable(f"{self.storage!r} did not answer within {self.storage.timeout:g} s") from error

    async def _protected(self, saving: Coroutine[Any, Any, T]) -> T:
        """Run to the end even if the request is cancelled, so that no renewal is left half-way."""
        task = self._spawn(saving)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_failure)  # the request is left by then
            raise

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("a session was not saved, and its client has left: %s", error)


def key_of_id(session_id: str) -> str:
    """Hash an id, so that a stolen database logs nobody in."""
    return urlsafe_b64encode(hashlib.sha256(session_id.encode()).digest())[:-1].decode()


def _stored(session_id: str, key: str, version: bytes, envelope: Envelope) -> Stored:
    return Stored(session_id, key, version, envelope.payload, envelope.created, envelope.written, envelope.idle_timeout)
