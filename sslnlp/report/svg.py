"""Charts as inline SVG: no plotting library, text that scales, colours that follow the page's theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 44
COLOURS = 6
"""Line classes c0 .. c5 in the template's style; more series start again."""

OTHER = "other labels"
"""The series that is drawn in grey."""

Points = Sequence[tuple[float, float]]
Place = Callable[[float, float], tuple[float, float]]
"""Where a point (x, y) of the data is drawn."""


def line_chart(title: str, x: str, y: str, series: Mapping[str, Points]) -> str:
    """An `<svg>` of the series with at least one finite point; a one-line note when there is none."""

    def draw(place: Place, i: int, points: Points) -> str:
        placed = [place(a, b) for a, b in thinned(points)]
        if len(placed) == 1:
            return f"<circle class='c{i % COLOURS}' cx='{placed[0][0]:.1f}' cy='{placed[0][1]:.1f}' r='3'/>"
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in placed)
        return f"<polyline class='c{i % COLOURS}' points='{path}'/>"

    return _chart(title, x, y, series, draw)


def point_chart(title: str, x: str, y: str, series: Mapping[str, Points]) -> str:
    """The same with every point as a dot."""

    def draw(place: Place, i: int, points: Points) -> str:
        dots = (place(a, b) for a, b in points)
        colour = "other" if names[i] == OTHER else f"c{i % COLOURS}"
        return "".join(f"<circle class='{colour}' cx='{a:.1f}' cy='{b:.1f}' r='3'/>" for a, b in dots)

    # What stands for all the rest lies below the others.
    series = dict(sorted(series.items(), key=lambda item: item[0] != OTHER))
    names = [name for name, points in series.items() if points]
    return _chart(title, x, y, series, draw, mark="dot")


def _chart(
    title: str,
    x: str,
    y: str,
    series: Mapping[str, Points],
    draw: Callable[[Place, int, Points], str],
    mark: str = "line",
) -> str:
    finite = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    lines = {name: points for name, points in finite.items() if points}
    if not lines:
        return f"<p class='note'>{escape(title)}: nothing was logged.</p>"
    xs, ys = [a for p in lines.values() for a, _ in p], [b for p in lines.values() for _, b in p]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_low, x_high = min(min(xs), x_ticks[0]), max(max(xs), x_ticks[-1])
    y_low, y_high = min(min(ys), y_ticks[0]), max(max(ys), y_ticks[-1])

    def place(a: float, b: float) -> tuple[float, float]:
        across = (a - x_low) / ((x_high - x_low) or 1.0)
        up = (b - y_low) / ((y_high - y_low) or 1.0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(title, quote=True)}'>"]
    for value in y_ticks:
        _, v = place(x_low, value)
        parts.append(f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{v:.1f}' y2='{v:.1f}'/>")
        parts.append(f"<text x='{LEFT - 6}' y='{v + 4:.1f}' text-anchor='end'>{short(value)}</text>")
    for value in x_ticks:
        h, _ = place(value, y_low)
        parts.append(f"<text x='{h:.1f}' y='{HEIGHT - BOTTOM + 16}' text-anchor='middle'>{short(value)}</text>")
    parts.append(f"<text x='{(LEFT + WIDTH - RIGHT) / 2}' y='{HEIGHT - 8}' text-anchor='middle'>{escape(x)}</text>")
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f"<text transform='translate(12 {middle}) rotate(-90)' text-anchor='middle'>{escape(y)}</text>")
    parts += [draw(place, i, points) for i, points in enumerate(lines.values())]
    colours = ("other" if name == OTHER else f"c{i % COLOURS}" for i, name in enumerate(lines))
    named = [(colour, escape(name)) for colour, name in zip(colours, lines, strict=True) if name]
    keys = "".join(f"<span class='key {mark} {colour}'>{name}</span>" for colour, name in named)
    drawing = "".join(parts) + "</svg>"
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}<div class='keys'>{keys}</div></figure>"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) that cover [low, high]; at least one."""
    if high - low <= abs(high) * 1e-12:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, last + 1)]


def short(value: float) -> str:
    """A tick's label: 1.2k, 3M, 0.05."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def thinned(points: Points, most: int = 400) -> Points:
    """At most `most` points: the mean of equal groups, so that noise is shown smaller but never picked from."""
    if len(points) <= most:
        return points
    group = math.ceil(len(points) / most)
    chunks = [points[i : i + group] for i in range(0, len(points), group)]
    return [(sum(a for a, _ in c) / len(c), sum(b for _, b in c) / len(c)) for c in chunks]
