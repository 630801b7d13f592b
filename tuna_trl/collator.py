"""Tokenised rows -> one padded batch. Dimension 0 is the instruction in every tensor, always."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import InputError


MLE_TARGETS = ("all", "best", "reference", "none")


@dataclass
class RankedCollator:
    """Packs N responses per instruction into `(B, N, L)`; N and L are the largest of the batch.

    Args:
        pad_token_id: fills `input_ids`; what is padding is said by `attention_mask` alone.
        mle_target: which responses `labels` train: "all" (ranked ones), "best" (all at rank 1), "reference" (the row's
            reference answer, in a slot of its own behind the responses, never ranked) or "none".
        pad_to_multiple_of: L is a multiple of this.

    >>> row = {"prompt_ids": [5, 6], "response_ids": [[7, 8], [9]], "response_labels": [[7, 8], [9]],
    ...        "score_lengths": [2, 1], "ranks": [1, 2], "scores": [0.5, 0.1]}
    >>> batch = RankedCollator(pad_token_id=0)([row])
    >>> batch["input_ids"]
    tensor([[[5, 6, 7, 8],
             [5, 6, 9, 0]]])
    >>> batch["labels"]
    tensor([[[-100, -100,    7,    8],
             [-100, -100,    9, -100]]])
    >>> batch["score_mask"].int()
    tensor([[[0, 0, 1, 1],
             [0, 0, 1, 0]]], dtype=torch.int32)
    """

    pad_token_id: int
    mle_target: str = "all"
    pad_to_multiple_of: int | None = None

    def __post_init__(self) -> None:
        if self.mle_target not in MLE_TARGETS:
            raise InputError(f"`mle_target` is {self.mle_target!r}, expected one of {', '.join(MLE_TARGETS)}.")

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch.

        Args:
            rows: tokenised ones ([`tuna_trl.data.tokenize`]).

        Returns:
            `input_ids`, `attention_mask`, `labels` (-100 = not trained): int64 `(B, N, L)`; `score_mask`: bool `(B, N,
            L)`, the tokens that s_k averages; `ranks`: int64 `(B, N)`, 1 = best, 0 = not ranked; `scores`: float32
            `(B, N)`, NaN = none; `rank_mask`: bool `(B, N)`, slots with a ranked response; `groups`: int64 `(B, N)`,
            equal for identical token sequences; `prompt_lengths`: int64 `(B,)`, tokens that all responses of a row
            begin with; `ref_logps`: float32 `(B, N)`, nats, where the rows have them.
        """
        rows = [row if "prompt_ids" in row else _language_modelling(row) for row in rows]
        slots = [self._slots(row) for row in rows]
        longest = max(
            (len(row["prompt_ids"]) + len(slot["ids"]) for row, own in zip(rows, slots, strict=True) for slot in own),
            default=0,
        )
        multiple = self.pad_to_multiple_of or 1
        shape = (len(rows), max(map(len, slots)), -(-max(longest, 1) // multiple) * multiple)
        batch = {
            "input_ids": torch.full(shape, self.pad_token_id, dtype=torch.int64),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
            "labels": torch.full(shape, -100, dtype=torch.int64),
            "score_mask": torch.zeros(shape, dtype=torch.bool),
            "ranks": torch.zeros(shape[:2], dtype=torch.int64),
            "scores": torch.full(shape[:2], torch.nan, dtype=torch.float32),
            "rank_mask": torch.zeros(shape[:2], dtype=torch.bool),
            "groups": torch.arange(shape[1]).repeat(shape[0], 1),
            "prompt_lengths": torch.tensor([len(row["prompt_ids"]) for row in rows], dtype=torch.int64),
        }
        if "ref_logps" in rows[0]:
            batch["ref_logps"] = torch.zeros(shape[:2], dtype=torch.float32)
        for b, (row, row_slots) in enumerate(zip(rows, slots, strict=True)):
            prompt = list(row["prompt_ids"])
            first_seen: dict[tuple[int, ...], int] = {}
            if "ref_logps" in batch:
                batch["ref_logps"][b, : len(row["ref_logps"])] = torch.tensor(row["ref_logps"], dtype=torch.float32)
            for k, slot in enumerate(row_slots):
                ids = prompt + slot["ids"]
                end = len(prompt) + slot["score_length"]
                batch["input_ids"][b, k, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
                batch["attention_mask"][b, k, : len(ids)] = 1
                if slot["labels"] is not None:
                    batch["labels"][b, k, len(prompt) : len(ids)] = torch.tensor(slot["labels"], dtype=torch.int64)
                # position 0 is predicted by nothing
                batch["score_mask"][b, k, max(len(prompt), 1) : end] = True
                batch["ranks"][b, k] = slot["rank"]
                batch["scores"][b, k] = slot["score"]
                batch["rank_mask"][b, k] = slot["rank"] > 0 and end > max(len(prompt), 1)
                batch["groups"][b, k] = first_seen.setdefault(tuple(slot["ids"][: slot["score_length"]]), k)
        return batch

    def _slots(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The responses of a row, and behind them its reference where that is what MLE trains on."""
        best = min((rank for rank in row["ranks"] if rank > 0), default=None)
        slots = []
        for ids, labels, length, rank, score in zip(
            row["response_ids"],
            row["response_labels"],
            row["score_lengths"],
            row["ranks"],
            row["scores"],
            strict=True,
        ):
            # an unranked response is not a target either: its sampler cut it or its judge could not read it
            trained = rank > 0 and (self.mle_target == "all" or (self.mle_target == "best" and rank == best))
            slots.append(
                {
                    "ids": list(ids),
                    "labels": list(labels) if trained else None,
                    "score_length": length,
                    "rank": rank,
                    "score": float("nan") if score is None else score,
                }
            )
        if self.mle_target == "reference":
            reference = list(row.get("reference_ids") or [])
            if not reference:
                raise InputError(
                    "`mle_target='reference'`, but a row has no `reference` answer; give every row one, or use "
                    "`mle_target='best'`."
                )
            slots.append({"ids": reference, "labels": reference, "score_length": 0, "rank": 0, "score": float("nan")})
        return slots


def _language_modelling(row: Mapping[str, Any]) -> dict[str, Any]:
    """`input_ids` and `labels` of an SFT dataset whose preparation was skipped: a response without a prompt."""
    ids = list(row["input_ids"])
    return {
        "prompt_ids": [],
        "response_ids": [ids],
        "response_labels": [ids if row.get("labels") is None else list(row["labels"])],
        "score_lengths": [len(ids)],
        "ranks": [1],
        "scores": [None],
    }
