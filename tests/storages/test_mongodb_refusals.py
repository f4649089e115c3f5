"""What a MongoDB that answers, and will not serve, is said to lack; replies that are none; an index that is lost."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient

from aiohttp_store import StorageRefused, StorageUnavailable, Write, get_storage
from aiohttp_store.storages import storage_from_url

from ..conftest import PATIENCE, Serve, Servers, opening
from ..support.one_key import new_key
from ..support.servers import MongoDB
from ..support.timing import pace, until
from ..support.visitors import count
from ..support.wrong_server import HELLO, mongodb, saying, serving
from .test_mongodb import AuthMongoDB, TLSMongoDB, has_ttl_index, scheme

__all__ = ["scheme"]  # a fixture

WITHIN = 2
"""Seconds that a storage has which will not answer, on a quiet machine."""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuthMongoDB]:
    """A server with users, each of whom lacks something."""
    server = AuthMongoDB(tmp_path_factory.mktemp("guarded") / "mongodb")
    server.start()
    client: MongoClient[dict[str, Any]]
    with MongoClient(server.url) as client:
        rights = ["find", "update", "insert", "remove"]
        privileges = [{"resource": {"db": "sessions", "collection": ""}, "actions": rights}]
        database: Any = client["sessions"]
        database.command("createRole", "indexless", privileges=privileges, roles=[])
        for user, role in {"visitor": "readWrite", "reader": "read", "indexless": "indexless"}.items():
            database.command("createUser", user, pwd="p", roles=[role])
    server.stop()
    server.auth = True
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoDB]:
    server = TLSMongoDB(tmp_path_factory.mktemp("encrypted") / "mongodb")
    server.start()
    yield server
    server.kill()


async def refuses(serve: Serve, caplog: pytest.LogCaptureFixture, url: str, said: str) -> None:
    """Expect an app that starts, says why its storage will not serve, and answers 503."""
    client = await serve(count, storage=f"{url}{'&' if '?' in url else '?'}timeout={WITHIN * pace()}")
    (record,) = [record for record in caplog.records if record.name == "aiohttp_store"]
    assert record.levelname == "ERROR", record.getMessage()
    assert re.search(said, record.getMessage()), record.getMessage()
    with pytest.raises(StorageRefused):
        await get_storage(client.app).check()
    response = await client.get("/count")
    assert (response.status, "Retry-After" in response.headers) == (503, True)


@pytest.mark.parametrize(
    ("login", "place", "said"),
    [
        ("visitor:wrong@", "sessions", "check the user, the password and authSource="),
        ("nobody:p@", "sessions", "check the user, the password and authSource="),
        ("visitor:p@", "other", "check the user, the password and authSource="),
        ("visitor:p@", "sessions?authMechanism=PLAIN", "check the user, the password and authSource="),
        ("", "sessions", "check the login, and that the user has the role readWrite"),
        ("reader:p@", "sessions", "the role readWrite on the database"),
        ("visitor:p@", "other?authSource=sessions", "the role readWrite on the database"),
        ("visitor:p@", "sessions?w=3", "check w="),
        ("visitor:p@", "sessions?replicaSet=rs9", "check replicaSet="),
        ("visitor:p@", "sessions?tls=true", "does not speak TLS"),
    ],
)
async def test_a_server_that_refuses_is_an_error_at_the_start_that_says_what_to_check(
    scheme: str,
    guarded: AuthMongoDB,
    serve: Serve,
    caplog: pytest.LogCaptureFixture,
    login: str,
    place: str,
    said: str,
) -> None:
    await refuses(serve, caplog, f"{scheme}://{login}127.0.0.1:{guarded.port}/{place}", said)


async def test_a_right_user_opens_without_a_word(
    scheme: str, guarded: AuthMongoDB, caplog: pytest.LogCaptureFixture
) -> None:
    async with opening(f"{scheme}://visitor:p@127.0.0.1:{guarded.port}/sessions") as storage:
        await storage.check()
    assert not [record for record in caplog.records if record.name == "aiohttp_store"]


async def test_a_user_without_the_right_to_create_the_index_is_said_to_while_sessions_are_served(
    scheme: str, guarded: AuthMongoDB, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{scheme}://indexless:p@127.0.0.1:{guarded.port}/sessions?collection=c{scheme[-3:]}&timeout={PATIENCE}"
    client = await serve(count, storage=url)
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "give the user the right to createIndex" in record.getMessage()
    with pytest.raises(StorageRefused, match="TTL index"):
        await get_storage(client.app).check()
    assert (await client.get("/count")).status == 200


async def test_a_server_that_demands_tls_or_whose_certificate_is_unknown_is_said_to(
    scheme: str, encrypted: MongoDB, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    await refuses(serve, caplog, f"{scheme}://127.0.0.1:{encrypted.port}/sessions", "demands TLS; write tls=true")
    caplog.clear()
    await refuses(serve, caplog, f"{scheme}://127.0.0.1:{encrypted.port}/sessions?tls=true", "check tlsCAFile=")


@pytest.mark.parametrize("name", ["redis", "memcached", "mysql"])
async def test_a_port_of_another_server_is_named_and_not_taken_for_an_outage(
    scheme: str, servers: Servers, serve: Serve, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    url = f"{scheme}://127.0.0.1:{servers.own(name).port}/sessions"
    await refuses(serve, caplog, url, f"speaks (?i:{name})'s protocol and not MongoDB's")


async def test_a_web_servers_port_is_named_and_not_taken_for_an_outage(
    scheme: str, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        await refuses(serve, caplog, f"{scheme}://127.0.0.1:{port}/sessions", "speaks HTTP and not MongoDB's")


def answer(code: int, text: str, **more: object) -> dict[str, Any]:
    return {"ok": 0, "code": code, "errmsg": text, "codeName": "X", **more}


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (answer(40324, "Unrecognized pipeline stage name: '$replaceWith'"), "MongoDB 4.2 or newer"),
        (answer(20, "Transaction numbers are only allowed on a replica set member or mongos"), "retryWrites=false"),
        (answer(115, "not supported"), "MongoDB 4.2 or newer"),
        (answer(8000, "bad auth : authentication failed"), "authSource="),
        (answer(10107, "not primary"), None),
        (answer(91, "shutting down"), None),
        (answer(189, "primary stepped down"), None),
        (answer(14031, "out of disk space"), None),
        (answer(8000, "you are over your space quota"), None),
    ],
)
async def test_a_refusal_is_told_from_what_passes(
    scheme: str, caplog: pytest.LogCaptureFixture, reply: dict[str, Any], said: str | None
) -> None:
    async with serving(mongodb(reply)) as port, opening(f"{scheme}://127.0.0.1:{port}/?timeout=1") as storage:
        with pytest.raises(StorageUnavailable, match=said) as caught:
            await storage.save([Write(new_key(), None, b"data", 60)])
        assert isinstance(caught.value, StorageRefused) is (said is not None)
    levels = {record.levelname for record in caplog.records if record.name == "aiohttp_store"}
    assert ("ERROR" in levels) is (said is not None)


# Replies that are none

BATCH = {"id": 0, "ns": "sessions.sessions"}
WRONG: list[dict[str, Any]] = [
    *(
        {},
        {"ok": "x"},
        {"ok": 1},
        {"ok": None},
        {"ok": 0},
        {"ok": 0, "code": "x"},
        {"ok": 0, "errmsg": 5, "code": None},
    ),
    *({"ok": 1, "n": "x"}, {"ok": 1, "n": None, "nModified": None}, {"ok": 1, "n": 1, "nModified": "y"}),
    *({"ok": 1, "n": [1]}, {"ok": 1, "upserted": 5}, {"ok": 1, "n": 1, "upserted": [{}]}, {"ok": 1, "upserted": [7]}),
    *({"ok": 1, "writeErrors": 5}, {"ok": 1, "writeErrors": [{}]}, {"ok": 1, "writeErrors": [7]}),
    *({"ok": 1, "writeConcernError": 5}, {"ok": 1, "writeConcernError": {}}, {"ok": 1, "cursor": None}),
    *({"ok": 1, "cursor": 7}, {"ok": 1, "cursor": {}}, {"ok": 1, "cursor": {**BATCH, "firstBatch": 5}}),
    *({"ok": 1, "cursor": {**BATCH, "firstBatch": [one]}} for one in (1, None, {}, {"_id": 1}, {"_id": b"k"})),
    {"ok": 1, "cursor": {**BATCH, "firstBatch": [{"_id": b"k", "v": "text", "d": b"x"}]}},
    {"ok": 1, "cursor": {**BATCH, "firstBatch": [{"_id": b"\xff", "v": b"x", "d": 1}]}},
    {"ok": 1, "cursor": {"id": "x", "firstBatch": []}},
    {"ok": 1, "$clusterTime": 5},
]


@pytest.mark.parametrize("reply", WRONG, ids=str)
async def test_a_reply_that_is_none_is_a_503_and_no_500_and_the_app_starts(
    scheme: str, serve: Serve, reply: dict[str, Any]
) -> None:
    async with serving(mongodb(reply)) as port:
        client = await serve(count, storage=f"{scheme}://127.0.0.1:{port}/sessions?timeout=0.7")
        assert (await client.get("/count")).status == 503
        response = await client.get("/count", headers={"Cookie": f"session={new_key()}"})
        assert response.status in {503, 200} if reply.get("cursor") else response.status == 503


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of PyMongo's monitors
@pytest.mark.parametrize(
    "hello",
    [{}, {"ok": 1}, {"ok": "x"}, *(HELLO | {name: "x"} for name in HELLO), HELLO | {"maxWireVersion": 2}],
    ids=str,
)
async def test_a_server_that_says_nonsense_of_itself_is_a_503(scheme: str, serve: Serve, hello: dict[str, Any]) -> None:
    async with serving(mongodb({}, hello)) as port:
        client = await serve(count, storage=f"{scheme}://127.0.0.1:{port}/sessions?timeout=0.7")
        assert (await client.get("/count")).status == 503


# An index that is lost


@pytest.fixture
async def raw(servers: Servers) -> AsyncIterator[Any]:
    client: AsyncMongoClient[dict[str, Any]]
    async with AsyncMongoClient(servers.url("mongodb")) as client:
        yield client["sessions"][f"t{new_key().replace('-', '_')}"]


@pytest.mark.parametrize("how", ["drop", "drop_indexes"])
async def test_the_index_comes_back_when_the_collection_or_the_index_was_dropped_while_the_app_runs(
    scheme: str, servers: Servers, serve: Serve, raw: Any, how: str
) -> None:
    url = f"{scheme}://{servers.url('mongodb').partition('://')[2]}?collection={raw.name}&timeout={PATIENCE}"
    client = await serve(count, storage=url)
    assert (await client.get("/count")).status == 200
    assert await has_ttl_index(raw)
    await getattr(raw, how)()
    client.session.cookie_jar.clear()
    assert await (await client.get("/count")).json() == 1
    await until(lambda: has_ttl_index(raw))


# The driver


def said_without_driver(folder: Path, before: str) -> str:
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r})\n{before}\n"
        "from aiohttp_store.storages import storage_from_url\n"
        "try:\n    storage_from_url('mongodb://localhost')\nexcept Exception as error:\n"
        "    print(type(error).__name__, error)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_a_missing_driver_is_named_with_its_extra_and_not_its_module(tmp_path: Path) -> None:
    said = said_without_driver(tmp_path, "sys.modules.update(bson=None, pymongo=None)")
    assert said.startswith("ConfigError mongodb:// needs 'pymongo'")
    assert "aiohttp_store[mongodb]" in said
    assert "bson" not in said


@pytest.mark.parametrize("name", ["bson.py", "bson/__init__.py"])
def test_a_foreign_bson_in_place_of_the_drivers_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("def dumps(): ...")
    said = said_without_driver(tmp_path, "")
    assert said.startswith("ConfigError mongodb:// needs 'pymongo', and the 'bson' that is installed is another's")
    assert "pip uninstall bson, then pip install --force-reinstall pymongo" in said


async def test_without_its_server_a_storage_still_opens(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    storage = storage_from_url(f"{scheme}://127.0.0.1:1/?timeout=0.5")
    await storage.open()
    await storage.close()
    assert [record.levelname for record in caplog.records if record.name == "aiohttp_store"] == ["WARNING"]
