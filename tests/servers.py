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
import time
from pathlib import Path
from typing import ClassVar

START_WITHIN = 60.0
_PATH = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent), "/usr/sbin", "/usr/local/sbin"])


def free_port() -> int:
    """Find a port below those of outgoing connections, one of which could take it while its server is away.

    That is no rare thing: who tries to connect to such a port from the same machine may be given it as its own,
    and is then connected to itself. A Redis cluster's second port, 10000 above, is spared as well.
    """
    while True:
        port = 10_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
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

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, cwd=self.folder)
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
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

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


class Redis(Server):
    scheme = "redis"
    path = "/0"

    def command(self) -> list[str]:
        return [
            program("redis-server", "valkey-server"),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.folder / "redis.sock")),
            *("--dir", str(self.folder), "--save", "", "--appendonly", "yes", "--appendfsync", "always"),
        ]


class Memcached(Server):
    scheme = "memcached"

    def command(self) -> list[str]:
        user = ("-u", "root") if os.geteuid() == 0 else ()
        return [program("memcached"), "-p", str(self.port), "-l", "127.0.0.1", "-U", "0", "-m", "64", *user]


class MariaDB(Server):
    scheme = "mysql"
    path = "/sessions"
    login = "visitor:s%40crêt@"

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
                *("--no-defaults", f"--datadir={self.folder / 'data'}", f"--user={getpass.getuser()}"),
                *("--auth-root-authentication-method=normal", "--skip-test-db"),
            ],
            check=True,
            capture_output=True,
        )

    def command(self) -> list[str]:
        return [
            program("mariadbd", "mysqld"),
            *("--no-defaults", f"--datadir={self.folder / 'data'}", f"--user={getpass.getuser()}"),
            *(f"--port={self.port}", "--bind-address=127.0.0.1", f"--socket={self.folder / 'mysql.sock'}"),
            *(f"--init-file={self.folder / 'init.sql'}", "--character-set-server=utf8mb4"),
            *("--innodb-buffer-pool-size=64M", "--innodb-log-file-size=32M", "--max-connections=300"),
        ]

    def ready(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            return bool(connection.recv(1))


class MongoDB(Server):
    scheme = "mongodb"
    path = "/sessions"

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


SERVERS: dict[str, type[Server]] = {"redis": Redis, "memcached": Memcached, "mysql": MariaDB, "mongodb": MongoDB}
