"""The formulas as Python loops: the oracle that every fast path is compared with, written from the papers and design.

Slow on purpose. Scalars are 0-d tensors, so that autograd gives the oracle's gradient too. Nothing here is imported
from `tuna_trl`.
"""

from __future__ import annotations

import torch


def usable_ranks(ranks: list[int], mask: list[bool]) -> dict[int, int]:
    """index -> competition rank among the usable responses."""
    usable = [k for k in range(len(ranks)) if mask[k]]
    return {k: 1 + sum(1 for j in usable if ranks[j] < ranks[k]) for k in usable}


def row_pairs(ranks: dict[int, int], groups: list[int] | None) -> list[tuple[int, int, int]]:
    """(better, worse, gap) of every pair that counts."""
    found = []
    for i in ranks:
        for j in ranks:
            if ranks[i] < ranks[j] and (groups is None or groups[i] != groups[j]):
                found.append((i, j, ranks[j] - ranks[i]))
    return found


def tuna(logps, lengths, ranks, mask, *, margin=0.1, pair_reduction="gap_mean", length_exponent=1.0, groups=None):
    """Tuna's ranking loss of a batch as a list of 0-d tensors (2310.13385; gap means as in the released code)."""
    losses = []
    for b in range(len(logps)):
        row_ranks = usable_ranks(list(map(int, ranks[b])), list(map(bool, mask[b])))
        pairs = row_pairs(row_ranks, None if groups is None else list(map(int, groups[b])))
        s = {k: logps[b][k] / float(lengths[b][k]) ** length_exponent for k in row_ranks}
        total = logps[b].sum() * 0.0 if torch.isfinite(logps[b]).all() else torch.zeros((), dtype=logps.dtype)
        by_gap: dict[int, list] = {}
        for i, j, gap in pairs:
            hinge = s[j] - s[i] + margin * gap
            by_gap.setdefault(gap, []).append(hinge if hinge > 0 else hinge * 0.0)
        for hinges in by_gap.values():
            gap_sum = sum(hinges)
            total = total + (gap_sum if pair_reduction == "sum" else gap_sum / len(hinges))
        losses.append(total)
    return losses


def sequence_logps(model, input_ids: list[int], positions: list[int]) -> list[torch.Tensor]:
    """log p(token at l | tokens before l) for each l in positions, one unpadded sequence through the plain model."""
    logits = model(input_ids=torch.tensor([input_ids])).logits[0]
    out = []
    for position in positions:
        row = logits[position - 1].to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
        out.append(row[input_ids[position]] - torch.logsumexp(row, 0))
    return out


def total_loss(model, rows, *, margin=0.1, pair_reduction="gap_mean", mle_weight=1.0, mle_target="all"):
    """The trainer's loss of a batch: mean ranking loss an instruction + mle_weight * mean NLL a target token.

    `rows`: dicts with `prompt_ids`, `response_ids` (lists), `ranks`, `score_lengths`.
    """
    rank_total, nll_total, nll_tokens = 0.0, 0.0, 0
    for row in rows:
        prompt = row["prompt_ids"]
        sums, lengths = [], []
        for response, score_length, rank in zip(row["response_ids"], row["score_lengths"], row["ranks"], strict=True):
            ids = prompt + response
            token_logps = sequence_logps(model, ids, list(range(max(len(prompt), 1), len(ids))))
            skipped = 0 if prompt else 1
            sums.append(sum(token_logps[: score_length - skipped]))
            lengths.append(score_length - skipped)
            if mle_target == "all" or (mle_target == "best" and rank == min(row["ranks"])):
                nll_total = nll_total - sum(token_logps)
                nll_tokens += len(token_logps)
        if len(sums) > 1:
            rank_total = (
                rank_total
                + tuna(
                    [torch.stack(sums)],
                    [lengths],
                    [row["ranks"]],
                    [[True] * len(sums)],
                    margin=margin,
                    pair_reduction=pair_reduction,
                )[0]
            )
    return rank_total / len(rows) + (mle_weight * nll_total / nll_tokens if nll_tokens and mle_weight else 0.0)
