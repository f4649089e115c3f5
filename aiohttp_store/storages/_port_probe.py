"""What listens at a port: asked when a storage is opened, and its server does not answer as it should."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable
from typing import NamedTuple

from ..errors import StorageRefused, StorageUnavailable
from ..storage import Storage

__all__ = ["Place", "refused_by_another"]

_REPLIES = {
    b"HTTP/": "HTTP",
    b"<": "HTTP",
    b"+": "Redis's protocol",
    b"-": "Redis's protocol",
    b"ERROR": "memcached's protocol",
    b"\x15\x03": "TLS",  # an alert
    b"SSH-": "SSH",
}
_MYSQL = b"\x00\x00\x00\x0a"  # a greeting of fewer than 256 bytes, the first packet, protocol 10


class Place(NamedTuple):
    """Where a storage's server should be, and what it should speak there."""

    host: str
    port: int
    protocol: str
    is_tls: bool = False
    context: ssl.SSLContext | None = None
    """How TLS is spoken, if that is known here."""
    hello: bytes = b""
    """What the server answers, if that is not a line of text."""


async def refused_by_another(storage: Storage, attempt: Awaitable[None], place: Place | None) -> None:
    """Await an attempt to use a storage; if it fails, or takes half of its time, look at who listens there.

    Raises:
        StorageRefused: another protocol than the storage's is spoken there, with TLS or without.
    """
    trying = asyncio.ensure_future(attempt)
    try:
        await asyncio.wait({trying}, timeout=storage.timeout / 2)
        if place is not None and (not trying.done() or _is_outage(trying.exception())):
            advice = await _advice(place, storage.timeout / 4)
            if advice is not None and not (trying.done() and trying.exception() is None):
                raise StorageRefused(f"{storage!r} cannot be used: {advice}")
        await trying
    finally:
        trying.cancel()
        await asyncio.wait({trying})
        if not trying.cancelled():
            trying.exception()


def _is_outage(error: BaseException | None) -> bool:
    return isinstance(error, StorageUnavailable) and not isinstance(error, StorageRefused)


async def _advice(place: Place, within: float) -> str | None:
    where = f"{place.host}:{place.port}"
    spoken = await _spoken(place, within / 3)
    if place.is_tls and spoken == place.protocol:
        return f"{where} does not speak TLS; check the port, or leave TLS out of the URL"
    if not place.is_tls and spoken == "TLS":
        return f"{where} demands TLS; write tls=true"
    if spoken == "TLS" and place.context is not None:
        return await _complaint(place, within / 3)
    if spoken in {None, "TLS", place.protocol}:
        return None
    return f"{where} speaks {spoken} and not {place.protocol}; check the host and the port"


async def _spoken(place: Place, within: float) -> str | None:
    """Say a few words, and return the name of the language of the reply; `None` if there is none."""
    reply = await _reply(place, b"PING\r\n", within / 2)
    if not reply and place.hello and await _reply(place, place.hello, within / 2):
        return place.protocol
    if reply[1:5] == _MYSQL:
        return "MySQL's protocol"
    for begin, name in _REPLIES.items():
        if reply.startswith(begin):
            return name
    if reply:
        return "another protocol"
    return "TLS" if await _speaks_tls(place, within) else None


async def _reply(place: Place, words: bytes, within: float) -> bytes:
    """Return the begin of what is answered to these words, or of what is said before them."""
    reply = b""
    with contextlib.suppress(OSError, EOFError):
        async with asyncio.timeout(within):
            reader, writer = await asyncio.open_connection(place.host, place.port)
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(within / 4):
                        reply = await reader.read(100)  # whoever speaks first
                if not reply:
                    writer.write(words)
                    reply = await reader.read(100)
            finally:
                writer.transport.abort()
    return reply


async def _speaks_tls(place: Place, within: float) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with asyncio.timeout(within):
            _, writer = await asyncio.open_connection(place.host, place.port, ssl=context)
            writer.transport.abort()
    except ssl.SSLError as error:
        return "ALERT" in str(error.reason)  # as to a client without a certificate
    except (OSError, EOFError):
        return False
    return True


async def _complaint(place: Place, within: float) -> str | None:
    """Return what a server that speaks TLS has against this client's certificate, if anything."""
    try:
        async with asyncio.timeout(within):
            reader, writer = await asyncio.open_connection(place.host, place.port, ssl=place.context)
            try:
                await reader.read(1)
            finally:
                writer.transport.abort()
    except ssl.SSLError as error:
        if "CERTIFICATE" in str(error.reason):
            return f"{place.host}:{place.port} refuses TLS: {error.reason}; check the certificates of both sides"
    except (OSError, EOFError):
        pass
    return None
