"""Plots as inline SVG: no script, no fonts, no files beside the report."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2")
_WIDTH, _BAR, _LABELS = 900, 16, 210
_INK, _GRID = "#333", "#ddd"


@dataclass(frozen=True, slots=True)
class Bar:
    """One value of a bar plot."""

    label: str
    value: float
    series: int = 0
    """Bars of one series share a colour."""
    low: float | None = None
    high: float | None = None
    """The spread, drawn as a line."""
    mark: float | None = None
    """A goal, drawn as a tick."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a line plot."""

    name: str
    points: Sequence[tuple[float, float]]


def bar_plot(title: str, bars: Sequence[Bar], *, reference: float | None = None) -> str:
    """Horizontal bars.

    Args:
        title: Above the plot.
        bars: From top to bottom.
        reference: A value to draw a line at, such as the limit.
    """
    highest = max([bar.high or bar.value for bar in bars] + [bar.mark or 0 for bar in bars])
    top = _nice(max(highest, reference or 0))
    room = _WIDTH - _LABELS - 60
    height = 40 + len(bars) * (_BAR + 6)

    def x(value: float) -> float:
        return _LABELS + room * value / top

    parts = [_text(0, 14, title, weight="bold")]
    for step in range(5):
        at = top * step / 4
        parts.append(_line(x(at), 24, x(at), height, _GRID))
        parts.append(_text(x(at), 34, f"{at:g}", anchor="middle", size=10))
    for place, bar in enumerate(bars):
        y = 40 + place * (_BAR + 6)
        parts.append(_text(_LABELS - 6, y + 12, bar.label, anchor="end", size=11))
        colour = COLOURS[bar.series % len(COLOURS)]
        width = max(x(bar.value) - _LABELS, 0)
        parts.append(
            f'<rect x="{_LABELS}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>'
        )
        if bar.low is not None and bar.high is not None:
            parts.append(_line(x(bar.low), y + _BAR / 2, x(bar.high), y + _BAR / 2, _INK))
        if bar.mark is not None:
            parts.append(_line(x(bar.mark), y - 2, x(bar.mark), y + _BAR + 2, "#d62728", 3))
        parts.append(_text(x(bar.high or bar.value) + 5, y + 12, f"{bar.value:.3g}", size=11))
    if reference is not None:
        parts.append(_line(x(reference), 24, x(reference), height, _INK, 1, "4 3"))
    return _svg(height, parts)


def line_plot(title: str, lines: Sequence[Line], *, x_label: str, y_label: str) -> str:
    """Lines over a common horizontal axis; the vertical one is logarithmic."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points if y > 0]
    left, right, upper, lower = 60, _WIDTH - 150, 30, 260
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    x_low, x_high = min(xs), max(xs)

    def x(value: float) -> float:
        return left + (right - left) * (value - x_low) / max(x_high - x_low, 1e-9)

    def y(value: float) -> float:
        return lower - (lower - upper) * (math.log10(value) - low) / max(high - low, 1)

    parts = [_text(0, 14, title, weight="bold")]
    for power in range(low, high + 1):
        parts.append(_line(left, y(10**power), right, y(10**power), _GRID))
        parts.append(_text(left - 5, y(10**power) + 4, f"{10**power:g}", anchor="end", size=10))
    parts += [
        _text(x(value), lower + 16, f"{value:g}", anchor="middle", size=10)
        for value in sorted(set(xs))
    ]
    parts.append(_text((left + right) / 2, lower + 34, x_label, anchor="middle", size=11))
    parts.append(_text(left, upper - 4, y_label, size=10))
    for place, line in enumerate(lines):
        colour = COLOURS[place % len(COLOURS)]
        points = [(x(a), y(b)) for a, b in line.points if b > 0]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in points]
        parts.append(_text(right + 10, upper + 16 * place + 4, line.name, size=11, fill=colour))
    return _svg(lower + 44, parts)


def _nice(value: float) -> float:
    """The next number at or above `value` that is easy to read."""
    power = 10 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(
        step * power for step in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10) if step * power >= value
    )


def _svg(height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {_WIDTH} {height:.0f}" font-family="sans-serif">{"".join(parts)}</svg>'
    )


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str, width: int = 1, dashes: str = ""
) -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"{dashed}/>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 13,
    weight: str = "normal",
    fill: str = _INK,
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}" fill="{fill}">{html.escape(text)}</text>'
    )
