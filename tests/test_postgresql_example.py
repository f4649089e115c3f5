"""The model for third parties: the example's storage keeps the contract, with a real server."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

import aiohttp_store
from aiohttp_store.storages import storage_from_url
from aiohttp_store.testing import StorageContract

from .conftest import Servers

importlib.import_module("examples.postgresql_storage")


class TestPostgreSQL(StorageContract):
    @pytest.fixture
    def server(self, servers: Servers) -> tuple[str, int]:
        return "127.0.0.1", servers.own("postgresql").port

    @pytest.fixture
    def make_storage(self, server: tuple[str, int]) -> Any:
        def make(space: str, server: tuple[str, int] = server) -> aiohttp_store.Storage:
            host, port = server
            return storage_from_url(f"postgresql://visitor:s%40crêt@{host}:{port}/postgres?table={space}")

        return make
