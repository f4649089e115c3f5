"""What a Redis server's replies mean: records, outcomes, and refusals that only an operator can end."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from redis._parsers.helpers import parse_info
from redis.cluster import parse_cluster_slots
from redis.crc import REDIS_CLUSTER_HASH_SLOTS
from redis.exceptions import RedisError, ResponseError

from .._log import log_once, logger
from ..storage import VERSION_SIZE, Conflict, Gone, Outcome, Record, Saved, Storage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = [
    "WrongReplyError",
    "advice_for",
    "info_of",
    "layout_of",
    "number_of",
    "outcome_of",
    "outcomes_of",
    "record_of",
    "records_of",
    "without_arguments",
]

_IN_CLUSTER = "it is a node of a cluster: use redis+cluster://"
_REFUSALS = {
    r"^MovedError|^AskError|CROSSSLOT|CrossSlot|in cluster mode": _IN_CLUSTER,
    r"^Auth\w+Error": "check the user and the password",
    r"^NoPermission|can't run this command|NOPERM|no permissions": (
        "check the user's rights (ACL): GET, SET, DEL, MGET, EVAL and EVALSHA, on every key that begins with prefix=; "
        "also ROLE with sentinels, CLUSTER and ASKING in a cluster"
    ),
    r"DB index|Invalid Database": (
        "check the number of the database: the server has as many as its `databases` says, and a cluster has one "
        "(redis+cluster://)"
    ),
    r"cluster support disabled": "it is not a node of a cluster: use redis://",
    r"unknown command .?SENTINEL": "it is not a sentinel: name the sentinels (port 26379), or use redis://",
    r"(?i:unknown (redis |sub)?command)": (
        "it must know the commands GET, SET, DEL, MGET, EVAL and EVALSHA; a sentinel does not: use redis+sentinel://"
    ),
    r"^UnknownService": "check the name of the service in the URL's path; `SENTINEL MASTERS` lists them",
    r"protected mode": "set a password, or the server's `bind` and `protected-mode`",
    r"CERTIFICATE_VERIFY_FAILED": "check tls_ca=, and that the URL's host is a name in the server's certificate",
    r"CERTIFICATE_REQUIRED|BAD_CERTIFICATE|UNKNOWN_CA": "check this client's tls_cert= and tls_key=",
    r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE": "it does not speak TLS: check the port, or use redis:// without tls=",
    r"^InvalidResponse": "it does not speak Redis's protocol: check the host and the port",
}
_OTHER_MODES = {
    "cluster": _IN_CLUSTER,
    "sentinel": "it is a sentinel: use redis+sentinel://, with the name of the service in the path",
}


class WrongReplyError(RedisError):
    """The server's reply is not one to the command that was sent."""


def advice_for(error: Exception, *, is_cluster: bool = False) -> str | None:
    """Return what to check after an error that no further attempt will mend; `None` for any other.

    Args:
        error: the driver's.
        is_cluster: whether it came over `redis+cluster://`, which follows redirections.
    """
    text = f"{type(error).__name__} {error}"
    for pattern, advice in _REFUSALS.items():
        if re.search(pattern, text) and not (is_cluster and advice is _IN_CLUSTER):
            return advice
    return None


def without_arguments(error: RedisError) -> RedisError:
    """Return the error without the arguments that servers quote of unknown commands: sessions are among them."""
    text = re.sub(r",? with args beginning with.*", "", str(error), flags=re.DOTALL)
    if text != str(error):
        error.args = (text,)
    return error


def record_of(value: Any) -> Record | None:
    """Split what is stored: the version, then the data."""
    if value is not None and not isinstance(value, bytes):
        raise _wrong("a record", value)
    if value is None or len(value) < VERSION_SIZE:
        return None
    return Record(value[:VERSION_SIZE], value[VERSION_SIZE:])


def records_of(reply: Any, number: int) -> list[Record | None]:
    """Read what `MGET` said of so many keys."""
    return [record_of(value) for value in _list(reply, number)]


def outcome_of(reply: Any, version: bytes) -> Outcome:
    """Read what the script says of one write."""
    if isinstance(reply, bytes) and len(reply) >= VERSION_SIZE:
        return Conflict(Record(reply[:VERSION_SIZE], reply[VERSION_SIZE:]))
    if reply not in {0, 1} if isinstance(reply, int) else True:
        raise _wrong("a write", reply)
    return Saved(version) if reply else Gone()


def outcomes_of(reply: Any, versions: Sequence[bytes]) -> list[Outcome]:
    """Read what the script says of these writes."""
    replies = _list(reply, len(versions))
    return [outcome_of(one, version) for one, version in zip(replies, versions, strict=True)]


def layout_of(reply: Any, host: str) -> dict[tuple[int, int], dict[str, Any]]:
    """Read what `CLUSTER SLOTS` says, by the node at `host`: who serves which slots."""
    try:
        layout: dict[tuple[int, int], dict[str, Any]] = parse_cluster_slots(reply, current_host=host)
        servers = [server for one in layout.values() for server in (one["primary"], *one["replicas"])]
        if all(0 <= start <= end < REDIS_CLUSTER_HASH_SLOTS for start, end in layout) and all(
            isinstance(name, str) and 0 < port < 1 << 16 for name, port in servers
        ):
            return layout
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise WrongReplyError("the cluster's layout cannot be read") from error
    raise WrongReplyError("the cluster's layout names slots or addresses that cannot be")


def number_of(reply: Any) -> int:
    """Read a reply that is a number."""
    if not isinstance(reply, int):
        raise _wrong("a number", reply)
    return reply


def _list(reply: Any, number: int) -> list[Any]:
    if not isinstance(reply, list) or len(reply) != number:
        raise _wrong(f"{number} values", reply)
    return reply


def _wrong(due: str, reply: object) -> WrongReplyError:
    size = f" of {len(reply)}" if isinstance(reply, (bytes, list)) else ""
    return WrongReplyError(f"{due} was due, and the reply is a {type(reply).__name__}{size}")


async def info_of(storage: Storage, execute: Callable[..., Awaitable[Any]]) -> str | None:
    """Return what to use instead, if the server is of another kind; warn where it drops sessions when it is full."""
    try:
        told = await execute("INFO")
    except ResponseError:  # not every user may ask, and not every proxy knows it
        return None
    if isinstance(told, bytes):
        told = parse_info(told)  # type: ignore[no-untyped-call]
    info = told if isinstance(told, dict) else {}
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory") and policy != "noeviction":
        log_once(
            logger.warning,
            "%r drops sessions when its memory is full, and so logs visitors out (maxmemory-policy is %s); "
            "set maxmemory-policy noeviction, or give the sessions a server of their own",
            storage,
            policy,
            about=repr(storage),
        )
    return _OTHER_MODES.get(str(info.get("redis_mode")))
