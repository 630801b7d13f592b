"""Ranks for responses that are there already, by a judge that reads them: lists of several models, one's own logs.

As `rank.py` does with a teacher: nothing is sampled. Touches the journal and the judge that it is given, no more.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..clients.base import Judge, Sample
from ..data.schema import judgment_features, make_row, prompt_id, ranked_features
from .buckets import Drawn
from .case import Case, make_case, rank_case
from .given import GivenRow, given_rows, given_splits
from .items import PromptItem
from .journal import Journal
from .judge import (
    JudgeBuildConfig,
    ask_about,
    check_judge_spending,
    check_references,
    dataset_of,
    judgment_rows,
    own_answer,
)


if TYPE_CHECKING:
    from datasets import DatasetDict


def rank_by_judge(
    dataset: Any, judge: Judge, config: JudgeBuildConfig | None = None
) -> tuple[DatasetDict, DatasetDict]:
    """Have a judge rank given responses.

    Equal texts are shown once and share what comes out. Run again with the same journal, nothing that was answered is
    asked again, whatever else is in `dataset`.

    Args:
        dataset: a Dataset, a DatasetDict, a list of rows or a dict of them; [`tuna_trl.build.given.given_rows`] says
            which rows are read. Ranks and scores that they have are not looked at.
        judge: any judge; one that compares with a reference needs a column `reference`.
        config: `repeats`, `tie_delta`, `seed` (of the shown orders), `max_malformed`, `max_cost`, `limit`, `journal`
            and how the judge is asked; what it says of sampling is not looked at.

    Returns:
        (ranked rows, judgments), one split for each of `dataset` (`train` for a Dataset or a list), rows in the same
        order. Responses keep their `index`, `model` and `finish_reason`; `source` is "dataset" unless it says teacher
        or student. Where the judge ranks its own answer too, that is one more response, of source "judge".

    Raises:
        SchemaError: a row cannot be read; the message names it.
        InputError: the config is not usable, before anything is spent.
        BudgetExceeded: the next request could cost more than what is left of `max_cost`.
        BuildError: the judge gave no reply, or the journal cannot be written.
    """
    from datasets import DatasetDict

    config = config or JudgeBuildConfig()
    check_judge_spending(judge, config)
    given = {
        split: given_rows(rows, f"split {split!r}", config.limit) for split, rows in given_splits(dataset).items()
    }
    drawn = {split: _drawn(rows) for split, rows in given.items()}
    if judge.method == "reference":
        check_references({split: [each.item for each in some] for split, some in drawn.items()})
    cases = {
        split: [
            make_case(each, where=f"{split}[{i}]", seed=config.seed, repeats=config.repeats, orders=judge.orders)
            for i, each in enumerate(some)
        ]
        for split, some in drawn.items()
    }
    with Journal(config.journal or ":memory:") as journal:
        ask_about(cases, judge, config, journal)
    ranked, judgments = DatasetDict(), DatasetDict()
    fingerprint = judge.fingerprint()  # once: it may read every weight
    for split, some in cases.items():
        both = list(zip(given[split], some, strict=True))
        ranked[split] = dataset_of([_row(*each, judge, fingerprint, config) for each in both], ranked_features())
        replies = [reply for row, case in both for reply in _replies(row, case, judge)]
        judgments[split] = dataset_of(replies, judgment_features())
    return ranked, judgments


def _drawn(rows: list[GivenRow]) -> list[Drawn]:
    """Given responses in the shape of sampled ones; equal prompts are told apart by their occurrence."""
    seen: Counter[str] = Counter()
    result = []
    for row in rows:
        key = prompt_id(row.prompt)
        samples = tuple(
            Sample(response["content"], (), response["finish_reason"] or "stop") for response in row.responses
        )
        item = PromptItem(row.prompt, key, seen[key], row.reference, row.source)
        result.append(Drawn(item, samples, math.nan, 0, None))  # drawn at no temperature, in no try
        seen[key] += 1
    return result


def _row(
    row: GivenRow, case: Case, judge: Judge, fingerprint: dict[str, Any], config: JudgeBuildConfig
) -> dict[str, Any]:
    ranking = rank_case(case, config.tie_delta)
    indices = [response["index"] for response in row.responses]
    responses = []
    for i, response in enumerate(row.responses):
        first = case.duplicate_of[i]
        responses.append(
            {
                **response,
                "rank": ranking.ranks[i],
                "score": ranking.scores[i],
                # as `index` in the row, which need not be the place where the response was given
                "duplicate_of": None if first is None else indices[first],
                # an earlier judge's own answer is a response like any other here
                "source": "dataset" if response["source"] == "judge" else response["source"],
            }
        )
    if ranking.answer is not None:
        own = own_answer(ranking.answer, max(indices) + 1, judge)
        first = ranking.answer.duplicate_of
        responses.append(own | {"duplicate_of": None if first is None else indices[first]})
    return make_row(
        row.prompt,
        responses,
        ranking_method=judge.method,
        ranker=judge.name,
        status=ranking.status,
        reference=row.reference,
        agreement_w=ranking.agreement_w,
        agreement_tau=ranking.agreement_tau,
        source=row.source,
        provenance={
            "builder": f"tuna_trl {__version__} rank",
            "judge": fingerprint,
            "seed": config.seed,
            "occurrence": case.drawn.item.occurrence,
            "repeats": config.repeats,
            "tie_delta": config.tie_delta,
            "responses": row.origin,
        },
    )


def _replies(row: GivenRow, case: Case, judge: Judge) -> list[dict[str, Any]]:
    """The judgments of a row, naming responses by their `index`."""
    indices = [response["index"] for response in row.responses]
    return [
        reply | {"permutation": [indices[i] for i in reply["permutation"]]} for reply in judgment_rows(case, judge)
    ]
