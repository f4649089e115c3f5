"""What was given in place of an app, a storage or a request, and what to write instead."""

from __future__ import annotations

import inspect
from typing import Any

from aiohttp import web

from ..errors import ConfigError
from ..url import StorageURL

__all__ = ["checked_app", "no_session", "no_storage", "refuse_late", "shown"]

_WRAPPED = {
    "redis": "wrap the client: RedisStorage(client), from aiohttp_store.storages.redis",
    "aiomcache": "wrap the client: MemcachedStorage(client), from aiohttp_store.storages.memcached",
    "motor": "wrap the client: MongoDBStorage(client), from aiohttp_store.storages.mongodb",
    "pymongo": "wrap an AsyncMongoClient: MongoDBStorage(client), from aiohttp_store.storages.mongodb",
    "aiomysql": "wrap the pool: MySQLStorage(pool), from aiohttp_store.storages.mysql",
    "aiosqlite": "give the path of the file: SQLiteStorage(path), from aiohttp_store.storages.sqlite",
    "sqlite3": "give the path of the file: SQLiteStorage(path), from aiohttp_store.storages.sqlite",
    "pathlib": "write 'sqlite:///file.db', or SQLiteStorage(path), from aiohttp_store.storages.sqlite",
    "contextlib": "enter it first: async with open_storage(url) as storage",
    "yarl": "give str(url)",
}
"""What to do with an object of these packages."""
_ANY = "give a URL, as 'redis://localhost:6379/0', or a Storage"
_LONGEST = 60
"""Characters of a value that a message shows."""


def shown(value: object) -> str:
    """Return a short value as it is, and of any other its type: drivers show passwords, and fill pages."""
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    if value is None or isinstance(value, str | bytes | int | float | tuple | list | dict):
        text = repr(value)
        if len(text) <= _LONGEST and "@" not in text:
            return text
    return f"an object of type {type(value).__module__}.{type(value).__qualname__}"


def no_storage(value: object) -> ConfigError:
    """Return the error that says that a value is neither a storage nor a URL."""
    packages = [kind.__module__.partition(".")[0] for kind in type(value).__mro__]
    way = next((_WRAPPED[one] for one in packages if one in _WRAPPED), _ANY)
    if isinstance(value, type):
        way = f"{_ANY} that is made"
    elif isinstance(value, StorageURL):
        way = "give the URL as a str"
    elif value is None:
        way = f"{_ANY}; is an environment variable not set?"
    return ConfigError(f"{shown(value)} is no storage; {way}")


def checked_app(called: str, app: object) -> web.Application:
    """Return the app.

    Raises:
        ConfigError: it is another object.
    """
    if isinstance(app, web.Application):
        return app
    if isinstance(app, web.BaseRequest):
        way = f"write {called}(request.app)"
    elif isinstance(app, type):
        way = "give an instance of it"
    elif called == "setup":
        way = "the app comes first, as in setup(app, 'redis://localhost:6379/0')"
    else:
        way = f"write {called}(app)"
    raise ConfigError(f"{shown(app)} is no web.Application; {way}")


def refuse_late(app: web.Application) -> None:
    """Refuse an app to which not everything that `setup` adds can be added any more.

    Raises:
        ConfigError: it runs, is part of another one, or has entered its cleanup contexts.
    """
    if app.frozen:
        why = "which is running; call it before the app starts"
    elif app.pre_frozen:
        why = "which is part of another app already; call it before add_subapp() or add_domain()"
    elif _is_past_contexts(app):
        why = (
            "which is starting, in on_startup or later; call it before the app starts, or, if it needs a client that "
            "is opened then, in a function of app.cleanup_ctx, before its yield"
        )
    else:
        return
    raise ConfigError(f"setup() was called on {app!r}, {why}")


def _is_past_contexts(app: web.Application) -> bool:
    """Whether no context that is appended now would be entered; while they are entered, one more still is."""
    entered = len(app.cleanup_ctx._exits)  # noqa: SLF001  (aiohttp has no other way)
    return (app.on_startup.frozen or entered > 0) and entered == len(app.cleanup_ctx)


def no_session(called: str, request: Any) -> Exception:
    """Return the error that says why a request has no session: it is none, or it never came to our middleware."""
    if not isinstance(request, web.BaseRequest):
        if isinstance(getattr(request, "request", None), web.BaseRequest):  # a web.View
            way = f"write {called}(self.request)"
        elif inspect.iscoroutine(request):
            way = "await it first"
        else:
            way = f"write {called}(request)"
        return TypeError(f"{called}() takes the request, and was given {shown(request)}; {way}")
    apps = request.match_info.apps if isinstance(request, web.Request) else ()
    if any(_is_ours(middleware) for app in apps for middleware in app.middlewares):
        return RuntimeError(
            f"{called}() was called before the request came to the sessions' middleware, in one around it; "
            "append that one to app.middlewares, where it runs inside, or put it there before setup() is called"
        )
    return RuntimeError("this request has no session; call aiohttp_store.setup(app, storage) on the app")


def _is_ours(middleware: object) -> bool:
    return getattr(middleware, "__module__", "").startswith(f"{__name__.partition('.')[0]}.")
