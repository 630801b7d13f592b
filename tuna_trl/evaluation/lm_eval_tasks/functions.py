"""What the YAML files of this folder call. lm-eval loads this file by its path, so that imports are absolute.

The data is the user's own, named by environment variables (lm-eval gives a task no other argument of its own).
lm-eval's documents come without a tokenizer: Super-NI's rule for long prompts is not applied here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from tuna_trl.errors import InputError


def super_ni_dataset(**kwargs: Any) -> dict[str, Any]:
    """One row an instance: `prompt`, `reference`, `outputs`."""
    from datasets import Dataset

    from tuna_trl.evaluation.super_ni import load_super_ni, tk_prompt

    shots = _whole("TUNA_TRL_SUPER_NI_SHOTS", 2)
    rows = [
        {
            "prompt": tk_prompt(task, instance, shots=shots).text,
            "reference": instance.outputs[0],
            "outputs": list(instance.outputs),
        }
        for task, instance in load_super_ni(_folder("TUNA_TRL_SUPER_NI")).rows()
    ]
    return {"test": Dataset.from_list(rows)}


def super_ni_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    rouge, exact = _ni_scorer().scores(results[0], doc["outputs"])
    return {"rouge_l": rouge, "exact_match": exact}


def lmentry_dataset(**kwargs: Any) -> dict[str, Any]:
    """One row an example: `prompt`, `task`, `metadata` (as JSON: its fields differ from task to task)."""
    from datasets import Dataset

    from tuna_trl.evaluation.lmentry.data import load_lmentry

    limit = _whole("TUNA_TRL_LMENTRY_LIMIT", 0) or None
    examples = load_lmentry(_folder("TUNA_TRL_LMENTRY"), limit=limit)
    rows = [{"prompt": e.prompt, "task": e.task, "metadata": json.dumps(dict(e.metadata))} for e in examples]
    return {"test": Dataset.from_list(rows)}


def lmentry_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """The same outcome for each figure: what is made of all of them is the aggregations' matter."""
    from tuna_trl.evaluation.lmentry.scorers import is_right

    metadata = json.loads(doc["metadata"])
    right = is_right(doc["task"], metadata, results[0])
    outcome = (doc["task"], metadata["template_id"], metadata.get("answer_index"), right)
    return dict.fromkeys(("accuracy", "robustness", "lmentry_score"), outcome)


def lmentry_accuracy(outcomes: Sequence[tuple[Any, ...]]) -> float:
    return _report(outcomes).accuracy


def lmentry_robustness(outcomes: Sequence[tuple[Any, ...]]) -> float:
    return _report(outcomes).robustness


def lmentry_score(outcomes: Sequence[tuple[Any, ...]]) -> float:
    return _report(outcomes).score


def _report(outcomes: Sequence[tuple[Any, ...]]) -> Any:
    """The report, with NaN where tasks are missing: lm-eval prints numbers."""
    from dataclasses import replace

    from tuna_trl.evaluation.lmentry.aggregate import Outcome, aggregate

    report = aggregate(Outcome(*outcome) for outcome in outcomes)
    missing: dict[str, Any] = {
        name: float("nan") for name in ("accuracy", "robustness", "score") if getattr(report, name) is None
    }
    return replace(report, **missing)


@cache
def _ni_scorer() -> Any:
    from tuna_trl.evaluation.super_ni import NiScorer

    return NiScorer()


def _folder(variable: str) -> str:
    if not (folder := os.environ.get(variable)):
        raise InputError(f"The environment variable {variable} is not set; it names the folder of the data.")
    return folder


def _whole(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    if not text:
        return default
    if not text.isdecimal():
        raise InputError(f"The environment variable {variable} is {text!r}, expected a whole number.")
    return int(text)
