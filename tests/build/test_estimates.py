"""Intervals that hold what they promise, and the chi-square tail against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tuna_trl.build.estimates import Estimate, chi_square_tail, mean_estimate, ratio_estimate


@given(st.floats(0, 400), st.integers(1, 40))
def test_the_chi_square_tail_is_scipys(x, degrees):
    assert chi_square_tail(x, degrees) == pytest.approx(stats.chi2.sf(x, degrees), rel=1e-9, abs=1e-300)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=40))
def test_a_mean_lies_in_its_interval_and_the_same_rows_give_the_same_one(values):
    estimate = mean_estimate(values)
    assert estimate.value == pytest.approx(np.mean(values)) and estimate.rows == len(values)
    assert min(values) - 1e-9 <= estimate.low <= estimate.high <= max(values) + 1e-9
    assert estimate == mean_estimate(list(values))


@pytest.mark.parametrize("rows", [60, 6000])
def test_nineteen_of_twenty_intervals_hold_the_truth(rows):
    draw = np.random.default_rng(1)
    hits = sum(mean_estimate(draw.exponential(1.0, rows)).covers(1.0) for _ in range(150))
    assert 132 <= hits <= 150  # 142.5 expected, 2.7 = one standard deviation; the bootstrap of 60 is a little narrow


def test_the_intervals_of_ratios_hold_the_truth_where_rows_are_clusters():
    """Three equal things a row: an interval over things would be too narrow by sqrt(3), and miss about a quarter."""
    draw = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        counts = draw.integers(1, 6, 150)
        totals = (draw.random(150) < 0.3) * counts
        hits += ratio_estimate(totals.tolist(), counts.tolist()).covers(0.3)
    assert 178 <= hits <= 200


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30))
def test_a_ratio_with_ones_below_is_the_mean_with_its_standard_error(values):
    estimate = ratio_estimate(values, [1] * len(values))
    half = stats.norm.ppf(0.975) * stats.sem(values)
    assert estimate.value == pytest.approx(np.mean(values), abs=1e-12)
    assert estimate.high - estimate.value == pytest.approx(half, abs=1e-9)


def test_what_has_no_rows_is_unknown_and_one_row_has_no_interval():
    assert mean_estimate([]) == ratio_estimate([], []) == ratio_estimate([0.0], [0]) == Estimate(None, None, None, 0)
    assert mean_estimate([2.0]) == ratio_estimate([4.0], [2]) == Estimate(2.0, None, None, 1)
    assert not mean_estimate([2.0]).covers(2.0)
    assert mean_estimate([]).shown() == "unknown (no rows)" and mean_estimate([2.0]).shown(1) == "2.0 over 1 row"
