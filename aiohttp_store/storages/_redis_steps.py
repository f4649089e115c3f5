"""A command on its way to the node of a Redis Cluster that serves its key."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from .redis import SAVE

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

__all__ = ["Command", "Step", "together"]


class Command(NamedTuple):
    """A command of one key."""

    name: str
    words: tuple[Any, ...]

    def __repr__(self) -> str:
        return f"<{self.words[0]} of one key>"

    def __sentry_repr__(self) -> str:  # Sentry shows the items of a tuple, whatever its repr is
        return repr(self)

    def with_script(self) -> Command:
        return Command(self.name, ("EVAL", SAVE, *self.words[2:]))


class Step(NamedTuple):
    """A command on its way to the node that serves its key."""

    place: int
    command: Command
    node: Any
    """`None`: whichever serves the key by then."""
    is_asking: bool = False
    is_again: bool = False
    """It was sent, and its answer was lost."""


async def together(calls: Sequence[Coroutine[Any, Any, list[Any]]]) -> list[list[Any]]:
    """Return the answers of all of these calls, in order."""
    if len(calls) == 1:
        return [await calls[0]]
    return await asyncio.gather(*calls)
