"""stanfordnlp/SHP: two comments on one Reddit post, of which the later one has more upvotes.

Source: `post_id`, `domain`, `upvote_ratio`, `history` (the post), `c_root_id_A` and `_B`, `created_at_utc_A` and `_B`,
`score_A` and `_B`, `human_ref_A` and `_B`, `labels` (1: A is preferred), `seconds_difference`, `score_ratio`.
Score and rank: `labels` ranks, 1 and 2, without ties; `score_A` and `score_B` (upvotes less downvotes) are the scores.
Oddities: a post comes back in many rows, one a pair. They are not made one list: that a comment has more upvotes than
one written before it says nothing of the pairs left out, where the older one has more. SHP's card advises pairs with
`score_ratio` of 2 or more, and few of them a post. Licence: Reddit's API terms; see the card.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import SchemaError
from .shape import Row, Shape, by_index, imported, optional_number, optional_text, shown, text


def _read(row: Mapping[str, Any]) -> Row:
    label = row["labels"]
    if label not in (0, 1):
        raise SchemaError(f"column 'labels' is {shown(label)}, expected 1 (A is preferred) or 0.")
    scores = [optional_number(row, f"score_{side}") for side in "AB"]
    a, b = scores
    if a is not None and b is not None and (a - b) * (1 if label else -1) < 0:
        raise SchemaError(f"column 'labels' is {label}, but the scores of A and B are {a} and {b}.")
    responses = [
        {"content": text(row, f"human_ref_{side}"), "score": score, "rank": 1 if (side == "A") == bool(label) else 2}
        for side, score in zip("AB", scores, strict=True)
    ]
    return imported(text(row, "history"), responses, method="human", source=optional_text(row, "domain"))


def _write(row: Mapping[str, Any], hint: Mapping[str, Any]) -> Row:
    a, b = by_index(row)
    return {
        "history": row["prompt"][0]["content"],
        "domain": row["source"],
        "human_ref_A": a["content"],
        "human_ref_B": b["content"],
        "score_A": a["score"],
        "score_B": b["score"],
        "labels": int(a["rank"] < b["rank"]),
    }


SHP = Shape("shp", ("history", "human_ref_A", "human_ref_B", "labels"), _read, _write)
