"""The reference judge is ROUGE-L against the given answer, and says which column it misses."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tuna_trl.clients.base import Judge, JudgeRequest, Reply, Usage
from tuna_trl.clients.reference import ReferenceJudge
from tuna_trl.errors import InputError


PROMPT = [{"role": "user", "content": "Hi"}]
ORACLE = RougeScorer(["rougeL"], use_stemmer=True)


@given(st.text(max_size=30), st.lists(st.text("abc deé\n", max_size=30), min_size=1, max_size=5))
@settings(deadline=None)
def test_scores_are_those_of_rouge_score_after_a_trip_through_the_journal(reference, candidates):
    judge = ReferenceJudge()
    request = JudgeRequest(PROMPT, tuple(candidates), reference)
    (reply,) = judge.ask([request])
    verdict = judge.parse(request, Reply.from_json(json.loads(json.dumps(reply.to_json()))))
    assert verdict.status == "ok" and verdict.order is None
    assert list(verdict.scores) == [ORACLE.score(reference, text)["rougeL"].fmeasure for text in candidates]


def test_a_request_without_a_reference_names_the_column_and_ways_out():
    with pytest.raises(InputError, match="column 'reference' is missing or null.*AnthropicJudge"):
        ReferenceJudge().ask([JudgeRequest(PROMPT, ("a",), None)])


@pytest.mark.parametrize(
    "raw", ["", "[]", "{}", '{"scores": 1}', '{"scores": [0.5]}', '{"scores": [0.5, NaN]}', '{"scores": [1, "a"]}']
)
def test_a_damaged_reply_is_malformed(raw):
    request = JudgeRequest(PROMPT, ("a", "b"), "a")
    assert ReferenceJudge().parse(request, Reply(raw)).status == "malformed"


def test_it_is_a_free_judge_and_labelled_so():
    judge = ReferenceJudge()
    assert isinstance(judge, Judge)
    assert (judge.method, judge.name, judge.paid) == ("reference", "reference:rouge-l", False)
    assert judge.cost(Usage(input=10**9)) == judge.worst_case_cost(JudgeRequest(PROMPT, ("a",))) == 0.0
