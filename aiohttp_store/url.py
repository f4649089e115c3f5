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
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NAMES = {"\0": "NUL", "\t": "tab", "\n": "line feed", "\r": "carriage return"}
_CUT_PATH = re.compile(r"/[^/]*@|[^@]*:[^@]*@")
"""A path that may hold part of a login."""
_SECRET = re.compile(r"pass|pwd|^pw$|secret|token|credential|api_?key|authmechanismproperties", re.IGNORECASE)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


_MISSPELT = tuple(
    (re.compile(pattern, re.ASCII), f", {way}")
    for pattern, way in (
        (r"#", "and '#' as %23"),
        (r"^$", "as in redis://localhost:6379/0; is an environment variable empty?"),
        (r"^\s|\s$|^['\"<]|['\">]$", "without the spaces or quotes around it"),
        (r"^jdbc:", "without 'jdbc:'"),
        (r"\$\{|\$\(|\{\{", "as in redis://localhost:6379/0; was a variable not replaced?"),
        (r"^[A-Za-z][A-Za-z0-9+.-]*(:/?(?!/)[^0-9/]|//)", "with '://' after the scheme"),
        (r"", "as in redis://localhost:6379/0"),
    )
)
"""What is missing in a text that is not a URL: the first of these that is found in it."""
_WRITE = "write name:port or [v6-address]:port, and an '@' between a password and the host"
_NO_HOST = tuple(
    (re.compile(pattern, re.DOTALL), reason)
    for pattern, reason in (
        (":memory:", ": nothing would be kept; write memory://, or sqlite:///file.db"),
        ("", ": it is empty; leave out a ',' too many"),
        (r"[^\[\]:]*:", f": its port is missing; {_WRITE}"),
        (r"[^\[\]:]+:[^:]*[^:0-9][^:]*", f": its port is not a number; {_WRITE}"),
        (r"[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.%]*", f": a v6 address stands in brackets; {_WRITE}"),
        (r".*", f"; {_WRITE}"),
    )
)
"""Why a text is no host: the first of these that it is."""


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
    user: str | None = field(default=None, repr=False)
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
            ConfigError: it is not such a URL, or holds control characters; the message shows nothing of it that may
                be part of a password.
        """
        match = _URL.fullmatch(text)
        if match is None:
            way = next((way for pattern, way in _MISSPELT if pattern.search(text)), "")
            raise ConfigError(
                f"{_beginning(text)} is not a storage URL; write scheme://user:password@host:port/path?name=value{way}"
            )
        _refuse_control(f"the {match['scheme']}:// URL", text)
        login, hosts, path, query = match["login"], match["hosts"], match["path"] or "", match["query"] or ""
        # What comes before such an @ is no host, but may be a password.
        if "@" in query or ("@" in path if hosts else _CUT_PATH.match(path)):
            raise ConfigError(
                f"there is an '@' behind the host of the {match['scheme']}:// URL; percent-encode it as %40, "
                "and in a user or password also '/', '?' and '#'; urllib.parse.quote(password, safe='') does so"
            )
        user, colon, password = (login or "").partition(":")
        url = cls(
            scheme=match["scheme"].lower(),
            user=unquote(user) if user else None,
            password=unquote(password) if colon else None,
            path=unquote(path),
            query=tuple(parse_qsl(query, keep_blank_values=True)),
            text=text,
        )
        url = dataclasses.replace(url, hosts=url._hosts(hosts) if hosts else ())
        for what, part in (("the user", url.user or ""), ("the path", url.path)):
            _refuse_control(f"{what} in the {url.scheme}:// URL", part)
        for name, value in url.query:
            _refuse_control(f"a parameter's name in the {url.scheme}:// URL", name)
            _refuse_control(f"{name}= in the {url.scheme}:// URL", "" if is_secret(name) else value)
        return url

    @staticmethod
    def is_scheme(text: str) -> bool:
        """Return whether `text` can stand before `://` (RFC 3986, section 3.1, in lower case)."""
        return re.fullmatch(r"[a-z][a-z0-9+.-]*", text) is not None

    def _hosts(self, text: str) -> tuple[Host, ...]:
        parts = text.split(",")
        return tuple(self._host(part, f"host {place} of {len(parts)}") for place, part in enumerate(parts, 1))

    def _host(self, part: str, which: str) -> Host:
        match = _HOST.fullmatch(part)
        name = match and (match["v6"] or unquote(match["name"]))
        if match is None or not name or not name.isprintable() or " " in name or _port(match) > MAX_PORT:
            # It is not shown, as it may be a password whose @ was forgotten.
            reason = next(reason for pattern, reason in _NO_HOST if pattern.fullmatch(part))
            if match is not None and _port(match) > MAX_PORT:
                reason = f": its port is above {MAX_PORT}; {_WRITE}"
            raise ConfigError(f"{which} in the {self.scheme}:// URL is not a host{reason}")
        return Host(name, _port(match) if match["port"] else None)

    def host(self, port: int) -> Host:
        """Return the only host, `localhost` and `port` where the URL names none.

        Raises:
            ConfigError: there are several.
        """
        if len(self.hosts) > 1:
            raise ConfigError(f"{self.scheme}:// takes one host, and the URL names {len(self.hosts)}")
        name, given = self.hosts[0] if self.hosts else ("localhost", None)
        return Host(name, given or port)

    def several_hosts(self, port: int) -> list[Host]:
        """Return all hosts, each with a port; `localhost` and `port` where the URL names none.

        Raises:
            ConfigError: one is named twice.
        """
        hosts = [Host(name, given or port) for name, given in self.hosts or (Host("localhost", None),)]
        alike = [Host(name.lower(), given) for name, given in hosts]
        twice = next((host for host in alike if alike.count(host) > 1), None)
        if twice is not None:
            raise ConfigError(f"{self} names {twice.name}:{twice.port} twice; leave one of them out")
        return hosts

    def quoted(self, part: str) -> str:
        """Return a part of the path as an error shows it, unless it may be the end of a password without an `@`."""
        is_login = self.user is None and self.password is None and any(host.port is not None for host in self.hosts)
        return f"what follows the port in the {self.scheme}:// URL" if is_login else f"{part!r} in {self}"

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
        login = f"{quote(self.user or '', safe='')}:***"
        if self.password is None:
            login = "***" if self.user else ""  # it may be a password whose colon was forgotten
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
    return _SECRET.search(name) is not None


def _beginning(text: str) -> str:
    """Return what may be shown of a text that is no URL: nothing that may be part of a password."""
    ends = r"(?=:/|//)" if "@" in text else r"(?=:|$)"
    found = re.match(rf"[A-Za-z][A-Za-z0-9+.-]*{ends}", text)
    if found is None:
        return "what was given" if text else "''"
    return repr(found[0] + "…" * (found[0] != text))


def _refuse_control(what: str, text: str) -> None:
    found = _CONTROL.search(text)
    if found is not None:
        character = _NAMES.get(found[0], ascii(found[0]))
        raise ConfigError(f"{what} holds a {character}; only a password may hold control characters, percent-encoded")


def _port(match: re.Match[str]) -> int:
    digits = (match["port"] or "0").lstrip("0")
    return int(digits or 0) if len(digits) <= len(str(MAX_PORT)) else MAX_PORT + 1


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
