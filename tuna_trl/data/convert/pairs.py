"""Which responses of a ranked row make pairs, and which rows are exported at all. Pure.

A pair is two ranked responses with different ranks and different words: ties never make one, and a text is never
preferred to itself (white space apart).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

from ...errors import InputError, did_you_mean
from ..schema import ROW_COLUMNS, STATUSES, normalise_row
from .conversion import NamedRow


Response = Mapping[str, Any]
PAIRS = ("best-worst", "adjacent", "all")


def ranked_rows(rows: Iterable[NamedRow], statuses: Collection[str], tally: Counter[str]) -> Iterator[NamedRow]:
    """The rows with one of these statuses; a row of the user's own is normalised. The others are counted.

    Raises:
        SchemaError: a row is wrong.
        InputError: `statuses` names one that does not exist.
    """
    for status in statuses:
        if status not in STATUSES:
            raise InputError(
                f"`statuses` has {status!r}, expected some of {', '.join(STATUSES)}.{did_you_mean(status, STATUSES)}"
            )
    for where, row in rows:
        full = row if all(column in row for column in ROW_COLUMNS) else normalise_row(row, where)
        if full["status"] in statuses:
            yield where, full
        else:
            tally[f"status {full['status']}"] += 1


def pair_chooser(pairs: str, min_gap: float | None) -> Callable[[Mapping[str, Any]], list[tuple[Response, Response]]]:
    """A function that picks the pairs (better, worse) of a row, in the order of its responses.

    Args:
        pairs: "best-worst": the first of the best against the last of the worst; "adjacent": each response against
            each of the next lower rank; "all": each against each of a lower rank.
        min_gap: only pairs whose scores are at least so far apart; a pair without scores is then left out. None asks
            for no scores.

    Raises:
        InputError: `pairs` is something else, or `min_gap` is negative.
    """
    if pairs not in PAIRS:
        raise InputError(f"`pairs` is {pairs!r}, expected one of {', '.join(PAIRS)}.{did_you_mean(str(pairs), PAIRS)}")
    if min_gap is not None and not min_gap >= 0:
        raise InputError(f"`min_gap` is {min_gap!r}, expected a number of at least 0, in units of the scores.")

    def choose(row: Mapping[str, Any]) -> list[tuple[Response, Response]]:
        ranked = [response for response in row["responses"] if response["rank"] is not None]
        found = [(a, b) for a, b in combinations(ranked, 2) if a["rank"] < b["rank"]]
        if pairs == "best-worst":
            found = [(ranked[0], ranked[-1])] if found else []
        elif pairs == "adjacent":
            distinct = sorted({response["rank"] for response in ranked})
            following = dict(zip(distinct, distinct[1:], strict=False))
            found = [(a, b) for a, b in found if following[a["rank"]] == b["rank"]]
        return [(a, b) for a, b in found if _differ(a, b) and (min_gap is None or _gap(a, b) >= min_gap)]

    return choose


def _differ(a: Response, b: Response) -> bool:
    return a["content"].split() != b["content"].split()


def _gap(a: Response, b: Response) -> float:
    """How far the scores are apart; minus infinity where there is none."""
    if a["score"] is None or b["score"] is None:
        return float("-inf")
    return a["score"] - b["score"]
