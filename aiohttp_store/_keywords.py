"""Names that nobody knows, keywords and attributes: the nearest one that is known, or what the table has for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

from ._foreign_words import answer
from .errors import ConfigError

__all__ = ["answering_constructor", "answering_keywords", "attribute_error", "nearest"]

P = ParamSpec("P")
T = TypeVar("T")


def nearest(name: str, known: Iterable[str], shown: str = "{!r}", cutoff: float = 0.6) -> str:
    """Return `; did you mean 'this'?`, or nothing if no known name is like it, in upper or lower case."""
    import difflib  # noqa: PLC0415  (only where there is an error to tell)

    spelled = {one.lower(): one for one in known}
    found = difflib.get_close_matches(name.lower(), spelled, 1, cutoff)
    return f"; did you mean {shown.format(spelled[found[0]])}?" if found else ""


def answering_keywords(example: str, called: str = "") -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function so that a wrong keyword, or a value too many, is a `ConfigError` that says what to write.

    Its signature stays what it is, for `help`, editors and type checkers.

    Args:
        example: a right call.
        called: the function's name in the messages; its own by default.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        name = called or function.__name__
        parameters = inspect.signature(function).parameters.values()
        most = sum(one.kind is one.POSITIONAL_OR_KEYWORD for one in parameters)
        known = [one.name for one in parameters if one.name != "self"]

        @wraps(function)
        def checked(*args: P.args, **keywords: P.kwargs) -> T:
            for word in keywords:
                if word not in known:
                    raise ConfigError(_unknown(name, word, known))
            if len(args) > most:
                raise ConfigError(f"{name} was given more by position than it takes; write {example}")
            return function(*args, **keywords)

        return checked

    return decorate


def answering_constructor(example: str) -> Callable[[type[T]], type[T]]:
    """Decorate a class so that its constructor answers as `answering_keywords` says."""

    def decorate(kind: type[T]) -> type[T]:
        made: Any = kind
        made.__init__ = answering_keywords(example, kind.__name__)(made.__init__)
        return kind

    return decorate


def attribute_error(session: object, name: str, *, is_set: bool) -> AttributeError:
    """Return the error that says that a session has no such attribute, or none that can be set, and what to write."""
    kind: Any = type(session)
    return AttributeError(_on_attribute(kind, name, is_set), name=name, obj=session)


@lru_cache(maxsize=512)  # templates ask for attributes before they ask for keys
def _on_attribute(kind: type, name: str, is_set: bool) -> str:
    own = getattr(kind, name, None)
    way = answer(name, "attribute")
    if own is not None:
        use = f"session.{name}() is a method" if callable(own) else f"session.{name} can only be read"
        return f"session.{name} cannot be set; {way or use}"
    public = [one for one in dir(kind) if not one.startswith("_")]
    key = f'session["{name}"] = …' if is_set else f'session["{name}"]'
    meant = f"; {way}" if way else nearest(name, public, cutoff=0.75) or f"; its data are keys, such as {key}"
    return f"a session has no attribute {name!r}{meant}"


def _unknown(called: str, word: str, known: Iterable[str]) -> str:
    way = answer(word, "keyword")
    meant = f"; {way}" if way else f"{nearest(word, known)}; it knows {', '.join(known)}"
    return f"{called}() has no keyword {word!r}{meant}"
