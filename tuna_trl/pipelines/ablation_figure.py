"""The figure of a sweep: a panel a measure, a line an arm; one SVG, drawn by hand, colours follow dark mode."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from ..evaluation.figure import ticks
from .ablation_config import START
from .ablation_results import FIGURES


_NAMES, _PANEL, _GAP, _TOP, _STEP, _BOTTOM = 210, 215, 26, 58, 26, 40
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#222}.t{font-weight:600}.a{stroke:#999}.g{stroke:#e4e4e4}"
    ".i{stroke:#2563eb;stroke-width:3}.d{fill:#2563eb}.s{fill:none;stroke:#555}.r{stroke:#b45309;stroke-dasharray:4 3}"
    "@media(prefers-color-scheme:dark){svg{background:#111}text{fill:#eee}.g{stroke:#333}.s{stroke:#bbb}}"
)


def figure(result: Mapping[str, Any]) -> str:
    """The SVG's text: dot and bar are mean and 95 % interval, rings the means of the seeds, the dashed line `start`
    (of rank accuracy: the better of "longer wins" and "shorter wins")."""
    names = list(result["arms"])
    width = _NAMES + len(FIGURES) * (_PANEL + _GAP)
    height = _TOP + _STEP * len(names) + _BOTTOM
    parts = [f'<text class="t" x="8" y="20">Arms on {escape(str(result["model"]))}: held-out prompts</text>']
    for place, name in enumerate(names):
        shown = name if len(name) <= 30 else "…" + name[-29:]
        y = _TOP + _STEP * (place + 0.5) + 4
        parts.append(f'<text x="{_NAMES - 10}" y="{y:.1f}" text-anchor="end">{escape(shown)}</text>')
    for column, key in enumerate(FIGURES):
        parts += _panel(result, key, _NAMES + column * (_PANEL + _GAP), height)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Ablation"><style>{_STYLE}</style>{"".join(parts)}</svg>\n'
    )


def _panel(result: Mapping[str, Any], key: str, left: int, height: int) -> list[str]:
    arms = result["arms"]
    drawn = {
        place: (arm["figures"][key], [v for v in arm["seed_means"][key].values() if v is not None])
        for place, arm in enumerate(arms.values())
        if arm["figures"].get(key, {}).get("mean") is not None
    }
    title = f'<text class="t" x="{left}" y="{_TOP - 20}">{escape(FIGURES[key])}</text>'
    if not drawn:
        return [title]
    label, line = _reference(result, key)
    values = [v for interval, means in drawn.values() for v in (interval["low"], interval["high"], *means)]
    values += [] if line is None else [line]
    low, high = min(values), max(values)
    air = (high - low) * 0.06 or max(abs(high) * 0.1, 0.5)
    low, high = low - air, high + air
    base = height - _BOTTOM

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * _PANEL

    parts = [title]
    for tick in ticks(low, high, 4):
        parts.append(f'<line class="g" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP}" y2="{base}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{base + 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<line class="a" x1="{left}" x2="{left + _PANEL}" y1="{base}" y2="{base}"/>')
    if line is not None:
        parts.append(f'<line class="r" x1="{x(line):.1f}" x2="{x(line):.1f}" y1="{_TOP - 4}" y2="{base}"/>')
        parts.append(f'<text x="{x(line):.1f}" y="{_TOP - 7}" text-anchor="middle">{escape(label)}</text>')
    for place, (interval, means) in drawn.items():
        y = f"{_TOP + _STEP * (place + 0.5):.1f}"
        x1, x2 = x(interval["low"]), x(interval["high"])
        parts.append(f'<line class="i" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="d" cx="{x(interval["mean"]):.1f}" cy="{y}" r="4"/>')
        if len(means) > 1:
            parts += [f'<circle class="s" cx="{x(mean):.1f}" cy="{y}" r="6"/>' for mean in means]
    return parts


def _reference(result: Mapping[str, Any], key: str) -> tuple[str, float | None]:
    if key == "rank_accuracy":
        known = {k: v["mean"] for k, v in result["length_baselines"].items() if v["mean"] is not None}
        best = max(known, key=lambda name: known[name], default="")
        return best.replace("_", " "), known.get(best)
    interval = result["arms"][START]["figures"].get(key)
    return START, None if interval is None else interval["mean"]
