"""The example's storage behind PgBouncer in transaction mode."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from aiohttp import DummyCookieJar, web

from aiohttp_store import get_session

from ..conftest import Serve, Servers
from ..storages import test_postgresql_example as example
from ..support.servers import PostgreSQL
from .proxies import PgBouncer


@pytest.fixture(scope="module")
def pgbouncer(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PgBouncer]:
    behind = servers.own("postgresql")
    assert isinstance(behind, PostgreSQL)
    started = PgBouncer(tmp_path_factory.mktemp("pgbouncer") / "pgbouncer", behind)
    started.start()
    yield started
    started.kill()


class TestBehindPgBouncer(example.TestPostgreSQL):
    @pytest.fixture
    def server(self, pgbouncer: PgBouncer) -> tuple[str, int]:
        return "127.0.0.1", pgbouncer.port


async def test_far_more_visitors_than_connections_are_all_served(pgbouncer: PgBouncer, serve: Serve) -> None:
    async def visits(request: web.Request) -> web.Response:
        session = await get_session(request)
        session["visits"] = session.get("visits", 0) + 1
        return web.Response(text=str(session["visits"]))

    client = await serve(visits, storage=f"{pgbouncer.url}?table=crowd&timeout=20")
    client.session._cookie_jar = DummyCookieJar()  # each visitor brings a cookie of its own

    async def visit() -> list[str]:
        first = await client.get("/visits")
        assert first.status == 200
        cookies = {name: morsel.value for name, morsel in first.cookies.items()}
        others = [await client.get("/visits", cookies=cookies) for _ in range(4)]
        return [await answer.text() for answer in (first, *others)]

    assert await asyncio.gather(*(visit() for _ in range(120))) == [["1", "2", "3", "4", "5"]] * 120
