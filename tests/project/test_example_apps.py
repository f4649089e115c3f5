"""The examples with a page of their own: ten requests at once, messages shown once, WebSockets, server-sent events."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession, ClientWebSocketResponse, WSMsgType, WSServerHandshakeError, web
from aiohttp.test_utils import TestClient, TestServer

import aiohttp_store
from aiohttp_store import Outcome, Record, StorageUnavailable, Write
from aiohttp_store.testing import freeze

from ..conftest import SHARED
from ..support.remote import Remote
from ..support.timing import AT_LAST
from .test_examples import names_of, page, running, visitor

FEW = ["memory", "sqlite", "redis"]
"""Where the storage is not what the test is about."""


# Ten at once.


async def add_ten(ann: ClientSession, goods: list[str], *addresses: str) -> list[int]:
    """Add all goods at the same time, at the addresses in turn, and give the numbers that were answered."""

    async def add(item: str, address: str) -> int:
        async with ann.post(f"{address}/add", data={"item": item}) as response:
            assert response.status == 200, await response.text()
            return int((await response.json())["number"])

    return await asyncio.gather(*(add(item, addresses[at % len(addresses)]) for at, item in enumerate(goods)))


@pytest.mark.parametrize("storage_name", FEW)
async def test_the_cart_loses_none_of_ten_additions_at_once(storage_name: str, storage_url: str) -> None:
    goods = list(names_of("cart.py")["GOODS"])
    assert len(goods) == 10
    async with running("cart.py", storage_url) as one, running("cart.py", storage_url) as other, visitor() as ann:
        addresses = (one, other) if storage_name in SHARED else (one,)
        for path in ("", "/empty"):
            assert '<strong id="total">0</strong>' in await page(ann, one + path, **({"ok": "1"} if path else {}))
            expected: dict[str, str] = {}
            for count in range(1, 6):
                numbers = await add_ten(ann, goods, *addresses)
                expected |= {str(number): item for number, item in zip(numbers, goods, strict=True)}
                async with ann.get(f"{addresses[-1]}/cart") as response:
                    assert await response.json() == {"total": 10 * count, "lines": expected}
                assert len(expected) == 10 * count
                assert f'<strong id="total">{10 * count}</strong>' in await page(ann, one)


async def test_the_cart_refuses_what_is_not_sold() -> None:
    async with (
        running("cart.py") as address,
        visitor() as ann,
        ann.post(f"{address}/add", data={"item": "<b>"}) as response,
    ):
        assert response.status == 400
        assert "Set-Cookie" not in response.headers


async def naive(request: web.Request) -> web.Response:
    """Add as one would to a dictionary that nobody else has."""
    session = await aiohttp_store.get_session(request)
    session["total"] = session.get("total", 0) + 1
    session.setdefault("lines", {})[(await request.post())["item"]] = 1
    return web.Response()


@pytest.mark.parametrize(
    ("add", "on_conflict", "total", "lines"),
    [("cart.py", "merge", 10, 10), (naive, "merge", 1, 10), (naive, "overwrite", 1, 1)],
)
async def test_ten_that_have_all_read_before_one_writes_need_apply_and_the_merge(
    add: Any, on_conflict: Any, total: int, lines: int, storage_url: str
) -> None:
    all_have_read = asyncio.Barrier(10)
    cart = names_of("cart.py")

    @web.middleware
    async def meet(request: web.Request, handler: Any) -> web.StreamResponse:
        await aiohttp_store.get_session(request)
        if request.path == "/add":
            await all_have_read.wait()
        response: web.StreamResponse = await handler(request)
        return response

    app = web.Application(middlewares=[meet])
    app.router.add_get("/", cart["index"])
    app.router.add_get("/cart", cart["cart"])
    app.router.add_post("/add", cart["add"] if add == "cart.py" else add)
    aiohttp_store.setup(app, storage_url, on_conflict=on_conflict)
    async with TestClient(TestServer(app)) as client:
        async with client.get("/"):
            pass

        async def post(item: str) -> None:
            async with client.post("/add", data={"item": item}) as response:
                assert response.status == 200, await response.text()

        await asyncio.gather(*map(post, cart["GOODS"]))
        async with client.get("/cart") as response:
            held = await response.json()
        assert (held["total"], len(held["lines"])) == (total, lines)


# Messages that are shown once.


def messages_of(shown: str) -> list[str]:
    (messages,) = re.findall(r'<div role="status" id="messages">(.*?)</div>', shown, re.DOTALL)
    return re.findall(r"<p>(.*?)</p>", messages)


@pytest.mark.parametrize("storage_name", FEW)
async def test_messages_are_shown_once_in_their_order_and_escaped(storage_url: str) -> None:
    async with running("flash.py", storage_url) as address, visitor() as ann, visitor() as bob:
        assert messages_of(await page(ann, address)) == []
        # Two redirects follow each other, and each leaves a message.
        shown = await page(ann, f"{address}/order", item="<b>Tea</b> & milk")
        assert messages_of(shown) == ["Ordered: &lt;b&gt;Tea&lt;/b&gt; &amp; milk.", "It will come on Friday."]
        assert messages_of(await page(ann, address)) == []
        for item in ("Tea", "Jam", " "):  # nobody looks in between
            async with ann.post(f"{address}/order", data={"item": item}, allow_redirects=False) as response:
                assert response.status == 303
        async with ann.head(address) as response:
            assert response.status == 405
        assert messages_of(await page(bob, address)) == []
        async with ann.get(address) as response:
            assert messages_of(await response.text()) == ["Ordered: Tea.", "Ordered: Jam.", "Nothing was ordered."]
            assert response.headers["Cache-Control"] == "no-store"
        assert messages_of(await page(ann, address)) == []


@pytest.mark.parametrize("orders", [[], ["Jam"], ["Jam", "Honey"]], ids=["0", "1", "2"])
async def test_of_two_tabs_one_shows_a_message_and_none_is_lost(orders: list[str], storage_url: str) -> None:
    """Both have read before one of them writes."""
    flash = names_of("flash.py")
    app: web.Application = flash["make_app"](storage_url)
    both_have_read = asyncio.Barrier(2)

    @web.middleware
    async def meet(request: web.Request, handler: Any) -> web.StreamResponse:
        await aiohttp_store.get_session(request)
        if "tab" in request.query:
            await both_have_read.wait()
        response: web.StreamResponse = await handler(request)
        return response

    app.middlewares.append(meet)
    async with TestClient(TestServer(app)) as client:

        async def show(query: str = "") -> list[str]:
            async with client.get(f"/{query}") as response:
                assert response.status == 200, await response.text()
                return messages_of(await response.text())

        async def order(item: str, query: str = "") -> list[str]:
            async with client.post(f"/order{query}", data={"item": item}, allow_redirects=False) as response:
                assert response.status == 303, await response.text()
                return []

        await order("Tea")
        tabs = [order(item, "?tab") for item in orders] + [show("?tab") for _ in range(2 - len(orders))]
        shown = [message for tab in await asyncio.gather(*tabs) for message in tab]
        assert sorted(shown + await show()) == sorted(f"Ordered: {item}." for item in ["Tea", *orders])


# The chat.


async def log_in(browser: ClientSession, address: str, name: str) -> str:
    return await page(browser, f"{address}/login", name=name)


async def said(socket: ClientWebSocketResponse) -> tuple[str, str, int]:
    message = await socket.receive_json(timeout=AT_LAST)
    return message["name"], message["text"], message["number"]


async def end_of(socket: ClientWebSocketResponse) -> tuple[Any, Any]:
    """Wait for the server to close, and give its code and reason."""
    message = await socket.receive(timeout=AT_LAST)
    assert message.type is WSMsgType.CLOSE, message
    return message.data, message.extra


@pytest.mark.parametrize("storage_name", FEW)
async def test_the_chat_tells_all_who_said_what_and_counts_in_the_session(storage_url: str) -> None:
    async with running("websocket_chat.py", storage_url) as address, visitor() as ann, visitor() as bob:
        assert '<label for="text">Ann &lt;3:</label>' in await log_in(ann, address, "Ann <3")
        await log_in(bob, address, "Bob")
        async with ann.ws_connect(f"{address}/chat", origin=address) as of_ann:
            async with bob.ws_connect(f"{address}/chat", origin=address) as of_bob:
                for socket, expected in [
                    (of_ann, ("Ann <3", "<b>hello</b>", 1)),
                    (of_ann, ("Ann <3", "anybody?", 2)),
                    (of_bob, ("Bob", "me", 1)),
                ]:
                    await socket.send_str(expected[1])
                    assert [await said(of_ann), await said(of_bob)] == [expected, expected]
            async with ann.ws_connect(f"{address}/chat", origin=address) as second:  # the count is in the session
                await second.send_str("again")
                assert [await said(of_ann), await said(second)] == [("Ann <3", "again", 3)] * 2


async def test_the_chat_refuses_the_anonymous_and_the_pages_of_others() -> None:
    async with running("websocket_chat.py") as address, visitor() as ann:

        async def refused(**options: Any) -> int:
            with pytest.raises(WSServerHandshakeError) as raised:
                await ann.ws_connect(f"{address}/chat", **options)
            return raised.value.status

        assert '<form method="post" action="/login">' in await page(ann, address)
        assert await refused(origin=address) == 403
        await log_in(ann, address, "Ann")
        for origin in ("https://evil.example", f"https://evil@{address[7:]}", "http://[", "http://a:999999", "null"):
            assert await refused(origin=origin) == 403
        assert await refused() == 403
        async with ann.ws_connect(f"{address}/chat", origin=address):
            pass


@pytest.mark.parametrize("storage_name", FEW)
async def test_a_logout_in_another_tab_closes_the_socket_of_who_only_listens(
    storage_name: str, storage_url: str
) -> None:
    async with (
        running("websocket_chat.py", storage_url) as one,
        running("websocket_chat.py", storage_url) as other,
        visitor() as ann,
        visitor() as bob,
    ):
        for browser, name in ((ann, "Ann"), (bob, "Bob")):
            await log_in(browser, one, name)
        async with (
            ann.ws_connect(f"{one}/chat", origin=one) as of_ann,
            bob.ws_connect(f"{one}/chat", origin=one) as of_bob,
        ):
            await of_ann.send_str("hello")
            assert [await said(of_ann), await said(of_bob)] == [("Ann", "hello", 1)] * 2
            assert "Log in" in await page(ann, f"{other if storage_name in SHARED else one}/logout", ok="1")
            assert await end_of(of_ann) == (1008, "logged out")
            await of_bob.send_str("where is she?")
            assert await said(of_bob) == ("Bob", "where is she?", 1)


async def test_who_speaks_after_a_logout_in_another_tab_is_not_heard() -> None:
    chat = names_of("websocket_chat.py")
    chat["chat"].__globals__["CHECK_EVERY"] = 3600  # so that the message alone must tell
    async with TestClient(TestServer(chat["make_app"]("memory://"))) as client:
        origin = str(client.make_url("")).rstrip("/")
        async with AsyncExitStack() as stack:
            sockets = []
            for name in ("Ann", "Bob"):
                async with client.post("/login", data={"name": name}) as response:
                    assert response.status == 200
                sockets.append(await stack.enter_async_context(client.ws_connect("/chat", origin=origin)))
                if name == "Ann":
                    of_ann = client.session.cookie_jar.filter_cookies(client.make_url("/"))["session"].value
                    client.session.cookie_jar.clear()
            client.session.cookie_jar.clear()
            async with client.post("/logout", cookies={"session": of_ann}):
                pass
            for socket in sockets:
                await socket.send_str("hello")
            assert await end_of(sockets[0]) == (1008, "logged out")
            assert await said(sockets[1]) == ("Bob", "hello", 1)


async def test_the_chat_waits_for_nobody_who_does_not_read() -> None:
    async with running("websocket_chat.py") as address, visitor() as ann, visitor() as bob:
        for browser, name in ((ann, "Ann"), (bob, "Bob")):
            await log_in(browser, address, name)
        async with (
            ann.ws_connect(f"{address}/chat", origin=address) as of_ann,
            bob.ws_connect(f"{address}/chat", origin=address) as of_bob,
        ):
            assert of_bob._response.connection is not None
            assert of_bob._response.connection.transport is not None
            of_bob._response.connection.transport.pause_reading()
            loop, slowest, text = asyncio.get_running_loop(), 0.0, "x" * 4000
            while slowest < 0.5:  # until the buffers on the way to Bob are full
                begun = loop.time()
                await of_ann.send_str(text)
                assert (await said(of_ann))[:2] == ("Ann", text)
                slowest = max(slowest, loop.time() - begun)
            of_bob._response.connection.transport.abort()


async def test_who_speaks_during_an_outage_is_told_to_come_again(caplog: pytest.LogCaptureFixture) -> None:
    storage = Faltering()
    async with TestClient(TestServer(names_of("websocket_chat.py")["make_app"](storage))) as client:
        async with client.post("/login", data={"name": "Ann"}):
            pass
        origin = str(client.make_url("")).rstrip("/")
        async with client.ws_connect("/chat", origin=origin) as socket:
            storage.down = True
            await socket.send_str("hello")
            assert await end_of(socket) == (1013, "try again later")
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


# Server-sent events.


@asynccontextmanager
async def events_of(browser: Any, address: str) -> AsyncIterator[ClientResponse]:
    async with browser.get(f"{address}/events") as stream:
        assert stream.status == 200, await stream.text()
        assert stream.content_type == "text/event-stream"
        yield stream


async def event(stream: ClientResponse) -> str:
    """Give the next event, without the comments before it; nothing at the end of the stream."""
    lines: list[str] = []
    async with asyncio.timeout(AT_LAST):
        while line := (await stream.content.readline()).decode():
            if line == "\n" and lines:
                break
            lines += [line.rstrip("\n")] if line.strip() and not line.startswith(":") else []
    return "|".join(lines)


@pytest.mark.parametrize("storage_name", FEW)
async def test_the_stream_tells_what_other_requests_do_until_the_logout(storage_name: str, storage_url: str) -> None:
    async with running("sse.py", storage_url) as one, running("sse.py", storage_url) as other, visitor() as ann:
        other_tab = other if storage_name in SHARED else one
        async with ann.get(f"{one}/events") as response:
            assert response.status == 403
        shown = await log_in(ann, one, "Ann <3")
        assert "Hello, Ann &lt;3." in shown
        assert '<span id="began">never</span>' in shown
        async with events_of(ann, one) as stream:
            assert re.search(r'<span id="began">[0-9:]{8} UTC</span>', await page(ann, other_tab)), "saved by now"
            assert await event(stream) == "data: 0"
            for count in ("1", "2"):
                assert f'aria-live="polite">{count}<' in await page(ann, f"{other_tab}/press", ok="1")
                assert await event(stream) == f"data: {count}"
            assert "Log in" in await page(ann, f"{other_tab}/logout", ok="1")
            assert await event(stream) == "event: logout|data:"
            assert await event(stream) == ""


async def test_an_open_stream_does_not_keep_its_login_alive() -> None:
    app = names_of("sse.py")["make_app"]("memory://")
    async with TestClient(TestServer(app)) as client:
        with freeze(app) as clock:
            async with client.post("/login", data={"name": "Ann"}) as response:
                assert "Hello, Ann" in await response.text()
            clock.advance(timedelta(hours=12))
            async with events_of(client, "") as stream:
                assert await event(stream) == "data: 0"
                clock.advance(timedelta(hours=12, seconds=1))
                assert await event(stream) == "event: logout|data:"
            async with client.get("/") as response:
                assert "Log in" in await response.text()


async def test_a_stream_that_nobody_reads_ends_without_a_complaint(caplog: pytest.LogCaptureFixture) -> None:
    app = names_of("sse.py")["make_app"]("memory://")
    ended = asyncio.Event()

    @web.middleware
    async def note(request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            response: web.StreamResponse = await handler(request)
        finally:
            if request.path == "/events":
                ended.set()
        return response

    app.middlewares.append(note)
    runner = web.AppRunner(app)  # aiohttp's server for tests cancels the handlers of those who leave, and others do not
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with visitor() as ann:
            await log_in(ann, address, "Ann")
            async with events_of(ann, address) as stream:
                assert await event(stream) == "data: 0"
                assert not ended.is_set()
            await asyncio.wait_for(ended.wait(), AT_LAST)
    finally:
        await runner.cleanup()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


# Both.


class Faltering(Remote):
    """Memory that is out of order while `down` is set."""

    down = False

    def __init__(self) -> None:
        super().__init__()
        self.failed = asyncio.Event()

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        if self.down:
            self.failed.set()
            raise StorageUnavailable("down")
        return await super().load(keys)

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        if self.down:
            raise StorageUnavailable("down")
        return await super().save(writes)


async def test_an_outage_ends_neither_the_stream_nor_the_watch_over_the_socket() -> None:
    for example in ("sse.py", "websocket_chat.py"):
        storage = Faltering()
        async with TestClient(TestServer(names_of(example)["make_app"](storage))) as client:
            async with client.post("/login", data={"name": "Ann"}):
                pass
            async with AsyncExitStack() as stack:
                if example == "sse.py":
                    stream = await stack.enter_async_context(events_of(client, ""))
                else:
                    origin = str(client.make_url("")).rstrip("/")
                    socket = await stack.enter_async_context(client.ws_connect("/chat", origin=origin))
                storage.down = True
                await asyncio.wait_for(storage.failed.wait(), AT_LAST)
                storage.down = False
                async with client.post("/logout"):
                    pass
                if example == "sse.py":
                    assert [await event(stream), await event(stream)] == ["data: 0", "event: logout|data:"]
                else:
                    assert await end_of(socket) == (1008, "logged out")


async def test_a_server_that_ends_does_not_wait_for_streams_and_sockets() -> None:
    """Without a word from the app it would for a minute, and `running` does not."""
    async with visitor() as ann, AsyncExitStack() as stack:
        async with running("sse.py") as address:
            await log_in(ann, address, "Ann")
            stream = await stack.enter_async_context(events_of(ann, address))
            assert await event(stream) == "data: 0"
        assert await event(stream) == ""
        async with running("websocket_chat.py") as address:
            await log_in(ann, address, "Ann")
            socket = await stack.enter_async_context(ann.ws_connect(f"{address}/chat", origin=address))
        assert await end_of(socket) == (1001, "")
