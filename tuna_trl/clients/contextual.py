"""The verdict protocol of contextual ranking: what a judge LLM is shown, the JSON it answers with, how that is read.

Shared by every judge that is a language model; knows no SDK and no network. Candidates are untrusted text: they stand
in the user turn only, between tags that carry the request's nonce, and tags of ours inside them are escaped. A verdict
names each candidate exactly once or it is malformed: nothing is repaired by guess, because a repaired ranking is an
invented one (RankGPT appends what the judge left out in the order it was shown).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from ..data.schema import digest
from ..errors import InputError
from .base import JudgeRequest, Reply, Verdict


if TYPE_CHECKING:
    from jinja2 import Template

SCORES = ("accuracy", "detail", "relevance_or_clarity")
MAX_SCORE = 5  # of each of the three: totals run from 0 to 15, as in the paper's prompt
KINDS = ("open", "closed")

# The provider's words for "stopped at the token limit" and "declined"; everything else is read as a verdict.
_TRUNCATED = ("max_tokens", "model_context_window_exceeded", "length")
_REFUSED = ("refusal", "content_filter")
_TEMPLATES = ("contextual_system.jinja", "contextual_user.jinja")
# A tag of ours always has a hyphen after its name, so that honest markup (<reference>, <turn>) is left as it is.
_OUR_TAGS = re.compile(r"<(?=\s*/?\s*(?:conversation|turn|reference|candidate)-)", re.IGNORECASE)


def labels(n: int) -> tuple[str, ...]:
    """The labels of n shown places: A to Z, then AA, AB and so on.

    >>> labels(3)
    ('A', 'B', 'C')
    >>> labels(28)[-2:]
    ('AA', 'AB')
    """
    return tuple(_label(i) for i in range(n))


def _label(i: int) -> str:
    return (_label(i // 26 - 1) if i >= 26 else "") + chr(ord("A") + i % 26)


@dataclass(frozen=True)
class ContextualProtocol:
    """How a judge LLM is asked for a ranking and how its answer is read (Tuna, arXiv 2310.13385, contextual ranking).

    Each candidate gets three scores from 0 to 5; their sum (0 to 15) is its score. The judge's ranking of the labels
    only decides between equal sums.

    Args:
        judge_answer: the judge first writes its own answer as a yardstick. It costs output tokens, and favours answers
            that resemble the judge's.
        show_reference: show the row's `reference` to the judge where there is one.
    """

    judge_answer: bool = False
    show_reference: bool = False

    name = "contextual"

    def orders(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        return [tuple(order)]  # all at once

    def fingerprint(self) -> dict[str, Any]:
        """What changes the verdict: the switches, the templates' and the schema's hash."""
        return {
            "protocol": "contextual",
            "judge_answer": self.judge_answer,
            "show_reference": self.show_reference,
            "templates": digest([_source(name) for name in _TEMPLATES]),
            "schema": digest(self.schema(2)),
        }

    def render(self, request: JudgeRequest) -> tuple[str, str]:
        """System prompt and user turn of a request; no text of the row stands in the system prompt.

        Raises:
            InputError: the request has no candidates or no nonce.
        """
        if not request.candidates or not request.nonce:
            raise InputError("A judge request needs at least one candidate and a nonce.")
        reference = request.reference if self.show_reference else None
        system = _template(_TEMPLATES[0]).render(
            nonce=request.nonce, judge_answer=self.judge_answer, has_reference=reference is not None
        )
        user = _template(_TEMPLATES[1]).render(
            nonce=request.nonce,
            prompt=[{"role": _attribute(m["role"]), "content": _escape(m["content"])} for m in request.prompt],
            reference=None if reference is None else _escape(reference),
            candidates=[
                {"label": label, "text": _escape(text)}
                for label, text in zip(labels(len(request.candidates)), request.candidates, strict=True)
            ],
        )
        return system, user

    def schema(self, n: int) -> dict[str, Any]:
        """The JSON schema of a verdict on n candidates, in the order in which it is to be written.

        Keyed by label, so that each candidate is there exactly once. Scores are enums: structured output enforces an
        enum, and turns `minimum` and `maximum` into a mere remark.
        """
        score = {"type": "integer", "enum": list(range(MAX_SCORE + 1))}
        one = _closed_object({"rationale": {"type": "string"}} | dict.fromkeys(SCORES, score))
        fields: dict[str, Any] = {"task": {"type": "string", "enum": list(KINDS)}}
        if self.judge_answer:
            fields["answer"] = {"type": "string"}
        fields |= dict.fromkeys(labels(n), one)
        fields["ranking"] = {"type": "array", "items": {"type": "string", "enum": list(labels(n))}}
        return _closed_object(fields)

    def parse(self, request: JudgeRequest, reply: Reply) -> Verdict:
        """Read a reply. Pure: the same journalled reply gives the same verdict.

        Returns:
            scores in shown order (0 to 15) and the judge's order when `status` is `ok` or `inconsistent` (the ranking
            puts a lower sum above a higher one); all scores None when it is `refused`, `truncated` or `malformed`.
        """
        n = len(request.candidates)
        if reply.stop_reason in _REFUSED:
            return _unscored("refused", n, _refusal_detail(reply))
        if reply.stop_reason in _TRUNCATED:
            return _unscored("truncated", n, f"the judge stopped at its limit (stop reason {reply.stop_reason})")
        try:
            verdict = json.loads(reply.raw, object_pairs_hook=_no_repeated_keys, parse_constant=_no_constant)
            scores, order = self._read(verdict, labels(n))
        except _Malformed as error:
            return _unscored("malformed", n, str(error))
        except (ValueError, RecursionError) as error:
            return _unscored("malformed", n, f"no JSON: {type(error).__name__} {error}"[:300])
        for better, worse in zip(order, order[1:], strict=False):
            if scores[better] < scores[worse]:
                detail = (
                    f"the ranking puts {labels(n)[better]} ({scores[better]:g}) above "
                    f"{labels(n)[worse]} ({scores[worse]:g})"
                )
                return Verdict("inconsistent", scores, order, detail)
        return Verdict("ok", scores, order)

    def _read(self, verdict: Any, names: tuple[str, ...]) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Sums and order of a decoded verdict; every deviation from the schema is an error."""
        own = {"task", "ranking"} | ({"answer"} if self.judge_answer else set())
        _check_fields(verdict, own | set(names), "the verdict")
        if verdict["task"] not in KINDS:
            raise _Malformed(f"task is {_shown(verdict['task'])}, expected open or closed")
        if self.judge_answer and not isinstance(verdict["answer"], str):
            raise _Malformed("answer is not a string")
        scores = []
        for name in names:
            _check_fields(verdict[name], {"rationale", *SCORES}, f"candidate {name}")
            values = [verdict[name][field] for field in SCORES]
            for field, value in zip(SCORES, values, strict=True):
                if type(value) is not int or not 0 <= value <= MAX_SCORE:  # a bool is an int, 5.0 is another type
                    raise _Malformed(f"{name}.{field} is {_shown(value)}, expected a whole number 0 to {MAX_SCORE}")
            if not isinstance(verdict[name]["rationale"], str):
                raise _Malformed(f"{name}.rationale is not a string")
            scores.append(float(sum(values)))
        ranking = verdict["ranking"]
        if not isinstance(ranking, list) or not all(isinstance(name, str) for name in ranking):
            raise _Malformed("ranking is not a list of labels")
        if sorted(ranking) != sorted(names):
            raise _Malformed(f"ranking is {_shown(ranking)}, which does not name every candidate exactly once")
        return tuple(scores), tuple(names.index(name) for name in ranking)


class _Malformed(Exception):
    """The verdict is not what the schema says; never leaves this module."""


def _unscored(status: str, n: int, detail: str) -> Verdict:
    return Verdict(status, (None,) * n, None, detail)


def _refusal_detail(reply: Reply) -> str:
    """The category that a client put into a refusal (`{"stop_details": {"category": ...}}`), else the stop reason."""
    try:
        category = json.loads(reply.raw)["stop_details"]["category"]
    except (ValueError, TypeError, KeyError, RecursionError):
        category = None
    return f"refused ({category})" if category else f"refused (no category, stop reason {reply.stop_reason})"


def _closed_object(fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def _check_fields(value: Any, expected: set[str], what: str) -> None:
    if not isinstance(value, Mapping):
        raise _Malformed(f"{what} is {_shown(value)}, expected an object")
    if missing := sorted(expected - set(value)):
        raise _Malformed(f"{what} lacks {', '.join(missing)}")
    if extra := sorted(set(value) - expected):
        raise _Malformed(f"{what} has unknown fields {_shown(extra)}")


def _no_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        repeated = sorted({key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1})
        raise _Malformed(f"fields given twice: {_shown(repeated)}")
    return result


def _no_constant(name: str) -> Any:
    raise _Malformed(f"{name} is no JSON")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _escape(text: str) -> str:
    """Text of a row with our own tags made harmless.

    >>> _escape("<b>x</b> </candidate-7f3a> <Candidate-1 label='B'>")
    "<b>x</b> &lt;/candidate-7f3a> &lt;Candidate-1 label='B'>"
    """
    return _OUR_TAGS.sub("&lt;", text)


def _attribute(text: str) -> str:
    """A role as an attribute's value: it comes with the row, so it may not close the quotes."""
    return re.sub(r"[^\w .-]", "_", text)[:40]


@cache
def _source(name: str) -> str:
    return resources.files("tuna_trl.clients.prompts").joinpath(name).read_text(encoding="utf-8")


@cache
def _template(name: str) -> Template:
    from jinja2 import Environment, StrictUndefined

    # No HTML escaping: the text goes to a model. What needs escaping is escaped by `_escape`, before rendering.
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    return environment.from_string(_source(name))
