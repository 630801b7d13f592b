"""Rank metrics against scipy and against loops over pairs; what padding, order and empty slots must not change."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from tuna_trl.batch_metrics import BatchSums
from tuna_trl.metrics import GAPS, kendall_tau, margins_by_gap, mean_margin, pair_signs, rank_accuracy


settings.register_profile("tuna", deadline=None, max_examples=50)  # torch's first call is slow
settings.load_profile("tuna")
METRICS = [rank_accuracy, kendall_tau, mean_margin]
# few values, so that ties are common; halves are exact in every dtype
score_rows = st.lists(st.integers(-4, 4).map(lambda i: i / 2), min_size=1, max_size=7)
ranked_rows = score_rows.flatmap(
    lambda scores: st.tuples(
        st.just(scores),
        st.lists(st.integers(1, 4), min_size=len(scores), max_size=len(scores)),
        st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)),
    )
)


def tensors(*rows, width=None, dtype=torch.float64):
    """`(B, N)` scores, ranks and mask of ragged rows; empty slots hold a NaN score and rank 0."""
    width = width or max(len(scores) for scores, _, _ in rows)
    scores = torch.full((len(rows), width), math.nan, dtype=dtype)
    ranks = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (s, r, m) in enumerate(rows):
        scores[i, : len(s)], ranks[i, : len(s)] = torch.tensor(s, dtype=dtype), torch.tensor(r)
        mask[i, : len(s)] = torch.tensor(m)
    return scores, ranks, mask


def untied_pairs(scores, ranks, mask):
    """(score of the better, score of the worse) of every pair that the ranks tell apart."""
    used = [(s, r) for s, r, m in zip(scores, ranks, mask, strict=True) if m]
    return [(a, b) for a, rank_a in used for b, rank_b in used if rank_a < rank_b]


@given(ranked_rows)
def test_accuracy_is_the_share_of_untied_pairs_in_order_with_equal_scores_a_half(row):
    pairs = untied_pairs(*row)
    value = rank_accuracy(*tensors(row)).item()
    if not pairs:
        assert math.isnan(value)
    else:
        right = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs)
        assert value == pytest.approx(right / len(pairs))


@given(ranked_rows)
def test_tau_is_that_of_scipy(row):
    scores, ranks, mask = row
    used = [(s, -r) for s, r, m in zip(scores, ranks, mask, strict=True) if m]
    value = kendall_tau(*tensors(row)).item()
    if not untied_pairs(*row):
        assert math.isnan(value)
    elif len({s for s, _ in used}) == 1:
        assert value == 0.0  # scipy calls it undefined; a model that tells nothing apart agrees not at all
    else:
        assert value == pytest.approx(kendalltau(*zip(*used, strict=True)).statistic)


@given(ranked_rows)
def test_margin_is_the_mean_score_difference_of_the_untied_pairs(row):
    pairs = untied_pairs(*row)
    value = mean_margin(*tensors(row)).item()
    if pairs:
        assert value == pytest.approx(sum(a - b for a, b in pairs) / len(pairs))
    else:
        assert math.isnan(value)


@pytest.mark.parametrize("metric", METRICS)
@given(row=ranked_rows, padding=st.integers(0, 5), rng=st.randoms())
def test_padding_and_the_order_of_responses_change_nothing(metric, row, padding, rng):
    order = rng.sample(range(len(row[0])), len(row[0]))
    shuffled = tuple([column[i] for i in order] for column in row)
    value = metric(*tensors(row))
    again = metric(*tensors(shuffled, width=len(row[0]) + padding))
    torch.testing.assert_close(again, value, equal_nan=True)


@pytest.mark.parametrize("metric", METRICS)
@given(rows=st.lists(ranked_rows, min_size=1, max_size=5))
def test_a_row_knows_nothing_of_the_others_in_its_batch(metric, rows):
    together = metric(*tensors(*rows))
    alone = torch.cat([metric(*tensors(row)) for row in rows])
    torch.testing.assert_close(together, alone, equal_nan=True)


@given(ranked_rows)
def test_turning_the_ranks_over_mirrors_every_metric(row):
    scores, ranks, mask = tensors(row)
    torch.testing.assert_close(
        rank_accuracy(scores, 5 - ranks, mask), 1 - rank_accuracy(scores, ranks, mask), equal_nan=True
    )
    for metric in (kendall_tau, mean_margin):
        torch.testing.assert_close(metric(scores, 5 - ranks, mask), -metric(scores, ranks, mask), equal_nan=True)


@pytest.mark.parametrize("metric", METRICS)
def test_an_empty_slot_may_hold_anything(metric):
    scores = torch.tensor([[3.0, 2.0, math.nan, math.inf, -math.inf]])
    mask = torch.tensor([[True, True, False, False, False]])
    assert metric(scores, torch.tensor([[1, 2, 1, 2, 3]]), mask).item() == 1.0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("ranks", [[1, 1, 1], [1, 0, 0], [0, 0, 0]], ids=["all tied", "one response", "none"])
def test_a_row_without_an_untied_pair_has_no_metric(metric, ranks):
    ranks = torch.tensor([ranks])
    assert metric(torch.tensor([[3.0, 2.0, 1.0]]), ranks, ranks > 0).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_counts_of_many_pairs_are_exact_in_low_precision(dtype):
    n = 37  # 666 pairs; bfloat16 holds no odd integer above 256
    scores = torch.arange(n, 0, -1).to(dtype).unsqueeze(0)
    scores[0, [0, 1]] = scores[0, [1, 0]]  # one pair the wrong way round
    ranks = torch.arange(1, n + 1).unsqueeze(0)
    mask = torch.ones(1, n, dtype=torch.bool)
    assert rank_accuracy(scores, ranks, mask).item() == pytest.approx(665 / 666, abs=1e-6)
    assert kendall_tau(scores, ranks, mask).item() == pytest.approx(664 / 666, abs=1e-6)


def test_signs_are_minus_one_nought_or_one_whatever_the_slots_hold():
    by_score, by_rank, valid = pair_signs(*tensors(([1.0, 2.0, 2.0], [2, 1, 1], [True, True, False]), width=5))
    assert set(by_score.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert set(by_rank.unique().tolist()) <= {-1, 0, 1}
    assert valid.nonzero().tolist() == [[0, 0, 1]]
    assert (by_score[valid].item(), by_rank[valid].item()) == (-1.0, -1)


# ---- Margins by rank gap ----


def gap_sums(rows, gaps):
    """The oracle: gap -> [sum of s(better) - s(worse), pairs], over all rows, by loops."""
    found = {g: [0.0, 0] for g in range(1, gaps + 1)}
    for scores, ranks, mask in rows:
        used = [(s, r) for s, r, m in zip(scores, ranks, mask, strict=True) if m]
        place = [1 + sum(other < r for _, other in used) for _, r in used]  # 1, 2, 2, 4
        for (a, _), rank_a in zip(used, place, strict=True):
            for (b, _), rank_b in zip(used, place, strict=True):
                if rank_a < rank_b:
                    entry = found[min(rank_b - rank_a, gaps)]
                    entry[0] += a - b
                    entry[1] += 1
    return found


@given(rows=st.lists(ranked_rows, min_size=1, max_size=4), gaps=st.integers(1, 7), padding=st.integers(0, 3))
def test_margins_by_gap_are_the_sums_of_the_loops(rows, gaps, padding):
    expected = gap_sums(rows, gaps)
    width = max(len(scores) for scores, _, _ in rows) + padding
    sums, counts = margins_by_gap(*tensors(*rows, width=width), gaps)
    assert sums.shape == counts.shape == (gaps,)
    assert sums.tolist() == [expected[g][0] for g in expected]  # halves: exact
    assert counts.tolist() == [expected[g][1] for g in expected]


@given(row=ranked_rows)
def test_the_gaps_together_are_all_the_untied_pairs(row):
    sums, counts = margins_by_gap(*tensors(row))
    pairs = untied_pairs(*row)
    assert counts.sum().item() == len(pairs)
    assert sums.sum().item() == sum(a - b for a, b in pairs)


def test_a_response_that_dropped_out_widens_no_gap():
    sums, counts = margins_by_gap(*tensors(([5.0, 9.0, 2.0], [1, 2, 3], [True, False, True])))
    assert counts.tolist() == [1.0, 0.0, 0.0, 0.0] and sums.tolist() == [3.0, 0.0, 0.0, 0.0]


def test_an_empty_slot_shows_in_no_gap_and_low_precision_counts_exactly():
    scores = torch.tensor([[3.0, 1.0, math.nan, math.inf]], dtype=torch.bfloat16)
    sums, counts = margins_by_gap(scores, torch.tensor([[1, 2, 1, 2]]), torch.tensor([[True, True, False, False]]))
    assert sums.tolist() == [2.0, 0.0, 0.0, 0.0] and counts.dtype == torch.float32
    n = 37
    mask = torch.ones(1, n, dtype=torch.bool)
    _, counts = margins_by_gap(scores.new_zeros(1, n), torch.arange(1, n + 1).unsqueeze(0), mask)
    assert counts.tolist() == [36.0, 35.0, 34.0, 666.0 - 105.0]


class OneProcess:
    """What `BatchSums.reduce` asks of accelerate; counts the collectives."""

    device = torch.device("cpu")

    def __init__(self):
        self.gathers = 0

    def gather(self, tensor):
        self.gathers += 1
        return tensor


@given(rows=st.lists(ranked_rows, min_size=1, max_size=4), data=st.data())
@settings(max_examples=25)
def test_a_gap_is_logged_as_its_mean_over_pairs_and_left_out_without_one(rows, data):
    weights = [data.draw(st.sampled_from([0.0, 1.0])) for _ in rows]
    expected = gap_sums([row for row, weight in zip(rows, weights, strict=True) if weight], GAPS)
    sums, accelerator = BatchSums(), OneProcess()
    for row, weight in zip(rows, weights, strict=True):  # one micro-batch a row
        scores, ranks, mask = tensors(row, dtype=torch.float32)
        ranks = torch.where(mask, ranks, 0)
        batch = {"ranks": ranks, "rank_mask": mask, "attention_mask": torch.ones(1, scores.shape[1], 3)}
        result = SimpleNamespace(nll_tokens=torch.ones_like(ranks))
        sums.add(torch.zeros(1), torch.zeros(()), result, scores, batch, torch.tensor([weight]))
    metrics = sums.reduce(accelerator)
    assert accelerator.gathers == 1
    for g, (total, pairs) in expected.items():
        name = f"rank/margin_gap{g}" + ("plus" if g == GAPS else "")
        assert metrics.get(name) == (pytest.approx(total / pairs) if pairs else None), name
