"""How a session is written: one loop, on the newest data, until a write wins."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal, Protocol, TypeVar

from .._log import log_throttled, logger
from ..codec import (
    Envelope,
    TombstoneError,
    UndecodableError,
    UnknownFormatError,
    successor_of,
    tombstone_of,
    unpack_envelope,
)
from ..cookie import PresentedId, key_of_id
from ..errors import SessionConflict, StorageUnavailable
from ..storage import Conflict, Gone, Outcome, Record, Saved, Write
from .access import Background, StorageAccess, log_unsaved
from .batching import Batcher
from .lifetimes import Lifetimes
from .locks import WriterLock
from .merge import merge
from .session_codec import SessionCodec
from .state import EXPOSED, RENEW, End, SessionState, Snapshot

__all__ = ["OnConflict", "SessionWriter"]

T = TypeVar("T")

OnConflict = Literal["merge", "overwrite", "raise"]

DRAWS = 16
"""Ids that are drawn to find a server that answers, where a storage has several."""
TOMBSTONE_TTL = 3600
"""Seconds within which a logout that brings a renewed id, or has loaded its session, finds the session again."""
CREATES = 4
"""Keys that a storage may say it has already; no random key is drawn twice."""
LAST_WRITES = 8
"""Writes at the end of a request at most, if its other tasks change the session during each of them."""


class _Contest:
    """How often others were faster."""

    def __init__(self) -> None:
        self.conflicts = 0
        self.last = -math.inf

    def count(self) -> None:
        self.conflicts += 1
        self.last = asyncio.get_running_loop().time()


class Takeover(Protocol):
    """What ends a session of another library along with ours."""

    async def forget(self, state: SessionState) -> str | None:
        """End what the old cookie of a session's request could bring back; return the key of its successor."""


class SessionWriter:
    """Writes sessions into a storage."""

    takeover: Takeover | None = None

    def __init__(
        self,
        access: StorageAccess,
        batcher: Batcher[PresentedId, SessionState],
        codec: SessionCodec,
        lifetimes: Lifetimes,
        background: Background,
        *,
        cookie_name: str,
        on_conflict: OnConflict,
    ) -> None:
        self._access = access
        self._batcher = batcher
        self._codec = codec
        self._lifetimes = lifetimes
        self._background = background
        self._cookie_name = cookie_name
        self._on_conflict = on_conflict
        self.locks: WriterLock[Snapshot] = WriterLock()

    async def save(self, state: SessionState) -> None:
        """Write what there is to be written at the end of a request, and what its tasks do meanwhile: in one budget."""
        ends = None
        if state.is_gone and not state.has_ended:
            return
        for _ in range(LAST_WRITES):
            draft = None
            if not state.asked or state.only_saves:
                draft = self._codec.draft(state, self._lifetimes)
                if draft is None and not state.asked:
                    return
            state.clean_until = math.inf  # until something is touched
            snapshot = state.snapshot
            names = (id(state),) if snapshot is None else (id(state), snapshot.key)
            try:
                is_first, ends = ends is None, ends or asyncio.get_running_loop().time() + self._access.storage.timeout
                if is_first and draft is not None and self._access.is_open and self.locks.try_acquire(*names):
                    # As most requests end: by one write that nobody competes with. It is carried out even if the
                    # request is cancelled, and needs no task for that.
                    asked = len(state.asked)
                    try:
                        outcome = await self._attempt(state, draft, state)
                    finally:
                        self.locks.release(*names)
                    if type(outcome) is Snapshot or outcome is None:
                        state.settle(asked, outcome)
                    elif type(outcome) is Conflict:
                        await self._background.shield(self.write(state, conflict=outcome, ends=ends))
                    else:
                        self._lose(state, asked)
                else:
                    await self._background.shield(self.write(state, ends=ends))
            finally:
                is_changed = state.asked or state.clean_until == 0 or state.dirty & EXPOSED
                state.clean_until = 0.0
            if not is_changed:
                self._lifetimes.rest(state)
                return

    def take_over(self, state: SessionState, outcome: Outcome | Exception) -> None:
        """Finish what a cancelled request has begun."""
        if isinstance(outcome, Conflict) and state.snapshot is not None:
            self._background.leave(self.write(state, conflict=outcome))
        elif isinstance(outcome, Exception):
            log_unsaved(outcome)

    async def write(
        self,
        state: SessionState,
        change: Callable[[SessionState], T] | None = None,
        *,
        conflict: Conflict | None = None,
        ends: float | None = None,
    ) -> T | None:
        """Write what the session holds, and what `change` makes of it, on the newest data, until a write wins.

        Each attempt works on a fork, which the session adopts if it wins: nobody sees one that does not.

        Args:
            state: the session.
            change: what it raises rests on data as new as the call.
            conflict: what an attempt before has met, in a budget that ends at `ends` by the event loop's clock.
            ends: likewise.

        Returns:
            what `change` returned; `None` if another has ended the session.

        Raises:
            SessionConflict, SessionTooLarge, StorageUnavailable, TypeError: see `Session.save`.
        """
        ended: set[str] = set()
        result = None
        async with self._turn(state, ends) as contest:
            newest = self._latest(state, change) if conflict is None else self._found(state, conflict.record, 0)
            is_fresh = conflict is not None or (newest is None and change is None)
            while not state.is_gone:
                before, fork = self._forked(state, newest, change)
                try:
                    result, draft = self._prepare(fork, newest, change)
                    if draft is None and newest is not None and not is_fresh:  # what the writer before left is unproven
                        newest, is_fresh = await self._read_again(state), True
                        continue
                    await self._end(state, fork, ended)
                    outcome = await self._attempt(fork, draft)
                except StorageUnavailable:
                    raise
                except Exception:
                    if is_fresh:
                        raise
                    rests_on, newest, is_fresh = newest or state.snapshot, await self._read_again(state), True
                    if not state.is_gone and (newest is None or rests_on is None or newest.version == rests_on.version):
                        raise
                    continue
                if isinstance(outcome, Conflict):
                    contest.count()
                    newest, is_fresh = self._found(state, outcome.record, len(before.asked)), True
                elif isinstance(outcome, Gone):
                    self._lose(state, len(before.asked))
                else:
                    state.adopt(before, fork, outcome)
                    break
            if state.is_gone:  # if it was abandoned meanwhile, nobody else ends what it has become
                await self._end(state, state, ended)
                state.settle(len(state.asked), state.snapshot)
        return result

    def _forked(
        self, state: SessionState, newest: Snapshot | None, change: object
    ) -> tuple[SessionState, SessionState]:
        """Return the session as it is, and a fork to work on: one and the same where its data is only written."""
        if newest is None and change is None:
            fork = state.fork(state.data)
            return fork, fork
        before, fork = map(state.fork, self._codec.copies(state.data))
        return before, fork

    def _prepare(
        self, fork: SessionState, newest: Snapshot | None, change: Callable[[SessionState], T] | None
    ) -> tuple[T | None, bytes | None]:
        """Put the fork on top of the newest data, and change it; return what `change` returned, and what to write."""
        result = None
        if newest is not None and fork.snapshot is not None:
            self._rebase(fork, fork.snapshot, newest, self._on_conflict if change is None else "merge")
        if change is not None:
            result = fork.changed_by(change)
        return result, self._codec.draft(fork, self._lifetimes)

    def _rebase(self, fork: SessionState, before: Snapshot, newest: Snapshot, on_conflict: OnConflict) -> None:
        """Take over what is stored, and put what this request changed on top of it."""
        theirs = self._codec.decode(newest.envelope.payload)
        if newest.envelope.payload != before.envelope.payload:
            logger.debug("session %s: conflict, resolved by %s", before.key[:8], on_conflict)
            is_pending = self._codec.changes(fork, before) is not None
            if is_pending and on_conflict == "raise":
                raise SessionConflict("another request changed the session at the same time")
            if not (is_pending and on_conflict == "overwrite"):
                fork.data = merge(self._codec.decode(before.envelope.payload), fork.data, theirs)
        fork.rebase(before, newest)

    def _latest(self, state: SessionState, change: object) -> Snapshot | None:
        """Return what the writer before has left, if it is not what the session rests on already."""
        snapshot = state.snapshot
        if snapshot is None or (self._on_conflict == "raise" and change is None):
            return None
        latest = self.locks.latest(snapshot.key)
        return None if latest is None or latest.version == snapshot.version else latest

    def _found(self, state: SessionState, record: Record, asked: int) -> Snapshot | None:
        """Return the record that was in the way; `None`, and the session is gone, if it is no session any more."""
        snapshot = state.snapshot
        if snapshot is None:  # it was ended meanwhile
            return None
        try:
            envelope = unpack_envelope(record.data)
            self._codec.decode(envelope.payload)
        except (UndecodableError, UnknownFormatError) as error:
            if not isinstance(error, TombstoneError):
                what = "session %s was replaced by a record that cannot be read: %s"
                log_throttled(logger.warning, what, snapshot.key[:8], error, about=self._access.storage)
            self._lose(state, asked)
            return None
        believed = self._lifetimes.believed(envelope, self._lifetimes.clock())
        return snapshot._replace(version=record.version, envelope=believed)

    async def _read_again(self, state: SessionState) -> Snapshot | None:
        """Return what is stored now; `None` if the session has ended, by another or meanwhile in this request."""
        read = await self.read_again(state)
        return None if read is None else read.snapshot

    async def read_again(self, state: SessionState) -> SessionState | None:
        """Load a session's record again; `None`, and the session is gone, if it has ended.

        Raises:
            StorageUnavailable: the storage did not answer in time.
        """
        snapshot = state.snapshot
        if snapshot is None:
            return None
        read = await self._load(snapshot.key, snapshot.id)
        if read.snapshot is None and state.snapshot is not None:
            self._lose(state, 0)
        return read if state.snapshot is not None and read.snapshot is not None else None

    async def _load(self, key: str, session_id: str = "") -> SessionState:
        loaded: SessionState = await self._batcher.load(key, PresentedId(session_id, key, stale=False))
        return loaded

    @asynccontextmanager
    async def _turn(self, state: SessionState, ends: float | None) -> AsyncIterator[_Contest]:
        """Queue up behind other writers of this session, in one budget."""
        contest, loop, timeout = _Contest(), asyncio.get_running_loop(), self._access.storage.timeout
        budget = asyncio.timeout_at(loop.time() + timeout if ends is None else ends)
        try:
            async with self._access.budget(budget), self.locks.hold(id(state)):
                snapshot = state.snapshot
                if snapshot is None:  # nobody else knows of it
                    yield contest
                else:
                    async with self.locks.hold(snapshot.key):
                        yield contest
        except StorageUnavailable as error:
            # One conflict is no contest; and it answered until the end, so others were faster.
            if contest.conflicts > 1 and budget.expired() and loop.time() - contest.last < timeout / 2:
                raise SessionConflict(f"other requests won {contest.conflicts} times within {timeout:g} s") from error
            raise

    # One attempt.

    async def _end(self, state: SessionState, fork: SessionState, ended: set[str]) -> None:
        """Remove the records of sessions that were ended, apart from those that have been removed."""
        ends = fork.ends
        if ends and self.takeover is not None and (key := await self.takeover.forget(state)) is not None:
            ends += (End(key),)
        for end in ends:
            if end.key is not None and end.key not in ended:
                await self._remove(end)
                ended.add(end.key)

    async def _remove(self, end: End) -> None:
        """Remove the record of a session that was ended; if it has been renewed meanwhile, that under its new id."""
        key, version = end
        while key is not None:
            if version is None:
                found = (await self._load(key)).own_and_presented
                key, version = found[0] if found else (None, None)
                continue
            outcome = await self._batcher.save(Write(key, version, None, 1))
            if not isinstance(outcome, Conflict):
                logger.info("session %s destroyed", key[:8])
                break
            successor = successor_of(outcome.record.data)
            key, version = (key, outcome.record.version) if successor is None else (successor, None)

    async def _attempt(
        self, state: SessionState, draft: bytes | None, asker: SessionState | None = None
    ) -> Snapshot | Conflict | Gone | None:
        """Carry out the storage's column of the end-of-request table, if nobody has written since.

        Returns:
            what the storage holds now; or why the write lost.
        """
        snapshot, lifetimes = state.snapshot, self._lifetimes
        if draft is None:
            return snapshot
        if snapshot is None:
            return await self.create(lifetimes.first(state, draft), asker)
        now = lifetimes.clock()
        is_over = now >= lifetimes.ends(snapshot.envelope)  # as a long request used it, and perhaps nobody else
        if state.asked and RENEW in state.asked and draft and not is_over:
            return await self._renew(state, snapshot, draft)
        envelope = lifetimes.next(state, snapshot.envelope, draft, now)
        data = None if is_over or not draft else envelope.pack()
        write = Write(snapshot.key, snapshot.version, data, lifetimes.ttl(envelope, now))
        outcome = await self._batcher.save(write, asker)
        if type(outcome) is not Saved or is_over:
            return outcome if type(outcome) is Conflict else Gone()
        if draft:
            snapshot = Snapshot(snapshot.id, snapshot.key, outcome.version, envelope)
            self.locks.publish(snapshot.key, snapshot)
            return snapshot
        logger.info("session %s destroyed, as it was emptied", snapshot.key[:8])
        return None

    async def _renew(self, state: SessionState, snapshot: Snapshot, draft: bytes) -> Snapshot | Conflict | Gone:
        """Store under a new id, then put a tombstone in the place of the old record, unless it has changed since.

        A logout that comes later with the old id, or has loaded it before, follows the tombstone. And a write whose
        answer was lost finds its own version when it is tried again, where a removal finds nothing, and cannot be told
        from another's logout.
        """
        fresh = await self.create(self._lifetimes.first(state, draft))
        outcome: Outcome | None = None
        try:
            tombstone = tombstone_of(fresh.key)
            outcome = await self._batcher.save(Write(snapshot.key, snapshot.version, tombstone, TOMBSTONE_TTL))
        finally:
            if not isinstance(outcome, Saved):
                self.discard(fresh.key)  # nobody knows its id
        if isinstance(outcome, Saved):
            logger.info("session %s renewed as %s", snapshot.key[:8], fresh.key[:8])
            return fresh
        return outcome

    async def create(self, envelope: Envelope, asker: SessionState | None = None) -> Snapshot:
        """Store under a new id.

        Raises:
            SessionTooLarge, StorageUnavailable: see `Session.save`.
        """
        loop, storage, refused = asyncio.get_running_loop(), self._access.storage, 0
        too_late = loop.time() + storage.timeout / 2
        while True:
            drawn = self._draw()
            write = Write(drawn.key, None, envelope.pack(), self._lifetimes.ttl(envelope, self._lifetimes.clock()))
            try:
                outcome = await self._batcher.save(write, asker)
            except StorageUnavailable:
                # Another server can take a session that is new; what this one may have stored, nobody knows the id of.
                if loop.time() > too_late or self._batcher.is_failing(self._draw().key):
                    raise
                continue
            if isinstance(outcome, Saved):
                logger.info("session %s created", drawn.key[:8])
                return Snapshot(drawn.id, drawn.key, outcome.version, envelope)
            refused += 1
            if refused == CREATES:
                answer = type(outcome).__name__
                error = StorageUnavailable(
                    f"{storage!r} is broken: it answered {answer} to a create under a random key"
                )
                error.storage = storage
                raise error

    def key_of(self, session_id: str) -> str:
        """Return the key of the record of an id."""
        return key_of_id(session_id, self._cookie_name)

    def _draw(self) -> PresentedId:
        """Return a new id and its key: of several servers, at one that answers."""
        for _ in range(DRAWS):
            drawn = self._identified(secrets.token_urlsafe(32))
            if not self._batcher.is_failing(drawn.key):
                break
        return drawn

    def _identified(self, session_id: str) -> PresentedId:
        return PresentedId(session_id, self.key_of(session_id), stale=False)

    def discard(self, key: str) -> None:
        """Remove a record whose id nobody has, in the background."""
        self._background.spawn(self._discard(key))

    async def _discard(self, key: str) -> None:
        try:
            await self._batcher.delete(key)
        except Exception as error:  # noqa: BLE001  (housekeeping: the record's time will end)
            logger.debug("session %s is unused, and was not removed: %s", key[:8], error)

    def _lose(self, state: SessionState, asked: int) -> None:
        snapshot = state.snapshot
        if state.lose(asked) and snapshot is not None:
            logger.info("session %s was deleted meanwhile; a request's changes to it are dropped", snapshot.key[:8])
