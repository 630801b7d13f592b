"""ROUGE-L equals rouge_score, whose slow implementation is the oracle."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tuna_trl.clients.rouge import RougeL


ORACLE = RougeScorer(["rougeL"], use_stemmer=True)
ROUGE = RougeL()

words = st.sampled_from(
    "the a cat cats sleeping sleeps slept running run happily happiness 42 3.14 it's re-run Ünïcode 漢字 \n ! ..."
    " don't generously skies dying news inning".split(" ")
)
texts = st.one_of(st.lists(words, max_size=20).map(" ".join), st.text(max_size=40))


@given(texts, texts)
@example("", "")
@example("", "cat")
@example("漢字", "漢字")
@example("A", "a")
@example("the cat", "CAT, the")
@settings(max_examples=400, deadline=None)
def test_f_measure_is_exactly_that_of_rouge_score(a, b):
    assert ROUGE.f_measure(a, b) == ORACLE.score(a, b)["rougeL"].fmeasure


@given(texts, texts)
@settings(deadline=None)
def test_f_measure_is_symmetric_and_one_only_for_equal_tokens(a, b):
    value = ROUGE.f_measure(a, b)
    assert value == ROUGE.f_measure(b, a)
    assert 0.0 <= value <= 1.0
    assert (value == 1.0) == (ROUGE.tokens(a) == ROUGE.tokens(b) != ())


@given(texts)
@settings(deadline=None)
def test_tokens_are_those_of_rouge_score(text):
    assert list(ROUGE.tokens(text)) == ORACLE._tokenizer.tokenize(text)


@given(st.lists(texts, max_size=5))
@settings(deadline=None)
def test_pairwise_statistics_equal_a_loop_over_all_pairs(several):
    pairs = [
        ORACLE.score(several[i], several[j])["rougeL"].fmeasure
        for i in range(len(several))
        for j in range(i + 1, len(several))
    ]
    largest, mean = ROUGE.pairwise_max_mean(several)
    assert largest == (max(pairs) if pairs else 0.0)
    assert mean == pytest.approx(sum(pairs) / len(pairs) if pairs else 0.0)


def test_each_text_is_tokenised_once(monkeypatch):
    rouge = RougeL()
    from rouge_score import tokenize

    seen = []
    original = tokenize.tokenize
    monkeypatch.setattr(tokenize, "tokenize", lambda text, stemmer: seen.append(text) or original(text, stemmer))
    rouge.pairwise_max_mean(["one cat", "two cats", "three cats", "four cats"])
    assert sorted(seen) == ["four cats", "one cat", "three cats", "two cats"]
