"""The apps that are compared, each run in a process of its own: python -m benchmarks.apps.NAME PORT URL.

All answer the same paths: /begin makes a session of five keys, /untouched does not ask for it, /read reads one key,
/write counts in it, so that each such request has something to store.
"""

from typing import Any, Final

BACKLOG = 2048  # 1000 connections may come at once

DATA: Final[dict[str, Any]] = {
    "user": "u-4711",
    "name": "Ann Example",
    "roles": ["reader", "writer"],
    "cart": {"tea": 2, "milk": 1},
    "n": 0,
}
