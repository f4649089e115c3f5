"""The shares as horizontal bars: an SVG, made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape

from .results import Case, Requests
from .rounds import MANY, USUAL

SHOWN = (
    *("ours memory", "ours redis", "ours memcached", "ours mysql"),
    *("aiohttp-session redis", "aiohttp-session memcached", "starsessions redis", "express-session redis"),
)
"""All that keep sessions but on MongoDB, whose place another server takes where the package is not to be had."""

_COLOURS = {"read": "#2b6ca3", "write": "#e39a3b"}
_INK, _GRID = "#222222", "#d8d8d8"
_LEFT, _TOP, _SCALE, _RIGHT = 225, 78, 520, 75
_BAR, _GROUP = 14, 42
_SIZE = 13
_STEPS = 5


def _text(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, width: float = 1) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _rectangle(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def _axis(bottom: float) -> Iterator[str]:
    for step in range(_STEPS + 1):
        x = _LEFT + _SCALE * step / _STEPS
        yield _line(x, _TOP - 6, x, bottom, _INK if step == _STEPS else _GRID)
        yield _text(x, bottom + 16, f"{step / _STEPS:.1f}", "middle")
    label = f"requests/s, where the same framework without sessions is 1 ({USUAL} connections, {MANY} sessions)"
    yield _text(_LEFT + _SCALE / 2, bottom + 38, label, "middle")


def _legend() -> Iterator[str]:
    x = float(_LEFT)
    for mode, colour in _COLOURS.items():
        yield _rectangle(x, 42, _BAR, _BAR, colour)
        yield _text(x + 18, 53, mode)
        x += 75
    yield _line(x, 48.5, x + 20, 48.5, _INK, width=1.5)
    yield _text(x + 27, 53, "least to most of the rounds")


def _bar(requests: Requests, case: Case, y: float) -> Iterator[str]:
    share = requests.share(case)
    middle = y + _BAR / 2
    yield _rectangle(_LEFT, y, _SCALE * share.median, _BAR, _COLOURS[case.mode])
    yield _line(_LEFT + _SCALE * share.least, middle, _LEFT + _SCALE * share.most, middle, _INK, width=1.5)
    yield _text(_LEFT + _SCALE + 14, y + _BAR - 2, f"{share.median:.3f}")


def title(contender: str) -> str:
    """Name a contender to those who read nothing else."""
    return contender.replace("ours", "aiohttp_store")


def svg(requests: Requests) -> str:
    """Draw reads and writes of all that keep sessions."""
    shown = [
        cases
        for name in SHOWN
        if (cases := [case for mode in _COLOURS if (case := Case(name, mode, USUAL, MANY)) in requests])
    ]
    bottom = _TOP + _GROUP * len(shown)
    width, height = _LEFT + _SCALE + _RIGHT, bottom + 50
    heading = "What sessions leave of a framework's speed"
    # It brings its paper along, as a page may be dark.
    paper = f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff"/>'
    parts = [paper, _text(_LEFT, 26, heading, more=' font-size="17" font-weight="bold"'), *_legend()]
    parts += _axis(bottom)
    for number, cases in enumerate(shown):
        y = _TOP + _GROUP * number
        parts.append(_text(_LEFT - 10, y + _BAR + 5, title(cases[0].contender), "end"))
        for place, case in enumerate(cases):
            parts += _bar(requests, case, y + (_BAR + 2) * place)
    parts.append(_line(_LEFT, _TOP - 6, _LEFT, bottom, _INK))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="DejaVu Sans, Verdana, sans-serif" font-size="{_SIZE}" fill="{_INK}" role="img">'
    )
    return "\n".join([head, f"<title>{escape(heading)}</title>", *parts, "</svg>\n"])
