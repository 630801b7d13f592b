"""One SVG of its own: a mean and its interval for each model. Drawn by hand, no library; colours follow dark mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape


_LEFT, _WIDTH, _RIGHT, _TOP, _STEP, _BOTTOM = 240, 760, 90, 36, 30, 34
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#222}.t{font-weight:600}.a{stroke:#999}.g{stroke:#ddd}"
    ".i{stroke:#2563eb;stroke-width:3}.d{fill:#2563eb}.r{stroke:#b45309;stroke-dasharray:4 3}"
    "@media(prefers-color-scheme:dark){svg{background:#111}text{fill:#eee}.g{stroke:#333}}"
)


def interval_figure(
    rows: Sequence[tuple[str, float, float, float]], *, title: str, reference: tuple[str, float] | None = None
) -> str:
    """A figure as text of an SVG file.

    Args:
        rows: (name, mean, low, high), drawn from top to bottom.
        reference: a dashed line and its name: what needs no model.
    """
    values = [value for _, *three in rows for value in three] + ([] if reference is None else [reference[1]])
    low, high = min(values), max(values)
    air = (high - low) * 0.06 or max(abs(high) * 0.1, 0.5)
    low, high = low - air, high + air
    height = _TOP + _STEP * len(rows) + _BOTTOM

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    base = height - _BOTTOM
    parts = [f'<text class="t" x="8" y="20">{escape(title)}</text>']
    for tick in ticks(low, high):
        parts.append(f'<line class="g" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP}" y2="{base}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{base + 18}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<line class="a" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>')
    if reference is not None:
        at = f"{x(reference[1]):.1f}"
        parts.append(f'<line class="r" x1="{at}" x2="{at}" y1="{_TOP - 6}" y2="{base}"/>')
        parts.append(f'<text x="{at}" y="{_TOP - 10}" text-anchor="middle">{escape(reference[0])}</text>')
    for place, (name, mean, bottom, top) in enumerate(rows):
        y = _TOP + _STEP * (place + 0.5)
        shown = name if len(name) <= 32 else "…" + name[-31:]
        parts.append(f'<text x="{_LEFT - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(shown)}</text>')
        parts.append(f'<line class="i" x1="{x(bottom):.1f}" x2="{x(top):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<circle class="d" cx="{x(mean):.1f}" cy="{y:.1f}" r="5"/>')
        parts.append(f'<text x="{_WIDTH - _RIGHT + 10}" y="{y + 4:.1f}">{mean:.3g}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}"><style>{_STYLE}</style>{"".join(parts)}</svg>\n'
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two values, about `count` of them.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]
