"""Probabilistic ranking (Tuna paper, section 3.1): a teacher draws N responses, its own log-likelihood ranks them.

    score(y) = sum over t of log p(y_t | x, y_<t) / |y| ** length_exponent

Natural logs in nats, at temperature 1 from raw logits, whatever the temperature y was drawn at; |y| counts the scored
tokens, the end token among them when it was produced. Prompts go through in windows and rows out in shards, so that
neither has to fit into memory. Writes its journal and, if it is asked to, the dataset's folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..clients.base import RemoteSampler, Sampler, Sampling
from ..errors import InputError
from .buckets import Ask, Drawn
from .cost import Budget
from .items import as_splits, check_rows, read_items
from .journal import Journal
from .processes import Share, my_share
from .ray_engine import RaySampler
from .remote import ask_each, check_spending
from .sampling import draw_each
from .streamed import check_least, check_share, collected, written
from .teacher_rows import row_failed, sum_logprob, teacher_row


if TYPE_CHECKING:
    from datasets import DatasetDict

__all__ = ["TeacherBuildConfig", "build_teacher_folder", "build_teacher_ranked", "sum_logprob"]


@dataclass
class TeacherBuildConfig:
    """How responses are drawn and ranked by their teacher.

    Args:
        num_responses: N, responses a prompt.
        temperature, top_p, top_k: how they are drawn; 1, 1, 0 draws from the teacher's own distribution. The scores
            are at temperature 1 whatever these are.
        max_new_tokens: tokens of a response at most, the end token included.
        seed: of the whole build; every sample has its own, derived from it.
        length_exponent: 1.0 scores the mean log-prob of a token (nats a token), 0.0 the sum, which favours short ones.
        rank_truncated: rank responses cut at `max_new_tokens` like the others; by default they get no rank.
        tie_delta: responses within this distance of the first of their group share its rank (units of the score).
        bucket_size: prompts drawn together and journalled as one (local teachers).
        window_size: prompts that are in memory at once and among which buckets of similar length are cut (local
            teachers). Like `bucket_size` it decides what is in one forward pass, and so the last bits of the floats.
        limit: only the first so many prompts of each split. A longer build goes on from what a limited one received.
        journal: an SQLite file; a build that finds its replies there goes on from them. None keeps the journal in
            memory, so that a build that dies begins anew. Several processes of one machine may share it.
        retry_failed: ask again, once and with new seeds, for rows that came out as `failed`.
        max_cost: cap in USD on a paid teacher, what the journal holds included; needed for one (`math.inf`: none).
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
    length_exponent: float = 1.0
    rank_truncated: bool = False
    tie_delta: float = 0.0
    bucket_size: int = 16
    window_size: int = 4096
    limit: int | None = None
    journal: str | Path | None = None
    retry_failed: bool = False
    max_cost: float | None = None
    show_progress: bool = True

    def __post_init__(self) -> None:
        least = {
            "num_responses": 1, "temperature": 0, "top_k": 0, "max_new_tokens": 1, "length_exponent": 0,
            "tie_delta": 0, "bucket_size": 1, "window_size": 1, "limit": 1, "max_cost": 0,
        }  # fmt: skip
        check_least(self, least)
        if not 0 < self.top_p <= 1:
            raise InputError(f"TeacherBuildConfig: `top_p` is {self.top_p}, expected (0, 1]; 1 cuts nothing.")
        if self.temperature == 0 and self.num_responses > 1:
            raise InputError(
                f"TeacherBuildConfig: `temperature` is 0, so that all {self.num_responses} responses to a prompt "
                "would be the same. Raise it (1.0 is the default) or set `num_responses=1`."
            )


def build_teacher_ranked(
    prompts: Any, teacher: Sampler | RemoteSampler, config: TeacherBuildConfig | None = None
) -> DatasetDict:
    """Draw N responses to each prompt from `teacher` and rank them by their length-normalised log-likelihood.

    A response that was cut (finish reason `length`) keeps its log-prob but gets neither score nor rank, unless
    `rank_truncated`. One with a missing, non-finite or placeholder log-prob (-9999) gets none of the three. Equal
    texts share score and rank of the first of them that has any. `status` of a row: `ok`; `partial` if some responses
    are not ranked; with fewer than two ranked ones `truncated`, or `failed` if none was cut. A response that a server
    did not give is left out; `provenance` says why (`failures`).

    Args:
        prompts: a Dataset, an IterableDataset, a DatasetDict or a list of rows with `prompt` (a string or messages)
            and, if there are any, `reference` and `source`. Read twice (first to check every row), but for an
            iterator; never held in memory.
        teacher: draws the responses, with log-probs.
        config: see [`TeacherBuildConfig`].

    Returns:
        one split for each split of `prompts` (`train` for a Dataset or a list), rows in the order of the prompts,
        with the columns of [`tuna_trl.data.schema.ranked_features`]; beyond a thousand rows memory-mapped from a
        temporary file, which goes when the process ends.

    Raises:
        InputError: prompts or config are not usable, or a paid teacher has no cap.
        BudgetExceeded: the next request could cost more than what is left of `max_cost`.
        BuildError: the teacher did not return what was asked for, or the journal cannot be written.
    """
    return collected(TeacherBuild(prompts, teacher, config or TeacherBuildConfig(), Share()))


def build_teacher_folder(
    prompts: Any,
    teacher: Sampler | RemoteSampler,
    path: str | Path,
    config: TeacherBuildConfig | None = None,
    *,
    card: Mapping[str, Any] | None = None,
) -> Path:
    """As [`build_teacher_ranked`], straight into a folder: rows are written as they are made, and the folder appears
    whole or not at all. The bytes are those that [`tuna_trl.data.hub.save_ranked`] would write.

    In several processes (`accelerate launch`, `torchrun`; one machine) each draws buckets that the others have not
    begun, from one journal; the first process writes the folder when all is drawn, the others return when nothing is
    left to begin, perhaps before it stands. The rows are those of one process.

    Args: as [`build_teacher_ranked`], and

    Args:
        path: see [`tuna_trl.data.hub.save_ranked`].
        card: see there.

    Returns:
        the absolute path of the folder.

    Raises:
        InputError, BudgetExceeded, BuildError: see [`build_teacher_ranked`] and [`tuna_trl.data.hub.save_ranked`].
    """
    config, share = config or TeacherBuildConfig(), my_share()
    several = "A server is asked from one process, with as many requests at once as `concurrency` says."
    check_share(share, config.journal, several if isinstance(teacher, RemoteSampler) else None)
    return written(TeacherBuild(prompts, teacher, config, share), path, share, card)


class TeacherBuild:
    """One build: input checked, then rows split by split as they are asked for. `dry_run.py` asks for none."""

    def __init__(self, prompts: Any, teacher: Any, config: TeacherBuildConfig, share: Share) -> None:
        self.teacher, self.config, self.share = teacher, config, share
        self.remote = isinstance(teacher, RemoteSampler)
        self.sampling = Sampling(config.temperature, config.top_p, config.top_k, config.max_new_tokens)
        self.prompts = as_splits(prompts)
        self.counts = check_rows(self.prompts, limit=config.limit)
        if isinstance(teacher, RaySampler) and None in self.counts.values():
            raise InputError("`prompts` is an iterator, and Ray's engine reads it thrice: pass a Dataset or a list.")
        self.provenance = _provenance(teacher, self.sampling, config)
        self.ask = Ask(config.num_responses, self.sampling, config.seed, config.bucket_size)

    def journal(self) -> Journal:
        return Journal(self.config.journal or ":memory:")

    def splits(self, journal: Journal) -> Iterator[tuple[str, Iterable[dict[str, Any]]]]:
        """Name and rows of each split; the rows of one before the next."""
        config = self.config
        if self.remote:
            check_spending(self.teacher, config.max_cost, config.journal)
        budget = Budget(math.inf if config.max_cost is None else config.max_cost)
        for name, rows in self.prompts.items():
            shared: dict[str, Any] = dict(
                journal=journal,
                finish=self._row,
                failed=lambda drawn: row_failed(drawn, config),
                retry=config.retry_failed,
                total=self.counts[name],
                show_progress=config.show_progress,
            )
            items = read_items(rows, limit=config.limit)
            if self.remote:
                yield name, ask_each(items, self.teacher, self.ask, budget=budget, **shared)
            else:
                options: dict[str, Any] = dict(split=name, window_size=config.window_size, share=self.share)
                if isinstance(self.teacher, RaySampler):
                    again = read_items(rows, limit=config.limit)
                    self.teacher.fill(again, self.ask, journal, name, config.window_size, config.show_progress)
                yield name, draw_each(items, self.teacher, self.ask, **options, **shared)

    def _row(self, drawn: Drawn) -> dict[str, Any]:
        return teacher_row(drawn, self.teacher.name, self.config, self.provenance)


def _provenance(teacher: Any, sampling: Sampling, config: TeacherBuildConfig) -> dict[str, Any]:
    """What the rows came from; no time stamps, so that the same build gives the same bytes."""
    fingerprint = teacher.fingerprint()
    local = {"bucket_size": config.bucket_size, "window_size": config.window_size}
    return {
        "builder": f"tuna_trl {__version__} teacher",
        "generator": fingerprint,
        "sampling": asdict(sampling),
        "seed": config.seed,
        **({} if isinstance(teacher, RemoteSampler) else local),
        "length_exponent": config.length_exponent,
        # Whether the end token counts is the client's to say: some servers leave it out of their log-probs.
        "include_eos": fingerprint.get("include_eos", True),
        "rank_truncated": config.rank_truncated,
        "tie_delta": config.tie_delta,
    }
