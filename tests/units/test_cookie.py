"""The cookie's options, its serialisation by RFC 6265bis, and the ids in a `Cookie` header."""

from __future__ import annotations

import hmac
import secrets
from base64 import urlsafe_b64encode
from http.cookies import SimpleCookie
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from aiohttp_store import ConfigError, Cookie
from aiohttp_store._caching import add_vary, forbid_caching
from aiohttp_store.cookie import MAX_AGE, MAX_REMEMBERED, MAX_REMEMBERED_SIZE, CookieReader, derive_keys, key_of_id

ID = "a-Session_Id-of-43-characters-in-base64url0"
SECRETS = [f"secret number {number} is thirty-two bytes" for number in range(3)]


def headers(*cookies: str) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict([("Cookie", cookie) for cookie in cookies]))


def read(reader: CookieReader, *cookies: str) -> list[tuple[str, bool]]:
    found = reader.read(headers(*cookies))
    assert all(one.key == key_of_id(one.id, reader.name) for one in found)
    return [(one.id, one.stale) for one in found]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, r"Cookie\(name=''\): name must be an RFC 9110 token"),
        ({"name": "a b"}, "name must be"),
        ({"name": "a;b"}, "name must be"),
        ({"name": "a=b"}, "name must be"),
        ({"name": "é"}, "name must be"),
        ({"name": "a\r\nb"}, "name must be"),
        ({"name": None}, "name must be"),
        ({"name": "n" * 4010}, "name must be at most 4009 bytes, 4096 with the value"),
        ({"path": ""}, "path must be ASCII, begin with '/'"),
        ({"path": "app"}, "path must be"),
        ({"path": "/a;Secure"}, "path must be"),
        ({"path": "/a\n"}, "path must be"),
        ({"path": "/é"}, "path must be"),
        ({"path": 5}, "path must be"),
        ({"path": "/ "}, "path must be"),
        ({"httponly": "no"}, "httponly must be True or False"),
        ({"persistent": None}, "persistent must be True or False"),
        ({"partitioned": 1}, "partitioned must be True or False"),
        ({"secure": 1}, "secure must be True, False or 'auto'"),
        ({"path": "/" + "a" * 1024}, "path must be at most 1024 bytes"),
        ({"domain": ""}, "domain must be a host name"),
        ({"domain": "a;b"}, "domain must be"),
        ({"domain": "bücher.example"}, "punycode"),
        ({"domain": "-a.example"}, "domain must be"),
        ({"domain": ".".join(["a" * 60] * 20)}, "domain must be at most 1024 bytes"),
        ({"secure": "yes"}, "secure must be True, False or 'auto'"),
        ({"samesite": "lax"}, "samesite must be 'Lax'"),
        ({"priority": "Highest"}, "priority must be 'Low'"),
        ({"secure": False, "samesite": "None"}, "contradicts samesite='None'"),
        ({"secure": False, "samesite": "auto"}, "contradicts samesite='auto', which is 'None' on https"),
        ({"samesite": "Auto"}, "samesite must be 'Lax', 'Strict', 'None', 'auto' or None"),
        ({"secure": False, "partitioned": True}, "contradicts partitioned=True"),
        ({"secure": False, "name": "__Host-s"}, "contradicts name='__Host-s'"),
        ({"secure": False, "name": "__secure-s"}, "contradicts name='__secure-s'"),
        ({"secure": False, "name": "__Http-s"}, "contradicts name='__Http-s', which browsers accept on secure"),
        ({"secure": False, "name": "__HOST-HTTP-s"}, "contradicts name='__HOST-HTTP-s', which browsers accept on sec"),
        ({"httponly": False, "name": "__Http-s"}, "contradicts name='__Http-s', which browsers accept on HttpOnly"),
        ({"httponly": False, "name": "__hTTP-s"}, r"Cookie\(httponly=False\) contradicts name='__hTTP-s'"),
        ({"httponly": False, "name": "__Host-Http-s"}, "contradicts name='__Host-Http-s', which browsers accept on H"),
        ({"httponly": False, "name": "__hosT-httP-s"}, r"Cookie\(httponly=False\) contradicts name='__hosT-httP-s'"),
        ({"name": "__Host-Http-s", "path": "/app"}, "demands path='/' and no domain"),
        ({"name": "__host-HTTP-s", "domain": "x.example"}, "demands path='/' and no domain"),
        ({"name": "__Host-s", "domain": "x.example"}, "demands path='/' and no domain"),
        ({"name": "__hOST-s", "path": "/app"}, "demands path='/' and no domain"),
    ],
)
def test_what_no_browser_would_accept_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cookie(**options)


@pytest.mark.parametrize(
    ("cookie", "over_https", "secure"),
    [
        (Cookie(), False, False),
        (Cookie(), True, True),
        (Cookie(secure=True), False, True),
        (Cookie(secure=False), True, False),
        (Cookie(name="__Host-s"), False, True),
        (Cookie(name="__SECURE-s"), False, True),
        (Cookie(samesite="None"), False, True),
        (Cookie(partitioned=True), False, True),
    ],
)
def test_auto_is_secure_where_the_request_or_another_option_demands_it(
    cookie: Cookie, over_https: bool, secure: bool
) -> None:
    assert cookie.is_secure(over_https) is secure


@pytest.mark.parametrize(
    "options",
    [
        {"name": "__Host-s", "httponly": False},
        {"name": "__Secure-s", "httponly": False, "domain": "x.example", "path": "/app"},
        {"name": "__Http-s", "domain": "x.example", "path": "/app"},
        {"name": "__Host-Http-s"},
        {"name": "__Httpd", "httponly": False, "secure": False},
        {"name": "Http-s", "httponly": False, "secure": False},
    ],
)
def test_a_name_demands_what_browsers_check_and_no_more(options: dict[str, Any]) -> None:
    cookie = Cookie(**options)
    secure = options.get("secure", True)
    assert cookie.is_secure(over_https=False) is secure
    assert ("; HttpOnly" in cookie.header("v", secure=secure, max_age=0)) is options.get("httponly", True)


def test_the_defaults_are_the_safe_ones() -> None:
    assert Cookie().header("v", secure=True, max_age=None) == "session=v; Path=/; Secure; HttpOnly; SameSite=Lax"


def test_the_longest_cookie_has_4096_bytes() -> None:
    pair = f"{'n' * 4009}={CookieReader('n' * 4009, SECRETS).value(ID)}"
    assert Cookie(name="n" * 4009).header(pair.partition("=")[2], secure=False, max_age=None).startswith(f"{pair}; ")
    assert len(pair) - len("=") == 4096


def test_a_removal_carries_the_same_attributes() -> None:
    cookie = Cookie(domain="x.example", path="/app", samesite="None", partitioned=True, priority="High")
    kept = cookie.header("v", secure=True, max_age=None)
    gone = cookie.header("", secure=True, max_age=0)
    assert set(gone.split("; ")[1:]) - set(kept.split("; ")[1:]) == {
        "Max-Age=0",
        "Expires=Thu, 01 Jan 1970 00:00:00 GMT",
    }
    assert set(kept.split("; ")[1:]) <= set(gone.split("; ")[1:])


def test_no_cookie_is_kept_longer_than_a_browser_would() -> None:
    assert f"Max-Age={MAX_AGE};" in Cookie().header("v", secure=False, max_age=10**9)


tokens = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1, max_size=20)
paths = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters=";"), max_size=20)


@given(
    tokens,
    paths,
    st.none() | st.sampled_from(["x.example", ".x.example"]),
    st.sampled_from(["Lax", "Strict", "None", None]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["Low", "Medium", "High", None]),
    st.none() | st.integers(0, MAX_AGE),
)
def test_what_is_serialised_parses_back(
    name: str,
    path: str,
    domain: str | None,
    samesite: Any,
    httponly: bool,
    partitioned: bool,
    priority: Any,
    max_age: int | None,
) -> None:
    assume(not name.lower().startswith(("__host-", "__secure-", "__http-")) and not path.endswith(" "))
    cookie = Cookie(
        name=name,
        path=f"/{path}",
        domain=domain,
        samesite=samesite,
        httponly=httponly,
        partitioned=partitioned,
        priority=priority,
    )
    first, *rest = cookie.header(ID, secure=cookie.is_secure(False), max_age=max_age).split("; ")
    # A browser strips white space around a value (RFC 6265bis, section 5.6).
    attributes = {part.partition("=")[0]: part.partition("=")[2].strip() for part in rest}
    assert first == f"{name}={ID}"
    assert attributes.get("Path") == f"/{path}".strip() or "; " in path
    assert attributes.get("Domain") == domain
    assert attributes.get("SameSite") == samesite
    assert attributes.get("Priority") == priority
    assert ("HttpOnly" in attributes) is httponly
    assert ("Partitioned" in attributes) is partitioned
    assert ("Secure" in attributes) is (samesite == "None" or partitioned)
    assert attributes.get("Max-Age") == (None if max_age is None else str(max_age))


def test_the_standard_library_reads_what_is_serialised() -> None:
    parsed = SimpleCookie(Cookie(domain="x.example").header(ID, secure=True, max_age=60))["session"]
    assert (parsed.value, parsed["path"], parsed["domain"], parsed["max-age"]) == (ID, "/", "x.example", "60")


@pytest.mark.parametrize("keys", [None, SECRETS])
def test_an_id_comes_back_from_its_value(keys: list[str] | None) -> None:
    reader = CookieReader("session", keys)
    for _ in range(2):  # found, then remembered
        assert read(reader, f"a=b; session={reader.value(ID)}; c=d") == [(ID, False)]


def test_what_is_remembered_is_bounded() -> None:
    reader = CookieReader("session", None)
    for number in range(MAX_REMEMBERED * 2):
        assert read(reader, f"a={number}; session={ID}") == [(ID, False)]
    remembered = reader._find_again.cache_info().currsize
    assert remembered == MAX_REMEMBERED
    padding = "x" * MAX_REMEMBERED_SIZE
    assert read(reader, f"a={padding}; session={ID}") == read(reader, "a=b", f"session={ID}") == [(ID, False)]
    assert read(reader) == []
    assert reader._find_again.cache_info().misses == MAX_REMEMBERED * 2


def test_an_id_has_another_key_in_each_cookie() -> None:
    assert key_of_id(ID, "one") != key_of_id(ID, "other") != key_of_id(ID)
    assert read(CookieReader("other", None), f"other={ID}") == [(ID, False)]


def test_an_older_secret_still_verifies_and_asks_to_be_replaced() -> None:
    old = CookieReader("session", SECRETS[1]).value(ID)
    assert read(CookieReader("session", SECRETS[:2]), f"session={old}") == [(ID, True)]
    assert read(CookieReader("session", SECRETS[2]), f"session={old}") == []


def test_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the standard library's function, with each secret until one has signed it, and by nothing before it."""
    compared: list[tuple[str, str]] = []

    def compare_digest(ours: str, sent: str) -> bool:
        compared.append((ours, sent))
        return compare(ours, sent)

    compare = hmac.compare_digest
    values = [CookieReader("session", secret).value(ID) for secret in SECRETS]
    sent = [value.partition(".")[2] for value in values]
    forged = [f"{value[:-2]}AA" for value in sent]
    monkeypatch.setattr("hmac.compare_digest", compare_digest)
    for signature, secrets_tried in (*zip(sent, (1, 2, 3), strict=True), *((one, 3) for one in forged)):
        compared.clear()
        found = read(CookieReader("session", SECRETS), f"session={ID}.{signature}")
        assert [bool(found), compared] == [signature in sent, [(ours, signature) for ours in sent[:secrets_tried]]]


def test_no_two_uses_of_a_secret_share_a_key_and_none_uses_the_secret_itself() -> None:
    keys = [derive_keys(secret, purpose)[0] for secret in SECRETS for purpose in ("one", "another")]
    assert len({*keys, *(secret.encode() for secret in SECRETS)}) == len(keys) + len(SECRETS)
    for secret in (SECRETS[0], derive_keys(SECRETS[0], "another")[0]):
        key = secret.encode() if isinstance(secret, str) else secret
        plain = urlsafe_b64encode(hmac.digest(key, f"session={ID}".encode(), "sha256"))[:-1].decode()
        assert read(CookieReader("session", SECRETS[0]), f"session={ID}.{plain}") == []


def test_a_signature_is_bound_to_the_cookies_name() -> None:
    value = CookieReader("one", SECRETS).value(ID)
    assert read(CookieReader("other", SECRETS), f"other={value}") == []


@given(st.integers(0, 86), st.sampled_from("abcdefgABCDEFG019-_."))
def test_a_value_with_one_other_character_is_forged(position: int, character: str) -> None:
    reader = CookieReader("session", SECRETS)
    value = reader.value(ID)
    assume(value[position] != character)
    assert read(reader, f"session={value[:position]}{character}{value[position + 1 :]}") == []


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        ID[:-1],
        ID + "x",
        f'"{ID}"',
        ID + " x",
        ID.replace(ID[5], "+"),
        f"{ID}.",
        f"{ID}.{ID}",
        "\udcff" * 43,
        "é" * 43,
    ],
)
def test_a_value_of_another_form_is_not_an_id(value: str) -> None:
    assert read(CookieReader("session", None), f"session={value}") == []
    assert read(CookieReader("session", SECRETS), f"session={value}") == []


def test_only_cookies_of_exactly_our_name_are_read_from_every_header_each_id_once() -> None:
    reader = CookieReader("session", None)
    other = secrets.token_urlsafe(32)
    cookies = f"xsession={other}; session={ID}; Session={other}", f"session2={other};session={ID} ; session ={other}"
    assert read(reader, *cookies) == [(ID, False)]
    assert reader.is_in(headers("session=junk"))
    assert not reader.is_in(headers("sessions=junk"))


@pytest.mark.parametrize("keys", [None, SECRETS])
def test_at_most_four_cookies_are_looked_at_and_of_more_none(keys: list[str] | None) -> None:
    reader = CookieReader("session", keys)
    ids = [secrets.token_urlsafe(32) for _ in range(6)]
    cookies = [f"session={reader.value(one)}" for one in ids]
    for some in (cookies[:4], cookies[:4] * 3, [*cookies[:4], "session=junk"]):
        for headed in (["; ".join(some)], some):
            assert [one for one, _ in read(reader, *headed)] == ids[:4]
    for more in (cookies, cookies[:5], cookies[:1] * 4 + cookies):
        for headed in (["; ".join(more)], more):
            assert read(reader, *headed) == []


def test_malformed_cookies_do_not_hide_the_genuine_one() -> None:
    for keys in (None, SECRETS):
        reader = CookieReader("session", keys)
        assert read(reader, "session=x; " * 50 + f"session={reader.value(ID)}") == [(ID, False)]


@given(st.text(st.characters(max_codepoint=0xFF)))
def test_no_header_makes_reading_fail(text: str) -> None:
    for reader in (CookieReader("session", None), CookieReader("session", SECRETS)):
        reader.read(headers(text, f"session={text}", f"session={text}.{text}"))


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ([], "Cookie"),
        (["Accept"], "Accept, Cookie"),
        (["Accept", "Origin"], "Accept,Origin, Cookie"),
        (["cookie"], "cookie"),
        (["Accept, COOKIE"], "Accept, COOKIE"),
        (["*"], "*"),
    ],
)
def test_vary_is_added_to_what_is_there(present: list[str], expected: str) -> None:
    response = CIMultiDict([("Vary", value) for value in present])
    add_vary(response)
    assert response.getall("Vary") == [expected]


@pytest.mark.parametrize(
    ("present", "expected", "taken_out"),
    [
        ([], "no-store", []),
        (["no-store"], "no-store", []),
        (["private, max-age=60"], "private, max-age=60", []),
        (["max-age=60"], "private, max-age=60", []),
        (["no-cache"], "private, no-cache", []),
        (["public, max-age=60"], "private, max-age=60", ["public"]),
        (["Public", "S-MaxAge=9, max-age=60"], "private, max-age=60", ["Public", "S-MaxAge=9"]),
        (["public, NO-STORE"], "public, NO-STORE", []),
        (['private="x-foo", max-age=60'], "private, max-age=60", ['private="x-foo"']),
        (["Private=x-foo"], "private", ["Private=x-foo"]),
        (['private="x-foo, x-bar", private'], "private", ['private="x-foo, x-bar"']),
        (["PRIVATE, max-age=60"], "PRIVATE, max-age=60", []),
        (["private, public, s-maxage=9"], "private", ["public", "s-maxage=9"]),
        (
            ["public, must-understand, no-store, max-age=600"],
            "private, must-understand, no-store, max-age=600",
            ["public"],
        ),
        (["no-store, Must-Understand"], "private, no-store, Must-Understand", []),
        (["must-understand, private, no-store"], "must-understand, private, no-store", []),
        (['no-cache="set-cookie, x", max-age=60'], 'private, no-cache="set-cookie, x", max-age=60', []),
        (['ext="a, no-store, private", public'], 'private, ext="a, no-store, private"', ["public"]),
        (['ext="a\\", no-store", max-age=1'], 'private, ext="a\\", no-store", max-age=1', []),
        (['no-store="x", max-age=1'], 'private, no-store="x", max-age=1', []),
        (["must-revalidate, proxy-revalidate"], "private, must-revalidate, proxy-revalidate", []),
        ([", ,no-cache,,", "", "immutable"], "private, no-cache, immutable", []),
        ([""], "no-store", []),
        (['ext="a, no-store'], "no-store", ['ext="a, no-store']),
        (["max-age = 60, private"], "no-store", ["max-age = 60, private"]),
        (["public max-age=60"], "no-store", ["public max-age=60"]),
    ],
)
def test_a_response_with_our_cookie_stays_out_of_shared_caches(
    present: list[str], expected: str, taken_out: list[str]
) -> None:
    response = CIMultiDict([("Cache-Control", value) for value in present])
    assert forbid_caching(response) == taken_out
    assert response.getall("Cache-Control") == [expected]


@pytest.mark.parametrize(
    ("name", "present", "expected", "taken_out"),
    [
        ("CDN-Cache-Control", "max-age=600", "no-store, max-age=600", []),
        ("Cloudflare-CDN-Cache-Control", "public, max-age=600", "no-store, max-age=600", ["public"]),
        ("cdn-cache-control", "no-store", "no-store", []),
        ("CDN-Cache-Control", "private", "private", []),
        ("Surrogate-Control", 'max-age=60+10, content="ESI/1.0"', 'no-store, max-age=60+10, content="ESI/1.0"', []),
        ("CDN-Cache-Control", "max-age=60;x=1", "no-store", ["max-age=60;x=1"]),
        ("X-Cache-Control", "public", "public", []),
    ],
)
def test_a_header_for_one_kind_of_cache_invites_none_of_it(
    name: str, present: str, expected: str, taken_out: list[str]
) -> None:
    response = CIMultiDict({name: present, "Cache-Control": "max-age=60"})
    assert forbid_caching(response) == taken_out
    assert response.getall(name) == [expected]
    assert response["Cache-Control"] == "private, max-age=60"
