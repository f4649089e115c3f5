"""`cookie://`: sessions that travel in the cookie itself, sealed, so that no server keeps them."""

from __future__ import annotations

import binascii
import os
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from aiohttp import hdrs, web
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from .._log import log_once, log_throttled, logger
from ..codec import Codec, Envelope, UndecodableError, UnknownFormatError
from ..cookie import MAX_SIZE, Cookie, CookieFinder, Secret, checked_secrets
from ..errors import ConfigError, SessionTooLarge
from ..session import Duration, Session, Snapshot
from ..url import StorageURL
from .base import IDLE_TIMEOUT, BaseManager
from .manager import OnConflict

__all__ = ["CookieSessionManager", "Seal", "no_storage"]

T = TypeVar("T")

MAX_INFLATED = 64 * 1024
"""Bytes of data that are compressed into a cookie, or taken out of one."""

_KEY, _SALT, _NONCE, _TAG = 32, 16, 12, 16
_ID = 16
_PLAIN, _DEFLATED = 0, 1
_LEAST = (_SALT + _NONCE + _TAG) * 4 // 3
"""Characters without any content."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The parameters of `cookie://`."""

    compress: bool = False
    """Compress the data where that makes it smaller; the cookie's length then tells more of its content."""


class Seal:
    """Encrypts what a cookie holds so that nobody can read, change or make one without the secret (AES-256-GCM).

    Random nonces are safe for 2**32 sealings under one key (NIST SP 800-38D, section 8.3), which a busy site reaches
    within weeks. So each sealing has a key of its own, derived from the secret and a random salt.
    """

    def __init__(self, name: str, secret: Secret) -> None:
        self._name = name.encode()
        purpose = b"aiohttp_store session cookie encryption " + self._name
        self._roots = [HKDF(SHA256(), _KEY, None, purpose).derive(one) for one in checked_secrets(secret)]

    def close(self, content: bytes) -> str:
        """Seal under the first secret, and give the cookie's value."""
        drawn = os.urandom(_SALT + _NONCE)
        salt, nonce = drawn[:_SALT], drawn[_SALT:]
        return _as_text(drawn + self._cipher(self._roots[0], salt).encrypt(nonce, content, self._name))

    def open(self, value: str) -> tuple[bytes, bool] | None:
        """Give the content, and whether an older secret sealed it; `None` for what is not ours, or of another name."""
        try:
            sealed = _as_bytes(value)
        except binascii.Error:
            return None
        if _as_text(sealed) != value:  # the last character has bits that do not count
            return None
        salt, nonce, content = sealed[:_SALT], sealed[_SALT : _SALT + _NONCE], sealed[_SALT + _NONCE :]
        for age, root in enumerate(self._roots):
            try:
                return self._cipher(root, salt).decrypt(nonce, content, self._name), age > 0
            except InvalidTag:
                continue
        return None

    @staticmethod
    def _cipher(root: bytes, salt: bytes) -> AESGCM:
        return AESGCM(HKDFExpand(SHA256(), _KEY, salt).derive(root))


class CookieSessionManager(BaseManager):
    """Keeps sessions in their cookies.

    Nothing is known of a session but what the request carries, so none can be ended elsewhere than in its browser, and
    of two requests at the same time the one that is answered last wins.
    """

    keeps_in_cookie = True

    def __init__(
        self,
        url: StorageURL,
        *,
        secret: Secret | None = None,
        cookie: Cookie | None = None,
        idle_timeout: Duration = IDLE_TIMEOUT,
        lifetime: Duration | None = None,
        on_conflict: OnConflict = "overwrite",
        codec: Codec | None = None,
    ) -> None:
        if url.hosts or url.path or url.user is not None or url.password is not None:
            raise ConfigError(
                f"{url} has parts that cookie:// does not use; write cookie:// or cookie://?compress=true"
            )
        self._compress = url.options(Options).compress
        if secret is None:
            raise ConfigError(
                "cookie:// needs secret=…, under which cookies are sealed; make one with secrets.token_urlsafe(32), "
                "and keep it, as all sessions end with it"
            )
        if on_conflict != "overwrite":
            raise ConfigError(
                f"on_conflict={on_conflict!r} contradicts cookie://, where no request sees what another one changed; "
                "leave it out, or use a storage on a server"
            )
        super().__init__(cookie=cookie, idle_timeout=idle_timeout, lifetime=lifetime, codec=codec)
        self._seal = Seal(self.cookie.name, secret)
        self._reader = CookieFinder(self.cookie.name, rf"([A-Za-z0-9_-]{{{_LEAST},{MAX_SIZE}}})")
        _warn(is_compressing=self._compress)

    async def open(self) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        """There is nothing to close."""

    # The way in.

    async def load(self, request: web.BaseRequest) -> Session:
        """Give the session that the request carries, or a new one."""
        return self._live_one_of(self._carried_by(request))

    async def new(self, request: web.BaseRequest, old: Session | None) -> Session:
        """Give an empty session, which takes the place of the request's old one in the browser."""
        session = self._new_session()
        session._doomed = tuple(one._snapshot.key for one in self._carried_by(request) if one._snapshot is not None)
        session._ended = True
        if old is not None:
            old.invalidate()
            old._doomed, old._gone = (), True
        return session

    def _carried_by(self, request: web.BaseRequest) -> list[Session]:
        values = self._reader.found_in(request.headers.getall(hdrs.COOKIE, ()))
        return [self._read(value) for value in dict.fromkeys(values)]

    def _read(self, value: str) -> Session:
        """Make the session of a cookie; a new one, if it is not one of ours or its time is over."""
        opened = self._seal.open(value)
        if opened is None:
            return self._new_session()
        content, is_stale = opened
        try:
            session_id, envelope = _unpack(content)
            data = self._decoded(envelope.payload)
        except (UndecodableError, UnknownFormatError) as error:
            log_throttled(logger.warning, "a session in a cookie cannot be read, and is taken for none: %s", error)
            return self._new_session()
        now = self.clock()
        if now >= self._ends(envelope):
            return self._new_session()
        session = self._session(data, Snapshot(session_id, session_id, value.encode(), envelope))
        if is_stale:
            session._cookie_stale = True
        elif now >= envelope.written:  # a clock that was set back makes it due
            session._quiet_until = envelope.written + self._due_after(envelope)
        return session

    def _new_session(self) -> Session:
        return self._session({})

    def _session(self, data: dict[str, Any], stored: Snapshot | None = None) -> Session:
        session = Session(self, data, stored)
        session._in_cookie = True
        return session

    # The way out.

    async def save(self, request: web.BaseRequest, response: web.StreamResponse, session: Session) -> None:
        """Send what became of the session.

        Raises:
            SessionTooLarge: a cookie cannot hold it.
            RuntimeError: it was changed after the headers were sent.
            TypeError: the data holds a value that JSON cannot hold.
        """
        if not session._sealed:
            self._write(session)
            self._tell(request, response, session)
        elif super().is_changed(session):
            session._refuse_as_in_cookie()

    def is_changed(self, session: Session) -> bool:
        """Tell whether the browser is to hear of anything that the handler did, saved or not."""
        return session._written or session._ended or super().is_changed(session)

    async def commit(self, session: Session) -> None:
        """Seal the session as it is now; it is sent with the headers.

        Raises:
            SessionTooLarge, TypeError: as in `save`.
        """
        session._forced = True
        self._write(session)

    async def apply(self, session: Session, change: Callable[[Session], T]) -> T:
        """Run `change`, once, on what the request carried, as there is nothing newer; then seal."""
        life, pending = session._life, self._copy(session._data)
        try:
            result = self._changed_by(session, change)
            self._write(session)
        except BaseException:
            self._take_back(session, life, pending, None)
            raise
        return result

    async def reload(self, session: Session) -> None:
        """Go back to what the request carried, or was sealed since."""
        stored = session._snapshot
        if session._gone or stored is None:
            session._data = {}
        elif self.clock() >= self._ends(stored.envelope):
            session._gone = True
        else:
            session._data = self._loads(stored.envelope.payload)
            session._created, session._idle_timeout = stored.envelope.created, stored.envelope.idle_timeout
            session._renewals, session._forced = 0, False

    def _write(self, session: Session) -> None:
        """Seal what the session holds, if the browser does not hold it yet."""
        for key in session._doomed:
            logger.info("session %s ended in its browser", key[:8])
        session._doomed = ()
        stored, draft = session._snapshot, self._draft(session)
        if draft is None and session._cookie_stale and stored is not None and not session._gone:
            draft = stored.envelope.payload
        if draft is None:
            session._renewals = 0
            return
        if stored is not None and self.clock() >= self._ends(stored.envelope):
            session._gone, session._renewals = True, 0  # its time ended while a long request used it
            return
        if draft:
            try:
                session._snapshot = self._sealed(session, stored, draft)
            except SessionTooLarge as error:
                if stored is None or draft != stored.envelope.payload or session._renewals or session._forced:
                    raise
                # It was only read; what compressed better when it was sealed stays as it is until its time is over.
                log_throttled(logger.warning, "a session is not prolonged: %s", error)
                return
        elif stored is not None:
            session._snapshot = None
            logger.info("session %s ended in its browser, as it was emptied", stored.id[:8])
        session._forced = session._cookie_stale = False
        session._renewals = 0
        session._written = True

    def _sealed(self, session: Session, stored: Snapshot | None, draft: bytes) -> Snapshot:
        if stored is None or session._renewals:
            session_id, envelope = _as_text(os.urandom(_ID)), self._first_envelope(session, draft)
        else:
            session_id, envelope = stored.id, self._next_envelope(session, stored, draft)
        value = self._seal.close(_pack(session_id, envelope, is_compressed=self._compress))
        size = len(self.cookie.name) + len(value)
        if size > MAX_SIZE:
            where = f"the cookie {self.cookie.name!r} (name and sealed value; the data alone takes {len(draft)})"
            raise SessionTooLarge(size, MAX_SIZE, where)
        if stored is None:
            logger.info("session %s created", session_id[:8])
        elif stored.id != session_id:
            logger.info("session %s renewed as %s", stored.id[:8], session_id[:8])
        return Snapshot(session_id, session_id, value.encode(), envelope)

    def _value_to_send(self, session: Session, stored: Snapshot) -> str | None:
        return stored.version.decode() if session._written else None


def no_storage(url: StorageURL) -> NoReturn:
    """Say that nothing can be opened here.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(f"{url} is no storage, as each browser keeps its own session; give the URL to setup()")


def _pack(session_id: str, envelope: Envelope, *, is_compressed: bool) -> bytes:
    kind, payload = _PLAIN, envelope.payload
    if is_compressed and len(payload) <= MAX_INFLATED:
        deflated = zlib.compress(payload)
        if len(deflated) < len(payload):
            kind, payload = _DEFLATED, deflated
    return bytes([kind]) + _as_bytes(session_id) + envelope._replace(payload=payload).pack()


def _unpack(content: bytes) -> tuple[str, Envelope]:
    if not content:
        raise UndecodableError("there is nothing in it")
    kind, session_id, envelope = content[0], _as_text(content[1 : 1 + _ID]), Envelope.unpack(content[1 + _ID :])
    if kind == _DEFLATED:
        envelope = envelope._replace(payload=_inflated(envelope.payload))
    elif kind != _PLAIN:
        raise UnknownFormatError(f"its data is of kind {kind}, which this version does not know")
    return session_id, envelope


def _inflated(deflated: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        payload = inflater.decompress(deflated, MAX_INFLATED)
    except zlib.error as error:
        raise UndecodableError(f"its data cannot be decompressed ({error})") from error
    if not inflater.eof:
        raise UndecodableError(f"its data is cut off, or has over {MAX_INFLATED} bytes")
    return payload


def _as_text(octets: bytes) -> str:
    return urlsafe_b64encode(octets).rstrip(b"=").decode()


def _as_bytes(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _warn(*, is_compressing: bool) -> None:
    log_once(
        logger.warning,
        "cookie:// keeps no session on a server: a logout clears the cookie in one browser, and a copy of it works "
        "until its idle timeout, or as long as it is used where no lifetime= is set; and of two requests at the same "
        "time, the one that is answered last overwrites the other's changes. Use a storage on a server where that "
        "matters",
    )
    if is_compressing:
        log_once(
            logger.warning,
            "cookie://?compress=true: the cookie's length tells how well the session compresses, so who watches it and "
            "can put text into the session can guess a secret in it; leave it out where a session holds both",
        )
