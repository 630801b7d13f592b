"""The formulas as Python loops: the oracle that every fast path is compared with, written from the papers and design.

Slow on purpose. Scalars are 0-d tensors, so that autograd gives the oracle's gradient too. Nothing here is imported
from `tuna_trl`.
"""

from __future__ import annotations

import math

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


def total_loss(
    model,
    rows,
    *,
    margin=0.1,
    pair_reduction="gap_mean",
    length_exponent=1.0,
    ranking_weight=1.0,
    mle_weight=1.0,
    mle_target="all",
    loss_type="nll",
):
    """The trainer's loss of a batch: ranking_weight * mean ranking loss an instruction + mle_weight * mean NLL a
    target token.

    `rows`: dicts with `prompt_ids`, `response_ids`, `response_labels` (lists of lists), `score_lengths`, `ranks` (0 =
    not ranked) and `reference_ids`. Every sequence goes through the plain model alone, without padding.
    """
    rank_total, targets = 0.0, []
    for row in rows:
        prompt = row["prompt_ids"]
        first = max(len(prompt), 1)  # nothing predicts position 0
        skipped = first - len(prompt)
        sums, lengths, usable, scored_ids = [], [], [], []
        best = min([rank for rank in row["ranks"] if rank > 0], default=None)
        for k, response in enumerate(row["response_ids"]):
            rank, labels = row["ranks"][k], row["response_labels"][k]
            ids = prompt + response
            token_logps = sequence_logps(model, ids, list(range(first, len(ids))))
            scored = token_logps[: max(row["score_lengths"][k] - skipped, 0)]
            sums.append(sum(scored) if scored else torch.zeros((), dtype=model.dtype))
            lengths.append(max(len(scored), 1))
            usable.append(rank > 0 and len(scored) > 0)
            scored_ids.append(response[: row["score_lengths"][k]])
            if rank > 0 and (mle_target == "all" or (mle_target == "best" and rank == best)):
                targets += [t for t, label in zip(token_logps, labels[skipped:], strict=True) if label != -100]
        if mle_target == "reference":
            ids = prompt + row["reference_ids"]
            targets += sequence_logps(model, ids, list(range(first, len(ids))))
        groups = [scored_ids.index(ids) for ids in scored_ids]
        rank_total = (
            rank_total
            + tuna(
                [torch.stack(sums)],
                [lengths],
                [row["ranks"]],
                [usable],
                margin=margin,
                pair_reduction=pair_reduction,
                length_exponent=length_exponent,
                groups=[groups],
            )[0]
        )
    weigh = {"nll": lambda t: -t, "dft": lambda t: -t * t.exp().detach()}[loss_type]  # dft: arXiv 2508.05629
    nll = sum(weigh(t) for t in targets) / len(targets) if targets else 0.0
    return ranking_weight * rank_total / len(rows) + mle_weight * nll


# ---- the other losses (notation of tuna_trl/losses/pairwise.py and listwise.py, written again as loops) ----


def _rows(logps, lengths, ranks, mask, groups, exponent):
    """Per row: usable competition ranks, pairs and s_k as 0-d tensors."""
    for b in range(len(logps)):
        row_ranks = usable_ranks(list(map(int, ranks[b])), list(map(bool, mask[b])))
        pairs = row_pairs(row_ranks, None if groups is None else list(map(int, groups[b])))
        yield b, row_ranks, pairs, {k: logps[b][k] / float(lengths[b][k]) ** exponent for k in row_ranks}


def _worse(pairs):
    """k -> [(j, gap)] of what is worse than k."""
    found: dict[int, list] = {}
    for i, j, gap in pairs:
        found.setdefault(i, []).append((j, gap))
    return found


def _zero(logps, b):
    return torch.zeros((), dtype=logps.dtype) + 0.0 * logps[b][0]


def rrhf(logps, lengths, ranks, mask, *, length_exponent=1.0, groups=None):
    out = []
    for b, _, pairs, s in _rows(logps, lengths, ranks, mask, groups, length_exponent):
        out.append(sum((torch.relu(s[j] - s[i]) for i, j, _ in pairs), _zero(logps, b)))
    return out


def slic(logps, lengths, ranks, mask, *, delta=1.0, groups=None):
    out = []
    for b, _, pairs, s in _rows(logps, lengths, ranks, mask, groups, 0.0):
        out.append(sum((torch.relu(delta - s[i] + s[j]) for i, j, _ in pairs), _zero(logps, b)))
    return out


def simpo(logps, lengths, ranks, mask, *, beta=2.0, gamma=0.5, rank_scaled=False, length_exponent=1.0, groups=None):
    out = []
    for b, _, pairs, s in _rows(logps, lengths, ranks, mask, groups, length_exponent):
        total = _zero(logps, b)
        for i, j, gap in pairs:
            z = beta * (s[i] - s[j]) - gamma * (gap if rank_scaled else 1)
            total = total - torch.log(torch.sigmoid(z)) / len(pairs)
        out.append(total)
    return out


def listmle(logps, lengths, ranks, mask, *, tau=1.0, top_k=None, length_exponent=1.0, groups=None):
    out = []
    for b, row_ranks, pairs, s in _rows(logps, lengths, ranks, mask, groups, length_exponent):
        total = _zero(logps, b)
        for k, worse in _worse(pairs).items():
            if top_k is None or row_ranks[k] <= top_k:
                bottom = torch.exp(tau * s[k]) + sum(torch.exp(tau * s[j]) for j, _ in worse)
                total = total - torch.log(torch.exp(tau * s[k]) / bottom)
        out.append(total)
    return out


def pro(logps, lengths, ranks, mask, *, length_exponent=1.0, groups=None):
    out = []
    for b, _, pairs, s in _rows(logps, lengths, ranks, mask, groups, length_exponent):
        total = _zero(logps, b)
        for k, worse in _worse(pairs).items():
            top = torch.exp(s[k] * max(gap for _, gap in worse))
            total = total - torch.log(top / (top + sum(torch.exp(s[j] * gap) for j, gap in worse)))
        out.append(total)
    return out


def listnet(
    logps, lengths, ranks, mask, *, targets=None, tau=1.0, target_temperature=1.0, length_exponent=1.0, groups=None
):
    out = []
    for b, row_ranks, pairs, s in _rows(logps, lengths, ranks, mask, groups, length_exponent):
        total = _zero(logps, b)
        if pairs:
            psi = {k: float("nan") if targets is None else float(targets[b][k]) for k in row_ranks}
            if any(value != value for value in psi.values()):
                psi = {k: -float(rank) for k, rank in row_ranks.items()}
            wanted = {k: torch.exp(torch.tensor(psi[k] / target_temperature, dtype=logps.dtype)) for k in row_ranks}
            model = {k: torch.exp(tau * s[k]) for k in row_ranks}
            for k in row_ranks:
                total = total - wanted[k] / sum(wanted.values()) * torch.log(model[k] / sum(model.values()))
        out.append(total)
    return out


def dpo_pl(logps, lengths, ranks, mask, *, ref_logps, beta=0.1, groups=None):
    return listmle(logps - ref_logps, lengths, ranks, mask, tau=beta, length_exponent=0.0, groups=groups)


def lipo(logps, lengths, ranks, mask, *, ref_logps, beta=0.1, groups=None):
    out = []
    for b, row_ranks, pairs, d in _rows(logps - ref_logps, lengths, ranks, mask, groups, 0.0):
        total = _zero(logps, b)
        n = len(row_ranks)
        psi = {}
        for i in row_ranks:
            wins = [
                1.0 if row_ranks[i] < row_ranks[j] else 0.5 if row_ranks[i] == row_ranks[j] else 0.0 for j in row_ranks
            ]
            psi[i] = sum(wins) / n
        place = {i: 1 + sum(1 for j in row_ranks if float(d[j]) > float(d[i])) for i in row_ranks}
        for i, j, _ in pairs:
            gain = abs(2 ** psi[i] - 2 ** psi[j])
            discount = abs(1 / math.log(1 + place[i]) - 1 / math.log(1 + place[j]))
            total = total + gain * discount * torch.log(1 + torch.exp(-beta * (d[i] - d[j])))
        out.append(total)
    return out


def visible_keys(groups, window=None):
    """For each token of a packed row, the tokens that it sees: its prompt and its own response up to itself.

    `groups`: a list of `(prompt length, [response lengths])`; the tokens stand in that order, prompt first. `window`:
    the last so many positions, the token's own included.
    """
    tokens = []  # (instruction, response or None for the prompt, position)
    for i, (prompt, responses) in enumerate(groups):
        tokens += [(i, None, p) for p in range(prompt)]
        for k, length in enumerate(responses):
            tokens += [(i, k, prompt + p) for p in range(length)]
    seen = []
    for own_i, own_k, own_p in tokens:
        seen.append(
            [
                t
                for t, (i, k, p) in enumerate(tokens)
                if i == own_i and (k is None or k == own_k) and p <= own_p and (window is None or own_p - p < window)
            ]
        )
    return seen


def attention(query, key, value, seen, *, scale, softcap=None, sinks=None):
    """`(H, T, D)`: attention head by head and token by token over the keys of `seen`; grouped heads share keys."""
    heads, shared = query.shape[0], query.shape[0] // key.shape[0]
    out = []
    for h in range(heads):
        row = []
        for t, keys in enumerate(seen):
            scores = torch.stack([query[h, t] @ key[h // shared, j] * scale for j in keys])
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            weights = torch.exp(scores)
            total = weights.sum() + (0.0 if sinks is None else torch.exp(sinks[h]))
            row.append(sum(w / total * value[h // shared, j] for w, j in zip(weights, keys, strict=True)))
        out.append(torch.stack(row))
    return torch.stack(out)
