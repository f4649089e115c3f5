"""Which storages are open, whoever has opened them: an app closes none that its caller has opened."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

__all__ = ["is_open", "noting_close", "noting_open"]

_LOOP = "_aiohttp_store_open_in"
"""The attribute of a storage: the event loop in which it is open."""

Method = Callable[[Any], Coroutine[Any, Any, None]]


def is_open(storage: object) -> bool:
    """Whether the storage was opened in this event loop, and not closed since."""
    return vars(storage).get(_LOOP) is asyncio.get_running_loop()


def noting_open(method: Method) -> Method:
    """Decorate `open`."""

    @wraps(method)
    async def noted(self: Any) -> None:
        try:
            await method(self)
        except BaseException:
            vars(self).pop(_LOOP, None)  # the class that it derives from may have noted it
            raise
        vars(self)[_LOOP] = asyncio.get_running_loop()

    return noted


def noting_close(method: Method) -> Method:
    """Decorate `close`."""

    @wraps(method)
    async def noted(self: Any) -> None:
        try:
            await method(self)
        finally:
            vars(self).pop(_LOOP, None)

    return noted
