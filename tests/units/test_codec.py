"""JSON by either library, and the envelope around it."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import fractions
import json
import math
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiohttp_store import codec
from aiohttp_store.codec import (
    MAX_DEPTH,
    Envelope,
    Fields,
    JSONCodec,
    UndecodableError,
    UnknownFormatError,
    merge_fields,
    unpack_envelope,
)


@pytest.fixture(params=["orjson", "json"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    assert codec.orjson is not None  # type: ignore[attr-defined]
    if request.param == "json":
        monkeypatch.setattr(codec, "orjson", None)
        monkeypatch.setattr(JSONCodec, "loads", staticmethod(codec._loads_strictly))
    yield request.param


@dataclasses.dataclass
class Point:
    x: int


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Name(str):
    __slots__ = ()


class Word(enum.StrEnum):
    USER = "user"
    CART = "cart"


class Mixed(str, enum.Enum):  # noqa: UP042  (as apps wrote it before there was StrEnum; its str() is another)
    USER = "user"


class Shouted(str):
    """Text whose `str()` is not what it holds."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


class Pair(NamedTuple):
    a: int
    b: int


class Half(float):
    pass


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def cycle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ((1, 2), [1, 2]),
        (Pair(1, 2), [1, 2]),
        (OrderedDict(a=1), {"a": 1}),
        (Level.LOW, 1),
        (Name("n"), "n"),
        (Word.USER, "user"),
        (Shouted("é"), "é"),
        ({Name("n"): 1, Word.USER: {Word.CART: Name("a")}}, {"n": 1, "user": {"cart": "a"}}),
        ({Shouted("é"): Shouted("\udcf1")}, {"é": "\ufffd"}),
        ({Mixed.USER: [Mixed.USER]}, {"user": ["user"]}),
        ("\ud800", "\ufffd"),
        ("a\udcf1b\udfff \U0001f600", "a\ufffdb\ufffd \U0001f600"),
        ("\ud83d\ude00", "\ufffd\ufffd"),
        ({"\udcf1": [("\udcf1", {"b\udcf1": 2**64 - 1})]}, {"\ufffd": [["\ufffd", {"b\ufffd": 2**64 - 1}]]}),
        (dict(zip("\udcf1a\udcf2", (1, 2, 3), strict=True)), {"\ufffd": 3, "a": 2}),
        (Half(0.5), 0.5),
        (2**64 - 1, 2**64 - 1),
        (-(2**63), -(2**63)),
        ("\u2028 \x7f \0 \U0001f600 </script>", "\u2028 \x7f \0 \U0001f600 </script>"),
        ({"$where": 1, "a.b": 2, "__proto__": 3, "": 4, "\U0001f600": 5, "\0": 6},) * 2,
        (nested(MAX_DEPTH - 1),) * 2,
        (-0.0, -0.0),
        (1e300, 1e300),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_value_that_json_can_hold_comes_back(value: Any, stored: Any) -> None:
    encoded = JSONCodec().dumps({"v": value})
    assert repr(JSONCodec().loads(encoded)) == repr({"v": stored})
    assert encoded.decode().isprintable() or not str(value).isprintable()


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        (float("nan"), "", "is nan"),
        (float("inf"), "", "is inf"),
        (2**64, "", "is an integer that does not fit into 64 bits"),
        (-(2**63) - 1, "", "does not fit into 64 bits"),
        (b"bytes", "", "is of type bytes"),
        ({1, 2}, "", "is of type set"),
        (datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), "", "is of type datetime"),
        (uuid.UUID(int=7), "", "is of type UUID"),
        (decimal.Decimal("1.5"), "", "is of type Decimal"),
        (fractions.Fraction(1, 2), "", "is of type Fraction"),
        (Colour.RED, "", "is of type Colour"),
        (Point(1), "", "is of type Point"),
        ([1, {"a": [object()]}], "[1]['a'][0]", "is of type object"),
        ({"a": {1: 2}}, "['a']", "has the key 1, and JSON keys are str"),
        ({b"n": 1}, "", "has the key b'n', and JSON keys are str"),
        ({None: 1}, "", "has the key None, and JSON keys are str"),
        ({Name("n"): {Word.USER: [{1}]}}, "['n'][<Word.USER: 'user'>][0]", "is of type set"),
        (nested(MAX_DEPTH), None, "is nested deeper than 254 levels"),
        (cycle(), None, "or contains itself"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_value_that_json_cannot_hold_is_named_by_its_path(value: Any, path: str | None, reason: str) -> None:
    with pytest.raises(TypeError) as caught:
        JSONCodec().dumps({"cart": value})
    assert reason in str(caught.value)
    if path is not None:
        assert f"session['cart']{path} " in str(caught.value)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(st.dictionaries(st.text(), json_values))
def test_both_libraries_write_what_both_read(data: dict[str, Any]) -> None:
    encoded = JSONCodec().dumps(data)
    assert JSONCodec().loads(encoded) == data == json.loads(encoded)


@given(st.dictionaries(st.text(st.characters(categories=None)), st.text(st.characters(categories=None))))
def test_any_text_is_written_as_the_same_bytes_by_both_libraries(data: dict[str, str]) -> None:
    encoded = JSONCodec().dumps(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "orjson", None)
        assert JSONCodec().dumps(data) == encoded
    read = JSONCodec().loads(encoded)
    assert JSONCodec().dumps(read) == encoded
    assert list(read.values()) == [JSONCodec().loads(JSONCodec().dumps({"v": value}))["v"] for value in read.values()]


@pytest.mark.parametrize("encoded", [b"", b"{", b"\xff", b"[" * 200_000, b'{"a": NaN}', b"nul"])
def test_bytes_that_are_no_json_are_refused(encoded: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        JSONCodec().loads(encoded)


@given(st.floats(0, 1e11), st.floats(0, 1e11), st.none() | st.floats(0.001, 1e9), st.binary())
def test_an_envelope_comes_back_to_the_millisecond(
    created: float, written: float, idle_timeout: float | None, payload: bytes
) -> None:
    read = unpack_envelope(Envelope(created, written, idle_timeout, payload).pack())
    assert math.isclose(read.created, created, abs_tol=0.001)
    assert math.isclose(read.written, written, abs_tol=0.001)
    assert read.payload == payload
    assert read.idle_timeout == idle_timeout or math.isclose(read.idle_timeout or 0, idle_timeout or 0, abs_tol=0.001)


FIELDS = st.dictionaries(st.integers(0, 255), st.binary(max_size=40), max_size=6).map(
    lambda fields: tuple(sorted(fields.items()))
)


@given(FIELDS, st.binary())
def test_fields_come_back_whether_they_are_known_or_not(fields: Fields, payload: bytes) -> None:
    read = unpack_envelope(Envelope(1.0, 2.0, None, payload, fields).pack())
    assert (read.fields, read.payload) == (fields, payload)


@pytest.mark.parametrize("damage", [b"", b"\x01", b"\x01\x00", b"\x01\x00\x05four", b"\x02\x00\x00\x01\x00\x00"])
def test_damaged_fields_are_refused(damage: bytes) -> None:
    header = Envelope(1.0, 2.0, None, b"").pack()
    size = max(len(damage), 1).to_bytes(2, "big")
    with pytest.raises(UndecodableError, match="its fields are damaged"):
        unpack_envelope(header[:-2] + size + damage)


EARLY, LATE = (1).to_bytes(8, "big"), (2).to_bytes(8, "big")


@pytest.mark.parametrize(
    ("base", "mine", "theirs", "merged"),
    [
        ({}, {}, {}, {}),
        ({}, {1: b"mine"}, {}, {1: b"mine"}),
        ({}, {1: b"mine"}, {2: b"theirs"}, {1: b"mine", 2: b"theirs"}),
        ({1: b"old"}, {1: b"old"}, {1: b"theirs"}, {1: b"theirs"}),
        ({1: b"old"}, {1: b"mine"}, {1: b"theirs"}, {1: b"mine"}),
        ({1: b"old"}, {}, {1: b"old"}, {}),
        ({1: b"old"}, {1: b"old"}, {}, {}),
        ({1: b"old"}, {}, {1: b"theirs"}, {}),
        ({}, {128: EARLY}, {128: LATE}, {128: LATE}),
        ({128: EARLY}, {128: LATE}, {128: EARLY}, {128: LATE}),
        ({128: EARLY}, {128: LATE}, {}, {128: LATE}),
    ],
)
def test_of_two_changes_of_fields_each_is_kept_and_the_later_time(
    base: dict[int, bytes], mine: dict[int, bytes], theirs: dict[int, bytes], merged: dict[int, bytes]
) -> None:
    assert dict(merge_fields(*(tuple(side.items()) for side in (base, mine, theirs)))) == merged


@given(st.binary())
def test_any_bytes_are_an_envelope_or_refused(data: bytes) -> None:
    try:
        unpack_envelope(data)
    except UnknownFormatError:
        assert data[0] != 1
    except UndecodableError as refused:
        assert len(data) < 27 or "fields" in str(refused)
