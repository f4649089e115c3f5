"""What type checkers must know of the public names: `make lint` checks this file, and nothing executes it.

A line that ends with `type: ignore[…]` shows a wrong use, which mypy has to refuse: an ignore that is not
needed is an error.
"""

from __future__ import annotations

import json
from collections.abc import MutableMapping, Sequence
from datetime import timedelta
from typing import Any, NotRequired, Self, TypedDict, assert_type

from aiohttp import web
from aiohttp.test_utils import TestClient
from aiohttp.typedefs import Middleware

import aiohttp_store
from aiohttp_store import (
    ConfigError,
    Conflict,
    Cookie,
    Gone,
    Host,
    Options,
    Outcome,
    Record,
    Saved,
    Session,
    SessionConflict,
    SessionError,
    SessionGone,
    SessionTooLarge,
    Storage,
    StorageUnavailable,
    StorageURL,
    Write,
    get_session,
    get_storage,
    new_session,
    open_storage,
    register,
    session_middleware,
    setup,
)
from aiohttp_store.testing import Clock, PresetSession, freeze, session_of, set_session, sign_in


class Cart(TypedDict):
    items: list[str]
    total: int
    coupon: NotRequired[str]


class Login(TypedDict):
    user: str


# Without types: any key, any value.


async def untyped(request: web.Request) -> web.Response:
    session = await get_session(request)
    assert_type(session, Session)
    assert_type(session, Session[Any])
    assert_type(session["visits"], Any)
    session["visits"] = session.get("visits", 0) + 1
    session.setdefault("cart", {})["tea"] = 1
    session.update({"user": "ann"}, visits=2)
    session[1] = 2  # type: ignore[index]
    mapping: MutableMapping[str, Any] = session
    del mapping["visits"]
    if "user" in session and not session.empty:
        return web.json_response(dict(session))
    return web.json_response({"visits": session["visits"], "keys": list(session), "n": len(session)})


# With types: the keys of a TypedDict, by `data`; the rest of the session is as ever.


async def typed(request: web.Request) -> web.Response:
    session = await get_session(request, Cart)
    assert_type(session, Session[Cart])
    assert_type(session.data, Cart)
    assert_type(session.data["items"], list[str])
    assert_type(session.data["total"], int)
    assert_type(session.data.get("coupon"), str | None)
    assert_type(session.data.setdefault("items", []), list[str])
    session.data["items"].append("tea")
    session.data["total"] += 1
    session.data.update({"total": 2})
    session.data["sum"] = 1  # type: ignore[typeddict-unknown-key]
    session.data.update({"sum": 1})  # type: ignore[misc]
    del session.data["coupon"]
    session.data = {"items": [], "total": 0}  # type: ignore[misc]
    session.renew(login=True)
    session.invalidate()
    session.idle_timeout = timedelta(days=30)
    anything: Any = session["total"]  # the session itself holds whatever it is given
    return web.json_response({"total": session.data["total"], "anything": anything})


async def annotated(request: web.Request) -> None:
    session: Session[Cart] = await get_session(request)
    assert_type(session.data["total"], int)
    assert_type(await get_session(request, Cart, extend=False), Session[Cart])
    assert_type(await get_session(request, extend=False), Session)
    assert_type(await new_session(request), Session)
    assert_type(await new_session(request, Login), Session[Login])
    await get_session(request, int)  # type: ignore[type-var]
    await get_session(request, extended=False)  # type: ignore[call-overload]
    await get_session(request, False)  # type: ignore[call-overload]
    await new_session(request, extend=False)  # type: ignore[call-overload]


def of_any_session(session: Session) -> int:
    return len(session)


async def functions_of_sessions(request: web.Request) -> None:
    cart, login, untyped = (
        await get_session(request, Cart),
        await get_session(request, Login),
        await get_session(request),
    )
    for session in (cart, login, untyped):
        assert_type(of_any_session(session), int)
    add(cart)
    add(untyped)
    add(login)  # type: ignore[arg-type]


async def methods(request: web.Request) -> None:
    session = await get_session(request)
    assert_type(session.identity, str | None)
    assert_type(session.new, bool)
    assert_type(session.created, float)
    assert_type(session.empty, bool)
    assert_type(session.idle_timeout, float | None)
    session.idle_timeout = 60
    session.idle_timeout = None
    session.idle_timeout = "1h"  # type: ignore[assignment]
    session.identity = "mine"  # type: ignore[misc]
    session.created = 0.0  # type: ignore[misc]
    session.max_age = 60  # type: ignore[attr-defined]
    session.flush()  # type: ignore[attr-defined]
    session.changed()
    session.renew(True)  # type: ignore[call-arg]
    await session.save()
    await session.reload()

    def count(session: Session) -> int:
        session["n"] = session.get("n", 0) + 1
        return int(session["n"])

    async def awaits(session: Session) -> None:
        await session.save()

    assert_type(await session.apply(count), int)
    assert_type(await session.apply(len), int)
    cart, login = await get_session(request, Cart), await get_session(request, Login)
    assert_type(await cart.apply(add), int)
    assert_type(await cart.apply(lambda cart: cart.data["items"]), list[str])
    assert_type(await cart.apply(count), int)
    await login.apply(add)  # type: ignore[arg-type]
    await session.apply(1)  # type: ignore[arg-type]


# The page docs/typing.rst.


async def add_tea(request: web.Request) -> web.Response:
    session = await get_session(request, Cart)
    session.data["items"].append("tea")
    session.data["total"] += 1
    return web.json_response(dict(session))


async def refused(request: web.Request) -> None:
    session = await get_session(request, Cart)
    session.data["totel"]  # type: ignore[typeddict-item]
    session.data["total"] = "2"  # type: ignore[typeddict-item]
    session.data["items"].append(2)  # type: ignore[arg-type]
    del session.data["total"]  # type: ignore[misc]


def add(session: Session[Cart]) -> int:
    session.data["total"] += 1
    return session.data["total"]


async def count(request: web.Request) -> int:
    session: Session[Cart] = await get_session(request)
    return await session.apply(add)


def is_known(session: Session) -> bool:
    return "user" in session


async def cart_of(request: web.Request) -> Session[Cart]:
    return await get_session(request)


# Set-up.


class TextCodec:
    def dumps(self, data: dict[str, Any]) -> str:
        return json.dumps(data)

    def loads(self, encoded: bytes) -> Any:
        return json.loads(encoded)


def set_up(app: web.Application) -> None:
    setup(app)
    setup(app, "redis://localhost:6379/0")
    setup(app, storage="memory://", secret="s" * 32)
    setup(app, secret=["n" * 32, b"o" * 32])
    setup(app, secret=None, cookie=None, lifetime=None, codec=None)
    setup(app, idle_timeout=3600, lifetime=timedelta(days=90), on_conflict="raise", codec=TextCodec())
    setup(
        app,
        cookie=Cookie(
            name="__Host-session",
            path="/",
            domain=None,
            secure="auto",
            httponly=True,
            samesite="Strict",
            partitioned=True,
            priority="High",
            persistent=True,
        ),
    )
    options: Options = {"idle_timeout": timedelta(hours=1), "on_conflict": "overwrite"}
    setup(app, OneDict(), **options)
    app.middlewares.append(session_middleware("memory://", **options))
    assert_type(session_middleware(), Middleware)
    setup(app, 5)  # type: ignore[arg-type]
    setup(app, idle_timeout="1h")  # type: ignore[arg-type]
    setup(app, timeout=1)  # type: ignore[call-arg]
    setup(app, on_conflict="ignore")  # type: ignore[arg-type]
    setup(app, codec=json)
    setup(app, codec=str)  # type: ignore[arg-type]
    setup(app, cookie="session")  # type: ignore[arg-type]
    Cookie("session")  # type: ignore[call-arg]
    Cookie(samesite="lax")  # type: ignore[arg-type]
    Cookie().name = "other"  # type: ignore[misc]
    app.router.add_get("/", untyped)
    app.router.add_get("/cart", typed)
    assert_type(get_storage(app), Storage)
    assert_type(aiohttp_store.__version__, str)


# A storage of one's own.


class OneDict(Storage):
    timeout = 1.0

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.records: dict[str, Record] = {}

    @classmethod
    def from_url(cls, url: StorageURL) -> Self:
        hosts: Sequence[Host] = url.hosts
        return cls(prefix=hosts[0].name if hosts else url.path)

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        return [self.records.get(key) for key in keys]

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for key, expected, data, ttl in writes:
            held = self.records.get(key)
            if held is None and expected is not None:
                outcomes.append(Gone())
            elif held is not None and held.version != expected:
                outcomes.append(Conflict(held))
            elif data is not None and ttl > 0:
                self.records[key] = Record(b"1", data)
                outcomes.append(Saved(b"1"))
        return outcomes

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.records.pop(key, None)


class Unfinished(Storage):
    async def load(self, keys: Sequence[str]) -> list[Record]:  # type: ignore[override]
        raise NotImplementedError


def from_url(url: StorageURL) -> Storage:
    return OneDict(url.path)


async def storages() -> None:
    register("dict", OneDict)
    register("dict", from_url)
    register("dict", "package.module:OneDict")
    register("dict", print)  # type: ignore[arg-type]
    Unfinished()  # type: ignore[abstract]
    async with open_storage("memory://") as storage:
        assert_type(storage, Storage)
        (record,) = await storage.load(["key"])
        assert_type(record, Record | None)
        (outcome,) = await storage.save([Write("key", None, b"data", 60)])
        match outcome:
            case Saved(version):
                assert_type(version, bytes)
            case Conflict(other):
                assert_type(other, Record)
            case Gone():
                pass
            case _ as never:
                assert_never_reached(never)
        await storage.save([Write("key", None, "data", 60)])  # type: ignore[arg-type]


def assert_never_reached(outcome: object) -> None: ...


# Errors.


async def errors(request: web.Request) -> None:
    try:
        await (await get_session(request)).save()
    except SessionTooLarge as error:
        assert_type((error.size, error.limit), tuple[int, int])
    except (StorageUnavailable, SessionConflict, SessionGone, ConfigError) as error:
        session_error: SessionError = error
        raise session_error from None
    except SessionError:
        raise
    config: type[ValueError] = ConfigError
    raise config


# For tests of apps.


async def tests_of_apps(client: TestClient[web.Request, web.Application], request: web.Request) -> None:
    cart: Cart = {"items": [], "total": 0}
    await sign_in(client, {"user": "ann"})
    await sign_in(client, cart, app=client.app, idle_timeout=timedelta(days=30))
    await sign_in(client, "ann")  # type: ignore[arg-type]
    await sign_in(client.app, {"user": "ann"})  # type: ignore[arg-type]
    assert_type(await session_of(client), dict[str, Any])
    await session_of(client, app=client.app)
    session = set_session(request, {"user": "ann"})
    assert_type(session, PresetSession)
    set_session(request)
    set_session(request, cart)
    assert_type(session.was_renewed, bool)
    plain: Session = session
    of_any_session(plain)
    with freeze(client.app) as clock:
        assert_type(clock, Clock)
        clock.advance(3600)
        clock.advance(timedelta(days=1))
        clock.advance("1h")  # type: ignore[arg-type]
        assert_type(clock.now, float)
