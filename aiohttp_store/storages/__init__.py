"""A file for each storage, found by the scheme of a URL; what several storages share begins with `_`."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from .._foreign_words import answer
from .._keywords import answering_keywords
from ..errors import ConfigError
from ..storage import Storage
from ..url import StorageURL, nearest

__all__ = ["ENTRY_POINTS", "SCHEMES", "imported", "open_storage", "register", "storage_from_url"]

ENTRY_POINTS = "aiohttp_store.storages"
"""The entry-point group in which an installed package offers schemes of its own."""

SCHEMES: dict[str, str | Callable[[StorageURL], Storage]] = {
    "cookie": "aiohttp_store._engine.cookie_manager:no_storage",
    "mariadb": "aiohttp_store.storages.mysql:MySQLStorage",
    "memcached": "aiohttp_store.storages.memcached:storage_from_url",
    "memory": "aiohttp_store.storages.memory:MemoryStorage",
    "mongodb": "aiohttp_store.storages.mongodb:MongoDBStorage",
    "mongodb+pymongo": "aiohttp_store.storages.mongodb:MongoDBStorage",
    "mongodb+srv": "aiohttp_store.storages.mongodb:MongoDBStorage",
    "mysql": "aiohttp_store.storages.mysql:MySQLStorage",
    "redis": "aiohttp_store.storages.redis:RedisStorage",
    "redis+cluster": "aiohttp_store.storages.redis_cluster:RedisClusterStorage",
    "redis+sentinel": "aiohttp_store.storages.redis:RedisStorage",
    "redis+unix": "aiohttp_store.storages.redis:RedisStorage",
    "rediss": "aiohttp_store.storages.redis:RedisStorage",
    "sqlite": "aiohttp_store.storages.sqlite:SQLiteStorage",
    "valkey": "aiohttp_store.storages.redis:RedisStorage",
}

_DRIVERS = {"bson": "pymongo"}
"""The package to install for a module of another name."""

_EXTRAS = {
    "cryptography": "cookie",
    "redis": "redis",
    "aiomcache": "memcached",
    "motor": "mongodb",
    "pymongo": "mongodb",
    "aiomysql": "mysql",
    "pymysql": "mysql",
    "aiosqlite": "sqlite",
}


def register(scheme: str, target: str | type[Storage] | Callable[[StorageURL], Storage]) -> None:
    """Make `scheme://` known to `setup` and `open_storage`.

    `target` is a `Storage` class, whose `from_url` is called, a function of a `StorageURL` that
    gives a `Storage`, or `"package.module:name"` of either, imported at first use.

    Raises:
        ConfigError: the scheme is not one (RFC 3986, section 3.1), or the target is none of these.
    """
    if not StorageURL.is_scheme(scheme):
        raise ConfigError(
            f"{scheme!r} cannot be a URL scheme; use a lower-case letter, then letters, digits, '+', '-', '.'"
        )
    if isinstance(target, str) and not all(target.partition(":")):
        raise ConfigError(f"{target!r} names no storage; write 'package.module:name'")
    if not isinstance(target, str) and not callable(target):
        raise ConfigError(f"{target!r} is no storage; give a Storage class, a function, or 'package.module:name'")
    SCHEMES[scheme] = target


def storage_from_url(text: str) -> Storage:
    """Make the storage that a URL names.

    Raises:
        ConfigError: the scheme or a parameter is unknown, or the driver is not installed.
    """
    url = StorageURL.parse(text)
    found: Any = SCHEMES.get(url.scheme)
    if found is None:
        found = _from_installed(url.scheme)
    if isinstance(found, str):
        found = imported(found, url)
    storage = found.from_url(url) if isinstance(found, type) and issubclass(found, Storage) else found(url)
    if not isinstance(storage, Storage):
        raise ConfigError(f"{url.scheme}:// is registered for {found!r}, which gave {storage!r} and not a Storage")
    return storage


def _from_installed(scheme: str) -> Any:
    from importlib.metadata import entry_points  # noqa: PLC0415  (slow to import, and for others' schemes alone)

    offered = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if scheme not in offered:
        known = sorted({*SCHEMES, *offered})
        names = ", ".join(f"{name}://" for name in known)
        way = answer(scheme, "scheme")
        meant = f"; {way}" if way else f"{nearest(scheme, known, repr('{}://'))}; known are {names}"
        raise ConfigError(f"unknown storage '{scheme}://'{meant}")
    return offered[scheme].load()


def imported(target: str, url: StorageURL) -> Any:
    """Give the `"module:name"` that serves a URL.

    Raises:
        ConfigError: the driver is not installed, or another package has taken its place.
    """
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        package = _DRIVERS.get(missing, missing)
        extra = _EXTRAS.get(package)
        if extra is None:
            raise
        if error.name != missing or not isinstance(error, ModuleNotFoundError):  # it is there, and lacks a part
            raise ConfigError(
                f"{url.scheme}:// needs {package!r}, and the {missing!r} that is installed is another's, or broken "
                f"({error}): pip uninstall {missing}, then pip install --force-reinstall {package}"
            ) from error
        raise ConfigError(
            f"{url.scheme}:// needs {package!r}, which comes with an extra: pip install 'aiohttp_store[{extra}]'"
        ) from error


@answering_keywords("async with open_storage(url) as storage")
@asynccontextmanager
async def open_storage(url: str) -> AsyncIterator[Storage]:
    """Open the storage that `url` names, and close it at the end of the block.

    To be used as `async with open_storage(url) as storage:`.

    Raises:
        ConfigError: the scheme or a parameter is unknown, or the driver is not installed.
    """
    if not isinstance(url, str):
        kind = type(url)
        raise ConfigError(
            f"open_storage() takes a URL such as 'redis://localhost:6379/0', and was given an object of type "
            f"{kind.__module__}.{kind.__qualname__}"
        )
    storage = storage_from_url(url)
    await storage.open()
    try:
        yield storage
    finally:
        await storage.close()
