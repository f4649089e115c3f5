"""A server that answers and will not serve: an ERROR at start that says what to check, and 503 until it is mended."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomysql  # type: ignore[import-untyped]
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from aiohttp_store import StorageRefused, StorageUnavailable, _log, get_session
from aiohttp_store.storages import storage_from_url

from ..conftest import PATIENCE, Serve, Servers
from ..support.certificates import make_certificates
from ..support.fake_mysql import OK, Login, greeting, mysql_that
from ..support.servers import MariaDB, Memcached, free_port
from .test_mysql import Private, ask, setting


async def count(request: web.Request) -> web.Response:
    session = await get_session(request)
    session["n"] = session.get("n", 0) + 1
    return web.json_response(session["n"])


async def leave(request: web.Request) -> web.Response:
    (await get_session(request)).invalidate()
    return web.Response()


class Tuned(Memcached):
    """A server with more arguments."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        super().__init__(folder)
        self.arguments = arguments

    def command(self) -> list[str]:
        return [*super().command(), *self.arguments]


@pytest.fixture
def tuned(tmp_path: Path) -> Iterator[Callable[..., Tuned]]:
    """Return a starter of private memcached servers."""
    started: list[Tuned] = []

    def start(*arguments: str) -> Tuned:
        server = Tuned(tmp_path / f"memcached{len(started)}", *arguments)
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.kill()


@asynccontextmanager
async def answering(answer: bytes, *, first: bool = False) -> AsyncIterator[int]:
    """Return the port of a server that answers each piece so, and says it `first` if it is one that does."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if first:
            writer.write(answer)
        while await reader.read(1 << 16):
            writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def of_another_protocol(name: str, servers: Servers) -> AsyncIterator[int]:
    """Return the port of a server that speaks what no storage here expects of it."""
    if name == "http":
        async with TestServer(web.Application()) as server:
            assert server.port is not None
            yield server.port
    elif name == "ssh":
        async with answering(b"SSH-2.0-OpenSSH_9.2\r\n", first=True) as port:
            yield port
    else:
        yield servers.own(name).port


async def refuses(serve: Serve, url: str, caplog: pytest.LogCaptureFixture) -> str:
    """See that an app starts over this URL, logs one error, answers 503; return the error."""
    storage = storage_from_url(url)
    client = await serve(count, leave, storage=storage)
    (said,) = [record.getMessage() for record in caplog.records if record.levelno >= 30]
    assert [record.levelname for record in caplog.records if record.getMessage() == said] == ["ERROR"]
    with pytest.raises(StorageRefused) as caught:
        await storage.check()
    assert str(caught.value) == said
    answer = await client.get("/count")
    if answer.status == 200:  # only the right to delete is missing
        answer = await client.get("/leave")
    assert answer.status == 503
    assert "Retry-After" in answer.headers
    return said


OTHER_PROTOCOLS = ["redis", "mysql", "http", "ssh"]


@pytest.mark.parametrize("spoken", OTHER_PROTOCOLS)
async def test_another_protocol_on_memcacheds_port_is_named_at_start(
    spoken: str, servers: Servers, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with of_another_protocol(spoken, servers) as port:
        said = await refuses(serve, f"memcached://127.0.0.1:{port}?timeout={PATIENCE}", caplog)
    assert "; check the host and the port" in said


@pytest.mark.parametrize(
    ("arguments", "parameters", "says"),
    [
        (["-C"], "", "start memcached without -C"),
        (["-Y", "{folder}/logins"], "", "start it without -Y"),
        (["-B", "binary"], "", "start it without -S and -B binary"),
        (["-Z", "-o", "ssl_chain_cert={folder}/server.both,ssl_key={folder}/server.both"], "", "add tls=true"),
        (["-Z", "-o", "ssl_chain_cert={folder}/server.both,ssl_key={folder}/server.both"], "&tls=true", "tls_ca"),
        ([], "&tls=true", "started with -Z"),
    ],
    ids=["without cas", "login", "binary", "TLS wanted", "unknown authority", "no TLS"],
)
async def test_a_memcached_that_lacks_what_is_needed_is_named_at_start(
    tuned: Callable[..., Tuned],
    tmp_path: Path,
    serve: Serve,
    caplog: pytest.LogCaptureFixture,
    arguments: list[str],
    parameters: str,
    says: str,
) -> None:
    make_certificates(tmp_path)
    (tmp_path / "logins").write_text("visitor:geheim\n")
    server = tuned(*(argument.format(folder=tmp_path) for argument in arguments))
    assert says in await refuses(serve, f"{server.url}?timeout=6{parameters}", caplog)


@pytest.mark.parametrize(
    "answer", [b"ERROR\r\n", b"CLIENT_ERROR unknown verb\r\n", b"SERVER_ERROR Command not supported\r\n"]
)
async def test_a_proxy_without_the_commands_is_named_at_start(
    answer: bytes, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with answering(answer) as port:
        said = await refuses(serve, f"memcached://127.0.0.1:{port}?timeout={PATIENCE}", caplog)
    assert "name the memcached nodes, not a proxy" in said


@pytest.mark.parametrize("answer", [b"ERROR Too many open connections\r\n", b"SERVER_ERROR out of memory\r\n"])
async def test_a_memcached_that_has_no_room_is_an_outage_and_no_refusal(answer: bytes) -> None:
    async with answering(answer) as port:
        storage = storage_from_url(f"memcached://127.0.0.1:{port}?timeout={PATIENCE}")
        await storage.open()
        with pytest.raises(StorageUnavailable) as caught:
            await storage.check()
        assert type(caught.value) is StorageUnavailable
        await storage.close()


async def test_each_memcached_node_is_tried_at_start(
    servers: Servers, tuned: Callable[..., Tuned], caplog: pytest.LogCaptureFixture
) -> None:
    good, bad, down = servers.own("memcached").port, tuned("-C").port, free_port()
    hosts = ",".join(f"127.0.0.1:{port}" for port in (good, down, bad))
    storage = storage_from_url(f"memcached://{hosts}?timeout={PATIENCE}")
    await storage.open()
    levels = {record.levelname: record.getMessage() for record in caplog.records}
    assert set(levels) == {"ERROR", "WARNING"}
    assert str(bad) in levels["ERROR"]
    assert str(down) in levels["WARNING"]
    with pytest.raises(StorageRefused, match=f"{bad}.*without -C"):
        await storage.check()
    await storage.close()


async def test_a_memcached_that_is_mended_serves_at_the_next_request(
    tuned: Callable[..., Tuned], serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    server = tuned("-C")
    client = await serve(count, storage=f"{server.url}?timeout={PATIENCE}")
    assert (await client.get("/count")).status == 503
    server.kill()
    server.arguments = ()
    server.start()
    assert (await client.get("/count")).status == 200
    server.kill()
    server.arguments = ("-C",)
    server.start()
    _log._last.clear()
    caplog.clear()
    assert (await client.get("/count")).status == 503
    assert [record.levelname for record in caplog.records] == ["ERROR"]


# MySQL


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Private]:
    """A server with TLS, of which an account may demand it."""
    started = Private(tmp_path_factory.mktemp("refusing") / "mysql")
    started.start()
    yield started
    started.kill()


@pytest.fixture
async def root(server: Private) -> AsyncIterator[Any]:
    connection = await aiomysql.connect(host="127.0.0.1", port=server.port, user="root", db="sessions", autocommit=True)
    yield connection
    await connection.ensure_closed()


@pytest.fixture
def table() -> str:
    return f"t{secrets.token_hex(6)}"


def as_user(server: MariaDB, user: str, database: str = "sessions", **parameters: object) -> str:
    """Return the URL of a user without a password, unless that stands in `user` as well."""
    query = "&".join(f"{name}={value}" for name, value in {"timeout": PATIENCE, **parameters}.items())
    return f"mysql://{user}@127.0.0.1:{server.port}/{database}?{query}"


@contextlib.asynccontextmanager
async def user_of(root: Any, how: str = "", granted: str = "ALL ON sessions.*") -> AsyncIterator[str]:
    """Make a user for the block."""
    name = f"u{secrets.token_hex(4)}"
    await ask(root, f"CREATE USER {name}@'%' {how}")
    if granted:
        await ask(root, f"GRANT {granted} TO {name}@'%'")
    try:
        yield name
    finally:
        await ask(root, f"DROP USER {name}@'%'")


async def set_up_table(server: MariaDB, table: str) -> None:
    storage = storage_from_url(f"{server.url}?table={table}&timeout={PATIENCE}")
    await storage.open()
    await storage.close()


@pytest.mark.parametrize("right", ["SELECT", "INSERT", "UPDATE", "DELETE"])
async def test_each_right_on_the_table_that_is_missing_is_named_at_start(
    server: Private, root: Any, table: str, serve: Serve, caplog: pytest.LogCaptureFixture, right: str
) -> None:
    await set_up_table(server, table)
    rights = ", ".join({"SELECT", "INSERT", "UPDATE", "DELETE"} - {right})
    async with user_of(root, granted=f"{rights} ON sessions.{table}") as user:
        said = await refuses(serve, as_user(server, user, table=table), caplog)
    assert right in said
    assert "grant SELECT, INSERT, UPDATE and DELETE on the table" in said


async def test_a_missing_right_to_create_the_table_is_named_at_start(
    server: Private, root: Any, table: str, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with user_of(root, granted="SELECT, INSERT, UPDATE, DELETE ON sessions.*") as user:
        said = await refuses(serve, as_user(server, user, table=table), caplog)
    assert "CREATE command denied" in said
    assert "CREATE if it is to be made" in said


async def test_a_table_that_must_be_there_and_is_not_is_named_at_start(
    server: Private, table: str, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    said = await refuses(serve, f"{server.url}?table={table}&create_table=false&timeout={PATIENCE}", caplog)
    assert "the table is missing, and create_table=false; make it" in said


@pytest.mark.parametrize(
    ("how", "granted", "parameters", "says"),
    [
        ("IDENTIFIED BY 'another'", "ALL ON sessions.*", {}, "check the user, the password"),
        ("REQUIRE SSL", "ALL ON sessions.*", {}, "an account that demands TLS needs tls=true"),
        ("ACCOUNT LOCK", "ALL ON sessions.*", {}, "unlock the account"),
        ("PASSWORD EXPIRE", "ALL ON sessions.*", {}, "set a new password"),
        ("IDENTIFIED VIA ed25519 USING PASSWORD('x')", "ALL ON sessions.*", {}, "mysql_native_password"),
        ("IDENTIFIED VIA unix_socket", "ALL ON sessions.*", {}, "check the user, the password"),
        ("", "", {}, "check its name and what the user is granted on it"),
        ("", "ALL ON *.*", {"database": "nowhere"}, "create the database"),
        ("", "ALL ON sessions.*", {"tls": "true"}, "tls_ca"),
    ],
    ids=["password", "TLS", "locked", "expired", "ed25519", "unix_socket", "no right", "no database", "authority"],
)
async def test_a_login_that_mysql_refuses_is_named_at_start(
    server: Private,
    root: Any,
    serve: Serve,
    caplog: pytest.LogCaptureFixture,
    how: str,
    granted: str,
    parameters: dict[str, str],
    says: str,
) -> None:
    if "ed25519" in how:
        await ask(root, "INSTALL SONAME 'auth_ed25519'")
    try:
        async with user_of(root, how, granted) as user:
            said = await refuses(serve, as_user(server, user, **parameters), caplog)
    finally:
        if "ed25519" in how:
            await ask(root, "UNINSTALL SONAME 'auth_ed25519'")
    assert says in said


async def test_a_server_that_demands_tls_is_named_at_start(
    server: Private, root: Any, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with setting(root, "require_secure_transport", "1"):
        assert "needs tls=true" in await refuses(serve, f"{server.url}?timeout={PATIENCE}", caplog)


async def test_a_server_without_tls_is_named_at_start(
    servers: Servers, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    said = await refuses(serve, f"{servers.own('mysql').url}?timeout={PATIENCE}&tls=true", caplog)
    assert "the server offers TLS" in said


@pytest.mark.parametrize("spoken", ["redis", "memcached", "http", "ssh", "mongodb", "postgresql"])
async def test_another_protocol_on_mysqls_port_is_named_at_start(
    spoken: str, servers: Servers, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with of_another_protocol(spoken, servers) as port:
        said = await refuses(serve, f"mysql://visitor:geheim@127.0.0.1:{port}/sessions?timeout=3", caplog)
    assert "check that host and port are those of a MySQL or MariaDB server" in said
    assert "geheim" not in said


async def test_a_mysql_server_that_greets_too_late_is_an_outage() -> None:
    words = greeting("mysql_native_password")
    async with answering(len(words).to_bytes(3, "little") + b"\0" + words) as port:  # to what it is asked in the end
        storage = storage_from_url(f"mysql://visitor:geheim@127.0.0.1:{port}/sessions?timeout=2")
        await storage.open()
        with pytest.raises(StorageUnavailable) as caught:
            await storage.check()
        assert not isinstance(caught.value, StorageRefused)
        await storage.close()


def error(number: int) -> bytes:
    return b"\xff" + number.to_bytes(2, "little") + b"#HY000what the server says"


REFUSALS = [
    *(1044, 1045, 1049, 1064, 1129, 1130, 1142, 1143, 1193, 1227, 1235, 1251, 1275, 1286, 1305, 1370, 1524, 1665, 1698),
    *(1820, 1862, 3118, 3159, 3955, 4151),
]
OUTAGES = [
    1040,
    1041,
    1053,
    1080,
    1105,
    1152,
    1158,
    1159,
    1161,
    1203,
    1226,
    1290,
    1317,
    1792,
    1836,
    1969,
    3032,
    9001,
]


@pytest.mark.parametrize("said", ["first", "after the login", "to a statement"])
async def test_a_refusal_of_mysql_is_known_by_its_number(said: str) -> None:
    for number in [*REFUSALS, *OUTAGES]:

        async def say(login: Login, number: int = number) -> None:
            if said != "first":
                await login.say(greeting("mysql_native_password"))
                await login.hear()
            if said == "to a statement":
                await login.say(OK)
                while b"SELECT" not in await login.hear():
                    await login.say(OK)
            await login.say(error(number))

        async with mysql_that(say) as (port, _):
            storage = storage_from_url(f"mysql://u:geheim@127.0.0.1:{port}/db?timeout=4")
            await storage.open()
            with pytest.raises(StorageUnavailable) as caught:
                await storage.check()
            assert (type(caught.value) is StorageRefused) == (number in REFUSALS), number
            assert "geheim" not in str(caught.value)
            await storage.close()


async def test_mysqls_other_protocol_is_named_at_start(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async with answering(b"\x05\0\0\0\x0b\x08\x05\x1a\0", first=True) as port:
        said = await refuses(serve, f"mysql://127.0.0.1:{port}/sessions?timeout={PATIENCE}", caplog)
    assert "check that host and port" in said


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["binlog_format='STATEMENT'"], "binlog_format=ROW"),
        (["net_buffer_length=1024", "max_allowed_packet=2048"], "raise it to 64K"),
    ],
)
async def test_a_setting_with_which_nothing_can_be_written_is_named_at_start(
    tmp_path: Path, serve: Serve, caplog: pytest.LogCaptureFixture, settings: list[str], says: str
) -> None:
    class Logging(MariaDB):
        def command(self) -> list[str]:
            return [*super().command(), "--log-bin=log", "--server-id=1"]

    started = Logging(tmp_path / "mysql")
    started.start()
    try:
        direct = await aiomysql.connect(host="127.0.0.1", port=started.port, user="root", autocommit=True)
        await set_up_table(started, "sessions")
        for each in settings:
            await ask(direct, f"SET GLOBAL {each}")
        await direct.ensure_closed()
        assert says in await refuses(serve, f"{started.url}?timeout={PATIENCE}", caplog)
    finally:
        started.kill()


async def test_a_right_that_is_taken_away_refuses_until_it_is_given_back(
    server: Private, root: Any, table: str, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    await set_up_table(server, table)
    async with user_of(root, granted=f"SELECT, INSERT, UPDATE, DELETE ON sessions.{table}") as user:
        client = await serve(count, storage=as_user(server, user, table=table))
        assert (await client.get("/count")).status == 200
        assert not caplog.records
        for right in ("SELECT", "UPDATE"):
            caplog.clear()
            _log._last.clear()
            await ask(root, f"REVOKE {right} ON sessions.{table} FROM {user}@'%'")
            answer = await client.get("/count")
            assert answer.status == 503
            assert "Retry-After" in answer.headers
            (said,) = caplog.records
            assert said.levelname == "ERROR"
            assert f"{right} command denied" in said.getMessage()
            await ask(root, f"GRANT {right} ON sessions.{table} TO {user}@'%'")
            assert (await client.get("/count")).status == 200


# MySQL on several hosts


async def test_one_host_that_refuses_while_another_serves_is_no_refusal(
    server: Private, servers: Servers, root: Any, table: str, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """The user exists on the second host only."""
    async with user_of(root) as user:
        hosts = f"127.0.0.1:{servers.own('mysql').port},127.0.0.1:{server.port}"
        client = await serve(count, storage=f"mysql://{user}@{hosts}/sessions?table={table}&timeout={PATIENCE}")
        assert (await client.get("/count")).status == 200
    assert not [record for record in caplog.records if record.levelno >= 30]


async def test_a_host_that_begins_to_refuse_is_left_for_one_that_serves(
    server: Private, servers: Servers, root: Any, table: str, serve: Serve
) -> None:
    other = servers.own("mysql")
    second = await aiomysql.connect(host="127.0.0.1", port=other.port, user="root", autocommit=True)
    async with user_of(root) as user:
        await ask(second, f"CREATE USER {user}@'%'")
        await ask(second, f"GRANT ALL ON sessions.* TO {user}@'%'")
        hosts = f"127.0.0.1:{server.port},127.0.0.1:{other.port}"
        client = await serve(count, storage=f"mysql://{user}@{hosts}/sessions?table={table}&timeout={PATIENCE}")
        assert (await client.get("/count")).status == 200
        await ask(root, f"ALTER USER {user}@'%' ACCOUNT LOCK")
        for (number,) in await ask(root, f"SELECT ID FROM information_schema.PROCESSLIST WHERE USER='{user}'"):
            await ask(root, f"KILL {number}")
        await client.get("/count")  # the table is made there after the first call
        assert (await client.get("/count")).status == 200
        await ask(second, f"DROP USER {user}@'%'")
    await second.ensure_closed()


async def test_hosts_that_all_refuse_are_a_refusal_that_says_what_to_check_of_each(
    server: Private, servers: Servers, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    ports = server.port, servers.own("mysql").port
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    said = await refuses(serve, f"mysql://nobody:geheim@{hosts}/sessions?timeout={PATIENCE}", caplog)
    assert all(f"127.0.0.1:{port}: " in said for port in ports)
    assert said.count("check the user, the password") == 2
    assert "geheim" not in said


async def test_a_refusal_beside_a_host_that_is_down_is_an_outage(server: Private) -> None:
    storage = storage_from_url(
        f"mysql://nobody@127.0.0.1:{server.port},127.0.0.1:{free_port()}/sessions?timeout={PATIENCE}"
    )
    await storage.open()
    with pytest.raises(StorageUnavailable, match="Access denied.*check the user") as caught:
        await storage.check()
    assert type(caught.value) is StorageUnavailable
    await storage.close()
