"""Servers and apps, each pinned to a core of its own, and all of them gone at the end."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tests.support import servers

from . import ROOT
from .contenders import Contender

_READY_WITHIN = 20.0
_REST_WITHIN = 5.0
_LOOK_EVERY = 0.02
_IDLE = 500_000  # nanoseconds of its core between two looks


class _Redis(servers.Redis):
    def command(self) -> list[str]:
        return [*super().command(), "--appendonly", "no"]


_SERVERS = servers.SERVERS | {"redis": _Redis}


class Cores:
    """Which cores the app, the servers and the load run on."""

    def __init__(self) -> None:
        self.all = sorted(os.sched_getaffinity(0))
        self.app = {self.all[0]}
        self.server = {self.all[min(1, len(self.all) - 1)]}
        self.load = set(self.all[2:4]) or self.server

    def __str__(self) -> str:
        shared = "" if len(self.all) > 2 else ", WHICH IS TOO FEW: load and server take time from each other"  # noqa: PLR2004
        return f"app on {self.app}, servers on {self.server}, wrk on {self.load} of {len(self.all)} cores{shared}"

    @contextmanager
    def starting(self, on: set[int]) -> Iterator[None]:
        """Pin what is started in the block, with all of its threads."""
        os.sched_setaffinity(0, on)
        try:
            yield
        finally:
            os.sched_setaffinity(0, self.all)


class Running:
    """An app that answers at `address`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.address = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> tuple[str, str]:
        """Give the body and the `Set-Cookie` header of one answer."""
        with urllib.request.urlopen(f"{self.address}{path}", timeout=10) as answer:  # noqa: S310
            return answer.read().decode(), answer.headers.get("Set-Cookie", "")

    def cookies(self, count: int, padding: int = 0) -> list[str]:
        """Begin sessions, and give the `Cookie` headers that belong to them."""
        given = [self.get(f"/begin?padding={padding}")[1].partition(";")[0] for _ in range(count)]
        return [cookie or f"session={'x' * 43}" for cookie in given]

    def _busy(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0])

    def rest(self) -> None:
        """Wait until the app is done with what an earlier load has left behind."""
        give_up = time.monotonic() + _REST_WITHIN
        busy, before = self._busy(), 0
        while busy - before > _IDLE and time.monotonic() < give_up:
            time.sleep(_LOOK_EVERY)
            busy, before = self._busy(), busy

    def wait(self, log: Path) -> None:
        """Wait until the app answers; where it does not, its log says why."""
        give_up = time.monotonic() + _READY_WITHIN
        while True:
            try:
                self.get("/begin")
            except OSError as error:
                if self.process.poll() is not None or time.monotonic() > give_up:
                    raise RuntimeError(f"{self.process.args!r} does not start:\n{log.read_text()}") from error
                time.sleep(_LOOK_EVERY)
            else:
                return


class Processes:
    """Starts servers when they are first needed, and ends them at the end."""

    def __init__(self) -> None:
        self.cores = Cores()
        self._folder = tempfile.TemporaryDirectory(prefix="benchmarks-")
        self._servers: dict[str, servers.Server] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers.values():
            server.kill()
        self._folder.cleanup()

    def server(self, name: str) -> servers.Server:
        """Give a server that runs."""
        if name not in self._servers:
            server = self._servers[name] = _SERVERS[name](Path(self._folder.name) / name)
            with self.cores.starting(self.cores.server):
                server.start()
        return self._servers[name]

    @contextmanager
    def app(self, contender: Contender) -> Iterator[Running]:
        """Run a contender for the length of the block."""
        arguments = contender.arguments
        if contender.server:
            server = self.server(contender.server)
            arguments = (server.url.replace(server.scheme, contender.scheme or server.scheme, 1),)
        port = servers.free_port()
        command = [*contender.app.command, str(port), *arguments]
        environment = os.environ | {"NODE_ENV": "production"}
        log = Path(self._folder.name) / "app.log"
        with log.open("wb") as file, self.cores.starting(self.cores.app):
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
        try:
            running = Running(process, port)
            running.wait(log)
            yield running
        finally:
            process.kill()
            process.wait()
