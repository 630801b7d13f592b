"""Ranked rows as preference pairs, for TRL's DPOTrainer and RewardTrainer (and whoever reads `chosen`, `rejected`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from ..fitting import TRAINED_STATUSES
from .conversion import NamedRow, converted
from .pairs import pair_chooser, ranked_rows


if TYPE_CHECKING:
    from datasets import Features


def preference_features() -> Features:
    """The columns of [`to_preference`]."""
    from datasets import Features, Value

    score = {"score_chosen": Value("float64"), "score_rejected": Value("float64")}
    pair = {"prompt": messages_feature(), "chosen": messages_feature(), "rejected": messages_feature()}
    return Features({"prompt_id": Value("string"), **pair, **score})


def messages_feature() -> Any:
    """A list of messages."""
    from datasets import List, Value

    return List({"role": Value("string"), "content": Value("string")})


def answer(content: str) -> list[dict[str, str]]:
    """A response as messages."""
    return [{"role": "assistant", "content": content}]


def to_preference(
    dataset: Any,
    *,
    pairs: str = "best-worst",
    min_gap: float | None = None,
    statuses: Collection[str] = TRAINED_STATUSES,
    tally: Counter[str] | None = None,
) -> Any:
    """Pairs of the responses of each row, conversational, with an explicit prompt.

    Ties never make a pair, nor do two responses with the same words; unranked responses are in none.

    Args:
        dataset: ranked rows, in any form that [`import_ranked`] returns.
        pairs, min_gap: see [`tuna_trl.data.convert.pairs.pair_chooser`].
        statuses: rows of other statuses are left out.
        tally: counts what was left out, by reason.

    Returns:
        `prompt_id`, `prompt`, `chosen`, `rejected` (messages), `score_chosen`, `score_rejected`; in the form of
        `dataset`. A row may give no pair, or several.

    Raises:
        InputError: `pairs` or `min_gap` is wrong.
        SchemaError: a row is wrong.
    """
    choose = pair_chooser(pairs, min_gap)
    tally = Counter() if tally is None else tally

    def convert(rows: Iterator[NamedRow]) -> Iterator[dict[str, Any]]:
        for _, row in ranked_rows(rows, statuses, tally):
            chosen = choose(row)
            tally["no pair"] += not chosen
            for better, worse in chosen:
                yield {
                    "prompt_id": row["prompt_id"],
                    "prompt": row["prompt"],
                    "chosen": answer(better["content"]),
                    "rejected": answer(worse["content"]),
                    "score_chosen": better["score"],
                    "score_rejected": worse["score"],
                }

    return converted(dataset, convert, preference_features)
