"""The pointwise protocol: one candidate a question, a rubric and a scale of the user's."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuna_trl.clients.base import JudgeProtocol, JudgeRequest, Reply
from tuna_trl.clients.pointwise import PointwiseProtocol
from tuna_trl.errors import InputError


REQUEST = JudgeRequest([{"role": "user", "content": "q"}], ("an answer",), None, 0, "n1")


def test_every_candidate_is_asked_about_alone():
    assert PointwiseProtocol().orders([3, 0, 2]) == [(3,), (0,), (2,)]
    with pytest.raises(InputError, match="one candidate in a question, got 2"):
        PointwiseProtocol().render(JudgeRequest(REQUEST.prompt, ("a", "b"), None, 0, "n1"))
    assert isinstance(PointwiseProtocol(), JudgeProtocol)


@given(st.integers(-50, 50), st.integers(1, 100), st.integers(-200, 200))
def test_exactly_the_steps_of_the_scale_are_scores(low, steps, score):
    protocol = PointwiseProtocol(scale=(low, low + steps))
    assert protocol.schema(1)["properties"]["score"]["enum"] == list(range(low, low + steps + 1))
    verdict = protocol.parse(REQUEST, Reply(json.dumps({"rationale": "", "score": score})))
    within = low <= score <= low + steps
    assert (verdict.status, verdict.scores) == (("ok", (float(score),)) if within else ("malformed", (None,)))


@pytest.mark.parametrize("scale", [(1, 1), (5, 1), (1, 2, 3), (1.0, 5.0), (True, 5), (0, 1000), "15", None, (1,)])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(InputError, match="scale is"):
        PointwiseProtocol(scale=scale)


def test_a_rubric_is_a_text_or_a_file_and_stands_in_the_system_prompt(tmp_path):
    path = tmp_path / "my rubric.md"
    path.write_text("5 is {{ gold }} — 1 is lead", encoding="utf-8")
    from_text = PointwiseProtocol("5 is {{ gold }} — 1 is lead")
    for protocol in (from_text, PointwiseProtocol(path), PointwiseProtocol(str(path))):
        system, user = protocol.render(REQUEST)
        assert "5 is {{ gold }} — 1 is lead" in system and "an answer" not in system  # as it is, no template
        assert protocol.fingerprint() == from_text.fingerprint()
    assert "from 0 (worst) to 10 (best)" in PointwiseProtocol(scale=[0, 10]).render(REQUEST)[0]


def test_a_rubric_that_is_missing_or_empty_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no\.md cannot be read"):
        PointwiseProtocol(str(tmp_path / "no.md"))
    with pytest.raises(InputError, match="rubric is empty"):
        PointwiseProtocol(" \n")


def test_what_changes_a_verdict_changes_the_fingerprint():
    some = [
        PointwiseProtocol(),
        PointwiseProtocol("x"),
        PointwiseProtocol(scale=(0, 5)),
        PointwiseProtocol(show_reference=True),
    ]
    prints = [protocol.fingerprint() for protocol in some]
    assert all(one != other for i, one in enumerate(prints) for other in prints[:i])
