"""The package's logger, and a way to warn without flooding it."""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol

__all__ = ["log_once", "log_throttled", "logger"]

logger = logging.getLogger("aiohttp_store")

THROTTLE = 60.0
"""Seconds between two log lines of one kind."""

_last: dict[str, float] = {}


class _Log(Protocol):
    def __call__(self, message: str, /, *args: Any) -> None: ...


def log_once(log: _Log, message: str, *args: object) -> None:
    """Log this kind of message, told by its unformatted text, the first time."""
    if message not in _last:
        _last[message] = float("inf")
        log(message, *args)


def log_throttled(log: _Log, message: str, *args: object) -> None:
    """Log this kind of message, told by its unformatted text, at most once a minute."""
    now = time.monotonic()
    if now - _last.get(message, float("-inf")) >= THROTTLE:
        _last[message] = now
        log(message, *args)
