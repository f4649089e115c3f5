"""A storage's URL: split with lists of hosts, its parameters typed, its password never shown."""

from __future__ import annotations

import dataclasses
import re
import ssl
import types
import typing
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import parse_qsl, quote, unquote

from ._foreign_words import parameter
from ._keywords import nearest
from .errors import ConfigError

__all__ = ["Host", "StorageURL", "TLSOptions", "identifier", "is_secret", "nearest", "positive"]

T = TypeVar("T")

MAX_PORT = 65535

_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?:(?P<login>[^/?#]*)@)?(?P<hosts>[^/?#]*)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?"
)
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<name>[^\[\]:,]+))(?::(?P<port>[0-9]+))?")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


class Host(NamedTuple):
    """One server of a URL."""

    name: str
    """Its name or address, a v6 address without brackets."""
    port: int | None
    """`None` where the URL leaves it to the storage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageURL:
    """The parts of a storage's URL, percent-decoded; `str()` and `repr()` mask the password."""

    scheme: str
    """In lower case."""
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    hosts: tuple[Host, ...] = ()
    path: str = ""
    """With its leading `/`, or empty."""
    query: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Names and values, in order."""
    text: str = field(default="", repr=False)
    """The URL as it was given, password included, for drivers that read URLs of their own grammar."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Split `scheme://user:password@host:port,host:port/path?name=value`.

        Raises:
            ConfigError: it is not such a URL; the message never holds the password.
        """
        match = _URL.fullmatch(text)
        if match is None:
            shown = text.partition("?")[0]
            if "@" in text:  # wherever a login may end
                shown = re.sub(r"//.*", "//***", shown, flags=re.DOTALL)
            raise ConfigError(f"{shown!r} is not a storage URL; write scheme://user:password@host:port/path?name=value")
        login, hosts = match["login"], match["hosts"]
        query = match["query"] or ""
        # What comes before such an @ is no host, but may be a password.
        is_cut = "@" in (match["path"] or "") + query.partition("=")[0]
        if hosts and (is_cut or ("@" in query and not all(map(_HOST.fullmatch, hosts.split(","))))):
            raise ConfigError(
                f"the user or password in the {match['scheme']}:// URL holds a '/' or '?'; "
                "percent-encode them, as by urllib.parse.quote"
            )
        user, colon, password = (login or "").partition(":")
        url = cls(
            scheme=match["scheme"].lower(),
            user=unquote(user) if user else None,
            password=unquote(password) if colon else None,
            path=unquote(match["path"] or ""),
            query=tuple(parse_qsl(query, keep_blank_values=True)),
            text=text,
        )
        return dataclasses.replace(url, hosts=tuple(url._host(part) for part in hosts.split(",")) if hosts else ())

    @staticmethod
    def is_scheme(text: str) -> bool:
        """Tell whether `text` can stand before `://` (RFC 3986, section 3.1, in lower case)."""
        return re.fullmatch(r"[a-z][a-z0-9+.-]*", text) is not None

    def _host(self, part: str) -> Host:
        match = _HOST.fullmatch(part)
        if match is None or int(match["port"] or 0) > MAX_PORT:
            raise ConfigError(f"{part!r} in the URL {self} is not a host; write name:port, or [v6-address]:port")
        return Host(match["v6"] or unquote(match["name"]), int(match["port"]) if match["port"] else None)

    def host(self, port: int) -> Host:
        """Give the only host, `localhost` and `port` where the URL names none.

        Raises:
            ConfigError: there are several.
        """
        if len(self.hosts) > 1:
            raise ConfigError(f"{self.scheme}:// takes one host, and {self} names {len(self.hosts)}")
        name, given = self.hosts[0] if self.hosts else ("localhost", None)
        return Host(name, given or port)

    def several_hosts(self, port: int) -> list[Host]:
        """Give all hosts, each with a port; `localhost` and `port` where the URL names none.

        Raises:
            ConfigError: one is named twice.
        """
        hosts = [Host(name, given or port) for name, given in self.hosts or (Host("localhost", None),)]
        alike = [Host(name.lower(), given) for name, given in hosts]
        twice = next((host for host in alike if alike.count(host) > 1), None)
        if twice is not None:
            raise ConfigError(f"{self} names {twice.name}:{twice.port} twice; leave one of them out")
        return hosts

    def options(self, declared: type[T]) -> T:
        """Read the query as the fields of a dataclass, by their types: str, int, float, bool, and these or `None`.

        Raises:
            ConfigError: an unknown or repeated parameter, or a value of another type.
        """
        hints = typing.get_type_hints(declared)
        names = [option.name for option in dataclasses.fields(declared)]  # type: ignore[arg-type]
        values: dict[str, Any] = {}
        for name, text in self.query:
            if name not in names:
                raise self.unknown_parameter(name, names)
            if name in values:
                raise ConfigError(f"the parameter {name!r} is given twice in {self}")
            values[name] = _convert(name, text, hints[name])
        return declared(**values)

    def unknown_parameter(
        self, name: str, known: typing.Sequence[str], others: typing.Iterable[str] = ()
    ) -> ConfigError:
        """Return the error that says that there is no such parameter, and what to write instead.

        Args:
            name: of the parameter.
            known: those of this storage.
            others: those of its driver, which may be meant as well and are too many to be listed.
        """
        listed = ", ".join(sorted(known, key=lambda one: (one.startswith("migrate"), one)))
        listed = f"its own are {listed}, and all others are the driver's" if others else f"it knows {listed}"
        is_misspelt = name.lower() in map(str.lower, (*known, *others))
        way = "" if is_misspelt else parameter(name, known)
        return ConfigError(
            f"{self.scheme}:// has no parameter {name!r}"
            + (f"; {way}" if way else f"{nearest(name, (*known, *others))}; {listed}")
        )

    def __str__(self) -> str:
        login = quote(self.user or "", safe="")
        if self.password is not None:
            login += ":***"
        hosts = ",".join(
            (f"[{name}]" if ":" in name else name) + (f":{port}" if port is not None else "")
            for name, port in self.hosts
        )
        query = "&".join(f"{name}={'***' if is_secret(name) else value}" for name, value in self.query)
        return f"{self.scheme}://{login}{'@' if login else ''}{hosts}{self.path}{'?' if query else ''}{query}"


@dataclass(frozen=True, kw_only=True)
class TLSOptions:
    """How a connection is encrypted and the server known; the files are PEM."""

    tls: bool = False
    """Encrypt the connection, and check the server's certificate and name."""
    tls_ca: str | None = None
    """Path of the authorities to trust (PEM), instead of the system's."""
    tls_cert: str | None = None
    """Path of this client's certificate (PEM)."""
    tls_key: str | None = None
    """Path of its key (PEM), if `tls_cert` does not hold it."""

    def context(self) -> ssl.SSLContext | None:
        """Make the context for one connection pool, or `None` without TLS.

        Raises:
            ConfigError: a file cannot be read, or is named although `tls` is off.
        """
        if not self.tls:
            given = next((name for name in ("tls_ca", "tls_cert", "tls_key") if getattr(self, name)), None)
            if given is not None:
                raise ConfigError(f"{given}= is given, but the connection is not encrypted; add tls=true")
            return None
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
            if self.tls_cert is not None:
                context.load_cert_chain(self.tls_cert, self.tls_key)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(
                f"the TLS files {self.tls_ca}, {self.tls_cert}, {self.tls_key} cannot be used: {error}"
            ) from error
        return context


def is_secret(name: str) -> bool:
    """Whether the value of this parameter must not be shown."""
    return any(word in name.lower() for word in ("password", "secret", "token", "authmechanismproperties"))


def positive(name: str, value: float) -> None:
    """Refuse a number that is not above 0 (NaN and infinity as well).

    Raises:
        ConfigError: it is not; the message begins with `name`.
    """
    if not 0 < value < float("inf"):
        raise ConfigError(f"{name}={value} must be a finite number above 0")


def identifier(name: str, value: str) -> None:
    """Refuse what is not a plain name, of 1 to 64 letters, digits and underscores, since it will stand in a statement.

    Raises:
        ConfigError: it is not; the message begins with `name`.
    """
    if not _IDENTIFIER.fullmatch(value):
        raise ConfigError(
            f"{name}={value!r} must be 1 to 64 letters, digits and underscores, and not begin with a digit"
        )


def _convert(name: str, text: str, hint: Any) -> Any:
    kinds = (
        [kind for kind in typing.get_args(hint) if kind is not type(None)]
        if isinstance(hint, types.UnionType)
        else [hint]
    )
    try:
        return _BOOLEANS[text.lower()] if kinds[0] is bool else kinds[0](text)
    except (KeyError, ValueError):
        raise ConfigError(f"{name}={text!r} is not of type {kinds[0].__name__}") from None
