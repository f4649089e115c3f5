"""Two requests changed one session: a three-way merge, so that what only one side changed survives."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["is_same", "merge"]

_ABSENT: Final = object()


def merge(base: dict[str, Any], mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Join `mine` and `theirs`, which both began as `base`; a new dict of JSON values, in order of `theirs`.

    Key by key and down into dicts: a value, or its absence, that differs from `base` on one side
    only is taken from that side; where both sides differ, `mine` wins. Lists are values.
    """
    merged: dict[str, Any] = {}
    for key in {**theirs, **mine}:
        old, here, there = (side.get(key, _ABSENT) for side in (base, mine, theirs))
        if isinstance(here, dict) and isinstance(there, dict):
            chosen: Any = merge(old if isinstance(old, dict) else {}, here, there)
        else:
            chosen = there if is_same(old, here) else here
        if chosen is not _ABSENT:
            merged[key] = chosen
    return merged


def is_same(one: Any, other: Any) -> bool:
    """Compare as JSON does, where `1`, `1.0` and `true` are three values."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    return type(one) is type(other) and bool(one == other)
