"""What MongoDB's drivers and its server do on their own, and what a visitor must not feel of it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gc
import secrets
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest
from bson import SON, DBRef, ObjectId
from bson.raw_bson import RawBSONDocument
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient, MongoClient, WriteConcern
from pymongo.monitoring import CommandListener

from aiohttp_store import ConfigError, Conflict, Gone, Saved, SessionTooLarge, StorageUnavailable, Write
from aiohttp_store.storages import storage_from_url
from aiohttp_store.storages.mongodb import MongoDBOptions, MongoDBStorage

from ..conftest import Servers, opening
from ..support.certificates import make_certificates
from ..support.one_key import create, new_key
from ..support.proxy import Proxy
from ..support.servers import MongoDB
from ..support.ticking import ticking
from ..support.timing import pace, until, within

HOUR = datetime.timedelta(hours=1)
# How these commands begin.
UPDATE, DELETE, FIND = b"\x02update\0", b"\x02delete\0", b"\x02find\0"
KINDS = {"mongodb": AsyncIOMotorClient, "mongodb+pymongo": AsyncMongoClient}


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@pytest.fixture(params=KINDS)
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def space() -> str:
    return f"t{secrets.token_hex(6)}"


@pytest.fixture
def shared(servers: Servers) -> str:
    return servers.url("mongodb")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[MongoDB]:
    """A server that may be killed and paused."""
    server = MongoDB(tmp_path / "mongodb")
    server.start()
    yield server
    server.kill()


def with_scheme(scheme: str, url: str, query: str = "") -> str:
    return f"{scheme}://{url.partition('://')[2]}{'?' if query else ''}{query}"


@pytest.fixture
async def storage(scheme: str, shared: str, space: str) -> AsyncIterator[MongoDBStorage]:
    async with opening(with_scheme(scheme, shared, f"collection={space}")) as opened:
        assert isinstance(opened, MongoDBStorage)
        yield opened


def any_client(url: str) -> AsyncMongoClient[dict[str, Any]]:
    return AsyncMongoClient(url)


@pytest.fixture
async def raw(shared: str, space: str) -> AsyncIterator[Any]:
    """The collection behind `storage`, for what others may have put there."""
    async with any_client(shared) as client:
        yield client.get_database("sessions").get_collection(space)


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    await until(check)


async def has_ttl_index(collection: Any) -> bool:
    with contextlib.suppress(pymongo.errors.PyMongoError):
        indexes = await collection.index_information()
        return any(index.get("expireAfterSeconds") == 0 for index in indexes.values())
    return False


@pytest.fixture
async def proxy(shared: str) -> AsyncIterator[Proxy]:
    async with Proxy(shared) as running:
        yield running


@pytest.fixture
async def proxied(proxy: Proxy, scheme: str, space: str) -> AsyncIterator[MongoDBStorage]:
    async with opening(with_scheme(scheme, proxy.url, f"collection={space}")) as opened:
        assert isinstance(opened, MongoDBStorage)
        await opened.load([new_key()])
        proxy.requests.clear()
        yield opened


# The URL


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("colection=x", "no parameter 'colection'; did you mean 'collection'?"),
        ("COLLECTION=x", "no parameter 'COLLECTION'; did you mean 'collection'?"),
        ("pool_sise=3", "did you mean 'pool_size'?"),
        ("maxPoolsiz=3", "did you mean 'maxPoolSize'?"),
        ("TLSCAFIL=x", "did you mean 'tlsCAFile'?"),
        ("wtimeout=500", "no parameter 'wtimeout'; did you mean 'wTimeoutMS'?"),
        ("ssl_ca_certs=x", "did you mean 'tlsCAFile'?"),
        ("zzz=1", "no parameter 'zzz'; its own are collection, "),
        ("driver=x", "no parameter 'driver'"),
        ("username=x", "no parameter 'username'"),
        ("maxPoolSize=many", "maxPoolSize='many' cannot be used: "),
        ("MAXPOOLSIZE=many", "MAXPOOLSIZE='many' cannot be used: "),
        ("tls=perhaps", "tls='perhaps' cannot be used: "),
        ("ssl=perhaps", "ssl='perhaps' cannot be used: "),
        ("tlsCAFile=/nowhere/c%61.pem", "tlsCAFile='/nowhere/ca.pem' cannot be used: "),
        ("connectTimeoutMS=soon", "connectTimeoutMS='soon' cannot be used: "),
        ("connectTimeoutMS=-1", "connectTimeoutMS='-1' cannot be used: "),
        ("maxConnecting=0", "maxConnecting='0' cannot be used: "),
        ("w=-1", "w='-1' cannot be used: "),
        ("compressors=none", "compressors='none' cannot be used: "),
        ("zlibCompressionLevel=99", "zlibCompressionLevel='99' cannot be used: "),
        ("readPreference=some", "readPreference='some' cannot be used: "),
        ("readPreferenceTags=x", "readPreferenceTags='x' cannot be used: "),
        ("uuidRepresentation=x", "uuidRepresentation='x' cannot be used: "),
        ("datetime_conversion=x", "datetime_conversion='x' cannot be used: "),
        ("serverMonitoringMode=x", "serverMonitoringMode='x' cannot be used: "),
        ("authMechanism=x", "authMechanism='x' cannot be used: "),
        ("authMechanismProperties=geheim", "authMechanismProperties=*** cannot be used: "),
        ("authSource=", "authSource='' cannot be used: "),
        ("appname=a=b", "appname='a=b' cannot be used: "),
        ("appname", "write appname=value"),
        ("w=1&W=2", "'W' is given twice"),
        ("tlsInsecure=true&tlsAllowInvalidCertificates=true", "://localhost/sessions cannot be used: "),
        ("replicaSet=a&loadBalanced=true", "://localhost/sessions cannot be used: "),
        ("w=0", "w=0 hides what became of a write"),
        ("readPreference=secondary", "readPreference must be primary"),
        ("readPreferenceTags=dc:east", "without readPreferenceTags"),
        ("maxStalenessSeconds=120", "without readPreferenceTags and maxStalenessSeconds"),
        ("pool_size=3&maxPoolSize=4", "pool_size= is another name of maxPoolSize=; give one"),
        ("pool_size=0", "pool_size=0 must be"),
        ("pool_size=x", "pool_size='x' is not"),
        ("timeout=0", "timeout=0.0 must be"),
        ("timeout=nan", "timeout=nan must be"),
        ("collection=a-b", "collection='a-b' must be"),
        ("collection=$cmd", "collection='$cmd' must be"),
        ("collection=a&collection=b", "'collection' is given twice"),
    ],
)
def test_a_wrong_parameter_is_named_at_once(scheme: str, query: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        storage_from_url(f"{scheme}://visitor:gehe%40im@localhost/sessions?{query}")
    assert said.lower() in str(caught.value).lower()  # older releases of PyMongo list names in lower case only
    assert "geh" not in str(caught.value)


def test_a_database_that_cannot_be_is_named(scheme: str) -> None:
    with pytest.raises(ConfigError, match="://localhost/a b cannot be used: "):
        storage_from_url(f"{scheme}://visitor:geheim@localhost/a%20b")


def test_a_collection_in_the_path_is_refused(scheme: str) -> None:
    with pytest.raises(ConfigError, match="collection="):
        storage_from_url(f"{scheme}://localhost/database.things")


@pytest.mark.parametrize("url", ["mongodb+srv://a,b/db", "mongodb+srv://a:27017/db", "mongodb+srv://host/?zzz=1"])
def test_a_wrong_srv_url_is_refused_without_a_look_up(url: str) -> None:
    with pytest.raises(ConfigError):
        storage_from_url(url)


def test_an_srv_url_is_looked_up_by_the_first_verb_only() -> None:
    storage = storage_from_url("mongodb+srv://visitor:geheim@nowhere.example.invalid/db?srvServiceName=x&pool_size=3")
    assert "nowhere.example.invalid" in repr(storage)
    assert "geheim" not in repr(storage)


async def test_an_srv_host_that_does_not_exist_is_an_outage_in_time() -> None:
    async with ticking(), opening("mongodb+srv://nowhere.example.invalid/?timeout=0.5") as storage:
        with pytest.raises(StorageUnavailable), within(1):
            await storage.load([new_key()])


def test_a_missing_motor_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "motor.motor_asyncio", None)
    with pytest.raises(ConfigError, match=r"aiohttp_store\[mongodb\]"):
        storage_from_url("mongodb://localhost")


def test_pymongo_alone_suffices_for_its_own_scheme() -> None:
    code = (
        "import sys; sys.modules['motor'] = None\n"
        "from aiohttp_store.storages import storage_from_url\n"
        "print(storage_from_url('mongodb+pymongo://localhost'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "MongoDBStorage" in done.stdout


async def settings_of(url: str) -> Any:
    storage = storage_from_url(url)
    assert isinstance(storage, MongoDBStorage)
    await storage.open()
    client = storage._client
    await storage.close()
    return (client if isinstance(client, AsyncMongoClient) else client.delegate).options


async def test_the_drivers_time_outs_follow_ours(scheme: str) -> None:
    options = await settings_of(f"{scheme}://127.0.0.1:1/?timeout=0.5&pool_size=7")
    assert options.server_selection_timeout == 0.5
    assert options.timeout is None
    assert options.pool_options.connect_timeout == options.pool_options.socket_timeout == 0.5
    assert options.pool_options.wait_queue_timeout == 0.5
    assert options.pool_options.max_pool_size == 7
    assert options.pool_options.max_connecting == 16
    assert options.write_concern.document == {"w": "majority", "j": True}


async def test_a_time_out_in_the_url_stays(scheme: str) -> None:
    options = await settings_of(
        f"{scheme}://127.0.0.1:1/?timeout=0.5&connecttimeoutms=700&socketTimeoutMS=800&waitQueueTimeoutMS=900"
        "&serverSelectionTimeoutMS=1000&w=1&maxPoolSize=4"
    )
    assert options.timeout is None
    assert (options.pool_options.connect_timeout, options.pool_options.socket_timeout) == (0.7, 0.8)
    assert (options.pool_options.wait_queue_timeout, options.server_selection_timeout) == (0.9, 1.0)
    assert options.pool_options.max_pool_size == 4
    assert options.write_concern.document == {"w": 1}


async def test_mongodbs_own_parameters_are_handed_on(scheme: str) -> None:
    options = await settings_of(
        f"{scheme}://127.0.0.1:1?APPNAME=a%26b%20c&timeout=0.5&heartbeatFrequencyMS=5000&collection=x&ssl=true"
    )
    assert options.pool_options.appname == "a&b c"
    assert options.pool_options.metadata["application"] == {"name": "a&b c"}
    assert options.pool_options._ssl_context is not None


async def test_the_database_of_the_path_and_the_collection_of_the_query_are_used(
    scheme: str, shared: str, space: str
) -> None:
    base = shared.rpartition("/")[0]
    async with opening(with_scheme(scheme, f"{base}/d{space}", f"collection=c{space}")) as storage:
        await storage.save([Write("k" * 43, None, b"x", 60)])
    async with opening(with_scheme(scheme, base, f"collection=c{space}")) as storage:
        await storage.save([Write("s" * 43, None, b"x", 60)])
    async with any_client(shared) as client:
        assert await client[f"d{space}"][f"c{space}"].count_documents({}) == 1
        assert await client["sessions"][f"c{space}"].count_documents({}) == 1
        await client.drop_database(f"d{space}")


# The layout


FOREIGN: list[dict[str, Any]] = [
    {},
    {"x": 1},
    {"v": "text", "d": b"x", "e": now() + HOUR},
    {"v": b"version8", "d": "text", "e": now() + HOUR},
    {"v": b"version8", "d": b"x"},
    {"v": b"version8", "d": b"x", "e": "2999-01-01"},
    {"v": b"version8", "d": b"x", "e": "99999999999999"},
    {"v": b"version8", "d": b"x", "e": {"a": 1}},
    {"v": b"version8", "d": b"x", "e": 99_999_999_999_999},
    {"v": b"version8", "d": b"x", "e": None},
    {"v": [b"version8"], "d": [b"x"], "e": [now() + HOUR]},
    {"v": DBRef("a", 1), "d": ObjectId(), "e": SON(a=1)},
    {"d": b"x", "e": now() + HOUR},
]


async def test_a_foreign_document_is_absent_and_spoils_no_batch(storage: MongoDBStorage, raw: Any) -> None:
    keys = [new_key() for _ in FOREIGN]
    await raw.insert_many([{"_id": key.encode(), **document} for key, document in zip(keys, FOREIGN, strict=True)])
    good = new_key()
    version = await create(storage, good)
    assert [record and record.data for record in await storage.load([*keys, good])] == [None] * len(keys) + [b"data"]
    late = [Write(key, b"version8", b"late", 60) for key in keys]
    assert await storage.save(late) == [Gone()] * len(keys)
    outcomes = await storage.save([*(Write(key, None, b"new", 60) for key in keys), Write(good, version, b"more", 60)])
    assert all(isinstance(outcome, Saved) for outcome in outcomes)
    assert [record and record.data for record in await storage.load(keys)] == [b"new"] * len(keys)
    assert all(set(document) == {"_id", "v", "d", "e"} for document in await raw.find().to_list())


async def test_an_expired_document_that_the_sweep_has_not_seen_is_absent(storage: MongoDBStorage, raw: Any) -> None:
    keys = [new_key() for _ in range(3)]
    await raw.insert_many([{"_id": key.encode(), "v": b"version8", "d": b"x", "e": now() - HOUR} for key in keys])
    assert await storage.load(keys) == [None] * 3
    outcomes = await storage.save(
        [Write(keys[0], b"version8", b"y", 60), Write(keys[1], b"version8", None, 60), Write(keys[2], None, b"z", 60)]
    )
    assert outcomes[:2] == [Gone(), Gone()]
    assert isinstance(outcomes[2], Saved)


async def test_the_expiry_is_a_date_of_the_server_under_a_ttl_index(storage: MongoDBStorage, raw: Any) -> None:
    key = new_key()
    await create(storage, key, ttl=600)
    document = await raw.find_one({"_id": key.encode()})
    left = document["e"].replace(tzinfo=datetime.UTC) - now()
    assert 590 < left.total_seconds() < 610
    await eventually(lambda: has_ttl_index(raw))


async def test_keys_differ_by_case_under_a_collation_that_ignores_it(
    storage: MongoDBStorage, raw: Any, space: str
) -> None:
    assert storage._indexing is not None
    await storage._indexing
    await raw.drop()
    await raw.database.create_collection(space, collation={"locale": "en", "strength": 1})
    await create(storage, "A" * 43, b"upper")
    assert await storage.load(["a" * 43]) == [None]
    await create(storage, "a" * 43, b"lower")
    assert [record and record.data for record in await storage.load(["A" * 43, "a" * 43])] == [b"upper", b"lower"]


async def test_the_largest_document_is_stored_and_one_byte_more_is_not(storage: MongoDBStorage) -> None:
    key, over = new_key(), new_key()
    with pytest.raises(SessionTooLarge) as caught:
        await storage.save([Write(over, None, b"x" * (16 << 20), 60)])
    most = (16 << 20) - (caught.value.size - caught.value.limit)
    version = await create(storage, key, b"x" * most)
    assert isinstance((await storage.save([Write(key, version, b"y" * most, 60)]))[0], Saved)
    with pytest.raises(SessionTooLarge):
        await storage.save([Write(new_key(), None, b"small", 60), Write(over, None, b"x" * (most + 1), 60)])


# What goes over the wire


class Commands(CommandListener):
    def __init__(self) -> None:
        self.all: list[Any] = []

    def started(self, event: Any) -> None:
        if event.command_name in {"find", "update", "delete", "getMore", "insert"}:
            # Copied, since the driver changes it afterwards.
            self.all.append(SON(event.command))

    def succeeded(self, event: Any) -> None: ...

    def failed(self, event: Any) -> None: ...


@contextlib.asynccontextmanager
async def client_of(scheme: str, url: str, **settings: Any) -> AsyncIterator[Any]:
    client: Any = KINDS[scheme](url, **settings)
    try:
        yield client
    finally:
        closing = client.close()
        if closing is not None:
            await closing


@pytest.fixture
async def watched(scheme: str, shared: str, space: str) -> AsyncIterator[tuple[MongoDBStorage, list[Any]]]:
    commands = Commands()
    async with client_of(scheme, shared, event_listeners=[commands]) as client:
        storage = MongoDBStorage(client, MongoDBOptions(collection=space))
        await storage.open()
        commands.all.clear()  # of the check
        yield storage, commands.all
        await storage.close()


async def test_a_batch_of_loads_or_deletes_is_one_command(watched: tuple[MongoDBStorage, list[Any]]) -> None:
    storage, commands = watched
    keys = [new_key() for _ in range(64)]
    await storage.save([Write(key, None, b"x" * 2000, 60) for key in keys])
    commands.clear()
    await storage.load(keys)
    await storage.delete(keys)
    assert [next(iter(command)) for command in commands] == ["find", "delete"]


async def test_the_losers_of_a_batch_learn_why_from_one_find(watched: tuple[MongoDBStorage, list[Any]]) -> None:
    storage, commands = watched
    stale, gone, fine = keys = [new_key() for _ in range(3)]
    for key in (stale, fine):
        await storage.save([Write(key, None, b"theirs", 60)])
    records = await storage.load([fine])
    assert records[0] is not None
    commands.clear()
    outcomes = await storage.save(
        [
            Write(stale, b"12345678", b"x", 60),
            Write(gone, b"12345678", b"x", 60),
            Write(fine, records[0].version, b"x", 60),
        ]
    )
    assert [type(outcome) for outcome in outcomes] == [Conflict, Gone, Saved]
    assert sorted(next(iter(command)) for command in commands) == ["find", "update", "update", "update"]
    assert keys[2] == fine


async def test_an_upsert_has_no_expression_in_its_filter_since_mongodb_refuses_it(
    watched: tuple[MongoDBStorage, list[Any]],
) -> None:
    storage, commands = watched
    version = await create(storage, key := new_key())
    await storage.save([Write(key, version, b"x", 60)])
    upserts = [update for command in commands for update in command["updates"] if update.get("upsert")]
    assert [list(update["q"]) for update in upserts] == [["_id"]]


async def test_time_is_told_by_the_server_alone(watched: tuple[MongoDBStorage, list[Any]]) -> None:
    storage, commands = watched
    version = await create(storage, key := new_key())
    await storage.save([Write(key, version, b"x", 60)])
    await storage.save([Write(key, version, None, 60)])
    await storage.load([key])
    assert len(commands) >= 4
    for command in commands:
        text = repr({name: value for name, value in command.items() if name in {"updates", "deletes", "filter"}})
        assert "$$NOW" in text
        assert "datetime" not in text


# A client of the user's


async def test_a_client_of_the_users_is_used_and_not_closed(scheme: str, shared: str, space: str) -> None:
    async with client_of(scheme, shared) as client:
        storage = MongoDBStorage(client, MongoDBOptions(collection=space), database="sessions")
        await storage.open()
        await create(storage, key := new_key())
        await storage.close()
        await storage.close()
        assert await client["sessions"][space].count_documents({}) == 1
        assert space in repr(storage)
        await storage.open()
        assert (await storage.load([key]))[0] is not None
        await storage.close()


async def test_a_collection_of_the_users_is_used_with_our_own_codec(scheme: str, shared: str, space: str) -> None:
    async with client_of(scheme, shared, document_class=RawBSONDocument, tz_aware=True) as client:
        collection = client["sessions"].get_collection(space, read_preference=pymongo.ReadPreference.SECONDARY)
        storage = MongoDBStorage(collection)
        await storage.open()
        await create(storage, key := new_key())
        assert (await storage.load([key]))[0] is not None
        await storage.close()


async def test_options_say_whose_sessions_are_taken_over_and_where_they_are(
    scheme: str, shared: str, space: str
) -> None:
    options = MongoDBOptions(collection=space, migrate="aiohttp_session", migrate_collection=f"{space}_old")
    async with client_of(scheme, shared) as client:
        await client["sessions"][f"{space}_old"].insert_one({"_id": b"AIOHTTP_SESSION_1", "data": {"session": {}}})
        storage = MongoDBStorage(client, options)
        assert storage.legacy is not None
        assert await storage.read_legacy("AIOHTTP_SESSION_1") == {"session": {}}
        await storage.remove_legacy("AIOHTTP_SESSION_1")
        assert await storage.read_legacy("AIOHTTP_SESSION_1") is None
        await storage.close()


async def test_what_is_no_asyncio_client_is_refused(shared: str) -> None:
    blocking: MongoClient[dict[str, Any]]
    with MongoClient(shared) as blocking:
        wrong: Any
        for wrong in (blocking, blocking["a"]["b"], None, "mongodb://localhost"):
            with pytest.raises(ConfigError, match="AsyncMongoClient"):
                MongoDBStorage(wrong)


async def test_a_client_that_hides_outcomes_is_refused(scheme: str, shared: str) -> None:
    async with client_of(scheme, shared) as client:
        with pytest.raises(ConfigError, match="w=0"):
            MongoDBStorage(client["a"].get_collection("b", write_concern=WriteConcern(w=0)))


async def test_a_client_without_time_outs_leaves_no_call_behind(scheme: str, own: MongoDB) -> None:
    """PyMongo's own client waits for ever for the answer of a server that hangs."""
    async with client_of(scheme, own.url) as client:
        storage = MongoDBStorage(client, MongoDBOptions(timeout=0.3 * pace()))
        await storage.open()
        await eventually(lambda: serves(storage))
        own.pause()
        with pytest.raises(StorageUnavailable):
            await storage.load([new_key()])
        await until(lambda: not storage._calls, "a call is left while the server hangs")
        own.resume()
        await storage.close()


# Lost answers


async def test_a_create_whose_answer_was_lost_is_saved(proxied: MongoDBStorage, proxy: Proxy) -> None:
    proxy.matching, proxy.lose_answers = UPDATE, 1
    (outcome,) = await proxied.save([Write(key := new_key(), None, b"once", 60)])
    assert proxy.lose_answers == 0
    assert isinstance(outcome, Saved)
    assert sum(UPDATE in request for request in proxy.requests) == 2
    assert (await proxied.load([key]))[0] == (outcome.version, b"once")


async def test_an_update_whose_answer_was_lost_is_saved(proxied: MongoDBStorage, proxy: Proxy) -> None:
    version = await create(proxied, key := new_key())
    proxy.requests.clear()
    proxy.matching, proxy.lose_answers = UPDATE, 1
    (outcome,) = await proxied.save([Write(key, version, b"once", 60)])
    assert proxy.lose_answers == 0
    assert isinstance(outcome, Saved)
    assert sum(UPDATE in request for request in proxy.requests) == 2
    assert (await proxied.load([key]))[0] == (outcome.version, b"once")


async def test_a_removal_whose_answer_was_lost_is_gone(proxied: MongoDBStorage, proxy: Proxy) -> None:
    version = await create(proxied, key := new_key())
    proxy.matching, proxy.lose_answers = DELETE, 1
    assert await proxied.save([Write(key, version, None, 60)]) == [Gone()]
    assert proxy.lose_answers == 0
    assert await proxied.load([key]) == [None]


async def test_a_batch_that_lost_one_answer_is_saved(proxied: MongoDBStorage, proxy: Proxy) -> None:
    keys = [new_key() for _ in range(30)]
    proxy.matching, proxy.lose_answers = UPDATE, 1
    outcomes = await proxied.save([Write(key, None, key.encode(), 60) for key in keys])
    assert proxy.lose_answers == 0
    assert all(isinstance(outcome, Saved) for outcome in outcomes)
    assert [record and record.data for record in await proxied.load(keys)] == [key.encode() for key in keys]


@pytest.mark.parametrize("command", [FIND, DELETE], ids=["find", "delete"])
async def test_a_load_or_delete_whose_answer_was_lost_is_done_again(
    proxied: MongoDBStorage, proxy: Proxy, command: bytes
) -> None:
    await create(proxied, key := new_key())
    proxy.matching, proxy.lose_answers = command, 1
    if command == FIND:
        assert (await proxied.load([key]))[0] is not None
    else:
        await proxied.delete([key])
        assert await proxied.load([key]) == [None]
    assert proxy.lose_answers == 0


async def test_the_index_is_built_to_its_end_however_long_that_takes(scheme: str, proxy: Proxy, space: str) -> None:
    async def asked() -> bool:
        return any(b"createIndexes" in request for request in proxy.requests)

    async with opening(with_scheme(scheme, proxy.url, f"collection={space}")):
        await eventually(asked)
    assert not any(b"createIndexes" in request and b"maxTimeMS" in request for request in proxy.requests)


# Outages


async def serves(storage: MongoDBStorage) -> bool:
    with contextlib.suppress(StorageUnavailable):
        await storage.load([new_key()])
        return True
    return False


async def test_no_call_outlives_the_deadline_and_keeps_the_threads_that_others_need(scheme: str, own: MongoDB) -> None:
    async with opening(with_scheme(scheme, own.url, f"timeout={0.7 * pace()}")) as storage:
        assert isinstance(storage, MongoDBStorage)
        await eventually(lambda: serves(storage))
        own.pause()
        ends = await asyncio.gather(*(storage.load([new_key()]) for _ in range(100)), return_exceptions=True)
        assert {type(end) for end in ends} == {StorageUnavailable}

        async def ended() -> bool:
            return isinstance(storage, MongoDBStorage) and not storage._calls

        with within(2 * storage.timeout):  # each of the driver's own time-outs is as long, and motor has few threads
            await eventually(ended)
        own.resume()


async def test_a_restart_between_two_calls_is_not_felt(scheme: str, own: MongoDB) -> None:
    async with opening(with_scheme(scheme, own.url)) as storage:
        assert isinstance(storage, MongoDBStorage)
        version = await create(storage, key := new_key())
        own.kill()
        own.start()
        assert isinstance((await storage.save([Write(key, version, b"more", 60)]))[0], Saved)


async def test_a_server_that_is_down_at_open_is_no_error_and_gets_its_index_later(scheme: str, own: MongoDB) -> None:
    own.kill()
    async with opening(with_scheme(scheme, own.url, f"timeout={0.5 * pace()}")) as storage:
        assert isinstance(storage, MongoDBStorage)
        with pytest.raises(StorageUnavailable):
            await storage.load([new_key()])
        own.start()
        await eventually(lambda: serves(storage))
        async with any_client(own.url) as client:
            await eventually(lambda: has_ttl_index(client["sessions"]["sessions"]))


async def test_closing_while_the_server_hangs_ends_and_lets_the_loop_run(scheme: str, own: MongoDB) -> None:
    storage = storage_from_url(with_scheme(scheme, own.url, f"timeout={0.5 * pace()}"))
    assert isinstance(storage, MongoDBStorage)
    await storage.open()
    await eventually(lambda: serves(storage))
    own.pause()
    async with ticking():
        with within(3 + storage.timeout):
            await storage.close()


@pytest.fixture
def unreachable() -> Iterator[int]:
    """A port that does not answer who wants to connect, as its queue is full."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


async def test_closing_while_the_driver_connects_leaves_no_socket(scheme: str, unreachable: int) -> None:
    url = f"{scheme}://127.0.0.1:{unreachable}/?timeout=0.3&connectTimeoutMS=1500"
    with within(10):
        async with ticking(), opening(url) as storage:
            with pytest.raises(StorageUnavailable):
                await storage.load([new_key()])
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    gc.collect()  # what it finds open is a warning, and so a failure


async def test_an_index_that_cannot_be_made_is_told_and_nothing_else(
    scheme: str, shared: str, space: str, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await raw.create_index("e", expireAfterSeconds=77)
    async with opening(with_scheme(scheme, shared, f"collection={space}")) as storage:
        assert isinstance(storage, MongoDBStorage)
        await create(storage, new_key())

        async def told() -> bool:
            return "TTL index" in caplog.text

        await eventually(told)


# Cancellation


async def test_cancelled_calls_neither_leak_connections_nor_run_the_pool_dry(
    scheme: str, shared: str, space: str
) -> None:
    async with opening(with_scheme(scheme, shared, f"collection={space}&pool_size=2")) as storage:
        assert isinstance(storage, MongoDBStorage)
        for turn in range(40):
            tasks = [asyncio.create_task(storage.save([Write(new_key(), None, b"x", 60)])) for _ in range(4)]
            for _ in range(turn):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(create(storage, new_key()) for _ in range(10)))
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_a_cancelled_call_goes_on_to_its_end_and_is_waited_for_at_close(
    scheme: str, shared: str, space: str
) -> None:
    storage = storage_from_url(with_scheme(scheme, shared, f"collection={space}"))
    assert isinstance(storage, MongoDBStorage)
    await storage.open()
    assert storage._indexing is not None
    await storage._indexing
    task = asyncio.create_task(storage.save([Write(key := new_key(), None, b"x", 60)]))
    while not storage._calls:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await storage.close()
    assert not storage._calls
    await storage.open()
    assert (await storage.load([key]))[0] is not None
    await storage.close()


async def test_a_call_that_does_not_end_is_not_left_behind_at_close(scheme: str, proxy: Proxy, space: str) -> None:
    query = f"collection={space}&timeout=0.5&socketTimeoutMS=30000"
    stuck = asyncio.Event()
    storage = storage_from_url(with_scheme(scheme, proxy.url, query))
    assert isinstance(storage, MongoDBStorage)
    await storage.open()
    proxy.matching, proxy.lose_answers, proxy.meanwhile = FIND, 1, stuck.wait
    with pytest.raises(StorageUnavailable):
        await storage.load([new_key()])
    assert storage._calls
    with within(10):
        await storage.close()
    assert not storage._calls
    stuck.set()


# TLS and passwords


class TLSMongoDB(MongoDB):
    def prepare(self) -> None:
        super().prepare()
        make_certificates(self.folder)

    def command(self) -> list[str]:
        command = super().command()
        if command[0].endswith("mongod"):
            return [*command, "--tlsMode", "requireTLS", "--tlsCertificateKeyFile", str(self.folder / "server.both")]
        files = ("--tls-cert-file", str(self.folder / "server.pem"), "--tls-key-file", str(self.folder / "server.key"))
        return [*command, *files]


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[TLSMongoDB]:
    server = TLSMongoDB(tmp_path / "tls")
    server.start()
    yield server
    server.kill()


async def test_a_connection_is_encrypted_and_the_server_known(scheme: str, encrypted: TLSMongoDB) -> None:
    ca = encrypted.folder / "ca.pem"
    async with opening(with_scheme(scheme, encrypted.url, f"tls=true&tlsCAFile={ca}")) as storage:
        assert isinstance(storage, MongoDBStorage)
        await create(storage, key := new_key())
        assert (await storage.load([key]))[0] is not None


@pytest.mark.parametrize("query", ["tls=true&timeout=0.7", "timeout=0.7"])
async def test_an_unknown_server_or_a_plain_connection_is_an_outage(
    scheme: str, encrypted: TLSMongoDB, query: str
) -> None:
    async with opening(with_scheme(scheme, encrypted.url, query)) as storage:
        with pytest.raises(StorageUnavailable):
            await storage.load([new_key()])


class AuthMongoDB(MongoDB):
    auth = False

    def command(self) -> list[str]:
        return [*super().command(), *(("--auth",) if self.auth else ())]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[AuthMongoDB]:
    server = AuthMongoDB(tmp_path / "auth")
    server.start()
    client: MongoClient[dict[str, Any]]
    with MongoClient(server.url) as client:
        client["sessions"].command("createUser", "visitor", pwd="s@crêt", roles=["readWrite"])
    server.stop()
    server.auth = True
    server.start()
    yield server
    server.kill()


async def test_the_password_opens_and_another_is_an_outage_that_does_not_show_it(
    scheme: str, guarded: AuthMongoDB
) -> None:
    async with opening(with_scheme(scheme, f"x://visitor:s%40cr%C3%AAt@127.0.0.1:{guarded.port}/sessions")) as storage:
        assert isinstance(storage, MongoDBStorage)
        await create(storage, new_key())
        assert "cr" not in repr(storage).partition("127")[0]
    async with opening(with_scheme(scheme, f"x://visitor:geheim@127.0.0.1:{guarded.port}/sessions")) as storage:
        with pytest.raises(StorageUnavailable, match=r"(?i)authentication failed") as caught:
            await storage.load([new_key()])
        assert "geheim" not in f"{caught.value} {caught.value.__cause__} {storage!r}"
