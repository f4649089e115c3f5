"""For those who test their apps; see `docs/testing.rst`. `import aiohttp_store` does not import it."""

from .sessions import Clock, PresetSession, freeze, session_of, set_session, sign_in

__all__ = ["Clock", "PresetSession", "freeze", "session_of", "set_session", "sign_in"]
