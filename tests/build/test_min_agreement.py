"""Rows on which the repeats disagree are left out or marked, and everything is counted."""

from __future__ import annotations

import math

import pytest
from doubles.builders import FunctionJudge, ListSampler, config, four, prompts
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_trl.build.judge import judge_builds
from tuna_trl.build.min_agreement import check_min_agreement, filter_agreement
from tuna_trl.data.schema import ranked_features
from tuna_trl.errors import InputError


def wavering(request):
    """Sure of itself on even questions; on odd ones it turns round with every repeat."""
    scores = [float(len(text)) for text in request.candidates]
    odd = int(request.prompt[0]["content"].split()[-1]) % 2
    return [-score for score in scores] if odd and request.repeat % 2 else scores


def build(rows=6, **options):
    return judge_builds(prompts(rows), ListSampler(four), FunctionJudge(wavering), config(repeats=2, **options))[0]


@settings(max_examples=15)
@given(st.floats(0, 1))
def test_what_is_kept_agrees_and_what_is_left_out_does_not(least):
    dataset = build()["train"]
    kept, told = filter_agreement(dataset, least)
    assert all(row["agreement_w"] >= least for row in kept)
    assert told.kept == len(kept) and told.rows == len(dataset) and told.kept + told.below == told.rows
    assert told.below == sum(row["agreement_w"] < least for row in dataset)
    assert kept.features == ranked_features()


def test_marked_rows_stay_where_they_are_with_their_ranks():
    dataset = build()
    marked, told = filter_agreement(dataset, 0.9, mark=True)
    assert marked["train"].features == ranked_features() and "marked" in told.told()
    for i, (row, old) in enumerate(zip(marked["train"], dataset["train"], strict=True)):
        assert row == old | {"status": "inconsistent" if i % 2 else "ok"}


def test_a_row_judged_once_or_with_nothing_to_compare_is_kept_and_counted():
    once = judge_builds(prompts(2), ListSampler(four), FunctionJudge(wavering), config(repeats=1))[0]
    assert filter_agreement(once, 1.0)[1].unmeasured == 2
    same = judge_builds(prompts(2), ListSampler(lambda p: ["same"] * 4), FunctionJudge(wavering), config(repeats=4))[0]
    kept, told = filter_agreement(same, 1.0)
    assert len(kept["train"]) == told.unmeasured == told.kept == 2 and "judged once" in told.told()


def test_a_row_that_should_have_a_w_and_has_none_counts_as_below():
    always_tied = FunctionJudge(lambda request: [1.0] * 4)
    tied = judge_builds(prompts(2), ListSampler(four), always_tied, config(repeats=4))[0]
    kept, told = filter_agreement(tied, 0.0)
    assert len(kept["train"]) == 0 and told.undefined == 2
    half_read = FunctionJudge(lambda request: "no verdict" if request.repeat else [4.0, 3.0, 2.0, 1.0])
    partial = judge_builds(prompts(2), ListSampler(four), half_read, config(repeats=2))[0]
    assert partial["train"]["status"][:] == ["partial"] * 2
    assert filter_agreement(partial, 0.0)[1].undefined == 2


def test_a_row_without_ranks_is_left_as_it_is():
    broken = judge_builds(prompts(2), ListSampler(four), FunctionJudge(lambda r: "no"), config(repeats=2))[0]
    same, told = filter_agreement(broken, 0.5, mark=True)
    assert list(same["train"]) == list(broken["train"]) and told.not_ranked == 2


@pytest.mark.parametrize("least", [-0.1, 1.1, math.nan])
def test_a_least_that_is_no_agreement_is_refused(least):
    with pytest.raises(InputError, match="min_agreement"):
        filter_agreement(build(2), least)


def test_one_judgment_a_row_cannot_be_filtered_and_that_is_said_before_it_costs():
    with pytest.raises(InputError, match="repeats=2"):
        check_min_agreement(0.5, 1)
    check_min_agreement(None, 1)
    check_min_agreement(0.5, 2)
