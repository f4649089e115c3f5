"""Who is compared with whom."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import dataclass

from . import ROOT

NODE_MODULES = ROOT / "benchmarks/node_modules"


@dataclass(frozen=True)
class App:
    """How to start an app; it gets its port and the URL of its server as arguments."""

    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    """The Python packages without which it is left out."""

    def missing(self) -> str:
        """Say what is not installed here, if anything."""
        if self.command[0] == "node":
            found = {"node": bool(shutil.which("node")), "benchmarks/node_modules": NODE_MODULES.exists()}
        else:
            found = {name: bool(importlib.util.find_spec(name)) for name in self.needs}
        return ", ".join(name for name, there in found.items() if not there)


def _python(name: str, *needs: str) -> App:
    return App((sys.executable, "-m", f"benchmarks.apps.{name}"), needs)


_PLAIN = _python("plain")
_OURS = _python("ours")
_AIOHTTP_SESSION = _python("aiohttp_session", "aiohttp_session", "aiomcache", "redis")
_STARLETTE = _python("starlette", "starlette", "starsessions", "uvicorn", "httptools", "redis")
_EXPRESS = App(("node", str(ROOT / "benchmarks/express.js")))


@dataclass(frozen=True)
class Contender:
    """An app on a storage; its `baseline` is the same framework without sessions."""

    name: str
    app: App
    baseline: str
    server: str | None = None
    scheme: str | None = None
    """Where it is not the server's."""
    arguments: tuple[str, ...] = ()
    """What stands in the place of a server's URL."""


_ALL = (
    Contender("nothing", _PLAIN, "nothing", arguments=("middleware",)),
    Contender("bare aiohttp", _PLAIN, "nothing"),
    Contender("ours memory", _OURS, "nothing", arguments=("memory://",)),
    Contender("ours redis", _OURS, "nothing", "redis"),
    Contender("ours memcached", _OURS, "nothing", "memcached"),
    Contender("ours mysql", _OURS, "nothing", "mysql"),
    Contender("ours mongodb", _OURS, "nothing", "mongodb"),
    Contender("ours mongodb+pymongo", _OURS, "nothing", "mongodb", "mongodb+pymongo"),
    Contender("aiohttp-session redis", _AIOHTTP_SESSION, "nothing", "redis"),
    Contender("aiohttp-session memcached", _AIOHTTP_SESSION, "nothing", "memcached"),
    Contender("bare starlette", _STARLETTE, "bare starlette"),
    Contender("starsessions redis", _STARLETTE, "bare starlette", "redis"),
    Contender("bare express", _EXPRESS, "bare express"),
    Contender("express-session redis", _EXPRESS, "bare express", "redis"),
)

CONTENDERS = {contender.name: contender for contender in _ALL}
