"""`migrate=`: visitors of an app that used aiohttp-session keep their sessions, which become ours one by one.

A visitor without a session of ours, but with a cookie of theirs, is given a session of ours with the same data under a
new random id. Which one that is, one create in our own storage decides: of a note, under the old id's hash, that names
the new id. Whoever finds a note follows it, so requests that come at the same time share one session, and a visitor
whose response was lost finds it again. The old record is removed before anybody is given the session. So once its
owner logs out nothing is left to be taken over, and a request that had read the old record before finds the note.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable
from typing import Unpack

from aiohttp import hdrs, web

from .._engine.manager import Options, StorageSessionManager
from .._log import log_throttled, logger
from ..codec import Envelope
from ..cookie import PresentedId, forbid_caching, key_of_id
from ..errors import ConfigError, SessionTooLarge
from ..session import Session
from ..storage import Conflict, Record, Storage, Write
from .legacy import Legacy, LegacySource

__all__ = ["TakeoverManager"]

LEAST_NOTE = 60
"""Seconds that a note stays at least: longer than any request that has read the old record before."""
_SALT_SIZE = 16


class TakeoverManager(StorageSessionManager):
    """A manager that looks for a session of aiohttp-session where a request has none of ours."""

    def __init__(self, storage: Storage, old: LegacySource, legacy: Legacy, **options: Unpack[Options]) -> None:
        """Take the same storage twice: as ours, and as what holds the old sessions."""
        super().__init__(storage, **options)
        if self.cookie.name == legacy.cookie.name:
            raise ConfigError(
                f"the cookie {legacy.cookie.name!r} is of the sessions that migrate= takes over; "
                "give ours another name with cookie=Cookie(name=…)"
            )
        self._old = old
        self._legacy = legacy
        logger.info(
            "sessions of aiohttp-session in the cookie %r are taken over; "
            "remove migrate= when the longest of them has ended",
            legacy.cookie.name,
        )

    def load(self, request: web.BaseRequest) -> Awaitable[Session]:
        """Give the session of the request's cookie, or of its old cookie, or a new one.

        Raises:
            StorageUnavailable: the storage did not answer in time.
        """
        return self._load(request, super().load(request))

    async def _load(self, request: web.BaseRequest, ours: Awaitable[Session]) -> Session:
        ends = asyncio.get_running_loop().time() + self.storage.timeout
        session = await ours
        old_id = self._legacy.id_in(request.cookies) if session._snapshot is None else None
        if old_id is not None:
            async with self._within_budget(asyncio.timeout_at(ends)):
                await self.open()
                session = await self._take_over(old_id)
        session._legacy_request = request
        return session

    async def new(self, request: web.BaseRequest, old: Session | None) -> Session:
        """Do what `Manager.new` does."""
        session = await super().new(request, old)
        session._legacy_request = request
        return session

    async def save(self, request: web.BaseRequest, response: web.StreamResponse, session: Session) -> None:
        """Do what `Manager.save` does; what ends a session also ends what the old cookie could bring back."""
        if session._ended and session._legacy_request is not None:
            await self._protected(self._end_legacy_in_time(session))
        await super().save(request, response, session)

    async def _attempt(
        self, session: Session, draft: bytes | None = None, asker: Session | None = None
    ) -> Record | None:
        if session._ended and session._legacy_request is not None:  # by `session.save()`, before the request's end
            await self._end_legacy(session)
        return await super()._attempt(session, draft, asker)

    async def _end_legacy_in_time(self, session: Session) -> None:
        async with self._within_budget():
            await self.open()
            await self._end_legacy(session)

    async def _end_legacy(self, session: Session) -> None:
        old_id = self._legacy.id_in(session._legacy_request.cookies)
        if old_id is not None:
            key = self._legacy.key(old_id)
            # Where there is nothing to end, the note need not last: anybody can make up an old id.
            ttl = LEAST_NOTE if await self._old.read_legacy(key) is None else self._note_ttl
            session._doomed += (self._key(await self._note(old_id, secrets.token_urlsafe(32), ttl)),)
            await self._old.remove_legacy(key)
        session._legacy_request = None

    async def _take_over(self, old_id: str) -> Session:
        # Not batched, as it happens once to a visitor. The note is looked for last: who finds no old record because
        # another request has just taken it over finds the note, which was there before it was removed.
        found = await self._old.read_legacy(self._legacy.key(old_id))
        (note,) = await self.storage.load([self._note_key(old_id)])
        if note is None:
            read = self._legacy.read(found)
            if read is None:
                return Session(self, {})
            now = self.clock()
            try:
                payload = self._encode(read.data)
            except Exception as error:  # noqa: BLE001  (of any codec: theirs held what ours cannot)
                return self._leave_alone(error)
            envelope = Envelope(min(read.created or now, now), now, None, payload)
            try:
                fresh = await self._put_under_new_id(envelope)
            except SessionTooLarge as error:
                return self._leave_alone(error)
            session_id = await self._note(old_id, fresh.id, self._note_ttl)
            if session_id == fresh.id:
                logger.info("session %s was taken over from aiohttp-session", fresh.key[:8])
            else:
                self._spawn(self._discard(fresh.key))  # another request was faster
        else:
            session_id = _open(note.data, old_id)
        await self._old.remove_legacy(self._legacy.key(old_id))
        key = self._key(session_id)
        session = await self._batcher.load(key, PresentedId(session_id, key, stale=False))
        session._cookie_id, session._quiet_until = None, 0.0  # its cookie is still to be sent
        return session

    def _leave_alone(self, error: Exception) -> Session:
        what = "a session of aiohttp-session cannot be taken over, and its visitor is anonymous: %s"
        log_throttled(logger.warning, what, error)
        session = Session(self, {})
        session._left_alone = True
        return session

    async def _note(self, old_id: str, session_id: str, ttl: int) -> str:
        """Leave the note that `old_id` has become `session_id`, unless there is one; give the id that it names."""
        write = Write(self._note_key(old_id), None, _seal(session_id, old_id), ttl)
        (outcome,) = await self.storage.save([write])
        return _open(outcome.record.data, old_id) if isinstance(outcome, Conflict) else session_id

    def _note_key(self, old_id: str) -> str:
        return key_of_id(old_id, f"{self._legacy.cookie.name} taken over")  # no cookie has such a name

    @property
    def _note_ttl(self) -> int:
        """Give the seconds within which a visitor whose response was lost can come back, as after any response."""
        return max(LEAST_NOTE, math.ceil(self._idle_timeout))

    def _tell(self, request: web.BaseRequest, response: web.StreamResponse, session: Session) -> None:
        super()._tell(request, response, session)
        if session._left_alone or self._legacy.cookie.name not in request.cookies:
            return
        cookie = self._legacy.cookie
        response.headers.add(hdrs.SET_COOKIE, cookie.header("", secure=cookie.is_secure(request.secure), max_age=0))
        forbid_caching(response.headers)


def _seal(session_id: str, old_id: str) -> bytes:
    """Hide an id from who sees the storage, but not the old id: neither is kept there."""
    salt = secrets.token_bytes(_SALT_SIZE)
    return salt + _xor(urlsafe_b64decode(f"{session_id}="), salt, old_id)


def _open(note: bytes, old_id: str) -> str:
    salt, sealed = note[:_SALT_SIZE], note[_SALT_SIZE:]
    return urlsafe_b64encode(_xor(sealed, salt, old_id))[:-1].decode()


def _xor(text: bytes, salt: bytes, old_id: str) -> bytes:
    pad = hmac.digest(salt, old_id.encode(), "sha256")
    return bytes(one ^ other for one, other in zip(text, pad, strict=False))
