"""The interface of aiohttp-session 2.12, kept by this package: for apps, libraries and storages written for it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .abstract import AbstractStorage, SimpleCookieStorage
from .abstract import CookieParams as _CookieParams  # noqa: F401  (apps take it from aiohttp-session under this name)
from .alias import install_as_aiohttp_session
from .session import Session, SessionData
from .web import get_session, new_session, session_middleware, setup

if TYPE_CHECKING:
    from .cookie_storage import EncryptedCookieStorage
    from .memcached_storage import MemcachedStorage
    from .nacl_storage import NaClCookieStorage
    from .redis_storage import RedisStorage

__all__ = [
    "SESSION_KEY",
    "STORAGE_KEY",
    "AbstractStorage",
    "EncryptedCookieStorage",
    "MemcachedStorage",
    "NaClCookieStorage",
    "RedisStorage",
    "Session",
    "SessionData",
    "SimpleCookieStorage",
    "get_session",
    "install_as_aiohttp_session",
    "new_session",
    "session_middleware",
    "setup",
]

__version__ = "2.12.1"
"""The version of aiohttp-session whose interface this is."""

SESSION_KEY = "aiohttp_session"
"""Where a request has its session; read at each use, as apps assign another."""
STORAGE_KEY = "aiohttp_session_storage"
"""Where a request has the storage that was written for aiohttp-session."""

_MODULES = {
    "EncryptedCookieStorage": "cookie_storage",
    "MemcachedStorage": "memcached_storage",
    "NaClCookieStorage": "nacl_storage",
    "RedisStorage": "redis_storage",
}


def __getattr__(name: str) -> Any:
    """Import a storage with its driver at its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
