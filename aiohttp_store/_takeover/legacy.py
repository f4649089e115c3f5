"""Sessions that aiohttp-session wrote: which cookie names them, where a storage finds them, and how they are read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from http.cookies import SimpleCookie
from typing import Any, NamedTuple, Protocol, runtime_checkable

from aiohttp import hdrs
from multidict import CIMultiDictProxy

from ..cookie import MAX_LOOKED_AT, Cookie
from ..errors import ConfigError
from ..url import nearest

__all__ = ["Legacy", "LegacyOptions", "LegacySession", "LegacySource"]

_KNOWN = ("aiohttp_session",)
_IDS = {
    "uuid": re.compile(r"[0-9a-f]{32}"),  # uuid4().hex, which aiohttp-session draws
    "any": re.compile(r"[\x21-\x7e]+"),
}
_LONGEST_KEY = 250  # of memcached


class LegacySession(NamedTuple):
    """What a record of aiohttp-session says."""

    created: float | None
    """Seconds since the epoch of its last write; `None` where it does not say."""
    data: dict[str, Any]

    def __repr__(self) -> str:
        return f"<LegacySession of {len(self.data)} keys>"

    def __sentry_repr__(self) -> str:  # Sentry shows the items of a tuple, whatever its repr is
        return repr(self)


@dataclass(frozen=True)
class Legacy:
    """How an app kept its sessions before it moved."""

    cookie: Cookie
    """The attributes that it gave its cookie decide how that can be removed."""
    ids: re.Pattern[str]

    def id_in(self, headers: CIMultiDictProxy[str], cookies: Mapping[str, str]) -> str | None:
        """Return the id that a request carries, if it has the form of one, and if there is one only.

        Of several, a sibling domain may have set all but one.
        """
        value = cookies.get(self.cookie.name)
        return value if (value,) == self.ids_in(headers) else None

    def ids_in(self, headers: CIMultiDictProxy[str]) -> tuple[str, ...]:
        """Return all that a request carries and that have the form of an id."""
        unquoted = SimpleCookie().value_decode  # aiohttp quotes what a token cannot hold
        ours = re.compile(rf"(?:^|;)[ \t]*{re.escape(self.cookie.name)}=([^;]*)")
        sent = (
            unquoted(value.strip())[0] for header in headers.getall(hdrs.COOKIE, ()) for value in ours.findall(header)
        )
        found = dict.fromkeys(one for one in sent if self.ids.fullmatch(one) and len(self.key(one)) <= _LONGEST_KEY)
        return tuple(found)[:MAX_LOOKED_AT]

    def key(self, session_id: str) -> str:
        """Give the key of a record, in ASCII."""
        return f"{self.cookie.name}_{session_id}"

    def read(self, value: Any) -> LegacySession | None:
        """Read JSON as bytes, or what was JSON; `None` is no session, as the `{}` that a logout leaves."""
        try:
            found = json.loads(value.decode()) if isinstance(value, bytes) else value
        except (ValueError, RecursionError):
            return None
        data = found.get("session") if isinstance(found, dict) else None
        if not isinstance(data, dict):
            return None
        created = found.get("created") or None
        if created is not None and not (isinstance(created, int | float) and 0 < created < math.inf):
            return None
        return LegacySession(created, data)


@dataclass(frozen=True, kw_only=True)
class LegacyOptions:
    """Which sessions of another library are taken over; they are in the same server and database."""

    migrate: str | None = None
    """Whose sessions to take over: `aiohttp_session`. The other parameters need it."""
    migrate_cookie: str = "AIOHTTP_SESSION"
    """The name of the old cookie, with which the old keys begin."""
    migrate_path: str = "/"
    """The path of the old cookie."""
    migrate_domain: str | None = None
    """The domain of the old cookie."""
    migrate_ids: str = "uuid"
    """The form of the old ids: `uuid`, 32 hexadecimal digits, or `any`, if the app had a `key_factory`."""

    def legacy(self) -> Legacy | None:
        """Give what these parameters say, `None` without `migrate`.

        Raises:
            ConfigError: a value that is not known, or no cookie can have, or one without `migrate`.
        """
        if self.migrate is None:
            others = [one for one in fields(self) if one.name.startswith("migrate_")]
            given = next((one.name for one in others if getattr(self, one.name) != one.default), None)
            if given is not None:
                raise ConfigError(f"{given}= is given, but nothing is to be taken over; add migrate=aiohttp_session")
            return None
        for name, known in (("migrate", _KNOWN), ("migrate_ids", tuple(_IDS))):
            value = getattr(self, name)
            if value not in known:
                names = " and ".join(known)
                raise ConfigError(f"{name}={value!r} is not known{nearest(value, known)}; known: {names}")
        cookie = Cookie(name=self.migrate_cookie, path=self.migrate_path, domain=self.migrate_domain)
        return Legacy(cookie, _IDS[self.migrate_ids])


@runtime_checkable
class LegacySource(Protocol):
    """What a storage may offer whose server holds sessions of another library."""

    legacy: Legacy | None
    """Which they are, `None`: they are not asked for."""

    async def read_legacy(self, key: str) -> Any:
        """Give what is stored under this key: JSON as bytes, or what was JSON; `None` where there is nothing.

        Raises:
            StorageUnavailable: the server did not answer within `timeout`.
        """

    async def remove_legacy(self, key: str) -> None:
        """Remove what is stored under this key; nothing there is no error.

        Raises:
            StorageUnavailable: the server did not answer within `timeout`.
        """
