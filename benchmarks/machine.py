"""Which machine this is, and which versions of all that is measured."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from . import ROOT
from .contenders import NODE_MODULES
from .processes import Cores

_PACKAGES = (
    *("aiohttp", "redis", "hiredis", "aiomcache", "aiomysql", "motor", "pymongo", "orjson"),
    *("aiohttp-session", "starsessions", "starlette", "uvicorn", "httptools"),
)
_MODULES = ("express", "express-session", "connect-redis", "redis")
_PROGRAMS = (  # the first one that is there is the one that is used
    ("redis-server", "valkey-server"),
    ("memcached",),
    ("mariadbd", "mysqld"),
    ("mongod",),
    ("wrk",),
    ("node",),
)


def _first(pattern: str, file: str) -> str:
    found = re.search(pattern, Path(file).read_text(), re.MULTILINE)
    return found[1] if found else "unknown"


def _packages() -> list[str]:
    installed = {package.name.lower(): package.version for package in metadata.distributions()}
    return [f"{name} {installed[name]}" for name in _PACKAGES if name in installed]


def _modules() -> list[str]:
    files = {name: NODE_MODULES / name / "package.json" for name in _MODULES}
    return [f"{name} {json.loads(file.read_text())['version']}" for name, file in files.items() if file.exists()]


def _programs() -> list[str]:
    said = []
    for names in _PROGRAMS:
        if path := next(filter(None, map(shutil.which, names)), None):
            output = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
            version = re.search(r"\d+\.\d+[.\w]*(-MariaDB)?", output)
            said.append(f"{Path(path).name} {version[0] if version else '?'}")
    return said if shutil.which("mongod") else [*said, *_secantus()]


def _secantus() -> list[str]:
    """Name what stands in for MongoDB; it is installed in the developer environment."""
    installed = metadata.distributions(path=list(map(str, ROOT.glob(".venv/lib/python*/site-packages"))))
    return [
        f"SecantusDB {package.version} (a server for MongoDB's wire protocol) in the place of MongoDB's own"
        for package in installed
        if package.name.lower() == "secantusdb"
    ]


def _commit() -> str:
    if not shutil.which("git"):
        return "unknown"
    command = ["git", "describe", "--always", "--dirty"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return said.strip() or "unknown"


def describe(cores: Cores) -> list[list[str]]:
    """Give rows of names and values."""
    kibibytes = int(_first(r"^MemTotal: +(\d+)", "/proc/meminfo"))
    return [
        ["CPU", _first(r"^model name\s*: (.+)", "/proc/cpuinfo")],
        ["cores", str(cores)],
        ["memory", f"{kibibytes / 2**20:.1f} GiB"],
        ["kernel", f"{platform.system()} {platform.release()}"],
        ["Python", f"{platform.python_implementation()} {platform.python_version()}"],
        ["packages", ", ".join(_packages())],
        ["Node modules", ", ".join(_modules()) or "none"],
        ["programs", ", ".join(_programs())],
        ["commit", _commit()],
    ]
