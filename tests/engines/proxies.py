"""Proxies that stand before the servers in production: HAProxy before Galera, PgBouncer before PostgreSQL."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

from ..support.servers import MariaDB, PostgreSQL, Server, program


class HAProxy(Server):
    """Sends each new connection to the next of these servers; one is left out that accepts no connections."""

    scheme = MariaDB.scheme
    login = MariaDB.login
    path = MariaDB.path

    def __init__(self, folder: Path, behind: Sequence[Server]) -> None:
        super().__init__(folder)
        self.behind = behind

    def prepare(self) -> None:
        lines = [
            "defaults",
            "  mode tcp",
            "  timeout connect 2s",
            "  timeout client 1h",
            "  timeout server 1h",
            "listen mysql",
            f"  bind 127.0.0.1:{self.port}",
            "  balance roundrobin",
            *(f"  server node{one.port} 127.0.0.1:{one.port} check inter 200ms" for one in self.behind),
            "",
        ]
        (self.folder / "conf").write_text("\n".join(lines))

    def command(self) -> list[str]:
        return [program("haproxy"), "-db", "-f", str(self.folder / "conf")]


class PgBouncer(Server):
    """Lends its clients the few connections of a server, each for one transaction."""

    scheme = PostgreSQL.scheme
    login = PostgreSQL.login
    path = PostgreSQL.path

    def __init__(self, folder: Path, behind: PostgreSQL, connections: int = 5) -> None:
        super().__init__(folder)
        self.behind, self.connections = behind, connections

    def prepare(self) -> None:
        if os.geteuid() == 0:  # it refuses to run as root, and nobody else may look into pytest's folders
            self.user = "nobody"
            self.home = Path(tempfile.mkdtemp(prefix="pgbouncer"))
            weakref.finalize(self, shutil.rmtree, self.home, ignore_errors=True)
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": self.home / "users",
            "pool_mode": "transaction",
            "default_pool_size": self.connections,
            "max_client_conn": 500,
        }
        lines = ["[databases]", f"* = host=127.0.0.1 port={self.behind.port}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        (self.home / "users").write_text('"visitor" "s@crêt"\n', encoding="utf-8")
        (self.home / "conf").write_text("\n".join([*lines, ""]))
        for path in (self.home, *self.home.iterdir()):
            if self.user is not None:
                shutil.chown(path, self.user)

    def command(self) -> list[str]:
        return [program("pgbouncer"), str(self.home / "conf")]
