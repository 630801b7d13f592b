"""The diversity criterion against rouge_score, and its warning where ROUGE sees nothing."""

from __future__ import annotations

import itertools
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tuna_trl.build.diversity import RougeDiversity


words = st.lists(st.sampled_from("the a sailing sailed ship ships 12 and".split()), max_size=8).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(words, max_size=5))
def test_it_is_the_largest_and_mean_rouge_l_of_all_pairs(texts):
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    values = [scorer.score(a, b)["rougeL"].fmeasure for a, b in itertools.combinations(texts, 2)]
    largest, mean = RougeDiversity().max_mean(texts)
    assert largest == pytest.approx(max(values, default=0.0), abs=1e-12)
    assert mean == pytest.approx(sum(values) / len(values) if values else 0.0, abs=1e-12)


def test_answers_without_rouge_tokens_warn_once():
    criterion = RougeDiversity()
    with pytest.warns(UserWarning, match="no ROUGE-L tokens"):
        assert criterion.max_mean(["你好,世界", "你好,世界"]) == (0.0, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion.max_mean(["再见", "再见"])


def test_empty_and_readable_answers_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RougeDiversity().max_mean(["", "  \n", "plain words", "naïve 你好"])


def test_the_unicode_tokenizer_sees_what_rouge_drops():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion = RougeDiversity(tokenizer="unicode")
        assert criterion.max_mean(["你好,世界", "你好 世界"]) == (1.0, 1.0)
        assert criterion.max_mean(["你好", "再见"]) == (0.0, 0.0)


def test_the_warning_names_the_way_out_only_where_there_is_one():
    with pytest.warns(UserWarning, match="Set the tokenizer of the diversity check to 'unicode'"):
        RougeDiversity().max_mean(["你好", "你好"])
    with pytest.warns(UserWarning, match=r"letters and digits only\), .* whatever they say\.$"):
        RougeDiversity(tokenizer="unicode").max_mean(["👍", "👍"])
