"""Responses that the handler prepares itself, down to the bytes on the wire."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from aiohttp_store import Cookie, Storage, StorageUnavailable, get_session, new_session, setup
from aiohttp_store.storages.memory import MemoryStorage

from ..conftest import AiohttpServer, Serve
from ..support.remote import Remote, kept
from ..support.timing import AT_LAST


class Failing(Remote):
    """Memory that is out of order while `down` is set."""

    down: str | None = None

    async def load(self, keys: Any) -> Any:
        if self.down == "load":
            raise StorageUnavailable("down")
        return await super().load(keys)

    async def save(self, writes: Any) -> Any:
        if self.down == "save":
            raise StorageUnavailable("down")
        return await super().save(writes)


async def exchange(port: int | None, path: str, *head: str) -> tuple[bytes, bytes]:
    """Send one request over a raw socket, and give all bytes of the answer: head and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *head, "Connection: close", "", ""]).encode())
    answer = await asyncio.wait_for(reader.read(), AT_LAST)
    writer.close()
    await writer.wait_closed()
    start, _, body = answer.partition(b"\r\n\r\n")
    return start, body


def app_of(storage: Storage, handler: Any) -> web.Application:
    app = web.Application()
    app.router.add_get("/", handler)
    setup(app, storage)
    return app


KINDS = ["stream", "compressed", "sized", "sse", "websocket"]


async def prepared(request: web.Request) -> web.StreamResponse:
    kind = request.query["kind"]
    response: web.StreamResponse = web.WebSocketResponse() if kind == "websocket" else web.StreamResponse()
    if kind == "compressed":
        response.enable_compression(web.ContentCoding.gzip)
    elif kind == "sized":
        response.content_length = 5
    elif kind == "sse":
        response.content_type = "text/event-stream"
    await response.prepare(request)
    return response


WEBSOCKET = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: " + "A" * 22 + "==",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("caught", [False, True], ids=["uncaught", "caught"])
async def test_a_failed_save_of_a_stream_puts_one_well_formed_503_on_the_wire(
    kind: str, caught: bool, aiohttp_server: AiohttpServer
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        session = await get_session(request)
        session["a"] = 1
        try:
            return await prepared(request)
        except StorageUnavailable:
            if caught:
                return web.Response(status=500, text="own page")
            raise

    storage = Failing()
    server = await aiohttp_server(app_of(storage, handler))
    storage.down = "save"
    start, body = await exchange(server.port, f"/?kind={kind}", *(WEBSOCKET if kind == "websocket" else ()))
    # With the handler's own page the changed session is still to be saved, and that fails as well.
    assert start.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"Retry-After: 1" in start
    assert b"Set-Cookie" not in start
    assert b"Transfer-Encoding" not in start
    assert b"Content-Encoding" not in start
    assert b"Content-Length: %d" % len(body) in start
    assert body == b"503: Service Unavailable"


@pytest.mark.parametrize("kind", KINDS[:4])
async def test_a_stream_carries_the_cookie_and_its_body_is_whole(kind: str, aiohttp_server: AiohttpServer) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        (await get_session(request))["a"] = 1
        response = await prepared(request)
        await response.write(b"12345")
        return response

    server = await aiohttp_server(app_of(MemoryStorage(), handler))
    start, body = await exchange(server.port, f"/?kind={kind}")
    assert start.startswith(b"HTTP/1.1 200 OK")
    assert start.count(b"Set-Cookie: session=") == 1
    assert b"Vary: Cookie" in start
    assert b"Cache-Control: no-store" in start
    assert kind == "compressed" or b"12345" in body


async def test_writing_to_a_stream_whose_save_failed_is_refused(aiohttp_server: AiohttpServer) -> None:
    refused = []

    async def handler(request: web.Request) -> web.StreamResponse:
        (await get_session(request))["a"] = 1
        response = web.StreamResponse()
        with pytest.raises(StorageUnavailable):
            await response.prepare(request)
        try:
            await response.write(b"a body without headers")
        except RuntimeError as error:
            refused.append((response.prepared, str(error)))
        return web.Response(status=500)

    storage = Failing()
    server = await aiohttp_server(app_of(storage, handler))
    storage.down = "save"
    start, body = await exchange(server.port, "/")
    assert start.startswith(b"HTTP/1.1 503")
    assert body == b"503: Service Unavailable"
    assert refused == [(False, "Cannot call write() before prepare()")]


async def test_a_crash_after_the_headers_stores_nothing_more(serve: Serve) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        session = await get_session(request)
        session["a"] = 1
        response = web.StreamResponse()
        await response.prepare(request)
        session["b"] = 2
        raise ZeroDivisionError

    async def show(request: web.Request) -> web.Response:
        return web.json_response(dict(await get_session(request)))

    client = await serve(stream, show)
    async with client.get("/stream"):
        pass
    async with client.get("/show") as response:
        assert await response.json() == {"a": 1}


async def test_after_the_headers_what_needs_a_cookie_is_refused(serve: Serve) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        session = await get_session(request) if "early" in request.query else None
        response = web.StreamResponse()
        await response.prepare(request)
        if session is None:
            session = await get_session(request)
        with pytest.raises(RuntimeError, match="`await response.prepare"):
            session["a"] = 1
        with pytest.raises(RuntimeError, match="`await response.prepare"):
            session.renew()
        with pytest.raises(RuntimeError, match="`await response.prepare"):
            await new_session(request)
        with pytest.raises(RuntimeError, match="`await response.prepare"):
            await session.apply(lambda fresh: fresh.update(a=1))
        await response.write(b"done")
        return response

    client = await serve(stream)
    for path in ("/stream", "/stream?early=1"):
        async with client.get(path) as response:
            assert await response.text() == "done"
            assert "Set-Cookie" not in response.headers


async def test_after_the_headers_a_logout_deletes_the_record(serve: Serve) -> None:
    async def begin(request: web.Request) -> web.Response:
        (await get_session(request))["a"] = 1
        return web.Response()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        session = await get_session(request)
        session.invalidate()
        with pytest.raises(RuntimeError):
            session["b"] = 2
        return response

    async def show(request: web.Request) -> web.Response:
        return web.json_response(dict(await get_session(request)))

    client = await serve(begin, stream, show)
    for path in ("/begin", "/stream"):
        async with client.get(path):
            pass
    async with client.get("/show") as response:
        assert await response.json() == {}


async def test_an_explicit_save_before_the_headers_still_sets_the_cookie(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        session = await get_session(request)
        assert session.identity is None
        session["a"] = 1
        await session.save()
        assert session.identity is not None
        return web.Response(text=session.identity)

    client = await serve(handler)
    async with client.get("/handler") as response:
        assert response.cookies["session"].value == await response.text()


@pytest.mark.parametrize("response", [web.FileResponse, web.StreamResponse])
async def test_a_response_that_is_not_prepared_yet_is_saved_by_the_middleware(response: Any, serve: Serve) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        (await get_session(request))["a"] = 1
        return web.FileResponse(__file__) if response is web.FileResponse else web.StreamResponse()

    client = await serve(handler)
    async with client.get("/handler") as answer:
        assert answer.status == 200
        assert "session" in answer.cookies


async def test_a_signed_off_write_of_a_stream_is_in_the_storage_when_the_headers_arrive(serve: Serve) -> None:
    storage = MemoryStorage()
    released = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        (await get_session(request))["a"] = 1
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        await released.wait()
        return response

    client = await serve(handler, storage=storage)
    async with client.get("/handler") as response:
        assert len(kept(storage)) == 1
        released.set()
        await response.read()


async def test_where_a_sub_apps_save_fails_the_parents_cookie_is_still_sent(aiohttp_server: AiohttpServer) -> None:
    @web.middleware
    async def parent(request: web.Request, handler: Any) -> web.StreamResponse:
        (await get_session(request))["parent"] = 1
        response: web.StreamResponse = await handler(request)
        return response

    async def handler(request: web.Request) -> web.StreamResponse:
        (await get_session(request))["a"] = 1
        return await prepared(request)

    storage = Failing()
    app, below = web.Application(middlewares=[parent]), web.Application()
    setup(app, MemoryStorage())
    setup(below, storage, cookie=Cookie(name="below"))
    below.router.add_get("/", handler)
    app.add_subapp("/sub", below)
    server = await aiohttp_server(app)
    storage.down = "save"
    start, body = await exchange(server.port, "/sub/?kind=compressed")
    assert start.startswith(b"HTTP/1.1 503")
    assert start.count(b"Set-Cookie: session=") == 1
    assert b"below" not in start
    assert body == b"503: Service Unavailable"


@pytest.mark.parametrize("kind", KINDS[:4])
@pytest.mark.parametrize("fails", ["save", "reload", "end", "load"])
async def test_a_failure_after_the_headers_ends_the_connection_and_is_no_second_response(
    kind: str, fails: str, aiohttp_server: AiohttpServer
) -> None:
    """A page in the midst of a stream would be taken for the answer to the connection's next request."""

    async def handler(request: web.Request) -> web.StreamResponse:
        if "kind" not in request.query:
            return web.Response(text="plain")
        session = None
        if fails != "load":
            session = await get_session(request)
            session["a"] = 1
        response = await prepared(request)
        await response.write(b"12345")
        storage.down = "load" if fails in ("load", "reload") else "save"
        if session is None:
            session = await get_session(request)
        session["b"] = 2
        if fails == "save":
            await session.save()
        elif fails == "reload":
            await session.reload()
        return response

    storage = Failing()
    server = await aiohttp_server(app_of(storage, handler))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for path in (f"/?kind={kind}", "/", "/"):
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nCookie: session={'A' * 43}\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), AT_LAST)
    writer.close()
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"503" not in answer


async def test_after_the_headers_an_idle_timeout_is_refused(serve: Serve) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        session = await get_session(request)
        response = web.StreamResponse()
        await response.prepare(request)
        with pytest.raises(RuntimeError, match="another idle_timeout needs a new cookie"):
            session.idle_timeout = 60
        return response

    client = await serve(stream)
    async with client.get("/stream") as response:
        assert response.status == 200
