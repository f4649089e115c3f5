"""Real servers for the tests: each on a free loopback port, in a temporary folder of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pymongo import MongoClient
from pymongo.errors import PyMongoError
from redis import Connection, RedisError

START_WITHIN = 120.0
"""Seconds in which a server starts, or ends, on however busy a machine."""
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = 1_600  # six times as many are fewer than the 10,000 between a node of a Redis cluster and its second port
_FIRST_PORT = 10_000 + _PORTS * (_WORKER % 6)
_given: set[int] = set()
_POSTGRESQL = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)  # where Debian keeps it
_PATH = os.pathsep.join(
    [os.environ.get("PATH", ""), str(Path(sys.executable).parent), "/usr/sbin", "/usr/local/sbin", *_POSTGRESQL]
)


def free_port() -> int:
    """Find a port below those of outgoing connections, one of which could take it while its server is away.

    That is no rare thing: who tries to connect to such a port from the same machine may be given it as its own,
    and is then connected to itself. A Redis cluster's second port, 10000 above, is spared as well. No port is given
    twice, also not by another worker, since its server may still be on its way to it.
    """
    while True:
        port = _FIRST_PORT + secrets.randbelow(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


def program(*names: str) -> str:
    """Find the first of these programs, or fail and say how to get it."""
    for name in names:
        found = shutil.which(name, path=_PATH)
        if found:
            return found
    raise RuntimeError(f"none of {', '.join(names)} is installed; run: make servers")


class Server:
    """A server that can be started, stopped, killed and paused, keeping its port and its folder."""

    scheme: ClassVar[str]
    path: ClassVar[str] = ""

    user: str | None = None
    """Whom the server runs as, if not as the tests."""
    environment: ClassVar[dict[str, str]] = {}
    """What is added to the tests' own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.login}127.0.0.1:{self.port}{self.path}"

    login: ClassVar[str] = ""

    def command(self) -> list[str]:
        raise NotImplementedError

    def prepare(self) -> None:
        """Make what the server needs in its folder, once."""

    def ready(self) -> bool:
        """Tell whether the server accepts connections; a failed attempt raises `OSError`."""
        socket.create_connection(("127.0.0.1", self.port), 1).close()
        return True

    def start(self) -> None:
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            self.prepare()
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                cwd=self.home,
                user=self.user,
                env={**os.environ, **self.environment},
            )
        give_up = time.monotonic() + START_WITHIN
        while True:
            try:
                if self.ready():
                    return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > give_up:
                tail = (self.folder / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self.command()[0]} does not start:\n{tail}")
            time.sleep(0.02)

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(how)
        try:
            self.process.wait(START_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def must_answer(self) -> None:
        """Raise an error if the server itself has come to a halt, and so is what failed; the others never did yet."""

    def pause(self) -> None:
        """Stop the process, so that it keeps its connections and says nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self.process.pid}/task")
        while any("T (stopped)" not in (thread / "status").read_text() for thread in threads.iterdir()):
            time.sleep(0.001)  # they stop one after the other, and the last ones may still answer

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


Node = TypeVar("Node", bound=Server)


class ServerSet(Server, Generic[Node]):
    """Several servers that a test uses as one."""

    nodes: list[Node]

    @property
    def url(self) -> str:
        return f"{self.scheme}://{','.join(f'127.0.0.1:{node.port}' for node in self.nodes)}{self.path}"

    def start(self) -> None:
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            self.prepare()
        for node in self.nodes:
            node.start()
        wait_until(self.is_whole)

    def is_whole(self) -> bool:
        """Tell whether they serve as one."""
        return True

    def _end(self, how: signal.Signals) -> None:
        for node in self.nodes:
            node._end(how)

    def pause(self) -> None:
        for node in self.nodes:
            node.pause()

    def resume(self) -> None:
        for node in self.nodes:
            node.resume()


class Redis(Server):
    scheme = "redis"
    path = "/0"

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(folder)
        self.options = options

    def command(self) -> list[str]:
        return [
            program("redis-server", "valkey-server"),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.folder / "redis.sock")),
            *("--dir", str(self.folder), "--save", "", "--appendonly", "yes", "--appendfsync", "always"),
            *self.options,
        ]

    def ask(self, command: str) -> Any:
        """Send a command, and give the reply as text, or as lists of it."""
        connection: Any = Connection(  # type: ignore[no-untyped-call]
            host="127.0.0.1", port=self.port, protocol=2, decode_responses=True
        )
        try:
            connection.send_command(*command.split())
            return connection.read_response()
        finally:
            connection.disconnect()


class Memcached(Server):
    scheme = "memcached"

    def command(self) -> list[str]:
        user = ("-u", "root") if os.geteuid() == 0 else ()
        return [program("memcached"), "-p", str(self.port), "-l", "127.0.0.1", "-U", "0", "-m", "64", *user]


class MemcachedNodes(ServerSet[Memcached]):
    """Three nodes of one storage, which start and fail together unless a test takes one of `nodes`."""

    scheme = "memcached"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.nodes = [Memcached(folder / str(number)) for number in range(3)]


class MariaDB(Server):
    scheme = "mysql"
    path = "/sessions"
    login = "visitor:s%40crêt@"

    @property
    def account(self) -> str:
        return self.user or getpass.getuser()

    def prepare(self) -> None:
        (self.folder / "init.sql").write_text(
            "CREATE DATABASE IF NOT EXISTS sessions;\n"
            "CREATE USER IF NOT EXISTS 'visitor'@'%' IDENTIFIED BY 's@crêt';\n"
            "GRANT ALL ON sessions.* TO 'visitor'@'%';\n",
            encoding="utf-8",
        )
        subprocess.run(
            [
                program("mariadb-install-db", "mysql_install_db"),
                *("--no-defaults", f"--datadir={self.folder / 'data'}", f"--user={self.account}"),
                *("--auth-root-authentication-method=normal", "--skip-test-db", f"--tmpdir={self.folder}"),
            ],
            check=True,
            capture_output=True,
            user=self.user,
        )

    def command(self) -> list[str]:
        return [
            program("mariadbd", "mysqld"),
            *("--no-defaults", f"--datadir={self.folder / 'data'}", f"--user={self.account}"),
            *(f"--port={self.port}", "--bind-address=127.0.0.1", f"--socket={self.folder / 'mysql.sock'}"),
            *(f"--init-file={self.folder / 'init.sql'}", "--character-set-server=utf8mb4"),
            *("--innodb-buffer-pool-size=64M", "--innodb-log-file-size=32M", "--max-connections=300"),
            f"--tmpdir={self.folder}",  # a server that starts removes what others have in a folder that they share
        ]

    def ready(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            return bool(connection.recv(1))


class PostgreSQL(Server):
    scheme = "postgresql"
    path = "/postgres"
    login = "visitor:s%40crêt@"

    def prepare(self) -> None:
        if os.geteuid() == 0:  # it refuses to run as root, and nobody else may look into pytest's folders
            self.user = "nobody"
            self.home = Path(tempfile.mkdtemp(prefix="postgresql"))
            weakref.finalize(self, shutil.rmtree, self.home, ignore_errors=True)
        (self.home / "password").write_text("s@crêt", encoding="utf-8")
        if self.user is not None:
            shutil.chown(self.home, self.user)
            shutil.chown(self.home / "password", self.user)
        subprocess.run(
            [
                program("initdb"),
                *(f"--pgdata={self.home / 'data'}", "--username=visitor", f"--pwfile={self.home / 'password'}"),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            cwd=self.home,
            user=self.user,
        )

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "shared_buffers": "32MB",
            "max_connections": "200",
        }
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        return [program("postgres"), "-D", str(self.home / "data"), "-p", str(self.port), *options]

    def ready(self) -> bool:
        """Tell whether it asks who is there; while it starts, it says that it does."""
        greeting = b"\0\3\0\0user\0visitor\0\0"
        with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.sendall((len(greeting) + 4).to_bytes(4, "big") + greeting)
            return connection.recv(1) == b"R"

    def stop(self) -> None:
        self._end(signal.SIGINT)  # SIGTERM waits until all clients have left

    def kill(self) -> None:
        self._end(signal.SIGQUIT)  # no less sudden than SIGKILL, after which its shared memory would stay for good


class MongoDB(Server):
    scheme = "mongodb"
    path = "/sessions"
    environment: ClassVar[dict[str, str]] = {"PYTHONFAULTHANDLER": "1"}

    def must_answer(self, within: float = 10.0) -> None:
        """Ask the server itself, past any proxy; SecantusDB has answered pings while its threads held each other up.

        Raises:
            RuntimeError: it did not answer; with what its threads were at, and it is ended.
        """
        milliseconds = round(within * 1000)
        client: MongoClient[dict[str, Any]] = MongoClient(
            f"mongodb://127.0.0.1:{self.port}",
            directConnection=True,
            serverSelectionTimeoutMS=milliseconds,
            connectTimeoutMS=milliseconds,
            socketTimeoutMS=milliseconds,
            retryReads=False,
        )
        asked = "ping"
        try:
            with client:
                client.admin.command(asked)
                asked = "listCollections"
                for name in client["sessions"].list_collection_names():
                    asked = f"find in {name}"
                    client["sessions"][name].find_one()
        except PyMongoError as error:
            self._end(signal.SIGABRT)  # Python then writes down where each thread was
            said = (self.folder / "log").read_text(errors="replace")[-10_000:]
            raise RuntimeError(
                f"the server itself has come to a halt, not what is tested: {self.command()[0]} did not answer "
                f"{asked} within {within:g} s ({type(error).__name__}); its log ends with:\n{said}"
            ) from None

    def command(self) -> list[str]:
        name = program("mongod", "secantusd-py")
        if name.endswith("mongod"):
            return [name, "--port", str(self.port), "--bind_ip", "127.0.0.1", "--dbpath", str(self.folder)]
        return [
            name,
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--storage-path",
            str(self.folder / "data"),
            "--standalone",
        ]


class RedisCluster(ServerSet[Redis]):
    """Three primaries, the first three of `nodes`, and a replica of each."""

    scheme = "redis+cluster"

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(folder)
        self.nodes = [Redis(folder / str(number), "--cluster-enabled", "yes", *options) for number in range(6)]
        self.buses = [node.port + 10_000 for node in self.nodes]  # before Redis 7 no others can be named

    def prepare(self) -> None:
        """Write what each node would know after `redis-cli --cluster create`, which takes several seconds."""
        ids = [f"{number}" * 40 for number in range(6)]
        slots = ("0-5460", "5461-10922", "10923-16383")
        for me, node in enumerate(self.nodes):
            lines = []
            for number, (other, bus) in enumerate(zip(self.nodes, self.buses, strict=True)):
                flags = "myself," * (number == me) + ("master -" if number < 3 else f"slave {ids[number - 3]}")
                served = slots[number] if number < 3 else ""
                lines.append(
                    f"{ids[number]} 127.0.0.1:{other.port}@{bus} {flags} 0 0 {number % 3 + 1} connected {served}"
                )
            node.folder.mkdir()
            (node.folder / "nodes.conf").write_text("\n".join([*lines, "vars currentEpoch 3 lastVoteEpoch 0", ""]))

    def is_whole(self) -> bool:
        """Tell whether all nodes know that every slot is served."""
        return all("cluster_state:ok" in node.ask("CLUSTER INFO") for node in self.nodes)

    def is_replicated(self) -> bool:
        """Tell whether every replica follows its primary."""
        return sum("master_link_status:up" in node.ask("INFO replication") for node in self.nodes) == 3


class RedisSentinels(ServerSet[Redis]):
    """A primary, the first of `nodes`, two replicas, and three sentinels that watch them as `service`."""

    scheme = "redis+sentinel"
    path = "/service/0"

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(folder)
        self.nodes = [Redis(folder / str(number), *options) for number in range(3)]
        for node in self.nodes:
            node.options += ("--repl-diskless-sync-delay", "0")
        for replica in self.nodes[1:]:
            replica.options += ("--replicaof", "127.0.0.1", str(self.nodes[0].port))
        self.sentinels = [Sentinel(folder / f"sentinel{number}", self.nodes[0].port) for number in range(3)]

    @property
    def url(self) -> str:
        return f"{self.scheme}://{','.join(f'127.0.0.1:{one.port}' for one in self.sentinels)}{self.path}"

    def start(self) -> None:
        for server in (*self.nodes, *self.sentinels):
            server.start()
        wait_until(self.is_whole)

    def is_whole(self) -> bool:
        """Tell whether all sentinels know of each other and of both replicas, and these follow their primary."""
        known = [one.ask("SENTINEL MASTER service") for one in self.sentinels]
        states = [dict(zip(one[::2], one[1::2], strict=True)) for one in known]
        return all((state["num-slaves"], state["num-other-sentinels"]) == ("2", "2") for state in states) and all(
            "master_link_status:up" in node.ask("INFO replication") for node in self.nodes[1:]
        )

    def _end(self, how: signal.Signals) -> None:
        for server in (*self.sentinels, *self.nodes):
            server._end(how)


class Sentinel(Redis):
    def __init__(self, folder: Path, watched: int, *lines: str) -> None:
        super().__init__(folder)
        self.watched, self.lines = watched, lines

    def prepare(self) -> None:
        (self.folder / "conf").write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\n"
            f"sentinel monitor service 127.0.0.1 {self.watched} 2\n"
            "sentinel down-after-milliseconds service 1000\nsentinel failover-timeout service 3000\n"
            + "\n".join(self.lines),
            encoding="utf-8",
        )

    def command(self) -> list[str]:
        return [program("redis-server", "valkey-server"), str(self.folder / "conf"), "--sentinel"]


def wait_until(met: Callable[[], bool], within: float = START_WITHIN) -> None:
    """Ask again and again; a server that is changing its role drops who asks."""
    give_up = time.monotonic() + within
    while True:
        with contextlib.suppress(OSError, RedisError):
            if met():
                return
        if time.monotonic() > give_up:
            raise RuntimeError(f"{met} was not met within {within:g} s")
        time.sleep(0.02)


SERVERS: dict[str, type[Server]] = {
    "redis": Redis,
    "redis_cluster": RedisCluster,
    "memcached": Memcached,
    "memcached_nodes": MemcachedNodes,
    "mysql": MariaDB,
    "mongodb": MongoDB,
    "postgresql": PostgreSQL,
}
