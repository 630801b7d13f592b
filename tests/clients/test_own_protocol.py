"""A user's own protocol: what is wrong with a template or schema is said when it is made, before it is paid for."""

from __future__ import annotations

import json

import pytest
from doubles.judging_protocols import PROMPT, SCHEMA, TEMPLATE, closed, own

from tuna_trl.clients.base import JudgeProtocol, JudgeRequest, Reply
from tuna_trl.clients.own_protocol import OwnProtocol
from tuna_trl.clients.own_schema import check_schema, numbers
from tuna_trl.clients.verdicts import labels
from tuna_trl.errors import InputError


REQUEST = JudgeRequest(PROMPT, ("red", "blue", "a table"), "green", 0, "7f3a")
Q = closed(quality={"type": "integer", "enum": [1, 2, 3]})


def made(template=TEMPLATE, schema=SCHEMA, score="quality", **options):
    return OwnProtocol(template, schema, score=score, **options)


def test_it_shows_what_the_template_says_and_reads_what_the_schema_says():
    protocol = made(score=["quality", "depth.detail"], show_reference=True)
    assert isinstance(protocol, JudgeProtocol)
    system, user = protocol.render(REQUEST)
    assert user.startswith('<said-7f3a by="user">\nName a colour.\n</said-7f3a>\n<reference-7f3a>\ngreen\n')
    assert '<answer-7f3a label="C">\na table\n</answer-7f3a>' in user and "7f3a" in system
    assert protocol.schema(3)["properties"] == dict.fromkeys("ABC", SCHEMA)
    raw = json.dumps({"A": own(1, 0.5), "B": own(3, 0), "C": own(2, 1)})
    verdict = protocol.parse(REQUEST, Reply(raw))
    assert (verdict.status, verdict.scores, verdict.order) == ("ok", (1.5, 3.0, 3.0), None)
    assert made().parse(REQUEST, Reply(raw)).scores == (1.0, 3.0, 2.0)


def test_the_reference_is_given_only_when_switched_on():
    assert "green" not in made().render(REQUEST)[1]
    assert "green" in made(show_reference=True).render(REQUEST)[1]


def test_files_give_the_same_protocol_as_texts(tmp_path):
    (tmp_path / "t.jinja").write_text(TEMPLATE, encoding="utf-8")
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA), encoding="utf-8")
    (tmp_path / "system").write_text("Judge.\n", encoding="utf-8")
    from_files = made(str(tmp_path / "t.jinja"), tmp_path / "s.json", system=tmp_path / "system")
    from_texts = made(system="Judge.\n")
    assert from_files.render(REQUEST) == from_texts.render(REQUEST)
    assert from_files.fingerprint() == from_texts.fingerprint()
    assert from_texts.render(REQUEST)[0] == "Judge."


def test_what_changes_a_verdict_changes_the_fingerprint():
    some = [
        made(),
        made(TEMPLATE + "Judge."),
        made(schema=Q),
        made(score="depth.detail"),
        made(system="Judge.\n"),
        made(show_reference=True),
    ]
    prints = [protocol.fingerprint() for protocol in some]
    assert all(one != other for i, one in enumerate(prints) for other in prints[:i])
    assert made().fingerprint() == prints[0]


BAD_TEMPLATES = {
    "hides the third candidate": (TEMPLATE.replace("in candidates", "in candidates[:2]"), "candidate 3 of 3 whole"),
    "hides all but the first": (TEMPLATE.replace("candidate.text", "candidates[0].text"), "candidate 2 of 2 whole"),
    "cuts candidates": (TEMPLATE.replace("candidate.text", "candidate.text[:500]"), "candidate 1 of 2 whole"),
    "escapes candidates": (TEMPLATE.replace("candidate.text", "candidate.text | e"), "without a filter"),
    "moves lines": (TEMPLATE.replace("candidate.text", "candidate.text | indent(4)"), "without a filter"),
    "shows no candidate": ("{{ nonce }} {{ prompt[0].content }}", "candidate 1 of 2 whole"),
    "shows no labels": (TEMPLATE.replace("candidate.label", "loop.index"), "label of each of 2 candidates"),
    "has no nonce": (TEMPLATE.replace("-{{ nonce }}", ""), "between tags with the nonce"),
    "has a nonce at the top only": (
        "{{ nonce }}\n{% for c in candidates %}{{ c.label }}: {{ c.text }}\n{% endfor %}",
        "between tags with the nonce",
    ),
    "needs a name that is not given": (TEMPLATE + "{{ rubric }}", "'rubric' is undefined"),
    "needs a reference": (TEMPLATE + "{{ reference.upper() }}", "where there may be no reference"),
    "is no Jinja": (TEMPLATE + "{% if %}", "is no Jinja template"),
    "reaches out of the sandbox": (TEMPLATE + "{{ nonce.__class__.__mro__ }}", "unsafe"),
    "changes what it is given": (TEMPLATE + "{{ candidates.clear() }}", "unsafe"),
    "divides by zero": (TEMPLATE + "{{ 1 // 0 }}", "ZeroDivisionError"),
    "never ends": (TEMPLATE + "{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
    "includes a file": (TEMPLATE + "{% include 'other.jinja' %}", "other.jinja"),
    "is a file that is not there": ("nowhere/template.jinja", "cannot be read"),
}


@pytest.mark.parametrize(("template", "says"), BAD_TEMPLATES.values(), ids=BAD_TEMPLATES)
def test_a_template_that_does_not_show_what_it_must_is_refused_when_it_is_made(template, says):
    with pytest.raises(InputError, match=says):
        made(template)


def test_a_system_prompt_is_given_no_text_of_the_row():
    for name in ("candidates", "prompt", "reference"):
        with pytest.raises(InputError, match=f"the system fails.*'{name}' is undefined"):
            made(system=f"Judge {{{{ {name} }}}}.")


def test_a_template_that_hides_a_candidate_of_one_row_only_is_refused_at_that_row():
    protocol = made(TEMPLATE.replace("candidate.text", "candidate.text | replace('blue', '')"))
    protocol.render(JudgeRequest(PROMPT, ("red", "green"), None, 0, "7f3a"))
    with pytest.raises(InputError, match="candidate 2 of 3 whole"):
        protocol.render(REQUEST)


BAD_SCHEMAS = {
    "no object": ([], "expected a JSON schema"),
    "a number": ({"type": "integer"}, "expected an object with a score"),
    "no type": ({"properties": {}}, r"schema\.type is None"),
    "two types": (closed(quality={"type": ["integer", "null"]}), r"properties\.quality\.type"),
    "an unknown type": (closed(quality={"type": "int"}), r"properties\.quality\.type is 'int'"),
    "no properties": ({"type": "object", "required": [], "additionalProperties": False}, r"schema\.properties"),
    "an optional field": (closed(quality={"type": "integer"}) | {"required": []}, r"schema\.required"),
    "open to other fields": (closed(quality={"type": "integer"}) | {"additionalProperties": True}, "must be false"),
    "a word that is not checked": (closed(quality={"type": "integer", "multipleOf": 2}), "'multipleOf'"),
    "a word of another type": (closed(quality={"type": "integer", "minLength": 2}), "'minLength'"),
    "a slip": (closed(quality={"type": "integer", "minimun": 2}), "Did you mean 'minimum'"),
    "an enum that is no list": (closed(quality={"type": "integer", "enum": "123"}), "expected a list of values"),
    "a bound that is no number": (closed(quality={"type": "integer", "minimum": "1"}), "expected a number"),
    "a list of anything": (closed(quality={"type": "integer"}, tags={"type": "array"}), r"tags\.items"),
    "a dot in a name": (closed(**{"a.b": {"type": "integer"}}), "name it without"),
    "a file that is not there": ("nowhere/schema.json", "cannot be read"),
}


@pytest.mark.parametrize(("schema", "says"), BAD_SCHEMAS.values(), ids=BAD_SCHEMAS)
def test_a_schema_that_would_not_be_checked_is_refused_when_it_is_made(schema, says):
    with pytest.raises(InputError, match=says):
        made(schema=schema)


def test_a_schema_file_that_is_no_json_is_named(tmp_path):
    (tmp_path / "s.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="is no JSON"):
        made(schema=tmp_path / "s.json")


@pytest.mark.parametrize("score", ["why", "depth", "depth.tags", "detail", "quality.x", "", [], ["quality", "qualty"]])
def test_a_score_that_is_no_number_of_the_schema_is_refused_with_those_that_are(score):
    with pytest.raises(InputError, match="quality.*depth.detail"):
        made(score=score)


def test_numbers_are_found_at_any_depth_and_remarks_are_allowed():
    check_schema(SCHEMA | {"title": "Verdict", "description": "x", "$schema": "y"})
    assert list(numbers(SCHEMA)) == ["quality", "depth.detail"]


def test_with_many_candidates_every_one_has_a_label_of_its_own():
    n = 30
    request = JudgeRequest(PROMPT, tuple(f"text {i}" for i in range(n)), None, 0, "7f3a")
    protocol = made(schema=Q)
    user = protocol.render(request)[1]
    assert all(f'label="{label}">\ntext {i}\n' in user for i, label in enumerate(labels(n)))
    raw = json.dumps({label: {"quality": 1 + i % 3} for i, label in enumerate(labels(n))})
    assert protocol.parse(request, Reply(raw)).scores == tuple(1.0 + i % 3 for i in range(n))


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "9" * 400, "9007199254740993", "1e300"])
def test_a_number_without_bounds_is_still_one_that_a_score_can_hold(number):
    one = closed(quality={"type": "number"})
    protocol = made(schema=one)
    request = JudgeRequest(PROMPT, ("red",), None, 0, "7f3a")
    assert protocol.parse(request, Reply(f'{{"A": {{"quality": {number}}}}}')).status == "malformed"
    assert protocol.parse(request, Reply('{"A": {"quality": -2.5e3}}')).scores == (-2500.0,)
