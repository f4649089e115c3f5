"""The storage contract: three methods over batches, and versions that no write ignores."""

from __future__ import annotations

import asyncio
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

from ._log import logger
from ._opened import noting_close, noting_open
from .errors import ConfigError, SessionError, StorageRefused, StorageUnavailable
from .url import StorageURL

__all__ = [
    "Conflict",
    "Gone",
    "Immediate",
    "Outcome",
    "Record",
    "Saved",
    "Sharded",
    "Storage",
    "Write",
    "new_version",
    "outcome",
    "retrying",
    "timed_out",
]

VERSION_SIZE = 8
CHECK_TTL = 60
"""Seconds after which the record of a check that was cut off ends."""

Item = TypeVar("Item")
T = TypeVar("T")


def _size(data: object) -> str:
    return f"{len(data)} bytes" if isinstance(data, bytes) else f"a {type(data).__name__}"


class Record(NamedTuple):
    """What is stored under one key."""

    version: bytes
    """Which write this is; opaque to all but the storage that made it."""
    data: bytes
    """Opaque to the storage."""

    def __repr__(self) -> str:
        return f"<Record of {_size(self.data)}, version {self.version!r}>"

    def __sentry_repr__(self) -> str:  # Sentry shows the items of a tuple, whatever its repr is
        return repr(self)


class Write(NamedTuple):
    """One change that is wanted, on condition of what is there."""

    key: str
    """43 base64url characters, made from the hash of the id; never bytes that a client chose."""
    expected: bytes | None
    """The version that this write replaces; `None` where the key must not exist yet."""
    data: bytes | None
    """What to store; `None` removes the record, if it is still the expected version."""
    ttl: int
    """Seconds until the record is absent, at least 1."""

    def __repr__(self) -> str:
        what = "removal" if self.data is None else f"write of {_size(self.data)}"
        return f"<Write: {what}, for session {self.key[:8]}, version {self.expected!r} expected, ttl {self.ttl}>"

    def __sentry_repr__(self) -> str:  # Sentry shows the items of a tuple, whatever its repr is
        return repr(self)


class Saved(NamedTuple):
    """The write was carried out."""

    version: bytes
    """The version that it left; empty after a removal."""


class Conflict(NamedTuple):
    """Nothing was written, as another record is there than the write expected."""

    record: Record
    """What is there."""


@dataclass(frozen=True, slots=True)
class Gone:
    """Nothing was written: a version was expected, and there is no record any more."""


Outcome = Saved | Conflict | Gone


class Storage(ABC):
    """Keeps records under keys until their time is over.

    A batch holds a key once. A bad value fails only itself where the server can tell; a
    broken server fails the batch with `StorageUnavailable`, within `timeout`.
    """

    timeout: float = 2.0
    """Seconds within which every verb answers or raises `StorageUnavailable`."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for name, noting in (("open", noting_open), ("close", noting_close)):
            if name in vars(cls):
                setattr(cls, name, noting(vars(cls)[name]))

    @classmethod
    def from_url(cls, url: StorageURL) -> Self:
        """Make the storage that a URL describes; it opens its client itself, in `open`.

        Raises:
            ConfigError: the URL has a part or a parameter that this storage does not know.
        """
        raise ConfigError(f"{cls.__name__} cannot be made from a URL ({url}): pass an instance to setup()")

    @noting_open  # noqa: B027  (a storage without connections has nothing to open)
    async def open(self) -> None:
        """Prepare for use; called once before the first verb, and again after `close`.

        An app opens a storage that is not open yet, and closes it when the last app that uses it ends. A storage that
        its caller has opened is left open.

        A server that is down at this time is no error: the verbs will tell.
        """

    @abstractmethod
    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        """Give the record of each key, in order.

        Missing, expired and not in this storage's own layout are all `None`.

        Raises:
            StorageUnavailable: the server did not answer within `timeout`.
        """

    @abstractmethod
    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        """Store each write in one atomic step and tell, in order, what became of it.

        Present with the expected version: written, `Saved`. Present with another version, or
        with any while none was expected: nothing written, `Conflict` with what is there.
        Absent while a version is expected: `Gone`; no write brings a record back. Absent and
        none expected: created, `Saved`. A record past its ttl is absent.

        The version is drawn once per write, so a write that is tried again because its answer
        was lost is `Saved`, unless another write came between.

        Raises:
            StorageUnavailable: the server did not answer within `timeout`.
            SessionTooLarge: a value is over the server's limit. As after any error but an outage,
                nothing of the batch was written, and the writes are sent again one by one.
        """

    @abstractmethod
    async def delete(self, keys: Sequence[str]) -> None:
        """Remove these records whatever their version; a missing one is no error.

        Raises:
            StorageUnavailable: the server did not answer within `timeout`.
        """

    @noting_close  # noqa: B027  (see open)
    async def close(self) -> None:
        """Give back what `open` took; calling it twice is no error."""

    async def check(self) -> None:
        """Write, read and remove a record that is no session, to see whether the storage serves.

        Raises:
            StorageRefused: the server answers, and will not serve; the message names what to check.
            StorageUnavailable: the server did not answer within `timeout`.
        """
        key = secrets.token_urlsafe(32)
        async with self.answering():
            await self.save([Write(key, None, b"", CHECK_TTL)])
            await self.load([key])
            await self.delete([key])

    def refusal(self, error: Exception) -> str | None:  # noqa: ARG002  (each storage knows its server's errors)
        """Return what to check, if a server's error says that it will not serve however often it is asked.

        Args:
            error: what a verb met. Anything else than a refusal, an outage above all, gives `None`.
        """
        return None

    def answering(self, *outages: type[BaseException]) -> AbstractAsyncContextManager[None]:
        """Bound the block by `timeout`, and turn `outages` and time-outs into `StorageUnavailable`.

        `OSError` and `EOFError` count as outages as well. What is a `refusal` becomes `StorageRefused`.
        """
        return _Answering(self, (OSError, EOFError, *outages))

    @asynccontextmanager
    async def opening(self, *outages: type[BaseException]) -> AsyncIterator[None]:
        """Bound the part of `open` that asks the server as `answering` does, `check`, and decide what errors mean.

        An outage or a refusal is logged and ends the block: the app starts, and answers 503 until the server serves.
        After any other error, such as a `ConfigError`, the storage is closed, and the error goes on.
        """
        try:
            async with self.answering(*outages):
                yield
                await self.check()
        except StorageRefused as error:
            logger.error("%s", error)
        except StorageUnavailable as error:
            logger.warning("opened without its server: %s", error)
        except BaseException:
            await self.close()
            raise


class _Answering(AbstractAsyncContextManager[None]):
    def __init__(self, storage: Storage, outages: tuple[type[BaseException], ...]) -> None:
        self._storage = storage
        self._outages = outages
        self._deadline = asyncio.timeout(storage.timeout)

    async def __aenter__(self) -> None:
        await self._deadline.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            await self._deadline.__aexit__(kind, error, where)
        except TimeoutError as passed:
            raise self._timed_out(passed) from passed
        if isinstance(error, TimeoutError):
            raise self._timed_out(error) from error
        if isinstance(error, Exception) and not isinstance(error, SessionError):
            reason = f"{type(error).__name__}: {error}"
            if (advice := self._storage.refusal(error)) is not None:
                raise _of(self._storage, StorageRefused(f"{self._storage!r} refuses: {reason}; {advice}")) from error
            if isinstance(error, self._outages):
                raise _of(self._storage, StorageUnavailable(f"{self._storage!r} failed: {reason}")) from error

    def _timed_out(self, error: TimeoutError) -> StorageUnavailable:
        """Return the error of a deadline that has passed, which may be all that a driver says of a refusal."""
        late, advice = timed_out(self._storage), self._storage.refusal(error)
        return late if advice is None else StorageRefused(f"{late}; {advice}")


class Sharded(Storage):
    """A storage over several servers, each of which holds keys of its own and is a storage itself.

    A server that is down or hangs fails its own keys only, and holds up no other's: whoever batches
    puts keys of one server into a batch, and has trips and deadlines for each.
    """

    @abstractmethod
    def shard_of(self, key: str) -> Storage:
        """Give the storage of the server that holds this key: one server, one object."""

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        """Ask all servers at once; one that does not answer fails the call when the others have answered."""
        return await self._ask_each(keys, keys, lambda shard, some: shard.load(some))

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        """Write to all servers at once. Each server's share is a batch of its own, and an error undoes no other's."""
        return await self._ask_each([write.key for write in writes], writes, lambda shard, some: shard.save(some))

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove from all servers at once; one that does not answer fails the call when the others have answered."""

        async def delete(shard: Storage, some: Sequence[str]) -> list[None]:
            await shard.delete(some)
            return [None] * len(some)

        await self._ask_each(keys, keys, delete)

    async def _ask_each(
        self,
        keys: Sequence[str],
        items: Sequence[Item],
        ask: Callable[[Storage, Sequence[Item]], Awaitable[Sequence[Any]]],
    ) -> list[Any]:
        places: dict[Storage, list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault(self.shard_of(key), []).append(place)
        calls = [ask(shard, [items[place] for place in its]) for shard, its in places.items()]
        shares = await asyncio.gather(*calls, return_exceptions=True)
        answers: dict[int, Any] = {}
        failures = []
        for its, share in zip(places.values(), shares, strict=True):
            if isinstance(share, BaseException):
                failures.append(share)
            else:
                answers.update(zip(its, share, strict=True))
        if failures:  # an outage comes first, as after it nobody sends the batch again
            raise max(failures, key=lambda failure: isinstance(failure, StorageUnavailable))
        return [answers[place] for place in range(len(items))]


@runtime_checkable
class Immediate(Protocol):
    """What a storage may offer that answers without waiting: no task and no deadline is needed for it."""

    def load_now(self, keys: Sequence[str]) -> list[Record | None]:
        """Do what `Storage.load` does."""

    def save_now(self, writes: Sequence[Write]) -> list[Outcome]:
        """Do what `Storage.save` does."""


def outcome(write: Write, version: bytes, found: Record | None) -> Outcome | None:
    """Return why the server did not carry out a write, from the record that is there now.

    Args:
        write: what was wanted.
        version: the one that was drawn for it; empty for a removal.
        found: the live record under its key, `None` if there is none.

    Returns:
        `Saved` if an earlier attempt was carried out and its answer lost, or if there is nothing to remove; `Conflict`
        or `Gone` if the write lost; `None` if what was in its way has gone since, so that it must be tried again.
    """
    if found is None:
        if write.expected is not None:
            return Gone()  # also of a removal whose answer was lost
        return Saved(b"") if write.data is None else None
    if found.version == version:
        return Saved(version)
    return None if found.version == write.expected else Conflict(found)


async def retrying(call: Callable[[], Awaitable[T]], is_lost: Callable[[Exception], bool]) -> T:
    """Return what `call` answers; if it loses its connection, call it once more.

    It may then be carried out twice. So draw versions before, and let `outcome` tell a write that finds its own.

    Args:
        call: sends one request, over another connection each time.
        is_lost: whether an error of the first attempt says that the answer was lost; any other is raised at once,
            and so is every error of the second.
    """
    try:
        return await call()
    except Exception as error:
        if not is_lost(error):
            raise
    return await call()


def timed_out(storage: Storage) -> StorageUnavailable:
    """Return the error that says that the deadline has passed."""
    return _of(storage, StorageUnavailable(f"{storage!r} did not answer within {storage.timeout:g} s"))


def _of(storage: Storage, error: StorageUnavailable) -> StorageUnavailable:
    error.storage = storage
    return error


_drawn: list[bytes] = []  # ahead of use, as asking the system takes longer than the rest of a write to memory
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drawn.clear)  # no two processes may use the same


def new_version() -> bytes:
    """Draw the version of one write: 8 random bytes, which no two writes of a record share."""
    while True:
        try:
            return _drawn.pop()
        except IndexError:
            drawn = os.urandom(VERSION_SIZE * 256)
            _drawn.extend(drawn[start : start + VERSION_SIZE] for start in range(0, len(drawn), VERSION_SIZE))
