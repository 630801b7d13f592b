"""A model in this process that scores given responses: teacher forcing, raw logits, temperature 1, in nats.

Knows neither journals nor ranks; what it computes is [`tuna_trl.scoring.score_rows`].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class GivenScorer(Protocol):
    """Scores given responses in this process or on a cluster. `name` is the model id that goes into the rows."""

    name: str

    def fingerprint(self) -> dict[str, Any]:
        """Everything about the model that changes a score; goes into keys and rows."""
        ...

    def score_given(
        self, rows: Sequence[Mapping[str, Any]], *, batch_size: int, max_length: int | None
    ) -> list[list[dict[str, Any]]]:
        """`{"logprob": nats, "num_tokens": int}` of each response of each row, in order; the end token counts.

        Args:
            rows: dicts with `prompt` (messages) and `responses` (dicts with `content` and `finish_reason`).
            batch_size: rows in one forward pass.
            max_length: tokens that a prompt with one response may have; None: what the model can take.

        Returns:
            both None for a response that is too long or empty; `logprob` None where it is not finite.
        """
        ...


class TransformersScorer:
    """The scores of a loaded causal model; see [`GivenScorer`]. The model is taught to score
    ([`tuna_trl.scoring.install`]).

    Args:
        model, tokenizer: with a chat template; PEFT adapters are used as they are active.
        name: the model id that goes into rows; default: what the model was loaded from.

    Raises:
        InputError: see [`tuna_trl.clients.local.TransformersSampler`].
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str | None = None) -> None:
        from ..layouts import choose_layout
        from .local import TransformersSampler

        self._sampler = TransformersSampler(model, tokenizer, name=name)  # refuses what cannot score either
        self.name = self._sampler.name
        self._model, self._tokenizer = model, tokenizer
        self._layout = choose_layout(model, "auto")  # asked once, not in every bucket

    def fingerprint(self) -> dict[str, Any]:
        return self._sampler.fingerprint()

    def score_given(
        self, rows: Sequence[Mapping[str, Any]], *, batch_size: int, max_length: int | None
    ) -> list[list[dict[str, Any]]]:
        from .. import scoring

        scored = scoring.score_rows(
            self._model, self._tokenizer, rows, batch_size=batch_size, max_length=max_length, batch_layout=self._layout
        )
        return [[_finite(found) for found in row] for row in scored]


def _finite(found: Mapping[str, Any]) -> dict[str, Any]:
    """JSON holds no NaN: tokens without a log-prob say that it was not finite."""
    logprob = found["logprob"]
    return {**found, "logprob": logprob if logprob is not None and math.isfinite(logprob) else None}
