"""Everything about sessions that is not storage: ids, times, conflicts, and the end of a request."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, TypedDict, TypeVar

from aiohttp import web

from .._log import log_throttled, logger
from ..codec import TOMBSTONE, Codec, Envelope, TombstoneError, UndecodableError, UnknownFormatError
from ..cookie import Cookie, CookieReader, PresentedId, Secret, key_of_id
from ..errors import ConfigError, SessionConflict, SessionTooLarge, StorageUnavailable
from ..session import Duration, Session, Snapshot
from ..storage import Conflict, Gone, Outcome, Record, Saved, Sharded, Storage, Write, timed_out
from .base import IDLE_TIMEOUT, BaseManager
from .batching import Batcher, ShardedBatcher
from .locks import WriterLock
from .merge import merge

__all__ = ["OnConflict", "Options", "StorageSessionManager"]

T = TypeVar("T")

OnConflict = Literal["merge", "overwrite", "raise"]
Attempt = Callable[..., Coroutine[Any, Any, Record | None]]

DRAWS = 16
"""Ids that are drawn to find a server that answers, where a storage has several."""
_UNSAVED = "a session was not saved, and its client has left: %s"


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
    on_conflict: OnConflict
    """What is done when another request has changed the session meanwhile.

    `"merge"`, the default, merges both changes key by key; `"overwrite"` lets the last one win; `"raise"` raises
    `SessionConflict`, which becomes a 409. Under `cookie://` only `"overwrite"` is possible, and the default.
    """
    codec: Codec | None
    """Anything with `dumps` and `loads`; JSON by default."""


class StorageSessionManager(BaseManager):
    """Keeps sessions in a storage, and only their ids in cookies."""

    _reader: CookieReader

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
        super().__init__(cookie=cookie, idle_timeout=idle_timeout, lifetime=lifetime, codec=codec)
        self.storage = storage
        if on_conflict not in ("merge", "overwrite", "raise"):
            raise ConfigError(f"on_conflict={on_conflict!r} must be 'merge', 'overwrite' or 'raise'")
        self._reader = CookieReader(self.cookie.name, secret)
        self._on_conflict = on_conflict
        self._batcher = (
            ShardedBatcher(storage, self._read, self._left)
            if isinstance(storage, Sharded)
            else Batcher(storage, self._read, self._left)
        )
        self._locks: WriterLock[Snapshot] = WriterLock()
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
        """Finish the saves that are under way, then close the storage: within six of its `timeout`.

        Two pass at most until those saves and what they leave to be removed have had their budgets,
        one until every trip has ended or is stopped, and three until the storage is closed or given up.
        """
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._batcher.finish(self.storage.timeout)
        self._is_open = False
        within = 3 * self.storage.timeout
        try:
            async with asyncio.timeout(within):
                await self.storage.close()
        except TimeoutError:
            logger.warning("%r did not close within %g s, and is left as it is", self.storage, within)

    # The way in.

    def load(self, request: web.BaseRequest) -> Awaitable[Session]:
        """Give the session of the request's cookie, or a new one; ids that are not stored are never adopted.

        Raises:
            StorageUnavailable: the storage did not answer in time.
        """
        presented = self._reader.read(request.headers)
        if len(presented) == 1 and self._is_open:
            return self._batcher.load(presented[0].key, presented[0])
        return self._load_one_of(presented)

    async def _load_one_of(self, presented: Sequence[PresentedId]) -> Session:
        """Give the session of the one cookie whose session lives."""
        if presented and not self._is_open:  # the bare middleware opens its storage at the first use
            async with self._within_budget():
                await self.open()
        found = await asyncio.gather(*[self._batcher.load(one.key, one) for one in presented])
        return self._live_one_of(found)

    async def new(self, request: web.BaseRequest, old: Session | None) -> Session:
        """Give an empty session that, when it is saved, ends the request's old one, loaded or not."""
        session = Session(self, {})
        doomed = [one.key for one in self._reader.read(request.headers)]
        if old is not None:
            old.invalidate()
            doomed += old._doomed
            old._doomed, old._gone = (), True
        session._doomed = tuple(dict.fromkeys(doomed))
        session._ended = True
        return session

    def _read(self, presented: PresentedId, record: Record | None) -> Session:
        """Make the session of a record; a new one, if there is none that can be read and whose time is not over."""
        if record is None:
            return Session(self, {})
        session_id, key, is_stale = presented
        version, encoded = record
        try:
            envelope, data = self._decode(encoded)
        except TombstoneError:
            return Session(self, {})
        except UnknownFormatError as error:
            log_throttled(logger.warning, "session %s is left alone: %s", key[:8], error)
            return Session(self, {})
        except UndecodableError as error:
            log_throttled(logger.warning, "session %s is removed: %s", key[:8], error)
            self._spawn(self._remove_damaged(key, version))
            return Session(self, {})
        now = self.clock()
        if now >= self._ends(envelope):
            return Session(self, {})
        session = Session(self, data, Snapshot(session_id, key, version, envelope))
        if is_stale:
            session._cookie_stale = True
        elif now >= envelope.written:  # a clock that was set back makes it due
            session._quiet_until = envelope.written + self._due_after(envelope)
        return session

    async def _remove_damaged(self, key: str, version: bytes) -> None:
        try:
            await self._batcher.save(Write(key, version, None, 1))
        except Exception as error:  # noqa: BLE001  (housekeeping: the record's time will end)
            logger.debug("session %s is damaged, and was not removed: %s", key[:8], error)

    # The way out.

    async def save(self, request: web.BaseRequest, response: web.StreamResponse, session: Session) -> None:
        """Store what became of the session, then say it in the response's headers, unless they are sent.

        Raises:
            SessionConflict, SessionTooLarge, StorageUnavailable: nothing is said in the headers.
            TypeError: the data holds a value that JSON cannot hold.
        """
        if session._doomed or session._renewals:
            await self._protected(self._commit(session))
        elif (draft := self._draft(session)) is not None:
            stored = session._snapshot
            turns = (id(session),) if stored is None else (id(session), stored.key)
            if self._is_open and self._locks.try_acquire(*turns):
                # As most requests end: by one write that nobody competes with. It is carried out even if the request
                # is cancelled, and needs no task for that.
                ends = asyncio.get_running_loop().time() + self.storage.timeout
                try:
                    record = await self._attempt(session, draft, session)
                finally:
                    self._locks.release(*turns)
                if record is not None:
                    await self._protected(self._commit(session, record, ends))
            else:
                await self._protected(self._commit(session))
        if not session._sealed:
            self._tell(request, response, session)

    def _left(self, session: Session, outcome: Outcome | Exception) -> None:
        """Finish what a cancelled request has begun."""
        if isinstance(outcome, Conflict) and session._snapshot is not None:
            self._spawn(self._commit(session, outcome.record)).add_done_callback(_log_failure)
        elif isinstance(outcome, Exception):
            logger.warning(_UNSAVED, outcome)

    async def commit(self, session: Session) -> None:
        """Make the storage hold what the session holds, whatever others did to it meanwhile, by a write in any case.

        If another deleted the record, the session is marked as gone and its changes are dropped.

        Raises:
            SessionConflict, SessionTooLarge, StorageUnavailable, RuntimeError, TypeError: see `Session.save`.
        """
        await self._protected(self._commit(session, is_forced=True))

    async def apply(self, session: Session, change: Callable[[Session], T]) -> T:
        """Run `change`, again after each conflict, until what it made is stored."""
        return await self._protected(self._apply(session, change))

    async def reload(self, session: Session) -> None:
        """Read the record again and drop what was not saved."""
        async with self._within_budget(), self._locks.hold(id(session)):
            stored = session._snapshot
            if session._gone or stored is None:
                session._data = {}
            elif (read := await self._read_again(session, stored)) is not None:
                session._data, session._snapshot = read._data, read._snapshot
                session._created, session._idle_timeout = read._created, read._idle_timeout
                session._renewals, session._forced = 0, False

    async def _read_again(self, session: Session, stored: Snapshot) -> Session | None:
        """Give what is stored now; `None` if that has ended, of which the session is told, or if the session has."""
        life = session._life
        read = await self._batcher.load(stored.key, PresentedId(stored.id, stored.key, stale=False))
        if session._life != life:
            return None
        if read._snapshot is None:
            self._lose(session, life, stored)
            return None
        return read

    async def _commit(
        self, session: Session, record: Record | None = None, ends: float | None = None, *, is_forced: bool = False
    ) -> None:
        """Write until it is done; `record` was in the way of an attempt before, in a budget that `ends` then."""
        async with self._writing(session, ends) as attempt:
            session._forced |= is_forced
            if record is not None:
                self._rebase(session, record, self._on_conflict)
            if await self._continued(session, attempt):
                return
            while (record := await attempt(session)) is not None:
                self._rebase(session, record, self._on_conflict)

    async def _continued(self, session: Session, attempt: Attempt) -> bool:
        """Write on top of what the writer before has left, and tell whether that was still what is stored.

        Another process may have written since, so it is a guess until the write succeeds. A twin of the session makes
        it, of which nobody knows: nobody sees a guess, and a wrong one leaves nothing to undo.
        """
        guess = self._guess(session)
        if guess is None:
            return False
        twin, draft = guess
        rebased, life, data = twin._snapshot, session._life, self._copy(session._data)
        created, idle_timeout = session._created, session._idle_timeout
        try:
            record = await attempt(twin, draft)
        except SessionTooLarge:  # perhaps only as it was guessed
            return False
        if record is not None:
            self._rebase(session, record, self._on_conflict)
        if record is not None or twin._gone:
            return False
        if session._life == life:
            session._snapshot, session._touched = rebased, True
            session._data = merge(data, session._data, twin._data)  # with what other tasks have done since
            if session._created == created:
                session._created = twin._created
            if session._idle_timeout == idle_timeout:
                session._idle_timeout = twin._idle_timeout
        self._settle(session, life, twin._snapshot)
        return True

    def _guess(self, session: Session) -> tuple[Session, bytes] | None:
        """Give a twin of the session, rebased on what the writer before has left, and what it is to write."""
        stored = session._snapshot
        left = None if stored is None else self._locks.latest(stored.key)
        if stored is None or left is None or left.envelope == stored.envelope:
            return None
        if session._gone or session._doomed or session._renewals or self._on_conflict == "raise":
            return None
        twin = Session(self, {}, stored)
        vars(twin).update(vars(session))
        try:
            self._rebase(twin, Record(left.version, left.envelope.pack()), self._on_conflict)
            draft = self._draft(twin)
        except Exception:  # noqa: BLE001  (of any codec: what it refuses of a guess may be right without it)
            return None
        return None if draft is None else (twin, draft)

    async def _apply(self, session: Session, change: Callable[[Session], T]) -> T:
        async with self._writing(session) as attempt:
            is_fresh = False
            while True:
                life, pending = session._life, self._copy(session._data)
                sent = None
                try:
                    result = self._changed_by(session, change)
                    sent = self._copy(session._data)
                    record = await attempt(session)
                    if record is None:
                        return result
                    self._take_back(session, life, pending, sent)
                    self._rebase(session, record, "merge")
                except BaseException as error:
                    self._take_back(session, life, pending, sent)
                    is_refusal = sent is None and isinstance(error, Exception)
                    if is_fresh or not is_refusal or not await self._caught_up(session):
                        raise
                is_fresh = True

    async def _caught_up(self, session: Session) -> bool:
        """Take over what is stored, and tell whether it is newer.

        Raises:
            SessionGone: another has ended the session.
            StorageUnavailable: the storage did not answer in time.
        """
        stored = session._snapshot
        read = None if stored is None else await self._read_again(session, stored)
        if stored is None or read is None or read._snapshot is None:
            session._tell_if_gone()
            return False
        encoded = read._snapshot.envelope.pack()
        if encoded == stored.envelope.pack():
            return False
        self._rebase(session, Record(read._snapshot.version, encoded), "merge")
        return True

    @asynccontextmanager
    async def _writing(self, session: Session, ends: float | None = None) -> AsyncIterator[Attempt]:
        """Queue up behind other writers of this session, in one budget, and give the way to attempt a write."""
        conflicts, last = 0, -math.inf
        loop = asyncio.get_running_loop()
        budget = asyncio.timeout_at(loop.time() + self.storage.timeout if ends is None else ends)

        async def attempt(one: Session, draft: bytes | None = None) -> Record | None:
            nonlocal conflicts, last
            record = await self._attempt(one, draft)
            if record is not None:
                conflicts, last = conflicts + 1, loop.time()
            return record

        try:
            async with self._within_budget(budget), self._locks.hold(id(session)):
                if not self._is_open:
                    await self.open()
                if session._snapshot is None:  # nobody else knows of it
                    yield attempt
                else:
                    async with self._locks.hold(session._snapshot.key):
                        yield attempt
        except StorageUnavailable as error:
            # One conflict is no contest; and it answered until the end, so others were faster.
            if conflicts > 1 and budget.expired() and loop.time() - last < self.storage.timeout / 2:
                raise SessionConflict(
                    f"other requests won {conflicts} times within {self.storage.timeout:g} s"
                ) from error
            raise

    async def _attempt(
        self, session: Session, draft: bytes | None = None, asker: Session | None = None
    ) -> Record | None:
        """Carry out the storage's column of the end-of-request table; a record that is in the way is returned."""
        while session._doomed:
            key = session._doomed[0]
            await self._batcher.delete(key)
            session._doomed = tuple(one for one in session._doomed if one != key)
            logger.info("session %s destroyed", key[:8])
        stored, life = session._snapshot, session._life
        if draft is None:
            draft = self._draft(session)
        if draft is None:
            return None
        if stored is None:
            fresh = await self._put_under_new_id(self._first_envelope(session, draft), asker)
            self._settle(session, life, fresh)
            return None
        session_id, key, version, before = stored
        now = self.clock()
        is_over = now >= self._ends(before)  # as a long request used it, and perhaps nobody else
        if session._renewals and not is_over:
            return await self._renew(session, stored, draft)
        envelope = self._next_envelope(session, stored, draft)
        ttl = max(1, math.ceil(self._ends(envelope) - now))
        write = Write(key, version, None if is_over or not draft else envelope.pack(), ttl)
        outcome = await self._batcher.save(write, asker)
        if type(outcome) is Conflict:
            return outcome.record
        if type(outcome) is not Saved or is_over:
            self._lose(session, life, stored)
        elif draft:
            written = Snapshot(session_id, key, outcome.version, envelope)
            self._locks.publish(key, written)
            self._settle(session, life, written)
        else:
            self._settle(session, life, None)
            logger.info("session %s destroyed, as it was emptied", key[:8])
        return None

    async def _renew(self, session: Session, stored: Snapshot, draft: bytes) -> Record | None:
        """Store under a new id, then end the old one on condition that nobody touched it meanwhile.

        It is overwritten before it is deleted: a write whose answer was lost finds its own version when it is tried
        again, where a removal finds nothing, and cannot be told from another's logout.
        """
        life, renewals = session._life, session._renewals
        fresh = await self._put_under_new_id(self._first_envelope(session, draft)) if draft else None
        outcome: Outcome | None = None
        try:
            outcome = await self._batcher.save(Write(stored.key, stored.version, TOMBSTONE, self._longest_trip()))
        finally:
            if fresh is not None and not isinstance(outcome, Saved):
                self._spawn(self._discard(fresh.key))  # nobody knows its id
        match outcome:
            case Saved():
                self._spawn(self._discard(stored.key))
                self._settle(session, life, fresh, renewals)
                logger.info("session %s renewed as %s", stored.key[:8], fresh.key[:8] if fresh else "nothing")
            case Gone():
                self._lose(session, life, stored)
            case Conflict(record):
                return record
        return None

    async def _put_under_new_id(self, envelope: Envelope, asker: Session | None = None) -> Snapshot:
        loop = asyncio.get_running_loop()
        too_late = loop.time() + self.storage.timeout / 2
        while True:
            session_id, key = self._draw()
            try:
                outcome = await self._batcher.save(Write(key, None, envelope.pack(), self._ttl(envelope)), asker)
            except StorageUnavailable:
                # Another server can take a session that is new; what this one may have stored, nobody knows the id of.
                if loop.time() > too_late or self._batcher.is_failing(self._draw()[1]):
                    raise
                continue
            if isinstance(outcome, Saved):
                logger.info("session %s created", key[:8])
                return Snapshot(session_id, key, outcome.version, envelope)

    def _draw(self) -> tuple[str, str]:
        """Give a new id and its key: of several servers, at one that answers."""
        for _ in range(DRAWS):
            session_id = secrets.token_urlsafe(32)
            key = self._key(session_id)
            if not self._batcher.is_failing(key):
                break
        return session_id, key

    async def _discard(self, key: str) -> None:
        try:
            await self._batcher.delete(key)
        except Exception as error:  # noqa: BLE001  (housekeeping: the record's time will end)
            logger.debug("session %s is unused, and was not removed: %s", key[:8], error)

    def _settle(self, session: Session, life: int, stored: Snapshot | None, renewals: int = 0) -> None:
        """Take note of a write, unless invalidate() has ended meanwhile the session that it was for."""
        if session._life != life:
            if stored is not None:
                session._doomed += (stored.key,)
            return
        before = session._snapshot
        if stored is not None and before is not None and stored.envelope.idle_timeout != before.envelope.idle_timeout:
            session._cookie_stale = True
        session._snapshot = stored
        session._forced = False
        if (
            before is None or session._renewals == renewals
        ):  # else renew() was called meanwhile, and is still to be done
            session._renewals = 0
        session._written = True

    def _lose(self, session: Session, life: int, stored: Snapshot) -> None:
        if session._life == life:
            session._gone = True
            logger.info("session %s was deleted meanwhile; a request's changes to it are dropped", stored.key[:8])

    def _rebase(self, session: Session, record: Record, on_conflict: OnConflict) -> None:
        """Take over what is stored, and put what this request changed on top of it."""
        stored = session._snapshot
        if stored is None:  # invalidate() has ended it meanwhile
            return
        try:
            envelope, theirs = self._decode(record.data)
        except (UndecodableError, UnknownFormatError) as error:
            if not isinstance(error, TombstoneError):
                what = "session %s was replaced by a record that cannot be read: %s"
                log_throttled(logger.warning, what, stored.key[:8], error)
            self._lose(session, session._life, stored)
            return
        mine = self._copy(session._data)
        base = self._loads(stored.envelope.payload)
        is_pending = (session._touched or session._exposed) and self._changes(session, stored) is not None
        session._touched = True  # its data is replaced by other objects
        if envelope.payload != stored.envelope.payload:
            logger.debug("session %s: conflict, resolved by %s", stored.key[:8], on_conflict)
            if is_pending and on_conflict == "raise":
                raise SessionConflict("another request changed the session at the same time")
            if not (is_pending and on_conflict == "overwrite"):
                session._data = merge(base, mine, theirs)
        if session._created == stored.envelope.created:
            session._created = envelope.created
        if session._idle_timeout == stored.envelope.idle_timeout:
            session._idle_timeout = envelope.idle_timeout
        session._snapshot = stored._replace(version=record.version, envelope=envelope)

    def _value_to_send(self, session: Session, stored: Snapshot) -> str | None:
        is_prolonged = session._written and self._is_persistent(stored)
        if session._cookie_id != stored.id or session._cookie_stale or is_prolonged:
            return self._reader.value(stored.id)
        return None

    # Times and budgets.

    def _ttl(self, envelope: Envelope) -> int:
        return max(1, math.ceil(self._ends(envelope) - self.clock()))

    def _longest_trip(self) -> int:
        """Give the seconds within which a write that was not answered is tried again."""
        return math.ceil(2 * self.storage.timeout) + 1

    @asynccontextmanager
    async def _within_budget(self, budget: asyncio.Timeout | None = None) -> AsyncIterator[None]:
        budget = asyncio.timeout(self.storage.timeout) if budget is None else budget
        try:
            async with budget:
                yield
        except TimeoutError as error:
            if not budget.expired():
                raise
            raise timed_out(self.storage) from error

    def _key(self, session_id: str) -> str:
        return key_of_id(session_id, self.cookie.name)

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
        logger.warning(_UNSAVED, error)
