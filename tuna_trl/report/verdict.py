"""What the intervals allow one to say, in sentences; and nothing beyond.

A model is better or worse than the start model in a metric only where the 95 % interval of the paired difference lies
on one side of 0. Where only the two models' own intervals are known, they must not overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .text import first_line, interval, is_interval, number


START = "start"
MODEL_NAMES = {"start": "Start model", "tuna_p": "Tunaₚ", "tuna": "Tuna"}
METRIC_NAMES = {"rank_accuracy": "rank accuracy", "kendall_tau": "Kendall’s τ", "judge_score": "judge score"}
BASELINE_NAMES = {"longer_wins": "the longer response", "shorter_wins": "the shorter response"}


@dataclass(frozen=True)
class Statement:
    """One sentence of the verdict; `kind` is better, worse, mixed, none or unknown (for the colour beside it)."""

    kind: str
    subject: str
    text: str


def model_name(key: str) -> str:
    return MODEL_NAMES.get(key) or first_line(key, 120)


def metric_name(key: str) -> str:
    return METRIC_NAMES.get(key) or first_line(key.replace("_", " "), 120)


def compare(summary: Mapping[str, Any], model: str, metric: str) -> tuple[str, str]:
    """How a model stands to the start model in a metric: (better | worse | none | unknown, the figures)."""
    difference = _entry(summary, "differences", model, metric)
    if is_interval(difference):
        kind = "better" if difference["low"] > 0 else "worse" if difference["high"] < 0 else "none"
        return kind, f"{number(difference['mean'], sign=True)}\u00a0{interval(difference, sign=True)}"
    own, start = _entry(summary, "models", model, metric), _entry(summary, "models", START, metric)
    if not is_interval(own) or not is_interval(start):
        return "unknown", ""
    kind = "better" if own["low"] > start["high"] else "worse" if own["high"] < start["low"] else "none"
    return kind, f"{_with_interval(own)} against {_with_interval(start)}"


def statements(summary: Mapping[str, Any]) -> list[Statement]:
    """The verdict: a sentence for each trained model, and those against the rules that need no model."""
    models = dict.fromkeys([*(summary.get("models") or {}), *(summary.get("differences") or {})])
    trained = [model for model in models if model != START]
    result = [_against_start(summary, model) for model in trained]
    result += [statement for model in trained for statement in _against_rules(summary, model)]
    return [statement for statement in result if statement is not None]


def _against_start(summary: Mapping[str, Any], model: str) -> Statement | None:
    metrics = dict.fromkeys([*METRIC_NAMES, *_metrics(summary, model)])
    found: dict[str, list[str]] = {"better": [], "worse": [], "none": []}
    for metric in metrics:
        kind, figures = compare(summary, model, metric)
        if kind in found:
            found[kind].append(f"{metric_name(metric)} ({figures})")
    clauses = []
    if found["better"]:
        clauses.append(f"better than the start model in {_list(found['better'])}")
    if found["worse"]:
        clauses.append(f"worse than the start model in {_list(found['worse'])}")
    if found["none"]:
        clauses.append(f"no difference beyond the 95 % interval in {_list(found['none'])}")
    if not clauses:
        return None
    kind = "mixed" if found["better"] and found["worse"] else next(name for name in found if found[name])
    return Statement(kind, model_name(model), "; ".join(clauses) + ".")


def _against_rules(summary: Mapping[str, Any], model: str) -> list[Statement]:
    """A model against what needs no model at all: the better of the two length rules, and copying the prompt."""
    lengths = summary.get("length_baseline") or {}
    rules: dict[str, Any] = {name: lengths.get(name) for name in BASELINE_NAMES if is_interval(lengths.get(name))}
    result = []
    if rules:
        name, rule = max(rules.items(), key=lambda item: item[1]["mean"])
        words = f"always preferring {BASELINE_NAMES[name]}"
        result.append(_against_rule(summary, model, "rank_accuracy", rule, words))
    result.append(_against_rule(summary, model, "judge_score", summary.get("copy_baseline"), "copying the prompt"))
    return [statement for statement in result if statement is not None]


def _against_rule(summary: Mapping[str, Any], model: str, metric: str, rule: Any, rule_words: str) -> Statement | None:
    own = _entry(summary, "models", model, metric)
    if not is_interval(own) or not is_interval(rule):
        return None
    kind, words = "none", "is not told apart by the 95 % intervals from"
    if own["low"] > rule["high"]:
        kind, words = "better", "lies above"
    elif own["high"] < rule["low"]:
        kind, words = "worse", "lies below"
    figures = f"{metric_name(metric)} {_with_interval(own)} {words} that of {rule_words} ({_with_interval(rule)})."
    return Statement(kind, model_name(model), figures)


def _metrics(summary: Mapping[str, Any], model: str) -> list[str]:
    return [*_entry(summary, "models", model), *_entry(summary, "differences", model)]


def _entry(summary: Mapping[str, Any], *path: str) -> Any:
    """What stands at a path of the summary; an empty dict where it breaks off."""
    value: Any = summary
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return {} if value is None else value


def _with_interval(entry: Mapping[str, float]) -> str:
    return f"{number(entry['mean'])}\u00a0{interval(entry)}"


def _list(items: Iterable[str]) -> str:
    """Items as English lists them.

    >>> _list(["a"]), _list(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    *most, last = items
    return f"{', '.join(most)} and {last}" if most else last
