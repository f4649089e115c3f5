"""A replica set as far as a driver sees one, for where no mongod is at hand.

Each member passes on what it is asked to one and the same server, so that the set shares its data
as members do that have written by majority. A member alone answers who is who, and a member that
is not the primary refuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import Any, Self
from urllib.parse import urlsplit

import bson

_OP_REPLY, _OP_QUERY, _OP_MSG = 1, 2004, 2013
_HELLO = {"hello", "ismaster", "isMaster"}
NOT_PRIMARY = 10107
FREE = {"endSessions", "ping", *_HELLO}  # what a secondary answers too


class Member:
    """One address of the set."""

    def __init__(self, replica_set: ReplicaSet, number: int) -> None:
        self.set = replica_set
        self.number = number
        self.port = 0
        self.commands: list[dict[str, Any]] = []
        """What it was asked, apart from who is who."""
        self.failing: list[int] = []
        """The errors with which it answers next, having done nothing."""
        self.unconfirmed = 0
        """How many updates it carries out next of which it says that no other member did so in time."""
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def die(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        with contextlib.closing(writer), contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
            there, back = await asyncio.open_connection("127.0.0.1", self.set.behind)
            with contextlib.closing(back):
                while True:
                    request = await _message(reader)
                    command = _command(request)
                    code = self._refusal(command)
                    if code is None:
                        back.write(request)
                        answer = await _message(there)
                        writer.write(self._changed(command, answer))
                    else:
                        writer.write(_error(request, code))
                    await writer.drain()

    def _refusal(self, command: dict[str, Any]) -> int | None:
        if _name(command) in FREE:
            return None
        self.commands.append(command)
        if self.failing:
            return self.failing.pop(0)
        return None if self.set.primary == self.number else NOT_PRIMARY

    def _changed(self, command: dict[str, Any], answer: bytes) -> bytes:
        if _name(command) in _HELLO:
            return _with(answer, **self._introduction())
        if _name(command) == "update" and self.unconfirmed:
            self.unconfirmed -= 1
            return _with(answer, writeConcernError={"code": 64, "errmsg": "late", "errInfo": {"wtimeout": True}})
        return answer

    def _introduction(self) -> dict[str, Any]:
        """Tell which set this is, and who is its primary."""
        addresses = [f"127.0.0.1:{member.port}" for member in self.set.members]
        is_primary = self.set.primary == self.number
        return {
            "topologyVersion": None,  # so that the driver asks, instead of being told
            "setName": "rs0",
            "setVersion": 1,
            "hosts": addresses,
            "me": addresses[self.number],
            "ismaster": is_primary,
            "isWritablePrimary": is_primary,
            "secondary": not is_primary,
            "primary": None if self.set.primary is None else addresses[self.set.primary],
            "electionId": bson.ObjectId(self.set.elections.to_bytes(12)) if is_primary else None,
        }


class ReplicaSet:
    """Three members before the server of a URL."""

    def __init__(self, url: str) -> None:
        port = urlsplit(url).port
        assert port is not None
        self.behind = port
        self.members = [Member(self, number) for number in range(3)]
        self.primary: int | None = 0
        self.elections = 1

    @property
    def hosts(self) -> str:
        return ",".join(f"127.0.0.1:{member.port}" for member in self.members)

    def elect(self, number: int | None) -> None:
        """Make this member the primary, or none."""
        self.primary = number
        self.elections += 1

    async def __aenter__(self) -> Self:
        for member in self.members:
            await member.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for member in self.members:
            await member.die()


async def _message(reader: asyncio.StreamReader) -> bytes:
    size = await reader.readexactly(4)
    return size + await reader.readexactly(struct.unpack("<i", size)[0] - 4)


def _command(request: bytes) -> dict[str, Any]:
    # Before it stand: in a driver's first words flags, a name and two numbers; else flags, and a section's kind.
    is_query = struct.unpack_from("<i", request, 12)[0] == _OP_QUERY
    start = request.index(b"\0", 20) + 9 if is_query else 21
    size: int = struct.unpack_from("<i", request, start)[0]
    return bson.decode(request[start : start + size])


def _name(command: dict[str, Any]) -> str:
    return next(iter(command))


def _with(answer: bytes, **fields: Any) -> bytes:
    """Give the answer with other fields; `None` takes one out."""
    start = 36 if struct.unpack_from("<i", answer, 12)[0] == _OP_REPLY else 21
    document = bson.decode(answer[start:]) | fields
    encoded = bson.encode({name: value for name, value in document.items() if value is not None})
    return struct.pack("<i", start + len(encoded)) + answer[4:start] + encoded


def _error(request: bytes, code: int) -> bytes:
    body = bson.encode({"ok": 0.0, "errmsg": f"failing with {code}", "code": code, "codeName": "Failing"})
    request_id = struct.unpack_from("<i", request, 4)[0]
    return struct.pack("<iiiiIB", 21 + len(body), 0, request_id, _OP_MSG, 0, 0) + body
