"""What connections this process has, and has tried to make."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import Any

_attempts: Counter[int] = Counter()


def open_sockets(port: int) -> int:
    """How many sockets of this process are connected to this port."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile, or not connected
            if str(entry.readlink()).startswith("socket:"):
                with socket.socket(fileno=os.dup(int(entry.name))) as opened:
                    found += opened.family == socket.AF_INET and opened.getpeername()[1] == port
    return found


def attempts(port: int) -> int:
    """How often this process has connected to this port, or tried to, since the first call."""
    if not _attempts:
        _attempts[0] = 1
        sys.addaudithook(_audit)
    return _attempts[port]


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        _attempts[arguments[1][1]] += 1
