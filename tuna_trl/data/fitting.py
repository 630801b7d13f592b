"""What of a tokenised dataset trains: too long and unranked responses are dropped, cut or refused as asked.

What is lost is counted in a printed table, never silently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .schema import STATUSES


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from .prepare import Preparation

EXCESS_LENGTH_STRATEGIES = ("drop", "truncate", "raise")
# A `partial` row has lost some responses (cut by the sampler, say); the ranked rest of it trains. The others do not.
TRAINED_STATUSES = ("ok", "partial")
_FLAGS = ["kept", "has_pair", "cut_responses", "dropped_responses"]


def fit_dataset(
    tokenised: Dataset | IterableDataset, strategy: str, options: Preparation, name: str
) -> Dataset | IterableDataset:
    """The rows of a tokenised dataset that train, each as [`fit_row`] leaves it.

    Raises:
        InputError: nothing is left, or something is too long and the strategy is "raise" (of a stream: when the row
            is read).
    """
    from datasets import Dataset

    limits = {
        "max_length": options.max_length,
        "strategy": strategy,
        "max_responses": options.max_responses,
        "needs_reference": options.needs_reference,
    }
    if isinstance(tokenised, Dataset):
        fitted = tokenised.map(fit_row, fn_kwargs=limits, num_proc=options.num_proc, desc=f"Fitting {name}")
        return _kept_rows(fitted, tokenised, strategy, options, name)
    if strategy == "raise":  # a stream cannot be counted beforehand
        tokenised = tokenised.map(
            _refuse_long, with_indices=True, fn_kwargs={"max_length": options.max_length, "name": name}
        )
    return tokenised.map(fit_row, fn_kwargs=limits).filter(_is_kept).remove_columns(_FLAGS)


def fit_row(
    row: Mapping[str, Any],
    max_length: int | None,
    strategy: str,
    max_responses: int | None = None,
    needs_reference: bool = False,
) -> dict[str, Any]:
    """One tokenised row cut to what trains: unranked and too long responses go, or are truncated.

    A ranked row that is left with fewer than two responses (an SFT row, or with `max_responses` 1: with none) is
    marked `kept=False`. Truncation keeps the start, as TRL does; a truncated response has no end token left, so its
    score ends at the cut. The reference answer fits or is cut likewise; where it is what trains (`needs_reference`), a
    row without room for it goes. `has_pair`: two of its responses have different ranks and different tokens.
    """
    prompt_length = len(row["prompt_ids"])
    ranked = [k for k, rank in enumerate(row["ranks"]) if rank > 0]
    wanted = min(2, len(row["ranks"]), max_responses or 2)
    too_long = [
        k for k in ranked if max_length is not None and prompt_length + len(row["response_ids"][k]) > max_length
    ]
    room = math.inf if max_length is None else max(max_length - prompt_length, 0)
    if strategy == "truncate":
        fitting = ranked if room > 0 else []
    else:
        fitting = [k for k in ranked if k not in set(too_long)]
    kept = fitting[:max_responses] if max_responses else fitting
    cut = (lambda ids: ids[: int(room)]) if strategy == "truncate" and room < math.inf else (lambda ids: ids)
    labels = [cut(row["response_labels"][k]) for k in kept]
    responses = [cut(row["response_ids"][k]) for k in kept]
    reference = cut(row["reference_ids"])
    if len(reference) > room:
        reference = []
    trains = reference if needs_reference else [label for ids in labels for label in ids]
    return {
        "response_ids": responses,
        "response_labels": labels,
        "score_lengths": [min(row["score_lengths"][k], len(ids)) for k, ids in zip(kept, responses, strict=True)],
        "ranks": [row["ranks"][k] for k in kept],
        "scores": [row["scores"][k] for k in kept],
        "reference_ids": reference,
        "length": prompt_length + sum(map(len, responses)),
        "kept": len(kept) >= wanted and any(label != -100 for label in trains),
        "has_pair": len({row["ranks"][k] for k in kept}) > 1 and len(set(map(tuple, responses))) > 1,
        "cut_responses": len(set(kept) & set(too_long)),
        "dropped_responses": len(row["ranks"]) - len(kept),
    }


def _refuse_long(row: Mapping[str, Any], index: int, max_length: int | None, name: str) -> dict[str, Any]:
    longest = len(row["prompt_ids"]) + max(map(len, row["response_ids"]), default=0)
    if max_length is not None and longest > max_length:
        raise InputError(
            f"{name} row {index} has {longest} tokens, longer than `max_length` = {max_length}, and "
            "`excess_length_strategy` is 'raise'. Raise `max_length`, or use 'drop' or 'truncate'."
        )
    return {}


def _is_kept(row: Mapping[str, Any]) -> bool:
    return row["kept"]


def _kept_rows(fitted: Dataset, tokenised: Dataset, strategy: str, options: Preparation, name: str) -> Dataset:
    """The rows that train, with a table of what did not; an error where nothing is left or nothing may be lost."""
    kept = fitted["kept"]
    counts = {
        "rows": len(fitted),
        "rows dropped": len(fitted) - sum(kept),
        "responses": sum(len(ranks) for ranks in tokenised["ranks"]),
        "responses dropped": sum(fitted["dropped_responses"]),
        "responses truncated": sum(fitted["cut_responses"]),
        "rows without a pair": _without_pair(fitted, name),
    }
    lengths = sorted(
        len(prompt) + len(ids)
        for prompt, responses in zip(tokenised["prompt_ids"], tokenised["response_ids"], strict=True)
        for ids in responses
    )
    too_long = 0 if options.max_length is None else sum(length > options.max_length for length in lengths)
    if strategy == "raise" and too_long:
        raise InputError(
            f"{too_long} of {len(lengths)} responses of the {name} dataset are longer than `max_length` = "
            f"{options.max_length} tokens (the longest has {lengths[-1]}), and `excess_length_strategy` is 'raise'. "
            "Raise `max_length`, or use 'drop' or 'truncate'."
        )
    if not any(kept):
        raise InputError(
            f"No row of the {name} dataset is left to train on: of {len(fitted)} rows, {too_long} responses of "
            f"{len(lengths)} are longer than `max_length` = {options.max_length} tokens (the shortest has "
            f"{lengths[0] if lengths else 0}), and a row needs two ranked responses that fit"
            f"{' (or one, in SFT data)' if strategy == 'truncate' else ''}. "
            f"Statuses that train: {', '.join(TRAINED_STATUSES)} (of {', '.join(STATUSES)})."
        )
    if any(counts[lost] for lost in counts if lost not in ("rows", "responses")):
        _print_counts(name, counts, lengths, options.max_length)
    result = fitted if all(kept) else fitted.select([i for i, keep in enumerate(kept) if keep])
    return result.remove_columns(_FLAGS)


def _without_pair(fitted: Dataset, name: str) -> int:
    """How many rows with several responses give the ranking loss nothing to compare; a warning where all are so."""
    from accelerate import PartialState
    from transformers.utils import logging

    flags = ("kept", "has_pair", "ranks")
    several = [
        has_pair for kept, has_pair, ranks in zip(*(fitted[f] for f in flags), strict=True) if kept and len(ranks) > 1
    ]
    without = several.count(False)
    if several and without == len(several) and PartialState().is_main_process:
        logging.get_logger(__name__).warning(
            f"The ranking term of the loss will be 0: no row of the {name} dataset makes a pair. In each of its "
            f"{without:,} rows with several responses all share a rank (equal scores) or are the same text, so that "
            "only the likelihood term trains. Give responses scores that differ, or have them ranked: tuna-trl rank "
            "--judge <judge> or --teacher <model>. `tuna-trl preview` shows a row."
        )
    return without


def _print_counts(name: str, counts: Mapping[str, int], lengths: list[int], max_length: int | None) -> None:
    """One table on stderr, from the main process only."""
    from accelerate import PartialState
    from rich.console import Console
    from rich.table import Table

    if not PartialState().is_main_process:
        return
    table = Table(title=f"{name}: what trains", title_justify="left", show_header=False)
    for label, value in counts.items():
        table.add_row(label, f"{value:,}")
    if lengths:
        for quantile in (0.5, 0.95, 0.99):
            table.add_row(f"tokens, p{quantile * 100:.0f}", f"{lengths[int(quantile * (len(lengths) - 1))]:,}")
        table.add_row("tokens, longest", f"{lengths[-1]:,}")
        table.add_row("max_length", "none" if max_length is None else f"{max_length:,}")
    Console(stderr=True).print(table)
