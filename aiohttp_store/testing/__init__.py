"""Visitors and clocks for the tests of apps, and the suite that every storage passes.

See `docs/testing.rst` and `docs/writing-a-storage.rst`. `import aiohttp_store` does not import this package, and pytest
is imported only when what needs it is used.
"""

from typing import TYPE_CHECKING, Any

from .sessions import Clock, PresetSession, freeze, session_of, set_session, sign_in

if TYPE_CHECKING:
    from .contract import StorageContract

__all__ = ["Clock", "PresetSession", "StorageContract", "freeze", "session_of", "set_session", "sign_in"]


def __getattr__(name: str) -> Any:
    if name != "StorageContract":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest  # noqa: PLC0415  (see above)

    pytest.register_assert_rewrite(f"{__name__}.contract")
    from .contract import StorageContract  # noqa: PLC0415

    return StorageContract
