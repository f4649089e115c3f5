"""What a MongoDB server says when it will not serve, and what to check then."""

from __future__ import annotations

import re
import struct
from typing import Any

import bson
from pymongo import AsyncMongoClient
from pymongo.errors import AutoReconnect, PyMongoError

from ..storage import Record

__all__ = [
    "HELLO",
    "PROTOCOL",
    "WrongReplyError",
    "advice_for",
    "index_advice",
    "number_of",
    "record_of",
    "topology_advice",
]

PROTOCOL = "MongoDB's protocol"
_OP_MSG = 2013
_BODY = bson.encode({"hello": 1, "$db": "admin"})
HELLO = struct.pack("<iiiiIB", 21 + len(_BODY), 1, 0, _OP_MSG, 0, 0) + _BODY
"""What every server answers, also before a login."""

_LOGIN = "check the user, the password and authSource="
_OLD = "it must be MongoDB 4.2 or newer, or speak its protocol"
_ADVICE = {
    11: _LOGIN,
    18: _LOGIN,
    334: _LOGIN,
    13: "check the login, and that the user has the role readWrite on the database",
    79: "check w=: the set has no such write concern",
    100: "check w=: the set has too few members",
    59: _OLD,
    115: _OLD,
    40324: _OLD,
    73: "check the names of the database and of the collection",
}
_WORDS = {
    r"bad auth|(?i:auth)\w* failed": _LOGIN,
    r"cannot use 'w'": "check w=: it is not a replica set",
    r"retryable writes|Transaction numbers": "write retryWrites=false",
    r"wire version|pipeline|\$replaceWith|array', expected": _OLD,
    r"CERTIFICATE_VERIFY_FAILED": "check tlsCAFile=, and that the URL's host is a name in the server's certificate",
    r"CERTIFICATE_REQUIRED|BAD_CERTIFICATE|UNKNOWN_CA": "check this client's tlsCertificateKeyFile=",
    r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE": "it does not speak TLS: check the port, or leave tls= out",
    r"^ProtocolError|response id|max message size|Unknown opcode": (
        "it does not speak MongoDB's protocol: check the host and the port"
    ),
    r"configured to connect to a replica set named": "check replicaSet=",
}


class WrongReplyError(PyMongoError):
    """The server's reply is not one to the command that was sent."""


def advice_for(error: BaseException) -> str | None:
    """Return what to check after an error that no further attempt will mend; `None` for any other."""
    advice = _ADVICE.get(getattr(error, "code", None) or 0)
    if advice is not None or not isinstance(error, PyMongoError):
        return advice
    text = f"{type(error).__name__} {error}"
    return next((advice for words, advice in _WORDS.items() if re.search(words, text)), None)


def topology_advice(client: Any) -> str | None:
    """Return what to check if no server could be chosen, as each refuses; the driver waits for one to change."""
    driver = client if isinstance(client, AsyncMongoClient) else client.delegate
    try:
        servers = driver.topology_description.server_descriptions()
    except AttributeError:  # an SRV record is not looked up yet
        return None
    if not servers:
        return "check replicaSet=: no host of the URL is a member of that set"
    advice = [server.error and advice_for(server.error) for server in servers.values()]
    return str(advice[0]) if all(advice) else None


def index_advice(error: PyMongoError, collection: str) -> str:
    """Return what to do about a TTL index that cannot be made."""
    if isinstance(error, AutoReconnect):
        return "it is tried again"
    command = f"db.{collection}.createIndex({{e: 1}}, {{expireAfterSeconds: 0}})"
    if getattr(error, "code", None) in {85, 86}:  # IndexOptionsConflict, IndexKeySpecsConflict
        return f"another index on e is there: drop it, or create the right one with {command}"
    return f"give the user the right to createIndex (the role readWrite has it), or create it with {command}"


def record_of(document: object) -> tuple[str, Record]:
    """Read a document of the collection: its key, and what is stored under it."""
    match document:
        case {"_id": bytes() as key, "v": bytes() as version, "d": bytes() as data}:
            return key.decode(errors="replace"), Record(version, data)
    raise WrongReplyError("a record was due, and the reply is another document")


def number_of(count: object) -> int:
    """Read how many documents were written."""
    if not isinstance(count, int):
        raise WrongReplyError(f"a number was due, and the reply is a {type(count).__name__}")
    return count
