"""What caches are told."""

from __future__ import annotations

from .run import Mutant

__all__ = ["MUTANTS"]

WRITER, MIDDLEWARE = "_engine/cookie_writer.py", "_lifecycle/middleware.py"

MUTANTS = [
    Mutant(
        "ASVS 14.3.2",
        "a response with the cookie may be kept by all",
        WRITER,
        "taken_out = forbid_caching(response.headers)",
        "taken_out: list[str] = []",
    ),
    Mutant(
        "ASVS 14.3.2",
        "what says nothing of caching may be kept",
        "_caching.py",
        "    if not present:\n",
        "    if not present:\n        return []\n    if False:\n",
    ),
    Mutant(
        "ASVS 14.3.2",
        "what the app calls public stays so",
        "_caching.py",
        '"public", "s-maxage"',
        '"nothing", "else"',
    ),
    Mutant(
        "ASVS 14.3.2",
        "what the app says of caching is not made private",
        "_caching.py",
        'kept if "private" in bare else [forbidding, *kept]',
        "kept",
    ),
    Mutant(
        "RFC 9111, 5.2.2",
        "private for some fields is taken for a ban",
        "_caching.py",
        ' or (kind == "private" and "=" in text)]',
        "]",
    ),
    Mutant(
        "RFC 9111, 5.2.2",
        "no-store beside must-understand is taken for a ban",
        "_caching.py",
        'if "no-store" in bare and all(kind != "must-understand" for _, kind in directives):',
        'if "no-store" in bare:',
    ),
    Mutant(
        "RFC 9111, 5.2.2",
        "a header that cannot be parsed stays as it is",
        "_caching.py",
        "    if not _DIRECTIVES.fullmatch(present):",
        "    if False:",
    ),
    Mutant(
        "RFC 9111, 5.2.2",
        "a CDN's own header invites it",
        "_caching.py",
        "if _TARGETED.fullmatch(name)}",
        "if False}",
    ),
    Mutant(
        "RFC 9111, 4.1",
        "what was saved varies by nothing",
        WRITER,
        "add_vary(response.headers)",
        "pass",
    ),
    Mutant(
        "RFC 9111, 4.1",
        "a live session that is only read varies by nothing",
        "_caching.py",
        '        headers[hdrs.VARY] = "Cookie"\n        return\n',
        "        return\n",
    ),
    Mutant(
        "RFC 9111, 4.1",
        "the page that is shown in an outage varies by nothing",
        MIDDLEWARE,
        "                visit.failure = error\n                raise\n",
        "                raise\n",
    ),
    Mutant(
        "RFC 9111, 4.1",
        "a 503 varies by nothing",
        MIDDLEWARE,
        'hdrs.RETRY_AFTER: str(RETRY_AFTER), hdrs.VARY: "Cookie"}',
        "hdrs.RETRY_AFTER: str(RETRY_AFTER)}",
    ),
    Mutant(
        "RFC 9111, 4.1",
        "a 409 varies by nothing",
        MIDDLEWARE,
        'return web.HTTPConflict(headers={hdrs.VARY: "Cookie"})',
        "return web.HTTPConflict()",
    ),
]
