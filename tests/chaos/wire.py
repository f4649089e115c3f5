"""The proxy, in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from ..support.proxy import Proxy
from ..support.servers import free_port
from .child import obey


async def main(url: str, seed: str) -> None:
    proxy = Proxy(url)
    proxy.random.seed(seed)
    proxy.port = free_port()  # nobody else may be given it while it refuses connections
    async with proxy:

        async def do(name: str, *arguments: Any) -> int:
            proxy.requests.clear()
            match name:
                case "slow":
                    (proxy.delay,) = arguments
                case "stall":
                    proxy.passing.clear()
                case "break":
                    proxy.breakage, proxy.broken_share = arguments
                case "listen":
                    await proxy.listen()
                case _:  # cut, reset, refuse, mend
                    getattr(proxy, name)()
            return proxy.accepted

        await obey(proxy.url, do)
        proxy.mend()
        proxy.cut()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
