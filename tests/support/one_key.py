"""A storage asked for one key at a time, as its tests do."""

from __future__ import annotations

import secrets

from aiohttp_store import Outcome, Record, Saved, Storage, Write


def new_key() -> str:
    return secrets.token_urlsafe(32)


async def save(storage: Storage, key: str, data: bytes | None, expected: bytes | None = None, ttl: int = 60) -> Outcome:
    (outcome,) = await storage.save([Write(key, expected, data, ttl)])
    return outcome


async def create(storage: Storage, key: str, data: bytes = b"data", ttl: int = 60) -> bytes:
    """Save under a key that is free, and give the version."""
    outcome = await save(storage, key, data, ttl=ttl)
    assert isinstance(outcome, Saved)
    return outcome.version


async def load(storage: Storage, key: str) -> Record:
    """Give the record, which must be there."""
    (record,) = await storage.load([key])
    assert record is not None
    return record


async def data_of(storage: Storage, key: str) -> bytes | None:
    (record,) = await storage.load([key])
    return None if record is None else record.data
