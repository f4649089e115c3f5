"""What becomes of a session when the handler fails, and of changes that come after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

import aiohttp_store
from aiohttp_store import get_session, new_session

from ..conftest import AiohttpClient, Client, Serve
from ..support.remote import Remote
from .test_streams import Failing


async def begin(request: web.Request) -> web.Response:
    (await get_session(request))["a"] = 1
    return web.Response()


async def show(request: web.Request) -> web.Response:
    return web.json_response(dict(await get_session(request)))


async def shown(client: Client) -> Any:
    async with client.get("/show") as response:
        return await response.json()


def catching(status: int) -> Middleware:
    """Return a middleware that shows a page of its own for whatever a handler raises."""

    @web.middleware
    async def page(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Exception:  # noqa: BLE001  (as apps do it)
            return web.Response(status=status)

    return page


async def served(aiohttp_client: AiohttpClient, storage: Any, *handlers: Handler, **around: Any) -> Client:
    """Serve handlers in an app that has middlewares inside and outside of ours, and receivers before and after it."""
    app = web.Application(middlewares=around.get("inside", ()))
    app.on_response_prepare.extend(around.get("before", ()))
    for handler in (begin, show, *handlers):
        app.router.add_get(f"/{handler.__name__}", handler)
    aiohttp_store.setup(app, storage)
    for one in around.get("outside", ()):
        app.middlewares.insert(0, one)
    app.on_response_prepare.extend(around.get("after", ()))
    return await aiohttp_client(app)


async def returned(request: web.Request) -> web.StreamResponse:
    return web.Response(status=500)


async def raised(request: web.Request) -> web.StreamResponse:
    raise web.HTTPInternalServerError


async def streamed(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(status=500)
    await response.prepare(request)
    return response


async def crashed(request: web.Request) -> web.StreamResponse:
    raise LookupError


@pytest.mark.parametrize("fail", [returned, raised, streamed, crashed])
@pytest.mark.parametrize("place", ["inside", "outside", "nowhere"])
@pytest.mark.parametrize("is_stored", [True, False], ids=["stored", "new"])
async def test_a_response_of_status_500_saves_nothing_and_sets_no_cookie(
    is_stored: bool, place: str, fail: Handler, aiohttp_client: AiohttpClient
) -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        session = await get_session(request)
        session["half"] = True
        session.renew()
        return await fail(request)

    client = await served(aiohttp_client, "memory://", half, **{place: [catching(500)]})
    before = {}
    if is_stored:
        await client.get("/begin")
        before = {"a": 1}
    async with client.get("/half") as response:
        assert response.status == 500
        assert "Set-Cookie" not in response.headers
    assert await shown(client) == before


@pytest.mark.parametrize("end", ["invalidate", "clear"])
async def test_a_logout_that_fails_ends_nothing(end: str, serve: Serve, storage_url: str) -> None:
    async def logout(request: web.Request) -> web.Response:
        getattr(await get_session(request), end)()
        return web.Response(status=500)

    async def restart(request: web.Request) -> web.Response:
        (await new_session(request))["b"] = 1
        return web.Response(status=500)

    client = await serve(begin, show, logout, restart, storage=storage_url)
    await client.get("/begin")
    for path in ("/logout", "/restart"):
        async with client.get(path) as response:
            assert "Set-Cookie" not in response.headers
        assert await shown(client) == {"a": 1}


@pytest.mark.parametrize("status", [400, 404, 422, 501, 503])
async def test_every_other_status_saves(status: int, serve: Serve) -> None:
    async def put(request: web.Request) -> web.Response:
        (await get_session(request))["b"] = 1
        return web.Response(status=status)

    client = await serve(begin, show, put)
    await client.get("/begin")
    await client.get("/put")
    assert await shown(client) == {"a": 1, "b": 1}


@pytest.mark.parametrize("fail", [returned, raised, crashed])
async def test_what_was_saved_explicitly_stays_though_the_handler_fails(
    fail: Handler, serve: Serve, storage_url: str
) -> None:
    async def put(request: web.Request) -> web.StreamResponse:
        session = await get_session(request)
        session["kept"] = 1
        await session.save()
        session["lost"] = 1
        return await fail(request)

    client = await serve(begin, show, put, storage=storage_url)
    await client.get("/begin")
    await client.get("/put")
    assert await shown(client) == {"a": 1, "kept": 1}


async def test_after_a_crash_a_middleware_around_ours_gets_the_session_as_it_is_stored(
    aiohttp_client: AiohttpClient, storage_url: str
) -> None:
    @web.middleware
    async def apologise(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except LookupError:
            session = await get_session(request)
            assert dict(session) == {"a": 1}
            session["sorry"] = True
            raise web.HTTPFound("/show") from None

    async def half(request: web.Request) -> web.StreamResponse:
        (await get_session(request))["half"] = True
        raise LookupError

    client = await served(aiohttp_client, storage_url, half, outside=[apologise])
    await client.get("/begin")
    await client.get("/half")
    assert await shown(client) == {"a": 1, "sorry": True}


# An outage that somebody caught.


async def loads(request: web.Request) -> None:
    await get_session(request)


async def saves(request: web.Request) -> None:
    session = await get_session(request)
    session["b"] = 1
    await session.save()


async def applies(request: web.Request) -> None:
    await (await get_session(request)).apply(lambda session: session.update(b=1))


async def reloads(request: web.Request) -> None:
    await (await get_session(request)).reload()


@pytest.mark.parametrize(("ask", "down"), [(loads, "load"), (saves, "save"), (applies, "save"), (reloads, "load")])
async def test_an_outage_behind_an_error_page_of_status_500_is_a_503(
    ask: Callable[[web.Request], Any], down: str, aiohttp_client: AiohttpClient
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if ask is not loads:
            await get_session(request)
        storage.down = down
        await ask(request)
        return web.Response()

    storage = Failing()
    client = await served(aiohttp_client, storage, handler, inside=[catching(500)])
    await client.get("/begin")
    async with client.get("/handler") as response:
        assert response.status == 503
        assert response.headers["Retry-After"] == "1"
        assert "Set-Cookie" not in response.headers


async def test_a_page_of_its_own_for_an_outage_is_left_as_the_app_made_it(aiohttp_client: AiohttpClient) -> None:
    storage = Failing()
    client = await served(aiohttp_client, storage, inside=[catching(200)])
    await client.get("/begin")
    storage.down = "load"
    async with client.get("/show") as response:
        assert response.status == 200
        assert response.headers["Vary"] == "Cookie"


# Changes after the handler.


async def mark(request: web.Request, response: web.StreamResponse | None = None) -> None:
    (await get_session(request))["marked"] = True


@web.middleware
async def marking(request: web.Request, handler: Handler) -> web.StreamResponse:
    response = await handler(request)
    await mark(request)
    return response


async def reading(request: web.Request) -> web.Response:
    await get_session(request)
    return web.Response()


async def nothing(request: web.Request) -> web.Response:
    return web.Response()


@pytest.mark.parametrize("handler", [reading, nothing, begin])
@pytest.mark.parametrize(
    "around",
    [{"before": [mark]}, {"after": [mark]}, {"outside": [marking]}, {"inside": [marking]}],
    ids=lambda around: next(iter(around)),
)
async def test_a_change_after_the_handler_is_saved(
    around: dict[str, Any], handler: Handler, aiohttp_client: AiohttpClient
) -> None:
    handlers = [one for one in (reading, nothing) if one is handler]
    client = await served(aiohttp_client, "memory://", *handlers, **around)
    await client.get(f"/{handler.__name__}")
    assert (await shown(client))["marked"]
    await client.get(f"/{handler.__name__}")
    assert (await shown(client))["marked"]


@pytest.mark.parametrize("method", ["invalidate", "renew"])
async def test_a_logout_or_renewal_after_the_handler_is_carried_out(
    method: str, aiohttp_client: AiohttpClient, storage_url: str
) -> None:
    async def late(request: web.Request, response: web.StreamResponse) -> None:
        if request.path == "/reading":
            getattr(await get_session(request), method)()

    client = await served(aiohttp_client, storage_url, reading, after=[late])
    async with client.get("/begin") as response:
        old = response.cookies["session"].value
    async with client.get("/reading") as response:
        assert response.cookies["session"].value != old
    assert await shown(client) == ({} if method == "invalidate" else {"a": 1})
    client.session.cookie_jar.clear()
    async with client.get("/show", headers={"Cookie": f"session={old}"}) as response:
        assert await response.json() == {}


async def test_a_receiver_of_a_sub_app_may_change_the_session_of_its_parent(aiohttp_client: AiohttpClient) -> None:
    app, below = web.Application(), web.Application()
    below.on_response_prepare.append(mark)
    below.router.add_get("/nothing", nothing)
    app.router.add_get("/show", show)
    aiohttp_store.setup(app, "memory://")
    app.add_subapp("/below", below)
    client = await aiohttp_client(app)
    await client.get("/below/nothing")
    assert await shown(client) == {"marked": True}


async def test_a_response_that_another_takes_the_place_of_loses_no_cookie(
    aiohttp_client: AiohttpClient, storage_url: str
) -> None:
    @web.middleware
    async def replace(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        assert isinstance(response, web.Response)
        return web.Response(body=response.body)

    client = await served(aiohttp_client, storage_url, reading, outside=[replace])
    async with client.get("/begin") as response:
        assert len(response.headers.getall("Set-Cookie")) == 1
        assert response.headers["Cache-Control"] == "no-store"
    async with client.get("/reading") as response:
        assert response.headers["Vary"] == "Cookie"
        assert "Set-Cookie" not in response.headers


@pytest.mark.parametrize("place", ["before", "after"])
async def test_what_a_receiver_of_the_apps_own_says_to_caches_is_corrected(
    place: str, aiohttp_client: AiohttpClient
) -> None:
    async def invite(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Cache-Control"] = "public, max-age=600"
        response.headers["Vary"] = "Accept"

    client = await served(aiohttp_client, "memory://", **{place: [invite]})
    async with client.get("/begin") as response:
        assert response.headers["Cache-Control"] == "private, max-age=600"
        assert response.headers["Vary"] == "Accept, Cookie"
        assert len(response.headers.getall("Set-Cookie")) == 1


async def test_a_late_change_that_cannot_be_saved_is_a_503(aiohttp_client: AiohttpClient) -> None:
    storage = Failing()

    async def late(request: web.Request, response: web.StreamResponse) -> None:
        if request.path == "/reading":
            storage.down = "save"
            (await get_session(request))["late"] = True

    client = await served(aiohttp_client, storage, reading, after=[late])
    await client.get("/begin")
    async with client.get("/reading") as response:
        assert response.status == 503
        assert response.headers["Retry-After"] == "1"
    storage.down = None
    assert await shown(client) == {"a": 1}


async def test_a_new_session_whose_late_change_cannot_be_saved_sends_no_cookie(aiohttp_client: AiohttpClient) -> None:
    storage = Failing()

    async def late(request: web.Request, response: web.StreamResponse) -> None:
        storage.down = "save"
        (await get_session(request))["late"] = True

    client = await served(aiohttp_client, storage, after=[late])
    async with client.get("/begin") as response:
        assert response.status == 503
        assert "Set-Cookie" not in response.headers


async def test_what_changes_nothing_is_written_once(aiohttp_client: AiohttpClient) -> None:
    class Counting(Remote):
        saves = 0

        async def save(self, writes: Any) -> Any:
            self.saves += 1
            return await super().save(writes)

    async def nest(request: web.Request) -> web.Response:
        (await get_session(request)).setdefault("nest", []).append(1)
        return web.Response()

    storage = Counting()
    client = await served(aiohttp_client, storage, nest)
    await client.get("/begin")
    probes = storage.saves
    await client.get("/nest")
    await client.get("/nest")
    assert storage.saves == probes + 2
    assert await shown(client) == {"a": 1, "nest": [1, 1]}


async def test_a_change_of_a_nested_value_that_was_kept_aside_is_seen(aiohttp_client: AiohttpClient) -> None:
    cart: list[int] = []

    async def fill(request: web.Request) -> web.Response:
        (await get_session(request))["cart"] = cart
        return web.Response()

    async def late(request: web.Request, response: web.StreamResponse) -> None:
        cart.append(1)

    client = await served(aiohttp_client, "memory://", fill, after=[late])
    await client.get("/fill")
    cart.clear()
    assert (await shown(client))["cart"] == [1]
