"""Rows that give the ranking loss nothing to compare are counted, and where all are so it is said what to do."""

from __future__ import annotations

import pytest
from datasets import Dataset
from training import tokenised_row
from trl_rows import prepared

from tuna_trl.data.fitting import fit_row


WARNING = "The ranking term of the loss will be 0"


def row(scores, responses=("a", "b")):
    return {"prompt": "q", "responses": list(responses), "scores": scores}


@pytest.mark.parametrize(
    ("ids", "ranks", "has_pair"),
    [
        ([[2], [3]], [1, 2], True),
        ([[2], [3]], [1, 1], False),
        ([[2], [2]], [1, 2], False),
        ([[2], [2], [3]], [1, 2, 2], True),
        ([[2], [3], [4]], [1, 1, 0], False),  # 0: unranked
    ],
)
def test_a_pair_is_two_ranks_and_two_texts(ids, ranks, has_pair):
    assert fit_row(tokenised_row([1], ids, ranks), None, "drop")["has_pair"] is has_pair


def test_rows_that_are_all_tied_are_warned_of_with_their_number(tiny_tokenizer, caplog):
    rows = [row([1, 1]), row([2, 2]), row([1, 0], ("same", "same"))]
    found = prepared(rows, tiny_tokenizer)
    assert len(found) == 3 and "has_pair" not in found.column_names
    assert caplog.text.count(WARNING) == 1 and "its 3 rows" in caplog.text and "tuna-trl rank" in caplog.text


def test_one_pair_is_enough_and_the_others_are_counted(tiny_tokenizer, caplog, capsys):
    assert len(prepared([row([1, 1]), row([1, 0])], tiny_tokenizer)) == 2
    assert WARNING not in caplog.text
    assert "rows without a pair" in capsys.readouterr().err


def test_data_with_one_answer_a_row_is_no_ranking(tiny_tokenizer, caplog, capsys):
    prepared(Dataset.from_list([{"prompt": "a", "completion": "b"}]).to_list(), tiny_tokenizer)
    assert WARNING not in caplog.text and "without a pair" not in capsys.readouterr().err
