"""The session as a dictionary, and each of its members, as a handler sees them."""

from __future__ import annotations

import asyncio
import pickle
import time
from datetime import timedelta
from typing import Any, TypedDict, get_origin

import pytest
from aiohttp import web

from aiohttp_store import ConfigError, Session, SessionGone, get_session, get_storage, new_session
from aiohttp_store.cookie import key_of_id

from ..conftest import Client, Serve
from ..support.remote import Remote, kept


async def begin(request: web.Request) -> web.Response:
    session = await get_session(request)
    session.update(a=1, d={"x": [1]})
    return web.Response()


async def show(request: web.Request) -> web.Response:
    return web.json_response(dict(await get_session(request)))


async def visit(client: Client, path: str, **options: Any) -> Any:
    async with client.get(path, **options) as response:
        assert response.status == 200, await response.text()
        return await response.read()


async def shown(client: Client) -> Any:
    async with client.get("/show") as response:
        return await response.json()


async def test_it_behaves_as_a_dictionary(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        session = await get_session(request)
        assert session == {}
        assert not session
        assert session.empty
        session["a"] = 1
        session.update(b=2)
        assert session.setdefault("c", []) == []
        assert session.pop("b") == 2
        assert list(session) == ["a", "c"]
        assert len(session) == 2
        assert "a" in session
        assert session == {"a": 1, "c": []}
        with pytest.raises(KeyError):
            session["missing"]
        del session["a"]
        session.clear()
        assert session.empty
        return web.Response()

    client = await serve(handler)
    async with client.get("/handler") as response:
        assert response.status == 200
        assert "Set-Cookie" not in response.headers


async def test_its_repr_shows_neither_ids_nor_values_and_it_is_not_pickled(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        session = await get_session(request)
        assert repr(session) == "<Session stored, 2 keys>"
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(session)
        session.invalidate()
        assert repr(session) == "<Session new, 0 keys>"
        return web.Response()

    client = await serve(begin, handler)
    await visit(client, "/begin")
    await visit(client, "/handler")


async def test_its_members_tell_its_state(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        session = await get_session(request)
        first = request.query["first"] == "yes"
        assert session.new is first
        assert (session.identity is None) is first
        assert abs(session.created - time.time()) < 5
        assert session.idle_timeout is None
        session["n"] = 1
        return web.json_response(session.created)

    client = await serve(handler)
    created = float(await visit(client, "/handler?first=yes"))
    await asyncio.sleep(0.01)
    assert float(await visit(client, "/handler?first=no")) == pytest.approx(created, abs=0.001)


async def test_asking_twice_gives_one_object_and_loads_once(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        sessions = await asyncio.gather(*(get_session(request) for _ in range(5)))
        assert all(session is sessions[0] for session in sessions)
        return web.Response()

    class Counting(Remote):
        loads = 0

        async def load(self, keys: Any) -> Any:
            self.loads += len(keys)
            await asyncio.sleep(0)
            return await super().load(keys)

    storage = Counting()
    client = await serve(begin, handler, storage=storage)
    await visit(client, "/begin")
    await visit(client, "/handler")
    assert storage.loads == 1


async def test_a_caller_that_is_cancelled_while_loading_leaves_the_session_to_others(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        first, second = (asyncio.create_task(get_session(request)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second)["a"] == 1
        assert first.cancelled() or await first is await second
        return web.Response()

    client = await serve(begin, handler, storage=Remote())
    await visit(client, "/begin")
    await visit(client, "/handler")


async def test_after_invalidate_what_is_written_starts_a_new_session(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        session = await get_session(request)
        old = session.identity
        session.invalidate()
        assert session.new
        assert session.empty
        assert session.identity is None
        session["b"] = 2
        await session.save()
        assert session.identity not in (None, old)
        return web.Response(text=old)

    client = await serve(begin, handler, show)
    await visit(client, "/begin")
    old = (await visit(client, "/handler")).decode()
    assert await shown(client) == {"b": 2}
    assert client.app is not None
    assert await get_storage(client.app).load([key_of_id(old)]) == [None]


async def test_a_new_session_is_another_object_and_the_old_one_is_over(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        old = await get_session(request)
        fresh = await new_session(request)
        assert fresh is not old
        assert await get_session(request) is fresh
        old["late"] = True
        with pytest.raises(SessionGone):
            await old.save()
        fresh["b"] = 2
        return web.Response()

    client = await serve(begin, handler, show)
    await visit(client, "/begin")
    await visit(client, "/handler")
    assert await shown(client) == {"b": 2}


async def test_changed_saves_what_looks_the_same(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        if "mark" in request.query:
            (await get_session(request)).changed()
        else:
            await get_session(request)
        return web.Response()

    client = await serve(begin, handler)
    await visit(client, "/begin")
    assert client.app is not None
    storage: Any = get_storage(client.app)
    (before,) = [record.version for record in kept(storage).values()]
    await visit(client, "/handler")
    assert [record.version for record in kept(storage).values()] == [before]
    await visit(client, "/handler?mark=1")
    assert [record.version for record in kept(storage).values()] != [before]


async def test_reload_drops_what_was_not_saved(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        session = await get_session(request)
        session["a"] = 2
        session["d"]["x"].append(2)
        await session.reload()
        assert session == {"a": 1, "d": {"x": [1]}}
        await session.save()
        return web.Response()

    async def empty(request: web.Request) -> web.Response:
        session = await get_session(request)
        session["a"] = 2
        await session.reload()
        assert session.empty
        return web.Response()

    client = await serve(begin, handler, empty, show)
    await visit(client, "/empty")
    await visit(client, "/begin")
    await visit(client, "/handler")
    assert await shown(client) == {"a": 1, "d": {"x": [1]}}


@pytest.mark.parametrize("member", ["save", "reload", "apply"])
async def test_a_session_that_was_deleted_meanwhile_says_so(member: str, serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        session = await get_session(request)
        assert session.identity is not None
        await get_storage(request.app).delete([key_of_id(session.identity)])
        for _ in range(2):
            with pytest.raises(SessionGone):
                await (
                    session.apply(lambda fresh: fresh.update(b=2)) if member == "apply" else getattr(session, member)()
                )
        assert session.identity is None
        assert "gone" in repr(session)
        session["late"] = True
        return web.Response()

    client = await serve(begin, handler, show)
    await visit(client, "/begin")
    async with client.get("/handler") as response:
        assert response.status == 200
        assert "Set-Cookie" not in response.headers
    assert await shown(client) == {}


async def test_a_session_that_is_gone_and_uncaught_is_a_409(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        session = await get_session(request)
        assert session.identity is not None
        await get_storage(request.app).delete([key_of_id(session.identity)])
        await session.save()
        return web.Response()

    client = await serve(begin, handler)
    await visit(client, "/begin")
    async with client.get("/handler") as response:
        assert response.status == 409


async def test_apply_gives_the_result_and_counts_many_tasks_of_one_request(serve: Serve) -> None:
    def increment(session: Session) -> int:
        session["n"] = session.get("n", 0) + 1
        return int(session["n"])

    async def handler(request: web.Request) -> web.Response:
        session = await get_session(request)
        session["pending"] = True
        results = await asyncio.gather(*(session.apply(increment) for _ in range(20)))
        return web.json_response(results)

    client = await serve(handler, show)
    async with client.get("/handler") as response:
        assert sorted(await response.json()) == list(range(1, 21))
    assert await shown(client) == {"pending": True, "n": 20}


async def test_a_change_that_fails_leaves_the_session_as_it_was(serve: Serve) -> None:
    def fail(session: Session) -> None:
        session["a"] = 2
        session["d"]["x"].append(5)
        raise ZeroDivisionError

    async def fail_slowly(session: Session) -> None:
        session["a"] = 2

    async def handler(request: web.Request) -> web.Response:
        session = await get_session(request)
        session["kept"] = 1
        with pytest.raises(ZeroDivisionError):
            await session.apply(fail)
        with pytest.raises(TimeoutError, match="mine"):
            await session.apply(lambda _: (_ for _ in ()).throw(TimeoutError("mine")))
        with pytest.raises(TypeError, match="plain function"):
            await session.apply(fail_slowly)  # type: ignore[unused-coroutine]
        return web.Response()

    client = await serve(begin, handler, show)
    await visit(client, "/begin")
    await visit(client, "/handler")
    assert await shown(client) == {"a": 1, "d": {"x": [1]}, "kept": 1}


async def test_a_value_that_json_cannot_hold_is_a_500_that_names_it(serve: Serve, caplog: Any) -> None:
    async def handler(request: web.Request) -> web.Response:
        (await get_session(request))["cart"] = [object()]
        return web.Response()

    client = await serve(handler)
    async with client.get("/handler") as response:
        assert response.status == 500
        assert "Set-Cookie" not in response.headers
    assert "session['cart'][0] is of type object" in caplog.text


@pytest.mark.parametrize(("timeout", "seconds"), [(60, 60), (timedelta(days=30), 2_592_000), (0.5, 1)])
async def test_its_own_idle_timeout_is_stored_and_makes_the_cookie_persistent(
    timeout: Any, seconds: int, serve: Serve
) -> None:
    async def remember(request: web.Request) -> web.Response:
        (await get_session(request)).idle_timeout = timeout
        return web.Response()

    async def forget(request: web.Request) -> web.Response:
        session = await get_session(request)
        assert session.idle_timeout is not None
        session.idle_timeout = None
        return web.Response()

    client = await serve(begin, remember, forget)
    async with client.get("/begin") as response:
        assert "Max-Age" not in response.headers["Set-Cookie"]
    async with client.get("/remember") as response:
        assert f"Max-Age={seconds};" in response.headers["Set-Cookie"]
    async with client.get("/forget") as response:
        assert "Max-Age" not in response.headers["Set-Cookie"]


@pytest.mark.parametrize("timeout", [0, -1, "60", float("inf")])
async def test_a_wrong_idle_timeout_is_refused(timeout: Any, serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        with pytest.raises(ConfigError, match="must be seconds or a timedelta"):
            (await get_session(request)).idle_timeout = timeout
        return web.Response()

    await visit(await serve(handler), "/handler")


async def test_a_codec_of_the_apps_own_is_used(serve: Serve) -> None:
    class Backwards:
        def dumps(self, data: dict[str, Any]) -> str:
            return repr(data)[::-1]

        def loads(self, encoded: bytes) -> Any:
            from ast import literal_eval

            return literal_eval(encoded.decode()[::-1])

    async def handler(request: web.Request) -> web.Response:
        session = await get_session(request)
        session.setdefault("set", {1, 2}).add(3)
        return web.Response(text=repr(session["set"]))

    client = await serve(handler, codec=Backwards())
    for _ in range(2):
        assert await visit(client, "/handler") == b"{1, 2, 3}"
    assert client.app is not None
    storage: Any = get_storage(client.app)
    (record,) = kept(storage).values()
    assert record.data.endswith(b"{'set': {1, 2, 3}}"[::-1])


class Cart(TypedDict, total=False):
    items: list[str]


async def test_a_typed_session_is_the_same_session(serve: Serve) -> None:
    async def fill(request: web.Request) -> web.Response:
        session: Session[Cart] = await get_session(request, Cart)
        untyped: object = session.data
        assert untyped is session is await get_session(request)
        assert get_origin(Session[Cart]) is Session  # an annotation may be evaluated
        session.data["items"] = ["tea"]
        session.data["items"].append("milk")
        return web.Response()

    async def anew(request: web.Request) -> web.Response:
        old = await get_session(request, Cart)
        session = await new_session(request, Cart)
        assert session is await get_session(request, Cart, extend=False)
        session.data["items"] = old.data.get("items", ["gone"])
        return web.Response()

    client = await serve(fill, anew, show)
    await visit(client, "/fill")
    assert await shown(client) == {"items": ["tea", "milk"]}
    await visit(client, "/anew")
    assert await shown(client) == {"items": ["gone"]}
