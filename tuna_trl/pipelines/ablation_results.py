"""From figures a prompt to what a sweep says: means over seeds, then intervals over prompts, then differences.

The prompt is what is resampled. A prompt's value is its mean over the seeds; how far the seeds lie apart is shown
beside the interval, which knows nothing of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._version import __version__
from ..evaluation.ranking import bootstrap_interval, length_baselines, paired_interval
from ..evaluation.results import write_text
from .ablation_config import START, Sweep


# figure -> its column; what is not measured of an arm is missing there
FIGURES = {
    "rank_accuracy": "rank accuracy",
    "kendall_tau": "Kendall tau",
    "judge_score": "judge score",
    "answer_tokens": "answer tokens",
}
Values = list[float | None]
Runs = Mapping[str, Mapping[int, Mapping[str, Any]]]


def over_seeds(runs: Sequence[Values]) -> Values:
    """The mean of each prompt over the runs; None where a run lacks it, so that every prompt counts every seed."""
    return [
        None if any(one is None for one in values) else math.fsum(values) / len(values)
        for values in zip(*runs, strict=True)
    ]


def aggregate(
    sweep: Sweep, runs: Runs, heldout: Sequence[Mapping[str, Any]], judge: Mapping[str, Any]
) -> dict[str, Any]:
    """What `results.json` holds.

    Args:
        runs: arm -> seed -> what was measured, with `judge_score` one a prompt; `start` has a single run.
        heldout: the rows of rank accuracy.
        judge: its fingerprint.
    """
    values = {
        name: {figure: over_seeds(rows) for figure in FIGURES if (rows := _rows(by_seed, figure))}
        for name, by_seed in runs.items()
    }
    against = (START, *sweep.baselines)
    arms = {}
    for arm in sweep.arms:
        by_seed, own = runs[arm.name], values[arm.name]
        arms[arm.name] = {
            "trainer": arm.trainer,
            "train": [list(stage) for stage in arm.source.stages],
            "data": dict(arm.data),
            "options": dict(arm.options),
            "second_stage": dict(arm.second),
            "figures": {figure: bootstrap_interval(rows).to_json() for figure, rows in own.items()},
            "seed_means": {figure: {str(seed): _mean(run[figure]) for seed, run in by_seed.items()} for figure in own},
            "differences": {
                other: {
                    figure: paired_interval(rows, values[other][figure]).to_json()
                    for figure, rows in own.items()
                    if figure in values[other]
                }
                for other in against
                if other != arm.name
            },
            "cost": {str(seed): run.get("cost") or {} for seed, run in by_seed.items()},
        }
        if extra := _rows(by_seed, "rank_accuracy_own_exponent"):
            arms[arm.name]["rank_accuracy_own_exponent"] = bootstrap_interval(over_seeds(extra)).to_json()
        if "finish_reasons" in next(iter(by_seed.values())):
            cut = [reason == "length" for run in by_seed.values() for reason in run["finish_reasons"]]
            arms[arm.name]["answers_cut"] = sum(cut) / len(cut)
    ranks = [[response["rank"] for response in row["responses"]] for row in heldout]
    lengths = next(iter(runs[START].values()))["response_tokens"]
    return {
        "tuna_trl": __version__,
        "model": sweep.model,
        "heldout": sweep.heldout,
        "prompts": sweep.prompts or sweep.heldout,
        "judge": dict(judge),
        "max_new_tokens": sweep.max_new_tokens,
        "seeds": list(sweep.seeds),
        "budget_tokens": sweep.tokens,
        "baselines": list(sweep.baselines),
        "arms": arms,
        "length_baselines": {name: one.to_json() for name, one in length_baselines(lengths, ranks).items()},
    }


def write_results(result: Mapping[str, Any], folder: Path) -> None:
    """`results.json`, `results.md` and `results.svg`, each whole or not at all."""
    from .ablation_figure import figure

    write_text(folder / "results.json", json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(folder / "results.md", markdown(result))
    write_text(folder / "results.svg", figure(result))


def markdown(result: Mapping[str, Any]) -> str:
    """All arms side by side, their differences, what they took."""
    parts = ["# Ablation\n", _figures(result)]
    for other in (START, *result["baselines"]):
        parts += [f"## Difference to {other}, prompt by prompt\n", _differences(result, other)]
    budget = result["budget_tokens"]
    parts += ["## What it took, mean over seeds\n", _costs(result)]
    parts += [
        f"- Model {result['model']}, judge {result['judge'].get('judge', 'unnamed')}, seeds {result['seeds']}, "
        f"answers of at most {result['max_new_tokens']} tokens, greedy.",
        f"- Held-out lists: {result['heldout']}; prompts: {result['prompts']}.",
        "- [low, high]: bootstrap 95 % interval over prompts of the mean over seeds. (a to b): the seeds' own means.",
        "- rank accuracy: pairs of given responses that log-prob / tokens orders as their ranks do; equal: one half.",
        f"- Budget: {'none; epochs or steps as given' if budget is None else f'{budget:,} tokens an arm'}.",
    ]
    return "\n".join(parts) + "\n"


def _figures(result: Mapping[str, Any]) -> str:
    rows = []
    for name, arm in result["arms"].items():
        cells = [_with_seeds(arm["figures"].get(key), arm["seed_means"].get(key), key) for key in FIGURES]
        rows.append([name, *cells])
    for name, interval in result["length_baselines"].items():
        rows.append([f"{name.replace('_', ' ')} (no model)", _interval(interval), "–", "–", "–"])
    return _table(["arm", *FIGURES.values()], rows)


def _differences(result: Mapping[str, Any], other: str) -> str:
    rows = [
        [name, *(_interval(arm["differences"][other].get(key), key, sign=True) for key in FIGURES)]
        for name, arm in result["arms"].items()
        if other in arm["differences"]
    ]
    return _table([f"arm - {other}", *FIGURES.values()], rows)


def _costs(result: Mapping[str, Any]) -> str:
    columns = {"tokens": "tokens trained on", "processed": "tokens processed", "steps": "steps"}
    columns |= {"seconds": "seconds", "cpu_seconds": "CPU seconds"}
    rows = []
    for name, arm in result["arms"].items():
        runs = [cost for cost in arm["cost"].values() if cost]
        cells = [f"{sum(cost[key] for cost in runs) / len(runs):,.0f}" if runs else "–" for key in columns]
        rows.append([name, *cells])
    return _table(["arm", *columns.values()], rows)


def _with_seeds(interval: Mapping[str, Any] | None, means: Mapping[str, Any] | None, key: str) -> str:
    shown = _interval(interval, key)
    known = [value for value in (means or {}).values() if value is not None]
    if len(known) < 2:
        return shown
    digits = _digits(key)
    return f"{shown} ({min(known):.{digits}f} to {max(known):.{digits}f})"


def _interval(interval: Mapping[str, Any] | None, key: str = "", sign: bool = False) -> str:
    if interval is None or interval["mean"] is None:
        return "–"
    form = f"{'+' if sign else ''}.{_digits(key)}f"
    return f"{interval['mean']:{form}} [{interval['low']:{form}}, {interval['high']:{form}}]"


def _digits(key: str) -> int:
    return 1 if key == "answer_tokens" else 3


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in cells) + "\n"


def _rows(by_seed: Mapping[int, Mapping[str, Any]], figure: str) -> list[Values]:
    """The values of a figure by run; none where it was not measured."""
    return [run[figure] for run in by_seed.values() if figure in run]


def _mean(values: Values) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
