"""The package's logger, and a way to warn without flooding it."""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol

__all__ = ["log_once", "log_throttled", "logger"]

logger = logging.getLogger("aiohttp_store")

THROTTLE = 60.0
"""Seconds between two log lines of one kind."""

MANY = 1000
"""Kinds of lines after which those are forgotten that may be logged again anyway."""

_last: dict[tuple[str, str | int], float] = {}


class _Log(Protocol):
    def __call__(self, message: str, /, *args: Any) -> None: ...


def log_once(log: _Log, message: str, *args: object, about: object = None) -> None:
    """Log this kind of message the first time.

    Args:
        log: a method of the logger.
        message: its unformatted text tells the kind.
        *args: what is put into the text.
        about: what it is said of, such as a storage; each has lines of its own. An object is told by its identity.
    """
    kind = _kind(message, about)
    if kind not in _last:
        _last[kind] = float("inf")
        log(message, *args)


def log_throttled(log: _Log, message: str, *args: object, about: object = None) -> None:
    """Log this kind of message at most once a minute; the arguments are those of `log_once`."""
    now, kind = time.monotonic(), _kind(message, about)
    if now - _last.get(kind, float("-inf")) >= THROTTLE:
        if len(_last) >= MANY:
            for other in [other for other, last in _last.items() if now - last >= THROTTLE]:
                del _last[other]
        _last[kind] = now
        log(message, *args)


def _kind(message: str, about: object) -> tuple[str, str | int]:
    return message, about if isinstance(about, str) else id(about)
