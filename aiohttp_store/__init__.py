"""Sessions for aiohttp, in a storage that a URL selects."""

from ._engine.manager import Options
from ._lifecycle.app_setup import get_storage, session_middleware, setup
from ._lifecycle.middleware import get_session, new_session
from .cookie import Cookie
from .errors import (
    ConfigError,
    SessionConflict,
    SessionError,
    SessionGone,
    SessionTooLarge,
    StorageRefused,
    StorageUnavailable,
)
from .session import Session
from .storage import Conflict, Gone, Outcome, Record, Saved, Storage, Write
from .storages import open_storage, register
from .url import Host, StorageURL

__all__ = [
    "ConfigError",
    "Conflict",
    "Cookie",
    "Gone",
    "Host",
    "Options",
    "Outcome",
    "Record",
    "Saved",
    "Session",
    "SessionConflict",
    "SessionError",
    "SessionGone",
    "SessionTooLarge",
    "Storage",
    "StorageRefused",
    "StorageURL",
    "StorageUnavailable",
    "Write",
    "__version__",
    "get_session",
    "get_storage",
    "new_session",
    "open_storage",
    "register",
    "session_middleware",
    "setup",
]

__version__ = "0.1.0"
