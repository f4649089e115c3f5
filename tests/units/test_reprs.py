"""What error trackers keep of a frame are the reprs of its variables: none logs anybody in, and none shows data."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import pytest
from aiohttp import web

import aiohttp_store
from aiohttp_store import Record, Session, SessionTooLarge, StorageUnavailable, StorageURL, Write, get_session
from aiohttp_store._engine.batching import _PendingWrite
from aiohttp_store._engine.sealing import Seal
from aiohttp_store._engine.state import End, SessionState, Snapshot
from aiohttp_store._lifecycle.request_state import MANAGER
from aiohttp_store._takeover.legacy import LegacySession
from aiohttp_store.codec import Envelope
from aiohttp_store.cookie import CookieReader, PresentedId, key_of_id
from aiohttp_store.storage import Conflict
from aiohttp_store.storages import storage_from_url
from aiohttp_store.storages._memcached_protocol import Found
from aiohttp_store.storages._mongodb_url import read
from aiohttp_store.storages._mysql_driver import Result
from aiohttp_store.storages._mysql_statements import Draft
from aiohttp_store.storages._redis_steps import Command, Step
from aiohttp_store.storages._redis_url import SentinelOptions

from ..conftest import Client, Serve
from ..support.remote import Remote

ID, DATA, SECRET = secrets.token_urlsafe(32), "geheim", "a secret of more than thirty-two bytes"
KEY = key_of_id(ID)
ENVELOPE = Envelope(1.0, 2.0, None, DATA.encode(), ((1, DATA.encode()),))
RECORD, WRITE = Record(b"12345678", DATA.encode()), Write(KEY, b"12345678", DATA.encode(), 60)
PACKAGE = f"{Path(aiohttp_store.__file__).parent}/"
COMMAND = Command(KEY, ("EVALSHA", KEY, DATA.encode()))

SHOWN: list[Any] = [
    PresentedId(ID, KEY, stale=True),
    Snapshot(ID, KEY, f"{ID} sealed".encode(), ENVELOPE),
    ENVELOPE,
    RECORD,
    Record(b"", DATA),  # type: ignore[arg-type]  # of a storage that answers wrongly
    WRITE,
    Write(KEY, None, None, 60),
    Conflict(RECORD),
    End(KEY),
    End(None),
    Draft(WRITE, b"12345678"),
    LegacySession(None, {DATA: DATA}),
    Found(DATA.encode(), 7),
    Result(1, [(DATA,)]),
    COMMAND,
    Step(0, COMMAND, None),
    CookieReader("session", SECRET),
    Seal("session", SECRET),
    SentinelOptions(sentinel_password=DATA),
]


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: type(shown).__name__)
def test_no_repr_of_the_engine_shows_an_id_data_or_a_secret(shown: Any) -> None:
    for text in (repr(shown), str(shown), f"{shown}", repr([shown])):
        for hidden in (ID, DATA, KEY, SECRET):
            assert hidden not in text


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: type(shown).__name__)
def test_a_tracker_that_looks_into_tuples_is_told_not_to(shown: Any) -> None:
    def texts(value: Any) -> Iterator[str]:
        """Do what Sentry's serializer does."""
        if hasattr(type(value), "__sentry_repr__"):
            yield value.__sentry_repr__()
        elif isinstance(value, tuple | list):
            for item in value:
                yield from texts(item)
        else:
            yield repr(value)

    for text in texts(shown):
        for hidden in (ID, DATA, SECRET):
            assert hidden not in text


@pytest.mark.parametrize(
    "url",
    [
        f"redis://ann:{DATA}@h/0",
        f"redis+cluster://ann:{DATA}@h",
        f"redis+sentinel://ann:{DATA}@h/s?sentinel_password={DATA}",
        f"mongodb+pymongo://ann:{DATA}@h/db?tlsCertificateKeyFilePassword={DATA}&tls=true",
        f"mysql://ann:{DATA}@h/db",
    ],
)
def test_no_repr_of_a_storage_or_of_its_parts_shows_a_password(url: str) -> None:
    parsed = StorageURL.parse(url)
    storage = storage_from_url(url)
    made = [parsed, storage, *vars(storage).values()]
    if parsed.scheme.startswith("mongodb"):
        made += read(parsed)
    for part in made:
        if type(part) is not dict:  # as the login of a cluster, which only a repr of the dict itself shows
            assert DATA not in repr(part)


def named_tuples() -> Iterator[type[Any]]:
    for module in walk_packages(aiohttp_store.__path__, "aiohttp_store."):
        if not module.name.startswith(("aiohttp_store.testing", "aiohttp_store.compat.")):
            for found in vars(import_module(module.name)).values():
                is_tuple = isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields")
                if is_tuple and found.__module__ == module.name:
                    yield found


def test_a_new_named_tuple_is_looked_at() -> None:
    harmless = {"Host", "Saved", "Node", "Place", "Row", "Table", "_Hosts", "_Link", "_Place", "_Stream"}
    """Names, versions, words, apps, and objects of drivers."""
    looked_at = {type(shown) for shown in SHOWN} | {_PendingWrite}
    assert {found.__name__ for found in named_tuples() if found not in looked_at} <= harmless | {"Source"}


def test_a_pending_write_shows_what_its_write_does() -> None:
    loop = asyncio.new_event_loop()
    pending = _PendingWrite(WRITE, KEY, 1, 0.0, loop.create_future(), None)
    loop.close()
    assert ID not in repr(pending)
    assert DATA not in repr(pending)


def test_no_dataclass_shows_a_field_that_is_named_as_a_secret() -> None:
    for module in walk_packages(aiohttp_store.__path__, "aiohttp_store."):
        for found in vars(import_module(module.name)).values():
            if isinstance(found, type) and dataclasses.is_dataclass(found):
                shown = {field.name for field in dataclasses.fields(found) if field.repr}
                assert not [name for name in shown if "password" in name or "secret" in name], found


class Full(Remote):
    """Memory whose saves fail once `error` is set."""

    error: Exception | None = None

    async def save(self, writes: Any) -> Any:
        if self.error is not None:
            raise self.error
        return await super().save(writes)


@pytest.mark.parametrize("error", [SessionTooLarge(2, 1, "here"), StorageUnavailable("down"), ZeroDivisionError()])
@pytest.mark.parametrize("do", ["save", "renew", "apply", "new"])
async def test_no_variable_of_a_frame_of_ours_is_a_live_id(error: Exception, do: str, serve: Serve) -> None:
    caught: list[BaseException] = []

    async def handler(request: web.Request) -> web.Response:
        session = await get_session(request)
        try:
            await act(session)
        except Exception as failed:  # noqa: BLE001  (whichever it is)
            caught.append(failed)
            session.clear()
            session.invalidate()
        return web.Response()

    async def act(session: Session) -> None:
        if do == "renew":
            session.renew()
        if do == "apply":
            await session.apply(lambda session: session.update(a=1))
        session["a"] = 2
        await session.save()

    async def begin(request: web.Request) -> web.Response:
        (await get_session(request))["a"] = DATA
        return web.Response()

    storage = Full()
    client = await serve(begin, handler, storage=storage, secret=SECRET)
    if do != "new":
        async with client.get("/begin"):
            pass
    drawn = drawn_ids(client)
    storage.error = error
    async with client.get("/handler"):
        pass
    (failed,) = caught
    frames = traceback.TracebackException.from_exception(failed, capture_locals=True)
    variables = [repr(frame.locals) for frame in of_chain(frames) if frame.filename.startswith(PACKAGE)]
    assert variables
    for text in variables:
        for hidden in drawn:
            assert hidden not in text


def drawn_ids(client: Client) -> list[str]:
    """Return the live id, and the list to which each one is added that is drawn from now on."""
    drawn = [cookie.value.partition(".")[0] for cookie in client.session.cookie_jar]
    assert client.app is not None
    writer = client.app[MANAGER].writer  # type: ignore[attr-defined]
    key_of = writer.key_of

    def key_of_drawn(session_id: str) -> str:
        drawn.append(session_id)
        return str(key_of(session_id))

    writer.key_of = key_of_drawn
    return drawn


def of_chain(error: traceback.TracebackException | None) -> Iterator[traceback.FrameSummary]:
    while error is not None:
        yield from error.stack
        error = error.__cause__ or error.__context__


def test_a_session_and_its_state_show_neither_id_nor_data(serve: Serve) -> None:
    from aiohttp_store._engine.manager import StorageSessionManager
    from aiohttp_store.storages.memory import MemoryStorage

    manager = StorageSessionManager(MemoryStorage(), secret=SECRET)
    state = SessionState(manager, {DATA: DATA}, Snapshot(ID, KEY, b"1", ENVELOPE))
    for text in (repr(state), repr(Session(state)), repr(vars(manager))):
        assert ID not in text
        assert DATA not in text
        assert SECRET not in text
    assert ID not in repr({name: value for name, value in vars(state).items() if name != "data"})
