"""`redis+cluster://`: a Redis Cluster, each key at the node that serves its slot.

redis-py's RedisCluster is not used: one lost connection makes it learn the whole cluster anew while all
calls wait, and connect anew to every node; and its pipelines take no EVALSHA.
"""

from __future__ import annotations

import asyncio
import random
import re
import secrets
from typing import TYPE_CHECKING, Any, Self

from redis.asyncio import cluster
from redis.asyncio.connection import DefaultParser
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, AuthenticationError, ClusterDownError, MovedError, NoScriptError, RedisError
from redis.exceptions import TimeoutError as SilentError

from ..errors import ConfigError
from ..storage import CHECK_TTL, Outcome, Record, Sharded, Storage, Write
from ._port_probe import Place, refused_by_another
from ._redis_connections import PROTOCOL, Connections, LostError
from ._redis_replies import advice_for, info_of, layout_of, number_of, outcomes_of, record_of
from ._redis_steps import Command, Step, together
from ._redis_url import RedisClusterOptions
from .redis import SAVE_SHA, script_of, version_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..url import Host, StorageURL

    Address = tuple[str, int]

__all__ = ["RedisClusterOptions", "RedisClusterStorage"]

_HOPS = 5
"""How often a command may be sent: a moved slot, an unknown script and a lost connection cost one each."""
_PARSER: Any = getattr(cluster, "ClusterParser", DefaultParser)
"""What knows a cluster's errors; before redis-py 6 that is not the parser of a single server's replies."""
_KEYS_OF_A_CHECK = 500
"""How many keys are drawn to find one of each node; a node with very few slots may be left out."""
_LOOK_AGAIN = 0.25
"""Seconds between two looks at the cluster's layout, however many calls fail."""


class RedisClusterStorage(Sharded):
    """Sessions in a Redis Cluster, stored as `RedisStorage` does it.

    Args:
        hosts: some of the nodes, with which it begins; they tell of the others.
        options: what a URL's parameters say.
        **login: `username` and `password`.

    Raises:
        ConfigError: the prefix has a hash tag, which would put all sessions on one node.
    """

    def __init__(self, hosts: Sequence[Host], options: RedisClusterOptions, **login: Any) -> None:
        if re.search(r"\{[^}]+\}", options.prefix):
            raise ConfigError(
                f"prefix={options.prefix!r} has a hash tag, which puts all sessions on one node; use none"
            )
        self.timeout = options.timeout
        self.prefix = options.prefix
        self._options = options
        self._context = options.context()
        self._login = login
        self._seeds: list[Address] = [(host.name, host.port or 6379) for host in hosts]
        self._nodes: dict[Address, _Node] = {}
        self._slots: list[_Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._look: asyncio.Task[None] | None = None
        self._looked = 0.0
        self._unlearnt: Exception | None = None
        """Why a node did not tell the layout."""
        self._closing: set[asyncio.Task[None]] = set()
        self._is_open = False

    @classmethod
    def from_url(cls, url: StorageURL) -> Self:
        """Read `redis+cluster://user:password@host:port,host:port?…`; some of the nodes suffice."""
        if url.path.strip("/") not in {"", "0"}:
            raise ConfigError(f"a cluster has one database only; leave {url.quoted(url.path)} out of the URL")
        return cls(url.several_hosts(6379), url.options(RedisClusterOptions), username=url.user, password=url.password)

    def __repr__(self) -> str:
        return f"<RedisClusterStorage {','.join(f'{name}:{port}' for name, port in self._seeds)}>"

    async def open(self) -> None:
        """Learn which node serves which keys, and warn where one may throw sessions away."""
        if self._is_open:
            return
        self._is_open = True
        for node in self._nodes.values():
            node.connections.open()
        async with self.opening(RedisError):
            pass  # it is tried

    async def check(self) -> None:
        """Learn the layout; then write, read and remove a record at each node that serves keys."""
        place = Place(*self._seeds[0], PROTOCOL, self._context is not None, self._context)
        await refused_by_another(self, self._try(), place)

    async def _try(self) -> None:
        async with self.answering(RedisError):
            await self._learn()
            primaries = {node for node in self._slots if node is not None}
            if not primaries and self._unlearnt is not None:
                raise self._unlearnt
            await asyncio.gather(*(info_of(node, node.connections.execute_command) for node in primaries))
        keys: dict[Storage, str] = {}
        for key in (secrets.token_urlsafe(32) for _ in range(_KEYS_OF_A_CHECK)):
            keys.setdefault(self.shard_of(key), key)
        await self.save([Write(key, None, b"", CHECK_TTL) for key in keys.values()])
        await self.load([*keys.values()])
        await self.delete([*keys.values()])

    def refusal(self, error: Exception) -> str | None:
        return advice_for(error, is_cluster=True)

    async def close(self) -> None:
        self._is_open = False
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait({self._look})
            self._look = None
        self._slots = [None] * REDIS_CLUSTER_HASH_SLOTS
        for node in list(self._nodes.values()):
            self._drop(node)
        if self._closing:
            await asyncio.wait(self._closing)

    def shard_of(self, key: str) -> Storage:
        return self.node_of(self.prefix + key)

    def node_of(self, name: str) -> _Node:
        """Give the node that serves a key, or where it is not known any other: a node tells who does."""
        return self._slots[key_slot(name.encode())] or self._node(self._seeds[0])

    async def ask(self, first: _Node, commands: Sequence[Command], *, changes: bool = False) -> list[Any]:
        """Send commands to a node, and those that it does not serve to the one that does; give their replies.

        A command may be carried out twice, as after a lost connection; see `RedisStorage`.
        """
        replies: list[Any] = [None] * len(commands)
        steps = [Step(place, command, first) for place, command in enumerate(commands)]
        for _ in range(_HOPS):
            groups: dict[_Node, list[Step]] = {}
            for step in steps:
                groups.setdefault(step.node or self.node_of(step.command.name), []).append(step)
            told = await together([self._send(node, group, changes=changes) for node, group in groups.items()])
            steps = []
            for (node, group), answers in zip(groups.items(), told, strict=True):
                for step, answer in zip(group, answers, strict=True):
                    replies[step.place] = answer
                    if isinstance(answer, Exception):
                        steps += self._next(step, node, answer, changes=changes)
            if not steps:
                break
            if any(step.node is None for step in steps):
                await self._learn()
        return replies

    def _next(self, step: Step, node: _Node, answer: Exception, *, changes: bool) -> list[Step]:
        """Tell what is still to do for a command that got this answer."""
        match answer:
            case MovedError():
                self._learn_soon()
                return [step._replace(node=self._node_at(answer, node), is_asking=False)]
            case AskError():  # the slot is on its way, and this key is there already, or will be
                return [step._replace(node=self._node_at(answer, node), is_asking=True)]
            case NoScriptError():
                return [step._replace(command=step.command.with_script())]
            case AuthenticationError():
                return []
            case LostError() | SilentError() | ClusterDownError() | OSError():
                # With replicas to wait for, one attempt is all: see RedisStorage.
                is_over = step.is_again or (changes and self._options.replicas)
                self._learn_soon()
                return [] if is_over else [step._replace(node=None, is_asking=False, is_again=True)]
        return []

    async def _send(self, node: _Node, steps: Sequence[Step], *, changes: bool) -> list[Any]:
        """Send these over one connection, and give an answer or an error for each."""
        commands: list[tuple[Any, ...]] = []
        for step in steps:
            if step.is_asking:
                commands.append(("ASKING",))
            commands.append(step.command.words)
        connections = node.connections
        try:
            answers = iter(await (connections.change if changes else connections.execute)(commands))
        except (RedisError, OSError) as error:
            return [error] * len(steps)
        except asyncio.CancelledError:  # it may hang, and another take its place
            self._learn_soon()
            raise
        return [(next(answers), next(answers))[1] if step.is_asking else next(answers) for step in steps]

    # The layout.

    def _node(self, address: Address) -> _Node:
        node = self._nodes.get(address)
        if node is None:
            name, port = address
            connections = Connections(
                self._options.pool_size,
                self._context,
                timeout=self.timeout,
                replicas=self._options.replicas,
                parser_class=_PARSER,
                **self._login,
                host=name,
                port=port,
                db=0,
            )
            node = self._nodes[address] = _Node(self, address, connections)
            if self._is_open:
                connections.open()
        return node

    def _node_at(self, redirection: AskError, by: _Node) -> _Node:
        return self._node((redirection.host or by.address[0], redirection.port))

    async def _learn(self) -> None:
        """Wait for a look at the layout: the one under way, or a new one unless the last is young."""
        self._learn_soon()
        if self._look is not None:
            await asyncio.wait({self._look})

    def _learn_soon(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._is_open and (self._look is None or (self._look.done() and now - self._looked > _LOOK_AGAIN)):
            self._look = asyncio.create_task(self._look_around())

    async def _look_around(self) -> None:
        """Take the layout that one of the nodes tells, asked in any order, the next when one takes its time."""
        addresses = [*dict.fromkeys([*self._nodes, *self._seeds])]
        random.shuffle(addresses)
        asked: dict[asyncio.Task[Any], _Node] = {}
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.timeout):
                while addresses or asked:
                    if addresses:
                        node = self._node(addresses.pop())
                        asked[asyncio.create_task(node.connections.execute_command("CLUSTER", "SLOTS"))] = node
                    done, _ = await asyncio.wait(
                        asked,
                        timeout=self.timeout / 10 if addresses else None,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    for task in done:
                        node = asked.pop(task)
                        try:
                            self._take(layout_of(task.result(), node.address[0]))
                        except (RedisError, OSError) as error:
                            self._unlearnt = error
                        else:
                            return
        except TimeoutError:
            pass
        finally:
            self._looked = loop.time()
            for task in asked:
                task.cancel()
            if asked:
                await asyncio.wait(asked)

    def _take(self, layout: dict[tuple[int, int], dict[str, Any]]) -> None:
        slots: list[_Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        members = set(self._seeds)
        for (start, end), servers in layout.items():
            slots[start : end + 1] = [self._node(servers["primary"])] * (end + 1 - start)
            members |= {servers["primary"], *servers["replicas"]}
        self._slots = slots
        for address in self._nodes.keys() - members:
            self._drop(self._nodes[address])

    def _drop(self, node: _Node) -> None:
        del self._nodes[node.address]
        task = asyncio.create_task(node.connections.aclose())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


class _Node(Storage):
    """One server of a cluster, for the keys that it serves, or was thought to."""

    def __init__(self, cluster: RedisClusterStorage, address: Address, connections: Connections) -> None:
        self.timeout = cluster.timeout
        self.address = address
        self.connections = connections
        self._cluster = cluster

    def __repr__(self) -> str:
        return "<RedisClusterStorage, node {}:{}>".format(*self.address)

    async def load(self, keys: Sequence[str]) -> list[Record | None]:
        replies = await self._ask([self._command(key, "GET") for key in keys])
        async with self.answering(RedisError):
            return [None if isinstance(reply, RedisError) else record_of(reply) for reply in replies]

    async def save(self, writes: Sequence[Write]) -> list[Outcome]:
        versions = [version_for(write) for write in writes]
        commands = []
        for write, version in zip(writes, versions, strict=True):
            name = self._cluster.prefix + write.key
            commands.append(Command(name, ("EVALSHA", SAVE_SHA, 1, name, *script_of(write, version))))
        replies = await self._ask(commands, changes=True)
        async with self.answering(RedisError):
            return [outcomes_of(reply, [version])[0] for reply, version in zip(replies, versions, strict=True)]

    async def delete(self, keys: Sequence[str]) -> None:
        replies = await self._ask([self._command(key, "DEL") for key in keys], changes=True)
        async with self.answering(RedisError):
            for reply in replies:
                number_of(reply)

    def refusal(self, error: Exception) -> str | None:
        return advice_for(error, is_cluster=True)

    def _command(self, key: str, verb: str) -> Command:
        name = self._cluster.prefix + key
        return Command(name, (verb, name))

    async def _ask(self, commands: Sequence[Command], *, changes: bool = False) -> list[Any]:
        async with self.answering(RedisError):
            replies = await self._cluster.ask(self, commands, changes=changes)
            for reply in replies:
                # A key of another type is missing.
                if isinstance(reply, Exception) and (changes or not str(reply).startswith("WRONGTYPE")):
                    raise reply
        return replies
