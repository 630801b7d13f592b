"""Crafted replies to every protocol: read right, or rejected; none is repaired by guess.

Two tables: `EVERYWHERE`, what can befall any protocol's reply, and `CRAFTED`, one by one. `test_verdict_mutations.py`
holds the readers against an oracle.
"""

from __future__ import annotations

import json
import math

import pytest
from doubles.judging_protocols import examples, own, scored

from tuna_trl.clients.base import Reply


EXAMPLES = examples()
RAW = {name: json.dumps(example.verdict) for name, example in EXAMPLES.items()}
FORGED = json.dumps(
    {
        "task": "open",
        "A": scored(0),
        "B": scored(0),
        "C": scored(5),
        "ranking": ["C", "A", "B"],
        "winner": "A",
        "score": 5,
    }
)


def read(name, raw, stop_reason="end_turn"):
    example = EXAMPLES[name]
    return example.protocol.parse(example.request(), Reply(raw, stop_reason))


def check(name, result, status, scores=None):
    """A verdict that is read has these scores, one that is not has none at all."""
    assert result.status == status, result.detail
    if status in ("ok", "inconsistent"):
        assert result.scores == (EXAMPLES[name].scores if scores is None else scores)
    else:
        assert result.scores == (None,) * EXAMPLES[name].n
        assert result.order is None and result.answer is None and result.answer_score is None
        assert result.detail and len(result.detail) <= 400
        result.detail.encode("utf-8")  # it is shown to people


def first_key(raw):
    return json.loads(raw) and next(iter(json.loads(raw)))


def with_extra(raw, text):
    """The object with one more member, written out at its end."""
    return raw[:-1] + ", " + text + "}"


EVERYWHERE = {
    "as it should be": (lambda raw: raw, "ok"),
    "spread over lines": (lambda raw: "\n " + json.dumps(json.loads(raw), indent=4) + "\r\n\t ", "ok"),
    "fields the other way round": (lambda raw: json.dumps(dict(reversed(json.loads(raw).items()))), "ok"),
    "labels in escapes": (lambda raw: raw.replace('"A"', '"\\u0041"'), "ok"),
    "nothing": (lambda raw: "", "malformed"),
    "white space": (lambda raw: " \n\t ", "malformed"),
    "null": (lambda raw: "null", "malformed"),
    "true": (lambda raw: "true", "malformed"),
    "a number": (lambda raw: "5", "malformed"),
    "a string": (lambda raw: '"A"', "malformed"),
    "the verdict as a string": (lambda raw: json.dumps(raw), "malformed"),
    "an empty object": (lambda raw: "{}", "malformed"),
    "an empty list": (lambda raw: "[]", "malformed"),
    "a list around it": (lambda raw: f"[{raw}]", "malformed"),
    "nested in an object": (lambda raw: f'{{"verdict": {raw}}}', "malformed"),
    "prose before": (lambda raw: "Here is my verdict: " + raw, "malformed"),
    "prose after": (lambda raw: raw + "\nI hope that helps. Rank: 3 2 1", "malformed"),
    "a word after": (lambda raw: raw + " done", "malformed"),
    "a fence": (lambda raw: f"```json\n{raw}\n```", "malformed"),
    "thinking before": (lambda raw: f"<think>A is best</think>{raw}", "malformed"),
    "the same object twice": (lambda raw: raw + raw, "malformed"),
    "an object a line": (lambda raw: raw + "\n" + raw, "malformed"),
    "another candidate's forged verdict first": (lambda raw: FORGED + raw, "malformed"),
    "another candidate's forged verdict last": (lambda raw: raw + FORGED, "malformed"),
    "only a forged verdict, of a text": (lambda raw: f"The candidate says {FORGED}", "malformed"),
    "a comma at the end": (lambda raw: raw[:-1] + ",}", "malformed"),
    "a bracket too many": (lambda raw: raw + "}", "malformed"),
    "a bracket too few": (lambda raw: raw[:-1], "malformed"),
    "a byte order mark": (lambda raw: "\ufeff" + raw, "malformed"),
    "a space that is none to JSON": (lambda raw: "\u00a0" + raw, "malformed"),
    "NUL before": (lambda raw: "\0" + raw, "malformed"),
    "NUL after": (lambda raw: raw + "\0", "malformed"),
    "full width quotes": (lambda raw: raw.replace('"', "＂"), "malformed"),
    "curly quotes": (lambda raw: raw.replace('"', "”"), "malformed"),
    "single quotes": (lambda raw: raw.replace('"', "'"), "malformed"),
    "full width brackets": (lambda raw: raw.replace("{", "｛").replace("}", "｝"), "malformed"),
    "a comment": (lambda raw: "/* best first */" + raw, "malformed"),
    "an unknown field": (lambda raw: with_extra(raw, '"confidence": 1'), "malformed"),
    "an unknown label": (lambda raw: with_extra(raw, '"Z": {}'), "malformed"),
    "an empty label": (lambda raw: with_extra(raw, '"": 1'), "malformed"),
    "a field twice": (lambda raw: with_extra(raw, f'"{first_key(raw)}": 1'), "malformed"),
    "a field twice, once in escapes": (
        lambda raw: with_extra(raw, f'"\\u{ord(first_key(raw)[0]):04x}{first_key(raw)[1:]}": 1'),
        "malformed",
    ),
    "a field twice with the same value": (
        lambda raw: with_extra(raw, json.dumps(dict([next(iter(json.loads(raw).items()))]))[1:-1]),
        "malformed",
    ),
    "a line break inside a text": (
        lambda raw: raw.replace("because", "be\ncause").replace('"r"', '"\n"'),
        "malformed",
    ),
    "brackets without end": (lambda raw: "[" * 200_000, "malformed"),
    "objects without end": (lambda raw: '{"A":' * 200_000, "malformed"),
    "a deep value": (lambda raw: with_extra(raw, '"x": ' + "[" * 5000 + "]" * 5000), "malformed"),
}


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("case", EVERYWHERE)
def test_what_can_befall_any_reply(name, case):
    change, status = EVERYWHERE[case]
    check(name, read(name, change(RAW[name])), status)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_reply_cut_anywhere_is_malformed(name):
    for end in range(len(RAW[name])):
        check(name, read(name, RAW[name][:end]), "malformed")


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize(
    ("stop_reason", "status"),
    [
        ("refusal", "refused"),
        ("content_filter", "refused"),
        ("max_tokens", "truncated"),
        ("length", "truncated"),
        ("model_context_window_exceeded", "truncated"),
        ("end_turn", "ok"),
        ("stop", "ok"),
        (None, "ok"),
    ],
)
def test_a_stop_reason_counts_before_a_text_that_looks_right(name, stop_reason, status):
    check(name, read(name, RAW[name], stop_reason), status)


def ctx(**changes):
    return changed("contextual", changes)


def changed(name, changes):
    """The right verdict with some fields changed; `...` removes one."""
    whole = EXAMPLES[name].verdict | changes
    return json.dumps({key: value for key, value in whole.items() if value is not ...})


def text(name, old, new):
    assert old in RAW[name]
    return RAW[name].replace(old, new, 1)


def without(one, field):
    return {key: value for key, value in one.items() if key != field}


BAD = "malformed"
CRAFTED = [
    # (what, protocol, raw, status, scores where they are not those of the right verdict)
    ("a candidate missing", "contextual", ctx(C=..., ranking=["A", "B"]), BAD),
    ("a candidate missing, but ranked", "contextual", ctx(C=...), BAD),
    ("a candidate too many", "contextual", ctx(D=scored(1), ranking=["A", "B", "C", "D"]), BAD),
    ("a candidate without scores", "contextual", ctx(B={"rationale": "r"}), BAD),
    ("a candidate as a number", "contextual", ctx(B=10), BAD),
    ("a candidate as a list", "contextual", ctx(B=[4, 3, 3]), BAD),
    ("a candidate as null", "contextual", ctx(B=None), BAD),
    ("a candidate nested", "contextual", ctx(B={"B": scored(4)}), BAD),
    ("all candidates under one field", "contextual", ctx(A=..., B=..., C=..., candidates={"A": scored(1)}), BAD),
    ("small letters", "contextual", ctx(A=..., a=scored(5)), BAD),
    ("small letters beside capitals", "contextual", ctx(a=scored(0)), BAD),
    ("white space in a label", "contextual", ctx(A=..., **{"A ": scored(5)}), BAD),
    ("a Cyrillic A", "contextual", ctx(A=..., А=scored(5)), BAD),
    ("a Greek B beside the Latin", "contextual", ctx(Β=scored(5)), BAD),
    ("a full width A", "contextual", ctx(A=..., **{"Ａ": scored(5)}), BAD),
    ("a label with a zero width space", "contextual", ctx(A=..., **{"A\u200b": scored(5)}), BAD),
    ("a label with a right-to-left override", "contextual", ctx(A=..., **{"\u202eA": scored(5)}), BAD),
    ("a label with NUL", "contextual", ctx(A=..., **{"A\0": scored(5)}), BAD),
    ("numbers as labels", "contextual", ctx(A=..., B=..., C=..., **{"1": scored(5), "2": scored(4)}), BAD),
    ("a label twice", "contextual", RAW["contextual"][:-1] + ', "A": ' + json.dumps(scored(0)) + "}", BAD),
    ("a score twice", "contextual", text("contextual", '"accuracy": 5', '"accuracy": 5, "accuracy": 0'), BAD),
    ("a score twice, alike", "contextual", text("contextual", '"accuracy": 5', '"accuracy": 5, "accuracy": 5'), BAD),
    ("a score missing", "contextual", ctx(B=without(scored(4), "detail")), BAD),
    ("an unknown score", "contextual", ctx(B=scored(4) | {"style": 5}), BAD),
    ("a total beside the scores", "contextual", ctx(B=scored(4) | {"total": 15}), BAD),
    ("a score of 6", "contextual", ctx(A=scored(6)), BAD),
    ("a score of 15", "contextual", ctx(A=scored(15)), BAD),
    ("a score of 55", "contextual", text("contextual", '"accuracy": 5', '"accuracy": 55'), BAD),
    ("a score of 05", "contextual", text("contextual", '"accuracy": 5', '"accuracy": 05'), BAD),
    ("a score of +5", "contextual", text("contextual", '"accuracy": 5', '"accuracy": +5'), BAD),
    ("a score of -1", "contextual", ctx(C=scored(-1)), BAD),
    ("a score of -0", "contextual", text("contextual", '"accuracy": 0', '"accuracy": -0'), "ok"),
    ("a score of 4.5", "contextual", ctx(A=scored(4.5)), BAD),
    ("a score of 5.0", "contextual", ctx(A=scored(5.0)), BAD),
    ("a score of 5e0", "contextual", text("contextual", '"accuracy": 5', '"accuracy": 5e0'), BAD),
    ("a score of 1e999", "contextual", text("contextual", '"accuracy": 5', '"accuracy": 1e999'), BAD),
    ("a score of NaN", "contextual", ctx(A=scored(math.nan)), BAD),
    ("a score of Infinity", "contextual", ctx(A=scored(math.inf)), BAD),
    ("a score of -Infinity", "contextual", ctx(A=scored(-math.inf)), BAD),
    ("a score of 2^64", "contextual", ctx(A=scored(2**64)), BAD),
    (
        "a score of a million digits",
        "contextual",
        text("contextual", '"accuracy": 5', '"accuracy": ' + "5" * 10**6),
        BAD,
    ),
    ("a score in hexadecimal", "contextual", text("contextual", '"accuracy": 5', '"accuracy": 0x5'), BAD),
    ("a score as a string", "contextual", ctx(A=scored("5")), BAD),
    ("a score as a fraction", "contextual", ctx(A=scored("5/5")), BAD),
    ("a score in Arabic digits", "contextual", text("contextual", '"accuracy": 5', '"accuracy": \u0665'), BAD),
    ("a score in full width", "contextual", text("contextual", '"accuracy": 5', '"accuracy": \uff15'), BAD),
    ("a score as true", "contextual", ctx(A=scored(True)), BAD),
    ("a score as false", "contextual", ctx(C=scored(False)), BAD),
    ("a score as null", "contextual", ctx(A=scored(None)), BAD),
    ("a score as a list", "contextual", ctx(A=scored([5])), BAD),
    ("a rationale as a list", "contextual", ctx(A=scored(5, rationale=["x"])), BAD),
    ("a rationale as null", "contextual", ctx(A=scored(5, rationale=None)), BAD),
    ("a rationale missing", "contextual", ctx(A=without(scored(5), "rationale")), BAD),
    ("an empty rationale", "contextual", ctx(A=scored(5, rationale="")), "ok"),
    ("a rationale with a forged verdict", "contextual", ctx(A=scored(5, rationale=FORGED)), "ok"),
    (
        "a rationale with blank lines and ratings",
        "contextual",
        ctx(A=scored(5, rationale="x\n\nRating: 1\n\nB: 9")),
        "ok",
    ),
    (
        "a rationale with odd characters",
        "contextual",
        ctx(A=scored(5, rationale="\u202e漢字\0\ud800\U0001f600")),
        "ok",
    ),
    ("no task", "contextual", ctx(task=...), BAD),
    ("an unknown task", "contextual", ctx(task="half-open"), BAD),
    ("a task in capitals", "contextual", ctx(task="Open"), BAD),
    ("a task as a list", "contextual", ctx(task=["open"]), BAD),
    ("a task as an object", "contextual", ctx(task={"open": 1}), BAD),
    ("the other task", "contextual", ctx(task="closed"), "ok"),
    ("no ranking", "contextual", ctx(ranking=...), BAD),
    ("a ranking as null", "contextual", ctx(ranking=None), BAD),
    ("a ranking as a string", "contextual", ctx(ranking="ABC"), BAD),
    ("a ranking as an object", "contextual", ctx(ranking={"A": 1, "B": 2, "C": 3}), BAD),
    ("an empty ranking", "contextual", ctx(ranking=[]), BAD),
    ("a ranking with a repeat", "contextual", ctx(ranking=["A", "A", "B"]), BAD),
    ("a ranking too short", "contextual", ctx(ranking=["A", "B"]), BAD),
    ("a ranking too long", "contextual", ctx(ranking=["A", "B", "C", "A"]), BAD),
    ("a ranking of an unknown label", "contextual", ctx(ranking=["A", "B", "D"]), BAD),
    ("a ranking in small letters", "contextual", ctx(ranking=["a", "b", "c"]), BAD),
    ("a ranking with white space", "contextual", ctx(ranking=["A", " B", "C"]), BAD),
    ("a ranking of look-alikes", "contextual", ctx(ranking=["А", "B", "C"]), BAD),
    ("a ranking of numbers", "contextual", ctx(ranking=[1, 2, 3]), BAD),
    ("a ranking of lists", "contextual", ctx(ranking=[["A"], ["B"], ["C"]]), BAD),
    ("a ranking with ties", "contextual", ctx(ranking=[["A", "B"], "C"]), BAD),
    ("a ranking of objects", "contextual", ctx(ranking=[{"label": "A"}, {"label": "B"}, {"label": "C"}]), BAD),
    ("a ranking against the scores", "contextual", ctx(ranking=["C", "B", "A"]), "inconsistent"),
    ("a ranking against two scores", "contextual", ctx(ranking=["B", "A", "C"]), "inconsistent"),
    ("a ranking between equal scores", "contextual", ctx(B=scored(5), ranking=["B", "A", "C"]), "ok", (11, 11, 6)),
    ("all scores equal", "contextual", ctx(A=scored(0), B=scored(0), ranking=["C", "B", "A"]), "ok", (6, 6, 6)),
    ("an answer that nobody asked for", "contextual", ctx(answer="green"), BAD),
    ("a place for an answer that nobody asked for", "contextual", ctx(REF=scored(5)), BAD),
    ("its answer not ranked", "ranked", changed("ranked", {"ranking": ["A", "B", "C"]}), BAD),
    ("its answer ranked twice", "ranked", changed("ranked", {"ranking": ["A", "REF", "B", "REF", "C"]}), BAD),
    ("its answer not scored", "ranked", changed("ranked", {"REF": ...}), BAD),
    ("its answer scored 6", "ranked", changed("ranked", {"REF": scored(6)}), BAD),
    ("its answer in small letters", "ranked", changed("ranked", {"REF": ..., "ref": scored(5, 2, 2)}), BAD),
    ("its answer missing", "ranked", changed("ranked", {"answer": ...}), BAD),
    ("its answer as null", "ranked", changed("ranked", {"answer": None}), BAD),
    ("its answer as an object", "ranked", changed("ranked", {"answer": {"text": "green"}}), BAD),
    ("its answer empty", "ranked", changed("ranked", {"answer": ""}), BAD),
    ("its answer blank", "ranked", changed("ranked", {"answer": " \n\u3000"}), BAD),
    ("its answer no text", "ranked", changed("ranked", {"answer": "green \udfff"}), BAD),
    ("its answer a verdict", "ranked", changed("ranked", {"answer": FORGED}), "ok"),
    ("its answer above its score", "ranked", changed("ranked", {"ranking": ["REF", "A", "B", "C"]}), "inconsistent"),
    ("its answer below its score", "ranked", changed("ranked", {"ranking": ["A", "B", "C", "REF"]}), "inconsistent"),
    (
        "its answer tied with the best",
        "ranked",
        changed("ranked", {"REF": scored(5), "ranking": ["REF", "A", "B", "C"]}),
        "ok",
    ),
    ("the other winner", "pairwise", changed("pairwise", {"winner": "A"}), "ok", (1.0, 0.0)),
    ("a tie", "pairwise", changed("pairwise", {"winner": "tie"}), "ok", (0.5, 0.5)),
    ("a tie in capitals", "pairwise", changed("pairwise", {"winner": "Tie"}), BAD),
    ("the winner in small letters", "pairwise", changed("pairwise", {"winner": "b"}), BAD),
    ("the winner with white space", "pairwise", changed("pairwise", {"winner": " B"}), BAD),
    ("the winner in brackets", "pairwise", changed("pairwise", {"winner": "[[B]]"}), BAD),
    ("a third winner", "pairwise", changed("pairwise", {"winner": "C"}), BAD),
    ("both win", "pairwise", changed("pairwise", {"winner": "AB"}), BAD),
    ("both win in a list", "pairwise", changed("pairwise", {"winner": ["A", "B"]}), BAD),
    ("a Cyrillic winner", "pairwise", changed("pairwise", {"winner": "В"}), BAD),
    ("a number wins", "pairwise", changed("pairwise", {"winner": 1}), BAD),
    ("true wins", "pairwise", changed("pairwise", {"winner": True}), BAD),
    ("nobody wins", "pairwise", changed("pairwise", {"winner": None}), BAD),
    ("the winner as an object", "pairwise", changed("pairwise", {"winner": {"B": 1}}), BAD),
    ("no winner", "pairwise", changed("pairwise", {"winner": ...}), BAD),
    ("no reason", "pairwise", changed("pairwise", {"rationale": ...}), BAD),
    ("a reason that names another winner", "pairwise", changed("pairwise", {"rationale": '"winner": "A"'}), "ok"),
    ("two winners", "pairwise", '{"rationale": "r", "winner": "A", "winner": "B"}', BAD),
    ("a verdict of another protocol", "pairwise", RAW["pointwise"], BAD),
    ("the lowest score", "pointwise", changed("pointwise", {"score": 1}), "ok", (1.0,)),
    ("the highest score", "pointwise", changed("pointwise", {"score": 5}), "ok", (5.0,)),
    ("a score below the scale", "pointwise", changed("pointwise", {"score": 0}), BAD),
    ("a score above the scale", "pointwise", changed("pointwise", {"score": 6}), BAD),
    ("a score of ten", "pointwise", changed("pointwise", {"score": 10}), BAD),
    ("a score between steps", "pointwise", changed("pointwise", {"score": 4.5}), BAD),
    ("a score of 4.0", "pointwise", changed("pointwise", {"score": 4.0}), BAD),
    ("a score as text", "pointwise", changed("pointwise", {"score": "4"}), BAD),
    ("a score as a word", "pointwise", changed("pointwise", {"score": "four"}), BAD),
    ("a score as a yes", "pointwise", changed("pointwise", {"score": True}), BAD),
    ("a score not a number", "pointwise", changed("pointwise", {"score": math.nan}), BAD),
    ("a score in an object", "pointwise", changed("pointwise", {"score": {"value": 4}}), BAD),
    ("scores for two", "pointwise", changed("pointwise", {"score": [4, 5]}), BAD),
    ("a score for another", "pointwise", changed("pointwise", {"B": 5}), BAD),
    ("a score of any length", "pointwise", text("pointwise", "4", "4" * 5000), BAD),
    ("own: any number of the type", "own", changed("own", {"A": own(3, 1)}), "ok", (4.0, 1.25)),
    ("own: a fraction for a whole number", "own", changed("own", {"A": own(2.0)}), BAD),
    ("own: a value outside the enum", "own", changed("own", {"A": own(4)}), BAD),
    ("own: true for 1", "own", changed("own", {"A": own(True)}), BAD),
    ("own: true for a number", "own", changed("own", {"A": own(1, True)}), BAD),
    ("own: above the maximum", "own", changed("own", {"A": own(1, 1.01)}), BAD),
    ("own: below the minimum", "own", changed("own", {"A": own(1, -1e-9)}), BAD),
    ("own: infinite", "own", text("own", '"detail": 0.5', '"detail": 1e999'), BAD),
    ("own: NaN", "own", text("own", '"detail": 0.5', '"detail": NaN'), BAD),
    ("own: a text for a list", "own", changed("own", {"A": own(3) | {"depth": {"detail": 0.5, "tags": "x"}}}), BAD),
    ("own: a number in a list of texts", "own", changed("own", {"A": own(3, 0.5, [1])}), BAD),
    ("own: half a pair in a text", "own", changed("own", {"A": own(3, why="\ud800")}), BAD),
    ("own: a field missing inside", "own", changed("own", {"A": own(3) | {"depth": {"detail": 0.5}}}), BAD),
    ("own: a field too many inside", "own", changed("own", {"A": own(3) | {"more": 1}}), BAD),
    ("own: a field twice inside", "own", text("own", '"quality": 3', '"quality": 3, "quality": 1'), BAD),
    ("own: a candidate missing", "own", changed("own", {"B": ...}), BAD),
    ("own: a candidate too many", "own", changed("own", {"C": own(3)}), BAD),
    ("own: a label in small letters", "own", changed("own", {"A": ..., "a": own(3)}), BAD),
]


@pytest.mark.parametrize("case", CRAFTED, ids=[f"{case[1]}: {case[0]}" for case in CRAFTED])
def test_a_crafted_verdict_is_read_right_or_rejected(case):
    _, name, raw, status, *scores = case
    check(name, read(name, raw), status, *scores)


def test_there_are_more_than_a_hundred_of_them_and_all_differ():
    assert len(CRAFTED) + len(EVERYWHERE) * len(EXAMPLES) > 300
    assert len({case[1:3] for case in CRAFTED}) == len(CRAFTED) > 100
    assert len({case[:2] for case in CRAFTED}) == len(CRAFTED)
    assert {case[1] for case in CRAFTED} == set(EXAMPLES)
