"""What a MySQL server, or whoever stands before it, gets of the password."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from pymysql.constants import CLIENT  # type: ignore[import-untyped]

from aiohttp_store import StorageRefused
from aiohttp_store.storages import storage_from_url

from ..conftest import PATIENCE
from ..support.certificates import make_certificates
from ..support.fake_mysql import Login, greeting, mysql_in_tls_that, mysql_that, switch

PASSWORD = b"geheim"


async def heard_by(url: str) -> str:
    """Let a storage log in, see that it is refused, and return why."""
    storage = storage_from_url(url)
    await storage.open()
    with pytest.raises(StorageRefused) as caught:
        await storage.check()
    await storage.close()
    return str(caught.value)


async def in_the_greeting(plugin: str, login: Login) -> None:
    await login.say(greeting(plugin))
    await login.hear()


async def by_a_switch(plugin: str, login: Login) -> None:
    await login.say(greeting("mysql_native_password"))
    await login.hear()
    await login.say(switch(plugin))
    await login.hear()


async def by_a_switch_from_caching(plugin: str, login: Login) -> None:
    await login.say(greeting("caching_sha2_password"))
    await login.hear()
    await login.say(switch(plugin))
    await login.hear()


async def after_no_plugins(plugin: str, login: Login) -> None:
    """As a server before MySQL 5.5, which knows one plugin and the old hash."""
    await login.say(greeting("", CLIENT.CAPABILITIES & ~CLIENT.PLUGIN_AUTH))
    await login.hear()
    await login.say(b"\xfe" if plugin == "mysql_old_password" else switch(plugin))
    await login.hear()


ASKED = {way.__name__: way for way in (in_the_greeting, by_a_switch, by_a_switch_from_caching, after_no_plugins)}


@pytest.mark.parametrize(
    "plugin", ["mysql_clear_password", "mysql_old_password", "dialog", "client_ed25519", "auth_gssapi"]
)
@pytest.mark.parametrize("asked", ASKED)
async def test_no_server_gets_the_password_over_an_open_connection(asked: str, plugin: str) -> None:
    async def ask(login: Login) -> None:
        await ASKED[asked](plugin, login)
        if asked == "in_the_greeting":  # a plugin that the client has not is no answer either
            await login.say(switch(plugin))
            await login.hear()

    async with mysql_that(ask) as (port, heard):
        said = await heard_by(f"mysql://visitor:geheim@127.0.0.1:{port}/db?timeout={PATIENCE}")
    assert not any(PASSWORD in message for message in heard)
    assert "geheim" not in said
    if asked != "after_no_plugins":
        assert plugin in said
        assert "mysql_clear_password" in said


async def test_a_server_that_offers_no_tls_gets_nothing_of_the_password() -> None:
    async def ask(login: Login) -> None:
        await login.say(greeting("mysql_clear_password", CLIENT.CAPABILITIES & ~CLIENT.SSL))
        await login.hear()

    async with mysql_that(ask) as (port, heard):
        said = await heard_by(f"mysql://visitor:geheim@127.0.0.1:{port}/db?tls=true&timeout={PATIENCE}")
    assert heard == []
    assert "the server offers no TLS" in said


@pytest.mark.parametrize("asked", ["in_the_greeting", "by_a_switch"])
@pytest.mark.parametrize("carried_by", ["TLS", "a unix socket"])
async def test_the_password_in_clear_goes_over_tls_and_a_unix_socket(
    carried_by: str, asked: str, tmp_path: Path
) -> None:
    folder = make_certificates(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    is_encrypted = carried_by == "TLS"

    first = greeting(
        "mysql_clear_password" if asked == "in_the_greeting" else "mysql_native_password",
        CLIENT.CAPABILITIES | (CLIENT.SSL * is_encrypted),
    )

    async def ask(login: Login) -> None:
        if not is_encrypted:
            await login.say(first)
        await login.hear()
        if asked == "by_a_switch":
            await login.say(switch("mysql_clear_password"))
            await login.hear()
        await login.say(b"\xff" + (1045).to_bytes(2, "little") + b"#28000Access denied")

    path = tmp_path / "mysql.sock"
    async with mysql_in_tls_that(first, ask, context) if is_encrypted else mysql_that(ask, str(path)) as (port, heard):
        if is_encrypted:
            url = f"mysql://visitor:geheim@127.0.0.1:{port}/db?tls=true&tls_ca={folder}/ca.pem&timeout={PATIENCE}"
        else:
            url = f"mysql://visitor:geheim@/db?unix_socket={path}&timeout={PATIENCE}"
        assert "Access denied" in await heard_by(url)
    assert PASSWORD in heard[-1]
