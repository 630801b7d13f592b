"""Mutations of right verdicts: each is read as an oracle reads it, or rejected.

The oracle is a reader written from the schemas alone: what they allow, and what the scores then are. It knows nothing
of the protocols' own readers.
"""

from __future__ import annotations

import json
import math

from doubles.judging_protocols import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_trl.clients.base import Reply
from tuna_trl.clients.contextual import SCORES


EXAMPLES = examples()
RAW = {name: json.dumps(example.verdict) for name, example in EXAMPLES.items()}
TYPES = {"string": str, "integer": int, "number": (int, float), "array": list, "object": dict}


def allowed(value, schema):
    """Whether a decoded value is what a schema says (the few words that our schemas use)."""
    if not isinstance(value, TYPES[schema["type"]]) or isinstance(value, bool):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if (
        not schema.get("minimum", -math.inf)
        <= (value if schema["type"] == "number" else 0)
        <= schema.get("maximum", 2**53)
    ):
        return False
    if schema["type"] == "array":
        return all(allowed(item, schema["items"]) for item in value)
    if schema["type"] == "object":
        fields = schema["properties"]
        return set(value) == set(fields) and all(allowed(value[field], fields[field]) for field in fields)
    return True


def unique(pairs):
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def expected(name, raw):
    """(status, scores) of a reply by its schema."""
    example = EXAMPLES[name]
    try:
        value = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return "malformed", None
    if not allowed(value, example.protocol.schema(example.n)):
        return "malformed", None
    if name == "pairwise":
        return "ok", {"A": (1, 0), "B": (0, 1), "tie": (0.5, 0.5)}[value["winner"]]
    if name == "pointwise":
        return "ok", (value["score"],)
    if name == "own":
        if any(
            0xD800 <= ord(c) < 0xE000
            for label in "AB"
            for t in [value[label]["why"], *value[label]["depth"]["tags"]]
            for c in t
        ):
            return "malformed", None
        return "ok", tuple(value[label]["quality"] + value[label]["depth"]["detail"] for label in "AB")
    names = ["A", "B", "C", "REF"][: 4 if name == "ranked" else 3]
    if sorted(value["ranking"]) != sorted(names):
        return "malformed", None
    if name == "ranked" and (not value["answer"].strip() or any(0xD800 <= ord(c) < 0xE000 for c in value["answer"])):
        return "malformed", None
    sums = {label: sum(value[label][field] for field in SCORES) for label in names}
    by_ranking = [sums[label] for label in value["ranking"]]
    consistent = by_ranking == sorted(by_ranking, reverse=True)
    return ("ok" if consistent else "inconsistent"), tuple(sums[label] for label in "ABC")


def check(name, raw):
    """Hold a protocol's reading of a reply against the oracle's."""
    example = EXAMPLES[name]
    result = example.protocol.parse(example.request(), Reply(raw, "end_turn"))
    status, scores = expected(name, raw)
    assert result.status == status, result.detail
    assert result.scores == ((None,) * example.n if scores is None else scores)


PIECES = ["0", "1", "5", "15", "-", ".", "e", '"', "{", "}", "[", "]", ",", ":", " ", "\n", "\\", "A", "B", "C", "REF"]
PIECES += ["true", "null", "NaN", '"A"', '"ranking"', '"winner"', '"tie"', '"score": 5', "\0", "\ufeff", "\u200b", "А"]


@st.composite
def mutations(draw):
    """(protocol, right verdict with a few pieces cut out, put in, repeated or exchanged)."""
    name = draw(st.sampled_from(sorted(EXAMPLES)))
    raw = RAW[name]
    for _ in range(draw(st.integers(1, 4))):
        start, end = sorted(draw(st.tuples(st.integers(0, len(raw)), st.integers(0, len(raw)))))
        end = min(end, start + draw(st.sampled_from([0, 1, 2, 5, 1000])))
        new = draw(st.sampled_from(["", raw[start:end] * 2, *PIECES]) | st.text(max_size=3))
        raw = raw[:start] + new + raw[end:]
    return name, raw


@given(mutations())
@settings(deadline=None, max_examples=600)
def test_any_mutation_is_read_as_the_schema_says_or_rejected(case):
    name, raw = case
    check(name, raw)


@st.composite
def replaced_values(draw):
    """(protocol, right verdict with one value, at any depth, exchanged for another of its kind or of none)."""
    name = draw(st.sampled_from(sorted(EXAMPLES)))
    value = json.loads(RAW[name])
    odd = st.sampled_from(
        [None, True, 0, 1, 2, 3, 5, 6, -1, 0.5, 4.0, "", "A", "B", "C", "tie", "open", [], {}, ["A"], 10**30]
    )
    parent, key = value, draw(st.sampled_from(sorted(value)))
    while isinstance(parent[key], (dict, list)) and parent[key] and draw(st.booleans()):
        parent = parent[key]
        key = draw(st.sampled_from(sorted(parent) if isinstance(parent, dict) else range(len(parent))))
    parent[key] = draw(odd | st.permutations(["A", "B", "C"]) | st.permutations(["A", "B", "C", "REF"]))
    return name, json.dumps(value)


@given(replaced_values())
@settings(deadline=None, max_examples=600)
def test_any_exchanged_value_is_read_as_the_schema_says_or_rejected(case):
    name, raw = case
    check(name, raw)
