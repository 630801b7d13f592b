"""Ranked rows as single answers that are good or not, for TRL's KTOTrainer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ..fitting import TRAINED_STATUSES
from .conversion import NamedRow, converted
from .pairs import ranked_rows
from .preference_export import answer, messages_feature


if TYPE_CHECKING:
    from datasets import Features


def kto_features() -> Features:
    """The columns of [`to_kto`]."""
    from datasets import Features, Value

    texts = {"prompt": messages_feature(), "completion": messages_feature()}
    return Features({"prompt_id": Value("string"), **texts, "label": Value("bool"), "score": Value("float64")})


def to_kto(
    dataset: Any,
    *,
    threshold: float | None = None,
    statuses: Collection[str] = TRAINED_STATUSES,
    tally: Counter[str] | None = None,
) -> Any:
    """Each response with a label: desirable or not.

    The rule: without a threshold, the responses of the best rank of a row are desirable, those of its worst rank are
    not, and those between are left out; a row whose ranked responses all tie gives none. With a threshold, a ranked
    response is desirable if its score is at least that; one without a score is left out. Scores are comparable only
    within a row unless they are ratings on one scale (1 to 5, say): use a threshold for those only.

    Args:
        dataset: ranked rows, in any form that [`import_ranked`] returns.
        threshold: in units of the scores.
        statuses: rows of other statuses are left out.
        tally: counts what was left out, by reason.

    Returns:
        `prompt_id`, `prompt`, `completion` (messages), `label`, `score`; in the form of `dataset`.

    Raises:
        InputError: `threshold` is not finite.
        SchemaError: a row is wrong.
    """
    if threshold is not None and not math.isfinite(threshold):
        raise InputError(f"`threshold` is {threshold!r}, expected a finite number in units of the scores.")
    tally = Counter() if tally is None else tally

    def convert(rows: Iterator[NamedRow]) -> Iterator[dict[str, Any]]:
        for _, row in ranked_rows(rows, statuses, tally):
            ranked = [response for response in row["responses"] if response["rank"] is not None]
            for response in ranked:
                if threshold is not None:
                    label = None if response["score"] is None else response["score"] >= threshold
                else:
                    label = _by_rank(response["rank"], ranked[0]["rank"], ranked[-1]["rank"])
                if label is None:
                    tally["neither good nor bad"] += 1
                    continue
                yield {
                    "prompt_id": row["prompt_id"],
                    "prompt": row["prompt"],
                    "completion": answer(response["content"]),
                    "label": label,
                    "score": response["score"],
                }

    return converted(dataset, convert, kto_features)


def _by_rank(rank: int, best: int, worst: int) -> bool | None:
    if best == worst or rank not in (best, worst):
        return None
    return rank == best
