"""What is particular to memcached and to aiomcache; the contract itself is in test_storages.py."""

from __future__ import annotations

import asyncio
import secrets
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiomcache
import pytest

from aiohttp_store import ConfigError, Conflict, Gone, Saved, SessionTooLarge, StorageUnavailable, Write
from aiohttp_store.storages import storage_from_url
from aiohttp_store.storages.memcached import MemcachedOptions, MemcachedStorage

from ..conftest import opening
from ..support.certificates import make_certificates
from ..support.one_key import create, load, new_key, save
from ..support.proxy import Proxy
from ..support.servers import Memcached, free_port
from ..support.ticking import ticking
from ..support.timing import pace, until, within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path

    from ..conftest import Servers

DAY = 86_400


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[MemcachedStorage]:
    async with opening(url) as storage:
        assert isinstance(storage, MemcachedStorage)
        yield storage


@pytest.fixture
def shared(servers: Servers) -> Memcached:
    server = servers.own("memcached")
    assert isinstance(server, Memcached)
    return server


@pytest.fixture
async def storage(shared: Memcached) -> AsyncIterator[MemcachedStorage]:
    async with opened(f"{shared.url}?prefix=t{secrets.token_hex(6)}:") as storage:
        yield storage


@pytest.fixture
async def proxy(shared: Memcached) -> AsyncIterator[Proxy]:
    async with Proxy(shared.url) as proxy:
        yield proxy


class Tuned(Memcached):
    """A server with more arguments."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        super().__init__(folder)
        self.arguments = arguments

    def command(self) -> list[str]:
        return [*super().command(), *self.arguments]


@pytest.fixture
def tuned(tmp_path: Path) -> Iterator[Callable[..., Tuned]]:
    """Give a starter of private servers, which may be killed and paused."""
    started: list[Tuned] = []

    def start(*arguments: str) -> Tuned:
        server = Tuned(tmp_path / f"memcached{len(started)}", *arguments)
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.kill()


def ask(server: Memcached, request: bytes, end: bytes = b"\r\n") -> bytes:
    """Talk to the server behind the storage's back."""
    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        connection.sendall(request)
        answer = b""
        while not answer.endswith(end):
            more = connection.recv(1 << 16)
            assert more, answer
            answer += more
        return answer


def open_connections(server: Memcached) -> int:
    for line in ask(server, b"stats\r\n", b"END\r\n").splitlines():
        if line.startswith(b"STAT curr_connections "):
            return int(line.split()[2]) - 1  # ours
    raise AssertionError


# Round trips and versions


async def test_a_batch_is_one_round_trip(proxy: Proxy) -> None:
    keys = [new_key() for _ in range(32)]
    async with opened(proxy.url) as storage:
        await create(storage, new_key())  # the first save also asks for the server's limit
        proxy.requests.clear()
        await storage.save([Write(key, None, b"one", 60) for key in keys])
        assert len(proxy.requests) == 1
        records = await storage.load(keys)
        assert len(proxy.requests) == 2
        outcomes = await storage.save(
            [Write(key, record.version, b"two", 60) for key, record in zip(keys, records, strict=True) if record]
        )
        assert all(isinstance(outcome, Saved) for outcome in outcomes)
        assert len(proxy.requests) == 3
        await storage.delete(keys)
        assert len(proxy.requests) == 4
        outcomes = await storage.save(
            [Write(key, record.version, b"three", 60) for key, record in zip(keys, records, strict=True) if record]
        )
        assert outcomes == [Gone()] * 32
        assert len(proxy.requests) == 5


async def test_a_version_from_a_conflict_spares_the_question(proxy: Proxy) -> None:
    key = new_key()
    async with opened(proxy.url) as storage:
        await create(storage, key)
        conflict = await save(storage, key, b"other")
        assert isinstance(conflict, Conflict)
        proxy.requests.clear()
        assert isinstance(await save(storage, key, b"mine", conflict.record.version), Saved)
        assert len(proxy.requests) == 1


async def test_the_token_is_no_part_of_a_versions_identity(storage: MemcachedStorage, shared: Memcached) -> None:
    key = new_key()
    await create(storage, key)
    record = await load(storage, key)
    name = (storage.prefix + key).encode()
    # The same bytes written again: another token, the same version.
    value = record.version[:8] + record.data
    assert ask(shared, b"set %b 0 60 %d\r\n%b\r\n" % (name, len(value), value)) == b"STORED\r\n"
    assert isinstance(await save(storage, key, b"new", record.version), Saved)


async def test_a_removal_leaves_nothing_and_loses_no_race(storage: MemcachedStorage) -> None:
    for _ in range(50):
        key = new_key()
        await create(storage, key)
        version = (await load(storage, key)).version
        removed, written = await asyncio.gather(save(storage, key, None, version), save(storage, key, b"new", version))
        if isinstance(removed, Saved):
            assert written == Gone()
            assert await storage.load([key]) == [None]
            await create(storage, key)
        else:
            assert isinstance(removed, Conflict)
            assert isinstance(written, Saved)
            assert (await load(storage, key)).data == b"new"


async def test_removing_what_must_not_exist_creates_nothing(storage: MemcachedStorage) -> None:
    key = new_key()
    assert await save(storage, key, None) == Saved(b"")
    assert await storage.load([key]) == [None]
    await create(storage, key)
    assert isinstance(await save(storage, key, None), Conflict)


# Lost answers


@pytest.mark.parametrize("known", ["created", "loaded", "saved"])
async def test_a_write_whose_answer_was_lost_is_saved(proxy: Proxy, known: str) -> None:
    key, expected = new_key(), None
    async with opened(proxy.url) as storage:
        await create(storage, new_key())
        if known != "created":
            expected = await create(storage, key, b"first")
        if known == "loaded":
            expected = (await load(storage, key)).version
        proxy.matching = b"add session:" if known == "created" else b"cas session:"
        proxy.lose_answers = 1
        proxy.requests.clear()
        outcome = await save(storage, key, b"second", expected)
        assert isinstance(outcome, Saved)
        assert sum(request.startswith((b"add", b"cas")) for request in proxy.requests) == 2
        assert (await load(storage, key)).data == b"second"
        assert isinstance(await save(storage, key, b"third", outcome.version), Saved)


async def test_a_lost_answer_in_a_batch_leaves_every_outcome_right(proxy: Proxy) -> None:
    made, changed, removed, gone = keys = [new_key() for _ in range(4)]
    async with opened(proxy.url) as storage:
        versions = {key: await create(storage, key) for key in (changed, removed)}
        for key in versions:
            versions[key] = (await load(storage, key)).version
        proxy.matching, proxy.lose_answers = b"add session:", 1
        outcomes = await storage.save(
            [
                Write(made, None, b"made", 60),
                Write(changed, versions[changed], b"changed", 60),
                Write(removed, versions[removed], None, 60),
                Write(gone, b"12345678", b"late", 60),
            ]
        )
        assert [type(outcome) for outcome in outcomes] == [Saved, Saved, Gone, Gone]
        found = await storage.load(keys)
        assert [record and record.data for record in found] == [b"made", b"changed", None, None]


async def test_an_answer_that_is_lost_twice_is_an_outage(proxy: Proxy) -> None:
    async with opened(proxy.url) as storage:
        await create(storage, new_key())
        proxy.lose_answers = 10
        with pytest.raises(StorageUnavailable):
            await storage.load([new_key()])
        assert proxy.lose_answers == 8


# Cancellation, and the pool


@pytest.mark.parametrize("verb", ["load", "save", "delete"])
async def test_a_cancelled_commands_answer_reaches_nobody(proxy: Proxy, verb: str) -> None:
    one, other = new_key(), new_key()
    async with opened(f"{proxy.url}?pool_size=1") as storage:
        await create(storage, one, b"one")
        await create(storage, other, b"other")
        version = (await load(storage, one)).version
        calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
            "load": lambda: storage.load([one]),
            "save": lambda: save(storage, one, b"new", version),
            "delete": lambda: storage.delete([one]),
        }
        proxy.answering.clear()
        asked = len(proxy.requests)
        task = asyncio.create_task(calls[verb]())
        while len(proxy.requests) == asked:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        proxy.answering.set()
        assert (await load(storage, other)).data == b"other"


async def test_cancelling_leaks_no_connection_and_no_place(tuned: Callable[..., Tuned]) -> None:
    server = tuned()
    async with opened(f"{server.url}?pool_size=3") as storage:
        key = new_key()
        await create(storage, key)
        for turn in range(100):
            tasks = [asyncio.create_task(storage.load([key])) for _ in range(8)]
            for _ in range(turn % 10):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        found = await asyncio.gather(*(storage.load([key]) for _ in range(20)))
        assert all(record for (record,) in found)
        assert open_connections(server) <= 3 + 1  # memcached counts its listening socket
    await until(lambda: open_connections(server) <= 1)


async def test_no_more_connections_than_the_pools_size_are_open(proxy: Proxy) -> None:
    async with opened(f"{proxy.url}?pool_size=2") as storage:
        proxy.answering.clear()
        tasks = [asyncio.create_task(storage.load([new_key()])) for _ in range(10)]
        await until(lambda: proxy.connections == 2)
        await asyncio.sleep(0.1)  # and no more come
        assert proxy.connections == 2
        proxy.answering.set()
        assert await asyncio.gather(*tasks) == [[None]] * 10


async def test_waiting_for_a_connection_is_inside_the_deadline(proxy: Proxy) -> None:
    async with opened(f"{proxy.url}?pool_size=1&timeout={0.3 * pace()}") as storage:
        proxy.answering.clear()
        with within(3 * storage.timeout):
            results = await asyncio.gather(*(storage.load([new_key()]) for _ in range(5)), return_exceptions=True)
        assert all(isinstance(result, StorageUnavailable) for result in results)
        proxy.answering.set()
        assert await storage.load([new_key()]) == [None]


async def test_a_failed_connection_wakes_those_who_wait_for_one() -> None:
    async with opened(f"memcached://127.0.0.1:{free_port()}?pool_size=1") as storage:
        with within(5):
            results = await asyncio.gather(*(storage.load([new_key()]) for _ in range(20)), return_exceptions=True)
        assert all(isinstance(result, StorageUnavailable) for result in results)


async def test_closing_during_a_call_leaves_no_connection_open(proxy: Proxy) -> None:
    async with opened(proxy.url) as storage:
        proxy.requests.clear()
        proxy.answering.clear()
        task = asyncio.create_task(storage.load([new_key()]))
        await until(lambda: proxy.requests)
        await storage.close()
        proxy.answering.set()
        assert await task == [None]
        await until(lambda: proxy.connections == 0)


# Outages


async def test_a_restart_between_two_calls_is_not_seen(tuned: Callable[..., Tuned]) -> None:
    server = tuned()
    async with opened(server.url) as storage:
        await asyncio.gather(*(create(storage, new_key()) for _ in range(10)))
        server.kill()
        server.start()
        assert await storage.load([new_key()]) == [None]
        await create(storage, new_key())


async def test_a_server_that_is_down_at_opening_is_no_error(tuned: Callable[..., Tuned]) -> None:
    server = tuned()
    server.kill()
    async with opened(server.url) as storage:
        with pytest.raises(StorageUnavailable, match="Connect"):
            await storage.load([new_key()])
        server.start()
        await create(storage, new_key())


@pytest.mark.parametrize("verb", ["load", "save", "delete"])
async def test_a_server_that_hangs_up_does_not_freeze_the_loop(verb: str) -> None:
    def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with opened(f"memcached://127.0.0.1:{port}") as storage, ticking():
            calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
                "load": lambda: storage.load([new_key()]),
                "save": lambda: save(storage, new_key(), b"x"),
                "delete": lambda: storage.delete([new_key()]),
            }
            with pytest.raises(StorageUnavailable):
                await calls[verb]()


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"x" * 200_000, b"VALUE\r\n", b"SERVER_ERROR busy\r\n"]
)
async def test_what_is_no_memcached_is_an_outage(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with opened(f"memcached://127.0.0.1:{port}?timeout=1") as storage:
            for verb in (storage.load([new_key()]), save(storage, new_key(), b"x"), storage.delete([new_key()])):
                with pytest.raises(StorageUnavailable):
                    await verb


async def test_a_server_that_wants_a_login_is_an_outage_that_says_so(
    tuned: Callable[..., Tuned], tmp_path: Path
) -> None:
    (tmp_path / "logins").write_text("visitor:geheim\n")
    server = tuned("-Y", str(tmp_path / "logins"))
    async with opened(server.url) as storage:
        with pytest.raises(StorageUnavailable, match="unauthenticated"):
            await storage.load([new_key()])


async def test_a_server_without_cas_refuses_writes(tuned: Callable[..., Tuned]) -> None:
    server = tuned("-C")
    async with opened(server.url) as storage:
        with pytest.raises(StorageUnavailable, match="-C"):
            await create(storage, new_key())


async def test_a_full_server_is_an_outage_and_still_removes(tuned: Callable[..., Tuned]) -> None:
    server = tuned("-M", "-m", "2")
    async with opened(server.url) as storage:
        made: list[str] = []
        with pytest.raises(StorageUnavailable, match="out of memory"):
            for _ in range(200):
                keys = [new_key() for _ in range(20)]
                await storage.save([Write(key, None, b"x" * 5000, 60) for key in keys])
                made += keys
        for key in made[:20]:
            assert isinstance(await save(storage, key, None, (await load(storage, key)).version), Saved)
        assert await storage.load(made[:20]) == [None] * 20
        await create(storage, new_key(), b"x" * 5000)


# Values, keys and times


FOREIGN = {"empty": (b"", 0), "short": (b"1234567", 0), "flagged": (b"a pickled object", 1)}


@pytest.mark.parametrize("kind", FOREIGN)
async def test_a_foreign_value_is_absent_and_a_create_replaces_it(
    storage: MemcachedStorage, shared: Memcached, kind: str
) -> None:
    value, flags = FOREIGN[kind]
    foreign, ours = new_key(), new_key()
    name = (storage.prefix + foreign).encode()
    assert ask(shared, b"set %b %d 60 %d\r\n%b\r\n" % (name, flags, len(value), value)) == b"STORED\r\n"
    await create(storage, ours, b"ours")
    missing, record = await storage.load([foreign, ours])
    assert missing is None
    assert record is not None
    assert record.data == b"ours"
    assert await save(storage, foreign, b"late", record.version) == Gone()
    assert await save(storage, foreign, None, record.version) == Gone()
    outcomes = await storage.save([Write(foreign, None, b"new", 60), Write(ours, record.version, b"too", 60)])
    assert [type(outcome) for outcome in outcomes] == [Saved, Saved]
    assert (await load(storage, foreign)).data == b"new"


@pytest.mark.parametrize("ttl", [1, 60, 30 * DAY, 30 * DAY + 1, 400 * DAY])
async def test_a_ttl_is_kept_on_both_sides_of_thirty_days(
    storage: MemcachedStorage, shared: Memcached, ttl: int
) -> None:
    key = new_key()
    await create(storage, key, ttl=ttl)
    answer = ask(shared, b"mg %b t\r\n" % (storage.prefix + key).encode())
    if ttl > 1:
        assert answer.startswith(b"HD t")
        assert abs(int(answer.split(b"t")[1]) - ttl) <= 2


async def test_a_ttl_beyond_the_servers_calendar_is_cut(storage: MemcachedStorage) -> None:
    key = new_key()
    await create(storage, key, ttl=2**33)
    assert (await load(storage, key)).data == b"data"


async def test_a_value_that_is_too_large_touches_no_other_of_its_batch(tuned: Callable[..., Tuned]) -> None:
    server = tuned("-I", "512k")
    async with opened(server.url) as storage:
        small, large = new_key(), new_key()
        with pytest.raises(SessionTooLarge) as caught:
            await storage.save([Write(small, None, b"small", 60), Write(large, None, b"x" * 700_000, 60)])
        assert caught.value.size == 700_000
        limit = caught.value.limit
        assert 524_000 < limit < 512 * 1024
        assert await storage.load([small, large]) == [None, None]
        assert isinstance(await save(storage, large, b"x" * limit), Saved)
        with pytest.raises(SessionTooLarge):
            await save(storage, new_key(), b"x" * (limit + 1))


@pytest.mark.parametrize("seen", [True, False])
async def test_a_limit_that_a_restart_lowered_is_noticed(tuned: Callable[..., Tuned], seen: bool) -> None:
    server = tuned("-I", "2m")
    async with opened(f"{server.url}?pool_size=1") as storage:
        key = new_key()
        await create(storage, key, b"x" * 1_500_000)
        server.kill()
        server.arguments = ()
        server.start()
        if seen:
            await asyncio.sleep(0.05)  # the loop reads that the old connection ended
        with pytest.raises(SessionTooLarge):
            await save(storage, key, b"x" * 1_500_000)
        with pytest.raises(SessionTooLarge) as caught:  # now the limit is known again, and nothing is written
            await storage.save([Write(key, None, b"small", 60), Write(new_key(), None, b"x" * 1_500_000, 60)])
        assert caught.value.limit < 1 << 20
        assert await storage.load([key]) == [None]
        await create(storage, key, b"small")
        assert (await load(storage, key)).data == b"small"


@pytest.mark.parametrize(
    "key", ["", "a b", "short", "x" * 44, "x" * 42 + "\n", "x" * 40 + "\r\n1", "é" * 43, "x" * 42 + " "]
)
async def test_what_is_no_key_is_refused_before_anything_is_sent(proxy: Proxy, key: str) -> None:
    async with opened(proxy.url) as storage:
        proxy.requests.clear()
        for verb in (storage.load([key]), save(storage, key, b"x"), storage.delete([new_key(), key])):
            with pytest.raises(ValueError, match="43"):
                await verb
        assert proxy.requests == []


async def test_a_version_from_elsewhere_injects_no_command(storage: MemcachedStorage) -> None:
    key = new_key()
    await create(storage, key)
    for version in (b"", b"1 2\r\nflush_all\r\n", b"\r\n" * 8, b"12345678" + b"\r\nversn\r\n", b"x" * 100):
        assert isinstance(await save(storage, key, b"x", version), Conflict)
    assert (await load(storage, key)).data == b"data"


async def test_a_batch_of_thousands_is_answered(storage: MemcachedStorage) -> None:
    keys = [new_key() for _ in range(3000)]
    await storage.save([Write(key, None, key.encode(), 60) for key in keys])
    records = await storage.load(keys)
    assert [record and record.data for record in records] == [key.encode() for key in keys]


# The URL


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("memcached://h?prefx=a", "did you mean 'prefix'"),
        ("memcached://h?timeout=0", "timeout"),
        ("memcached://h?timeout=soon", "timeout"),
        ("memcached://h?pool_size=0", "pool_size"),
        ("memcached://h?prefix=a%20b", "prefix"),
        ("memcached://h?prefix=a%0d%0ab", "prefix"),
        ("memcached://h?prefix=%c2%a0", "prefix"),
        ("memcached://h?prefix=" + "x" * 208, "207 bytes"),
        ("memcached://h?prefix=" + "%c3%a9" * 104, "207 bytes"),
        ("memcached://h/0", "path '/0'"),
        ("memcached://visitor@h", "user"),
        ("memcached://h?tls_ca=x.pem", "tls=true"),
        ("memcached://h?tls=true&tls_ca=/nowhere.pem", "cannot be used"),
    ],
)
def test_a_url_that_cannot_work_is_refused(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        storage_from_url(url)


def test_a_password_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigError, match="log in") as caught:
        storage_from_url("memcached://visitor:geheim@h")
    assert "geheim" not in str(caught.value)


def test_a_url_without_parts_means_the_local_server() -> None:
    assert repr(storage_from_url("memcached://")) == "<MemcachedStorage at localhost:11211>"


@pytest.mark.parametrize("prefix", ["", "x" * 207, "é" * 103])
async def test_every_prefix_that_fits_is_used(shared: Memcached, prefix: str) -> None:
    client = aiomcache.Client("127.0.0.1", shared.port)
    storage = MemcachedStorage(client, MemcachedOptions(prefix=prefix))
    await storage.open()
    key = new_key()
    await create(storage, key)
    assert await client.get((prefix + key).encode()) is not None
    assert (await load(storage, key)).data == b"data"
    await storage.delete([key])
    await storage.close()
    await client.close()


async def test_a_storage_that_is_not_open_says_so(shared: Memcached) -> None:
    storage = storage_from_url(shared.url)
    with pytest.raises(StorageUnavailable, match="not open"):
        await storage.load([new_key()])


# A client of the user's own


async def test_a_users_client_is_used_and_not_closed(proxy: Proxy) -> None:
    client = aiomcache.Client("127.0.0.1", proxy.port, pool_size=1)
    await client.set(b"theirs", b"x", 60)
    storage = MemcachedStorage(client, MemcachedOptions(prefix="own:"))
    for _ in range(2):
        await storage.open()
        key = new_key()
        await create(storage, key)
        assert await client.get(f"own:{key}".encode()) is not None
        assert await asyncio.gather(*(storage.load([new_key()]) for _ in range(5))) == [[None]] * 5
        assert proxy.connections == 2  # theirs, and one of ours: their pool's size
        await storage.close()
        await until(lambda: proxy.connections < 2)
        assert proxy.connections == 1  # theirs is still open
        assert await client.get(b"theirs") == b"x"
    await client.close()


async def test_a_users_client_is_made_safe(proxy: Proxy) -> None:
    client = aiomcache.Client("127.0.0.1", proxy.port, pool_size=1)
    storage = MemcachedStorage(client, MemcachedOptions(timeout=0.2 * pace()))
    await storage.open()
    one, other = new_key(), new_key()
    await create(storage, other, b"other")
    proxy.answering.clear()
    with pytest.raises(StorageUnavailable):
        await storage.load([one])
    proxy.answering.set()
    assert (await load(storage, other)).data == b"other"
    await storage.close()
    await client.close()


# TLS


@pytest.fixture
def encrypted(tuned: Callable[..., Tuned], tmp_path: Path) -> tuple[Tuned, Path]:
    folder = make_certificates(tmp_path)
    both = folder / "server.both"
    return tuned("-Z", "-o", f"ssl_chain_cert={both},ssl_key={both}"), folder / "ca.pem"


async def test_an_encrypted_connection_serves_every_verb(encrypted: tuple[Tuned, Path]) -> None:
    server, ca = encrypted
    async with opened(f"{server.url}?tls=true&tls_ca={ca}&pool_size=2") as storage:
        key = new_key()
        await create(storage, key, b"x" * 500_000)
        record = await load(storage, key)
        assert isinstance(await save(storage, key, b"more", record.version), Saved)
        await asyncio.gather(*(storage.load([key]) for _ in range(10)))
        server.kill()
        with pytest.raises(StorageUnavailable):
            await storage.load([key])
        server.start()
        assert await storage.load([key]) == [None]


async def test_a_servers_certificate_is_checked(encrypted: tuple[Tuned, Path], tmp_path: Path) -> None:
    server, _ = encrypted
    other = make_certificates(tmp_path / "other") / "ca.pem"
    async with opened(f"{server.url}?tls=true&tls_ca={other}") as storage:
        with pytest.raises(StorageUnavailable, match="certificate"):
            await storage.load([new_key()])


async def test_plain_text_to_an_encrypted_server_is_an_outage(encrypted: tuple[Tuned, Path]) -> None:
    server, _ = encrypted
    async with opened(f"{server.url}?timeout=0.5") as storage:
        with pytest.raises(StorageUnavailable):
            await storage.load([new_key()])


async def test_a_handshake_that_hangs_is_an_outage_within_the_deadline(tmp_path: Path) -> None:
    ca = make_certificates(tmp_path) / "ca.pem"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"memcached://127.0.0.1:{silent.getsockname()[1]}?tls=true&tls_ca={ca}&timeout=0.3"
        async with opened(url) as storage, ticking():
            with pytest.raises(StorageUnavailable, match=r"0\.3 s"), within(1):
                await storage.load([new_key()])
