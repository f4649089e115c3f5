"""What a Redis that answers, and will not serve, is said to lack; and replies that are none."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis as Client
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from aiohttp_store import StorageRefused, StorageUnavailable, Write, get_storage
from aiohttp_store.storages import storage_from_url
from aiohttp_store.storages.redis import RedisStorage

from ..conftest import PATIENCE, Serve, Servers, opening
from ..support.certificates import make_certificates
from ..support.one_key import create, new_key
from ..support.servers import Redis, RedisCluster, Sentinel
from ..support.visitors import count
from ..support.wrong_server import redis, saying, serving

COMMANDS = ("get", "set", "del", "mget", "eval", "evalsha")


class TLSOnly(Redis):
    """A server that takes TLS only; `clients` says whether it asks for a client's certificate."""

    clients = "no"

    def prepare(self) -> None:
        make_certificates(self.folder)

    def command(self) -> list[str]:
        return [
            *(*super().command(), "--port", "0", "--tls-port", str(self.port)),
            *("--tls-cert-file", str(self.folder / "server.pem"), "--tls-key-file", str(self.folder / "server.key")),
            *("--tls-ca-cert-file", str(self.folder / "ca.pem"), "--tls-auth-clients", self.clients),
        ]


class TLSForBoth(TLSOnly):
    clients = "yes"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A server with users, each of whom lacks something; nobody changes it."""
    with running(Redis(tmp_path_factory.mktemp("refusing") / "redis")) as server:
        yield server


@pytest.fixture(scope="module")
def users(server: Redis) -> None:
    for command in COMMANDS:
        server.ask(f"ACL SETUSER no-{command} on >p ~* +@all -{command}")
    server.ask("ACL SETUSER keyless on >p ~other:* +@all")
    server.ask("ACL SETUSER barred off >p ~* +@all")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "server"


@contextmanager
def running(server: Redis) -> Iterator[Redis]:
    server.start()
    try:
        yield server
    finally:
        server.kill()


async def refuses(serve: Serve, caplog: pytest.LogCaptureFixture, url: str, *said: str) -> str:
    """Expect an app that starts, says why its storage will not serve, and answers 503; return what it says."""
    caplog.clear()
    client = await serve(count, storage=f"{url}{'&' if '?' in url else '?'}timeout={PATIENCE / 10}")
    (record,) = [record for record in caplog.records if record.name == "aiohttp_store"]
    assert record.levelname == "ERROR", record.getMessage()
    for words in said:
        assert words in record.getMessage()
    storage = get_storage(client.app)
    with pytest.raises(StorageRefused):
        await storage.check()
    response = await client.get("/count")
    assert (response.status, "Retry-After" in response.headers) == (503, True)
    return record.getMessage()


# Rights


@pytest.mark.usefixtures("users")
@pytest.mark.parametrize("command", COMMANDS)
async def test_a_user_without_the_right_to_a_command_is_told_which_are_needed(
    server: Redis, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    storage = storage_from_url(f"redis://no-{command}:p@127.0.0.1:{server.port}/0?prefix={new_key()}")
    await storage.open()
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "check the user's rights (ACL): GET, SET, DEL, MGET, EVAL and EVALSHA" in record.getMessage()
    with pytest.raises(StorageRefused, match="rights"):
        await storage.check()
    await storage.close()


@pytest.mark.usefixtures("users")
async def test_a_user_without_the_right_to_the_keys_is_told_the_prefix(
    server: Redis, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    await refuses(serve, caplog, f"redis://keyless:p@127.0.0.1:{server.port}/0", "every key that begins with prefix=")


@pytest.mark.usefixtures("users")
@pytest.mark.parametrize("login", ["keyless:wrong", "barred:p", "nobody:p", ":p"])
async def test_a_wrong_login_is_an_error_at_the_start(
    server: Redis, serve: Serve, caplog: pytest.LogCaptureFixture, login: str
) -> None:
    await refuses(serve, caplog, f"redis://{login}@127.0.0.1:{server.port}/0", "check the user and the password")
    (answered,) = [record for record in caplog.records if "answered 503" in record.getMessage()]
    assert answered.levelname == "ERROR"


async def test_a_database_that_the_server_does_not_have_is_an_error_at_the_start(
    server: Redis, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    await refuses(serve, caplog, f"redis://127.0.0.1:{server.port}/99", "check the number of the database")


# Commands


@pytest.mark.parametrize("command", ["EVALSHA", "EVAL", "MGET", "DEL", "SET"])
async def test_a_server_that_lacks_a_command_is_said_to_and_no_session_is_quoted(
    folder: Path, caplog: pytest.LogCaptureFixture, command: str
) -> None:
    with running(Redis(folder, "--rename-command", command, "")) as server:
        storage = storage_from_url(server.url)
        await storage.open()
        (record,) = caplog.records
        assert record.levelname == "ERROR"
        assert "it must know the commands GET, SET, DEL, MGET, EVAL and EVALSHA" in record.getMessage()
        if command != "MGET":
            with pytest.raises(StorageUnavailable) as caught:
                await storage.save([Write(new_key(), None, b"secret data", 60)])
                await storage.delete([new_key()])
            assert isinstance(caught.value, StorageRefused)
            assert "secret" not in str(caught.value)
        await storage.close()


async def test_what_an_own_client_is_told_of_unknown_commands_quotes_no_session(folder: Path) -> None:
    with running(Redis(folder, "--rename-command", "EVALSHA", "")) as server:
        async with Client(host="127.0.0.1", port=server.port) as client:
            with pytest.raises(StorageRefused) as caught:
                await RedisStorage(client).save([Write(new_key(), None, b"secret data", 60)])
            assert "secret" not in str(caught.value)


# Other servers


@pytest.fixture
def cluster(servers: Servers) -> RedisCluster:
    found = servers.own("redis_cluster")
    assert isinstance(found, RedisCluster)
    return found


@pytest.mark.parametrize("path", ["0", "3", "0?prefix={a}"])
async def test_a_node_of_a_cluster_names_the_scheme_for_it(
    cluster: RedisCluster, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    async with opening(f"redis://127.0.0.1:{cluster.nodes[0].port}/{path}") as storage:
        (record,) = caplog.records
        assert record.levelname == "ERROR"
        assert "redis+cluster://" in record.getMessage()
        with pytest.raises(StorageRefused, match=r"redis\+cluster://"):
            await storage.check()
        if "prefix" not in path:
            with pytest.raises(StorageRefused, match=r"redis\+cluster://"):
                await storage.load([new_key() for _ in range(20)])


async def test_a_plain_server_names_the_scheme_for_it_to_a_cluster(
    server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with opening(f"redis+cluster://127.0.0.1:{server.port}") as storage:
        (record,) = caplog.records
        assert record.levelname == "ERROR"
        assert "it is not a node of a cluster: use redis://" in record.getMessage()
        with pytest.raises(StorageRefused):
            await storage.check()


async def test_a_cluster_that_refuses_the_login_says_so_at_the_start(
    cluster: RedisCluster, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"redis+cluster://a:b@127.0.0.1:{cluster.nodes[0].port}"
    await refuses(serve, caplog, url, "check the user and the password")


@pytest.fixture
def sentinel(server: Redis, folder: Path) -> Iterator[Redis]:
    with running(Sentinel(folder, server.port)) as started:
        yield started


@pytest.fixture
def locked(server: Redis, folder: Path) -> Iterator[Redis]:
    with running(Sentinel(folder, server.port, "requirepass x")) as started:
        yield started


async def test_a_sentinels_port_names_the_scheme_for_it(
    sentinel: Redis, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    for scheme in ("redis", "redis+cluster"):
        await refuses(serve, caplog, f"{scheme}://127.0.0.1:{sentinel.port}", "use redis+sentinel://")


async def test_a_service_that_no_sentinel_watches_and_its_wrong_login_are_errors_at_the_start(
    sentinel: Redis, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    base = f"127.0.0.1:{sentinel.port}"
    await refuses(serve, caplog, f"redis+sentinel://{base}/other", "no sentinel watches 'other'", "the service")
    await refuses(serve, caplog, f"redis+sentinel://a:b@{base}/service", "check the user and the password")
    await refuses(serve, caplog, f"redis+sentinel://{base}/service/99", "check the number of the database")


@pytest.mark.parametrize("query", ["", "?sentinel_password=y"])
async def test_a_sentinel_that_wants_a_password_is_not_taken_for_one_that_is_down(
    locked: Redis, serve: Serve, caplog: pytest.LogCaptureFixture, query: str
) -> None:
    url = f"redis+sentinel://127.0.0.1:{locked.port}/service{query}"
    await refuses(serve, caplog, url, "check the user and the password")


async def test_a_server_in_place_of_the_sentinels_is_named(
    server: Redis, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    await refuses(
        serve, caplog, f"redis+sentinel://127.0.0.1:{server.port}/service", "it is not a sentinel", "redis://"
    )


SCHEMES = {"redis": "/0", "redis+cluster": "", "redis+sentinel": "/service/0"}


@pytest.mark.parametrize("name", ["memcached", "mysql"])
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_port_of_another_server_is_named_and_not_taken_for_an_outage(
    servers: Servers, serve: Serve, caplog: pytest.LogCaptureFixture, scheme: str, name: str
) -> None:
    url = f"{scheme}://127.0.0.1:{servers.own(name).port}{SCHEMES[scheme]}"
    await refuses(serve, caplog, url, "Redis's protocol", "check the host and the port")


@pytest.mark.parametrize("scheme", [*SCHEMES, "rediss"])
async def test_a_web_servers_port_is_named_and_not_taken_for_an_outage(
    serve: Serve, caplog: pytest.LogCaptureFixture, scheme: str
) -> None:
    async with serving(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        said = await refuses(serve, caplog, f"{scheme}://127.0.0.1:{port}{SCHEMES.get(scheme, '/0')}")
        assert "protocol" in said or "does not speak TLS" in said


async def test_a_server_that_demands_tls_is_said_to(
    folder: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    with running(TLSOnly(folder)) as server:
        for scheme, path in SCHEMES.items():
            await refuses(serve, caplog, f"{scheme}://127.0.0.1:{server.port}{path}", "demands TLS; write tls=true")
        await refuses(serve, caplog, f"rediss://127.0.0.1:{server.port}/0", "check tls_ca=")
        await refuses(serve, caplog, f"rediss://localhost:{server.port}/0?tls_ca={folder}/ca.pem", "check tls_ca=")


async def test_a_server_that_demands_a_certificate_of_the_client_is_said_to(
    folder: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    with running(TLSForBoth(folder)) as server:
        url = f"rediss://127.0.0.1:{server.port}/0?tls_ca={folder}/ca.pem"
        await refuses(serve, caplog, url, "CERTIFICATE_REQUIRED", "; check ")


async def test_a_server_that_does_not_speak_tls_is_said_not_to(
    server: Redis, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    await refuses(serve, caplog, f"rediss://127.0.0.1:{server.port}/0", "does not speak TLS")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("ERR @user_script: 5: The user executing the script can't run this command or subcommand", "rights"),
        ("ERR ACL failure in script: User u has no permissions to run the 'get' command", "rights"),
        ("ERR @user_script: 16: -NOPERM this user has no permissions to run the 'set' command", "rights"),
        ("ERR unknown command `EVALSHA`, with args beginning with: `secret`", "must know the commands"),
        ("ERR Unknown command called from script script: f, on @user_script:16.", "must know the commands"),
        ("ERR @user_script: 16: Unknown Redis command called from Lua script", "must know the commands"),
        ("ERR invalid DB index", "number of the database"),
        ("NOAUTH Authentication required.", "the user and the password"),
        ("ERR invalid password", "the user and the password"),
        ("ERR Client sent AUTH, but no password is set", "the user and the password"),
        ("DENIED Redis is running in protected mode", "set a password"),
        ("CROSSSLOT Keys in request don't hash to the same slot", "redis+cluster://"),
        ("MOVED 1 127.0.0.1:1", "redis+cluster://"),
    ],
)
async def test_the_words_of_other_versions_are_refusals_too(
    error: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        serving(redis(lambda _: f"-{error}\r\n".encode())) as port,
        opening(f"redis://127.0.0.1:{port}/0") as storage,
    ):
        (record,) = [record for record in caplog.records if record.name == "aiohttp_store"]
        assert (record.levelname, "secret" in record.getMessage()) == ("ERROR", False)
        with pytest.raises(StorageRefused, match=re.escape(said)):
            await storage.load([new_key()])


# Outages stay outages


@pytest.mark.parametrize(
    "error",
    [
        b"-READONLY You can't write against a read only replica.",
        b"-LOADING Redis is loading the dataset in memory",
        b"-MASTERDOWN Link with MASTER is down",
        b"-CLUSTERDOWN The cluster is down",
        b"-NOREPLICAS Not enough good replicas to write.",
        b"-BUSY Redis is busy running a script.",
        b"-OOM command not allowed when used memory > 'maxmemory'.",
        b"-MISCONF Redis is configured to save RDB snapshots",
        b"-ERR max number of clients reached",
        b"-TRYAGAIN Multiple keys request during rehashing of slot",
        b"-ERR @user_script: 16: -READONLY You can't write against a read only replica.",
    ],
)
async def test_what_passes_is_an_outage_and_no_refusal(error: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(redis(lambda _: error + b"\r\n")) as port, opening(f"redis://127.0.0.1:{port}/0") as storage:
        assert {record.levelname for record in caplog.records if record.name == "aiohttp_store"} == {"WARNING"}
        with pytest.raises(StorageUnavailable) as caught:
            await storage.save([Write(new_key(), None, b"data", 60)])
        assert not isinstance(caught.value, StorageRefused)


async def test_a_replicas_answer_to_a_script_before_redis_7_sends_the_next_call_to_the_new_primary() -> None:
    """Behind one name: the old primary answers first, and the new one every later connection."""
    connections: list[int] = []

    async def old_then_new(reader: Any, writer: Any) -> None:
        connections.append(len(connections))
        is_old = connections[-1] < 1

        def reply_to(command: bytes) -> bytes:
            if command == b"EVALSHA" and is_old:
                return b"-ERR @user_script: 16: -READONLY You can't write against a read only replica.\r\n"
            return {b"EVALSHA": b"*1\r\n:1\r\n"}.get(command, b"-ERR not here\r\n")

        await redis(reply_to)(reader, writer)

    async with serving(old_then_new) as port:
        storage = storage_from_url(f"redis://127.0.0.1:{port}/0?timeout={PATIENCE}")
        assert isinstance(storage, RedisStorage)
        await storage.open()
        await create(storage, new_key())
        await storage.close()


# Proxies that shard


async def test_a_proxy_that_spreads_keys_over_servers_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """A batch goes to the server of its first key, and each key is looked for on its own: a half is found."""
    sixteen = b"*16\r\n"
    replies = {
        b"INFO": b"-ERR unknown command\r\n",
        b"EVAL": sixteen + b":1\r\n" * 16,
        b"EVALSHA": sixteen + b":0\r\n" * 16,
        b"MGET": sixteen + b"$8\r\n12345678\r\n" * 8 + b"$-1\r\n" * 8,
        b"DEL": b":8\r\n",
    }
    async with serving(redis(replies.__getitem__)) as port, opening(f"redis://127.0.0.1:{port}/0") as storage:
        (record,) = caplog.records
        assert record.levelname == "ERROR"
        assert "has lost 8 of 16 records" in record.getMessage()
        assert "redis+cluster://" in record.getMessage()
        with pytest.raises(StorageRefused):
            await storage.check()


# Replies that are none

WRONG = [
    *(b"+OK", b"+", b":7", b":x", b":99999999999999999999", b"$-1", b"$abc", b"$-7", b"*-1", b"*0", b"*x", b"*-5"),
    *(b"$0\r\n", b"$3\r\nabc", b"*1\r\n$3\r\nabc", b"*1\r\n:5", b"*1\r\n*1\r\n:1", b"*2\r\n$-1\r\n$-1", b"*1\r\n+OK"),
    *(
        b"*1\r\n-ERR no",
        b"-",
        b"-ERR",
        b"-MOVED",
        b"-MOVED x",
        b"-MOVED 1 h",
        b"-MOVED 1 h:x",
        b"-ASK 1 h",
        b"-\xff\xfe",
    ),
    *(b"_", b"#t", b"#x", b",nan", b"(12", b"%1\r\n+a\r\n:1", b">2\r\n+a\r\n+b", b"!3\r\nERR", b"=7\r\ntxt:abc"),
    *(b"\xff\xfe", b"", b"\x00", b"*1\r\n" * 3000 + b":1", b"*1\r\n$-1", b"*3\r\n:0\r\n:16383\r\n:1"),
    *(b"*1\r\n*3\r\n:0\r\n:99999\r\n*2\r\n$1\r\nh\r\n:1", b"*1\r\n*3\r\n:0\r\n:1\r\n*2\r\n$1\r\nh\r\n:99999"),
]


@pytest.mark.parametrize("reply", WRONG, ids=lambda reply: repr(reply[:20]))
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_reply_that_is_none_is_a_503_and_no_500_and_the_app_starts(
    serve: Serve, reply: bytes, scheme: str
) -> None:
    async with serving(redis(lambda _: reply + b"\r\n")) as port:
        client = await serve(count, storage=f"{scheme}://127.0.0.1:{port}{SCHEMES[scheme]}?timeout=1")
        assert (await client.get("/count")).status == 503
        headers = {"Cookie": f"session={new_key()}"}
        assert (await client.get("/count", headers=headers)).status == 503


@pytest.mark.parametrize("info", WRONG, ids=lambda reply: repr(reply[:20]))
async def test_a_wrong_reply_to_info_keeps_no_app_from_starting(serve: Serve, info: bytes) -> None:
    replies = {b"INFO": info + b"\r\n", b"EVALSHA": b"*1\r\n:1\r\n", b"MGET": b"*1\r\n$-1\r\n"}
    async with serving(redis(lambda command: replies.get(command, b":1\r\n"))) as port:
        client = await serve(count, storage=f"redis://127.0.0.1:{port}/0?timeout=1")
        assert (await client.get("/count")).status == 200


@pytest.fixture
async def clients(servers: Servers) -> AsyncIterator[Any]:
    async with Client(host="127.0.0.1", port=servers.own("redis").port) as client:
        yield client


@pytest.mark.parametrize("reply", WRONG[::3], ids=lambda reply: repr(reply[:20]))
@pytest.mark.parametrize("settings", [{}, {"protocol": 3}, {"protocol": 2}])
async def test_a_wrong_reply_to_a_users_client_is_an_outage_too(reply: bytes, settings: dict[str, Any]) -> None:
    async with (
        serving(redis(lambda _: reply + b"\r\n")) as port,
        Client(host="127.0.0.1", port=port, socket_timeout=1, retry=Retry(NoBackoff(), 0), **settings) as client,
    ):
        storage = RedisStorage(client)
        await storage.open()
        for verb in (storage.save([Write(new_key(), None, b"data", 60)]), storage.load([new_key(), new_key()])):
            with pytest.raises(StorageUnavailable):
                await verb
