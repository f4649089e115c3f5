"""A session in a cookie: packed, perhaps compressed, and sealed so that nobody else can read, change or make one."""

from __future__ import annotations

import binascii
import os
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from ..codec import Envelope, UndecodableError, UnknownFormatError, unpack_envelope
from ..cookie import Secret, checked_secrets

__all__ = ["LEAST", "MAX_INFLATED", "Seal", "new_id", "pack", "unpack"]

MAX_INFLATED = 64 * 1024
"""Bytes of data that are compressed into a cookie, or taken out of one."""

_KEY, _SALT, _NONCE, _TAG = 32, 16, 12, 16
_ID = 16
_PLAIN, _DEFLATED = 0, 1
LEAST = (_SALT + _NONCE + _TAG) * 4 // 3
"""Characters without any content."""


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
        """Return the content, and whether an older secret sealed it; `None` if it is not ours, or has another name."""
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


def new_id() -> str:
    """Draw the id of a session, which opens nothing."""
    return _as_text(os.urandom(_ID))


def pack(session_id: str, envelope: Envelope, *, is_compressed: bool) -> bytes:
    kind, payload = _PLAIN, envelope.payload
    if is_compressed and len(payload) <= MAX_INFLATED:
        deflated = zlib.compress(payload)
        if len(deflated) < len(payload):
            kind, payload = _DEFLATED, deflated
    return bytes([kind]) + _as_bytes(session_id) + envelope._replace(payload=payload).pack()


def unpack(content: bytes) -> tuple[str, Envelope]:
    if not content:
        raise UndecodableError("there is nothing in it")
    kind, session_id, envelope = content[0], _as_text(content[1 : 1 + _ID]), unpack_envelope(content[1 + _ID :])
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
