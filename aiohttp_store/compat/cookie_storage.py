"""Sessions in the cookie, sealed by Fernet (AES-128-CBC and HMAC-SHA-256)."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from typing import Unpack

try:
    from cryptography import fernet
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "EncryptedCookieStorage needs cryptography; install it with: pip install 'aiohttp_store[cookie]'",
        name="cryptography",
    ) from error

from .abstract import CookieOptions, SealedCookieStorage

__all__ = ["EncryptedCookieStorage"]


class EncryptedCookieStorage(SealedCookieStorage):
    """Keeps the data in the cookie, as a Fernet token of its JSON.

    Args:
        secret_key: 32 bytes, or their base64url as str, or a `Fernet`.
        **options: the cookie's name and attributes; a token is accepted for `max_age` seconds.

    Raises:
        ValueError: the key has another length.
    """

    def __init__(self, secret_key: str | bytes | bytearray | fernet.Fernet, **options: Unpack[CookieOptions]) -> None:
        super().__init__(**options)
        if isinstance(secret_key, bytes | bytearray):
            secret_key = urlsafe_b64encode(secret_key)
        self._fernet = secret_key if isinstance(secret_key, fernet.Fernet) else fernet.Fernet(secret_key)

    def seal(self, data: bytes) -> bytes:
        return self._fernet.encrypt(data)

    def unseal(self, cookie: bytes) -> bytes:
        return self._fernet.decrypt(cookie)
