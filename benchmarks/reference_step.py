"""The reference step: Tuna's training step as the paper's released code computes it, written from its definition.

N padded copies of the prompt, full logits, cross-entropy inside the model over the response tokens of all N
candidates, then a second log-softmax over all tokens (prompt and padding too), a gather, and the margin ranking loss
over the rank gaps (Li et al. 2023, arXiv 2310.13385). The bench compares with it; the library does not use it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def reference_loss(
    model: nn.Module, batch: Mapping[str, Tensor], *, margin: float = 0.1, mle_weight: float = 1.0
) -> Tensor:
    """L = mean over instructions of sum_g mean_{r_j - r_i = g} max(0, s_j - s_i + margin g)  +  mle_weight * CE.

    Args:
        model: a plain causal language model (PEFT or not).
        batch: `input_ids`, `attention_mask`, `labels` (-100 = not trained) and `score_mask`, each `(B, N, L)`; every
            instruction has N responses, ranked 1 .. N in that order.

    Returns:
        `()`.
    """
    shape = batch["input_ids"].shape
    ids = batch["input_ids"].flatten(0, 1)
    output = model(
        input_ids=ids,
        attention_mask=batch["attention_mask"].flatten(0, 1),
        labels=batch["labels"].flatten(0, 1),
        use_cache=False,
    )
    logps = output.logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)
    mask = batch["score_mask"].flatten(0, 1)[:, 1:].to(logps.dtype)
    scores = ((logps * mask).sum(1) / mask.sum(1)).view(shape[:2])
    ranking = scores.new_zeros(())
    for gap in range(1, shape[1]):
        better, worse = scores[:, :-gap], scores[:, gap:]
        ranking = ranking + torch.relu(worse - better + margin * gap).mean()
    return ranking + mle_weight * output.loss
