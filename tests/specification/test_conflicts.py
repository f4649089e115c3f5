"""Two requests that change one session at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from aiohttp import web

from aiohttp_store import Cookie, Saved, Session, SessionTooLarge, Storage, StorageUnavailable, Write, get_session
from aiohttp_store._engine.locks import WriterLock
from aiohttp_store._engine.manager import StorageSessionManager
from aiohttp_store._lifecycle.request_state import MANAGER
from aiohttp_store.codec import JSONCodec
from aiohttp_store.testing import freeze

from ..conftest import Client, Serve
from ..support.remote import Remote
from ..support.timing import pace, until, within


async def put(request: web.Request) -> web.Response:
    """Load the session, wait if told so, change it by the JSON sent, and save it as told: `null` deletes a key."""
    session = await get_session(request)
    if event := request.query.get("wait"):
        LOADED[event] = session
        EVENTS[f"{event} loaded"].set()
        await EVENTS[event].wait()
    for key, value in (await request.json()).items():
        if value is None:
            session.pop(key, None)
        else:
            session[key] = value
    match request.query.get("how"):
        case "save":
            await session.save()
        case "apply":
            await session.apply(_add)
        case "save with what passes":
            await session.save()
            del session["passing"]
        case "reload":
            await session.reload()
        case "take":
            await session.apply(_take)
        case "save twice":
            with pytest.raises(StorageUnavailable):
                await session.save()
            await session.save()
    return web.json_response(dict(session))


async def show(request: web.Request) -> web.Response:
    return web.json_response(dict(await get_session(request)))


def _add(session: Session) -> int:
    session["n"] = session.get("n", 0) + 1
    return int(session["n"])


def _take(session: Session) -> None:
    if session["coins"] < 5:
        raise web.HTTPPaymentRequired
    session["coins"] -= 5


async def increment(request: web.Request) -> web.Response:
    session = await get_session(request)
    session.update(request.query)
    return web.json_response(await session.apply(_add))


EVENTS: dict[str, asyncio.Event] = {}
LOADED: dict[str, Session] = {}


@pytest.fixture(autouse=True)
def events() -> None:
    EVENTS.clear()
    EVENTS.update({name: asyncio.Event() for name in ("go", "go loaded")})


async def send(client: Client, path: str, **data: Any) -> int:
    async with client.post(path, json=data) as response:
        return response.status


async def shown(client: Client) -> Any:
    async with client.get("/show") as response:
        return await response.json()


async def clash(client: Client, base: dict[str, Any], mine: dict[str, Any], theirs: dict[str, Any]) -> int:
    """Begin with `base`; then `theirs` is saved between the loading and the saving of `mine`."""
    assert await send(client, "/put", **base) == 200
    late = asyncio.create_task(send(client, "/put?wait=go", **mine))
    await EVENTS["go loaded"].wait()
    assert await send(client, "/put", **theirs) == 200
    EVENTS["go"].set()
    return await late


async def start(serve: Serve, storage: str | Storage, **options: Any) -> Client:
    return await serve(put, show, increment, storage=storage, **options)


async def test_by_default_both_changes_survive(serve: Serve, storage_url: str) -> None:
    client = await start(serve, storage_url)
    base = {"a": 1, "d": {"x": 1, "y": 1}, "gone": 1}
    status = await clash(
        client, base, {"d": {"x": 2, "y": 1}, "mine": 1, "gone": None}, {"d": {"x": 1, "y": 3}, "a": 5}
    )
    assert status == 200
    assert await shown(client) == {"a": 5, "d": {"x": 2, "y": 3}, "mine": 1}


async def test_overwrite_lets_the_last_one_win(serve: Serve, storage_url: str) -> None:
    client = await start(serve, storage_url, on_conflict="overwrite")
    assert await clash(client, {"a": 1}, {"mine": 1}, {"theirs": 1}) == 200
    assert await shown(client) == {"a": 1, "mine": 1}


async def test_raise_answers_409_and_changes_nothing(serve: Serve, storage_url: str) -> None:
    client = await start(serve, storage_url, on_conflict="raise")
    assert await clash(client, {"a": 1}, {"mine": 1}, {"theirs": 1}) == 409
    assert await shown(client) == {"a": 1, "theirs": 1}


@pytest.mark.parametrize("on_conflict", ["merge", "overwrite", "raise"])
async def test_a_request_that_only_read_is_no_conflict(on_conflict: str, serve: Serve) -> None:
    client = await start(serve, "memory://", on_conflict=on_conflict)
    assert await clash(client, {"a": 1}, {}, {"theirs": 1}) == 200
    assert await shown(client) == {"a": 1, "theirs": 1}


@pytest.mark.parametrize("on_conflict", ["merge", "overwrite", "raise"])
async def test_prolonging_is_no_conflict(on_conflict: str, serve: Serve) -> None:
    client = await start(serve, "memory://", on_conflict=on_conflict)
    assert client.app is not None
    manager: Any = client.app[MANAGER]
    await send(client, "/put", a=1)
    late = asyncio.create_task(send(client, "/put?wait=go", mine=1))
    await EVENTS["go loaded"].wait()
    clock = manager.lifetimes.clock
    manager.lifetimes.clock = lambda: clock() + 43_200
    await shown(client)  # prolongs
    EVENTS["go"].set()
    assert await late == 200
    assert await shown(client) == {"a": 1, "mine": 1}


async def test_emptying_meets_a_change(serve: Serve, storage_url: str) -> None:
    client = await start(serve, storage_url)
    assert await clash(client, {"a": 1}, {"a": None}, {"b": 2}) == 200
    assert await shown(client) == {"b": 2}


async def test_emptying_alone_removes_the_record_and_clears_the_cookie(serve: Serve, storage_url: str) -> None:
    client = await start(serve, storage_url)
    await send(client, "/put", a=1)
    async with client.post("/put", json={"a": None}) as response:
        assert "Max-Age=0" in response.headers["Set-Cookie"]
    assert not list(client.session.cookie_jar)


async def test_a_change_meets_emptying_and_is_dropped_as_gone(serve: Serve, storage_url: str) -> None:
    client = await start(serve, storage_url)
    assert await clash(client, {"a": 1}, {"b": 2}, {"a": None}) == 200
    assert await shown(client) == {}


async def test_two_hundred_contenders_lose_no_count_and_none_starves(serve: Serve, storage_url: str) -> None:
    clients = [await start(serve, storage_url)]
    if not storage_url.startswith("memory"):  # a second app has a queue of its own, as another process would
        clients.append(await start(serve, storage_url))
    await send(clients[0], "/put", a=1)
    (cookie,) = clients[0].session.cookie_jar
    for client in clients:
        client.session.cookie_jar.clear()

    async def one(number: int) -> int:
        client = clients[number % len(clients)]
        async with client.get(f"/increment?k{number}=1", headers={"Cookie": f"session={cookie.value}"}) as response:
            assert response.status == 200, await response.text()
            return int(await response.json())

    counts = await asyncio.gather(*map(one, range(200)))
    assert sorted(counts) == list(range(1, 201))
    async with clients[0].get("/show", headers={"Cookie": f"session={cookie.value}"}) as response:
        assert await response.json() == {"a": 1, "n": 200} | {f"k{number}": "1" for number in range(200)}


class Contended(Remote):
    """Memory in which somebody else always wins while `contended` is set."""

    contended = False

    def __init__(self) -> None:
        super().__init__()
        self.timeout = 0.3 * pace()

    async def save(self, writes: Any) -> Any:
        if self.contended:
            for write in writes:
                (record,) = await self.memory.load([write.key])
                assert record is not None
                await self.memory.save([Write(write.key, record.version, record.data[:-1] + b" }", 60)])
            await asyncio.sleep(0.01)
        return await super().save(writes)


async def test_where_every_answer_is_a_conflict_the_deadline_ends_it_with_409(serve: Serve) -> None:
    storage = Contended()
    client = await start(serve, storage)
    await send(client, "/put", a=1)
    storage.contended = True
    assert await send(client, "/put", b=2) == 409
    storage.contended = False
    assert await shown(client) == {"a": 1}


@pytest.mark.parametrize(("conflicts", "hangs"), [(1, True), (2, False)])
async def test_an_outage_after_conflicts_is_an_outage(conflicts: int, hangs: bool, serve: Serve) -> None:
    class Failing(Contended):
        left = conflicts

        async def save(self, writes: Any) -> Any:
            if not self.contended:
                return await super().save(writes)
            if self.left:
                self.left -= 1
                await asyncio.sleep(0.6 * self.timeout / conflicts)
                return await super().save(writes)
            if hangs:
                await asyncio.sleep(3600)
            raise StorageUnavailable("down")

    storage = Failing()
    client = await start(serve, storage)
    await send(client, "/put", a=1)
    storage.contended = True
    async with client.get("/increment") as response:
        assert response.status == 503
    storage.contended = False
    assert await shown(client) == {"a": 1}


async def test_one_budget_for_the_end_of_a_request_includes_its_first_attempt(serve: Serve) -> None:
    class Slow(Contended):
        saves = 0

        async def save(self, writes: Any) -> Any:
            if self.contended:
                self.saves += 1
                await asyncio.sleep(0.6 * self.timeout)
            return await super().save(writes)

    storage = Slow()
    client = await start(serve, storage)
    await send(client, "/put", a=1)
    storage.contended = True
    assert await send(client, "/put", b=2) == 503
    assert storage.saves == 2


class Silent(Contended):
    async def save(self, writes: Any) -> Any:
        if self.contended:
            await asyncio.sleep(3600)
        return await super().save(writes)


async def test_where_no_answer_comes_the_deadline_ends_it_with_503(serve: Serve) -> None:
    storage = Silent()
    client = await start(serve, storage)
    await send(client, "/put", a=1)
    storage.contended = True
    with within(2 * storage.timeout + 1):
        assert await send(client, "/put", b=2) == 503
    storage.contended = False
    assert await shown(client) == {"a": 1}


async def test_one_budget_for_loading_is_all_a_request_waits(serve: Serve) -> None:
    class Hanging(Remote):
        timeout = 0.2
        loads = 0

        async def load(self, keys: Any) -> Any:
            self.loads += 1
            await asyncio.sleep(3600)

    storage = Hanging()

    async def patient(request: web.Request) -> web.Response:
        for _ in range(3):
            with pytest.raises(StorageUnavailable):
                await get_session(request)
        return web.Response(text="an anonymous page")

    client = await serve(patient, storage=storage)
    async with client.get("/patient", headers={"Cookie": f"session={'A' * 43}"}) as response:
        assert await response.text() == "an anonymous page"
        assert "Set-Cookie" not in response.headers
    assert storage.loads == 1


async def test_writers_of_one_session_queue_up_instead_of_spinning_on_the_server(serve: Serve) -> None:
    class Counting(Remote):
        saves = 0

        async def save(self, writes: Any) -> Any:
            self.saves += len(writes)
            await asyncio.sleep(0.001)
            return await super().save(writes)

    storage = Counting()
    client = await start(serve, storage)
    await send(client, "/put", a=1)

    async def one(number: int) -> None:
        if number % 2:
            async with client.get("/increment") as response:
                assert response.status == 200
        else:
            assert await send(client, "/put", **{f"k{number}": number}) == 200

    await asyncio.gather(*map(one, range(200)))
    assert await shown(client) == {"a": 1, "n": 100} | {f"k{number}": number for number in range(0, 200, 2)}
    assert storage.saves <= 1 + 100 + 2 * 100 + 10  # a put begins with what the one before has left


class Steps(Remote):
    """A storage whose saves go through the steps of a test, one after the other."""

    turns: WriterLock[Any]
    """Those of the first app."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[Callable[[], Any]], Any]] = []
        self.saves = 0

    async def save(self, writes: Any) -> Any:
        self.saves += 1
        step = self.steps.pop(0) if self.steps else _at_once
        return await step(partial(super().save, writes))

    async def others_queue(self) -> None:
        """Wait until a writer waits for another one of the same session."""
        await until(lambda: any(self.turns._waiting.values()))

    async def when_others_have_queued(self, save: Callable[[], Any]) -> Any:
        await self.others_queue()
        return await save()


async def _at_once(save: Callable[[], Any]) -> Any:
    return await save()


async def start_two(serve: Serve, storage: Steps | None = None, **options: Any) -> tuple[Steps, Client, Client]:
    """Give two apps with one visitor over one memory, as two processes have them; the saves of the first have steps."""
    storage, same = Steps() if storage is None else storage, Remote()
    same.memory = storage.memory
    client, other = await start(serve, storage, **options), await start(serve, same, **options)
    assert client.app is not None
    manager: Any = client.app[MANAGER]
    assert isinstance(manager, StorageSessionManager)
    storage.turns = manager.writer.locks
    assert await send(other, "/put", a=1) == 200
    client.session.cookie_jar.update_cookies({cookie.key: cookie.value for cookie in other.session.cookie_jar})
    return storage, client, other


async def begin(client: Client, name: str, how: str = "", **data: Any) -> asyncio.Task[int]:
    """Begin a request that has loaded the session, and goes on when EVENTS[name] is set."""
    EVENTS.update({name: asyncio.Event(), f"{name} loaded": asyncio.Event()})
    request = asyncio.create_task(send(client, f"/put?wait={name}&how={how}", **data))
    await EVENTS[f"{name} loaded"].wait()
    return request


@pytest.mark.parametrize("how", ["", "save", "apply"])
async def test_what_another_process_writes_between_two_writers_of_this_one_is_not_lost(how: str, serve: Serve) -> None:
    async def after_theirs(save: Callable[[], Any]) -> Any:
        assert await send(other, "/put", theirs=1) == 200
        return await save()

    storage, client, other = await start_two(serve)
    writers = [await begin(client, f"{number}", how, **{f"k{number}": number}) for number in range(2)]
    storage.steps = [storage.when_others_have_queued, after_theirs]
    EVENTS["0"].set()
    EVENTS["1"].set()
    assert await asyncio.gather(*writers) == [200, 200]
    assert await shown(client) == {"a": 1, "theirs": 1, "k0": 0, "k1": 1} | ({"n": 2} if how == "apply" else {})
    assert storage.saves == 3


@pytest.mark.parametrize("on_conflict", ["merge", "overwrite"])
@pytest.mark.parametrize("how", ["", "save", "apply"])
async def test_a_change_that_repeats_what_was_overwritten_meanwhile_is_stored(
    how: str, on_conflict: str, serve: Serve
) -> None:
    async def failing(save: Callable[[], Any]) -> Any:
        await EVENTS["fail"].wait()
        raise StorageUnavailable("down for a moment")

    storage, client, other = await start_two(serve, on_conflict=on_conflict)
    first, second = await begin(client, "first", a=2), await begin(client, "second", b=1)
    third = await begin(client, "third", how, a=2)
    EVENTS["fail"] = asyncio.Event()
    storage.steps = [storage.when_others_have_queued, failing]
    EVENTS["first"].set()
    EVENTS["second"].set()
    assert await first == 200  # and leaves a=2 to those after it
    assert await send(other, "/put", a=3) == 200
    EVENTS["third"].set()  # so that a=2 is the last word
    await storage.others_queue()
    EVENTS["fail"].set()
    assert [await second, await third] == [503, 200]
    assert (await shown(client))["a"] == 2


async def test_where_conflicts_raise_what_was_put_back_before_is_none(serve: Serve) -> None:
    async def before_it_is_put_back(save: Callable[[], Any]) -> Any:
        await storage.others_queue()
        outcome = await save()
        assert await send(other, "/put", a=1) == 200
        return outcome

    storage, client, other = await start_two(serve, on_conflict="raise")
    first, second = await begin(client, "first", a=2), await begin(client, "second", b=1)
    storage.steps = [before_it_is_put_back]
    EVENTS["first"].set()
    EVENTS["second"].set()
    assert [await first, await second] == [200, 200]
    assert await shown(client) == {"a": 1, "b": 1}


async def test_who_repeats_what_another_has_left_hears_of_a_logout(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def before_a_logout(save: Callable[[], Any]) -> Any:
        await storage.others_queue()
        outcome = await save()
        assert await send(other, "/put", b=None) == 200  # the last key
        return outcome

    caplog.set_level("INFO")
    storage, client, other = await start_two(serve)
    first, second = await begin(client, "first", a=None, b=1), await begin(client, "second", a=None, b=1)
    storage.steps = [before_a_logout]
    EVENTS["first"].set()
    EVENTS["second"].set()
    assert [await first, await second] == [200, 200]
    assert "was deleted meanwhile" in caplog.text


async def test_after_an_outage_nothing_is_left_of_a_guess(serve: Serve) -> None:
    async def failing(save: Callable[[], Any]) -> Any:
        assert await send(other, "/put", a=3) == 200
        raise StorageUnavailable("down for a moment")

    storage, client, other = await start_two(serve)
    first, second = await begin(client, "first", a=2), await begin(client, "second", "save twice", a=2)
    storage.steps = [storage.when_others_have_queued, failing]
    EVENTS["first"].set()
    EVENTS["second"].set()
    assert [await first, await second] == [200, 200]
    assert await shown(client) == {"a": 2}


async def guess_wrong(two: tuple[Steps, Client, Client], mine: Any, theirs: Any, how: str, **data: Any) -> int:
    """Store `mine`, whose answer is late; then `theirs`, by another process; then `data`, by who has loaded that.

    When the first is answered, it leaves to the last what is older than what that one has loaded.
    """
    storage, client, other = two
    stored, answered = asyncio.Event(), asyncio.Event()

    async def late(save: Callable[[], Any]) -> Any:
        outcome = await save()
        stored.set()
        await answered.wait()
        return outcome

    storage.steps.insert(0, late)
    first = asyncio.create_task(send(client, "/put", **mine))
    await stored.wait()
    assert await send(other, "/put", **theirs) == 200
    second = await begin(client, "second", how, **data)
    EVENTS["second"].set()
    await storage.others_queue()
    answered.set()
    assert await first == 200
    return await second


@pytest.mark.parametrize("how", ["", "save", "apply"])
async def test_a_wrong_guess_is_not_too_large(how: str, serve: Serve) -> None:
    class Small(Steps):
        async def save(self, writes: Any) -> Any:
            for write in writes:
                if len(write.data or b"") > 1000:
                    raise SessionTooLarge(len(write.data), 1000, "this storage")
            return await super().save(writes)

    two = await start_two(serve, Small())
    assert await guess_wrong(two, {"k": "x" * 800}, {"k": None}, how, b="y" * 300) == 200
    assert await shown(two[1]) == {"a": 1, "b": "y" * 300} | ({"n": 1} if how == "apply" else {})


@pytest.mark.parametrize("how", ["", "save", "apply"])
async def test_a_wrong_guess_is_not_refused_by_the_codec(how: str, serve: Serve) -> None:
    class FourKeys(JSONCodec):
        def dumps(self, data: dict[str, Any]) -> bytes:
            if len(data) > 4:
                raise ValueError("more than 4 keys")
            return super().dumps(data)

    two = await start_two(serve, codec=FourKeys())
    assert await guess_wrong(two, {"k": 1, "l": 1}, {"k": None, "l": None}, how, b=1, c=1) == 200
    assert await shown(two[1]) == {"a": 1, "b": 1, "c": 1} | ({"n": 1} if how == "apply" else {})


@pytest.mark.parametrize("how", ["", "save", "apply"])
async def test_a_wrong_guess_is_seen_by_no_task_of_its_request(how: str, serve: Serve) -> None:
    async def looking(save: Callable[[], Any]) -> Any:
        seen.append(dict(LOADED["second"]))
        return await save()

    seen: list[dict[str, Any]] = []
    two = await start_two(serve)
    two[0].steps = [looking, looking]
    assert await guess_wrong(two, {"a": 2, "k": 1}, {"a": 3, "k": None}, how, b=1) == 200
    assert seen
    assert all(one["a"] == 3 and "k" not in one for one in seen)


@pytest.mark.parametrize(("how", "ends"), [("", "conflict"), ("save", "conflict"), ("save twice", "outage")])
async def test_what_a_task_of_the_request_sets_during_a_wrong_guess_is_stored(
    how: str, ends: str, serve: Serve
) -> None:
    async def meanwhile(save: Callable[[], Any]) -> Any:
        LOADED["second"]["a"] = 2  # which is what the one before has left
        if ends == "outage":
            raise StorageUnavailable("down for a moment")
        return await save()

    two = await start_two(serve)
    two[0].steps = [meanwhile]
    assert await guess_wrong(two, {"a": 2}, {"a": 3}, how, b=1) == 200
    assert await shown(two[1]) == {"a": 2, "b": 1}


@pytest.mark.parametrize("on_conflict", ["merge", "overwrite"])
@pytest.mark.parametrize("how", ["save", "save with what passes"])
async def test_what_a_task_of_the_request_puts_back_during_a_right_guess_is_stored(
    how: str, on_conflict: str, serve: Serve
) -> None:
    async def meanwhile(save: Callable[[], Any]) -> Any:
        LOADED["second"]["a"] = 1
        if how == "save with what passes":
            LOADED["second"]["passing"] = {1, 2}  # which JSON cannot hold
        return await save()

    storage, client, _ = await start_two(serve, on_conflict=on_conflict)
    first, second = await begin(client, "first", a=2), await begin(client, "second", how, a=3)
    storage.steps = [storage.when_others_have_queued, meanwhile]
    EVENTS["first"].set()
    EVENTS["second"].set()
    assert [await first, await second] == [200, 200]
    assert await shown(client) == {"a": 1}
    assert storage.saves == 3  # the third stores what was put back


async def test_a_session_that_a_task_begins_during_a_right_guess_is_a_new_one(serve: Serve) -> None:
    async def meanwhile(save: Callable[[], Any]) -> Any:
        LOADED["second"].invalidate()
        LOADED["second"]["cart"] = ["tea"]
        return await save()

    storage, client, other = await start_two(serve)
    first, second = await begin(client, "first", a=2), await begin(client, "second", "save", b=1)
    storage.steps = [storage.when_others_have_queued, meanwhile]
    EVENTS["first"].set()
    EVENTS["second"].set()
    assert [await first, await second] == [200, 200]
    assert await shown(client) == {"cart": ["tea"]}
    assert await shown(other) == {}  # it still has the cookie of the one before


@pytest.mark.parametrize("persistent", [False, True])
async def test_of_requests_that_only_read_one_prolongs_and_each_tells_a_persistent_cookie(
    persistent: bool, serve: Serve
) -> None:
    async def counted(save: Callable[[], Any]) -> Any:
        await asyncio.sleep(0.02)
        outcomes = await save()
        saved.extend(outcome for outcome in outcomes if isinstance(outcome, Saved))
        return outcomes

    async def read() -> bool:
        async with client.get("/show") as response:
            return "Set-Cookie" in response.headers

    saved: list[Saved] = []
    storage, client, _ = await start_two(serve, idle_timeout=1000, cookie=Cookie(persistent=persistent))
    storage.steps = [counted] * 10
    assert client.app is not None
    with freeze(client.app) as clock:
        clock.advance(100)
        told = await asyncio.gather(*[read() for _ in range(5)])
    assert len(saved) == 1
    assert told == [persistent] * 5


@pytest.mark.parametrize("on_conflict", ["merge", "overwrite", "raise"])
async def test_apply_counts_exactly_over_pending_changes_whatever_the_policy(on_conflict: str, serve: Serve) -> None:
    client = await start(serve, Remote(), on_conflict=on_conflict)
    await send(client, "/put", a=1)

    async def one(number: int) -> None:
        async with client.get(f"/increment?k{number}=1") as response:
            assert response.status == 200

    await asyncio.gather(*map(one, range(20)))
    assert await shown(client) == {"a": 1, "n": 20} | {f"k{number}": "1" for number in range(20)}


@pytest.mark.parametrize(("coins", "answer", "left"), [(7, 200, 2), (4, 402, 4)])
async def test_what_apply_refuses_rests_on_the_newest_data(coins: int, answer: int, left: int, serve: Serve) -> None:
    _, client, other = await start_two(serve)
    assert await send(other, "/put", coins=3) == 200
    request = await begin(client, "take", "take", b=1)
    assert await send(other, "/put", coins=coins) == 200
    EVENTS["take"].set()
    assert await request == answer
    assert await shown(client) == {"a": 1, "coins": left, "b": 1}


@pytest.mark.parametrize("how", ["take", "reload"])
@pytest.mark.parametrize("logout", [False, True])
async def test_a_session_that_begins_while_its_forerunner_is_read_again_is_kept(
    how: str, logout: bool, serve: Serve
) -> None:
    class Interrupted(Steps):
        interrupts = False

        async def load(self, keys: Any) -> Any:
            if self.interrupts:
                self.interrupts = False
                LOADED["again"].invalidate()
                LOADED["again"]["cart"] = ["tea"]
            return await super().load(keys)

    storage = Interrupted()
    _, client, other = await start_two(serve, storage)
    assert await send(other, "/put", coins=3) == 200
    request = await begin(client, "again", how, b=1)
    if logout:
        assert await send(other, "/put", a=None, coins=None) == 200
    storage.interrupts = True
    EVENTS["again"].set()
    assert await request == {"take": 402, "reload": 200}[how]
    assert await shown(client) == {"cart": ["tea"]}


@pytest.mark.parametrize("after", ["logout", "outage"])
async def test_what_apply_refuses_is_not_told_where_there_is_no_newest_data(after: str, serve: Serve) -> None:
    class Silenced(Steps):
        is_down = False

        async def load(self, keys: Any) -> Any:
            if self.is_down:
                raise StorageUnavailable("down for a moment")
            return await super().load(keys)

    _, client, other = await start_two(serve, down := Silenced())
    assert await send(other, "/put", coins=3) == 200
    request = await begin(client, "take", "take", b=1)
    if after == "logout":
        assert await send(other, "/put", a=None, coins=None) == 200
    down.is_down = after == "outage"
    EVENTS["take"].set()
    assert await request == {"logout": 409, "outage": 503}[after]


async def test_an_apply_that_failed_leaves_nothing_behind(serve: Serve) -> None:
    class Failing(Remote):
        fails = False

        async def save(self, writes: Any) -> Any:
            if self.fails:
                raise StorageUnavailable("down")
            return await super().save(writes)

    storage, failed, others = Failing(), asyncio.Event(), asyncio.Event()

    async def failing(request: web.Request) -> web.Response:
        session = await get_session(request)
        session["pending"] = 1
        storage.fails = True
        with pytest.raises(StorageUnavailable):
            await session.apply(lambda fresh: fresh.update(n=fresh.get("n", 0) + 1))
        assert session == {"a": 1, "pending": 1}
        storage.fails = False
        failed.set()
        await others.wait()
        return web.Response()

    client = await serve(put, show, increment, failing, storage=storage)
    await send(client, "/put", a=1)
    late = asyncio.create_task(send(client, "/failing"))
    await failed.wait()
    for _ in range(5):
        async with client.get("/increment"):
            pass
    others.set()
    assert await late == 200
    assert await shown(client) == {"a": 1, "n": 5, "pending": 1}


async def test_what_apply_sets_is_seen_at_once_and_what_it_leaves_alone_is_the_same_object(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        session = await get_session(request)
        session["cart"], session["pair"] = [], (1, 2)
        cart = session["cart"]
        await session.apply(lambda session: session.update(nothing=None, pair=[3]))
        assert dict(session) == {"cart": [], "pair": [3], "nothing": None}
        cart.append("tea")
        return web.Response()

    client = await serve(handler, show, storage=Remote())
    assert await send(client, "/handler") == 200
    assert await shown(client) == {"cart": ["tea"], "pair": [3], "nothing": None}


async def test_an_apply_whose_change_ends_the_session_and_fails_takes_all_of_it_back(serve: Serve) -> None:
    def end(session: Session) -> None:
        session.invalidate()
        raise ZeroDivisionError

    async def failing(request: web.Request) -> web.Response:
        session = await get_session(request)
        with pytest.raises(ZeroDivisionError):
            await session.apply(end)
        return web.Response()

    client = await serve(put, show, failing, storage=Remote())
    await send(client, "/put", a=1)
    assert await send(client, "/failing") == 200
    assert await shown(client) == {"a": 1}
