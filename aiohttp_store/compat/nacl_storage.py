"""Sessions in the cookie, sealed by NaCl's secret box (XSalsa20-Poly1305)."""

from __future__ import annotations

from typing import Unpack

try:
    from nacl.encoding import Base64Encoder
    from nacl.secret import SecretBox
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "NaClCookieStorage needs PyNaCl; install it with: pip install pynacl", name="nacl"
    ) from error

from .abstract import CookieOptions, SealedCookieStorage
from .session import Session

__all__ = ["NaClCookieStorage"]


class NaClCookieStorage(SealedCookieStorage):
    """Keeps the data in the cookie, in a secret box that 32 bytes open.

    Raises:
        ValueError: the key has another length.
    """

    def __init__(self, secret_key: bytes, **options: Unpack[CookieOptions]) -> None:
        super().__init__(**options)
        self._secretbox = SecretBox(secret_key)

    def empty_session(self) -> Session:
        """Give an empty session that is not stored."""
        return Session(None, data=None, new=True, max_age=self.max_age)

    def seal(self, data: bytes) -> bytes:
        return self._secretbox.encrypt(data, encoder=Base64Encoder)

    def unseal(self, cookie: bytes) -> bytes:
        return self._secretbox.decrypt(cookie, encoder=Base64Encoder)
