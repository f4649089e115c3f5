"""What the storages that keep a record per session share: keys, JSON, and when a record goes."""

from __future__ import annotations

import math
import re
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Unpack

from aiohttp import web

from ..errors import StorageUnavailable
from .abstract import AbstractStorage, CookieOptions
from .session import Session, kept_of

__all__ = ["RecordStorage", "random_key"]

_KEY = re.compile(r"[\x21-\x7e]{1,250}")
"""What Memcached accepts, whatever a visitor sends."""


def random_key() -> str:
    """Draw an id."""
    return uuid.uuid4().hex


class RecordStorage(AbstractStorage):
    """Keeps the JSON of a session under the cookie's name, `_`, and the id in the cookie."""

    def __init__(self, key_factory: Callable[[], str], **options: Unpack[CookieOptions]) -> None:
        super().__init__(**options)
        self._key_factory = key_factory

    @abstractmethod
    async def get_record(self, key: str) -> bytes | str | None: ...

    @abstractmethod
    async def set_record(self, key: str, record: str, lasts: int | None, *, must_exist: bool) -> bool:
        """Store for so many seconds, and tell whether it was: with `must_exist`, not where nothing is stored."""

    @abstractmethod
    async def delete_record(self, key: str) -> None: ...

    async def load_session(self, request: web.Request) -> Session:
        """Read the record of the id in the cookie; what is no session's record makes a new session."""
        cookie = self.load_cookie(request)
        key = self._key(cookie)
        record = await self.get_record(key) if _KEY.fullmatch(key) else None
        if cookie is None or record is None:
            return await self.new_session()
        return Session(cookie, data=self._decode(record), new=False, max_age=self.max_age)

    async def save_session(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        """Write the record and set the cookie; those of an empty session are removed.

        A record that was removed meanwhile stays so, and the cookie is then left alone.
        """
        identity, lasts = session.identity, None if session.max_age is None else math.ceil(session.max_age)
        if session.empty or (lasts is not None and lasts <= 0):
            if identity is not None:
                await self.delete_record(self._key(identity))
                self.save_cookie(response, "")
            return
        if identity is None:
            identity = self._key_factory()
        record = self._encoder(self._get_session_data(session))
        kept = kept_of(session)
        must_exist = kept.kept_under is not None
        if not await self.set_record(self._key(identity), record, lasts, must_exist=must_exist):
            kept.is_gone = True
            return
        kept.identity = kept.kept_under = identity
        self.save_cookie(response, str(identity), max_age=lasts)

    def _key(self, identity: object) -> str:
        return f"{self.cookie_name}_{identity}"

    def _decode(self, record: bytes | str) -> Any:
        try:
            return self._decoder(record if isinstance(record, str) else record.decode()) or {}
        except Exception:  # noqa: BLE001  (a decoder of the app's own may raise anything)
            return {}

    @contextmanager
    def _answering(self, *outages: type[Exception]) -> Iterator[None]:
        try:
            yield
        except outages as error:
            raise StorageUnavailable(f"{type(self).__name__} failed: {type(error).__name__}: {error}") from error
