"""One of each judging protocol, with a request for it and a right verdict: what the tests over all protocols share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tuna_trl.clients.base import JudgeRequest
from tuna_trl.clients.contextual import ContextualProtocol
from tuna_trl.clients.own_protocol import OwnProtocol
from tuna_trl.clients.pairwise import PairwiseProtocol
from tuna_trl.clients.pointwise import PointwiseProtocol


PROMPT = [{"role": "user", "content": "Name a colour."}]
TEMPLATE = """\
{% for turn in prompt %}
<said-{{ nonce }} by="{{ turn.role }}">
{{ turn.content }}
</said-{{ nonce }}>
{% endfor %}
{% if reference is not none %}
<reference-{{ nonce }}>
{{ reference }}
</reference-{{ nonce }}>
{% endif %}
{% for candidate in candidates %}
<answer-{{ nonce }} label="{{ candidate.label }}">
{{ candidate.text }}
</answer-{{ nonce }}>
{% endfor %}
"""


def closed(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


SCHEMA = closed(
    why={"type": "string"},
    quality={"type": "integer", "enum": [1, 2, 3]},
    depth=closed(
        detail={"type": "number", "minimum": 0, "maximum": 1}, tags={"type": "array", "items": {"type": "string"}}
    ),
)


def scored(accuracy: Any, detail: Any = 3, third: Any = 3, rationale: Any = "because") -> dict[str, Any]:
    return {"rationale": rationale, "accuracy": accuracy, "detail": detail, "relevance_or_clarity": third}


def own(quality: Any, detail: Any = 0.5, tags: Any = (), why: Any = "because") -> dict[str, Any]:
    return {"why": why, "quality": quality, "depth": {"detail": detail, "tags": list(tags)}}


@dataclass(frozen=True)
class Example:
    """A protocol, how many candidates a question of it shows, a right verdict on them and its scores."""

    protocol: Any
    n: int
    verdict: dict[str, Any]
    scores: tuple[float, ...]

    def request(self, *texts: str, nonce: str = "7f3a", **fields: Any) -> JudgeRequest:
        """A question on the first n of `texts`, filled up with harmless ones."""
        filled = (*texts, "red", "blue", "a table")[: self.n]
        return JudgeRequest(fields.get("prompt", PROMPT), filled, fields.get("reference"), 0, nonce)


def examples() -> dict[str, Example]:
    three = {"A": scored(5), "B": scored(4), "C": scored(0), "ranking": ["A", "B", "C"]}
    ranked = {"REF": scored(5, 2, 2), "ranking": ["A", "B", "REF", "C"]}
    return {
        "contextual": Example(ContextualProtocol(show_reference=True), 3, {"task": "open"} | three, (11.0, 10.0, 6.0)),
        "ranked": Example(
            ContextualProtocol("ranked", show_reference=True),
            3,
            {"task": "closed", "answer": "green"} | three | ranked,
            (11.0, 10.0, 6.0),
        ),
        "pairwise": Example(PairwiseProtocol(show_reference=True), 2, {"rationale": "r", "winner": "B"}, (0.0, 1.0)),
        "pointwise": Example(PointwiseProtocol(show_reference=True), 1, {"rationale": "r", "score": 4}, (4.0,)),
        "own": Example(
            OwnProtocol(TEMPLATE, SCHEMA, score=["quality", "depth.detail"], show_reference=True),
            2,
            {"A": own(3), "B": own(1, 0.25, ["x"])},
            (3.5, 1.25),
        ),
    }
