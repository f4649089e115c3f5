"""`setup`: what an app's sessions are kept in, and what of it cannot work."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any, Unpack

from aiohttp import web
from aiohttp.typedefs import Middleware

from .._engine.manager import Options, StorageSessionManager
from .._engine.state import SessionManager
from .._log import log_once, logger
from .._takeover.legacy import LegacySource
from .._takeover.takeover import SessionTakeover
from ..errors import ConfigError
from ..storage import Storage
from ..storages import imported, storage_from_url
from ..storages.memory import MemoryStorage
from ..url import StorageURL
from .before_headers import apps_below, save_before_headers
from .middleware import middleware_of
from .request_state import MANAGER

__all__ = ["apps_below", "get_storage", "is_foreign", "session_middleware", "setup"]


def setup(
    app: web.Application,
    storage: Storage | str = "memory://",
    **options: Unpack[Options],
) -> None:
    """Give every request of `app` a session, kept in `storage`, a `Storage` or its URL.

    The storage is opened and closed with the app.

    Args:
        app: the application; its sub-apps share the sessions unless they have their own `setup`.
        storage: as `"redis://localhost:6379/0"`.
        **options: `secret`, `cookie`, `idle_timeout`, `lifetime`, `on_conflict` and `codec`, see `Options`.

    Raises:
        ConfigError: a setting that cannot work, or a second `setup` of one app.
    """
    if MANAGER in app:
        raise ConfigError(f"setup() was called twice on {app!r}; one app has one kind of session")
    manager = _manager(storage, options)

    async def run(app: web.Application) -> AsyncIterator[None]:
        _refuse_same_cookie_below(app, manager)
        _warn_of_memory(manager)
        await manager.open()
        save_before_headers(app)
        yield
        await manager.close()

    app[MANAGER] = manager
    app.middlewares.insert(0, middleware_of(manager))
    app.cleanup_ctx.append(run)


def session_middleware(
    storage: Storage | str = "memory://",
    **options: Unpack[Options],
) -> Middleware:
    """Make the middleware alone; see `setup` for the keywords, and prefer `setup`.

    It opens its storage at the first use and never closes it, and cannot save a session for a
    response that the handler prepares itself (a `RuntimeError` then names `setup`).

    Raises:
        ConfigError: a setting that cannot work.
    """
    return middleware_of(_manager(storage, options), is_alone=True)


def get_storage(app: web.Application) -> Storage:
    """Give the storage that `setup` opens for this app.

    Raises:
        RuntimeError: this app has no `setup` of its own, or one with `cookie://`, which is no storage.
    """
    manager = app.get(MANAGER)
    if not isinstance(manager, StorageSessionManager):
        raise RuntimeError(  # noqa: TRY004
            "this app has no session storage; call aiohttp_store.setup(app, storage) first, with another than cookie://"
        )
    return manager.storage


def is_foreign(storage: object) -> bool:
    """Tell whether a storage was written for aiohttp-session."""
    return hasattr(storage, "load_session") and hasattr(storage, "save_session")


def _manager(storage: Storage | str, options: Options) -> SessionManager[Any]:
    if is_foreign(storage):
        from ..compat.adapter import AiohttpSessionAdapter  # noqa: PLC0415  (imported only where it is used)

        return AiohttpSessionAdapter(storage, options)
    manager = _own_manager(storage, options)
    stand_in = sys.modules.get("aiohttp_session")
    if stand_in is not None and stand_in is sys.modules.get("aiohttp_store.compat"):
        from ..compat.adapter import make_session  # noqa: PLC0415  (likewise)

        manager.present = make_session
    return manager  # type: ignore[no-any-return]


def _own_manager(storage: Storage | str, options: Options) -> Any:
    if isinstance(storage, str):
        url = StorageURL.parse(storage)
        if url.scheme == "cookie":
            cookie_manager = imported("aiohttp_store._engine.cookie_manager:CookieSessionManager", url)
            return cookie_manager(url, **options)
        storage = storage_from_url(storage)
    if not isinstance(storage, Storage):
        raise ConfigError(f"{storage!r} is no storage; give a URL, as 'redis://localhost:6379/0', or a Storage")
    manager = StorageSessionManager(storage, **options)
    if isinstance(storage, LegacySource) and storage.legacy is not None:
        manager.take_over(SessionTakeover(manager, storage, storage.legacy))
    return manager


def _refuse_same_cookie_below(app: web.Application, manager: SessionManager[Any]) -> None:
    for below in apps_below(app):
        other = below.get(MANAGER)
        if other is None:
            continue
        mine, theirs = manager.cookie, other.cookie
        # What is sealed in a cookie would be opened by both, whatever its path.
        is_sealed = manager.keeps_in_cookie and other.keeps_in_cookie
        if mine.name == theirs.name and (is_sealed or (mine.domain, mine.path) == (theirs.domain, theirs.path)):
            raise ConfigError(
                f"an app and its sub-app both keep sessions in the cookie {mine.name!r} of path {mine.path!r}; "
                "give one of them cookie=Cookie(name=…), or leave out the sub-app's setup to share the session"
            )


def _warn_of_memory(manager: SessionManager[Any]) -> None:
    is_debug = sys.flags.dev_mode or asyncio.get_running_loop().get_debug()
    if isinstance(manager, StorageSessionManager) and isinstance(manager.storage, MemoryStorage) and not is_debug:
        log_once(
            logger.warning,
            "sessions are kept in memory://, for development only: they are lost when this process ends, and no other "
            "process sees them; use a URL such as redis://localhost:6379/0",
        )
