"""Agreement statistics against scipy."""

from __future__ import annotations

import math
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import friedmanchisquare, kendalltau, rankdata

from tuna_trl.build.agreement import average_ranks, kendalls_w, mean_tau_b, tau_b


scores = st.integers(0, 4).map(float)


@st.composite
def tables(draw, least=3):
    n = draw(st.integers(least, 6))
    return draw(st.lists(st.lists(scores, min_size=n, max_size=n), min_size=3, max_size=5))


@given(st.lists(scores, max_size=8))
def test_average_ranks_are_scipys_from_the_top(values):
    assert average_ranks(values) == list(rankdata([-value for value in values])) if values else [] == []


@given(tables())
@settings(deadline=None)
def test_w_is_the_friedman_statistic_over_its_maximum(table):
    m, n = len(table), len(table[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        statistic = friedmanchisquare(*zip(*table, strict=True)).statistic
    w = kendalls_w(table)
    if math.isnan(statistic):
        assert w is None
    else:
        assert w == pytest.approx(statistic / (m * (n - 1)), abs=1e-12)


@given(tables(least=2))
@settings(deadline=None)
def test_tau_b_and_its_mean_are_scipys(table):
    defined = []
    for i in range(len(table)):
        for j in range(i):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = kendalltau(table[i], table[j]).statistic
            if math.isnan(expected):
                assert tau_b(table[i], table[j]) is None
            else:
                assert tau_b(table[i], table[j]) == pytest.approx(expected)
                defined.append(expected)
    mean = mean_tau_b(table)
    assert mean is None if not defined else mean == pytest.approx(sum(defined) / len(defined), abs=1e-12)


@given(st.lists(st.integers(0, 9).map(float), min_size=2, max_size=6, unique=True), st.integers(2, 5))
def test_the_same_ranking_every_time_is_full_agreement(ranking, m):
    table = [[value * (k + 1) for value in ranking] for k in range(m)]
    assert kendalls_w(table) == 1.0
    assert mean_tau_b(table) == pytest.approx(1.0)


@pytest.mark.parametrize("table", [[], [[1.0, 2.0]], [[1.0], [1.0]], [[1.0, 1.0], [2.0, 2.0]]])
def test_what_has_no_agreement_has_none(table):
    assert kendalls_w(table) is None
    assert mean_tau_b(table) is None


def test_two_opposite_rankings_do_not_agree():
    assert kendalls_w([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]) == 0.0
    assert mean_tau_b([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]) == -1.0
