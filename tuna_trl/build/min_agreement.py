"""Leaving out the rows on which a judge's repeats disagree. Reads ranked rows, changes none of those it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


@dataclass(frozen=True)
class Filtered:
    """What the filter did.

    Args:
        min_agreement: the least W.
        rows: of all splits.
        kept: rows left as they are, those that are unmeasured or not ranked among them.
        below: rows whose W is below the least.
        undefined: rows that were judged more than once and still have no W (fewer than two readable repeats, or
            repeats that tie everything), which counts as below.
        unmeasured: rows judged once, or with nothing to compare, which are kept.
        not_ranked: rows without any rank, which are left as they are.
        marked: rows below have the status `inconsistent`; else they are left out.
    """

    min_agreement: float
    rows: int
    kept: int
    below: int
    undefined: int
    unmeasured: int
    not_ranked: int
    marked: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def told(self) -> str:
        """One line for people."""
        done = "marked inconsistent" if self.marked else "left out"
        text = (
            f"Agreement of {self.min_agreement:g} or more (Kendall's W): {self.below + self.undefined:,} of "
            f"{self.rows:,} rows {done} ({self.below:,} below, {self.undefined:,} without a W after several "
            "judgments)"
        )
        if self.unmeasured:
            text += f"; {self.unmeasured:,} were judged once or had nothing to compare, and are kept"
        return text + "."


def check_min_agreement(min_agreement: float | None, repeats: int) -> None:
    """Raise an [`InputError`] if the filter is asked for and could not measure anything; before money is spent."""
    if min_agreement is None:
        return
    if not 0 <= min_agreement <= 1:  # NaN is in no range
        raise InputError(f"`min_agreement` is {min_agreement}, expected 0 (keep all) to 1 (repeats agree fully).")
    if repeats < 2:
        raise InputError(
            f"`min_agreement` is {min_agreement:g}, but each row is judged once (repeats={repeats}), so there is no "
            "agreement to measure. Ask for repeats=2 or more, or leave it out."
        )


def filter_agreement(
    dataset: Dataset | DatasetDict, min_agreement: float, *, mark: bool = False
) -> tuple[Dataset | DatasetDict, Filtered]:
    """Drop (or mark) the rows whose repeats agree too little.

    A row without `agreement_w` counts as below, with two exceptions, which are kept and counted: it was judged once
    (`provenance["repeats"]` is 1), or it has fewer than two different responses, so that nothing was judged.

    Args:
        dataset: ranked rows, a Dataset or splits of them.
        min_agreement: the least Kendall's W, 0 to 1.
        mark: keep such rows with the status `inconsistent`, which does not train; their ranks stay.

    Returns:
        the rows, and what was done to how many; a split that loses all its rows is empty.

    Raises:
        InputError: `min_agreement` is out of range.
    """
    check_min_agreement(min_agreement, repeats=2)
    counts = {"kept": 0, "below": 0, "undefined": 0, "unmeasured": 0, "not_ranked": 0}
    splits = dict(dataset) if isinstance(dataset, Mapping) else {None: dataset}
    result, rows = {}, 0
    for name, part in splits.items():
        verdicts = [_verdict(row, min_agreement) for row in part]
        low = [verdict in ("below", "undefined") for verdict in verdicts]
        rows += len(low)
        for verdict in verdicts:
            counts[verdict] += 1
        if not mark:
            result[name] = part.select([i for i, is_low in enumerate(low) if not is_low])
        else:
            status = ["inconsistent" if is_low else old for is_low, old in zip(low, part["status"], strict=True)]
            features = part.features
            result[name] = part.remove_columns("status").add_column("status", status).select_columns(list(features))
            result[name] = result[name].cast(features)
    counts["kept"] += counts["unmeasured"] + counts["not_ranked"]
    told = Filtered(min_agreement, rows, **counts, marked=mark)
    if None in result:
        return result[None], told
    from datasets import DatasetDict

    return DatasetDict(result), told


def _verdict(row: Mapping[str, Any], least: float) -> str:
    if row["agreement_w"] is not None:
        return "kept" if row["agreement_w"] >= least else "below"
    if all(response["rank"] is None for response in row["responses"]):
        return "not_ranked"
    distinct = sum(response["duplicate_of"] is None for response in row["responses"])
    if distinct < 2 or (row["provenance"] or {}).get("repeats") == 1:
        return "unmeasured"
    return "undefined"
