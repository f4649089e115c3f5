"""MariaDB servers that replicate to each other by Galera, so that each of them may be written."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import pymysql  # type: ignore[import-untyped]

from .servers import MariaDB, ServerSet, free_port, wait_until


def provider() -> Path:
    """Find Galera's library, or fail and say how to get it."""
    for path in Path("/usr").glob("lib*/galera*/libgalera_smm.so"):
        return path
    raise RuntimeError("Galera's library is not installed; run: make servers")


class GaleraNode(MariaDB):
    """A node of a cluster; unless `others` are given, it begins one of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.replication, self.transfer, self.increment = (free_port() for _ in range(3))
        self.others: tuple[GaleraNode, ...] = ()
        if os.geteuid() == 0:  # it transfers no data as root, and nobody else may look into pytest's folders
            self.user = "mysql"
            place = tempfile.mkdtemp(prefix="galera")
            weakref.finalize(self, shutil.rmtree, place, ignore_errors=True)
            shutil.chown(place, self.user)
            self.folder = self.home = Path(place, "node")

    def prepare(self) -> None:
        if self.user is not None:
            shutil.chown(self.folder, self.user)
        super().prepare()
        if self.others:  # the account comes with the data of the others
            (self.folder / "init.sql").write_text("")

    def command(self) -> list[str]:
        addresses = ",".join(f"127.0.0.1:{node.replication}" for node in self.others)
        options = {
            "base_port": self.replication,
            "gmcast.listen_addr": f"tcp://127.0.0.1:{self.replication}",
            "ist.recv_addr": f"127.0.0.1:{self.increment}",
            "gcache.size": "32M",
        }
        return [
            *super().command(),
            *("--binlog-format=ROW", "--innodb-autoinc-lock-mode=2", "--wsrep-on=ON", f"--server-id={self.port}"),
            *(f"--wsrep-provider={provider()}", f"--wsrep-cluster-address=gcomm://{addresses}"),
            *("--wsrep-cluster-name=tests", "--wsrep-slave-threads=2", "--wsrep-sst-method=rsync"),
            *(f"--wsrep-node-address=127.0.0.1:{self.replication}", "--wsrep-sync-wait=1"),
            f"--wsrep-sst-receive-address=127.0.0.1:{self.transfer}",
            f"--wsrep-provider-options={';'.join(f'{name}={value}' for name, value in options.items())}",
        ]

    def ask(self, sql: str) -> Any:
        """Run a statement as root, also on a node that refuses those of others, and return its rows."""
        try:
            with (
                pymysql.connect(host="127.0.0.1", port=self.port, user="root", autocommit=True) as connection,
                connection.cursor() as cursor,
            ):
                cursor.execute(sql)
                return cursor.fetchall()
        except pymysql.MySQLError as error:
            raise OSError(*error.args) from error

    def status(self, name: str) -> str:
        ((_, value),) = self.ask(f"SHOW STATUS LIKE '{name}'")
        return str(value)

    def ready(self) -> bool:
        """Whether it serves statements, which it does not while it catches up with the others."""
        return self.status("wsrep_ready") == "ON" and self.status("wsrep_local_state_comment") == "Synced"


class GaleraCluster(ServerSet[GaleraNode]):
    """Three nodes; each one is written by whoever connects to it."""

    scheme = "mysql"
    path = MariaDB.path

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.nodes = [GaleraNode(folder / str(number)) for number in range(3)]
        for number, node in enumerate(self.nodes):
            node.others = tuple(self.nodes[:number])

    @property
    def url(self) -> str:
        return super().url.replace("://", f"://{MariaDB.login}", 1)

    def start(self) -> None:
        super().start()
        for node in self.nodes:  # if it is started again, it joins whoever is there
            node.others = tuple(other for other in self.nodes if other is not node)

    def is_whole(self) -> bool:
        """Whether each node sees all of them."""
        return all(node.status("wsrep_cluster_size") == "3" and node.ready() for node in self.nodes)


def isolate(node: GaleraNode, *, isolated: bool) -> None:
    """Cut a node off from the others, as a broken network does, or let it come back, and wait until it has noticed."""
    node.ask(f"SET GLOBAL wsrep_provider_options='gmcast.isolate={int(isolated)}'")
    wait_until(lambda: node.ready() != isolated)
