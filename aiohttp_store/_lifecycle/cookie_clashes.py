"""Apps of one tree whose sessions would meet: one cookie for both, or one storage and cookies that both are sent."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import combinations
from types import FunctionType
from typing import Any, NamedTuple

from aiohttp import web
from aiohttp.web_urldispatcher import Domain

from .._engine.state import SessionManager
from ..cookie import Cookie, path_matches
from ..errors import ConfigError
from ..storages import __name__ as own_storages
from ..storages.memory import MemoryStorage
from .before_headers import apps_below
from .request_state import ALONE, GIVEN, MANAGER

__all__ = ["refuse_clashes"]


class _Hosts(NamedTuple):
    """Hosts by a mask such as `*.shop.example`, or a domain with all that is below it."""

    mask: str
    has_below: bool = False

    def include(self, host: str) -> bool:
        return fnmatchcase(host, self.mask) or (self.has_below and host.endswith(f".{self.mask}"))

    def meet(self, other: _Hosts) -> bool:
        """Whether there may be a host that both include."""
        for one, another in ((self, other), (other, self)):
            if not one.has_below and "*" not in one.mask:
                return another.include(one.mask)
        mine, theirs = (one.mask.rpartition("*")[2] for one in (self, other))
        return mine.endswith(theirs) or theirs.endswith(mine)


class _Place(NamedTuple):
    """An app in the tree."""

    app: web.Application
    above: tuple[web.Application, ...] = ()
    """The apps that it is part of."""
    at: str = "/"
    """Where it is, for messages."""
    hosts: tuple[_Hosts, ...] = ()
    """Each of them must include a host that is served here; none is for all hosts."""
    manager: Any = None
    """Of sessions that are kept here."""

    @property
    def storage(self) -> object:
        """`None` if the cookie holds the session."""
        return getattr(self.manager, "storage", None)

    @property
    def cookie(self) -> Cookie:
        cookie: Cookie = self.manager.cookie
        return cookie

    @property
    def domain(self) -> str | None:
        """Of the cookie."""
        return self.cookie.domain and self.cookie.domain.lower().lstrip(".")

    def is_sent_to(self, other: _Place) -> bool:
        """Whether there may be a host at which the other app has sessions, and to which this one's cookie is sent."""
        mine, theirs = (() if one.domain is None else (_Hosts(one.domain, has_below=True),) for one in (self, other))
        return all(one.meet(another) for one in mine or self.hosts for another in other.hosts + theirs)


def refuse_clashes(app: web.Application) -> None:
    """Compare the sessions of all apps in the tree, while it starts.

    Raises:
        ConfigError: two of them cannot be kept apart.
    """
    tree = _tree(_Place(_root_of(app)))
    places = [place._replace(manager=manager) for place in tree for manager in _managers_of(place.app)]
    for one, other in combinations(places, 2):
        if one.app is other.app:
            which, whose = "two middlewares of an app", "one of them"
        elif one.app in other.above:
            which, whose = "an app and its sub-app", "the sub-app's setup"
        else:
            which = f"the sub-apps at {one.at} and {other.at}"
            whose = "their setups and call setup() on an app around them"
        if (what := _clash(one, other)) is not None:
            raise ConfigError(
                f"{which} both keep sessions {what}; give one of them cookie=Cookie(name=…), or leave out {whose} to "
                "share the session"
            )


def _clash(one: _Place, other: _Place) -> str | None:
    name, mine, theirs = one.cookie.name, one.cookie.path, other.cookie.path
    if one.manager is other.manager or name != other.cookie.name:
        return None
    if not (one.is_sent_to(other) or other.is_sent_to(one)):
        return None
    if (one.domain, mine) == (other.domain, theirs):
        return f"in the cookie {name!r} of path {mine!r}"
    where = f"in the cookie {name!r}, of the paths {mine!r} and {theirs!r}"
    mixed_up = "so a session of one is valid in the other"
    is_overlapping = path_matches(mine, theirs) or path_matches(theirs, mine)
    if one.manager.keeps_in_cookie and other.manager.keeps_in_cookie:
        is_opened_twice = one.app in (*other.above, other.app)  # in one request, whatever its path
        return f"{where}, {mixed_up}" if is_overlapping or is_opened_twice else None
    if is_overlapping and _are_in_one_storage(one, other):
        return f"{where}, and in {one.storage!r}, {mixed_up}"
    return None


def _managers_of(app: web.Application) -> list[SessionManager[Any]]:
    found = [ALONE[one] for one in app.middlewares if isinstance(one, FunctionType) and one in ALONE]
    return [app[MANAGER], *found] if MANAGER in app else found


def _tree(place: _Place) -> Iterator[_Place]:
    yield place
    for resource in place.app.router.resources():
        info = resource.get_info()
        if "app" not in info:
            continue
        rule = info.get("rule")
        hosts = place.hosts
        if isinstance(rule, Domain):
            hosts += (_Hosts(rule.get_info()["domain"].partition(":")[0]),)  # cookies know no ports
        at = info.get("prefix") or (str(hosts[-1].mask) if hosts else place.at)
        yield from _tree(_Place(info["app"], (*place.above, place.app), at, hosts))


def _root_of(app: web.Application) -> web.Application:
    """Return the app that is run: no sub-app knows what it is part of, but all are started by that one's `startup`."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not web.Application.startup.__code__:
        frame = frame.f_back
    root = app if frame is None else frame.f_locals["self"]
    return root if app in apps_below(root) else app


def _are_in_one_storage(one: _Place, other: _Place) -> bool:
    """Whether two apps have the same records: one storage, or two for the same server and the same keys."""
    mine, theirs = one.storage, other.storage
    if mine is theirs or mine is None or type(mine) is not type(theirs) or isinstance(mine, MemoryStorage):
        return mine is theirs
    url = one.app.get(GIVEN)
    if url is not None and url == other.app.get(GIVEN):
        return True
    is_named = type(mine).__module__.startswith(f"{own_storages}.")  # by its repr, as others may not be
    return is_named and [repr(mine), _prefix_of(mine)] == [repr(theirs), _prefix_of(theirs)]


def _prefix_of(storage: object) -> object:
    return getattr(storage, "prefix", None)
