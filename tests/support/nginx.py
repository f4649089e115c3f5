"""An nginx with the configuration of the examples, and browsers before it."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import ssl
import tempfile
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from aiohappyeyeballs import AddrInfoType
from aiohttp import ClientSession, CookieJar, TCPConnector

from .certificates import make_certificates
from .pages import ROOT
from .servers import Server, program
from .timing import until

__all__ = ["Nginx", "browser"]


class Nginx(Server):
    """examples/nginx.conf with a port of its own, before apps on two others; root runs it as nobody."""

    scheme = "https"

    def __init__(self, folder: Path, ports: Sequence[int]) -> None:
        super().__init__(folder)
        self.ports = ports

    def prepare(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="nginx"))  # pytest's folders are closed to nobody
        weakref.finalize(self, shutil.rmtree, self.home, ignore_errors=True)
        make_certificates(self.folder / "certificates")
        configuration = (ROOT / "examples/nginx.conf").read_text()
        for documented, port in zip((8443, 8081, 8082), [self.port, *self.ports], strict=True):
            configuration, replaced = re.subn(rf"(?m)^( *[^#]*)\b{documented}\b", rf"\g<1>{port}", configuration)
            assert replaced == 1
        (self.home / "nginx.conf").write_text(configuration)
        for name in ("server.pem", "server.key"):
            shutil.copy(self.folder / "certificates" / name, self.home)
        if os.geteuid() == 0:
            self.user = "nobody"
            for path in (self.home, *self.home.iterdir()):
                os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)

    def command(self) -> list[str]:
        return [program("nginx"), "-p", str(self.home), "-c", str(self.home / "nginx.conf"), "-e", "stderr"]


@asynccontextmanager
async def browser(nginx: Nginx) -> AsyncIterator[ClientSession]:
    sockets: list[socket.socket] = []

    def new_socket(address: AddrInfoType) -> socket.socket:
        sockets.append(socket.socket(*address[:3]))
        return sockets[-1]

    context = ssl.create_default_context(cafile=nginx.folder / "certificates/ca.pem")
    connector = TCPConnector(ssl=context, socket_factory=new_socket)
    async with ClientSession(nginx.url, cookie_jar=CookieJar(unsafe=True), connector=connector) as session:
        yield session
    # With TLS, the connector does not wait for all of them.
    await until(lambda: all(one.fileno() == -1 for one in sockets))
