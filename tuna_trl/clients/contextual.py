"""The verdict protocol of contextual ranking: what a judge LLM is shown, the JSON it answers with, how that is read.

Shared by every judge that is a language model; knows no SDK and no network. Candidates are untrusted text (see
`verdicts.py`). A verdict names each candidate exactly once or it is malformed: nothing is repaired by guess, because a
repaired ranking is an invented one (RankGPT appends what the judge left out in the order it was shown).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..data.schema import digest
from ..errors import InputError
from .base import JudgeRequest, Reply, Verdict
from .verdicts import (
    Malformed,
    check_fields,
    check_text,
    check_whole,
    closed_object,
    labels,
    read_reply,
    shown,
    shown_row,
    source,
    template,
)


__all__ = ["JUDGE_ANSWERS", "KINDS", "MAX_SCORE", "OWN_LABEL", "SCORES", "ContextualProtocol", "labels"]

SCORES = ("accuracy", "detail", "relevance_or_clarity")
MAX_SCORE = 5  # of each of the three: totals run from 0 to 15, as in the paper's prompt
KINDS = ("open", "closed")
JUDGE_ANSWERS = ("off", "context", "ranked")
OWN_LABEL = "REF"  # of the judge's own answer; as a label of a candidate it would come 12,433rd
_TEMPLATES = (
    "contextual_system.jinja",
    "contextual_user.jinja",
    "untrusted.jinja",
    "row.jinja",
    "reference_note.jinja",
)


@dataclass(frozen=True)
class ContextualProtocol:
    """How a judge LLM is asked for a ranking and how its answer is read (Tuna, arXiv 2310.13385, contextual ranking).

    The judge first decides whether the task is open or closed, which settles what its scores mean. Each candidate gets
    three scores from 0 to 5; their sum (0 to 15) is its score. The judge's ranking of the labels comes last and only
    decides between equal sums.

    Args:
        judge_answer: `context`: the judge first writes its own answer as a yardstick. It costs output tokens, and
            favours answers that resemble the judge's. `ranked` (the paper): it also scores that answer, which takes
            part in the ranking as one more response; a student that trains on it learns from the judge. `off`: none.
        show_reference: show the row's `reference` to the judge where there is one.

    Raises:
        InputError: `judge_answer` is something else.
    """

    judge_answer: str = "off"
    show_reference: bool = False

    name = "contextual"

    def __post_init__(self) -> None:
        if self.judge_answer not in JUDGE_ANSWERS or not isinstance(self.judge_answer, str):
            means = {True: "; True is now written 'context'", False: "; False is now written 'off'"}
            hint = means[self.judge_answer] if isinstance(self.judge_answer, bool) else ""
            raise InputError(
                f"ContextualProtocol: judge_answer is {self.judge_answer!r}, expected one of "
                f"{', '.join(map(repr, JUDGE_ANSWERS))}{hint}."
            )

    def orders(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        return [tuple(order)]  # all at once

    def fingerprint(self) -> dict[str, Any]:
        """What changes the verdict: the switches, the templates' and the schema's hash."""
        return {
            "protocol": "contextual",
            "judge_answer": self.judge_answer,
            "show_reference": self.show_reference,
            "templates": digest([source(name) for name in _TEMPLATES]),
            "schema": digest(self.schema(2)),
        }

    def render(self, request: JudgeRequest) -> tuple[str, str]:
        """System prompt and user turn of a request; no text of the row stands in the system prompt.

        Raises:
            InputError: the request has no candidates or no nonce.
        """
        row = shown_row(request, show_reference=self.show_reference)
        system = template(_TEMPLATES[0]).render(
            judge_answer=self.judge_answer, has_reference=row["reference"] is not None
        )
        return system, template(_TEMPLATES[1]).render(row)

    def schema(self, n: int) -> dict[str, Any]:
        """The JSON schema of a verdict on n candidates, in the order in which it is to be written.

        Keyed by label, so that each candidate is there exactly once. Scores are enums: structured output enforces an
        enum, and turns `minimum` and `maximum` into a mere remark.
        """
        score = {"type": "integer", "enum": list(range(MAX_SCORE + 1))}
        one = closed_object({"rationale": {"type": "string"}} | dict.fromkeys(SCORES, score))
        fields: dict[str, Any] = {"task": {"type": "string", "enum": list(KINDS)}}
        if self.judge_answer != "off":
            fields["answer"] = {"type": "string"}
        fields |= dict.fromkeys(self._names(n), one)
        fields["ranking"] = {"type": "array", "items": {"type": "string", "enum": list(self._names(n))}}
        return closed_object(fields)

    def parse(self, request: JudgeRequest, reply: Reply) -> Verdict:
        """Read a reply. Pure: the same journalled reply gives the same verdict.

        Returns:
            scores in shown order (0 to 15) and the judge's order when `status` is `ok` or `inconsistent` (the ranking
            puts a lower sum above a higher one); all scores None when it is `refused`, `truncated` or `malformed`.
            With `judge_answer="ranked"` the judge's answer is place n of the order and has `answer_score`.
        """
        return read_reply(request, reply, partial(self._read, n=len(request.candidates)))

    def _names(self, n: int) -> tuple[str, ...]:
        """All that is scored and ranked: the candidates, and the judge's own answer where it takes part."""
        return (*labels(n), OWN_LABEL) if self.judge_answer == "ranked" else labels(n)

    def _read(self, verdict: Any, n: int) -> Verdict:
        """A decoded verdict; every deviation from the schema is an error."""
        names, answer = self._names(n), None
        has_answer = self.judge_answer != "off"
        check_fields(verdict, {"task", "ranking", *names} | ({"answer"} if has_answer else set()), "the verdict")
        if verdict["task"] not in KINDS:
            raise Malformed(f"task is {shown(verdict['task'])}, expected open or closed")
        if has_answer:
            answer = check_text(verdict["answer"], "answer")
        if self.judge_answer == "ranked" and not (answer or "").strip():
            raise Malformed("answer is empty, and nothing cannot be ranked")
        scores = tuple(_score(verdict[name], name) for name in names)
        ranking = verdict["ranking"]
        if not isinstance(ranking, list) or not all(isinstance(name, str) for name in ranking):
            raise Malformed("ranking is not a list of labels")
        if sorted(ranking) != sorted(names):
            raise Malformed(f"ranking is {shown(ranking)}, which does not name every candidate exactly once")
        order = tuple(names.index(name) for name in ranking)
        status, detail = "ok", None
        for better, worse in zip(order, order[1:], strict=False):
            if scores[better] < scores[worse]:
                status = "inconsistent"
                detail = (
                    f"the ranking puts {names[better]} ({scores[better]:g}) above {names[worse]} ({scores[worse]:g})"
                )
                break
        own = scores[n] if self.judge_answer == "ranked" else None
        return Verdict(status, scores[:n], order, detail, answer, own)


def _score(one: Any, name: str) -> float:
    """The sum of the three scores of one candidate (0 to 15)."""
    check_fields(one, {"rationale", *SCORES}, f"candidate {name}")
    total = sum(check_whole(one[field], 0, MAX_SCORE, f"{name}.{field}") for field in SCORES)
    if not isinstance(one["rationale"], str):
        raise Malformed(f"{name}.rationale is not a string")
    return float(total)
