"""The cookie: its options, and the ids in a `Cookie` header."""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from aiohttp import hdrs
from multidict import CIMultiDictProxy

from ._keywords import answering_constructor
from .errors import ConfigError

__all__ = [
    "Cookie",
    "CookieFinder",
    "CookieReader",
    "PresentedId",
    "Secret",
    "checked_secrets",
    "derive_keys",
    "key_of_id",
    "path_matches",
]

MAX_AGE = 400 * 86_400
"""Seconds; browsers keep no cookie longer (RFC 6265bis, section 5.5)."""
MAX_SIZE = 4096
"""Bytes of name and value together (RFC 6265bis, section 5.6)."""
MAX_NAME = MAX_SIZE - 87
"""Bytes of a name that leaves room for a signed id."""
MAX_ATTRIBUTE = 1024
"""Bytes of one attribute's value (RFC 6265bis, section 5.6)."""
MAX_LOOKED_AT = 4
"""How many different well-formed cookies of our name one request may make us verify and load; of more, none is."""
MAX_REMEMBERED = 2048
"""How many visitors' `Cookie` headers are remembered with what was found in them."""
MAX_REMEMBERED_SIZE = 2048
"""Characters; longer headers, and several in one request, are searched each time."""
MIN_SECRET = 32
"""Bytes: as long as the digest that a secret keys (RFC 2104, section 3)."""

Secret = str | bytes | Sequence[str | bytes]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_PATH = re.compile(r"/([\x20-\x3a\x3c-\x7e]*[\x21-\x3a\x3c-\x7e])?")  # RFC 6265, 4.1.1; browsers strip a last space
_DOMAIN = re.compile(r"\.?[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")
_SAME_SITES = ("Lax", "Strict", "None", "auto", None)
_ID = "[A-Za-z0-9_-]{43}"


@answering_constructor("Cookie(name=…, path=…)")
@dataclass(frozen=True, kw_only=True)
class Cookie:
    """How the browser keeps the session's cookie (RFC 6265bis).

    Raises:
        ConfigError: a value that no browser would accept, or a contradiction.
    """

    name: str = "session"
    """The cookie's name; with `__Host-` in front, the strongest choice on https, no sibling domain can set it.

    With `__Host-Http-` no script can set it either, in browsers that know this prefix. Names that begin with
    `__Secure-` or `__Http-` demand less.
    """
    path: str = "/"
    """The part of the site to which browsers send it.

    Elsewhere a session is empty, and changing it is a `RuntimeError`. If a proxy removes a prefix from the paths that
    the app sees, keep `"/"`, and let the proxy put the prefix into the cookie (nginx: `proxy_cookie_path`).
    """
    domain: str | None = None
    """A domain opens the cookie to all of its subdomains; `None` keeps it to this host."""
    secure: bool | Literal["auto"] = "auto"
    """Whether browsers send it on https only.

    `"auto"` says so on https requests, and always where the name's prefix, `samesite="None"` or `partitioned`
    demand it.
    """
    httponly: bool = True
    """Whether it is kept from scripts."""
    samesite: Literal["Lax", "Strict", "None", "auto"] | None = "Lax"
    """Which cross-site requests carry it.

    `"auto"` is `"None"` on https requests and `"Lax"` on http, where browsers accept no `"None"`.
    `None` leaves the attribute out, which is weaker than `"Lax"`: browsers may send a new cookie by other sites' forms.
    The string `"None"` allows all; where a browser blocks embedded sites' cookies, frames need `partitioned` as well.
    """
    partitioned: bool = False
    """Whether browsers keep one cookie for each embedding site (CHIPS)."""
    priority: Literal["Low", "Medium", "High"] | None = None
    """Which cookies Chromium keeps longest where a site has too many; `None` leaves the attribute out."""
    persistent: bool = False
    """Whether it has a Max-Age, and so outlives the browser."""

    def __post_init__(self) -> None:
        token, host = (
            "an RFC 9110 token: letters, digits, !#$%&'*+-.^_`|~",
            "a host name in ASCII (punycode for others)",
        )
        checks: tuple[tuple[str, Any, str], ...] = (
            ("name", _TOKEN.fullmatch, token),
            ("name", lambda name: len(name) <= MAX_NAME, f"at most {MAX_NAME} bytes, {MAX_SIZE} with the value"),
            ("path", _PATH.fullmatch, "ASCII, begin with '/', hold no ';' and end with no space"),
            ("path", lambda path: len(path) <= MAX_ATTRIBUTE, f"at most {MAX_ATTRIBUTE} bytes"),
            ("domain", lambda domain: domain is None or _DOMAIN.fullmatch(domain), host),
            ("domain", lambda domain: len(domain or "") <= MAX_ATTRIBUTE, f"at most {MAX_ATTRIBUTE} bytes"),
            ("secure", lambda secure: isinstance(secure, bool) or secure == "auto", "True, False or 'auto'"),
            ("httponly", lambda flag: isinstance(flag, bool), "True or False"),
            ("partitioned", lambda flag: isinstance(flag, bool), "True or False"),
            ("persistent", lambda flag: isinstance(flag, bool), "True or False"),
            ("samesite", lambda site: site in _SAME_SITES, "'Lax', 'Strict', 'None', 'auto' or None"),
            ("priority", lambda rank: rank in ("Low", "Medium", "High", None), "'Low', 'Medium', 'High' or None"),
        )
        for field, holds, rule in checks:
            value = getattr(self, field)
            try:
                is_right = holds(value)
            except TypeError:  # not even a string
                is_right = False
            if not is_right:
                raise ConfigError(f"Cookie({field}={value!r}): {field} must be {rule}")
        if self.secure is False and self._secure_because is not None:
            raise ConfigError(
                f"Cookie(secure=False) contradicts {self._secure_because}, which browsers accept on secure cookies only"
            )
        if self.secure is False and self.samesite == "auto":
            raise ConfigError(
                "Cookie(secure=False) contradicts samesite='auto', which is 'None' on https: browsers accept that on "
                "secure cookies only"
            )
        if not self.httponly and self._has_prefix("__http-", "__host-http-"):
            raise ConfigError(
                f"Cookie(httponly=False) contradicts name={self.name!r}, which browsers accept on HttpOnly cookies only"
            )
        if self._has_prefix("__host-") and (self.domain is not None or self.path != "/"):
            raise ConfigError(
                f"Cookie(name={self.name!r}) demands path='/' and no domain; "
                f"it has path={self.path!r}, domain={self.domain!r}"
            )

    def _has_prefix(self, *prefixes: str) -> bool:
        return self.name.lower().startswith(prefixes)  # browsers compare so (RFC 6265bis, section 5.7)

    @property
    def _secure_because(self) -> str | None:
        if self._has_prefix("__secure-", "__host-", "__http-"):
            return f"name={self.name!r}"
        if self.samesite == "None":
            return "samesite='None'"
        return "partitioned=True" if self.partitioned else None

    def is_secure(self, over_https: bool) -> bool:
        """Return whether the cookie carries `Secure` on a response to such a request."""
        return over_https or self._secure_because is not None if self.secure == "auto" else self.secure

    def header(self, value: str, *, secure: bool, max_age: int | None, over_https: bool | None = None) -> str:
        """Return the value of the `Set-Cookie` header.

        Args:
            value: the cookie's value.
            secure: see `is_secure`.
            max_age: in seconds; 0 removes the cookie.
            over_https: whether the request came by https, which `samesite="auto"` asks for; as `secure` by default.
        """
        parts = [f"{self.name}={value}", f"Path={self.path}"]
        if self.domain is not None:
            parts.append(f"Domain={self.domain}")
        if max_age is not None:
            parts.append(f"Max-Age={min(max_age, MAX_AGE)}")
        if max_age == 0:
            parts.append("Expires=Thu, 01 Jan 1970 00:00:00 GMT")
        if secure:
            parts.append("Secure")
        if self.httponly:
            parts.append("HttpOnly")
        if self.samesite == "auto":
            parts.append("SameSite=None" if (secure if over_https is None else over_https) else "SameSite=Lax")
        elif self.samesite is not None:
            parts.append(f"SameSite={self.samesite}")
        if self.partitioned:
            parts.append("Partitioned")
        if self.priority is not None:
            parts.append(f"Priority={self.priority}")
        return "; ".join(parts)


class PresentedId(NamedTuple):
    """An id that a browser sent, in the right form and with a right signature."""

    id: str
    key: str
    """Under which the storage knows it."""
    stale: bool
    """Signed with an older secret: to be sent again, signed with the first."""
    is_only: bool = False
    """The request carried no other."""

    def __repr__(self) -> str:
        return f"<PresentedId of session {self.key[:8]}{', stale' if self.stale else ''}>"

    def __sentry_repr__(self) -> str:  # Sentry shows the items of a tuple, whatever its repr is
        return repr(self)


class CookieFinder:
    """Finds the cookies of one name in `Cookie` headers, by the form that a value of ours has."""

    _flaw = "is not sealed with any of the secrets"
    """Of a value in the right form that is none of ours."""

    def __init__(self, name: str, form: str) -> None:
        self.name = name
        ours = rf"(?:^|;)[ \t]*{re.escape(name)}="
        self._any = re.compile(ours)
        self._well_formed = re.compile(rf"{ours}{form}[ \t]*(?=;|$)")

    def is_in(self, headers: CIMultiDictProxy[str]) -> bool:
        """Return whether the request has a cookie of our name, whatever its value."""
        return any(self._any.search(header) for header in headers.getall(hdrs.COOKIE, ()))

    def found_in(self, headers: Sequence[str]) -> list[Any]:
        """Return the groups of the form in the well-formed cookies, copies once; nothing if there are too many.

        The first few of too many could be those that somebody else has put in front of the visitor's own.
        """
        found = self._all_in(headers)
        return [] if len(found) > MAX_LOOKED_AT else found

    def why_none(self, headers: CIMultiDictProxy[str]) -> str:
        """Return what is wrong with the cookies of a request of which none is one of ours."""
        if not self.is_in(headers):
            return f"it carries no cookie {self.name!r}"
        found = self._all_in(headers.getall(hdrs.COOKIE, ()))
        if len(found) > MAX_LOOKED_AT:
            return f"it carries {len(found)} different cookies {self.name!r}, and at most {MAX_LOOKED_AT} are looked at"
        return f"its cookie {self.name!r} {self._flaw if found else 'does not have the form of ours'}"

    def _all_in(self, headers: Sequence[str]) -> list[Any]:
        return list(dict.fromkeys(found for header in headers for found in self._well_formed.findall(header)))


class CookieReader(CookieFinder):
    """Finds ids in `Cookie` headers, and writes the values that carry them.

    A visitor sends the same header with each request, so what was found in it is remembered.
    """

    _flaw = "is not signed with any of the secrets"

    def __init__(self, name: str, secret: Secret | None) -> None:
        self._pair = f"{name}="
        self._keys = derive_keys(secret, "session cookie signature") if secret is not None else []
        super().__init__(name, rf"({_ID})\.({_ID})" if self._keys else rf"({_ID})()")
        self._find_again = lru_cache(MAX_REMEMBERED)(self._find)

    def read(self, headers: CIMultiDictProxy[str]) -> Sequence[PresentedId]:
        """Return the ids, each once, in the header's order; forged and malformed values are left out."""
        cookies = headers.getall(hdrs.COOKIE, ())
        if len(cookies) == 1 and len(cookies[0]) <= MAX_REMEMBERED_SIZE:
            return self._find_again(cookies[0])
        return self._find(*cookies)

    def _find(self, *headers: str) -> tuple[PresentedId, ...]:
        opened = (self._open(*pair) for pair in self.found_in(headers))
        found = tuple({one.id: one for one in opened if one is not None}.values())
        return (found[0]._replace(is_only=True),) if len(found) == 1 else found

    def value(self, session_id: str) -> str:
        """Give the cookie's value for an id: itself, or with its signature where a secret is set."""
        return f"{session_id}.{self._sign(self._keys[0], session_id)}" if self._keys else session_id

    def _open(self, session_id: str, signature: str) -> PresentedId | None:
        if not self._keys:
            return PresentedId(session_id, key_of_id(session_id, self.name), stale=False)
        for age, key in enumerate(self._keys):
            if hmac.compare_digest(self._sign(key, session_id), signature):
                return PresentedId(session_id, key_of_id(session_id, self.name), stale=age > 0)
        return None

    def _sign(self, key: bytes, session_id: str) -> str:
        digest = hmac.digest(key, f"{self._pair}{session_id}".encode(), "sha256")
        return urlsafe_b64encode(digest)[:-1].decode()


def key_of_id(session_id: str, cookie: str = "session") -> str:
    """Hash an id, so that a stolen database logs nobody in; with the cookie's name, so that it is no other cookie's."""
    return urlsafe_b64encode(hashlib.sha256(f"{cookie}={session_id}".encode()).digest())[:-1].decode()


def derive_keys(secret: Secret, purpose: str) -> list[bytes]:
    """Make a key for one purpose from each secret, so that no two uses share a key.

    Raises:
        ConfigError: no secret, or one that is shorter than 32 bytes.
    """
    return [hmac.digest(one, f"aiohttp_store {purpose}".encode(), "sha256") for one in checked_secrets(secret)]


def checked_secrets(secret: Secret) -> list[bytes]:
    """Give the secrets as bytes, the first one first.

    Raises:
        ConfigError: no secret, or one that is shorter than 32 bytes.
    """
    secrets = [secret] if isinstance(secret, str | bytes) else secret
    if not isinstance(secrets, list | tuple) or not all(isinstance(one, str | bytes) for one in secrets):
        raise ConfigError(f"secret is of type {type(secret).__name__}; give str or bytes, or a list of them")
    if not secrets:
        raise ConfigError("secret=[] holds no secret; give at least one, as from secrets.token_urlsafe(32)")
    raw = [one.encode() if isinstance(one, str) else one for one in secrets]
    for position, one in enumerate(raw):
        if len(one) < MIN_SECRET:
            raise ConfigError(
                f"secret {position + 1} of {len(raw)} has {len(one)} bytes, and {MIN_SECRET} are the least; "
                "make one with secrets.token_urlsafe(32)"
            )
    return raw


def path_matches(path: str, cookie_path: str) -> bool:
    """Whether browsers send a cookie of a path with a request for another (RFC 6265, section 5.1.4)."""
    return path == cookie_path or path.startswith(cookie_path.rstrip("/") + "/")
