"""Connections to the Redis server that sentinels name as the primary."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError

from ._port_probe import Place
from ._redis_connections import PROTOCOL, Connections, LostError, understood

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from ..url import Host

__all__ = ["SentinelConnections"]


class SentinelConnections(Connections):
    """Connections to the server that the sentinels name as the primary of a service.

    Also what redis-py's SentinelManagedConnection asks of its pool.
    """

    kinds = (SentinelManagedConnection, SentinelManagedSSLConnection)
    is_master = True
    check_connection = False

    def __init__(
        self,
        sentinels: Sequence[Host],
        service: str,
        size: int,
        context: ssl.SSLContext | None = None,
        *,
        timeout: float,
        sentinel_settings: dict[str, Any],
        **settings: Any,
    ) -> None:
        super().__init__(size, context, timeout=timeout, connection_pool=self, **settings)
        self._addresses, self._service = [(host.name, host.port) for host in sentinels], service
        # They are asked one after the other, so that a silent one must leave time for the others.
        share = timeout / (len(sentinels) + 2)
        self._sentinel_settings = {
            **sentinel_settings,
            **dict.fromkeys(("socket_timeout", "socket_connect_timeout"), share),
            "retry": Retry(NoBackoff(), 0),  # redis-py's own ten take seconds
        }
        self._address: tuple[str, int] | None = None
        self._asking: asyncio.Task[tuple[str, int]] | None = None

    @property
    def place(self) -> Place | None:
        name, port = self._addresses[0]
        return Place(name, port or 26379, PROTOCOL, self.context is not None, self.context)

    def __str__(self) -> str:
        sentinels = ",".join(f"{name}:{port}" for name, port in self._addresses)
        return f"{self._service!r} of the sentinels {sentinels} db={self.settings['db']}"

    def open(self) -> None:
        if not self.is_open:
            self._sentinel = Sentinel(self._addresses, sentinel_kwargs=self._sentinel_settings)  # type: ignore[no-untyped-call]
        super().open()

    async def check(self, connection: Any) -> None:
        """Refuse a server that does not think itself the primary: a sentinel may be late."""
        await connection.send_command("ROLE")
        role = (await connection.read_response())[0].decode()  # or it is not understood
        if role != "master":
            raise LostError(f"{connection.host}:{connection.port} has the role {role!r}, and not 'master'")

    async def get_master_address(self) -> tuple[str, int]:
        """Give what the sentinels say, who are asked for all connections at once.

        redis-py reorders its list of them at each answer, and loses one of them where two ask at the same time.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_sentinels())
            self._asking.add_done_callback(_look_at)
        asking = self._asking  # whoever goes on first may ask again
        await asyncio.wait({asking})
        return asking.result()

    async def _ask_sentinels(self) -> tuple[str, int]:
        try:
            with understood():
                address: tuple[str, int] = await self._sentinel.discover_master(self._service)
        except MasterNotFoundError as error:
            if (refused := await self._refusal()) is not None:
                raise refused from error
            # It shows each client with all its settings.
            raise LostError(re.sub(r"<redis\.asyncio\.client\.Redis\(.*?\)>\)>\)> - ", "", str(error))) from error
        if address != self._address:
            self._address = address
            self.forget()  # they lead to the old one, which may not know yet
        return address

    async def _refusal(self) -> RedisError | None:
        """Return why no sentinel named a primary, if that is not an outage: redis-py does not tell."""
        sentinels = self._sentinel.sentinels
        asked = [sentinel.sentinel_get_master_addr_by_name(self._service) for sentinel in sentinels]
        replies = await asyncio.gather(*asked, return_exceptions=True)
        refused: RedisError | None = None
        for reply in replies:
            if reply is None:
                refused = UnknownServiceError(f"no sentinel watches {self._service!r}")
            elif isinstance(reply, AuthenticationError):
                refused = reply
            elif not isinstance(reply, BaseException):
                return None
        return refused

    async def aclose(self) -> None:
        was_open = self.is_open
        await super().aclose()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})
            self._asking = None
        if was_open:
            for client in self._sentinel.sentinels:  # Sentinel.aclose is new in redis-py 8
                await client.aclose()


class UnknownServiceError(RedisError):
    """The sentinels answer, and watch no service of this name."""


def _look_at(task: asyncio.Task[Any]) -> None:
    """Know of its failure, also where all who waited for it have left."""
    if not task.cancelled():
        task.exception()
