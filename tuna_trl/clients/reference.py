"""The offline judges: each candidate against the row's own reference answer. Free, deterministic, no model.

They reward words shared with the reference and nothing else, so their rows are labelled `reference`, never `judge`.
"""

from __future__ import annotations

import json
import math
import string
from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from .base import JudgeRequest, Reply, Usage, Verdict
from .rouge import RougeL


class _AgainstReference:
    """A judge whose score of a candidate is a function of it and the reference."""

    name: str
    method = "reference"
    paid = False
    concurrency = 1  # pure Python: threads would only take turns
    max_batch = 1

    def score(self, reference: str, candidate: str) -> float:
        raise NotImplementedError

    def orders(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        return [tuple(order)]  # all at once

    def ask(self, requests: Sequence[JudgeRequest]) -> list[Reply]:
        """Score every candidate.

        Raises:
            InputError: a request has no reference.
        """
        return [Reply(raw=json.dumps({"scores": self._scores(request)}), stop_reason="stop") for request in requests]

    def parse(self, request: JudgeRequest, reply: Reply) -> Verdict:
        n = len(request.candidates)
        try:
            scores = json.loads(reply.raw)["scores"]
            if len(scores) != n or not all(isinstance(s, float) and math.isfinite(s) for s in scores):
                raise ValueError(f"expected {n} finite scores")
        except (ValueError, TypeError, KeyError) as error:
            return Verdict("malformed", (None,) * n, None, f"{type(error).__name__}: {error}")
        return Verdict("ok", tuple(scores))

    def worst_case_cost(self, request: JudgeRequest) -> float:
        return 0.0

    def cost(self, usage: Usage) -> float:
        return 0.0

    def _scores(self, request: JudgeRequest) -> list[float]:
        if request.reference is None:
            raise InputError(
                "The reference judge compares responses with a given answer, and this row has none: column "
                "'reference' is missing or null. Add it with dataset.rename_column(<your answers>, 'reference'), drop "
                "such rows with dataset.filter(lambda row: row['reference'] is not None), or use a judge that reads "
                "without one (AnthropicJudge)."
            )
        return [self.score(request.reference, candidate) for candidate in request.candidates]


class ReferenceJudge(_AgainstReference):
    """Scores candidates by the ROUGE-L F-measure (0 to 1) against `request.reference`."""

    name = "reference:rouge-l"

    def __init__(self) -> None:
        self._rouge = RougeL()

    def fingerprint(self) -> dict[str, Any]:
        return {"judge": self.name, "metric": "rougeL-f", "stemmer": "porter"}

    def score(self, reference: str, candidate: str) -> float:
        return self._rouge.f_measure(reference, candidate)


class ExactMatchJudge(_AgainstReference):
    """Scores a candidate 1 if it is the reference, else 0, by the rule of Super-NaturalInstructions ([`normalised`]).

    For closed tasks whose answer is a word or a number; all that are right are tied, as are all that are wrong.
    """

    name = "reference:exact-match"

    def fingerprint(self) -> dict[str, Any]:
        return {"judge": self.name, "metric": "exact-match", "normalisation": "lower, no punctuation, white space"}

    def score(self, reference: str, candidate: str) -> float:
        return float(normalised(reference) == normalised(candidate))


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """A text as exact match compares it: lower case, without ASCII punctuation, white space collapsed; articles stay.

    The rule of Super-NaturalInstructions (arXiv 2204.07705, `normalize_answer` of its evaluation), which drops the
    marks without putting a blank in their place.

    >>> normalised(" The  Answer: 3.5!")
    'the answer 35'
    """
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())
