"""A bias report as lines for people. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .estimates import Estimate


if TYPE_CHECKING:
    from .bias import BiasReport

_OWN = {
    "answer": "the judge's own answer",
    "model": "responses of the judge's own model",
    "family": "responses of the judge's family",
}


def bias_table(report: BiasReport) -> str:
    """One line a figure, in four groups; intervals are 95 %, over rows.

    Args:
        report: see [`bias_report`].
    """
    lines = [*_position(report), *_length(report), *_kinship(report), *_agreement(report)]
    return "\n".join(f"{name:<16} {text}".rstrip() for name, text in lines)


def _position(report: BiasReport) -> list[tuple[str, str]]:
    position = report.position
    if not position.places:
        return [("position", "not measured: no verdict on two or more responses at once")]
    lines = [
        (
            "position" if place.place == 0 else "",
            f"place {place.place + 1}: {place.first_share:.1%} of the firsts ({place.expected:.1%} expected), "
            f"mean score {place.mean_score:.2f} ({place.effect:+.2f}), {place.shown:,} questions",
        )
        for place in position.places
    ]
    p = position.p_value
    alike = "" if p is None else f"; {_p(p)} if all places were alike"
    lines.append(("", f"first place, above its share: {_points(position.first)}{alike}"))
    lines.append(("", f"first place, points of score: {position.effect.shown(2, sign=True)}"))
    if position.left.rows:
        lines.append(("", f"left of it in the ranks: {_points(position.left)}"))
    balanced = position.balanced.value or 0.0
    lines.append(("", f"every response equally often at every place in {balanced:.1%} of the rows"))
    return lines


def _length(report: BiasReport) -> list[tuple[str, str]]:
    length = report.length
    wins = length.longer_wins.shown(1, scale=100, unit=" %")
    return [
        ("length", f"Spearman of length ({length.unit}) and quality: {length.rho.shown(2, sign=True)}"),
        ("", f"the longer of two wins in {wins} ({length.pairs:,} pairs)"),
    ]


def _kinship(report: BiasReport) -> list[tuple[str, str]]:
    if not report.self_preference:
        return [("self-preference", "not measured: no response of the judge's own, or of its family, beside others")]
    return [
        ("" if k else "self-preference", f"{_OWN[kind]}: {entry.advantage.shown(2, sign=True)} ranks above the others")
        for k, (kind, entry) in enumerate(report.self_preference.items())
    ]


def _agreement(report: BiasReport) -> list[tuple[str, str]]:
    agreement = report.agreement
    if not agreement.same_best.rows:
        return [("agreement", "not measured: one readable judgment a row (repeats=2 or more measures it)")]
    percent: dict[str, Any] = {"scale": 100, "unit": " %"}
    return [
        ("agreement", f"Kendall's W: {agreement.w.shown(2)}; tau-b: {agreement.tau.shown(2)}"),
        ("", f"all repeats alike: {agreement.all_equal.shown(1, **percent)}"),
        ("", f"two repeats with the same best: {agreement.same_best.shown(1, **percent)}"),
        ("", f"pairs that a second judgment turns: {agreement.turned.shown(1, **percent)}"),
    ]


def _points(estimate: Estimate) -> str:
    return estimate.shown(1, scale=100, unit=" percentage points", sign=True)


def _p(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.4f}"
