"""The package's logger, and a way to warn without flooding it."""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol

__all__ = ["logger", "once", "seldom"]

logger = logging.getLogger("aiohttp_store")

SELDOM = 60.0
"""Seconds between two log lines of one kind."""

_last: dict[str, float] = {}


class _Log(Protocol):
    def __call__(self, message: str, /, *args: Any) -> None: ...


def once(log: _Log, message: str, *args: object) -> None:
    """Log this kind of message, told by its unformatted text, the first time."""
    if message not in _last:
        _last[message] = float("inf")
        log(message, *args)


def seldom(log: _Log, message: str, *args: object) -> None:
    """Log this kind of message, told by its unformatted text, at most once a minute."""
    now = time.monotonic()
    if now - _last.get(message, float("-inf")) >= SELDOM:
        _last[message] = now
        log(message, *args)
