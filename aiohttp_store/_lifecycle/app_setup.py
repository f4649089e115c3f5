"""`setup`: what an app's sessions are kept in, and what of it cannot work."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Middleware

from .._engine.lifetimes import IDLE_TIMEOUT
from .._engine.manager import Options, StorageSessionManager
from .._engine.state import SessionManager
from .._engine.writing import OnConflict
from .._keywords import answering_keywords
from .._log import log_once, logger
from .._takeover.legacy import LegacySource
from .._takeover.takeover import SessionTakeover
from ..codec import Codec
from ..cookie import Cookie, Secret
from ..errors import ConfigError
from ..session import Duration
from ..storage import Storage
from ..storages import imported, storage_from_url
from ..storages.memory import MemoryStorage
from ..url import StorageURL
from .before_headers import save_before_headers
from .cookie_clashes import refuse_clashes
from .cookie_path import guarding_path
from .middleware import middleware_of
from .request_state import ALONE, GIVEN, MANAGER
from .wrong_arguments import checked_app, no_storage, refuse_late

__all__ = ["get_storage", "is_foreign", "session_manager", "session_middleware", "setup"]

_DEFAULTS: dict[str, object] = {"idle_timeout": IDLE_TIMEOUT}
"""What a setting has if it is not given; `None` for the others."""


@answering_keywords("setup(app, storage, secret=…)")
def setup(
    app: web.Application,
    storage: Storage | str = "memory://",
    *,
    secret: Secret | None = None,
    cookie: Cookie | None = None,
    idle_timeout: Duration = IDLE_TIMEOUT,
    lifetime: Duration | None = None,
    on_conflict: OnConflict | None = None,
    codec: Codec | None = None,
    check: bool = False,
) -> None:
    """Set up `app` so that every request has a session, kept in `storage`: a `Storage` or its URL.

    The storage is opened and closed with the app. One that is open already is left to whoever has opened it, and one
    that several apps share is closed with the last of them.

    Args:
        app: the application; its sub-apps share the sessions unless they have their own `setup`.
        storage: for example `"redis://localhost:6379/0"`.
        secret: what signs the cookie. `Options` has more about this one and the next five.
        cookie: how the browser keeps the id; `None` is a `Cookie()`.
        idle_timeout: seconds or a `timedelta` of disuse after which a session ends.
        lifetime: seconds or a `timedelta` after which a session ends, however busy it is.
        on_conflict: what to do if another request has changed the session; `None` merges both changes.
        codec: an object with `dumps` and `loads`; `None` is JSON.
        check: the app does not start if the storage answers and refuses to serve (`StorageRefused`), for example
            because of a wrong password. It starts without a server that is down. `cookie://` has nothing to check.

    Raises:
        ConfigError: a setting that cannot work or is not known, a second `setup` of one app, or one that comes too
            late: in `on_startup`, after `add_subapp`, or when the app runs. In `cleanup_ctx` it is in time.
    """
    app = checked_app("setup", app)
    if check not in (True, False):
        raise ConfigError(f"check={check!r} must be True or False")
    if check and is_foreign(storage):
        raise ConfigError(
            f"check=True cannot check a {type(storage).__name__}, written for aiohttp-session; leave it out"
        )
    if MANAGER in app:
        raise ConfigError(f"setup() was called twice on {app!r}; one app has one kind of session")
    refuse_late(app)
    manager = session_manager(
        storage,
        Options(
            secret=secret,
            cookie=cookie,
            idle_timeout=idle_timeout,
            lifetime=lifetime,
            on_conflict=on_conflict,
            codec=codec,
        ),
    )

    async def run(app: web.Application) -> AsyncIterator[None]:
        refuse_clashes(app)
        _warn_of_memory(manager)
        await manager.open()
        try:
            if check and isinstance(manager, StorageSessionManager):
                await manager.check()
            save_before_headers(app)
            yield
        finally:
            await manager.close()

    app[MANAGER] = manager
    app[GIVEN] = hash(storage) if isinstance(storage, str) else None
    app.middlewares.insert(0, middleware_of(manager))
    app.cleanup_ctx.append(run)


@answering_keywords("app.middlewares.append(session_middleware(storage, secret=…))")
def session_middleware(
    storage: Storage | str = "memory://",
    *,
    secret: Secret | None = None,
    cookie: Cookie | None = None,
    idle_timeout: Duration = IDLE_TIMEOUT,
    lifetime: Duration | None = None,
    on_conflict: OnConflict | None = None,
    codec: Codec | None = None,
) -> Middleware:
    """Make the middleware alone; see `setup` for the keywords, and prefer `setup`.

    It opens its storage at the first use and never closes it, and cannot save a session for a
    response that the handler prepares itself (a `RuntimeError` then names `setup`).

    Raises:
        ConfigError: a setting that cannot work or is not known.
    """
    manager = session_manager(
        storage,
        Options(
            secret=secret,
            cookie=cookie,
            idle_timeout=idle_timeout,
            lifetime=lifetime,
            on_conflict=on_conflict,
            codec=codec,
        ),
    )
    middleware = middleware_of(manager, is_alone=True)
    ALONE[middleware] = manager
    return middleware


def get_storage(app: web.Application) -> Storage:
    """Return the storage that `setup` opens for this app.

    Raises:
        RuntimeError: this app has no `setup` of its own, or one with `cookie://`, which is no storage.
        ConfigError: what was given is no app.
    """
    manager = checked_app("get_storage", app).get(MANAGER)
    if not isinstance(manager, StorageSessionManager):
        raise RuntimeError(  # noqa: TRY004
            "this app has no session storage; call aiohttp_store.setup(app, storage) first, with another than cookie://"
        )
    return manager.storage


def is_foreign(storage: object) -> bool:
    """Whether a storage was written for aiohttp-session."""
    kind = storage.__class__  # a client of MongoDB has whatever attribute it is asked for
    return hasattr(kind, "load_session") and hasattr(kind, "save_session")


def session_manager(storage: Storage | str, options: Options) -> SessionManager[Any]:
    """Return what keeps the sessions of an app, by its storage.

    Raises:
        ConfigError: a setting that cannot work.
    """
    # Each manager has defaults of its own, and one has no settings at all.
    given = {name: value for name, value in options.items() if value is not _DEFAULTS.get(name)}
    if is_foreign(storage):
        from ..compat.adapter import AiohttpSessionAdapter  # noqa: PLC0415  (imported only where it is used)

        manager: Any = AiohttpSessionAdapter(storage, given)
    else:
        manager = _own_manager(storage, given)
        stand_in = sys.modules.get("aiohttp_session")
        if stand_in is not None and stand_in is sys.modules.get("aiohttp_store.compat"):
            from ..compat.adapter import make_session  # noqa: PLC0415  (likewise)

            manager.present = make_session
    manager.present = guarding_path(manager.cookie, manager.present)
    return manager  # type: ignore[no-any-return]


def _own_manager(storage: Storage | str, options: dict[str, Any]) -> Any:
    if isinstance(storage, str):
        url = StorageURL.parse(storage)
        if url.scheme == "cookie":
            cookie_manager = imported("aiohttp_store._engine.cookie_manager:CookieSessionManager", url)
            return cookie_manager(url, **options)
        storage = storage_from_url(storage)
    if not isinstance(storage, Storage):
        raise no_storage(storage)
    manager = StorageSessionManager(storage, **options)
    if isinstance(storage, LegacySource) and storage.legacy is not None:
        manager.take_over(SessionTakeover(manager, storage, storage.legacy))
    return manager


def _warn_of_memory(manager: SessionManager[Any]) -> None:
    is_debug = sys.flags.dev_mode or asyncio.get_running_loop().get_debug()
    if isinstance(manager, StorageSessionManager) and isinstance(manager.storage, MemoryStorage) and not is_debug:
        log_once(
            logger.warning,
            "sessions are kept in memory://, for development only: they are lost when this process ends, and no other "
            "process sees them; use a URL such as redis://localhost:6379/0",
        )
