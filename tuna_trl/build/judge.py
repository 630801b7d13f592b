"""Contextual ranking (Tuna, arXiv 2310.13385): a student's own responses, ranked by a judge that reads them.

Samples come from `sampling.py`, questions and ranks from `case.py`, replies from `judging.py`; this file strings them
together and makes rows. Touches the journal and the clients that it is given, no more.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..clients.base import Judge, Sampler, Sampling, Usage
from ..clients.verdicts import labels
from ..data.schema import judgment_features, make_row, ranked_features
from ..errors import InputError
from .case import Case, OwnAnswer, make_case, rank_case
from .cost import Budget
from .items import PromptItem, as_splits, prompt_items
from .journal import Journal
from .judging import Question, ask_all
from .sampling import Diversity, Drawn, draw
from .streamed import check_least
from .teacher import sum_logprob


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features


@dataclass(frozen=True)
class JudgeBuildConfig:
    """How responses are sampled and judged.

    Args:
        num_responses: responses a prompt (the paper: 4).
        temperature, top_p, top_k, max_new_tokens: see [`tuna_trl.clients.base.Sampling`].
        seed: of the samples and of the order in which candidates are shown.
        rouge_threshold: a set of responses with a pair of this ROUGE-L F or more is drawn again (the released code:
            0.8); None keeps what comes first.
        temperature_step, max_tries: each redraw adds the step to the temperature; the set with the lowest mean ROUGE-L
            of all tries is kept (the released code: 0.1, 3).
        rouge_tokenizer: "rouge" knows a-z and 0-9 only; "unicode" every script (Chinese, Arabic, ...).
        bucket_size: prompts a sampler's call; part of what makes a resumed build identical.
        repeats: judgments a row, each in another order of the candidates; with as many repeats as distinct responses
            each response stands at each place once. With a judge that compares pairs, each repeat asks about every
            pair in both orders; with one that reads candidates one by one, about each of them.
        tie_delta: scores within this distance of their group's first tie. With `repeats=1` and `tie_delta=0` the
            judge's own ranking, if its protocol has one, decides between equal scores.
        max_malformed: how often a malformed verdict is asked for again (2 = at most three requests).
        max_cost: cap in USD on the judge, what the journal holds included; a paid judge needs one (`math.inf`: none).
        stop_over_budget: end with an error when the next request does not fit under the cap; False goes on with what
            does, and rows that it did not reach have the status `over_budget`.
        batch: ask the judge in batches, where its provider has them: half the price, answers within a day.
        batch_requests: requests of one batch at most; None = as many as the provider takes.
        batch_poll: seconds between two looks at an open batch.
        limit: the first so many prompts of each split only; None = all.
        journal: the SQLite file that every sample and reply is written to; a paid judge needs one. None = memory.
        show_progress: progress on stderr.

    Raises:
        InputError: a value is out of range.
    """

    num_responses: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    seed: int = 0
    rouge_threshold: float | None = 0.8
    temperature_step: float = 0.1
    max_tries: int = 3
    rouge_tokenizer: str = "rouge"
    bucket_size: int = 16
    repeats: int = 1
    tie_delta: float = 0.0
    max_malformed: int = 2
    max_cost: float | None = None
    stop_over_budget: bool = True
    batch: bool = False
    batch_requests: int | None = None
    batch_poll: float = 60.0
    limit: int | None = None
    journal: str | Path | None = None
    show_progress: bool = True

    def __post_init__(self) -> None:
        least = {
            "num_responses": 1, "temperature": 0, "top_k": 0, "max_new_tokens": 1, "temperature_step": 0,
            "max_tries": 1, "bucket_size": 1, "repeats": 1, "tie_delta": 0, "max_malformed": 0, "max_cost": 0,
            "limit": 1, "batch_requests": 1, "batch_poll": 0,
        }  # fmt: skip
        check_least(self, least)
        if not 0 < self.top_p <= 1:
            raise InputError(f"JudgeBuildConfig: `top_p` is {self.top_p}, expected (0, 1]; 1 cuts nothing.")
        if self.rouge_threshold is not None and not 0 < self.rouge_threshold <= 1:
            raise InputError(
                f"JudgeBuildConfig: `rouge_threshold` is {self.rouge_threshold}, expected (0, 1]; None checks nothing."
            )
        if self.temperature == 0 and self.num_responses > 1:
            raise InputError(
                f"JudgeBuildConfig: `temperature` is 0, so that all {self.num_responses} responses to a prompt would "
                "be the same. Raise it (1.0 is the default)."
            )


def build_judge_ranked(
    prompts: Any, student: Sampler, judge: Judge, config: JudgeBuildConfig | None = None
) -> DatasetDict:
    """Sample N responses to each prompt from `student` and have `judge` rank them.

    Args:
        prompts: a Dataset, a DatasetDict or a list of rows with `prompt` (a string or messages) and, if the judge
            needs one, `reference`.
        student: draws the responses.
        judge: scores them.
        config: see [`JudgeBuildConfig`].

    Returns:
        one split for each split of `prompts` (`train` for a Dataset or a list), rows in the order of the prompts.

    Raises:
        InputError: prompts or config are not usable, before anything is sampled or spent where that can be seen.
        BudgetExceeded: the next request could cost more than what is left of `max_cost`.
        BuildError: the judge gave no reply, or the journal cannot be written.
    """
    return judge_builds(prompts, student, judge, config)[0]


def judge_builds(
    prompts: Any, student: Sampler, judge: Judge, config: JudgeBuildConfig | None = None
) -> tuple[DatasetDict, DatasetDict]:
    """As [`build_judge_ranked`], with the judgments: one row a reply, from which every rank can be computed again.

    Args: as [`build_judge_ranked`].

    Returns:
        (ranked rows, judgments), both with the splits of `prompts`. A row that could not be judged keeps its
        responses, with neither rank nor score, and says why in `status`; a row of which only some repeats (or some
        responses) could be judged is `partial`. Equal responses are not judged: they share rank 1, without a score.
        Where the judge ranks its own answer too, that of the first repeat that could be read is one more response,
        with `source` "judge", the judge's name as its `model` and the score that it got there.
    """
    from datasets import DatasetDict

    config = config or JudgeBuildConfig()
    check_judge_spending(judge, config)
    items = {name: prompt_items(rows, limit=config.limit) for name, rows in as_splits(prompts).items()}
    if judge.method == "reference":
        check_references(items)
    with Journal(config.journal or ":memory:") as journal:
        cases = {
            split: [
                make_case(drawn, where=f"{split}[{i}]", seed=config.seed, repeats=config.repeats, orders=judge.orders)
                for i, drawn in enumerate(_draw(some, student, config, journal))
            ]
            for split, some in items.items()
        }
        ask_about(cases, judge, config, journal)
    generator = student.fingerprint()  # once a build: it reads every weight
    ranked, judgments = DatasetDict(), DatasetDict()
    for split, some in cases.items():
        ranked[split] = dataset_of([_row(case, student, generator, judge, config) for case in some], ranked_features())
        replies = [row for case in some for row in judgment_rows(case, judge)]
        judgments[split] = dataset_of(replies, judgment_features())
    return ranked, judgments


def _draw(items: list[PromptItem], student: Sampler, config: JudgeBuildConfig, journal: Journal) -> list[Drawn]:
    diversity = None
    if config.rouge_threshold is not None:
        diversity = Diversity(
            config.rouge_threshold, config.temperature_step, config.max_tries, config.rouge_tokenizer
        )
    return draw(
        items,
        student,
        n=config.num_responses,
        sampling=Sampling(config.temperature, config.top_p, config.top_k, config.max_new_tokens),
        seed=config.seed,
        journal=journal,
        bucket_size=config.bucket_size,
        diversity=diversity,
        show_progress=config.show_progress,
    )


def ask_about(cases: dict[str, list[Case]], judge: Judge, config: JudgeBuildConfig, journal: Journal) -> None:
    """Have every question answered; the same question in two splits is asked once."""
    unique: dict[str, Question] = {}
    same: list[tuple[Question, Question]] = []
    for case in (case for some in cases.values() for case in some):
        for question in case.questions:
            first = unique.setdefault(question.key(judge, 0), question)
            if first is not question:
                same.append((question, first))
    provider: Any = judge  # only some have a batch API; whether this one has was checked with the config
    transport = provider.batch(max_requests=config.batch_requests) if config.batch else None
    ask_all(
        list(unique.values()),
        judge,
        journal=journal,
        budget=Budget(math.inf if config.max_cost is None else config.max_cost),
        max_malformed=config.max_malformed,
        show_progress=config.show_progress,
        batch=transport,
        poll=config.batch_poll,
        stop_over_budget=config.stop_over_budget,
    )
    for question, first in same:
        question.answers.extend(first.answers)


def _row(
    case: Case, student: Sampler, generator: dict[str, Any], judge: Judge, config: JudgeBuildConfig
) -> dict[str, Any]:
    drawn, ranking = case.drawn, rank_case(case, config.tie_delta)
    responses = []
    for i, sample in enumerate(drawn.samples):
        responses.append(
            {
                "index": i,
                "rank": ranking.ranks[i],
                "score": ranking.scores[i],
                "model": student.name,
                "content": sample.text,
                "logprob": sum_logprob(sample),
                "num_tokens": len(sample.token_logprobs) or sample.usage.output or None,
                "finish_reason": sample.finish_reason,
                "duplicate_of": case.duplicate_of[i],
                "source": "student",
            }
        )
    if ranking.answer is not None:
        responses.append(own_answer(ranking.answer, len(responses), judge))
    return make_row(
        drawn.item.prompt,
        responses,
        ranking_method=judge.method,
        ranker=judge.name,
        status=ranking.status,
        reference=drawn.item.reference,
        agreement_w=ranking.agreement_w,
        agreement_tau=ranking.agreement_tau,
        source=drawn.item.source,
        provenance=_provenance(drawn, generator, judge, config),
    )


def own_answer(answer: OwnAnswer, index: int, judge: Judge) -> dict[str, Any]:
    """The judge's own answer as one more response of its row."""
    return {
        "index": index,
        "rank": answer.rank,
        "score": answer.score,
        "model": judge.name,
        "content": answer.text,
        "duplicate_of": answer.duplicate_of,
        "source": "judge",
    }


def _provenance(drawn: Drawn, generator: dict[str, Any], judge: Judge, config: JudgeBuildConfig) -> dict[str, Any]:
    """What the row came from; no time stamps, so that the same build gives the same bytes."""
    sampling = Sampling(drawn.temperature, config.top_p, config.top_k, config.max_new_tokens)
    return {
        "builder": f"tuna_trl {__version__} judge",
        "generator": generator,
        "sampling": asdict(sampling) | {"tries": drawn.tries, "max_rouge_l": drawn.max_rouge},
        "judge": judge.fingerprint(),
        "seed": config.seed,
        "occurrence": drawn.item.occurrence,
        "repeats": config.repeats,
        "tie_delta": config.tie_delta,
    }


def judgment_rows(case: Case, judge: Judge) -> list[dict[str, Any]]:
    """One row a reply, malformed ones that were asked for again included."""
    return [
        {
            "prompt_id": case.drawn.item.prompt_id,
            "occurrence": case.drawn.item.occurrence,
            "repeat": question.request.repeat,
            "attempt": attempt,
            "judge": judge.name,
            "permutation": list(question.permutation),
            "labels": list(labels(len(question.permutation))),
            "scores": list(answer.verdict.scores),
            "status": answer.verdict.status,
            "raw": answer.reply.raw.encode("utf-8", "backslashreplace").decode(),  # half a pair has no UTF-8
            "stop_reason": answer.reply.stop_reason,
            "request_id": answer.reply.request_id,
            "usage": asdict(answer.reply.usage),
            "cost": answer.cost,
        }
        for question in case.questions
        for attempt, answer in enumerate(question.answers)
    ]


def dataset_of(rows: list[dict[str, Any]], features: Features) -> Dataset:
    """Rows as a Dataset; column by column, because `Dataset.from_list([], features=...)` raises."""
    from datasets import Dataset

    return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)


def check_judge_spending(judge: Judge, config: JudgeBuildConfig) -> None:
    """A paid judge is asked only with a cap and a journal; all before the first sample is drawn."""
    if config.batch and not hasattr(judge, "batch"):
        raise InputError(f"{judge.name} cannot be asked in batches: set JudgeBuildConfig(batch=False), the default.")
    if not judge.paid:
        return
    if config.max_cost is None:
        raise InputError(
            f"{judge.name} costs money: set JudgeBuildConfig(max_cost=...) in USD, the most that this build may spend "
            "(--max-cost; math.inf for no cap)."
        )
    if config.journal is None:
        raise InputError(
            f"{judge.name} costs money: set JudgeBuildConfig(journal='<file>'), where every reply is kept, so that a "
            "build that stops half-way pays for nothing twice."
        )
    if math.isfinite(config.max_cost) and judge.cost(Usage(input=1, output=1)) is None:
        raise InputError(
            f"The price of {judge.name} is not known, so max_cost={config.max_cost:g} cannot be kept. Give its prices "
            "in a YAML file (prices=...), or lift the cap with max_cost=math.inf."
        )


def check_references(items: dict[str, list[PromptItem]]) -> None:
    """The reference judge needs a reference in every row, and is to say so before hours of sampling."""
    for split, some in items.items():
        missing = [i for i, item in enumerate(some) if item.reference is None]
        if missing:
            raise InputError(
                f"{split}[{missing[0]}]: column 'reference' is missing or null ({len(missing)} of {len(some)} rows), "
                "and the reference judge compares responses with it. Mend it with dataset.rename_column(<your "
                "answers>, 'reference') or dataset.filter(lambda row: row['reference'] is not None), or use a judge "
                "that reads without one (AnthropicJudge)."
            )
