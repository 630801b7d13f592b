"""A user's own protocol: a Jinja template for what the judge is shown, a JSON schema for what it says of a candidate.

The template runs in Jinja's sandbox, on text that is escaped already. Before anything is sent it is rendered with
planted texts, so that a template that hides a candidate, or shows one outside tags with the nonce, is refused here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.schema import digest
from ..errors import InputError, did_you_mean
from .base import JudgeRequest, Reply, Verdict
from .own_schema import check_schema, check_value, numbers
from .verdicts import TAGS, check_fields, closed_object, labels, read_reply, shown, shown_row, source


if TYPE_CHECKING:
    from jinja2 import Template

_DEFAULT_SYSTEM, _UNTRUSTED = "own_system.jinja", "untrusted.jinja"
_NONCE = "d41c0ffee7f3a29b"  # of the trial rendering
_VERBATIM = "{{ candidate.text }} without a filter and without a condition"


class OwnProtocol:
    """How a judge LLM is asked by a template of your own, and read by a schema of your own.

    The template of the user turn is given `nonce`, `prompt` (a list of `role` and `content`), `candidates` (a list of
    `label` and `text`, in shown order) and `reference` (a text, or none: also where `show_reference` is off). It shows
    every candidate whole, with its label, between tags that carry the nonce:

        {% for candidate in candidates %}
        <answer-{{ nonce }} label="{{ candidate.label }}">
        {{ candidate.text }}
        </answer-{{ nonce }}>
        {% endfor %}

    A verdict is one object with a field for each label, and in it what `schema` says. Every field is required; scores
    are best given as an enum, which every provider's structured output enforces.

    Args:
        template: the text of a Jinja template, or a path to one (a string without braces is a path).
        schema: the JSON schema of what is said about one candidate, or a path to it: an object with all its properties
            required and `additionalProperties` false (see [`tuna_trl.clients.own_schema`]).
        score: the field that is a candidate's score, as a dotted path into its object (`quality`, `detail.depth`), or
            several, which are summed. Higher is better.
        system: the system prompt (a Jinja template that is given `nonce` and no text of the row), or a path to one;
            None: a general one, which says that candidates are data.
        show_reference: give the row's `reference` to the template.

    Raises:
        InputError: a file cannot be read, the template does not show what it must, the schema has a word that is not
            checked, or `score` leads to no number.
    """

    name = "own"

    def __init__(
        self,
        template: str | Path,
        schema: Mapping[str, Any] | str | Path,
        *,
        score: str | Sequence[str],
        system: str | Path | None = None,
        show_reference: bool = False,
    ) -> None:
        self.show_reference = show_reference
        self._one = _schema(schema)
        self._paths = (score,) if isinstance(score, str) else tuple(score)
        self._texts = {
            "template": _text(template, "template"),
            "system": source(_DEFAULT_SYSTEM) if system is None else _text(system, "system"),
        }
        self._compiled = {what: _compile(text, what) for what, text in self._texts.items()}
        known = list(numbers(self._one))
        if not self._paths:
            raise InputError(f"OwnProtocol: score names no field. Numbers of the schema: {shown(known)}.")
        for path in self._paths:
            if path not in known:
                raise InputError(
                    f"OwnProtocol: score is {path!r}, which leads to no number of the schema. Numbers: "
                    f"{shown(known)}.{did_you_mean(str(path), known)}"
                )
        for reference in (None, "reference text"):
            for n in (2, 3):
                self._try(n, reference)

    def orders(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        return [tuple(order)]  # all at once

    def fingerprint(self) -> dict[str, Any]:
        return {
            "protocol": "own",
            "template": digest(self._texts["template"]),
            "system": digest([self._texts["system"], source(_UNTRUSTED)]),
            "schema": digest(self._one),
            "score": list(self._paths),
            "show_reference": self.show_reference,
        }

    def render(self, request: JudgeRequest) -> tuple[str, str]:
        """System prompt and user turn.

        Raises:
            InputError: the request has no candidates or no nonce, the template fails on this row, or shows a candidate
                changed or not at all.
        """
        row = shown_row(request, show_reference=self.show_reference, tags=self._tags)
        system, user = self._fill("system", {"nonce": request.nonce}), self._fill("template", row)
        _check_shown(user, row)
        return system, user

    def schema(self, n: int) -> dict[str, Any]:
        """JSON schema of a verdict on n candidates: an object with a field for each label."""
        return closed_object(dict.fromkeys(labels(n), dict(self._one)))

    def parse(self, request: JudgeRequest, reply: Reply) -> Verdict:
        return read_reply(request, reply, partial(self._read, n=len(request.candidates)))

    def _read(self, verdict: Any, n: int) -> Verdict:
        check_fields(verdict, labels(n), "the verdict")
        scores = []
        for name in labels(n):
            check_value(verdict[name], self._one, name)
            scores.append(math.fsum(_at(verdict[name], path) for path in self._paths))
        return Verdict("ok", tuple(scores))

    @cached_property
    def _tags(self) -> tuple[str, ...]:
        """The names of the tags that the template writes around the nonce, ours included."""
        user = self._fill("template", _trial(2, None))
        return tuple(dict.fromkeys([*TAGS, *re.findall(rf"<\s*/?\s*([\w.-]*?\w)-{_NONCE}", user)]))

    def _fill(self, what: str, values: Mapping[str, Any]) -> str:
        try:
            return self._compiled[what].render(values)
        except InputError:
            raise
        except Exception as error:  # a template can fail in any way that Python can
            raise InputError(
                f"OwnProtocol: the {what} fails with {type(error).__name__}: {error}. It is given "
                f"{', '.join(values)}; write {{% if reference is not none %}} where there may be no reference."
            ) from None

    def _try(self, n: int, reference: str | None) -> None:
        """Render planted texts, and see whether the judge would see all it needs and nothing unfenced."""
        self._fill("system", {"nonce": _NONCE})
        row = _trial(n, reference)
        user = self._fill("template", row)
        _check_shown(user, row)
        for candidate in row["candidates"]:
            if candidate["label"] not in user:
                raise InputError(
                    f"OwnProtocol: the template does not show the label of each of {n} candidates, by which the "
                    "verdict names them. Write {{ candidate.label }} beside its text."
                )
        between = re.split("|".join(re.escape(candidate["text"]) for candidate in row["candidates"]), user)
        if not all(_NONCE in part for part in between):
            raise InputError(
                "OwnProtocol: the template does not keep each candidate between tags with the nonce, so a candidate "
                'could end itself and begin another. Write <answer-{{ nonce }} label="{{ candidate.label }}"> before '
                "its text and </answer-{{ nonce }}> after it."
            )


def _schema(given: Any) -> Mapping[str, Any]:
    """The schema of what is said about one candidate, checked."""
    if isinstance(given, (str, Path)):
        try:
            given = json.loads(_file(given, "schema"))
        except ValueError as error:
            raise InputError(f"OwnProtocol: the schema is no JSON: {error}") from None
    check_schema(given)
    if given["type"] != "object":
        raise InputError(f"OwnProtocol: schema.type is {given['type']!r}, expected an object with a score in it.")
    return given


def _compile(text: str, what: str) -> Template:
    from jinja2 import FunctionLoader, StrictUndefined, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        loader=FunctionLoader({_UNTRUSTED: source(_UNTRUSTED)}.get),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # the text goes to a model; our tags in it are escaped before
    )
    try:
        return environment.from_string(text)
    except TemplateError as error:
        raise InputError(f"OwnProtocol: the {what} is no Jinja template: {error}") from None


def _trial(n: int, reference: str | None) -> dict[str, Any]:
    """Values of a rendering on trial: long texts of several lines, and labels that no template holds by chance."""
    return {
        "nonce": _NONCE,
        "prompt": [{"role": "user", "content": "the question"}],
        "reference": reference,
        "candidates": [
            {"label": f"LABEL{k}Q", "text": f"<b>planted</b> & 'text' {k}\n  the second line\n{'long ' * 2000}"}
            for k in range(n)
        ],
    }


def _check_shown(user: str, row: Mapping[str, Any]) -> None:
    for place, candidate in enumerate(row["candidates"]):
        if candidate["text"].strip() not in user:
            raise InputError(
                f"OwnProtocol: the template does not show candidate {place + 1} of {len(row['candidates'])} whole. "
                f"Loop over `candidates`, and write {_VERBATIM}."
            )


def _at(value: Any, path: str) -> float:
    for name in path.split("."):
        value = value[name]
    return value


def _text(given: str | Path, what: str) -> str:
    """A template's source: a string with braces or several lines is the text, everything else a path to it."""
    if isinstance(given, str) and ("{{" in given or "{%" in given or "\n" in given):
        return given
    return _file(given, what)


def _file(path: str | Path, what: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"OwnProtocol: the {what} {path} cannot be read: {error}") from None
