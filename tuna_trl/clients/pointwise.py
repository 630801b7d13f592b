"""The pointwise protocol: one candidate a question, scored against a rubric. Knows no SDK and no network.

Candidates are never side by side, so no place can be favoured, and scores can be compared between rows; small
differences get lost in a scale of a few steps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data.schema import digest
from ..errors import InputError
from .base import JudgeRequest, Reply, Verdict
from .verdicts import Malformed, check_fields, check_whole, closed_object, read_reply, shown_row, source, template


DEFAULT_RUBRIC = "pointwise_rubric.md"
MAX_STEPS = 101  # of a scale: each step is a word of the schema's enum
_TEMPLATES = ("pointwise_system.jinja", "pointwise_user.jinja", "untrusted.jinja", "row.jinja", "reference_note.jinja")


@dataclass(frozen=True)
class PointwiseProtocol:
    """How a judge LLM is asked to score one candidate.

    Args:
        rubric: what the steps of the scale mean: the text itself, or a path to a file with it (a `Path`, or one line
            that ends in .md or .txt); None: a general one.
        scale: lowest and highest score, whole numbers; the judge may give any of them and nothing between.
        show_reference: show the row's `reference` to the judge where there is one.

    Raises:
        InputError: the rubric cannot be read or is empty, or the scale is none.
    """

    rubric: str | Path | None = None
    scale: tuple[int, int] = (1, 5)
    show_reference: bool = False

    name = "pointwise"

    def __post_init__(self) -> None:
        scale = self.scale
        whole = isinstance(scale, (tuple, list)) and len(scale) == 2 and all(type(end) is int for end in scale)
        if not whole or not 0 < scale[1] - scale[0] < MAX_STEPS:
            raise InputError(
                f"PointwiseProtocol: scale is {scale!r}, expected two whole numbers, the lowest and the highest "
                f"score, with at most {MAX_STEPS} steps, such as (1, 5)."
            )
        object.__setattr__(self, "scale", tuple(scale))  # YAML has lists
        if not self.text.strip():
            raise InputError("PointwiseProtocol: the rubric is empty; None takes the built-in one.")

    @cached_property
    def text(self) -> str:
        """The rubric."""
        if self.rubric is None:
            return source(DEFAULT_RUBRIC).strip()
        if isinstance(self.rubric, str) and not re.fullmatch(r".*\.(md|txt)", self.rubric.strip()):
            return self.rubric
        try:
            return Path(self.rubric).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"PointwiseProtocol: the rubric {self.rubric} cannot be read: {error}") from None

    def orders(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        return [(i,) for i in order]

    def fingerprint(self) -> dict[str, Any]:
        return {
            "protocol": "pointwise",
            "rubric": digest(self.text),
            "scale": list(self.scale),
            "show_reference": self.show_reference,
            "templates": digest([source(name) for name in _TEMPLATES]),
            "schema": digest(self.schema(1)),
        }

    def render(self, request: JudgeRequest) -> tuple[str, str]:
        """System prompt (with the rubric, which is the user's own) and user turn.

        Raises:
            InputError: the request has no nonce, or not one candidate.
        """
        if len(request.candidates) != 1:
            raise InputError(
                f"The pointwise protocol shows one candidate in a question, got {len(request.candidates)}: ask the "
                "questions that its `orders` lists."
            )
        row = shown_row(request, show_reference=self.show_reference)
        system = template(_TEMPLATES[0]).render(
            rubric=self.text,
            low=self.scale[0],
            high=self.scale[1],
            has_reference=row["reference"] is not None,
        )
        return system, template(_TEMPLATES[1]).render(row)

    def schema(self, n: int) -> dict[str, Any]:
        """JSON schema of a verdict: the reason, then the score as an enum, which structured output enforces."""
        low, high = self.scale
        score = {"type": "integer", "enum": list(range(low, high + 1))}
        return closed_object({"rationale": {"type": "string"}, "score": score})

    def parse(self, request: JudgeRequest, reply: Reply) -> Verdict:
        return read_reply(request, reply, self._read)

    def _read(self, verdict: Any) -> Verdict:
        check_fields(verdict, ("rationale", "score"), "the verdict")
        if not isinstance(verdict["rationale"], str):
            raise Malformed("rationale is not a string")
        return Verdict("ok", (float(check_whole(verdict["score"], *self.scale, "score")),))
