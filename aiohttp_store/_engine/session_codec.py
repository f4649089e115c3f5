"""A session's data as bytes, and whether it differs from what is stored."""

from __future__ import annotations

from typing import Any

from ..codec import Codec, JSONCodec, UndecodableError
from ..errors import ConfigError
from .lifetimes import Lifetimes
from .merge import is_same
from .state import EXPOSED, SAVE, TOUCHED, SessionState, Snapshot

__all__ = ["SessionCodec"]


class SessionCodec:
    """Encodes, decodes, copies and compares by the `codec=` of an app."""

    def __init__(self, codec: Codec | None) -> None:
        codec = JSONCodec() if codec is None else codec
        if not (callable(getattr(codec, "dumps", None)) and callable(getattr(codec, "loads", None))):
            raise ConfigError(f"codec={codec!r} must have the methods dumps and loads")
        self._dumps, self._loads = codec.dumps, codec.loads
        self._dumps_plain = codec.dumps_plain if type(codec) is JSONCodec else codec.dumps

    def encode(self, data: dict[str, Any], *, is_plain: bool = False) -> bytes:
        """Encode; what `is_plain` was decoded, apart from plain values that were set since, and is not looked through.

        Raises:
            TypeError: the codec cannot hold a value.
        """
        encoded = self._dumps_plain(data) if is_plain else self._dumps(data)
        return encoded.encode() if isinstance(encoded, str) else encoded

    def decode(self, payload: bytes) -> dict[str, Any]:
        """Decode what may be damaged.

        Raises:
            UndecodableError: it is.
        """
        try:
            decoded = self._loads(payload)
        except Exception as error:
            raise UndecodableError(f"its data cannot be decoded ({type(error).__name__})") from error
        if not isinstance(decoded, dict):
            raise UndecodableError(f"its data is of type {type(decoded).__name__}, not dict")
        return decoded

    def copy(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return what comes back of the data when it is stored and loaded."""
        copied: dict[str, Any] = self._loads(self.encode(data))
        return copied

    def copies(self, data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return two copies, after making the data itself what a copy is, as of a tuple, which comes back as a list.

        What is the same already stays the very object, as a handler may hold it.
        """
        one, other, third = (self.copy(data) for _ in range(3))
        for key in data.keys() - third.keys():  # of another spelling, as with a lone surrogate
            del data[key]
        for key, value in third.items():
            if key not in data or not is_same(data[key], value):
                data[key] = value
        return one, other

    def changes(self, state: SessionState, snapshot: Snapshot) -> bytes | None:
        """Return the encoded data if it differs from what is stored; times do not count."""
        if not state.dirty:
            return None
        payload = self.encode(state.data, is_plain=not state.dirty & EXPOSED)
        if payload == snapshot.envelope.payload:
            return None
        # Another version of the codec may have written other bytes for the same data.
        is_other = state.dirty & TOUCHED or payload != self.encode(self._loads(snapshot.envelope.payload))
        return payload if is_other else None

    def draft(self, state: SessionState, lifetimes: Lifetimes) -> bytes | None:
        """Return the encoded data that is to be written, empty for a removal; `None` where there is nothing to do.

        Raises:
            TypeError: the codec cannot hold a value.
        """
        snapshot = state.snapshot
        if state.is_gone:
            return None
        if not state.data:
            return None if snapshot is None else b""
        if snapshot is None or state.asked:
            return self.encode(state.data)
        if (changes := self.changes(state, snapshot)) is not None:
            return changes
        envelope = snapshot.envelope
        is_other = state.idle_timeout != envelope.idle_timeout or state.fields != envelope.fields
        is_due = is_other or (state.request.extends and lifetimes.is_due(envelope))
        return envelope.payload if is_due else None

    def is_changed(self, state: SessionState, lifetimes: Lifetimes) -> bool:
        """Whether the handler changed the session, or asked for its end or renewal."""
        if any(one is not SAVE for one in state.asked):
            return True
        draft, snapshot = self.draft(state, lifetimes), state.snapshot
        return draft is not None and (snapshot is None or draft != snapshot.envelope.payload)
