"""Standing in for the package aiohttp_session."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import ModuleType

__all__ = ["install_as_aiohttp_session"]

ALIAS = "aiohttp_session"
REAL = __package__ or ""


def install_as_aiohttp_session() -> None:
    """Let `import aiohttp_session`, and its submodules, find `aiohttp_store.compat` from here on in this process.

    Call it before anything imports `aiohttp_session`, and before `setup`. Calling it twice is no error.

    Raises:
        RuntimeError: the real package has been imported.
    """
    found = sys.modules.get(ALIAS)
    compat = sys.modules[REAL]
    if found is compat:
        return
    if found is not None:
        raise RuntimeError(
            f"aiohttp_session was imported already, from {getattr(found, '__file__', None)!r}; call "
            "install_as_aiohttp_session() before everything that imports it, or uninstall aiohttp-session"
        )
    sys.meta_path.insert(0, _Finder())
    sys.modules[ALIAS] = compat


class _Finder(MetaPathFinder, Loader):
    """Gives a submodule under both names, as one module, so that its classes are the same."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, rest = name.partition(".")
        if package != ALIAS or find_spec(f"{REAL}.{rest}") is None:
            return None
        return spec_from_loader(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(REAL + spec.name.removeprefix(ALIAS))
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing but give it back its own spec: it was executed under its real name."""
        module.__spec__ = self._spec
