"""The reference judges are ROUGE-L and exact match against the given answer, and say which column they miss."""

from __future__ import annotations

import json
import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tuna_trl.clients.base import Judge, JudgeRequest, Reply, Usage
from tuna_trl.clients.reference import ExactMatchJudge, ReferenceJudge, normalised
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


def oracle_of_super_ni(text):
    """Super-NaturalInstructions' `normalize_answer`, character by character."""
    return " ".join(re.split(r"\s+", "".join(c for c in text.lower() if c not in set(string.punctuation)))).strip()


@given(st.text("aA the.,!é\n\t-5", max_size=12), st.lists(st.text("aA the.,!é\n\t-5", max_size=12), max_size=4))
@settings(deadline=None)
def test_exact_match_is_the_rule_of_super_ni(reference, candidates):
    judge, request = ExactMatchJudge(), JudgeRequest(PROMPT, (*candidates, reference.upper()), reference)
    (reply,) = judge.ask([request])
    verdict = judge.parse(request, Reply.from_json(json.loads(json.dumps(reply.to_json()))))
    expected = [float(oracle_of_super_ni(text) == oracle_of_super_ni(reference)) for text in request.candidates]
    assert verdict.status == "ok" and list(verdict.scores) == expected and expected[-1] == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat.", "the cat"),
        (" Yes!\n", "yes"),
        ("3.5", "35"),
        ("don't", "dont"),
        ("a  b\tc", "a b c"),
        ("。", "。"),
    ],
)
def test_normalisation_keeps_articles_and_drops_marks(text, expected):
    assert normalised(text) == expected


def test_exact_match_is_another_judge_than_rouge():
    judge = ExactMatchJudge()
    assert isinstance(judge, Judge)
    assert (judge.method, judge.name, judge.paid) == ("reference", "reference:exact-match", False)
    assert judge.fingerprint() != ReferenceJudge().fingerprint()
    with pytest.raises(InputError, match="column 'reference' is missing or null"):
        judge.ask([JudgeRequest(PROMPT, ("a",), None)])
