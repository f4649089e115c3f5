"""What storages say of a server that answers and will not serve."""

from __future__ import annotations

import ssl

__all__ = ["Unusable", "is_tls_refusal"]

_LOST = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


class Unusable(Exception):
    """What an operator must mend, such as a table of another layout: a `ConfigError` at start, a refusal later."""

    def __init__(self, fault: str, way_out: str) -> None:
        super().__init__(fault)
        self.way_out = way_out


def is_tls_refusal(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, says that the two sides do not agree on TLS or on a certificate."""
    while error is not None:
        if isinstance(error, ssl.SSLError) and not isinstance(error, _LOST):
            return True
        error = error.__cause__
    return False
