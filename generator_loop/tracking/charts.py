"""Line charts as inline SVG, without any library or script."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
"""Okabe and Ito's palette, told apart by colour-blind readers."""

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 260, 48, 12, 14, 34

Points = Sequence[tuple[float, float | None]]
Place = Callable[[float, float], tuple[float, float]]


def line_chart(series: Mapping[str, Points], *, x_label: str, title: str, marks: bool = True) -> str:
    """Return an SVG figure of several lines with a legend; a point without a value breaks its line.

    Args:
        series: name -> points (x, y).
        x_label: name of the x axis.
        title: caption of the figure.
        marks: draw a dot at each point.

    Returns:
        A `<figure>`; empty if no series has a value.
    """
    known = {name: [(x, y) for x, y in points if y is not None and math.isfinite(y)] for name, points in series.items()}
    known = {name: points for name, points in known.items() if points}
    if not known:
        return ""
    xs = [x for points in known.values() for x, _ in points]
    ys = [y for points in known.values() for _, y in points]
    x_ticks, y_ticks = _ticks(min(xs), max(xs), whole=True), _ticks(min(ys), max(ys))
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    y_low, y_high = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        """Return where a point of the data lies, in pixels from the top left."""
        across = (x - x_low) / (x_high - x_low)
        up = (y - y_low) / (y_high - y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    elements = [_axes(x_ticks, y_ticks, place, x_label)]
    for colour, points in zip(_colours(len(known)), known.values(), strict=True):
        where = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in where)
        elements.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.2"/>')
        if marks:
            elements += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>' for x, y in where]
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{html.escape(name)}</span>'
        for colour, name in zip(_colours(len(known)), known, strict=True)
    )
    return (
        f'<figure><figcaption>{html.escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}">{"".join(elements)}</svg><div class="legend">{legend}</div></figure>'
    )


def _axes(x_ticks: Sequence[float], y_ticks: Sequence[float], place: Place, x_label: str) -> str:
    elements = []
    for value in y_ticks:
        _, y = place(x_ticks[0], value)
        elements.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        elements.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for value in x_ticks:
        x, _ = place(value, y_ticks[0])
        elements.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:.3g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    elements.append(f'<text x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{html.escape(x_label)}</text>')
    return "".join(elements)


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Return about five round numbers between low and high."""
    span = max(high - low, 1.0 if whole else 1e-6)
    raw = span / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    step = max(1.0, round(step)) if whole else step
    first = math.ceil(low / step - 1e-9) if whole else math.floor(low / step + 1e-9)
    last = math.floor(high / step + 1e-9) if whole else math.ceil(high / step - 1e-9)
    return [count * step for count in range(first, max(last, first + (0 if whole else 1)) + 1)]


def _colours(num: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(num)]
