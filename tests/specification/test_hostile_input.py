"""Ids that mean something to a server, and stored bytes that would run: neither does anything."""

from __future__ import annotations

import marshal
import pickle
import re
import secrets
from typing import Any

import pytest
from aiohttp import web

from aiohttp_store import Storage, Write, get_session, get_storage
from aiohttp_store.cookie import key_of_id

from ..conftest import Client, Serve
from ..support.remote import Remote
from .test_requests import SECRET, raw

HEADER = b"\x01" + (1 << 50).to_bytes(8, "big") * 2 + bytes(10)


async def put(request: web.Request) -> web.Response:
    (await get_session(request)).update(await request.json())
    return web.Response()


async def show(request: web.Request) -> web.Response:
    return web.json_response(dict(await get_session(request)))


async def logout(request: web.Request) -> web.Response:
    (await get_session(request)).invalidate()
    return web.Response()


async def shown(client: Client, **options: Any) -> Any:
    async with client.get("/show", **options) as response:
        assert response.status == 200
        return await response.json()


async def begin(client: Client) -> str:
    """Begin a session, and return its cookie, which the client does not keep."""
    async with client.post("/put", json={"user": "victim"}) as response:
        assert response.status == 200
    cookie = next(cookie.value for cookie in client.session.cookie_jar)
    client.session.cookie_jar.clear()
    return f"session={cookie}"


HOSTILE = [
    *(b"A" * 42, b"A" * 44, b"*" * 43, b"$" * 43, b"session:" + b"A" * 35, b"A" * 21 + b":" + b"A" * 21),
    *(
        b"get " + b"A" * 39,
        b"A" * 40 + b" 0 ",
        b"\\r\\nflush_all\\r\\n" + b"A" * 25,
        b"%0d%0aflush_all%0d%0a" + b"A" * 22,
    ),
    *(b"' OR '1'='1" + b"A" * 32, b'" OR 1=1 -- ' + b"A" * 31, b'{"$ne": null}' + b"A" * 30),
    *(b"/../" + b"A" * 39, b"A\tA" + b"A" * 40, "\u00e9".encode() + b"A" * 41, b"\xff" * 43, b"\x80" + b"A" * 42),
]
"""Values of cookies that mean something to a server, most of them as long as an id."""
FORMED = [b"A" * 43, b"-" * 43, b"__proto__" + b"A" * 34]
"""Those that have the form of an id."""


@pytest.mark.parametrize("secret", [None, SECRET], ids=["plain", "signed"])
async def test_no_storage_is_asked_for_what_a_client_chose(secret: str | None, serve: Serve) -> None:
    """Nothing that is no id is looked up, and what is has been hashed: a server sees 43 characters of base64url."""
    asked: list[str] = []

    class Asked(Remote):
        async def load(self, keys: Any) -> Any:
            asked.extend(keys)
            return await super().load(keys)

        async def save(self, writes: Any) -> Any:
            asked.extend(write.key for write in writes)
            return await super().save(writes)

        async def delete(self, keys: Any) -> None:
            asked.extend(keys)
            await super().delete(keys)

    client = await serve(put, show, logout, storage=Asked(), secret=secret)
    signature = b"" if secret is None else b"." + b"A" * 43
    for value in HOSTILE:
        for path in (b"/show", b"/logout"):
            head = b"GET %s HTTP/1.1\r\nHost: x\r\nCookie: session=%s\r\n" % (path, value + signature)
            assert (await raw(client.port, head))[0] in (200, 400)  # aiohttp refuses some bytes in headers
        assert asked == [], value
    for chosen in FORMED:
        head = b"GET /logout HTTP/1.1\r\nHost: x\r\nCookie: session=%s\r\n" % chosen
        assert (await raw(client.port, head))[0] == 200
    sent = await begin(client)
    assert await shown(client, headers={"Cookie": sent}) == {"user": "victim"}
    assert len(asked) >= 2
    for key in asked:
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}", key)
        assert key.encode() not in [sent.removeprefix("session=")[:43].encode(), *FORMED]


async def test_hostile_ids_leave_every_servers_records_alone(serve: Serve, storage_url: str) -> None:
    client = await serve(put, show, logout, storage=storage_url)
    victim = await begin(client)
    for value in HOSTILE + FORMED:
        for path in (b"/show", b"/logout"):
            head = b"GET %s HTTP/1.1\r\nHost: x\r\nCookie: session=%s\r\n" % (path, value)
            status, _, body = await raw(client.port, head)
            assert status in (200, 400)
            assert b"victim" not in body
    assert await shown(client, headers={"Cookie": victim}) == {"user": "victim"}


gone_off: list[str] = []


def go_off(how: str) -> None:
    gone_off.append(how)


class Bomb:
    """What says that it was loaded, by whatever runs its bytes."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        return go_off, (self.how,)


async def test_stored_bytes_run_no_code(serve: Serve, storage_url: str) -> None:
    client = await serve(show, storage=storage_url)
    assert client.app is not None
    storage: Storage = get_storage(client.app)
    pickles = [pickle.dumps(Bomb(str(protocol)), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    code = marshal.dumps(compile("gone_off.append('marshal')", "record", "exec"))
    yaml = b"!!python/object/apply:tests.specification.test_hostile_input.go_off ['yaml']"
    for stored in (*pickles, code, yaml, b"__import__('os')._exit(1)"):
        for record in (stored, HEADER + stored):
            session_id = secrets.token_urlsafe(32)
            await storage.save([Write(key_of_id(session_id), None, record, 60)])
            assert await shown(client, headers={"Cookie": f"session={session_id}"}) == {}
    assert gone_off == []
    pickle.loads(pickles[0])
    assert [gone_off.pop()] == ["0"]  # it would have
