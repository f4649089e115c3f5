"""The conftest that aiohttp-session's own tests are run with: our servers, and our package under its name."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import aiomcache
import pytest
from redis import asyncio as aioredis

from aiohttp_store.compat import install_as_aiohttp_session

install_as_aiohttp_session()

# Two of the tests use pytest-mock, and of it what the fixture below does.
sys.modules["pytest_mock"] = ModuleType("pytest_mock")
sys.modules["pytest_mock"].MockFixture = Any  # type: ignore[attr-defined]


class _Mocker:
    def __init__(self) -> None:
        self.patches: list[Any] = []

    def patch(self, *arguments: Any) -> None:
        self.patches.append(mock.patch(*arguments))
        self.patches[-1].start()


@pytest.fixture
def mocker() -> Iterator[_Mocker]:
    made = _Mocker()
    yield made
    for patch in made.patches:
        patch.stop()


@pytest.fixture
def redis_url() -> str:
    return os.environ["COMPAT_SUITE_REDIS"]


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Any]:
    client = aioredis.from_url(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
async def memcached() -> AsyncIterator[aiomcache.Client]:
    host, port = os.environ["COMPAT_SUITE_MEMCACHED"].split(":")
    client = aiomcache.Client(host, int(port))
    yield client
    await client.close()
