"""Start, Tuna_p and Tuna on held-out instructions: how each orders fixed samples, how its answers are judged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..build.cost import Budget
from ..build.journal import Journal
from ..evaluation.answers import judge_answers
from ..evaluation.ranking import bootstrap_interval, compare_orders, length_baselines, paired_interval


if TYPE_CHECKING:
    from datasets import Dataset

    from ..clients.base import Judge

MODELS = ("start", "tuna_p", "tuna")
COPY = "copy of the prompt"


def compare(
    rows: Dataset,
    models: Mapping[str, tuple[Any, Any]],
    judge: Judge,
    *,
    journal: str | Path | None,
    max_cost: float | None,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Compare models on judged held-out rows.

    Args:
        rows: ranked rows of one fixed set of samples, ranked by the judge.
        models: name -> (model, tokenizer); the first is the one that differences are taken from.
        judge: scores the models' own answers.
        journal: an SQLite file for what the judge says; None = memory.
        max_cost: cap in USD on the judge, what the journal holds included; None = no cap.
        max_new_tokens: tokens of an answer at most, the end token included.

    Returns:
        `models` -> name -> `rank_accuracy` (how often its length-normalised likelihood orders a pair of the fixed
        samples as the judge does), `kendall_tau`, `judge_score` (of its fresh greedy answers), each `{mean, low,
        high}` with a bootstrap 95 % interval over rows; `differences` to the first model, paired by row;
        `length_baseline` (pair accuracy of "longer wins" and "shorter wins"); `copy_baseline` (the judge's score of
        the prompt itself, which a similarity judge pays for); `examples` with the answers of every model.
    """
    from ..clients.local import TransformersSampler
    from ..scoring import score_rows

    ranks = [[r["rank"] for r in row["responses"]] for row in rows]
    prompts = [row["prompt"] for row in rows]
    references = [row["reference"] for row in rows]
    reports, answers = {}, {}
    lengths: list[list[Any]] = []
    for name, (model, tokenizer) in models.items():
        scored = score_rows(model, tokenizer, rows, show_progress=True)
        lengths = [[s["num_tokens"] for s in row] for row in scored]
        means = [[_mean_logp(s) for s in row] for row in scored]
        reports[name] = compare_orders(means, ranks)
        answers[name] = TransformersSampler(model, tokenizer).greedy(prompts, max_new_tokens)
    copies = {COPY: [prompt[-1]["content"] for prompt in prompts]} if judge.method == "reference" else {}
    with Journal(journal or ":memory:") as book:
        budget = Budget(math.inf if max_cost is None else max_cost)
        judged = judge_answers(prompts, references, {**answers, **copies}, judge, journal=book, budget=budget)
    first = next(iter(models))
    result: dict[str, Any] = {"models": {}, "differences": {}}
    for name, report in reports.items():
        result["models"][name] = {
            "rank_accuracy": _plain(report.rank_accuracy),
            "kendall_tau": _plain(report.kendall_tau),
            "judge_score": _plain(bootstrap_interval(judged[name])),
        }
        if name != first:
            result["differences"][name] = {
                "rank_accuracy": _plain(paired_interval(report.row_accuracy, reports[first].row_accuracy)),
                "kendall_tau": _plain(paired_interval(report.row_tau, reports[first].row_tau)),
                "judge_score": _plain(paired_interval(judged[name], judged[first])),
            }
    baselines = length_baselines(lengths, ranks)
    result["length_baseline"] = {name: _plain(interval) for name, interval in baselines.items()}
    result["copy_baseline"] = _plain(bootstrap_interval(judged.get(COPY, [])))
    result["rows"] = len(rows)
    result["examples"] = [
        {
            "prompt": prompts[i][-1]["content"],
            "reference": references[i],
            "answers": {name: {"content": answers[name][i], "score": judged[name][i]} for name in models},
        }
        for i in range(len(rows))
    ]
    return result


def _mean_logp(scored: Mapping[str, Any]) -> float | None:
    return None if scored["logprob"] is None else scored["logprob"] / scored["num_tokens"]


def _plain(interval: Any) -> dict[str, float | None]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}
