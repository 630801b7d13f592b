"""FastChat's two ways to ask a judge which of two answers is better, as judging protocols for any judge.

They are shown as FastChat shows them, without the walls around foreign text that our own protocols have: an answer
can talk to the judge. Judges that are held to a JSON schema answer in JSON, the others in FastChat's words; both are
read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...clients.base import JudgeRequest, Reply, Verdict
from ...clients.pairwise import PairwiseProtocol
from ...clients.verdicts import REFUSED, TRUNCATED, closed_object
from ...data.schema import digest
from ...errors import InputError
from .data import PromptText, VicunaQuestion


VERDICTS = {"[[A]]": (1.0, 0.0), "[[B]]": (0.0, 1.0), "[[C]]": (0.5, 0.5)}
WITH_REFERENCE = ("math", "reasoning", "coding")  # categories whose answers the new protocol compares with GPT-4's


class _FastChat:
    """What both protocols share: every pair in both orders, prompts by format string."""

    name: str
    prompts: Mapping[str, PromptText]

    def orders(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        return PairwiseProtocol().orders(order)

    def fingerprint(self) -> dict[str, Any]:
        texts = {use: [prompt.system, prompt.template] for use, prompt in sorted(self.prompts.items())}
        return {"protocol": self.name, "templates": digest(texts), "schema": digest(self.schema(2))}

    def schema(self, n: int) -> dict[str, Any]:
        raise NotImplementedError

    def _fill(self, use: str, **texts: str) -> tuple[str, str]:
        prompt = self.prompts[use]
        try:
            return prompt.system, prompt.template.format(**texts)
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(f"The judge prompt {use!r} of {self.name} has no place for its texts: {error}.") from None


@dataclass(frozen=True)
class PairV2(_FastChat):
    """FastChat's `llm_judge` (pair-v2, pair-math-v1): a short explanation, then [[A]], [[B]] or [[C]].

    The request's reference decides between the two prompts.

    Args:
        prompts: `general` and `math` ([`tuna_trl.evaluation.vicuna.data.load_prompts_v2`]).
    """

    prompts: Mapping[str, PromptText]

    name = "vicuna-v2"

    def render(self, request: JudgeRequest) -> tuple[str, str]:
        a, b = _two(request)
        texts = {"question": _question(request), "answer_a": a, "answer_b": b}
        if request.reference is None:
            return self._fill("general", **texts)
        return self._fill("math", **texts, ref_answer_1=request.reference)

    def schema(self, n: int) -> dict[str, Any]:
        return closed_object(
            {"explanation": {"type": "string"}, "verdict": {"type": "string", "enum": list(VERDICTS)}}
        )

    def parse(self, request: JudgeRequest, reply: Reply) -> Verdict:
        """The verdict; in running text [[A]], [[B]] and [[C]] are looked for in this order, as FastChat does.

        Args: as [`JudgeProtocol.parse`].
        """
        if (unread := _unread(reply)) is not None:
            return unread
        text = _field_of(reply.raw, "verdict") or reply.raw
        for mark, scores in VERDICTS.items():
            if mark in text:
                return Verdict("ok", scores)
        return Verdict("malformed", (None, None), None, "neither [[A]] nor [[B]] nor [[C]]")


@dataclass(frozen=True)
class ScoresV1(_FastChat):
    """The reviews of 2023 (FastChat before July): two scores from 1 to 10 in the first line, then an explanation.

    Args:
        prompts: by category; `general` for those that have none ([`tuna_trl.evaluation.vicuna.data.load_prompts_v1`]).
        categories: question -> its category.
    """

    prompts: Mapping[str, PromptText]
    categories: Mapping[str, str]

    name = "vicuna-v1"

    def render(self, request: JudgeRequest) -> tuple[str, str]:
        a, b = _two(request)
        question = _question(request)
        category = self.categories.get(question, "general")
        use = category if category in self.prompts else "general"
        return self._fill(use, question=question, answer_1=a, answer_2=b)

    def schema(self, n: int) -> dict[str, Any]:
        score = {"type": "number"}
        return closed_object({"score_1": score, "score_2": score, "explanation": {"type": "string"}})

    def parse(self, request: JudgeRequest, reply: Reply) -> Verdict:
        if (unread := _unread(reply)) is not None:
            return unread
        first, second = _field_of(reply.raw, "score_1"), _field_of(reply.raw, "score_2")
        scores = read_scores(reply.raw) if first is None or second is None else read_scores(f"{first} {second}")
        if scores is None:
            return Verdict("malformed", (None, None), None, "the first line does not hold two numbers")
        return Verdict("ok", scores)


def read_scores(review: str) -> tuple[float, float] | None:
    """The two scores in the first line of a review; None where it does not hold exactly two numbers.

    >>> read_scores("8, 9.5\\nBoth are good.")
    (8.0, 9.5)
    >>> read_scores("Assistant 1: 8") is None
    True
    """
    words = review.split("\n", 1)[0].replace(",", " ").split()
    if len(words) != 2 or not all(re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", word) for word in words):
        return None
    return float(words[0]), float(words[1])


def references_for(question: VicunaQuestion) -> str | None:
    """The reference that the new protocol shows: for math, reasoning and coding."""
    return question.reference if question.category in WITH_REFERENCE else None


def _unread(reply: Reply) -> Verdict | None:
    if reply.stop_reason in REFUSED:
        return Verdict("refused", (None, None), None, f"stop reason {reply.stop_reason}")
    if reply.stop_reason in TRUNCATED:
        return Verdict("truncated", (None, None), None, f"stop reason {reply.stop_reason}")
    return None


def _field_of(raw: str, name: str) -> str | None:
    """A field of a reply that is a JSON object, as text."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return str(value[name]) if isinstance(value, dict) and name in value else None


def _two(request: JudgeRequest) -> tuple[str, str]:
    if len(request.candidates) != 2:
        raise InputError(f"Two answers are compared at a time, got {len(request.candidates)}.")
    return request.candidates[0], request.candidates[1]


def _question(request: JudgeRequest) -> str:
    return request.prompt[-1]["content"]
