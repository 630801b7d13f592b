"""Ranking evaluation against scipy, loops over pairs, and the bootstrap enumerated in full."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, kendalltau

from tuna_trl.errors import InputError
from tuna_trl.evaluation.ranking import (
    Interval,
    bootstrap_interval,
    compare_orders,
    length_baselines,
    paired_interval,
)


settings.register_profile("tuna", deadline=None, max_examples=50)  # torch's first call is slow
settings.load_profile("tuna")
values = st.lists(st.none() | st.just(math.nan) | st.floats(-10, 10), max_size=20)
evaluation_rows = st.lists(
    st.integers(1, 6).flatmap(
        lambda n: st.tuples(
            st.lists(st.none() | st.just(math.nan) | st.integers(-3, 3).map(float), min_size=n, max_size=n),
            st.lists(st.none() | st.integers(1, 4), min_size=n, max_size=n),
        )
    ),
    max_size=6,
)


def kept(some):
    return [v for v in some if v is not None and not math.isnan(v)]


def usable(scores, ranks):
    return [
        (s, r) for s, r in zip(scores, ranks, strict=True) if s is not None and not math.isnan(s) and r is not None
    ]


class TestBootstrap:
    @given(values, st.integers(0, 3))
    def test_the_interval_lies_within_the_values_and_what_is_missing_is_counted(self, some, seed):
        interval = bootstrap_interval(some, seed=seed, draws=200)
        assert (interval.rows, interval.left_out) == (len(kept(some)), len(some) - len(kept(some)))
        if not kept(some):
            assert interval == Interval(None, None, None, 0, len(some))
        else:
            slack = 1e-9
            assert interval.mean == pytest.approx(np.mean(kept(some)))
            assert min(kept(some)) - slack <= interval.low <= interval.high <= max(kept(some)) + slack

    @given(values)
    def test_the_same_seed_gives_the_same_interval_and_a_wider_level_no_narrower_one(self, some):
        narrow, wide = (bootstrap_interval(some, level=level, draws=300) for level in (0.5, 0.9))
        assert narrow == bootstrap_interval(list(some), level=0.5, draws=300)
        if kept(some):
            assert wide.low <= narrow.low <= narrow.high <= wide.high

    def test_quantiles_are_those_of_all_resamples(self):
        sample = [0.0, 0.3, 0.35, 1.0]
        every = [np.mean(draw) for draw in itertools.product(sample, repeat=len(sample))]  # 256 of them
        interval = bootstrap_interval(sample, level=0.8, draws=50_000)
        # the enumerated distribution is a staircase: the drawn quantile lies within a step of it
        steps = np.quantile(every, [0.09, 0.11, 0.89, 0.91])
        assert steps[0] <= interval.low <= steps[1]
        assert steps[2] <= interval.high <= steps[3]

    def test_it_agrees_with_scipy(self):
        sample = np.random.default_rng(5).exponential(size=80)
        ours = bootstrap_interval(sample, draws=20_000)
        theirs = bootstrap(
            (sample,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(6)
        ).confidence_interval
        assert ours.low == pytest.approx(theirs.low, abs=0.01)
        assert ours.high == pytest.approx(theirs.high, abs=0.01)

    def test_blocks_of_draws_are_all_drawn(self, monkeypatch):
        whole = bootstrap_interval([0.0, 1.0, 5.0], draws=100)
        monkeypatch.setattr("tuna_trl.evaluation.ranking._DRAWS_AT_ONCE", 9)
        assert bootstrap_interval([0.0, 1.0, 5.0], draws=100) == whole

    @given(st.lists(st.tuples(st.none() | st.floats(-5, 5), st.none() | st.floats(-5, 5)), max_size=12))
    def test_a_paired_interval_is_that_of_the_differences(self, pairs):
        after, before = [a for a, _ in pairs], [b for _, b in pairs]
        differences = [a - b for a, b in pairs if a is not None and b is not None]
        interval, plain = paired_interval(after, before), bootstrap_interval(differences)
        assert (interval.mean, interval.low, interval.high) == (plain.mean, plain.low, plain.high)
        assert interval.left_out == len(pairs) - len(differences)

    def test_an_interval_becomes_json(self):
        assert bootstrap_interval([1.0, None]).to_json() == {
            "mean": 1.0,
            "low": 1.0,
            "high": 1.0,
            "rows": 1,
            "left_out": 1,
        }

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"level": 95}, "`level` is 95"),
            ({"level": 0.0}, "`level` is 0.0"),
            ({"draws": 0}, "`draws` is 0"),
            ({"values": [0.0, math.inf]}, "inf at place 1"),
        ],
    )
    def test_what_cannot_be_resampled_is_refused(self, arguments, words):
        with pytest.raises(InputError, match=words):
            bootstrap_interval(**{"values": [0.0, 1.0], **arguments})


class TestCompareOrders:
    @given(evaluation_rows)
    def test_rows_agree_with_loops_and_scipy(self, rows):
        report = compare_orders([s for s, _ in rows], [r for _, r in rows])
        for row, accuracy, tau in zip(rows, report.row_accuracy, report.row_tau, strict=True):
            used = usable(*row)
            pairs = [(a, b) for a, rank_a in used for b, rank_b in used if rank_a < rank_b]
            if not pairs:
                assert math.isnan(accuracy) and math.isnan(tau)
                continue
            assert accuracy == pytest.approx(sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs))
            expected = kendalltau([s for s, _ in used], [-r for _, r in used]).statistic
            assert tau == pytest.approx(0.0 if math.isnan(expected) else expected)
        assert report.rank_accuracy == bootstrap_interval(report.row_accuracy)
        assert report.kendall_tau == bootstrap_interval(report.row_tau)
        assert report.rows + report.left_out == len(rows)

    @given(evaluation_rows)
    def test_unranked_and_unscored_responses_are_as_if_they_were_not_there(self, rows):
        bare = [usable(*row) for row in rows]
        report = compare_orders([s for s, _ in rows], [r for _, r in rows])
        without = compare_orders([[s for s, _ in row] for row in bare], [[r for _, r in row] for row in bare])
        np.testing.assert_array_equal(report.row_accuracy, without.row_accuracy)
        np.testing.assert_array_equal(report.row_tau, without.row_tau)

    def test_the_judges_own_order_is_perfect_and_its_reverse_the_opposite(self):
        ranks = [[1, 2, 3], [1, 2]]
        report = compare_orders([[-1.0, -2.0, -3.0], [0.5, 0.0]], ranks)
        assert report.rank_accuracy == Interval(1.0, 1.0, 1.0, 2, 0)
        assert compare_orders([[-3.0, -2.0, -1.0], [0.0, 0.5]], ranks).kendall_tau == Interval(-1.0, -1.0, -1.0, 2, 0)

    def test_many_rows_give_what_each_gives_alone(self, monkeypatch):
        rng = np.random.default_rng(0)
        rows = [(rng.normal(size=n).tolist(), rng.integers(1, n + 1, size=n).tolist()) for n in [3, 5, 2, 4, 1] * 3]
        whole = compare_orders([s for s, _ in rows], [r for _, r in rows])
        monkeypatch.setattr("tuna_trl.evaluation.ranking._ROWS_AT_ONCE", 4)
        parts = compare_orders([s for s, _ in rows], [r for _, r in rows])
        np.testing.assert_array_equal(whole.row_tau, parts.row_tau)

    def test_no_rows_have_no_figures(self):
        report = compare_orders([], [])
        assert (report.rank_accuracy.mean, report.rows, report.left_out) == (None, 0, 0)

    @pytest.mark.parametrize(
        ("scores", "ranks", "words"),
        [
            ([[1.0]], [], "1 rows and `judge_ranks` 0"),
            ([[1.0], [1.0, 2.0]], [[1], [1]], "row 1: .* 2 responses and `judge_ranks` 1"),
            ([[1.0, -math.inf]], [[1, 2]], "row 0: .*infinite"),
        ],
    )
    def test_lists_that_do_not_match_are_refused(self, scores, ranks, words):
        with pytest.raises(InputError, match=words):
            compare_orders(scores, ranks)


class TestLengthBaselines:
    @given(
        st.lists(
            st.lists(st.tuples(st.integers(0, 9), st.none() | st.integers(1, 4)), min_size=1, max_size=5), max_size=6
        )
    )
    def test_longer_and_shorter_share_every_pair(self, rows):
        both = length_baselines([[c for c, _ in row] for row in rows], [[r for _, r in row] for row in rows])
        longer, shorter = both["longer_wins"], both["shorter_wins"]
        assert (longer.rows, longer.left_out) == (shorter.rows, shorter.left_out)
        if longer.rows:
            assert longer.mean + shorter.mean == pytest.approx(1.0)

    def test_the_longer_response_wins_where_the_judge_ranks_by_length(self):
        baselines = length_baselines([[30, 20, 10], [5, 5]], [[1, 2, 3], [1, 2]])
        assert baselines["longer_wins"].mean == pytest.approx(0.75)  # 1 and, for equal lengths, a half
        assert baselines["shorter_wins"].mean == pytest.approx(0.25)
