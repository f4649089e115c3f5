"""Whole HTTP requests, over every storage: what a visitor sees."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import aiomysql  # type: ignore[import-untyped]
import pytest
from aiohttp import ClientSession, CookieJar, WSMsgType, web
from pymongo import AsyncMongoClient
from redis.asyncio import Redis, RedisCluster

from aiohttp_store import (
    Cookie,
    Session,
    SessionGone,
    Storage,
    StorageURL,
    Write,
    get_session,
    get_storage,
    new_session,
    setup,
)
from aiohttp_store.cookie import key_of_id

from ..conftest import STORAGES, AiohttpClient, AiohttpServer, Client, Servers
from ..support.remote import kept
from ..support.timing import until

SECRET = "a secret of more than thirty-two bytes"


async def show(request: web.Request) -> web.Response:
    session = await get_session(request)
    return web.json_response({"data": dict(session), "new": session.new, "id": session.identity})


async def count(request: web.Request) -> web.Response:
    session = await get_session(request)
    session["visits"] = session.get("visits", 0) + 1
    return web.json_response(session["visits"])


async def put(request: web.Request) -> web.Response:
    session = await get_session(request)
    session.update(await request.json())
    await asyncio.sleep(float(request.query.get("wait", 0)))
    return web.Response()


async def add_to_cart(request: web.Request) -> web.Response:
    session = await get_session(request)
    session.setdefault("cart", {"items": []})["items"].append([request.query["item"], {"quantity": 1}])
    return web.json_response(session["cart"])


async def login(request: web.Request) -> web.Response:
    session = await get_session(request)
    session.renew(login=True)
    session["user"] = request.query["user"]
    raise web.HTTPFound("/show")


async def logout(request: web.Request) -> web.Response:
    (await get_session(request)).invalidate()
    return web.Response(text="bye")


async def fresh(request: web.Request) -> web.Response:
    session = await new_session(request)
    session.update(request.query)
    return web.Response()


async def slow(request: web.Request) -> web.Response:
    session = await get_session(request)
    request.app[LOADED].set()
    await request.app[GO].wait()
    session["late"] = True
    return web.Response(text="slow")


async def increment(request: web.Request) -> web.Response:
    def add(session: Session) -> int:
        session["n"] = session.get("n", 0) + 1
        return int(session["n"])

    return web.json_response(await (await get_session(request)).apply(add))


async def stream(request: web.Request) -> web.StreamResponse:
    session = await get_session(request)
    session["before"] = 1
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"part one, ")
    session["after"] = 2
    await response.write(b"part two")
    return response


async def websocket(request: web.Request) -> web.WebSocketResponse:
    session = await get_session(request)
    session["opened"] = True
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        session.setdefault("messages", []).append(message.data)
        try:
            await session.save()
        except SessionGone:
            await socket.send_str("gone")
            break
        await socket.send_str(f"{len(session['messages'])} saved")
    return socket


async def untouched(request: web.Request) -> web.Response:
    return web.Response(text="untouched")


async def crash(request: web.Request) -> web.Response:
    session = await get_session(request)
    session["crashed"] = True
    raise ZeroDivisionError


LOADED: web.AppKey[asyncio.Event] = web.AppKey("loaded", asyncio.Event)
GO: web.AppKey[asyncio.Event] = web.AppKey("go", asyncio.Event)


def make_app(url: str | Storage, **options: Any) -> web.Application:
    app = web.Application()
    app[LOADED], app[GO] = asyncio.Event(), asyncio.Event()
    for handler in (
        show,
        count,
        add_to_cart,
        login,
        logout,
        fresh,
        slow,
        increment,
        stream,
        websocket,
        untouched,
        crash,
    ):
        app.router.add_get(f"/{handler.__name__}", handler)
    app.router.add_post("/put", put)
    setup(app, url, **options)
    return app


@pytest.fixture
async def app(storage_url: str) -> web.Application:
    return make_app(storage_url)


@pytest.fixture
async def client(app: web.Application, aiohttp_client: AiohttpClient) -> Client:
    return await aiohttp_client(app)


async def get(client: Client, path: str, **options: Any) -> Any:
    async with client.get(path, **options) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def data(client: Client) -> Any:
    return (await get(client, "/show"))["data"]


def cookie_of(client: Client) -> str:
    return next(cookie.value for cookie in client.session.cookie_jar if cookie.key == "session")


def with_cookie(client: Client, value: str) -> dict[str, Any]:
    """Send this cookie instead of the client's own."""
    client.session.cookie_jar.clear()
    return {"headers": {"Cookie": f"session={value}"}}


async def test_a_visitor_counts_up_and_another_has_a_count_of_its_own(
    app: web.Application, aiohttp_client: AiohttpClient
) -> None:
    one = await aiohttp_client(app)
    async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as other:
        assert [await get(one, "/count") for _ in range(3)] == [1, 2, 3]
        async with other.get(one.make_url("/count")) as response:
            assert await response.json() == 1
        assert await get(one, "/count") == 4


async def test_nested_changes_are_stored_without_changed(client: Client) -> None:
    for item in ("tea", "milk", "sugar"):
        await get(client, f"/add_to_cart?item={item}")
    assert (await data(client))["cart"] == {"items": [[item, {"quantity": 1}] for item in ("tea", "milk", "sugar")]}


async def test_a_login_keeps_the_data_renews_the_id_and_is_saved_before_the_redirect(client: Client) -> None:
    await get(client, "/count")
    before = cookie_of(client)
    shown = await get(client, "/login?user=ann")
    assert shown["data"] == {"visits": 1, "user": "ann"}
    assert cookie_of(client) != before
    assert (await get(client, "/show", **with_cookie(client, before)))["data"] == {}


async def test_a_logout_ends_the_session_and_clears_the_cookie(client: Client) -> None:
    await get(client, "/login?user=ann")
    before = cookie_of(client)
    async with client.get("/logout") as response:
        assert "Max-Age=0" in response.headers["Set-Cookie"]
    assert not list(client.session.cookie_jar)
    assert (await get(client, "/show", **with_cookie(client, before)))["data"] == {}


async def test_a_new_session_ends_the_old_one_without_loading_it(client: Client) -> None:
    await get(client, "/login?user=ann")
    before = cookie_of(client)
    async with client.get("/fresh?colour=red"):
        assert cookie_of(client) != before
    assert await data(client) == {"colour": "red"}
    assert (await get(client, "/show", **with_cookie(client, before)))["data"] == {}


async def test_a_request_that_does_not_ask_stores_nothing_and_says_nothing(client: Client) -> None:
    async with client.get("/untouched") as response:
        assert not {"Set-Cookie", "Vary", "Cache-Control"} & set(response.headers)


async def test_reading_an_empty_session_sets_no_cookie(client: Client) -> None:
    async with client.get("/show") as response:
        assert "Set-Cookie" not in response.headers
        assert response.headers["Vary"] == "Cookie"


async def test_fifty_requests_that_each_set_another_key_lose_none(client: Client) -> None:
    await get(client, "/count")

    async def set_key(number: int) -> None:
        async with client.post("/put?wait=0.05", json={f"k{number}": number}) as response:
            assert response.status == 200

    await asyncio.gather(*map(set_key, range(50)))
    assert await data(client) == {"visits": 1} | {f"k{number}": number for number in range(50)}


async def test_fifty_concurrent_applications_of_a_change_all_count(client: Client) -> None:
    await get(client, "/count")
    results = await asyncio.gather(*(get(client, "/increment") for _ in range(50)))
    assert sorted(results) == list(range(1, 51))
    assert (await data(client))["n"] == 50


async def test_a_slow_request_that_saves_after_a_logout_revives_nothing(app: web.Application, client: Client) -> None:
    await get(client, "/login?user=ann")
    before = cookie_of(client)
    late = asyncio.create_task(client.get("/slow", headers={"Cookie": f"session={before}"}))
    await app[LOADED].wait()
    async with client.get("/logout"):
        app[GO].set()
    async with await late as response:
        assert response.status == 200
        assert "Set-Cookie" not in response.headers
    assert (await get(client, "/show", **with_cookie(client, before)))["data"] == {}
    assert await get_storage(app).load([key_of_id(before)]) == [None]


async def test_a_slow_request_that_saves_after_a_login_revives_nothing(app: web.Application, client: Client) -> None:
    await get(client, "/count")
    before = cookie_of(client)
    late = asyncio.create_task(client.get("/slow", headers={"Cookie": f"session={before}"}))
    await app[LOADED].wait()
    await get(client, "/login?user=ann")
    app[GO].set()
    async with await late as response:
        assert "Set-Cookie" not in response.headers
    assert await data(client) == {"visits": 1, "user": "ann"}
    assert (await get(client, "/show", **with_cookie(client, before)))["data"] == {}


async def test_a_stream_is_saved_before_its_headers_and_again_when_it_ends(client: Client) -> None:
    async with client.get("/stream") as response:
        assert "Set-Cookie" in response.headers
        assert await response.text() == "part one, part two"
    assert await data(client) == {"before": 1, "after": 2}


async def test_a_websocket_saves_each_message_and_learns_of_a_logout(client: Client) -> None:
    async with client.ws_connect("/websocket") as socket:
        for number, text in enumerate(("hello", "again"), 1):
            await socket.send_str(text)
            assert (await socket.receive()).data == f"{number} saved"
            assert await data(client) == {"opened": True, "messages": ["hello", "again"][:number]}
        async with client.get("/logout"):
            pass
        await socket.send_str("late")
        assert (await socket.receive()).data == "gone"
        assert (await socket.receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSED)
    assert await data(client) == {}


async def test_two_apps_in_one_process_share_or_separate_by_their_urls(
    make_url: Callable[..., str], aiohttp_server: AiohttpServer, storage_name: str
) -> None:
    url = make_url()
    servers = [await aiohttp_server(make_app(one)) for one in (url, url, make_url())]
    async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as visitor:
        counts = []
        for server in servers:
            async with visitor.get(server.make_url("/count")) as response:
                counts.append(await response.json())
            visitor.cookie_jar.update_cookies({"session": cookie_in(visitor)}, server.make_url("/"))
    assert counts == ([1, 1, 1] if storage_name == "memory" else [1, 2, 1])


async def test_sessions_outlive_a_restart_of_the_app(
    storage_url: str, aiohttp_client: AiohttpClient, storage_name: str
) -> None:
    first = await aiohttp_client(make_app(storage_url))
    await get(first, "/add_to_cart?item=tea")
    value = cookie_of(first)
    await first.close()
    second = await aiohttp_client(make_app(storage_url))
    found = (await get(second, "/show", headers={"Cookie": f"session={value}"}))["data"]
    assert found == ({} if storage_name == "memory" else {"cart": {"items": [["tea", {"quantity": 1}]]}})


JUNK = [
    b"",
    b"\xff\xfe\xfd",
    b"x" * 8000,
    b"a b c",
    b'"quoted"',
    b"../../etc/passwd",
    b"%0d%0aSet-Cookie:%20evil=1",
    b"\\015\\012flush_all",
    b"A" * 43,
    b"A" * 43 + b"." + b"A" * 43,
    b"$ne",
    b"' OR 1=1 --",
    "ключ".encode(),
]


@pytest.mark.parametrize("secret", [None, SECRET], ids=["plain", "signed"])
async def test_junk_in_the_cookie_is_an_anonymous_visitor(
    storage_url: str, aiohttp_server: AiohttpServer, secret: str | None
) -> None:
    server = await aiohttp_server(make_app(storage_url, secret=secret), handler_args={"max_field_size": 16_000})
    for value in JUNK:
        for path, expected in ((b"/show", b'"data": {}'), (b"/count", b"1"), (b"/logout", b"bye")):
            head = b"GET %s HTTP/1.1\r\nHost: x\r\nCookie: session=%s\r\n" % (path, value)
            status, headers, body = await raw(server.port, head)
            assert status == 200, (value, body)
            assert expected in body, value
            assert b"session=" + value + b";" not in headers or not value


async def raw(port: int | None, head: bytes) -> tuple[int, bytes, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head + b"Connection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    headers, _, body = answer.partition(b"\r\n\r\n")
    return int(headers.split()[1]), headers, body


def cookie_in(visitor: ClientSession) -> str:
    return next(cookie.value for cookie in visitor.cookie_jar)


HEADER = b"\x01" + bytes(24)
JUNK_RECORDS = [
    b"",
    b"\x00",
    b"\x01",
    b"\x01" * 20,
    HEADER,
    HEADER + b"{",
    HEADER + b"{oops}",
    HEADER + b"\xff\xfe",
    HEADER + b"[1, 2]",
    HEADER + b"null",
    HEADER + b'"text"',
    HEADER + b"[" * 100_000,
    b'{"created": 1, "session": {}}',
    b"\xfe a later version's format",
]


async def is_gone(storage: Storage, key: str) -> bool:
    return await storage.load([key]) == [None]


async def test_junk_in_the_record_is_an_anonymous_visitor(app: web.Application, client: Client) -> None:
    storage = get_storage(app)
    for stored in JUNK_RECORDS:
        assert await get(client, "/count") == 1, stored
        value = cookie_of(client)
        (record,) = await storage.load([key_of_id(value)])
        assert record is not None
        await storage.save([Write(key_of_id(value), record.version, stored, 60)])
        assert (await get(client, "/show"))["data"] == {}, stored
        assert await get(client, "/count") == 1, stored
        assert cookie_of(client) != value
        if stored[:1] in (b"", b"\x01"):
            await until(partial(is_gone, storage, key_of_id(value)))
        else:
            assert await storage.load([key_of_id(value)]) != [None], "a later version can read it"
        client.session.cookie_jar.clear()


async def test_the_storage_holds_no_id_that_works_as_a_cookie(
    app: web.Application, client: Client, make_dump: Callable[[Storage], Awaitable[bytes]]
) -> None:
    await get(client, "/login?user=ann")
    dump = await make_dump(get_storage(app))
    assert b"ann" in dump
    assert cookie_of(client).encode() not in dump
    (stored_key,) = {key for key in (key_of_id(cookie_of(client)),) if key.encode() in dump}
    assert (await get(client, "/show", **with_cookie(client, stored_key)))["data"] == {}


@pytest.fixture
def make_dump(storage_name: str, storage_url: str, servers: Servers) -> Callable[[Storage], Awaitable[bytes]]:
    """Give a reader of everything that a thief of the database would have, keys and values."""

    async def dump(storage: Any) -> bytes:
        url = StorageURL.parse(storage_url)
        space = dict(url.query).get("prefix") or dict(url.query).get("table") or dict(url.query).get("collection") or ""
        match STORAGES[storage_name][0]:
            case None:
                files = sorted(storage.path.parent.glob(f"{storage.path.name}*")) if storage_name == "sqlite" else []
                return (
                    b"".join(file.read_bytes() for file in files)
                    or repr([(key, *record) for key, record in kept(storage).items()]).encode()
                )
            case "redis":
                async with Redis.from_url(servers.url("redis")) as client:
                    found: Any = [(key, await client.get(key)) for key in await client.keys(f"{space}*")]
                    return repr(found).encode()
            case "redis_cluster":
                async with RedisCluster(url.hosts[0].name, url.hosts[0].port or 6379) as cluster:
                    names = await cluster.keys(f"{space}*", target_nodes=RedisCluster.PRIMARIES)
                    return repr([(name, await cluster.get(name)) for name in names]).encode()
            case "memcached" | "memcached_nodes":
                values = b""
                for host in url.hosts:
                    reader, writer = await asyncio.open_connection(*host, limit=1 << 26)
                    writer.write(b"lru_crawler metadump all\r\n")
                    keys = [line.split()[0][4:] for line in (await reader.readuntil(b"END\r\n")).splitlines()[:-1]]
                    ours = [key for key in keys if key.startswith(space.encode())]
                    writer.write(b"get " + b" ".join(ours or [b"none"]) + b"\r\n")
                    values += await reader.readuntil(b"END\r\n")
                    writer.close()
                    await writer.wait_closed()
                return values
            case "mongodb":
                mongo: AsyncMongoClient[Any]
                async with AsyncMongoClient(servers.url("mongodb")) as mongo:
                    documents: list[Any] = await mongo.get_default_database()[space].find().to_list()
                    return repr(documents).encode()
            case "mysql":
                connection = await aiomysql.connect(
                    host=url.hosts[0].name,
                    port=url.hosts[0].port,
                    user=url.user,
                    password=(url.password or "").encode().decode("latin-1"),
                    db=url.path.strip("/"),
                )
                cursor = await connection.cursor()
                await cursor.execute(f"SELECT * FROM {space}")
                rows = await cursor.fetchall()
                await connection.ensure_closed()
                return repr(rows).encode()
        raise NotImplementedError(storage_name)

    return dump


async def test_a_crashed_handler_saves_nothing(client: Client) -> None:
    await get(client, "/count")
    async with client.get("/crash") as response:
        assert response.status == 500
        assert "Set-Cookie" not in response.headers
    assert await data(client) == {"visits": 1}


async def test_a_signed_cookie_is_needed_where_a_secret_is_set(storage_url: str, aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(make_app(storage_url, secret=SECRET, cookie=Cookie(name="sid")))
    assert await get(client, "/count") == 1
    assert await get(client, "/count") == 2
    value = next(iter(client.session.cookie_jar)).value
    client.session.cookie_jar.clear()
    for forged in (
        value[:43],
        value[:-1] + ("A" if value[-1] != "A" else "B"),
        ("A" if value[0] != "A" else "B") + value[1:],
    ):
        assert (await get(client, "/show", headers={"Cookie": f"sid={forged}"}))["data"] == {}
    assert (await get(client, "/show", headers={"Cookie": f"sid={value}"}))["data"] == {"visits": 2}
    assert json.loads(json.dumps(value)) == value
