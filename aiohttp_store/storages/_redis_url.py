"""What a URL of Redis says, and the connections that it stands for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.asyncio import UnixDomainSocketConnection

from .._takeover.legacy import LegacyOptions
from ..errors import ConfigError
from ..url import TLSOptions, positive
from ._redis_connections import Connections
from ._redis_sentinels import SentinelConnections

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..url import StorageURL

__all__ = ["RedisClusterOptions", "RedisOptions", "SentinelOptions", "TCPOptions", "UnixOptions", "read"]


@dataclass(frozen=True, kw_only=True)
class _Common:
    prefix: str = "session:"
    """What each key begins with; apps that share a database need different ones."""
    timeout: float = 2.0
    """Seconds within which each call answers or raises `StorageUnavailable`."""

    def __post_init__(self) -> None:
        positive("timeout", self.timeout)


@dataclass(frozen=True, kw_only=True)
class _Connected(_Common):
    pool_size: int = 16
    """How many connections to a server are opened at most; further calls wait for a free one."""
    replicas: int = 0
    """How many replicas must have a change before it counts as made (`WAIT`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("pool_size", self.pool_size)
        if self.replicas < 0:
            raise ConfigError(f"replicas={self.replicas} is no number of replicas; write 0, 1, …")


@dataclass(frozen=True, kw_only=True)
class RedisOptions(_Common, LegacyOptions):
    """How sessions are kept in a Redis, whatever its client."""


@dataclass(frozen=True, kw_only=True)
class RedisClusterOptions(_Connected, TLSOptions):
    """The parameters of `redis+cluster://`."""


@dataclass(frozen=True, kw_only=True)
class TCPOptions(RedisOptions, _Connected, TLSOptions):
    """The parameters of `redis://`, `rediss://` and `valkey://`; `rediss://` implies `tls`."""


@dataclass(frozen=True, kw_only=True)
class SentinelOptions(TCPOptions):
    """The parameters of `redis+sentinel://`; `tls` is for the sentinels as well."""

    sentinel_user: str | None = None
    """The user who logs in to the sentinels; the one of the URL logs in to the server."""
    sentinel_password: str | None = dataclasses.field(default=None, repr=False)
    """The password for the sentinels."""


@dataclass(frozen=True, kw_only=True)
class UnixOptions(RedisOptions, _Connected):
    """The parameters of `redis+unix://`."""

    db: int = 0
    """The number of the database, of `redis+unix://` only; other URLs have it in their path."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.db < 0:
            raise ConfigError(f"db={self.db} is not the number of a database; write 0, 1, …")


def read(url: StorageURL) -> tuple[Connections, RedisOptions]:
    """Return connections to what a URL names, and how sessions are kept there.

    Raises:
        ConfigError: it names nothing, or has a part or a parameter that is not known.
    """
    return _WAYS.get(url.scheme, _by_tcp)(url)


def _by_tcp(url: StorageURL) -> tuple[Connections, TCPOptions]:
    options = url.options(TCPOptions)
    if url.scheme == "rediss":
        if not options.tls and any(name == "tls" for name, _ in url.query):
            raise ConfigError(f"{url} turns off what rediss:// stands for; write redis:// or leave tls= out")
        options = dataclasses.replace(options, tls=True)
    host = url.host(6379)
    place: dict[str, Any] = {"host": host.name, "port": host.port, "db": _database(url, url.path.strip("/"))}
    return Connections(options.pool_size, options.context(), **_common(url, options), **place), options


def _by_unix(url: StorageURL) -> tuple[Connections, UnixOptions]:
    if url.hosts or not url.path.strip("/"):
        raise ConfigError(f"{url} must name a socket and no host; write redis+unix:///path.sock?db=0")
    options = url.options(UnixOptions)
    place: dict[str, Any] = {"path": url.path, "db": options.db}
    return Connections(options.pool_size, kind=UnixDomainSocketConnection, **_common(url, options), **place), options


def _by_sentinels(url: StorageURL) -> tuple[Connections, SentinelOptions]:
    options = url.options(SentinelOptions)
    service, _, number = url.path.strip("/").partition("/")
    if not service:
        raise ConfigError(f"{url} must name a service; write redis+sentinel://host:26379,host:26379/service/0")
    context = options.context()
    settings: dict[str, Any] = {"username": options.sentinel_user, "password": options.sentinel_password}
    if context is not None:
        settings |= {
            "ssl": True,
            "ssl_ca_certs": options.tls_ca,
            "ssl_certfile": options.tls_cert,
            "ssl_keyfile": options.tls_key or options.tls_cert,
        }
    connections = SentinelConnections(
        url.several_hosts(26379),
        service,
        options.pool_size,
        context,
        sentinel_settings=settings,
        **_common(url, options),
        db=_database(url, number),
    )
    return connections, options


_WAYS: dict[str, Callable[[StorageURL], tuple[Connections, RedisOptions]]] = {
    "redis+unix": _by_unix,
    "redis+sentinel": _by_sentinels,
}


def _database(url: StorageURL, number: str) -> int:
    if number and not (number.isascii() and number.isdecimal()):
        raise ConfigError(f"{url.quoted(number)} is not the number of a database; write {url.scheme}://…/0")
    return int(number or 0)


def _common(url: StorageURL, options: _Connected) -> dict[str, Any]:
    """Return the settings of all connections, however they find their server."""
    return {
        "username": url.user,
        "password": url.password,
        "timeout": options.timeout,
        "replicas": options.replicas,
    }
