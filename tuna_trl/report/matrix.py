"""A matrix of shares as an SVG of coloured cells. Names and shares in, `Markup` out; see [`tuna_trl.report.plots`]."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from .plots import WIDTH, fitting


_NUMBER, _NAME = 20, 112  # widths of the number and of the name in front of a row
_HEAD, _FOOT = 18, 4


def matrix_plot(names: Sequence[str], cells: Sequence[Sequence[tuple[float, str] | None]], *, label: str) -> Markup:
    """Shares from 0 to 1, each in per cent on a cell that is the stronger coloured the further it is from a half.

    Args:
        names: of the rows, and in the same order of the columns, which bear their numbers.
        cells: (share, what it says when pointed at), or None for no cell.
    """
    n = len(names)
    left = _NUMBER + _NAME
    size = min(34.0, (WIDTH - left) / n)
    parts = []
    for i, name in enumerate(names):
        middle = _HEAD + size * (i + 0.5) + 4
        parts.append(_text(_NUMBER - 6, middle, str(i + 1), "end", "tick"))
        parts.append(_text(_NUMBER, middle, fitting(name, 17), "start", "name", name))
        parts.append(_text(left + size * (i + 0.5), _HEAD - 5, str(i + 1), "middle", "tick"))
        for j, cell in enumerate(cells[i]):
            if cell is not None:
                parts.append(_cell(left + size * j, _HEAD + size * i, size, *cell))
    height = _HEAD + size * n + _FOOT
    return Markup('<svg class="matrix" viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, escape(label), Markup("").join(parts)
    )


def _cell(x: float, y: float, size: float, share: float, title: str) -> Markup:
    return Markup(
        '<g class="cell {}"><title>{}</title><rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" '
        'fill-opacity="{:.2f}"/><text x="{:.1f}" y="{:.1f}" text-anchor="middle">{:.0f}</text></g>'
    ).format(
        "above" if share >= 0.5 else "below",
        title,
        x + 0.5,
        y + 0.5,
        size - 1,
        size - 1,
        0.08 + 0.62 * min(1.0, abs(share - 0.5) * 2),
        x + size / 2,
        y + size / 2 + 3.5,
        100 * share,
    )


def _text(x: float, y: float, text: str, anchor: str, css: str, title: str = "") -> Markup:
    inner = Markup("<title>{}</title>").format(title) if title else ""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}{}</text>').format(
        css, x, y, anchor, inner, text
    )
