"""The three-way merge, by its laws."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiohttp_store._engine.merge import merge

scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.0, "", "a", "1"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3)
)
data = st.dictionaries(st.sampled_from("abcde"), values, max_size=4)


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)  # 1, 1.0 and True differ


def flat(tree: dict[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Give each value that is no dict by its path; an empty dict is a value."""
    found: dict[tuple[str, ...], Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= flat(value, (*path, key))
        else:
            found[(*path, key)] = value
    return found


def ordered(tree: Any) -> Any:
    return {key: ordered(tree[key]) for key in sorted(tree)} if isinstance(tree, dict) else tree


@given(data, data)
def test_what_only_the_other_changed_is_taken(base: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert same(ordered(merge(base, base, theirs)), ordered(theirs))


@given(data, data)
def test_what_only_i_changed_is_kept(base: dict[str, Any], mine: dict[str, Any]) -> None:
    assert same(ordered(merge(base, mine, base)), ordered(mine))


@given(data, data)
def test_merging_with_oneself_changes_nothing(base: dict[str, Any], mine: dict[str, Any]) -> None:
    assert same(ordered(merge(base, mine, mine)), ordered(mine))


@given(data, data, data)
def test_each_key_comes_from_a_side_that_changed_it(
    base: dict[str, Any], mine: dict[str, Any], theirs: dict[str, Any]
) -> None:
    absent = object()
    merged = merge(base, mine, theirs)
    for key in {*base, *mine, *theirs}:
        old, here, there, result = (side.get(key, absent) for side in (base, mine, theirs, merged))
        if isinstance(here, dict) and isinstance(there, dict):
            assert same(result, merge(old if isinstance(old, dict) else {}, here, there))
        elif same(ordered(old), ordered(here)):
            assert same(ordered(result), ordered(there))
        else:
            assert same(ordered(result), ordered(here))


@given(data, data, data)
def test_nothing_appears_that_neither_side_had(
    base: dict[str, Any], mine: dict[str, Any], theirs: dict[str, Any]
) -> None:
    known = [repr(item) for item in (*flat(mine).items(), *flat(theirs).items())]
    for path, value in flat(merge(base, mine, theirs)).items():
        assert repr((path, value)) in known or value == {}


@given(data, data, data)
def test_the_sides_are_left_as_they_were(base: dict[str, Any], mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    before = repr((base, mine, theirs))
    merge(base, mine, theirs)
    assert repr((base, mine, theirs)) == before


@pytest.mark.parametrize(
    ("base", "mine", "theirs", "merged"),
    [
        ({}, {"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": 1}, {}, {"a": 1, "b": 2}, {"b": 2}),
        ({"a": 1}, {"a": 1}, {}, {}),
        ({"a": 1}, {"a": 2}, {"a": 3}, {"a": 2}),
        ({"a": 1}, {}, {"a": 3}, {}),
        ({"a": 1}, {"a": 2}, {}, {"a": 2}),
        ({"a": 1}, {"a": 1}, {"a": True}, {"a": True}),
        ({"a": 1}, {"a": 1.0}, {"a": 1}, {"a": 1.0}),
        ({"d": {"x": 1, "y": 1}}, {"d": {"x": 2, "y": 1}}, {"d": {"x": 1}}, {"d": {"x": 2}}),
        ({}, {"d": {"x": 1}}, {"d": {"y": 2}}, {"d": {"x": 1, "y": 2}}),
        ({"l": [1]}, {"l": [1, 2]}, {"l": [1, 3]}, {"l": [1, 2]}),
        ({"l": [1]}, {"l": [1]}, {"l": [1, 3]}, {"l": [1, 3]}),
        ({"d": {"x": 1}}, {"d": 5}, {"d": {"x": 2}}, {"d": 5}),
    ],
)
def test_examples(base: dict[str, Any], mine: dict[str, Any], theirs: dict[str, Any], merged: dict[str, Any]) -> None:
    assert same(ordered(merge(base, mine, theirs)), ordered(merged))
