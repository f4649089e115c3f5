"""`mongodb://`: documents with a TTL index, written on condition of their version, by the server's clock.

A document is `_id`, the key; `v`, the version; `d`, the data; `e`, the date from which it is absent.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

import bson
import pymongo
from bson.codec_options import CodecOptions
from pymongo import AsyncMongoClient, ReadPreference
from pymongo.errors import AutoReconnect, DuplicateKeyError, OperationFailure, PyMongoError

from .._log import log_throttled, logger
from ..errors import ConfigError, SessionTooLarge, StorageRefused
from ..storage import Outcome, Record, Saved, Storage, Write, new_version, outcome
from ._mongodb_refusals import WrongReplyError, advice_for, index_advice, number_of, record_of, topology_advice
from ._mongodb_url import CONCURRENT, MongoDBOptions, Source, collection_of, read
from ._port_probe import refused_by_another

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ..url import StorageURL

__all__ = ["MongoDBOptions", "MongoDBStorage"]

T = TypeVar("T")

_LIMIT = 16 * 1024 * 1024
_FRAME = len(bson.encode({"_id": b"k" * 43, "v": b"8 random", "d": b"", "e": datetime.now(UTC)}))
_INDEX_AGAIN = 1.0
_LOOK_AGAIN = 5.0
"""Seconds between two looks at whether the TTL index is there."""

# $cond, because $and promises no order and $toLong fails on foreign types. Compared as numbers, because
# not every server that speaks MongoDB's protocol compares a stored date with $$NOW rightly.
_KINDS = {"v": "binData", "d": "binData", "e": "date"}
_LIVE = {
    "$cond": [
        {"$and": [{"$eq": [{"$type": f"${name}"}, kind]} for name, kind in _KINDS.items()]},
        {"$gt": [{"$toLong": "$e"}, {"$toLong": "$$NOW"}]},
        False,
    ]
}


class MongoDBStorage(Storage):
    """Sessions in a collection of MongoDB, through motor or PyMongo's asyncio client.

    Args:
        client: an asyncio client of either, or a collection of one; it is not closed.
        options: the collection, unless one was given; how long a call may take, and whose sessions are taken over. The
            collection's TTL index is made where it is missing.
        database: its name, unless a collection was given.

    Raises:
        ConfigError: another client, one that hides what became of a write, or options that do not go together.
    """

    def __init__(self, client: Any, options: MongoDBOptions | None = None, *, database: str = "sessions") -> None:
        self._options = options = options or MongoDBOptions()
        self._database = database
        self.timeout, self.legacy = options.timeout, options.legacy()
        self._source = client if isinstance(client, Source) else None
        self._client: Any = None
        self._collection: Any = None
        self._indexing: asyncio.Task[str | None] | None = None
        self._looked = 0.0
        self._look: asyncio.TimerHandle | None = None
        self._calls: set[asyncio.Future[Any]] = set()
        if self._source is None:
            self._use(client)

    @classmethod
    def from_url(cls, url: StorageURL) -> Self:
        """Read `mongodb://user:password@host/database?collection=&timeout=&pool_size=`, and MongoDB's parameters."""
        source, options, database = read(url)
        return cls(source, options, database=database)

    def __repr__(self) -> str:
        if self._source is not None:
            return f"<MongoDBStorage {self._source.shown}>"
        return f"<MongoDBStorage {self._collection.full_name} of a {type(self._client).__name__}>"

    async def open(self) -> None:
        """Make the client, and say so if the server is down or does not serve; see to the TTL index."""
        if self._source is not None and self._client is None:
            try:
                client = self._source.connect()
            except (PyMongoError, ValueError, OSError) as error:
                raise ConfigError(f"{self!r} cannot be made: {error}") from None
            self._use(client)
        async with self.opening(PyMongoError):
            pass  # it is tried

    async def check(self) -> None:
        """Also see to the TTL index, as far as there is time for it: it may take long to build."""
        await refused_by_another(self, self._try(), self._source and self._source.place)

    async def _try(self) -> None:
        indexing = self._index_now()
        await asyncio.wait({indexing}, timeout=self.timeout / 4)
        await super().check()
        if not indexing.done():
            indexing.add_done_callback(self._complain)
        elif (why := indexing.result()) is not None:
            raise StorageRefused(f"{self!r} has no TTL index, so expired sessions stay on its disk: {why}")

    def refusal(self, error: Exception) -> str | None:
        advice = advice_for(error)
        if advice is None and self._client is not None and isinstance(error, AutoReconnect | TimeoutError):
            return topology_advice(self._collection.database.client)
        return advice

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        if not keys:
            return []
        async with self.answering(PyMongoError):
            found = await self._find(keys)
        return [found.get(key) for key in keys]

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        for write in writes:
            size = _FRAME + len(write.data or b"")
            if size > _LIMIT:
                raise SessionTooLarge(size, _LIMIT, "a MongoDB document")
        versions = {write.key: new_version() if write.data is not None else b"" for write in writes}
        outcomes: dict[str, Outcome] = {}
        async with self.answering(PyMongoError):
            pending = list(writes)
            while pending:
                done = await self._write_all(pending, versions)
                lost = [write for write in pending if write.key not in done]
                found = await self._find([write.key for write in lost]) if lost else {}
                outcomes.update((key, Saved(versions[key])) for key in done)
                pending = []
                for write in lost:
                    why = outcome(write, versions[write.key], found.get(write.key))
                    if why is None:
                        pending.append(write)
                    else:
                        outcomes[write.key] = why
        if any(write.expected is None and write.data is not None for write in writes):
            self._look_at_index()
        return [outcomes[write.key] for write in writes]

    async def delete(self, keys: Sequence[str]) -> None:
        if not keys:
            return
        async with self.answering(PyMongoError):
            await self._twice(partial(self._collection.delete_many, {"_id": {"$in": [key.encode() for key in keys]}}))

    async def read_legacy(self, key: str) -> Any:
        """Read aiohttp-session-mongo's document: `data`, and `expire`, a date in UTC or null."""
        legacy = self._legacy_collection()
        async with self.answering(PyMongoError):
            found = await self._twice(partial(legacy.find_one, {"_id": key.encode()}))
        expire = found and found.get("expire")
        is_over = isinstance(expire, datetime) and expire <= datetime.now(UTC).replace(tzinfo=None)
        return None if found is None or is_over else found.get("data")

    async def remove_legacy(self, key: str) -> None:
        legacy = self._legacy_collection()
        async with self.answering(PyMongoError):
            await self._twice(partial(legacy.delete_one, {"_id": key.encode()}))

    def _legacy_collection(self) -> Any:
        collection = self._collection.database.get_collection(self._options.migrate_collection)
        return collection.with_options(
            codec_options=CodecOptions(),
            read_preference=ReadPreference.PRIMARY,
            write_concern=self._collection.write_concern,
        )

    async def close(self) -> None:
        """Close the client that `open` made; one that was passed in stays open."""
        if self._look is not None:
            self._look.cancel()
            self._look = None
        if self._indexing is not None:
            self._indexing.cancel()
            await asyncio.wait({self._indexing})
            self._indexing = None
        calls = set(self._calls)
        if calls:
            _, calls = await asyncio.wait(calls, timeout=self.timeout)
            for call in calls:
                call.cancel()
        if self._source is not None and self._client is not None:
            client, self._client = self._client, None
            if isinstance(client, AsyncMongoClient):
                await client.close()
            else:  # motor's close says goodbye to the server, and blocks for it
                await asyncio.to_thread(client.close)
        if calls:
            await asyncio.wait(calls)

    def _use(self, client: Any) -> None:
        collection = collection_of(client, self._database, self._options.collection)
        if not collection.write_concern.acknowledged:
            raise ConfigError("w=0 hides what became of a write; use w='majority'")
        self._client = client
        # A secondary may still show a session that was ended.
        self._collection = collection.with_options(codec_options=CodecOptions(), read_preference=ReadPreference.PRIMARY)

    async def _call(self, call: Callable[[], Awaitable[T]], *, is_bounded: bool = True) -> T:
        """Make one call of the driver, which goes on to its own end where its caller is cancelled.

        A cancelled call of PyMongo leaks the socket that it is connecting, and one of motor goes on in its thread.
        So it is bounded as a whole: the driver's time-outs add up, and what nobody waits for any more would keep
        motor's threads from serving when the server is back.
        """
        with pymongo.timeout(self.timeout) if is_bounded or self._source is None else nullcontext():
            running = asyncio.ensure_future(call())
        self._calls.add(running)
        running.add_done_callback(self._settle)
        try:
            return await asyncio.shield(running)
        except (PyMongoError, OSError):
            raise
        except Exception as error:
            raise WrongReplyError(f"a reply cannot be read: {type(error).__name__}") from error

    def _settle(self, call: asyncio.Future[Any]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # looked at, or asyncio logs it where nobody waited to the end

    async def _twice(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call again once where the answer was lost: each of our calls may be carried out twice."""
        try:
            return await self._call(call)
        except AutoReconnect:
            return await self._call(call)

    async def _find(self, keys: Sequence[str]) -> dict[str, Record]:
        wanted = {"_id": {"$in": [key.encode() for key in keys]}, "$expr": _LIVE}
        documents = await self._twice(lambda: self._collection.find(wanted, {"v": 1, "d": 1}).to_list())
        return dict(record_of(document) for document in documents)

    async def _write_all(self, writes: Sequence[Write], versions: dict[str, bytes]) -> set[str]:
        """Carry out the writes, a few at a time, and tell the keys of those that were."""
        told: dict[str, bool] = {}
        queue = iter(writes)

        async def work() -> None:
            for write in queue:
                try:
                    told[write.key] = await self._write(write, versions[write.key])
                except AutoReconnect:
                    return

        if len(writes) == 1:
            await work()
        else:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(CONCURRENT, len(writes))):
                        group.create_task(work())
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
        # Again where an answer was lost, with the same versions; one by one, not to crowd a recovering pool.
        for write in writes:
            if write.key not in told:
                told[write.key] = await self._write(write, versions[write.key])
        return {key for key, carried_out in told.items() if carried_out}

    async def _write(self, write: Write, version: bytes) -> bool:
        """Tell whether the write was carried out; where not, the version that is found tells why."""
        key = write.key.encode()
        expected = {"_id": key, "v": write.expected, "$expr": _LIVE}
        if write.data is None:
            # Tried again after a lost answer it finds nothing, and is Gone: the record is.
            removed = await self._call(partial(self._collection.delete_one, expected))
            return number_of(removed.deleted_count) > 0
        document = {"_id": key, "v": version, "d": write.data, "e": {"$add": ["$$NOW", write.ttl * 1000]}}
        if write.expected is not None:
            update = partial(self._collection.update_one, expected, [{"$replaceWith": document}])
        else:
            # The condition is in the update, since MongoDB refuses $expr in the filter of an upsert.
            create = [{"$replaceWith": {"$cond": [_LIVE, "$$ROOT", document]}}]
            update = partial(self._collection.update_one, {"_id": key}, create, upsert=True)
        try:
            result = await self._call(update)
        except DuplicateKeyError:  # two upserts at once
            return False
        return number_of(result.modified_count) > 0 or result.upserted_id is not None

    # The TTL index.

    def _index_now(self) -> asyncio.Task[str | None]:
        if self._indexing is None or self._indexing.done():
            self._indexing = asyncio.create_task(self._index())
        return self._indexing

    def _look_at_index(self) -> None:
        """After a create, which makes a collection anew that was dropped, and not its index: look soon, but seldom."""
        if self._client is not None and self._look is None:
            self._look = asyncio.get_running_loop().call_at(self._looked + _LOOK_AGAIN, self._look_now)

    def _look_now(self) -> None:
        self._look = None
        self._index_now().add_done_callback(self._complain)

    async def _index(self) -> str | None:
        """Create the index if it is missing; return why it cannot be."""
        while True:
            try:
                if not await self._has_index():
                    # Unbounded, as the server would give up building it for a large collection at the deadline.
                    await self._call(lambda: self._collection.create_index("e", expireAfterSeconds=0), is_bounded=False)
            except AutoReconnect:
                await asyncio.sleep(_INDEX_AGAIN)
            except PyMongoError as error:
                return f"{error}; {index_advice(error, self._collection.name)}"
            else:
                return None
            finally:
                self._looked = asyncio.get_running_loop().time()

    async def _has_index(self) -> bool:
        try:
            indexes = await self._call(self._collection.index_information)
        except OperationFailure:  # not every user may ask
            return False
        wanted = {"key": [("e", 1)], "expireAfterSeconds": 0}
        return any(wanted == {name: index.get(name) for name in wanted} for index in indexes.values())

    def _complain(self, indexing: asyncio.Task[str | None]) -> None:
        if not indexing.cancelled() and (why := indexing.result()) is not None:
            log_throttled(logger.error, "%r has no TTL index, so expired sessions stay on its disk: %s", self, why)
