"""Small charts as inline SVG: colours from the page's CSS, a dash of its own for every series, words for every chart.

    lines("Accuracy over eps", "what it shows", [Series("robust", "robust", xs, ys)], x_label="eps (of 255)")

Drawn 400 wide, so that the letters stay readable on a phone. `standalone` makes a file of one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 20, 40
LINE = 16  # of text, which another may not overlap

STYLE = """
.chart text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--muted,#4b5563)}
.chart .grid{stroke:var(--line,#d9dee5);stroke-width:1}
.chart .line{fill:none;stroke-width:2.25;stroke-linejoin:round;stroke-linecap:round}
.chart .mark{stroke:var(--muted,#4b5563);stroke-width:1;stroke-dasharray:2 3}
.chart .strong{fill:var(--ink,#16202c);font-weight:600}
.chart .bar{stroke-width:5;stroke-linecap:round;opacity:.28}
.chart .range{stroke-width:10;stroke-linecap:butt;opacity:.35}
.chart .dot{stroke:var(--card,#fff);stroke-width:1.5}
.chart .hollow{fill:var(--card,#fff);stroke-width:2.25}
.robust{stroke:var(--robust,#0a6ea8);color:var(--robust,#0a6ea8)}
.clean{stroke:var(--clean,#b4530a);color:var(--clean,#b4530a)}
.natural{stroke:var(--natural,#6b5b95);color:var(--natural,#6b5b95)}
.accent{stroke:var(--accent,#0b7a5c);color:var(--accent,#0b7a5c)}
.dot{fill:currentColor}
@media (max-width:420px){.chart text{font-size:13.5px}}
"""
DASHES = {"robust": "", "clean": "7 4", "natural": "2 4", "accent": "10 3 2 3"}


@dataclass(frozen=True)
class Series:
    label: str
    style: str  # robust | clean | natural | accent: colour and dash
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Point:
    """One value that no line passes through: a hollow diamond."""

    style: str
    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A range of values on a range of pixels, and how its ticks are written."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (value - low) / ((high - low) or 1) * (self.end - self.start), 1)

    def ticks(self, about: int = 5) -> list[float]:
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            return [10.0**p for p in powers if self.low <= 10.0**p * 1.001 and 10.0**p <= self.high * 1.001]
        step = _step((self.high - self.low) / about)
        first = math.ceil(self.low / step - 1e-9)
        return [round(i * step, 10) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _step(rough: float) -> float:
    """The next of 1, 2, 5, 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough or 1))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)


def percent(value: float) -> str:
    return f"{100 * value:.1f}".removesuffix(".0") + "\u202f%"  # the narrow space does not break


def plain(value: float) -> str:
    return f"{value:g}"


def lines(
    title: str,
    words: str,
    series: Sequence[Series],
    x_label: str,
    *,
    y_range: tuple[float, float] | None = (0, 1),
    y_text: Callable[[float], str] = percent,
    marks: Sequence[tuple[float, str]] = (),
    points: Sequence[Point] = (),
    log: bool = False,
    dots: bool = True,
    steps: bool = False,
) -> str:
    """A line per series over one pair of axes; `marks` are vertical lines with a label; `steps` holds each value."""
    xs = [x for s in series for x in s.x]
    low, high = y_range or _range([y for s in series for y in s.y], log=log)
    x_axis = Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y_axis = Axis(low, high, HEIGHT - BOTTOM, TOP, log)
    ticks = _readable({y for s in series for y in s.y}, y_axis) if steps else y_axis.ticks()
    parts = [_grid(x_axis, y_axis, x_label, ticks, y_text)]
    parts += [_mark(x_axis(x), label) for x, label in marks]
    parts += [_line(_held(s) if steps else s, x_axis, y_axis, y_text, dots=dots) for s in series]
    parts += [_hollow(p.style, x_axis(p.x), y_axis(p.y), f"{p.label}: {y_text(p.y)} at {plain(p.x)}") for p in points]
    return _svg(title, words, "".join(parts), HEIGHT)


def _readable(values: Iterable[float], axis: Axis) -> list[float]:
    """The highest, and of the others those whose labels do not lie over one another."""
    kept: list[float] = []
    for value in sorted(values, reverse=True):
        if not kept or abs(axis(value) - axis(kept[-1])) >= LINE:
            kept.append(value)
    return kept


def _range(values: Sequence[float], *, log: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        return low / 1.3, high * 1.3
    room = (high - low or abs(high) or 1) * 0.08
    return low - room, high + room


def _held(s: Series) -> Series:
    """Every value lasts until the next one comes."""
    x = [p for a, b in zip(s.x, s.x[1:]) for p in (a, b)] + [s.x[-1]]
    y = [p for v in s.y[:-1] for p in (v, v)] + [s.y[-1]]
    return Series(s.label, s.style, x, y)


def _grid(x_axis: Axis, y_axis: Axis, x_label: str, ticks: Sequence[float], y_text: Callable[[float], str]) -> str:
    parts = []
    for tick in ticks:
        y = y_axis(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{y_text(tick)}</text>')
    for tick in (t for t in x_axis.ticks(6) if x_label != "epoch" or t.is_integer()):
        parts.append(f'<text x="{x_axis(tick)}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{plain(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts)


def _mark(x: float, label: str) -> str:
    """A vertical line, its label above the drawing."""
    anchor = "start" if x < LEFT + 40 else "end" if x > WIDTH - 60 else "middle"
    text = f'<text x="{x}" y="{TOP - 7}" text-anchor="{anchor}">{escape(label)}</text>' if label else ""
    return f'<line class="mark" x1="{x}" x2="{x}" y1="{TOP - 3}" y2="{HEIGHT - BOTTOM}"/>{text}'


def _line(s: Series, x_axis: Axis, y_axis: Axis, y_text: Callable[[float], str], *, dots: bool) -> str:
    points = [(x_axis(x), y_axis(y)) for x, y in zip(s.x, s.y)]
    path = " ".join(f"{x},{y}" for x, y in points)
    dash = f' stroke-dasharray="{DASHES[s.style]}"' if DASHES[s.style] else ""
    drawn = f'<polyline class="line {s.style}"{dash} points="{path}"/>'
    if not dots:
        return drawn
    return drawn + "".join(
        f'<circle class="dot {s.style}" cx="{x}" cy="{y}" r="3.5"><title>{escape(s.label)}: {y_text(b)} at {plain(a)}'
        "</title></circle>"
        for (x, y), a, b in zip(points, s.x, s.y)
    )


def pairs(title: str, words: str, rows: Sequence[tuple[str, float, float]]) -> str:
    """One row per class: a bar between robust and clean accuracy, a dot at each end."""
    left = min(130, 14 + 7 * max(len(label) for label, _, _ in rows))
    axis = Axis(0, 1, left, WIDTH - 22)
    height = TOP + 24 * len(rows) + 26
    parts = []
    for tick in axis.ticks(5):
        x = axis(tick)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP - 6}" y2="{height - 26}"/>')
        parts.append(f'<text x="{x}" y="{height - 8}" text-anchor="middle">{percent(tick)}</text>')
    for i, row in enumerate(rows):
        parts.append(_pair(TOP + 24 * i + 8, row, axis, left))
    return _svg(title, words, "".join(parts), height)


def _pair(y: float, row: tuple[str, float, float], axis: Axis, left: float) -> str:
    label, robust, clean = row
    short = label if len(label) <= 17 else label[:16] + "…"
    return (
        f'<text class="strong" x="{left - 8}" y="{y + 4}" text-anchor="end">{escape(short)}</text>'
        f'<line class="bar robust" x1="{axis(robust)}" x2="{axis(clean)}" y1="{y}" y2="{y}"/>'
        + _diamond("clean", axis(clean), y, f"{label}, clean: {percent(clean)}")
        + f'<circle class="dot robust" cx="{axis(robust)}" cy="{y}" r="5">'
        f"<title>{escape(label)}, robust: {percent(robust)}</title></circle>"
    )


def _diamond(style: str, x: float, y: float, words: str) -> str:
    points = f"{x},{y - 6} {x + 6},{y} {x},{y + 6} {x - 6},{y}"
    return f'<polygon class="dot {style}" points="{points}"><title>{escape(words)}</title></polygon>'


def _hollow(style: str, x: float, y: float, words: str) -> str:
    points = f"{x},{y - 7} {x + 7},{y} {x},{y + 7} {x - 7},{y}"
    return f'<polygon class="hollow {style}" points="{points}"><title>{escape(words)}</title></polygon>'


def interval(share: float, low: float, high: float, style: str, words: str) -> str:
    """A share with its 95 % interval on the scale from 0 to 100 %."""
    axis = Axis(0, 1, 6, 214)
    ticks = "".join(
        f'<line class="grid" x1="{axis(t)}" x2="{axis(t)}" y1="6" y2="16"/>' for t in (0, 0.25, 0.5, 0.75, 1)
    )
    return (
        f'<svg class="chart interval" viewBox="0 0 220 32" role="img" aria-label="{escape(words)}">'
        f'<line class="grid" x1="6" x2="214" y1="11" y2="11"/>{ticks}'
        f'<line class="range {style}" x1="{axis(low)}" x2="{axis(high)}" y1="11" y2="11"/>'
        f'<circle class="dot {style}" cx="{axis(share)}" cy="11" r="5"/>'
        '<text x="3" y="30">0</text><text x="110" y="30" text-anchor="middle">50</text>'
        '<text x="219" y="30" text-anchor="end">100</text></svg>'
    )


def swatch(style: str) -> str:
    """A piece of the line, for a legend."""
    dash = f' stroke-dasharray="{DASHES[style]}"' if DASHES[style] else ""
    return (
        '<svg class="swatch" viewBox="0 0 26 10" aria-hidden="true">'
        f'<line class="{style}" stroke-width="2.5"{dash} x1="1" x2="25" y1="5" y2="5"/></svg>'
    )


def _svg(title: str, words: str, body: str, height: float) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(words)}</desc>{body}</svg>'
    )


def standalone(svg: str) -> str:
    """A file that any viewer shows: the same drawing with its style inside and a white ground."""
    opened = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="800" ', 1)
    head, _, rest = opened.partition(">")
    return f'{head}><style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{rest}'
