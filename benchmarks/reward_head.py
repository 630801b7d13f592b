"""A small real reward model made here: a linear head on the frozen embedded model, fitted to pairs (Bradley-Terry)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tuna_trl.clients.chat_ids import chat_ids
from tuna_trl.clients.reward_model import RewardModelJudge
from tuna_trl.loading import load_tokenizer, resolve

from .human_pairs import HumanPair


PENALTY = 0.1  # on the square of the weights of standardised features: there are more features than pairs


def fit_reward_head(pairs: Sequence[HumanPair], folder: Path) -> RewardModelJudge:
    """The judge, loaded from `folder`, where the model is written.

    Loss: -mean log sigmoid(r(better) - r(worse)) + PENALTY |w|^2 / 2, r linear in the last hidden state of the last
    token, by L-BFGS.
    """
    from transformers import AutoModelForSequenceClassification

    tokenizer = load_tokenizer("embedded")
    model = AutoModelForSequenceClassification.from_pretrained(resolve("embedded"), num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.eval()
    features: dict[tuple[str, str], torch.Tensor] = {}
    with torch.no_grad():
        for pair in pairs:
            for text in pair.responses:
                if (pair.instruction, text) not in features:
                    turns = [("user", pair.instruction), ("assistant", text)]
                    messages = [{"role": role, "content": content} for role, content in turns]
                    ids = chat_ids(tokenizer, messages, add_generation_prompt=False)
                    # a decoder takes the logit at the last token that is not its pad token
                    place = max(k for k, token in enumerate(ids) if token != model.config.pad_token_id)
                    hidden = model.base_model(torch.tensor([ids])).last_hidden_state
                    features[pair.instruction, text] = hidden[0, place]
    scale = torch.stack(list(features.values())).std(0)
    rows = [
        features[p.instruction, p.responses[p.better]] - features[p.instruction, p.responses[1 - p.better]]
        for p in pairs
    ]
    weights = _bradley_terry(torch.stack(rows) / scale)
    model.score.weight.data = (weights / scale)[None]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return RewardModelJudge(str(folder), name="reward-head", batch_size=8)


def _bradley_terry(differences: torch.Tensor) -> torch.Tensor:
    """Weights `(features,)` of standardised differences `(pairs, features)`, better minus worse."""
    weights = torch.zeros(differences.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = torch.nn.functional.softplus(-(differences @ weights)).mean() + PENALTY * weights.square().sum() / 2
        value.backward()
        return value

    solver.step(loss)
    return weights.detach()
