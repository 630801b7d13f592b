"""What the trainer's tests share: a quiet config, tokenised rows with known figures, small datasets, one SGD step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from hypothesis import strategies as st

from tuna_trl import TunaConfig


QUIET = dict(
    use_cpu=True,
    report_to=[],
    disable_tqdm=True,
    logging_steps=1,
    save_strategy="no",
    activation_checkpointing=False,
    per_device_train_batch_size=8,
    lr_scheduler_type="constant",
    max_grad_norm=0.0,  # no clipping: a step of SGD is the gradient
    optim="sgd",
    learning_rate=0.1,
    train_sampling_strategy="random",  # SFTTrainer's order
)


def config(folder: Path | str, **changes: Any) -> TunaConfig:
    """A `TunaConfig` for a CPU that prints, reports and saves nothing unless told to."""
    return TunaConfig(output_dir=str(folder), **{**QUIET, **changes})


def tokenised_row(
    prompt: list[int], responses: list[list[int]], ranks: list[int], reference: list[int] = (), tail: int = 1
) -> dict[str, Any]:
    """A tokenised row whose responses end with `tail` tokens that MLE trains and s_k does not average."""
    return {
        "prompt_ids": list(prompt),
        "response_ids": [list(r) for r in responses],
        "response_labels": [list(r) for r in responses],
        "score_lengths": [max(len(r) - tail, 0) for r in responses],
        "ranks": list(ranks),
        "scores": [math.nan] * len(ranks),
        "reference_ids": list(reference),
        "length": len(prompt) + sum(map(len, responses)),
    }


def random_rows(vocab_size: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Three rows where no two of B, N, L, P, R, V agree: ragged N (5, 4, 2), ties, an unranked response, two equal
    sequences, a common opening. B = 3, N = 5, P <= 7, R <= 12, so L <= 19."""
    g = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(0, vocab_size, (length,), generator=g).tolist()

    opening, twin = ids(2), ids(5)
    return [
        tokenised_row(ids(7), [opening + ids(n) for n in (10, 1, 4, 6, 2)], [1, 2, 2, 4, 5], ids(6)),
        tokenised_row(ids(4), [twin, ids(8), twin, ids(3)], [1, 2, 3, 0], ids(2)),
        tokenised_row(ids(5), [ids(9), ids(11)], [1, 2], ids(1)),
    ]


def ranked_dataset(rows: int = 8, *, seed: int = 0) -> Dataset:
    """Ranked rows as a user has them: ragged N from 2 to 4, a tie in every third row, answers of many lengths."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for i in range(rows):
        n = 2 + i % 3
        words = torch.randint(1, 7, (n,), generator=g).tolist()
        scores = [float(n - k) for k in range(n)]
        if i % 3 == 1:
            scores[1] = scores[0]
        responses = [f"answer {i} {'other ' * w}{k}" for k, w in enumerate(words)]
        prompt = f"question {i}{' more' * (i % 4)}?"
        found.append({"prompt": prompt, "responses": responses, "scores": scores, "reference": f"given answer {i}"})
    return Dataset.from_list(found)


def parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The trained parameters by name, detached copies."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradients by name; a parameter that the graph did not reach is missing here and fails the comparison."""
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """max |a - b| over tensors of the same names."""
    assert first.keys() == second.keys() and first
    return max((first[name] - second[name]).abs().max().item() for name in first)


def losses(trainer: Any, key: str = "loss") -> list[float]:
    """What the trainer logged under `key`, step by step."""
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@st.composite
def tokenised_rows(draw: st.DrawFn, max_responses: int = 4) -> dict[str, Any]:
    """Any tokenised row: empty prompts, empty responses, partly masked labels, ties, unranked responses."""
    tokens = st.lists(st.integers(1, 40), max_size=5)
    n = draw(st.integers(1, max_responses))
    row = tokenised_row(
        draw(tokens), [draw(tokens) for _ in range(n)], [draw(st.integers(0, 3)) for _ in range(n)], draw(tokens)
    )
    row["score_lengths"] = [draw(st.integers(0, len(ids))) for ids in row["response_ids"]]
    row["response_labels"] = [[i if draw(st.booleans()) else -100 for i in ids] for ids in row["response_ids"]]
    row["scores"] = [draw(st.sampled_from([None, math.nan, 0.5, -3.0])) for _ in range(n)]
    return row
