"""What sessions cost, next to other libraries: python -m benchmarks."""

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent

# `make servers` may have put a server for MongoDB's protocol into the developer environment.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), str(ROOT / ".venv/bin")])
