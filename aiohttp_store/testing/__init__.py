"""For the tests of apps and of storages; pytest is imported when what needs it is used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .contract import StorageContract

__all__ = ["StorageContract"]


def __getattr__(name: str) -> Any:
    if name != "StorageContract":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest  # noqa: PLC0415  (see above)

    pytest.register_assert_rewrite(f"{__name__}.contract")
    from .contract import StorageContract  # noqa: PLC0415

    return StorageContract
