"""Ranks for responses that are there already: a teacher scores them by teacher forcing, nothing is sampled.

    score(y) = sum over t of log p(y_t | x, y_<t) / |y| ** length_exponent

as in [`tuna_trl.build.teacher`]: natural logs in nats, temperature 1, raw logits, the end token counted. The tokens
are those the tokenizer makes of the text. The teacher runs here, on a Ray cluster, or behind a server that scores its
prompt. Rows go through one by one, so that neither input nor output has to fit into memory. Writes its journal and,
if it is asked to, the dataset's folder.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..clients.local_scorer import GivenScorer, TransformersScorer
from ..clients.prompt_logprobs import PromptScorer
from ..errors import InputError
from .cost import Budget
from .given import GivenRow, given_splits, read_given
from .journal import Journal
from .processes import Share, my_share
from .rank_rows import REASONS, count_unranked, describe_unranked, rank_row, said_unranked
from .ray_scoring import RayScorer
from .remote import check_spending
from .score_buckets import ScoreAsk, score_each
from .score_remote import score_remote
from .streamed import check_least, check_share, collected, written


if TYPE_CHECKING:
    from datasets import DatasetDict

__all__ = [
    "REASONS", "RankConfig", "count_unranked", "describe_unranked", "rank_by_teacher", "rank_folder", "rank_given",
    "refuse_anthropic",
]  # fmt: skip


@dataclass
class RankConfig:
    """How given responses are ranked by a teacher.

    Args:
        length_exponent: 1.0 scores the mean log-prob of a token (nats a token), 0.0 the sum, which favours short ones.
        tie_delta: responses within this distance of the first of their group share its rank (units of the score).
        rank_truncated: rank responses whose sampler cut them (finish reason `length`) like the others; they are scored
            without an end token either way.
        max_length: tokens that a prompt with one response may have; None: the model's context.
        batch_size: rows (a prompt with all its responses) in one forward pass (local teachers).
        bucket_size: rows scored and journalled as one (local teachers).
        window_size: rows that are in memory at once and among which buckets of like length are cut (local teachers).
        limit: only the first so many rows of each split.
        overwrite_ranks: take rows that another teacher ranked; its log-probs, scores and ranks are dropped.
        journal: an SQLite file; a run that finds its scores there goes on from them. None keeps it in memory. Several
            processes of one machine may share it.
        retry_failed: ask a server again, once, for what it did not answer in an earlier run.
        max_cost: cap in USD on a paid teacher, what the journal holds included; needed for one (`math.inf`: none).
        show_progress: progress on stderr, and at the end why which responses have no rank.

    Raises:
        InputError: a value is out of range.
    """

    length_exponent: float = 1.0
    tie_delta: float = 0.0
    rank_truncated: bool = False
    max_length: int | None = None
    batch_size: int = 8
    bucket_size: int = 64
    window_size: int = 4096
    limit: int | None = None
    overwrite_ranks: bool = False
    journal: str | Path | None = None
    retry_failed: bool = False
    max_cost: float | None = None
    show_progress: bool = True

    def __post_init__(self) -> None:
        least = {
            "length_exponent": 0, "tie_delta": 0, "max_length": 1, "batch_size": 1, "bucket_size": 1, "window_size": 1,
            "limit": 1, "max_cost": 0,
        }  # fmt: skip
        check_least(self, least)

    def ask(self) -> ScoreAsk:
        """What is asked of a local teacher."""
        return ScoreAsk(self.batch_size, self.max_length, self.bucket_size, self.window_size)


def rank_by_teacher(
    dataset: Any, model: Any, tokenizer: Any, config: RankConfig | None = None, *, name: str | None = None
) -> DatasetDict:
    """[`rank_given`] under a loaded causal language model.

    Args: as [`rank_given`], and

    Args:
        model: it is taught to score ([`tuna_trl.scoring.install`]).
        tokenizer: with a chat template.
        name: the teacher's id, for the rows; default: what it was loaded from.
    """
    return rank_given(dataset, TransformersScorer(model, tokenizer, name=name), config)


def rank_given(dataset: Any, teacher: GivenScorer | PromptScorer, config: RankConfig | None = None) -> DatasetDict:
    """Rank given responses by their length-normalised log-likelihood under a teacher.

    Equal texts share score and rank. A response that is empty (and was not ended so by its sampler, finish reason
    `stop`), too long, cut (unless `rank_truncated`), without a finite log-prob, or that a server did not score or puts
    otherwise than it is given, stays in its row without a rank; `provenance["unranked"]` says why, and
    [`count_unranked`] adds up. `status` of a row: `ok`; `partial` if some responses are not ranked; with fewer than
    two ranked of several `truncated` if one was cut, else `failed`.

    Args:
        dataset: a Dataset, an IterableDataset, a DatasetDict, a list of rows or a dict of them;
            [`tuna_trl.build.given.read_given`] says which rows are read. Ranks that they have are not looked at. Read
            twice (first to check every row), but for an iterator; never held in memory.
        teacher: a [`tuna_trl.clients.local_scorer.TransformersScorer`], a
            [`tuna_trl.clients.prompt_logprobs.PromptScorer`] (a server) or a [`tuna_trl.build.ray_scoring.RayScorer`].
        config: see [`RankConfig`].

    Returns:
        one split for each of `dataset` (`train` for a Dataset or a list), rows in the same order, with the columns of
        [`tuna_trl.data.schema.ranked_features`] and the ranking method `teacher_logprob`; beyond a thousand rows
        memory-mapped from a temporary file, which goes when the process ends.

    Raises:
        SchemaError: a row cannot be read; the message names it.
        InputError: another teacher has ranked some of the rows, and `overwrite_ranks` is not set; a paid teacher has
            no cap.
        BudgetExceeded: the next request could cost more than what is left of `max_cost`.
        BuildError: the server cannot score given text or is down, or the journal cannot be written.
    """
    run = _Ranking(dataset, teacher, config or RankConfig(), Share())
    result = collected(run)
    run.say_unranked()
    return result


def rank_folder(
    dataset: Any,
    teacher: GivenScorer | PromptScorer,
    path: str | Path,
    config: RankConfig | None = None,
    *,
    card: Mapping[str, Any] | None = None,
) -> Path:
    """As [`rank_given`], straight into a folder: shards are written as they fill, and the folder appears whole or not
    at all. The bytes are those that [`tuna_trl.data.hub.save_ranked`] would write.

    In several processes of one machine (`accelerate launch`, `torchrun`) a local teacher's buckets are shared out over
    one journal; the first process writes the folder.

    Args:
        path, card: see [`tuna_trl.data.hub.save_ranked`].

    Returns:
        the absolute path of the folder.

    Raises:
        InputError, BudgetExceeded, BuildError: see [`rank_given`] and [`tuna_trl.data.hub.save_ranked`].
    """
    config, share = config or RankConfig(), my_share()
    several = "A server or a Ray cluster is asked from one process: run it without the launcher."
    check_share(share, config.journal, several if isinstance(teacher, PromptScorer | RayScorer) else None)
    run = _Ranking(dataset, teacher, config, share)
    folder = written(run, path, share, card)
    if share.first:
        run.say_unranked()
    return folder


class _Ranking:
    """One run: input checked, then rows split by split as they are asked for."""

    def __init__(self, dataset: Any, teacher: Any, config: RankConfig, share: Share) -> None:
        self.given, self.teacher, self.config, self.share = given_splits(dataset), teacher, config, share
        self.fingerprint = teacher.fingerprint()
        self.unranked: Counter[str] = Counter()
        self.responses = 0
        self.budget = Budget(math.inf if config.max_cost is None else config.max_cost)
        if isinstance(teacher, RayScorer) and any(isinstance(rows, Iterator) for rows in self.given.values()):
            raise InputError("`dataset` is an iterator, and Ray's engine reads it thrice: pass a Dataset or a list.")
        self.counts = self._check()
        if isinstance(teacher, PromptScorer):
            check_spending(teacher, config.max_cost, config.journal)

    def journal(self) -> Journal:
        return Journal(self.config.journal or ":memory:")

    def splits(self, journal: Journal) -> Iterator[tuple[str, Iterable[dict[str, Any]]]]:
        """Name and rows of each split; the rows of one before the next."""
        for split in self.given:
            yield split, self._ranked(split, journal)

    def say_unranked(self) -> None:
        """On stderr, why which responses have no rank."""
        if self.config.show_progress and (said := said_unranked(self.unranked, self.responses)):
            from rich.console import Console

            Console(stderr=True, highlight=False, soft_wrap=True).print(said, markup=False)

    def _ranked(self, split: str, journal: Journal) -> Iterator[dict[str, Any]]:
        for row, found in self._scored(split, journal):
            ranked = rank_row(row, found, name=self.teacher.name, fingerprint=self.fingerprint, config=self.config)
            self.unranked.update(ranked["provenance"]["unranked"])
            self.responses += ranked["num_responses"]
            yield ranked

    def _scored(self, split: str, journal: Journal) -> Iterator[tuple[GivenRow, list[dict[str, Any]]]]:
        config = self.config
        shared: dict[str, Any] = dict(journal=journal, total=self.counts[split], show_progress=config.show_progress)
        if isinstance(self.teacher, PromptScorer):
            options: dict[str, Any] = dict(budget=self.budget, retry=config.retry_failed, max_length=config.max_length)
            return score_remote(self._rows(split), self.teacher, **options, **shared)
        ask = config.ask()
        shared["fingerprint"] = self.fingerprint
        if isinstance(self.teacher, RayScorer):
            self.teacher.fill(self._rows(split), ask, **shared)
        return score_each(self._rows(split), self.teacher, ask, share=self.share, **shared)

    def _rows(self, split: str) -> Iterator[GivenRow]:
        """The rows as they come; those of an iterator have not been looked at before."""
        for row in read_given(self.given[split], f"split {split!r}", self.config.limit):
            if self.counts[split] is None:
                self._refuse(Counter(self._other_teacher(row)))
            yield row

    def _check(self) -> dict[str, int | None]:
        """Read every row once, so that a bad one stops the run before anything is scored; returns how many there are,
        None for an iterator."""
        counts: dict[str, int | None] = {}
        others: Counter[str] = Counter()
        for split, rows in self.given.items():
            counts[split] = None
            if isinstance(rows, Iterator):
                continue
            count = 0
            for row in read_given(rows, f"split {split!r}", self.config.limit):
                count += 1
                others.update(self._other_teacher(row))
            counts[split] = count
        self._refuse(others)
        return counts

    def _other_teacher(self, row: GivenRow) -> list[str]:
        """The other teacher that has ranked the row, if one has."""
        weights = self.fingerprint.get("weights")
        if self.config.overwrite_ranks or row.teacher is None:
            return []
        name, theirs = row.teacher
        if name != self.teacher.name:
            return [repr(name)]
        return [] if theirs is None or theirs == weights else [f"{name!r} with other weights"]

    def _refuse(self, others: Counter[str]) -> None:
        """Log-probs of two models are no common scale, and neither are ranks made of them."""
        if others:
            told = ", ".join(f"{count} by {other}" for other, count in others.most_common(5))
            raise InputError(
                f"`dataset` holds rows that another teacher than {self.teacher.name!r} has ranked ({told}). Scores of "
                "two teachers are never mixed: set `overwrite_ranks` (--overwrite-ranks) to drop theirs and rank "
                "every row anew."
            )


def refuse_anthropic(name: str) -> None:
    """Raise an [`InputError`] that says why, if `name` names a model behind Anthropic's API."""
    if name == "claude" or name.startswith(("claude-", "anthropic/", "anthropic:")):
        raise InputError(
            f"--teacher {name!r}: Anthropic's API returns no log-probabilities, and a teacher ranks by nothing else. "
            "Name a local model or a Hub id, or let Claude read and rank instead: tuna-trl build judge --judge "
            f"{name.removeprefix('anthropic/').removeprefix('anthropic:')}."
        )
