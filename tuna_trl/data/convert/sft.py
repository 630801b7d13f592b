"""Ranked rows as prompt and completion, for TRL's SFTTrainer: the best response of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..fitting import TRAINED_STATUSES
from .conversion import NamedRow, converted
from .pairs import ranked_rows
from .preference_export import answer, messages_feature


if TYPE_CHECKING:
    from datasets import Features


def sft_features() -> Features:
    """The columns of [`to_sft`]."""
    from datasets import Features, Value

    return Features({"prompt_id": Value("string"), "prompt": messages_feature(), "completion": messages_feature()})


def to_sft(dataset: Any, *, statuses: Collection[str] = TRAINED_STATUSES, tally: Counter[str] | None = None) -> Any:
    """Each prompt with its best response, conversational; of several that share rank 1, the first drawn.

    Args:
        dataset: ranked rows, in any form that [`import_ranked`] returns.
        statuses: rows of other statuses are left out.
        tally: counts what was left out, by reason.

    Returns:
        `prompt_id`, `prompt`, `completion` (messages); in the form of `dataset`.

    Raises:
        SchemaError: a row is wrong.
    """
    tally = Counter() if tally is None else tally

    def convert(rows: Iterator[NamedRow]) -> Iterator[dict[str, Any]]:
        for _, row in ranked_rows(rows, statuses, tally):
            best: Mapping[str, Any] = row["responses"][0] if row["responses"] else {"rank": None}
            if best["rank"] is None:
                tally["no ranked response"] += 1
                continue
            yield {
                "prompt_id": row["prompt_id"],
                "prompt": row["prompt"],
                "completion": answer(best["content"]),
            }

    return converted(dataset, convert, sft_features)
