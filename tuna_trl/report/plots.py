"""Small SVG charts drawn by hand: lines, a histogram, intervals, ranges. Numbers in, `Markup` out, no library.

Colours are CSS classes (`series-0` …), so that a chart follows the page into dark mode and onto paper. Every label is
escaped; numbers that are not finite are not drawn. Sizes are in the viewBox's units, about a pixel each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape


WIDTH = 340
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 34
_MAX_POINTS = 400  # of one line; more are averaged in buckets
_SMOOTH_FROM = 40  # points; a longer line gets a moving mean in front of it

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line of points; `dots` marks each one (for a handful of evaluations)."""

    name: str
    points: Sequence[Point]
    dots: bool = False


@dataclass(frozen=True)
class Scale:
    """A linear map from a range of values to a range of units."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) within a range.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = high - low
    if not span > 0:
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.8)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A tick as short as it can be.

    >>> tick_text(-0.5), tick_text(20000.0), tick_text(3.0)
    ('−0.5', '20k', '3')
    """
    text = f"{value / 1000:g}k" if 10_000 <= abs(value) < 1e6 else f"{value:.6g}"
    return text.replace("-", "−")


def line_chart(lines: Sequence[Line], *, label: str, x_label: str = "step", reference: float | None = None) -> Markup:
    """Values over steps. A long line is drawn faintly with its moving mean in front.

    Args:
        reference: draws a dashed horizontal line at this value (chance level, say).
    """
    finite = [Line(line.name, [p for p in line.points if all(map(math.isfinite, p))], line.dots) for line in lines]
    finite = [line for line in finite if line.points]
    if not finite:
        return Markup("")
    height = 190
    every = [point for line in finite for point in line.points]
    x = _scale([p[0] for p in every], LEFT, WIDTH - RIGHT, pad=0.0)
    y = _scale([p[1] for p in every] + ([] if reference is None else [reference]), height - BOTTOM, TOP)
    parts = [_y_axis(y), _x_axis(x, height, x_label)]
    if reference is not None:
        parts.append(_rule(LEFT, WIDTH - RIGHT, y(reference), y(reference), "reference"))
    for i, line in enumerate(finite):
        points = _thinned(line.points)
        if len(points) >= _SMOOTH_FROM and not line.dots:
            parts.append(_path(points, x, y, f"line faint series-{i}"))
            points = _moving_mean(points)
        if len(points) > 1:
            parts.append(_path(points, x, y, f"line series-{i}{' dashed' if line.dots else ''}"))
        if line.dots or len(points) == 1:
            parts += [_dot(x(px), y(py), 3, f"series-{i}") for px, py in points]
    return _svg(height, label, parts)


def histogram(values: Sequence[float], *, label: str, x_label: str) -> Markup:
    """How often values fall where; one bar a value when there are few distinct ones."""
    array = np.array(values, dtype=float)  # None becomes NaN
    array = array[np.isfinite(array)]
    if not len(array):
        return Markup("")
    height = 170
    counts, edges = np.histogram(array, bins=_edges(array))
    x = Scale(float(edges[0]), float(edges[-1]), LEFT, WIDTH - RIGHT)
    y = Scale(0.0, float(counts.max()), height - BOTTOM, TOP)
    bars = [
        Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
            _f(x(a) + 0.5),
            _f(y(n)),
            _f(max(0.5, x(b) - x(a) - 1)),
            _f(y(0) - y(n)),
            f"{tick_text(float(a))} to {tick_text(float(b))}: {n}",
        )
        for n, a, b in zip(counts.tolist(), edges[:-1], edges[1:], strict=True)
        if n
    ]
    whole = [tick for tick in ticks(0.0, y.high, 3) if tick == int(tick)]
    return _svg(height, label, [_y_axis(y, whole), *bars, _x_axis(x, height, x_label)])


def interval_plot(
    rows: Sequence[tuple[str, float, float, float]], *, label: str, x_label: str = "", reference: float | None = None
) -> Markup:
    """One line a row from low to high with a dot at the mean: `(name, mean, low, high)`.

    A row whose interval does not hold `reference` is drawn in full colour, the others are pale.
    """
    if not rows:
        return Markup("")
    left, step = 82, 30
    height = TOP + step * len(rows) + BOTTOM
    bounds = [v for _, mean, low, high in rows for v in (mean, low, high)]
    x = _scale(bounds + ([] if reference is None else [reference]), left, WIDTH - RIGHT - 4)
    parts = [_x_axis(x, height, x_label)]
    if reference is not None:
        parts.append(_rule(x(reference), x(reference), TOP, height - BOTTOM, "reference"))
    for i, (name, mean, low, high) in enumerate(rows):
        y = TOP + step * (i + 0.5)
        pale = " pale" if reference is not None and low <= reference <= high else ""
        parts.append(_text(left - 10, y + 4, fitting(name, 12), "end", "name"))
        parts.append(_rule(x(low), x(high), y, y, f"interval{pale}"))
        parts.append(_dot(x(mean), y, 4.5, f"mean{pale}"))
    return _svg(height, label, parts)


def range_plot(groups: Sequence[tuple[str, Sequence[float]]], *, label: str, x_label: str) -> Markup:
    """For each group its median, middle half (thick) and middle nine tenths (thin)."""
    groups = [(name, values) for name, values in groups if len(values)]
    if not groups:
        return Markup("")
    left, step = 54, 20 if len(groups) > 5 else 26
    height = TOP + step * len(groups) + BOTTOM
    quantiles: list[list[float]]
    quantiles = [np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist() for _, values in groups]
    x = _scale([0.0, *(q for five in quantiles for q in five)], left, WIDTH - RIGHT, pad=0.02)
    x = Scale(0.0, x.high, x.start, x.end)
    parts = [_x_axis(x, height, x_label)]
    for i, ((name, values), (low, q1, median, q3, high)) in enumerate(zip(groups, quantiles, strict=True)):
        y = TOP + step * (i + 0.5)
        parts.append(_text(left - 10, y + 4, name, "end", "name"))
        parts.append(_rule(x(low), x(high), y, y, "whisker"))
        parts.append(_rule(x(q1), x(q3), y, y, "box"))
        parts.append(_dot(x(median), y, 3.5, "median", f"{name}: median {median:g}, n = {len(values)}"))
    return _svg(height, label, parts)


def fitting(name: str, limit: int) -> str:
    """As much of a name as fits, of both ends, because the names of models differ at either.

    >>> fitting("a-very-long-model-name", 12)
    'a-ver…l-name'
    """
    half = (limit - 1) // 2
    return name if len(name) <= limit else f"{name[:half]}…{name[half + 1 - limit :]}"


def _scale(values: Sequence[float], start: float, end: float, pad: float = 0.06) -> Scale:
    """A scale over the values with some air at both ends; a constant gets a range of its own."""
    low, high = min(values), max(values)
    air = (high - low) * pad if high > low else max(abs(high) * 0.1, 0.5)
    return Scale(low - air, high + air, start, end)


def _edges(values: np.ndarray) -> np.ndarray:
    distinct = np.unique(values)
    if len(distinct) == 1:
        return np.array([distinct[0] - 0.5, distinct[0] + 0.5])
    gap = float(np.diff(distinct).min())
    if len(distinct) <= 20 and distinct[-1] - distinct[0] <= 30 * gap:
        steps = (distinct - distinct[0]) / gap
        if np.allclose(steps, np.round(steps)):
            return distinct[0] + gap * (np.arange(round(steps[-1]) + 2) - 0.5)  # a bar on each value of a grid
    return np.histogram_bin_edges(values, bins=int(np.clip(math.sqrt(len(values)), 8, 30)))


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most `_MAX_POINTS`: the means of equal buckets."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    return [tuple(bucket.mean(axis=0).tolist()) for bucket in np.array_split(np.array(points), _MAX_POINTS)]


def _moving_mean(points: Sequence[Point]) -> list[Point]:
    """Each value with its neighbours up to a tenth of the line away on both sides (fewer at the ends)."""
    values = np.array(points)
    sums = np.concatenate([[0.0], np.cumsum(values[:, 1])])
    half, n = max(1, len(points) // 20), len(points)
    spans = [(max(0, i - half), min(n, i + half + 1)) for i in range(n)]
    return [(float(values[i, 0]), float((sums[b] - sums[a]) / (b - a))) for i, (a, b) in enumerate(spans)]


def _x_axis(x: Scale, height: float, label: str) -> Markup:
    base = height - BOTTOM
    parts = [_rule(x.start, x.end, base, base, "axis")]
    for tick in ticks(x.low, x.high):
        parts += [_rule(x(tick), x(tick), base, base + 3, "axis"), _text(x(tick), base + 15, tick_text(tick))]
    return Markup("").join([*parts, _text((x.start + x.end) / 2, height - 4, label, "middle", "label")])


def _y_axis(y: Scale, at: Sequence[float] | None = None) -> Markup:
    parts = []
    for tick in ticks(y.low, y.high) if at is None else at:
        parts.append(_rule(LEFT, WIDTH - RIGHT, y(tick), y(tick), "grid"))
        parts.append(_text(LEFT - 7, y(tick) + 4, tick_text(tick), "end"))
    return Markup("").join(parts)


def _path(points: Sequence[Point], x: Scale, y: Scale, css: str) -> Markup:
    moves = " ".join(f"{'L' if i else 'M'}{_f(x(px))} {_f(y(py))}" for i, (px, py) in enumerate(points))
    return Markup('<path class="{}" d="{}"/>').format(css, moves)


def _rule(x1: float, x2: float, y1: float, y2: float, css: str) -> Markup:
    return Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(css, _f(x1), _f(x2), _f(y1), _f(y2))


def _dot(x: float, y: float, radius: float, css: str, title: str = "") -> Markup:
    inner = Markup("<title>{}</title>").format(title) if title else ""
    return Markup('<circle class="dot {}" cx="{}" cy="{}" r="{}">{}</circle>').format(css, _f(x), _f(y), radius, inner)


def _text(x: float, y: float, text: str, anchor: str = "middle", css: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(css, _f(x), _f(y), anchor, text)


def _svg(height: float, label: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, _f(height), escape(label), Markup("").join(parts)
    )


def _f(value: float) -> str:
    """A coordinate to a tenth of a unit, which no eye tells from the exact one."""
    return f"{value:.1f}".removesuffix(".0")
