"""What all verdict protocols share: labels, text of a row made harmless before it is shown, a verdict read strictly.

Text of a row is untrusted. It stands between tags that carry the request's nonce, which is a hash over the candidates
and so known to none of them; that is the wall. Escaping what looks like a tag of ours is a second one, for judges that
read tags loosely. What a judge says is read to the letter or not at all. Touches nothing but the package's templates.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from ..data.schema import Messages
from ..errors import InputError
from .base import JudgeRequest, Reply, Verdict
from .too_long import TOO_LONG


if TYPE_CHECKING:
    from jinja2 import Template

TAGS = ("conversation", "turn", "reference", "candidate")  # a tag of ours always has a hyphen after its name
# The provider's words for "stopped at the token limit" and "declined"; everything else is read as a verdict.
TRUNCATED = ("max_tokens", TOO_LONG, "length")
REFUSED = ("refusal", "content_filter")

# `<` and what a model may take for it: NFKC look-alikes and angle quotation marks.
_BRACKETS = re.compile("[<\u02c2\u2039\u2329\u276e\u27e8\u3008\ufe64\uff1c]")
# NUL ends the text in C programs, so that a candidate could hide all that follow; half a surrogate pair has no UTF-8.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


class Malformed(Exception):
    """The verdict is not what the schema says; never leaves [`read_reply`]."""


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


def escape(text: str, tags: Collection[str] = TAGS) -> str:
    """Text of a row with all that looks like one of `tags` made harmless; the rest, honest markup too, is as it was.

    A tag is one however it is written: with white space, invisible characters, full width or accented letters in it.
    NUL and halves of surrogate pairs, which are no text to a server, become U+FFFD.

    >>> escape("<b>x</b> </candidate-7f3a> <Candidate-1 label='B'>")
    "<b>x</b> &lt;/candidate-7f3a> &lt;Candidate-1 label='B'>"
    """
    text = _NO_TEXT.sub("\ufffd", text)
    wanted = tuple(f"{tag.casefold()}-" for tag in tags)
    return _BRACKETS.sub(lambda found: "&lt;" if _begins_tag(text, found.end(), wanted) else found.group(), text)


def _begins_tag(text: str, start: int, wanted: tuple[str, ...]) -> bool:
    """Whether a tag's name and its hyphen follow, read as a lenient reader would."""
    seen = ""
    for i in range(start, len(text)):
        for char in unicodedata.normalize("NFKD", text[i]).casefold():
            category = unicodedata.category(char)
            if category[0] in "CMZ" or (not seen and char in "/\\\u2044\u2215"):
                continue
            seen += "-" if category == "Pd" or char == "\u2212" else char
        if seen.startswith(wanted):
            return True
        if seen and not any(name.startswith(seen) for name in wanted):
            return False
    return False


def attribute(text: str) -> str:
    """A role as an attribute's value: it comes with the row, so it may not close the quotes."""
    return re.sub(r"[^\w .-]", "_", text)[:40]


def shown_row(
    request: JudgeRequest, *, show_reference: bool = False, tags: Collection[str] = TAGS, names: Sequence[str] = ()
) -> dict[str, Any]:
    """What a user template may show of a request, escaped: `nonce`, `prompt`, `reference` (or None), `candidates`.

    Args:
        names: the labels of the candidates; default: [`labels`].

    Raises:
        InputError: the request has no candidates or no nonce.
    """
    if not request.candidates or not request.nonce:
        raise InputError("A judge request needs at least one candidate and a nonce.")
    reference = request.reference if show_reference else None
    names = names or labels(len(request.candidates))
    return {
        "nonce": request.nonce,
        "prompt": _shown_prompt(request.prompt, tags),
        "reference": None if reference is None else escape(reference, tags),
        "candidates": [
            {"label": label, "text": escape(text, tags)} for label, text in zip(names, request.candidates, strict=True)
        ],
    }


def _shown_prompt(prompt: Messages, tags: Collection[str]) -> list[dict[str, str]]:
    return [{"role": attribute(m["role"]), "content": escape(m["content"], tags)} for m in prompt]


def closed_object(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of an object with exactly these fields, as structured output wants every object to be."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def read_reply(request: JudgeRequest, reply: Reply, read: Callable[[Any], Verdict]) -> Verdict:
    """Read a reply: the stop reason first, then the whole text as one JSON value, which `read` turns into a verdict.

    Returns:
        what `read` returns; without scores where the judge declined (`refused`), was cut off (`truncated`), or where
        its text is no JSON, gives a field twice, or makes `read` raise [`Malformed`] (`malformed`).
    """
    n = len(request.candidates)
    if reply.stop_reason in REFUSED:
        return _unscored("refused", n, _refusal_detail(reply))
    if reply.stop_reason in TRUNCATED:
        return _unscored("truncated", n, f"the judge stopped at its limit (stop reason {reply.stop_reason})")
    try:
        return read(json.loads(reply.raw, object_pairs_hook=_no_repeated_keys, parse_constant=_no_constant))
    except Malformed as error:
        return _unscored("malformed", n, str(error))
    except (ValueError, RecursionError) as error:
        return _unscored("malformed", n, f"no JSON: {type(error).__name__} {error}"[:300])


def check_fields(value: Any, expected: Collection[str], what: str) -> None:
    """Raise [`Malformed`] unless `value` is an object with exactly these fields."""
    if not isinstance(value, Mapping):
        raise Malformed(f"{what} is {shown(value)}, expected an object")
    if missing := sorted(set(expected) - set(value)):
        raise Malformed(f"{what} lacks {shown(missing)}")
    if extra := sorted(set(value) - set(expected)):
        raise Malformed(f"{what} has unknown fields {shown(extra)}")


def check_text(value: Any, what: str) -> str:
    """A string that can be stored: half a surrogate pair (`"\\ud800"` is JSON) has no UTF-8."""
    if not isinstance(value, str):
        raise Malformed(f"{what} is {shown(value)}, expected a string")
    if re.search("[\ud800-\udfff]", value):
        raise Malformed(f"{what} holds half a surrogate pair, which is no text")
    return value


def check_whole(value: Any, low: int, high: int, what: str) -> int:
    """A whole number of JSON within bounds, both included; `true` and `5.0` are none."""
    if type(value) is not int or not low <= value <= high:  # a bool is an int to Python
        raise Malformed(f"{what} is {shown(value)}, expected a whole number {low} to {high}")
    return value


def shown(value: Any) -> str:
    """A value as a detail shows it: at most 80 characters."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


@cache
def source(name: str) -> str:
    """The text of a template of this package."""
    return resources.files("tuna_trl.clients.prompts").joinpath(name).read_text(encoding="utf-8")


@cache
def template(name: str) -> Template:
    """A template of this package; it can include the others."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    # No HTML escaping: the text goes to a model. What needs escaping is escaped by `shown_row`, before rendering.
    environment = Environment(
        loader=FunctionLoader(source),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    return environment.get_template(name)


def _unscored(status: str, n: int, detail: str) -> Verdict:
    return Verdict(status, (None,) * n, None, detail)


def _refusal_detail(reply: Reply) -> str:
    """The category that a client put into a refusal (`{"stop_details": {"category": ...}}`), else the stop reason."""
    try:
        category = json.loads(reply.raw)["stop_details"]["category"]
    except (ValueError, TypeError, KeyError, RecursionError):
        category = None
    return f"refused ({category})" if category else f"refused (no category, stop reason {reply.stop_reason})"


def _no_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        repeated = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise Malformed(f"fields given twice: {shown(repeated)}")
    return result


def _no_constant(name: str) -> Any:
    raise Malformed(f"{name} is no JSON")
