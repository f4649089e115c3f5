"""A server that answers and will not serve: an ERROR at start that says what to check, and 503 until it is mended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from aiohttp_store import StorageRefused, StorageUnavailable, _log, get_session
from aiohttp_store.storages import storage_from_url

from ..conftest import PATIENCE, Serve, Servers
from ..support.certificates import make_certificates
from ..support.servers import Memcached, free_port

pytestmark = pytest.mark.no_cover  # the storages' own tests have the lines


async def count(request: web.Request) -> web.Response:
    session = await get_session(request)
    session["n"] = session.get("n", 0) + 1
    return web.json_response(session["n"])


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
    client = await serve(count, storage=storage)
    (said,) = [record.getMessage() for record in caplog.records if record.levelno >= 30]
    assert [record.levelname for record in caplog.records if record.getMessage() == said] == ["ERROR"]
    with pytest.raises(StorageRefused) as caught:
        await storage.check()
    assert str(caught.value) == said
    answer = await client.get("/count")
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
