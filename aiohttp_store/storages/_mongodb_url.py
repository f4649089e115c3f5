"""What a `mongodb://` URL says, and the clients that do what it says: PyMongo's and motor's."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote_plus, unquote_plus

from pymongo import AsyncMongoClient, uri_parser_shared
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.pool import Pool
from pymongo.common import URI_OPTIONS_VALIDATOR_MAP
from pymongo.errors import PyMongoError
from pymongo.monitoring import ConnectionClosedReason
from pymongo.uri_parser import parse_uri, split_options

from .._takeover.legacy import LegacyOptions
from ..errors import ConfigError
from ..url import identifier, is_secret, nearest, positive
from ._mongodb_refusals import HELLO, PROTOCOL
from ._port_probe import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..url import StorageURL

__all__ = ["CONCURRENT", "MongoDBOptions", "Source", "URLOptions", "collection_of", "read", "settings_beside"]

CONCURRENT = 8
"""Writes of one batch that are under way at the same time."""

_SPELLED = {name.lower(): name for name in getattr(uri_parser_shared, "URI_OPTIONS", ())}
"""MongoDB's parameters as its manual writes them; older releases of PyMongo list them in lower case only."""
_OBJECTS = {"driver", "server_api"}  # PyMongo lists them, but takes them as arguments only
_OF_SECONDARIES = {"readpreference": "primary", "readpreferencetags": [{}], "maxstalenessseconds": -1}
_RENAMED = {
    "j": "journal",
    "wtimeout": "wTimeoutMS",
    "ssl_ca_certs": "tlsCAFile",
    "ssl_certfile": "tlsCertificateKeyFile",
}
"""What MongoDB's or PyMongo's manual once called them, and what is not like the name of today."""


@dataclass(frozen=True, kw_only=True)
class MongoDBOptions(LegacyOptions):
    """How sessions are kept in a MongoDB, whatever its client."""

    collection: str = "sessions"
    """The collection of the sessions: letters, digits and underscores, at most 64, no digit first."""
    timeout: float = 2.0
    """Seconds within which each call answers or raises `StorageUnavailable`."""
    migrate_collection: str = "sessions"
    """The collection of the sessions that are taken over; it may be the same."""

    def __post_init__(self) -> None:
        identifier("collection", self.collection)
        identifier("migrate_collection", self.migrate_collection)
        positive("timeout", self.timeout)


@dataclass(frozen=True, kw_only=True)
class URLOptions(MongoDBOptions):
    """Our own parameters of `mongodb://`; all others are MongoDB's."""

    pool_size: int | None = None
    """How many connections to one server are opened at most; another name of `maxPoolSize`, which is 100 by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool_size is not None:
            positive("pool_size", self.pool_size)


class Source(NamedTuple):
    """How `open` makes a client of our own, and what `repr` says of it."""

    connect: Callable[[], Any]
    """It holds the whole URL."""
    shown: str
    place: Place | None
    """Where the first server should be; unknown before an SRV record is looked up."""

    def __repr__(self) -> str:
        return f"<Source {self.shown}>"

    def __sentry_repr__(self) -> str:  # Sentry shows the items of a tuple, whatever its repr is
        return repr(self)


class _Pool(Pool):
    """PyMongo's pool, where a `connect` that is cancelled closes its socket.

    The driver's own leaves it to the garbage collector, and its client cancels its monitors when it is closed.
    """

    async def connect(self, handler: Any = None) -> Any:
        connecting = asyncio.ensure_future(super().connect(handler))
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            while not connecting.done():  # it has its connectTimeoutMS
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({connecting})
            if connecting.exception() is None:
                await connecting.result().close_conn(ConnectionClosedReason.POOL_CLOSED)
            raise


def read(url: StorageURL) -> tuple[Source, MongoDBOptions, str]:
    """Return how to make the client that a URL describes, how sessions are kept there, and in which database.

    Raises:
        ConfigError: PyMongo does not take the URL, or it allows what sessions do not.
    """
    own = [field.name for field in dataclasses.fields(URLOptions)]
    mine = dataclasses.replace(url, query=tuple(pair for pair in url.query if pair[0] in own))
    options = mine.options(URLOptions)
    address, _, query = url.text.partition("://")[2].partition("?")
    parts = [part for part in query.split("&") if part and unquote_plus(part.partition("=")[0]) not in own]
    scheme = "mongodb+srv" if url.scheme == "mongodb+srv" else "mongodb"
    text = f"{scheme}://{address}" + (("" if "/" in address else "/") + "?" + "&".join(parts) if parts else "")
    given = _given(url, parts, own)
    database = _parsed(url, text, given)["database"] or "sessions"
    make = partial(AsyncMongoClient, _pool_class=_Pool) if url.scheme == "mongodb+pymongo" else _motor_client(url)
    return (
        Source(partial(make, text, **settings_beside(given, options)), _shown(url), _place(url, given)),
        options,
        database,
    )


def _place(url: StorageURL, given: dict[str, Any]) -> Place | None:
    if url.scheme == "mongodb+srv" or not url.hosts:
        return None
    host, is_tls = url.hosts[0], bool(given.get("tls", given.get("ssl")))
    return Place(host.name, host.port or 27017, PROTOCOL, is_tls, hello=HELLO)


def _given(url: StorageURL, parts: Sequence[str], own: Sequence[str]) -> dict[str, Any]:
    """Return the values of MongoDB's parameters by their names in lower case.

    Names are checked here, and values one by one, because PyMongo knows nothing of our own parameters, and what it
    says of a wrong one names neither the parameter nor the value in every release.
    """
    known = {name: _SPELLED.get(name, name) for name in URI_OPTIONS_VALIDATOR_MAP.keys() - _OBJECTS}
    seen: set[str] = set()
    for part in parts:
        name, sign, value = part.partition("=")
        if name.lower() not in known:
            if name.lower() in _RENAMED:
                raise ConfigError(f"{url.scheme}:// has no parameter {name!r}{nearest(_RENAMED[name.lower()], known)}")
            raise url.unknown_parameter(name, own, [*known.values()])
        if not sign:
            raise ConfigError(f"the parameter {name!r} has no value; write {name}=value")
        if name.lower() in seen:
            raise ConfigError(f"the parameter {name!r} is given twice in {url}")
        seen.add(name.lower())
        text = unquote_plus(value)
        with _named(f"{name}={'***' if is_secret(name) else repr(text)}", *((text, value) if is_secret(name) else ())):
            split_options(part, normalize=False)
    with _named(_shown(url)):  # parameters that exclude each other
        return dict(split_options("&".join(parts), normalize=False)) if parts else {}


def _parsed(url: StorageURL, text: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return PyMongo's reading of the whole URL, after a look at what it allows and sessions do not."""
    # PyMongo looks SRV records up while it parses: a look-up has its time in `open`.
    is_srv = url.scheme == "mongodb+srv"
    with _named(_shown(url), url.password, quote_plus(url.password or "")):
        parsed = parse_uri(f"mongodb{text.partition('?')[0].removeprefix('mongodb+srv')}" if is_srv else text)
    refused = {
        "it takes one host, without a port": is_srv and (len(url.hosts) != 1 or url.hosts[0].port is not None),
        "the path names the database only; name the collection with collection=": parsed["collection"],
        "w=0 hides what became of a write; leave it out for w=majority": given.get("w") == 0,
        "readPreference must be primary, without readPreferenceTags and maxStalenessSeconds: "
        "a secondary may still show a session that was ended": any(
            given.get(name, value) != value for name, value in _OF_SECONDARIES.items()
        ),
        "pool_size= is another name of maxPoolSize=; give one": (
            "maxpoolsize" in given and "pool_size" in dict(url.query)
        ),
    }
    for why, is_so in refused.items():
        if is_so:
            raise ConfigError(f"{url.scheme}:// cannot be used so: {why}")
    return parsed


@contextmanager
def _named(what: str, *secrets: str | None) -> Iterator[None]:
    """Raise what PyMongo has against a part of the URL as a `ConfigError` that names the part, and no secret."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # a compressor that is not installed
            yield
    except (PyMongoError, OSError, ValueError, TypeError, KeyError, UserWarning) as error:
        complaint = str(error)
    else:
        return
    for secret in filter(None, secrets):
        complaint = complaint.replace(secret, "***")
    raise ConfigError(f"{what} cannot be used: {complaint}")


def _shown(url: StorageURL) -> str:
    return str(dataclasses.replace(url, user=None, password=None, query=()))


def settings_beside(given: dict[str, Any], options: URLOptions) -> dict[str, Any]:
    """Return the settings that the URL leaves open, as PyMongo waits 30 s for a server, or without end for a place."""
    milliseconds = max(1, round(options.timeout * 1000))
    bounds = ("serverSelectionTimeoutMS", "connectTimeoutMS", "socketTimeoutMS", "waitQueueTimeoutMS")
    settings: dict[str, Any] = dict.fromkeys(bounds, milliseconds)
    # With PyMongo's 2, one lost connection fails all calls that are waiting to connect, and costs 1.5 s, not 0.5 s.
    settings["maxConnecting"] = 2 * CONCURRENT
    # With PyMongo's 10 s, a server that refused a login, as while a password is changed, is left alone for so long.
    settings["heartbeatFrequencyMS"] = 500
    if not {"w", "journal", "fsync"} & given.keys():
        settings.update(w="majority", journal=True)  # without the journal, a server that dies forgets its last 0.1 s
    if options.pool_size is not None:
        settings["maxPoolSize"] = options.pool_size
    return {name: value for name, value in settings.items() if name.lower() not in given}


def _motor_client(url: StorageURL) -> Any:
    try:
        from motor.motor_asyncio import AsyncIOMotorClient  # noqa: PLC0415  (PyMongo alone suffices for mongodb+pymongo)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{url.scheme}:// needs the package 'motor'; install it with: pip install 'aiohttp_store[mongodb]', "
            "or write mongodb+pymongo://"
        ) from error
    return AsyncIOMotorClient


def collection_of(client: Any, database: str, name: str) -> Any:
    """Return a collection of a client, or the collection that was given in its place.

    Raises:
        ConfigError: it is neither.
    """
    motor = sys.modules.get("motor.motor_asyncio")
    clients: Any = (AsyncMongoClient, *((motor.AsyncIOMotorClient,) if motor else ()))
    collections: Any = (AsyncCollection, *((motor.AsyncIOMotorCollection,) if motor else ()))
    if isinstance(client, clients):
        return client.get_database(database).get_collection(name)
    if isinstance(client, collections):
        return client
    raise ConfigError(
        f"a {type(client).__name__} is no MongoDB client for asyncio; give an AsyncMongoClient of pymongo, "
        "an AsyncIOMotorClient of motor, or a collection of either"
    )
