"""What a response that depends on a cookie, or sets one, must tell caches; and how a cookie is taken back."""

from __future__ import annotations

import re

from aiohttp import hdrs
from multidict import CIMultiDict

__all__ = ["add_vary", "forbid_caching", "take_back"]

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110, section 5.6.2
_DIRECTIVE = re.compile(rf'({_WORD})(?:=(?:{_WORD}|"(?:[^"\\]|\\.)*"))?')  # RFC 9111, section 5.2
_DIRECTIVES = re.compile(rf"{_DIRECTIVE.pattern}(?:[ \t]*,[ \t,]*{_DIRECTIVE.pattern})*")
_SHARED = {"public", "s-maxage"}
_TARGETED = re.compile(r"(?:.+-)?CDN-Cache-Control|Surrogate-Control", re.IGNORECASE)  # RFC 9213; Edge Architecture


def add_vary(headers: CIMultiDict[str]) -> None:
    """Say that the response depends on the cookie (RFC 9110, section 12.5.5)."""
    said = headers.get(hdrs.VARY)
    if said is None:
        headers[hdrs.VARY] = "Cookie"
        return
    if said == "Cookie":
        return
    present = ",".join(headers.getall(hdrs.VARY))
    fields = [field.strip().lower() for field in present.split(",")]
    if "cookie" not in fields and "*" not in fields:
        headers[hdrs.VARY] = f"{present}, Cookie"


def forbid_caching(headers: CIMultiDict[str]) -> list[str]:
    """Keep a response with our cookie out of shared caches (RFC 9111, sections 5.2.2 and 7.3).

    The app's own directives stay, apart from those that invite a shared cache: they are
    taken out and returned.
    """
    taken_out = _forbid_caching(headers, hdrs.CACHE_CONTROL, "private")
    # A cache that is meant by one of these does as it says, whatever Cache-Control says.
    for name in sorted({name for name in headers if _TARGETED.fullmatch(name)}):
        taken_out += _forbid_caching(headers, name, "no-store")
    return taken_out


def _forbid_caching(headers: CIMultiDict[str], name: str, forbidding: str) -> list[str]:
    present = ",".join(headers.getall(name, ())).strip(", \t")
    if not present:
        headers[name] = "no-store"
        return []
    if not _DIRECTIVES.fullmatch(present):  # each cache would read something else in it
        headers[name] = "no-store"
        return [present]
    directives = [(found[0], found[1].lower()) for found in _DIRECTIVE.finditer(present)]
    bare = {text.lower() for text, _ in directives}  # with an argument, `private` is for some fields only
    if "no-store" in bare and all(kind != "must-understand" for _, kind in directives):
        return []
    shared = [text for text, kind in directives if kind in _SHARED or (kind == "private" and "=" in text)]
    kept = [text for text, _ in directives if text not in shared]
    headers[name] = ", ".join(kept if "private" in bare else [forbidding, *kept])
    return shared


def take_back(headers: CIMultiDict[str], said: str) -> None:
    """Remove a `Set-Cookie` that was put there before."""
    others = [one for one in headers.popall(hdrs.SET_COOKIE, ()) if one != said]
    headers.extend([(hdrs.SET_COOKIE, one) for one in others])
