"""What can go wrong, one class for each thing that the caller would do next."""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "SessionConflict",
    "SessionError",
    "SessionGone",
    "SessionTooLarge",
    "StorageRefused",
    "StorageUnavailable",
]


class SessionError(Exception):
    """The root of every error that this package raises on purpose."""


class ConfigError(SessionError, ValueError):
    """A setting that cannot work. The message names the value and the way out."""


class StorageUnavailable(SessionError):
    """The storage did not answer in time, or answered that it cannot serve.

    Nothing is known about the session: it may exist, and a write may have been carried
    out. Uncaught in a handler, or at the end of a request, it becomes a 503 with `Retry-After`.
    """

    storage: object = None
    """The storage that failed, of several servers that of the one; `None` if that is not known."""

    def copy(self, storage: object = None) -> StorageUnavailable:
        """Return the same error for another who waits, as raising it adds a traceback.

        Args:
            storage: which one failed, if the error does not know.
        """
        kind = StorageRefused if isinstance(self, StorageRefused) else StorageUnavailable
        copied = kind(*self.args)
        copied.__cause__ = self.__cause__
        copied.storage = self.storage if storage is None or self.storage is not None else storage
        return copied


class StorageRefused(StorageUnavailable):
    """The storage's server answers, and will not serve: a wrong password, a missing right, another protocol.

    The message names what to check. A request is answered as in an outage, until that is mended.
    """


class SessionGone(SessionError):
    """The session has ended meanwhile: another request logged the visitor out or renewed the id, or its time is over.

    Uncaught in a handler it becomes a 409. At the end of a request nothing is raised: the changes are dropped.
    """


class SessionConflict(SessionError):
    """Another request changed the session, and `on_conflict="raise"` or the deadline forbade merging.

    Uncaught in a handler, or at the end of a request, it becomes a 409.
    """


class SessionTooLarge(SessionError):
    """The encoded session is larger than the storage or the cookie can hold; uncaught it becomes a 500."""

    size: int
    """Bytes that it takes."""
    limit: int
    """Bytes that can be held."""

    def __init__(self, size: int, limit: int, where: str) -> None:
        super().__init__(f"the session takes {size} bytes, and {where} holds at most {limit}")
        self.size = size
        self.limit = limit
