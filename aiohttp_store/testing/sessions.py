"""Visitors for tests: a client that is logged in, a session on a mocked request, and a clock that a test moves."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.cookies import SimpleCookie
from typing import Any

from aiohttp import CookieJar, hdrs, web
from aiohttp.test_utils import TestClient, make_mocked_request
from yarl import URL

from .._engine.manager import StorageSessionManager
from .._engine.state import SessionState, Snapshot
from .._lifecycle.before_headers import apps_below
from .._lifecycle.request_state import MANAGER, REQUEST_STATE, begin, have
from ..session import Duration, Session, seconds
from ..storage import Saved, Write
from ..storages.memory import MemoryStorage

__all__ = ["Clock", "PresetSession", "freeze", "session_of", "set_session", "sign_in"]

Client = TestClient[Any, Any]


async def sign_in(
    client: Client,
    data: Mapping[str, Any],
    *,
    app: web.Application | None = None,
    idle_timeout: Duration | None = None,
) -> None:
    """Store a new session with this data, and put its cookie into the client's jar.

    The client's next request is that visitor. What the client was before is not ended in the storage.
    From here on the jar sends `Secure` cookies to the test server also by http, as browsers do to localhost; and
    the app's cookie is without its domain if the test server is not in it, as the jar would refuse it.

    Args:
        client: of an app with `setup`, and started.
        data: what the session holds: JSON values.
        app: the app that `setup` was called on, where that is not the client's own but a sub-app.
        idle_timeout: seconds or `timedelta`, as `session.idle_timeout` ("remember me").

    Raises:
        RuntimeError: the client is not started, its jar refuses the cookie, or the app has no `setup`.
        TypeError: the data holds a value that JSON cannot hold; the message names its path.
        ValueError: no data: such a session is not stored, and its visitor is anonymous.
        StorageUnavailable: the storage did not answer in time.
    """
    manager, url = _manager(client, app), _url(client)
    if not data:
        raise ValueError("an empty session is not stored; sign in with data, or use a client as it is: anonymous")
    _leave_out_foreign_domain(manager, url)
    request, response = _request(url), web.Response()
    state = await manager.new(request, None)
    session = manager.present(state)
    session.update(data)
    if idle_timeout is not None:
        session.idle_timeout = idle_timeout
    await manager.save(request, response, state)
    manager.answer(request, response, state)
    _take_cookies(client, url.with_path(manager.cookie.path), response)


async def session_of(client: Client, *, app: web.Application | None = None) -> dict[str, Any]:
    """Give the data of the client's session as it is stored now; empty for an anonymous visitor.

    It counts as no use of the session.

    Args:
        client: as in `sign_in`.
        app: likewise.

    Raises:
        RuntimeError: the client is not started, or the app has no `setup`.
        StorageUnavailable: the storage did not answer in time.
    """
    manager, url = _manager(client, app), _url(client)
    request = _request(url, _sent(client, url.with_path(manager.cookie.path)))
    return dict(manager.present(await manager.load(request)))


class PresetSession(Session[Any]):
    """What `set_session` put on a request: a session that tells afterwards what the handler did to it."""

    _before: dict[str, Any]
    _done: set[str]

    def __init__(self, state: SessionState, before: dict[str, Any]) -> None:
        super().__init__(state)
        vars(self).update(_before=before, _done=set())

    @property
    def was_changed(self) -> bool:
        """Whether the data is another than was preset."""
        return dict(self) != self._before

    @property
    def was_invalidated(self) -> bool:
        """Whether `invalidate()` was called, or `new_session(request)`."""
        return "invalidated" in self._done or self._state.has_ended

    @property
    def was_renewed(self) -> bool:
        """Whether `renew()` was called."""
        return "renewed" in self._done

    def invalidate(self) -> None:
        """End this session."""
        super().invalidate()
        self._done.add("invalidated")

    def renew(self, *, login: bool = False) -> None:
        """Give the session a new id and keep its data."""
        super().renew(login=login)
        self._done.add("renewed")


def set_session(request: web.Request, data: Mapping[str, Any] | None = None) -> PresetSession:
    """Make `get_session(request)` give a session with this data, for a handler that the test calls itself.

    With data it is the stored session of a known visitor; without, the new one of a visitor who comes for
    the first time. It is kept in a `memory://` of its own, so that `save`, `reload` and `apply` work.

    Raises:
        TypeError: the data holds a value that JSON cannot hold; the message names its path.
    """
    storage = MemoryStorage()
    manager = StorageSessionManager(storage)
    manager.access.is_open = True  # `open` would start what a test had to close
    state = SessionState(manager, {}, None)
    if data:
        payload = manager.codec.encode(dict(data))
        session_id = secrets.token_urlsafe(32)
        key, envelope = manager.writer.key_of(session_id), manager.lifetimes.first(state, payload)
        (outcome,) = storage.save_now(
            [Write(key, None, envelope.pack(), manager.lifetimes.ttl(envelope, manager.now()))]
        )
        assert isinstance(outcome, Saved)  # nobody has this id
        snapshot = Snapshot(session_id, key, outcome.version, envelope)
        state = SessionState(manager, manager.codec.decode(payload), snapshot)
    session = PresetSession(state, manager.codec.copy(state.data))
    visit = request[REQUEST_STATE] = begin(manager, None, request)
    have(visit, state, session)
    return session


class Clock:
    """A time that stands still until the test moves it."""

    def __init__(self, now: float) -> None:
        self.now = now
        """Seconds since the epoch."""

    def advance(self, duration: Duration) -> None:
        """Let this much time pass: seconds, or a `timedelta`.

        Raises:
            ConfigError: it is no duration, or not above 0.
        """
        self.now += seconds("duration", duration)


@contextmanager
def freeze(app: web.Application) -> Iterator[Clock]:
    """Make time stand still for the sessions of `app` and its sub-apps, until the end of the block.

    To be used as `with freeze(app) as clock:`.

    What `setup` decides follows the clock: idle timeout, lifetime, and when a session is prolonged. So does a
    storage that has a `clock`, as `memory://`. A server's clock goes on, and that by which the client's jar drops
    cookies.

    Raises:
        RuntimeError: neither the app nor a sub-app has `setup`, or one keeps its sessions in a storage that was
            written for aiohttp-session, which goes by the time of the machine.
    """
    managers: list[Any] = [one[MANAGER] for one in (app, *apps_below(app)) if MANAGER in one]
    if not managers:
        raise _no_setup(app)
    foreign = next((one for one in managers if not hasattr(one, "lifetimes")), None)
    if foreign is not None:
        raise RuntimeError(
            f"{foreign!r} goes by a clock that cannot be moved: its storage is of aiohttp-session's kind"
        )
    storages: list[Any] = [
        one.storage
        for one in managers
        if isinstance(one, StorageSessionManager) and callable(getattr(one.storage, "clock", None))
    ]
    clocked: list[Any] = [*(one.lifetimes for one in managers), *storages]
    before = [(one, one.clock) for one in clocked]
    clock = Clock(managers[0].now())
    for manager in managers:
        manager.lifetimes.clock = lambda: clock.now
    for storage in storages:
        storage.clock = _follow(clock, storage.clock())
    try:
        yield clock
    finally:
        for one, its_clock in before:
            one.clock = its_clock


def _follow(clock: Clock, now: float) -> Callable[[], float]:
    """Give a clock that stands at `now`, and goes on as the other does."""
    began = clock.now
    return lambda: now + (clock.now - began)


def _manager(client: Client, app: web.Application | None) -> Any:
    found = client.app if app is None else app
    if found is None:
        raise RuntimeError("the client's server has no app; name the one that setup was called on: app=…")
    if MANAGER not in found:
        raise _no_setup(found)
    if not client.server.started or client.server.closed:
        raise RuntimeError(
            "the client's server is not running; use `async with TestClient(TestServer(app)) as client:`"
        )
    return found[MANAGER]


def _no_setup(app: web.Application) -> RuntimeError:
    return RuntimeError(
        f"{app!r} has no sessions of its own; call aiohttp_store.setup(app, storage), "
        "or name the app that it was called on: app=…"
    )


def _url(client: Client) -> URL:
    return client.make_url("/").origin()


def _request(url: URL, cookies: str = "") -> web.Request:
    headers = {hdrs.HOST: url.authority} | ({hdrs.COOKIE: cookies} if cookies else {})
    return make_mocked_request("GET", "/", headers=headers).clone(scheme=url.scheme)


def _sent(client: Client, url: URL) -> str:
    """Give the `Cookie` header with which the client would ask for this URL."""
    cookies = client.session.cookie_jar.filter_cookies(url)
    return "; ".join(f"{name}={cookie.coded_value}" for name, cookie in cookies.items())


def _leave_out_foreign_domain(manager: Any, url: URL) -> None:
    domain = (manager.cookie.domain or "").lstrip(".")
    if domain and not f".{url.host}".endswith(f".{domain}"):
        manager.cookies.cookie = replace(manager.cookie, domain=None)


def _cookie_of(header: str) -> SimpleCookie:
    """Parse a `Set-Cookie` header, without what http.cookies does not know (one since Python 3.14), nor any jar."""
    return SimpleCookie(re.sub(r"; *(Partitioned|Priority=\w+)", "", header, flags=re.IGNORECASE))


def _take_cookies(client: Client, url: URL, response: web.Response) -> None:
    """Put the response's cookies into the client's jar, whose next requests must send them."""
    jar = client.session.cookie_jar
    if isinstance(jar, CookieJar):
        trusted = jar._treat_as_secure_origin  # noqa: SLF001  (aiohttp takes it when the jar is made, and not later)
        jar._treat_as_secure_origin = frozenset((*trusted, url.origin()))  # noqa: SLF001  (likewise)
    by_set_cookie = [cookie.OutputString() for cookie in response.cookies.values()]
    for header in [*response.headers.getall(hdrs.SET_COOKIE, ()), *by_set_cookie]:
        jar.update_cookies(_cookie_of(header), url)
        pair = header.partition(";")[0]
        if pair not in _sent(client, url):
            raise RuntimeError(
                f"the client's cookie jar refuses {pair.partition('=')[0]!r} from {url.origin()}; "
                "give TestClient no jar, or CookieJar(unsafe=True)"
            )
