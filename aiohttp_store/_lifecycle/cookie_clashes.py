"""Apps of one tree whose sessions would meet: one cookie for both, or one storage and cookies that both are sent."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import combinations
from typing import Any, NamedTuple

from aiohttp import web
from aiohttp.web_urldispatcher import Domain

from .._engine.state import SessionManager
from ..cookie import Cookie, path_matches
from ..errors import ConfigError
from ..storages import __name__ as own_storages
from ..storages.memory import MemoryStorage
from .before_headers import apps_below
from .request_state import GIVEN, MANAGER

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

    @property
    def manager(self) -> SessionManager[Any]:
        return self.app[MANAGER]

    @property
    def storage(self) -> object:
        """`None` if the cookie holds the session."""
        return getattr(self.manager, "storage", None)

    @property
    def cookie(self) -> Cookie:
        return self.manager.cookie

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
    places = [place for place in _tree(_Place(_root_of(app))) if MANAGER in place.app]
    for one, other in combinations(places, 2):
        is_nested = one.app in other.above
        if (what := _clash(one, other, is_nested=is_nested)) is None:
            continue
        which = "an app and its sub-app" if is_nested else f"the sub-apps at {one.at} and {other.at}"
        whose = "the sub-app's setup" if is_nested else "their setups and call setup() on an app around them"
        raise ConfigError(
            f"{which} both keep sessions {what}; give one of them cookie=Cookie(name=…), or leave out {whose} to share "
            "the session"
        )


def _clash(one: _Place, other: _Place, *, is_nested: bool) -> str | None:
    name, mine, theirs = one.cookie.name, one.cookie.path, other.cookie.path
    if name != other.cookie.name or not (one.is_sent_to(other) or other.is_sent_to(one)):
        return None
    if (one.domain, mine) == (other.domain, theirs):
        return f"in the cookie {name!r} of path {mine!r}"
    where = f"in the cookie {name!r}, of the paths {mine!r} and {theirs!r}"
    mixed_up = "so a session of one is valid in the other"
    is_overlapping = path_matches(mine, theirs) or path_matches(theirs, mine)
    if one.manager.keeps_in_cookie and other.manager.keeps_in_cookie:
        return f"{where}, {mixed_up}" if is_overlapping or is_nested else None  # in one request both would open it
    if is_overlapping and _are_in_one_storage(one, other):
        return f"{where}, and in {one.storage!r}, {mixed_up}"
    return None


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
    url = one.app[GIVEN]
    if url is not None and url == other.app[GIVEN]:
        return True
    is_named = type(mine).__module__.startswith(f"{own_storages}.")  # by its repr, as others may not be
    return is_named and [repr(mine), _prefix_of(mine)] == [repr(theirs), _prefix_of(theirs)]


def _prefix_of(storage: object) -> object:
    return getattr(storage, "prefix", None)
