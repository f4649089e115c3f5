"""`migrate=`: visitors of an app that used aiohttp-session keep their sessions, which become ours one by one.

A visitor without a session of ours, but with a cookie of theirs, is given a session of ours with the same data under a
new random id. Which one that is, one create in our own storage decides: of a redirect record, under the old id's hash,
that names the new id. Whoever finds a redirect follows it, so requests that come at the same time share one session,
and a visitor whose response was lost finds it again. The old record is removed before anybody is given the session. So
once its owner logs out nothing is left to be taken over, and a request that had read the old record before finds the
redirect.

If a request carries a live session of ours as well, that one counts, and the old one is ended. An old cookie is never
removed from the browser while its record stays: nobody could log out of it any more.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from weakref import WeakKeyDictionary, WeakSet

from aiohttp import hdrs, web

from .._caching import forbid_caching
from .._engine.manager import StorageSessionManager
from .._engine.state import SessionState
from .._log import log_throttled, logger
from ..codec import Envelope, UndecodableError, UnknownFormatError, unpack_envelope
from ..cookie import PresentedId, key_of_id
from ..errors import ConfigError, StorageUnavailable
from ..storage import Conflict, Write
from .legacy import Legacy, LegacySource

__all__ = ["SessionTakeover"]

LEAST_TTL = 60
"""Seconds that a redirect stays at least: longer than any request that has read the old record before."""
_SALT_SIZE = 16


class SessionTakeover:
    """Looks for a session of aiohttp-session where a request has none of ours."""

    def __init__(self, manager: StorageSessionManager, source: LegacySource, legacy: Legacy) -> None:
        """Take the manager of our sessions, what holds the old ones, and how the app kept them."""
        if manager.cookie.name == legacy.cookie.name:
            raise ConfigError(
                f"the cookie {legacy.cookie.name!r} is of the sessions that migrate= takes over; "
                "give ours another name with cookie=Cookie(name=…)"
            )
        self._storage = manager.storage
        self._codec = manager.codec
        self._lifetimes = manager.lifetimes
        self._writer = manager.writer
        self._source = source
        self._legacy = legacy
        self._old_ids: WeakKeyDictionary[SessionState, tuple[str, ...]] = WeakKeyDictionary()
        """What the requests of these sessions carried besides."""
        self._left_alone: WeakSet[SessionState] = WeakSet()
        """New sessions whose visitors' old ones can be taken over only if the app is set up otherwise."""
        logger.info(
            "sessions of aiohttp-session in the cookie %r are taken over; "
            "remove migrate= when the longest of them has ended",
            legacy.cookie.name,
        )

    def watch(self, request: web.BaseRequest, state: SessionState) -> None:
        """Remember which old cookie must not bring back what ends here."""
        if old_ids := self._legacy.ids_in(request.headers):
            self._old_ids[state] = old_ids

    async def adopt(self, request: web.BaseRequest, state: SessionState) -> PresentedId | None:
        """Return the id of the session that has taken the place of the one in the request's old cookie.

        Raises:
            StorageUnavailable: the storage did not answer in time.
        """
        old_id = self._legacy.id_in(request.headers, request.cookies)
        if old_id is None:
            if self._legacy.ids_in(request.headers):  # several, whose records stay
                self._left_alone.add(state)
            return None
        # Not batched, as it happens once to a visitor. The redirect is looked for last: who finds no old record because
        # another request has just taken it over finds the redirect, which was there before it was removed.
        found = await self._source.read_legacy(self._legacy.key(old_id))
        (redirect,) = await self._storage.load([self._redirect_key(old_id)])
        if redirect is not None:
            session_id = _open(redirect.data, old_id)
        else:
            created = await self._take_over(state, old_id, found)
            if created is None:
                return None
            session_id = created
        await self._source.remove_legacy(self._legacy.key(old_id))
        return PresentedId(session_id, self._writer.key_of(session_id), stale=False)

    async def _take_over(self, state: SessionState, old_id: str, found: object) -> str | None:
        """Make a session of ours of a record, unless another request has; return its id."""
        read = self._legacy.read(found)
        if read is None:
            return None
        now = self._lifetimes.clock()
        try:
            payload = self._codec.encode(read.data)
            fresh = await self._writer.create(Envelope(min(read.created or now, now), now, None, payload))
        except (StorageUnavailable, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001  (of any codec: theirs held what ours cannot)
            what = "a session of aiohttp-session cannot be taken over, and its visitor is anonymous: %s"
            log_throttled(logger.warning, what, error, about=self._storage)
            self._left_alone.add(state)
            return None
        session_id = await self._redirect(old_id, fresh.id, self._ttl)
        if session_id == fresh.id:
            logger.info("session %s was taken over from aiohttp-session", fresh.key[:8])
        else:
            self._writer.discard(fresh.key)  # another request was faster
        return session_id

    async def supersede(self, request: web.BaseRequest, state: SessionState) -> None:
        """End what the old cookie names beside a live session of ours, and have that cookie removed.

        A cookie that is removed while its record stays leaves a session that its owner cannot end.

        Raises:
            StorageUnavailable: the storage did not answer in time.
        """
        if self._legacy.cookie.name not in request.cookies:
            return
        state.touch(0)  # also a request that only reads has a cookie to remove
        for old_id in self._legacy.ids_in(request.headers):
            successor = await self._end(old_id)
            if successor is not None and state.snapshot is not None and successor != state.snapshot.key:
                await self._remove(successor)

    async def forget(self, state: SessionState) -> str | None:
        """End what the old cookie of a session's request could bring back; return the key of its successor.

        Raises:
            StorageUnavailable: the storage did not answer in time.
        """
        key = None
        for old_id in self._old_ids.get(state, ()):
            if key is not None:
                await self._remove(key)
            key = await self._end(old_id)
        return key

    async def _end(self, old_id: str) -> str | None:
        """Remove an old record for good; return the key of the session that has taken its place, if one has."""
        key = self._legacy.key(old_id)
        # Where there is nothing to end, the redirect need not last: anybody can make up an old id.
        ttl = LEAST_TTL if await self._source.read_legacy(key) is None else self._ttl
        nobody = secrets.token_urlsafe(32)
        successor = await self._redirect(old_id, nobody, ttl)
        await self._source.remove_legacy(key)
        return None if successor == nobody else self._writer.key_of(successor)

    async def _remove(self, key: str) -> None:
        """Remove a session that lives; not one that was renewed, as it may be the visitor's own."""
        (record,) = await self._storage.load([key])
        try:
            if record is not None and unpack_envelope(record.data):
                await self._storage.save([Write(key, record.version, None, 1)])
                logger.info("session %s destroyed, as its visitor has another", key[:8])
        except (UndecodableError, UnknownFormatError):
            return

    def answer(self, request: web.BaseRequest, response: web.StreamResponse, state: SessionState) -> None:
        """Remove the old cookie from the browser."""
        cookie = self._legacy.cookie
        if state not in self._left_alone and cookie.name in request.cookies:
            response.headers.add(hdrs.SET_COOKIE, cookie.header("", secure=cookie.is_secure(request.secure), max_age=0))
            forbid_caching(response.headers)

    async def _redirect(self, old_id: str, session_id: str, ttl: int) -> str:
        """Record that `old_id` has become `session_id`, unless that was done; return the id that is recorded."""
        write = Write(self._redirect_key(old_id), None, _seal(session_id, old_id), ttl)
        (outcome,) = await self._storage.save([write])
        return _open(outcome.record.data, old_id) if isinstance(outcome, Conflict) else session_id

    def _redirect_key(self, old_id: str) -> str:
        return key_of_id(old_id, f"{self._legacy.cookie.name} taken over")  # no cookie has such a name

    @property
    def _ttl(self) -> int:
        """The seconds within which a visitor whose response was lost can come back, as after any response."""
        return max(LEAST_TTL, math.ceil(self._lifetimes.idle_timeout))


def _seal(session_id: str, old_id: str) -> bytes:
    """Hide an id from who sees the storage, but not the old id: neither is kept there."""
    salt = secrets.token_bytes(_SALT_SIZE)
    return salt + _xor(urlsafe_b64decode(f"{session_id}="), salt, old_id)


def _open(redirect: bytes, old_id: str) -> str:
    salt, sealed = redirect[:_SALT_SIZE], redirect[_SALT_SIZE:]
    return urlsafe_b64encode(_xor(sealed, salt, old_id))[:-1].decode()


def _xor(text: bytes, salt: bytes, old_id: str) -> bytes:
    pad = hmac.digest(salt, old_id.encode(), "sha256")
    return bytes(one ^ other for one, other in zip(text, pad, strict=False))
