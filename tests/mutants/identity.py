"""Whose session it is: ids, their hashes and signatures, logins, logouts, and how long a session lives."""

from __future__ import annotations

from .run import Mutant

__all__ = ["MUTANTS"]

MANAGER, WRITING, STATE = "_engine/manager.py", "_engine/writing.py", "_engine/state.py"

MUTANTS = [
    # Ids.
    Mutant(
        "ASVS 7.2.1",
        "a forged signature is one of ours",
        "cookie.py",
        "if hmac.compare_digest(self._sign(key, session_id), signature):",
        "if True:",
    ),
    Mutant(
        "ASVS 7.2.1",
        "a session that has ended is served",
        MANAGER,
        "if now >= self.lifetimes.ends(envelope):",
        "if False:",
    ),
    Mutant(
        "ASVS 7.2.2, 7.2.3",
        "an id has 128 bits less",
        WRITING,
        "secrets.token_urlsafe(32)",
        "secrets.token_urlsafe(16)",
    ),
    Mutant(
        "ASVS 7.2.2, 7.2.3",
        "ids come from a generator that can be guessed",
        WRITING,
        "secrets.token_urlsafe(32)",
        "''.join(__import__('random').choices('abcdefghijklmnopqrstuvwxyz012345', k=43))",
    ),
    Mutant(
        "ASVS 7.2.4",
        "a login keeps the id",
        "session.py",
        "self._state.renew(is_login=login)",
        "pass",
    ),
    Mutant(
        "ASVS 7.2.4",
        "a renewal leaves the old id alive",
        WRITING,
        "outcome = await self._batcher.save(Write(snapshot.key, snapshot.version, tombstone, TOMBSTONE_TTL))",
        'outcome, snapshot = Saved(b""), snapshot._replace(key="0" * 43)',
    ),
    Mutant(
        "OWASP, strict",
        "an id that nobody issued is adopted",
        MANAGER,
        "        if record is None:\n",
        (
            "        if record is None:\n"
            "            __import__('secrets').token_urlsafe = lambda _: presented[0]  # which a new id is drawn by\n"
        ),
    ),
    Mutant(
        "OWASP: an id is input",
        "a signature is looked at after the storage",
        "cookie.py",
        "if hmac.compare_digest(self._sign(key, session_id), signature):",
        "if True:",
    ),
    Mutant(
        "OWASP: an id is input",
        "anything is an id",
        "cookie.py",
        '_ID = "[A-Za-z0-9_-]{43}"',
        '_ID = "[^;]+"',
    ),
    Mutant(
        "OWASP: ids mean nothing",
        "an id is the time at which it was made",
        WRITING,
        "secrets.token_urlsafe(32)",
        "str(asyncio.get_running_loop().time()).replace('.', '').zfill(43)",
    ),
    Mutant(
        "A stolen database",
        "the storage knows the id itself",
        "cookie.py",
        'return urlsafe_b64encode(hashlib.sha256(f"{cookie}={session_id}".encode()).digest())[:-1].decode()',
        "return session_id",
    ),
    Mutant(
        "An id that is drawn twice",
        "a create replaces the record that is there",
        "storages/memory.py",
        "if held[0] != expected:",
        "if expected is not None and held[0] != expected:",
    ),
    Mutant(
        "An id works under its cookie's name",
        "the name is not hashed into the key",
        "cookie.py",
        'hashlib.sha256(f"{cookie}={session_id}".encode())',
        "hashlib.sha256(session_id.encode())",
    ),
    # Times.
    Mutant(
        "ASVS 7.3.1; NIST 2.2.3",
        "the idle timeout does not end a session",
        "_engine/lifetimes.py",
        "return min(written + (idle_timeout or self.idle_timeout), created + self.lifetime)",
        "return created + self.lifetime",
    ),
    Mutant(
        "ASVS 7.3.1; NIST 2.2.3",
        "the storage keeps what has expired",
        "storages/memory.py",
        "if held is not None and now < held[2] else None for held in found]",
        "if held is not None else None for held in found]",
    ),
    Mutant(
        "ASVS 7.3.2",
        "the lifetime does not end a session",
        "_engine/lifetimes.py",
        "return min(written + (idle_timeout or self.idle_timeout), created + self.lifetime)",
        "return written + (idle_timeout or self.idle_timeout)",
    ),
    Mutant(
        "ASVS 7.3.2",
        "each renewal restarts the lifetime",
        STATE,
        "        if is_login:\n            self.created",
        "        if True:\n            self.created",
    ),
    Mutant(
        "NIST 5.1.1 (4)",
        "only the browser and the storage end a session",
        MANAGER,
        "if now >= self.lifetimes.ends(envelope):",
        "if False:",
    ),
    Mutant(
        "ASVS 7.3.1: polling",
        "extend=False extends",
        "_lifecycle/middleware.py",
        "    if extend:\n",
        "    if True:\n",
    ),
    Mutant(
        "ASVS 7.3.1: polling",
        "a change while polling extends",
        "_engine/lifetimes.py",
        "written = now if state.request.extends else before.written",
        "written = now",
    ),
    # Logouts.
    Mutant(
        "ASVS 7.4.1",
        "a logout leaves the record",
        STATE,
        "self.asked += self.own_and_presented or (End(None),)",
        "self.asked += (End(None),)",
    ),
    Mutant(
        "No request in flight",
        "what finds its record deleted makes it anew",
        WRITING,
        "        outcome = await self._batcher.save(write, asker)\n        if type",
        (
            "        outcome = await self._batcher.save(write, asker)\n"
            "        if type(outcome) is Gone:\n"
            "            outcome = await self._batcher.save(write._replace(expected=None), asker)\n"
            "        if type"
        ),
    ),
    Mutant(
        "No request in flight",
        "the storage writes although the record is deleted",
        "storages/memory.py",
        "        elif expected is not None:\n            return Gone()\n",
        "",
    ),
    Mutant(
        "Nor does a concurrent renewal",
        "a renewal wins against a logout",
        WRITING,
        "tombstone, TOMBSTONE_TTL))\n",
        'tombstone, TOMBSTONE_TTL))\n            outcome = Saved(b"")\n',
    ),
    Mutant(
        "Nor does a concurrent renewal",
        "a renewal that lost leaves its record",
        WRITING,
        "            if not isinstance(outcome, Saved):\n                self.discard",
        "            if False:\n                self.discard",
    ),
    Mutant(
        "Nor a renewal that was stored first",
        "a logout does not follow a tombstone that it meets",
        WRITING,
        "successor = successor_of(outcome.record.data)",
        "successor = None",
    ),
    Mutant(
        "Nor one that is older than the logout's request",
        "a logout does not follow a tombstone that was loaded",
        "_engine/manager.py",
        '"its session has been renewed, and has another id", End(renewed.successor))',
        '"its session has been renewed, and has another id")',
    ),
    Mutant(
        "Nor does a second cookie",
        "a logout ends one of several sessions",
        "_engine/manager.py",
        "state.presented = tuple(end for one in found if one is not state for end in one.own_and_presented)",
        "pass",
    ),
    Mutant(
        "NIST 5.1 (3)",
        "a logout leaves the cookie in the browser",
        "_engine/cookie_writer.py",
        'self._send(request, response, state, "", 0)',
        "pass",
    ),
    Mutant(
        "NIST 5.1 (3)",
        "a removal has no Expires",
        "cookie.py",
        'parts.append("Expires=Thu, 01 Jan 1970 00:00:00 GMT")',
        "pass",
    ),
    Mutant(
        "A renewal or logout is not undone",
        "what was asked for during a write is forgotten",
        STATE,
        "            self.asked = self.asked[carried_out:]\n        if self.asked and",
        "            self.asked = ()\n        if self.asked and",
    ),
    Mutant(
        "Reading and logging out",
        "an empty session is stored",
        "_engine/session_codec.py",
        'return None if snapshot is None else b""',
        'return self.encode({}) if snapshot is None else b""',
    ),
    # Secrets.
    Mutant(
        "Secrets are long",
        "a short secret is accepted",
        "cookie.py",
        "        if len(one) < MIN_SECRET:\n",
        "        if False:\n",
    ),
    Mutant(
        "Secrets are long",
        "the last secret of a list signs",
        "cookie.py",
        "self._sign(self._keys[0], session_id)",
        "self._sign(self._keys[-1], session_id)",
    ),
    Mutant(
        "Secrets are long",
        "only the first secret of a list verifies",
        "cookie.py",
        "for age, key in enumerate(self._keys):",
        "for age, key in enumerate(self._keys[:1]):",
    ),
    Mutant(
        "Secrets are long",
        "a cookie with an old signature is not sent again",
        MANAGER,
        "        if is_stale:\n            state.be_unknown",
        "        if False:\n            state.be_unknown",
    ),
    Mutant(
        "Signatures are compared",
        "signatures are compared by ==",
        "cookie.py",
        "if hmac.compare_digest(self._sign(key, session_id), signature):",
        "if self._sign(key, session_id) == signature:",
    ),
    Mutant(
        "Signatures are compared",
        "the name is not signed",
        "cookie.py",
        'f"{self._pair}{session_id}".encode(), "sha256")',
        'session_id.encode(), "sha256")',
    ),
    Mutant(
        "Signatures are compared",
        "the secret itself signs",
        "cookie.py",
        'return [hmac.digest(one, f"aiohttp_store {purpose}".encode(), "sha256") for one in checked_secrets(secret)]',
        "return checked_secrets(secret)",
    ),
]
