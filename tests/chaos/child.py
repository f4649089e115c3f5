"""Processes that are told what to do, line by line, so that none of them slows down another."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_END_WITHIN = 120.0


class Child:
    """A module of this package, run in a process of its own; it ends when its input does."""

    def __init__(self, module: str, log: Path, *arguments: str) -> None:
        self.log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "always", "-m", f"tests.chaos.{module}", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=_ROOT,
                env={**os.environ, "PYTHONPATH": str(_ROOT)},
            )

    async def hear(self) -> Any:
        """Give the next line that it says."""
        assert self._process.stdout is not None
        line = await asyncio.to_thread(self._process.stdout.readline)
        if not line:
            raise RuntimeError(f"a process of the suite has ended:\n{self.said()}")
        return json.loads(line)

    async def ask(self, *words: Any) -> Any:
        """Tell it one thing to do, and give its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        self._process.stdin.flush()
        return await self.hear()

    def said(self) -> str:
        """Give what it has complained about."""
        return self.log.read_text(errors="replace")

    async def end(self) -> None:
        """Close its input, and complain if it does not end well for that."""
        _, code = await asyncio.to_thread(self._finish)
        if code:
            raise RuntimeError(f"a process of the suite ended with {code}:\n{self.said()}")

    def _finish(self) -> tuple[bytes, int]:
        try:
            said, _ = self._process.communicate(timeout=_END_WITHIN)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return said, self._process.returncode

    def kill(self) -> None:
        """End it at once, whatever it does; to be called where it may be running still."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


async def _lines() -> AsyncIterator[list[Any]]:
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    try:
        while line := await reader.readline():
            yield json.loads(line)
    finally:
        transport.close()


async def obey(first: Any, do: Callable[..., Awaitable[Any]]) -> None:
    """Say the first line, then do what is told until the input ends (in the child)."""
    print(json.dumps(first), flush=True)
    async for words in _lines():
        print(json.dumps(await do(*words)), flush=True)
