"""A session as bytes: JSON for the data, and in front of it an envelope with the session's times."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

try:
    import orjson
except ModuleNotFoundError:  # the extra "speedups"
    orjson = None  # type: ignore[assignment]

__all__ = [
    "Codec",
    "Envelope",
    "Fields",
    "JSONCodec",
    "TombstoneError",
    "UndecodableError",
    "UnknownFormatError",
    "merge_fields",
    "successor_of",
    "tombstone_of",
    "unpack_envelope",
]

MAX_DEPTH = 254
"""How deep values may nest: what both JSON libraries can write and read again."""

_TOMBSTONE, _FORMAT = 0, 1
# Format; created, written and idle_timeout in milliseconds; bytes of the fields.
_HEADER = struct.Struct(">BQQQH")
_FIELD = struct.Struct(">BH")  # tag, and bytes of its value
_HEADER_SIZE, _unpack_header = _HEADER.size, _HEADER.unpack_from
_TOMBSTONE_SIZE = 1 + 43
_LEAST, _BEYOND = -(2**63), 2**64
_SURROGATE = re.compile("[\ud800-\udfff]")


class UndecodableError(ValueError):
    """These bytes were never a session, or are damaged."""


class UnknownFormatError(ValueError):
    """These bytes are of a format that another version of this package writes."""


class TombstoneError(UnknownFormatError):
    """The session has another id since."""

    def __init__(self, successor: str) -> None:
        super().__init__("the session has been renewed")
        self.successor = successor
        """The key of the session under its new id."""


def tombstone_of(successor: str) -> bytes:
    """Return what a renewal leaves under the old id, so that a logout finds the session: its key, and not its id."""
    return bytes([_TOMBSTONE]) + successor.encode()


def successor_of(data: bytes) -> str | None:
    """Return the key that a tombstone names; `None` if these bytes are another record's."""
    return data[1:].decode("ascii", "replace") if len(data) == _TOMBSTONE_SIZE and data[0] == _TOMBSTONE else None


class Codec(Protocol):
    """Turns a session's data into bytes and back.

    The same data should become the same bytes, or the session is written where it was only read; under `cookie://` it
    must. `loads` may raise any exception on bad bytes: their visitor is then anonymous, and the record is removed.
    """

    def dumps(self, data: dict[str, Any], /) -> bytes | str: ...

    def loads(self, encoded: bytes, /) -> Any: ...


def _loads_strictly(encoded: bytes) -> Any:
    return json.loads(encoded, parse_constant=_refuse_constant)


def _dumps(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class JSONCodec:
    """JSON by orjson where it is installed, else by the standard library; both accept the same values.

    Those are str, bool, None, finite floats, integers from -2**63 to 2**64-1, and lists and
    dicts of them with str keys, at most 254 levels deep. A tuple comes back as a list, and an instance of a subclass
    as one of the class itself. A lone surrogate in a str, which no UTF-8 can hold, comes back as U+FFFD.
    """

    def dumps(self, data: dict[str, Any]) -> bytes:
        """Encode.

        Raises:
            TypeError: JSON cannot hold a value; the message names its path, as `session['cart'][0]`.
        """
        if orjson is not None:
            try:
                encoded = orjson.dumps(data)
                if orjson.loads(encoded) == data:  # else a tuple is in it, or something that only orjson accepts
                    return encoded
            except (TypeError, RecursionError):
                pass  # its message would not say where
        flaw = _flaw(data, 1)
        if flaw is not None:
            path, reason = flaw
            raise TypeError(f"session{path} {reason}")
        if orjson is not None:
            return orjson.dumps(_plain(data))
        try:
            return _dumps(data).encode()
        except UnicodeEncodeError:
            return _dumps(_plain(data)).encode()

    def dumps_plain(self, data: dict[str, Any]) -> bytes:
        """Encode what `loads` returned, in which nothing was set since but str, bool, None and int; else as `dumps`."""
        if orjson is not None:
            try:
                return orjson.dumps(data)
            except TypeError:
                pass
        return self.dumps(data)

    # Decode; any exception means that these bytes are not what `dumps` wrote.
    loads = staticmethod(_loads_strictly if orjson is None else orjson.loads)


Fields = tuple[tuple[int, bytes], ...]
"""What belongs to a session besides its data: tags from 0 to 255, each once and in their order, and their values."""

FIRST_TIME = 128
"""From this tag on a field is a time: 8 bytes, milliseconds since the epoch."""


class Envelope(NamedTuple):
    """What is stored for a session; times are seconds since the epoch, a timeout is seconds."""

    created: float
    written: float
    idle_timeout: float | None
    payload: bytes
    fields: Fields = ()
    """A version that does not know one carries it along."""

    def __repr__(self) -> str:
        tags = [tag for tag, _ in self.fields]
        times = f"created={self.created}, written={self.written}, idle_timeout={self.idle_timeout}"
        return f"<Envelope {times}, payload of {len(self.payload)} bytes, fields {tags}>"

    def __sentry_repr__(self) -> str:  # Sentry shows the items of a tuple, whatever its repr is
        return repr(self)

    def pack(self) -> bytes:
        """Return the bytes that a storage keeps."""
        idle = 0 if self.idle_timeout is None else max(1, round(self.idle_timeout * 1000))
        fields = b"".join([_FIELD.pack(tag, len(value)) + value for tag, value in self.fields]) if self.fields else b""
        header = _HEADER.pack(_FORMAT, int(self.created * 1000), int(self.written * 1000), idle, len(fields))
        return header + fields + self.payload


def unpack_envelope(data: bytes) -> Envelope:
    """Read what `Envelope.pack` returned.

    Raises:
        UnknownFormatError: the first byte is another version's; a `TombstoneError` where it is a tombstone's.
        UndecodableError: the bytes are too short for an envelope, or its fields are damaged.
    """
    try:
        number, created, written, idle, size = _unpack_header(data)
    except struct.error:
        number = data[0] if data else _FORMAT
        if number == _FORMAT:
            raise UndecodableError(f"the record is cut off after {len(data)} bytes") from None
    if number != _FORMAT:
        if (successor := successor_of(data)) is not None:
            raise TombstoneError(successor)
        raise UnknownFormatError(f"the record has format {number}, and this version reads format {_FORMAT}")
    ends = _HEADER_SIZE + size
    fields = _unpack_fields(data[_HEADER_SIZE:ends], size) if size else ()
    return Envelope(created / 1000, written / 1000, idle / 1000 if idle else None, data[ends:], fields)


def _unpack_fields(data: bytes, size: int) -> Fields:
    fields, at = {}, 0
    try:
        while at < size:
            tag, length = _FIELD.unpack_from(data, at)
            at += _FIELD.size + length
            fields[tag] = data[at - length : at]
    except struct.error:
        at = size + 1
    if at > size or len(data) < size or list(fields) != sorted(fields):
        raise UndecodableError("its fields are damaged")
    return tuple(fields.items())


def merge_fields(base: Fields, mine: Fields, theirs: Fields) -> Fields:
    """Join fields that both began as `base`: each from the side that changed it, `mine` if both did; the later time."""
    if mine == theirs:
        return mine
    sides = [dict(side) for side in (base, mine, theirs)]
    joined = {}
    for tag in sorted({tag for side in sides for tag in side}):
        old, here, there = (side.get(tag) for side in sides)
        if tag >= FIRST_TIME and here is not None and there is not None:
            chosen: bytes | None = max(here, there)
        else:
            chosen = there if here == old else here
        if chosen is not None:
            joined[tag] = chosen
    return tuple(joined.items())


def _flaw(value: Any, depth: int) -> tuple[str, str] | None:
    """Find a value that JSON cannot hold: its path below here, and what is wrong with it."""
    if isinstance(value, dict):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        reason = _scalar_flaw(value)
        return None if reason is None else ("", reason)
    if depth > MAX_DEPTH:
        return "", f"is nested deeper than {MAX_DEPTH} levels, or contains itself"
    for key, item in items:
        if isinstance(value, dict) and not isinstance(key, str):
            return "", f"has the key {key!r}, and JSON keys are str"
        flaw = _flaw(item, depth + 1)
        if flaw is not None:
            return f"[{key!r}]{flaw[0]}", flaw[1]
    return None


def _scalar_flaw(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return None
    if isinstance(value, int):
        return None if _LEAST <= value < _BEYOND else "is an integer that does not fit into 64 bits"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"is {value}, which JSON cannot hold"
    return f"is of type {type(value).__name__}, which JSON cannot hold"


def _plain(value: Any) -> Any:
    """Return a value without what orjson refuses: tuples, subclasses of float, and of str as keys; lone surrogates.

    A browser chooses whether a header has bytes that are not UTF-8, which aiohttp decodes as lone surrogates.
    """
    if isinstance(value, str):
        text = str.__str__(value)  # of a subclass the text itself, whatever str() makes of it
        return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, float) else value


def _refuse_constant(name: str) -> None:
    raise UndecodableError(f"{name} is not JSON")
