"""What the browser is told, and the session that is sealed in its cookie."""

from __future__ import annotations

from .run import Mutant

__all__ = ["MUTANTS"]

SEALING, COOKIE_MANAGER = "_engine/sealing.py", "_engine/cookie_manager.py"

MUTANTS = [
    # Attributes.
    Mutant(
        "ASVS 3.3.1",
        "a cookie of an https response is not Secure",
        "cookie.py",
        "return over_https or self._secure_because",
        "return self._secure_because",
    ),
    Mutant(
        "ASVS 3.3.1",
        "secure=False is accepted beside what demands Secure",
        "cookie.py",
        "if self.secure is False and self._secure_because is not None:",
        "if False:",
    ),
    Mutant(
        "ASVS 3.3.2",
        "a cookie has no SameSite by default",
        "cookie.py",
        '| None = "Lax"\n',
        "| None = None\n",
    ),
    Mutant(
        "ASVS 3.3.2",
        "SameSite=None needs no Secure",
        "cookie.py",
        '        if self.samesite == "None":\n            return',
        "        if False:\n            return",
    ),
    Mutant(
        "ASVS 3.3.3",
        "__Host- with a domain or a path is accepted",
        "cookie.py",
        'if self._has_prefix("__host-") and (',
        "if False and (",
    ),
    Mutant(
        "ASVS 3.3.3",
        "a prefix in other letters is none",
        "cookie.py",
        "self.name.lower().startswith",
        "self.name.startswith",
    ),
    Mutant(
        "ASVS 3.3.3",
        "a removal has no domain",
        "cookie.py",
        "        if self.domain is not None:\n            parts",
        "        if self.domain is not None and max_age != 0:\n            parts",
    ),
    Mutant(
        "RFC 6265bis, 4.1.3",
        "__Http- without HttpOnly is accepted",
        "cookie.py",
        'if not self.httponly and self._has_prefix("__http-", "__host-http-"):',
        "if False:",
    ),
    Mutant(
        "RFC 6265bis, 4.1.3",
        "__Http- without Secure is accepted",
        "cookie.py",
        'self._has_prefix("__secure-", "__host-", "__http-")',
        'self._has_prefix("__secure-", "__host-")',
    ),
    Mutant(
        "ASVS 3.3.4",
        "scripts may read the cookie by default",
        "cookie.py",
        "httponly: bool = True",
        "httponly: bool = False",
    ),
    Mutant(
        "ASVS 3.3.4",
        "the log holds an id",
        "_engine/writing.py",
        "a request's changes to it are dropped\", snapshot.key[:8])",
        "a request's changes to it are dropped\", snapshot.id)",
    ),
    Mutant(
        "ASVS 3.3.4",
        "a session's repr holds its id",
        "session.py",
        'return f"<Session {status}, {len(self)} keys>"',
        'return f"<Session {status}, {len(self)} keys, {self.identity}>"',
    ),
    Mutant(
        "ASVS 3.3.4",
        "a session can be pickled with its id",
        "session.py",
        'raise TypeError("a session cannot be pickled, as that would copy its id; pickle dict(session)")',
        "return str, (self.identity,)",
    ),
    Mutant(
        "ASVS 3.3.5",
        "a name may be longer than a browser takes",
        "cookie.py",
        "len(name) <= MAX_NAME",
        "True",
    ),
    Mutant(
        "ASVS 3.3.5",
        "a path may be longer than a browser takes",
        "cookie.py",
        "len(path) <= MAX_ATTRIBUTE",
        "True",
    ),
    Mutant(
        "ASVS 3.3.5",
        "a sealed session may be larger than a browser takes",
        COOKIE_MANAGER,
        "if size > MAX_SIZE:",
        "if False:",
    ),
    Mutant(
        "RFC 6265bis, 4.1.1",
        "a name may hold a semicolon and what comes after it",
        "cookie.py",
        '0-9A-Za-z-]+")  # RFC 9110',
        '0-9A-Za-z; =\\r\\n-]+")  # RFC 9110',
    ),
    Mutant(
        "RFC 6265bis, 4.1.1",
        "a path may hold a semicolon",
        "cookie.py",
        r'r"/([\x20-\x3a\x3c-\x7e]*[\x21-\x3a\x3c-\x7e])?"',
        r'r"/([\x20-\x7e]*[\x21-\x7e])?"',
    ),
    Mutant(
        "RFC 6265bis, 5.5",
        "an age is not cut",
        "cookie.py",
        "Max-Age={min(max_age, MAX_AGE)}",
        "Max-Age={max_age}",
    ),
    # Several cookies of one name.
    Mutant(
        "RFC 6265bis, 4.2.2",
        "the first cookie of the name is the only one",
        "cookie.py",
        "for header in headers for found in self._well_formed.findall(header)",
        "for header in headers for found in self._well_formed.findall(header)[:1]",
    ),
    Mutant(
        "Cookie tossing",
        "of two live sessions the first is used",
        "_engine/manager.py",
        "return live[0] if len(live) == 1 else None",
        "return live[0] if live else None",
    ),
    Mutant(
        "Cookie tossing",
        "two live sessions are not warned about",
        "_engine/manager.py",
        "    if len(live) > 1:\n",
        "    if False:\n",
    ),
    Mutant(
        "Nor does a crowd",
        "of too many cookies the first few are looked at",
        "cookie.py",
        "return [] if len(found) > MAX_LOOKED_AT else found",
        "return found[:MAX_LOOKED_AT]",
    ),
    Mutant(
        "ASVS 14.2.1",
        "an id in the address is read",
        "_engine/manager.py",
        "        presented = self._reader.read(request.headers)\n",
        (
            "        presented = self._reader.read(request.headers)\n"
            "        presented = presented or self._reader._find(*request.query_string.split('&'))\n"
        ),
    ),
    # cookie://
    Mutant(
        "A session in a cookie is neither",
        "an altered cookie is opened",
        SEALING,
        "return self._cipher(root, salt).decrypt(nonce, content, self._name), age > 0",
        (
            "from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes\n"
            "                key = algorithms.AES(HKDFExpand(SHA256(), _KEY, salt).derive(root))\n"
            '                plain = Cipher(key, modes.CTR(nonce + b"\\0\\0\\0\\2")).decryptor()\n'
            "                return plain.update(content[:-_TAG]), age > 0"
        ),
    ),
    Mutant(
        "A session in a cookie is neither",
        "a cookie works under another name",
        SEALING,
        "self._name = name.encode()",
        'self._name = b""',
    ),
    Mutant(
        "A session in a cookie is neither",
        "a cookie has several spellings",
        SEALING,
        "        if _as_text(sealed) != value:",
        "        if False:",
    ),
    Mutant(
        "A session in a cookie is neither",
        "all sealings have one key",
        SEALING,
        "HKDFExpand(SHA256(), _KEY, salt)",
        "HKDFExpand(SHA256(), _KEY, b'')",
    ),
    Mutant(
        "A session in a cookie is neither",
        "a nonce is used again",
        SEALING,
        "salt, nonce = drawn[:_SALT], drawn[_SALT:]",
        "drawn = drawn[:_SALT] + bytes(_NONCE)\n        salt, nonce = drawn[:_SALT], drawn[_SALT:]",
    ),
    Mutant(
        "A session in a cookie is neither",
        "the key is of no purpose",
        SEALING,
        "HKDF(SHA256(), _KEY, None, purpose)",
        "HKDF(SHA256(), _KEY, None, None)",
    ),
    Mutant(
        "A session in a cookie is neither",
        "the cookie is not encrypted",
        SEALING,
        "return _as_text(drawn + self._cipher(self._roots[0], salt).encrypt(nonce, content, self._name))",
        "return _as_text(content)",
    ),
    Mutant(
        "It is not replayed",
        "only the browser ends a sealed session",
        COOKIE_MANAGER,
        "if now >= self.lifetimes.ends(envelope):",
        "if False:",
    ),
    Mutant(
        "Nothing that is not sealed",
        "what is not sealed is read",
        COOKIE_MANAGER,
        (
            "        if opened is None:\n"
            "            return SessionState(self, {}, None)\n"
            "        content, is_stale = opened\n"
            "        try:\n"
        ),
        (
            "        try:\n"
            "            if opened is None:\n"
            "                import base64\n"
            "                opened = base64.urlsafe_b64decode(value + '=' * (-len(value) % 4)), False\n"
            "            content, is_stale = opened\n"
        ),
    ),
    Mutant(
        "What a sealed cookie is unpacked to",
        "a cookie of four kilobytes may be unpacked to gigabytes",
        SEALING,
        "inflater.decompress(deflated, MAX_INFLATED)",
        "inflater.decompress(deflated)",
    ),
]
