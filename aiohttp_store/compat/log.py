"""The logger, by the name that aiohttp-session has for it."""

from .._log import logger as log

__all__ = ["log"]
