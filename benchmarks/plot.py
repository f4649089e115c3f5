"""The shares as horizontal bars: an SVG, made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape

from .contenders import CONTENDERS
from .results import Case, Requests
from .rounds import MANY, USUAL
from .targets import SHARES

_COLOURS = {"read": "#2b6ca3", "write": "#e39a3b"}
_INK, _GRID, _TARGET = "#222222", "#d8d8d8", "#b00020"
_LEFT, _TOP, _SCALE, _RIGHT = 215, 78, 560, 110
_BAR, _GROUP = 13, 42
_SIZE = 12
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
        yield _line(x, _TOP - 6, x, bottom, _GRID)
        yield _text(x, bottom + 16, f"{step / _STEPS:.1f}", "middle")
    label = f"requests/s as a share of the same framework without sessions ({USUAL} connections, {MANY} sessions)"
    yield _text(_LEFT + _SCALE / 2, bottom + 36, label, "middle")


def _legend() -> Iterator[str]:
    x = float(_LEFT)
    for mode, colour in _COLOURS.items():
        yield _rectangle(x, 42, _BAR, _BAR, colour)
        yield _text(x + 18, 53, mode)
        x += 75
    yield _line(x + 6, 40, x + 6, 57, _TARGET, width=2)
    yield _text(x + 18, 53, "target")
    yield _line(x + 85, 48.5, x + 105, 48.5, _INK, width=1.5)
    yield _text(x + 112, 53, "least to most of the rounds")


def _bar(requests: Requests, case: Case, y: float) -> Iterator[str]:
    share = requests.share(case)
    middle = y + _BAR / 2
    yield _rectangle(_LEFT, y, _SCALE * share.median, _BAR, _COLOURS[case.mode])
    yield _line(_LEFT + _SCALE * share.least, middle, _LEFT + _SCALE * share.most, middle, _INK, width=1.5)
    target = SHARES.get(case.contender, {}).get(case.mode)
    if target:
        yield _line(_LEFT + _SCALE * target, y - 1, _LEFT + _SCALE * target, y + _BAR + 1, _TARGET, width=2)
    wanted = f" of {target:.2f}" if target else ""
    yield _text(_LEFT + _SCALE + 14, y + _BAR - 2, f"{share.median:.3f}{wanted}")


def svg(requests: Requests) -> str:
    """Draw reads and writes of all that keep sessions."""
    shown = [
        cases
        for name, contender in CONTENDERS.items()
        if contender.keeps_sessions
        and (cases := [case for mode in _COLOURS if (case := Case(name, mode, USUAL, MANY)) in requests])
    ]
    bottom = _TOP + _GROUP * len(shown)
    width, height = _LEFT + _SCALE + _RIGHT, bottom + 50
    title = "What sessions leave of a framework's speed"
    parts = [_rectangle(0, 0, width, height, "#ffffff"), _text(_LEFT, 24, title, more=' font-size="16"'), *_legend()]
    parts += _axis(bottom)
    for number, cases in enumerate(shown):
        y = _TOP + _GROUP * number
        parts.append(_text(_LEFT - 10, y + _BAR + 5, cases[0].contender, "end"))
        for place, case in enumerate(cases):
            parts += _bar(requests, case, y + (_BAR + 2) * place)
    parts.append(_line(_LEFT, _TOP - 6, _LEFT, bottom, _INK))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="DejaVu Sans, Verdana, sans-serif" font-size="{_SIZE}" fill="{_INK}" role="img">'
    )
    return "\n".join([head, f"<title>{escape(title)}</title>", *parts, "</svg>\n"])
