"""Laws of fitting: what is too long is dropped, cut or refused as asked, and counted."""

from __future__ import annotations

import math

import pytest
from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st
from training import tokenised_row, tokenised_rows
from trl_rows import prepared

from tuna_trl import InputError
from tuna_trl.data.fitting import fit_row
from tuna_trl.data.prepare import Preparation


@settings(deadline=None, max_examples=150)
@given(
    row=tokenised_rows(),
    max_length=st.none() | st.integers(2, 12),
    strategy=st.sampled_from(["drop", "truncate"]),
    most=st.none() | st.integers(1, 3),
)
@example(row=tokenised_row([1], [[2, 3, 4, 5], [6, 7]], [1, 2]), max_length=3, strategy="truncate", most=None)
def test_what_trains_fits_and_nothing_that_fits_is_lost(row, max_length, strategy, most):
    fitted = fit_row(row, max_length, strategy, most)
    P, limit = len(row["prompt_ids"]), math.inf if max_length is None else max_length
    ranked = [k for k, rank in enumerate(row["ranks"]) if rank > 0]
    fits = {"drop": lambda k: P + len(row["response_ids"][k]) <= limit, "truncate": lambda k: P < limit}
    expected = [k for k in ranked if fits[strategy](k)]
    expected = expected[:most]
    room = None if max_length is None else max(max_length - P, 0)
    assert fitted["response_ids"] == [row["response_ids"][k][:room] for k in expected]
    assert fitted["response_labels"] == [row["response_labels"][k][:room] for k in expected]
    assert fitted["ranks"] == [row["ranks"][k] for k in expected]
    for k, length, ids in zip(expected, fitted["score_lengths"], fitted["response_ids"], strict=True):
        assert length == min(row["score_lengths"][k], len(ids))
    assert fitted["dropped_responses"] == len(row["ranks"]) - len(expected)
    assert fitted["length"] == P + sum(map(len, fitted["response_ids"]))
    assert fitted["cut_responses"] == sum(P + len(row["response_ids"][k]) > limit for k in expected)
    enough = len(expected) >= min(2 if len(row["ranks"]) > 1 else 1, most or 2)
    trained = any(label != -100 for labels in fitted["response_labels"] for label in labels)
    assert fitted["kept"] is (enough and trained)


def long_rows():
    return [{"prompt": "q", "responses": ["a", "b", "c" * 90], "ranks": [1, 2, 3]} for _ in range(3)] + [
        {"prompt": "q" * 90, "responses": ["a", "b"], "ranks": [1, 2]}
    ]


def test_too_long_responses_are_dropped_counted_and_shown(capsys):
    result = prepared(long_rows(), max_length=60)
    assert len(result) == 3 and all(len(ids) == 2 for ids in result["response_ids"])
    shown = " ".join(capsys.readouterr().err.split())
    assert "rows dropped │ 1" in shown and "responses dropped │ 5" in shown and "max_length │ 60" in shown


def test_nothing_is_shown_where_nothing_is_lost(capsys):
    prepared(long_rows())
    assert "dropped" not in capsys.readouterr().err


def test_sft_rows_are_cut_and_ranked_rows_are_not_unless_asked(capsys):
    assert len(prepared(long_rows(), max_length=60, excess_length_strategy="truncate")[0]["response_ids"]) == 3
    assert "responses truncated │ 3" in " ".join(capsys.readouterr().err.split())
    assert len(prepared([{"prompt": "q", "completion": "c" * 90}], max_length=60)) == 1
    with pytest.raises(InputError, match="No row of the train dataset is left"):
        prepared([{"prompt": "q", "completion": "c" * 90}], max_length=60, excess_length_strategy="drop")


@pytest.mark.parametrize("most, responses", [(1, 1), (2, 2), (5, 3)])
def test_only_the_best_so_many_responses_train(most, responses):
    result = prepared(long_rows()[:2], max_responses=most)
    assert [row["ranks"] for row in result] == [list(range(1, responses + 1))] * 2


def test_raise_names_how_many_are_too_long_and_the_longest():
    with pytest.raises(InputError, match="5 of 11 responses of the train dataset.*`max_length` = 60.*longest has 111"):
        prepared(long_rows(), max_length=60, excess_length_strategy="raise")


def test_raise_holds_for_a_stream_too():
    stream = prepared(
        Dataset.from_list(long_rows()).to_iterable_dataset(), max_length=60, excess_length_strategy="raise"
    )
    with pytest.raises(InputError, match="longer than `max_length` = 60.*'raise'"):
        list(stream)


def test_a_prompt_that_fills_the_length_is_named_where_nothing_else_is_left():
    with pytest.raises(
        InputError, match="No row of the train dataset is left.*of 2.*`max_length` = 60 tokens.*shortest"
    ):
        prepared([{"prompt": "q" * 90, "responses": ["a", "b"], "ranks": [1, 2]}], max_length=60)


def test_a_row_whose_reference_does_not_fit_goes_where_the_reference_is_what_trains():
    row = {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2], "reference": "c" * 90}
    rows = [row, {**row, "reference": "the"}]
    assert [len(r["reference_ids"]) > 0 for r in prepared(rows, max_length=60)] == [False, True]
    (kept,) = prepared(rows, max_length=60, needs_reference=True)
    assert kept["reference"] == "the"
    cut, whole = prepared(rows, max_length=60, needs_reference=True, excess_length_strategy="truncate")
    assert len(cut["prompt_ids"]) + len(cut["reference_ids"]) == 60 and whole["reference_ids"] == kept["reference_ids"]


def test_an_unknown_strategy_gets_a_suggestion():
    with pytest.raises(InputError, match="`excess_length_strategy` is 'dropp'.*Did you mean 'drop'"):
        Preparation(excess_length_strategy="dropp")
