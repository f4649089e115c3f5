"""Storage URLs: their grammar, their typed parameters, and passwords that stay hidden."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiohttp_store import ConfigError, Host, StorageURL
from aiohttp_store.storages import storage_from_url
from aiohttp_store.url import TLSOptions, identifier


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("memory://", {}),
        ("redis://h", {"hosts": (Host("h", None),)}),
        ("redis://h:1,i,[::1]:3/0", {"hosts": (Host("h", 1), Host("i", None), Host("::1", 3)), "path": "/0"}),
        (
            "X://u%40:p%2F%3a@h/",
            {"scheme": "x", "user": "u@", "password": "p/:", "hosts": (Host("h", None),), "path": "/"},
        ),
        ("redis://:p@h", {"password": "p", "hosts": (Host("h", None),)}),
        ("redis+unix:///run/my%20redis.sock?db=1", {"path": "/run/my redis.sock", "query": (("db", "1"),)}),
        ("a://h?x=1&y=%26&z=", {"hosts": (Host("h", None),), "query": (("x", "1"), ("y", "&"), ("z", ""))}),
    ],
)
def test_a_url_is_split(text: str, parts: dict[str, object]) -> None:
    url = StorageURL.parse(text)
    for name in ("user", "password", "hosts", "path", "query"):
        assert getattr(url, name) == parts.get(name, {"hosts": (), "path": "", "query": ()}.get(name)), name
    assert url.scheme == parts.get("scheme", text.partition(":")[0])


@pytest.mark.parametrize(
    "text", ["", "redis", "redis:h", "://h", "redis://h:port", "redis://[::1", "redis://h:99999", "redis://,"]
)
def test_what_is_no_url_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a"):
        StorageURL.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "redis://u:geheim@h:x",
        "redis//u:geheim@h",
        "redis://u:geheim@h?password=geheim#f",
        "redis://u:geheim?x#y@h",
    ],
)
def test_no_error_shows_a_password(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        StorageURL.parse(text)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "mongodb://user:gehe/im@host/db",
        "redis://user:123/im@host/0",
        "redis://user:gehe?im@host/0",
        "redis://user:123?im@host/0",
        "redis://user:gehe?im==@host/0",
    ],
)
def test_a_password_that_is_not_encoded_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ConfigError, match="percent-encode") as caught:
        StorageURL.parse(text)
    for part in ("gehe", "123", "im@"):
        assert part not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "redis:/:geheim@h/0",
        "redis:geheim@h",
        "redis//:geheim@h/0",
        ":geheim@h/0",
        "//u:geheim@h/0",
        "geheim@h:6379",
        "u:geheim@h/0",
        "redis:/u:geheim/0",
        "redis://u:1?PW=geheim@h",
        "redis://u:1?geheim=x@h",
        "redis://u:p@1?PW=geheim@h",
        "redis://u:1/geheim@h",
        "redis:///:geheim@h/0",
        "redis:///u:geheim@h/0",
        "redis:///geheim@h/0",
        "redis:////u:geheim@h/0",
        "redis://u:geheim",
        "redis://:geheim/0",
        "redis://:geheim",
        "redis://u:geheim/0?timeout=1",
        "redis://u:1,geheim:x",
        "redis://u:1,geheim",
        "redis://u:geheim,h2:1/0",
        "redis://u:gehe#im@h",
        "redis://u:geheim#h",
        "redis://u:geheim@h/zero",
        "redis://geheim@h/zero",
        "redis://u:12/geheim",
        "redis://u:geheim@h:port/0",
        "redis://u:geheim@h\n/0",
        "redis://u:geheim\n@h",
        "mysql://u:12/gehe/geheim",
        "mysql://u:geheim/db",
        "mongodb://u:geheim/db",
        "mongodb://u:geheim@h,,i/db",
        "redis+sentinel://u:geheim/service",
        "redis+cluster://u:12/geheim",
        "memcached://u:geheim@h",
        "memory://u:geheim@h",
        "memory://u:geheim",
        "sqlite://u:geheim@/x.db",
        "sqlite://u:geheim/x.db",
        "redis://h?pass=geheim&timeout=-1",
        "redis://h,i?pwd=geheim",
        "redis+unix://h/x?passwd=geheim",
        "redis+unix://h/x?pw=geheim&api_key=geheim",
    ],
)
def test_no_error_of_a_malformed_url_shows_what_may_be_its_password(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        storage_from_url(text)
    assert "gehe" not in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sqlite://:memory:", "nothing would be kept; write memory://, or sqlite:///file.db"),
        ("redis://localhost:99999", "is not a host: its port is above 65535; write name:port"),
        ("redis://[::1]:65536", "its port is above 65535"),
        ("redis://h:1,i:123456789/0", "host 2 of 2 in the redis:// URL is not a host: its port is above 65535"),
        ("redis://localhost:", "its port is missing"),
        ("redis://localhost:port", "its port is not a number"),
        ("redis://::1", "a v6 address stands in brackets"),
        ("redis://a,,b", "host 2 of 3 in the redis:// URL is not a host: it is empty"),
        ("redis://a b", "is not a host; write name:port"),
        ("redis://a%20b:80", "is not a host; write name:port"),
        ("mysql://u:pa#ss@h/d", "and '#' as %23"),
        ("redis://h/0?prefix=a#b", "and '#' as %23"),
        ("", "is an environment variable empty?"),
        (" redis://h", "without the spaces or quotes around it"),
        ("'redis://h'", "without the spaces or quotes around it"),
        ("${REDIS_URL}", "was a variable not replaced?"),
        ("redis:/h", "with '://' after the scheme"),
        ("redis//h", "with '://' after the scheme"),
        ("sqlite:file.db", "with '://' after the scheme"),
        ("jdbc:mysql://h/d", "without 'jdbc:'"),
        ("localhost:6379", "as in redis://localhost:6379/0"),
    ],
)
def test_what_is_wrong_with_a_url_is_told(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        StorageURL.parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("character", ["\r", "\n", "\0", "\x1b", "\x7f", "\x85", "\u2028", "\t"])
@pytest.mark.parametrize(
    "url",
    [
        "redis://h{}/0",
        "redis://h,i{}:1/0",
        "redis://u{}:p@h/0",
        "redis://u@h/0{}",
        "redis://h/0?prefix=a{}",
        "redis://h/0?a{}=b",
        "sqlite:///a{}b.db",
        "memory{}://",
    ],
)
def test_control_characters_in_a_url_are_refused_and_not_shown_as_they_are(url: str, character: str) -> None:
    for written in (character, quote(character)):
        with pytest.raises(ConfigError) as caught:
            StorageURL.parse(url.format(written))
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a%20b", "a%E2%80%AEb", "%E2%80%8B", "a%C2%A0b"])
def test_a_host_that_cannot_be_printed_as_it_is_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="host 1 of 1 in the x:// URL is not a host"):
        StorageURL.parse(f"x://{name}")


def test_a_password_may_hold_any_character_where_it_is_encoded() -> None:
    for character in "\r\n\0/?#@:% é\u2028":
        url = StorageURL.parse(
            f"x://u:{quote(character, safe='')}@bücher.example/a%40b?sentinel_password=%0A&prefix=a%40b"
        )
        assert url.password == character
        assert (url.hosts[0].name, url.path, dict(url.query)["prefix"]) == ("bücher.example", "/a@b", "a@b")
        assert str(url) == "x://u:***@bücher.example/a@b?sentinel_password=***&prefix=a@b"


def test_a_lone_user_may_be_a_password_whose_colon_was_forgotten() -> None:
    url = StorageURL.parse("redis://geheim@h")
    assert url.user == "geheim"
    assert "geheim" not in f"{url} {url!r}"


def test_a_token_among_the_parameters_is_not_shown() -> None:
    url = StorageURL.parse("mongodb://h/db?authMechanismProperties=AWS_SESSION_TOKEN:geheim")
    assert "geheim" not in f"{url} {url!r}"


@given(st.text(min_size=1), st.text(min_size=1))
def test_a_url_shows_neither_its_password_nor_secret_parameters(password: str, secret: str) -> None:
    url = StorageURL.parse(f"redis://user:{quote(password, safe='')}@h/0?tls_password={quote(secret, safe='')}&x=1")
    assert url.password == password
    assert dict(url.query)["tls_password"] == secret
    assert str(url) == "redis://user:***@h/0?tls_password=***&x=1"
    assert repr(url).count("***") == 0
    assert "password" not in repr(url)


@dataclass(frozen=True, kw_only=True)
class Options:
    timeout: float = 2.0
    size: int = 1
    on: bool = False
    name: str | None = None


def test_parameters_are_read_by_their_types() -> None:
    url = StorageURL.parse("x://?timeout=0.5&size=3&on=yes&name=n")
    assert url.options(Options) == Options(timeout=0.5, size=3, on=True, name="n")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("timeuot=1", "x:// has no parameter 'timeuot'; did you mean 'timeout'?; it knows name, on, size, timeout"),
        ("TIMEOUT=1", "x:// has no parameter 'TIMEOUT'; did you mean 'timeout'?; it knows"),
        ("zzz=1", "x:// has no parameter 'zzz'; it knows"),
        ("size=1.5", "size='1.5' is not of type int"),
        ("on=maybe", "on='maybe' is not of type bool"),
        ("size=1&size=1", "'size' is given twice"),
    ],
)
def test_a_wrong_parameter_is_refused_with_the_way_out(query: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        StorageURL.parse(f"x://?{query}").options(Options)
    assert message in str(caught.value)


def test_a_storage_of_one_host_refuses_several() -> None:
    assert StorageURL.parse("x://").host(5) == Host("localhost", 5)
    assert StorageURL.parse("x://h:6").host(5) == Host("h", 6)
    with pytest.raises(ConfigError, match="x:// takes one host, and the URL names 2"):
        StorageURL.parse("x://a,b:1").host(5)


@pytest.mark.parametrize("name", ["", "a b", "a;DROP", "1a", "a" * 65, "é", "a`b", "a.b", "a\n"])
def test_what_is_no_plain_name_is_no_identifier(name: str) -> None:
    with pytest.raises(ConfigError, match="must be 1 to 64 letters"):
        identifier("table", name)


@pytest.mark.parametrize("option", ["tls_ca", "tls_cert", "tls_key"])
def test_tls_files_without_tls_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match="the connection is not encrypted; add tls=true"):
        TLSOptions(**{option: "file"}).context()  # type: ignore[arg-type]


def test_a_tls_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert TLSOptions().context() is None
    assert TLSOptions(tls=True).context() is not None
    with pytest.raises(ConfigError, match="cannot be used"):
        TLSOptions(tls=True, tls_ca=str(tmp_path / "none.pem")).context()
    (tmp_path / "bad.pem").write_text("not a certificate")
    with pytest.raises(ConfigError, match="cannot be used"):
        TLSOptions(tls=True, tls_cert=str(tmp_path / "bad.pem")).context()
