"""The demo's instructions are what their README says: sizes, mix, lengths, no leak from heldout into train."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer

from tuna_trl.data.demo import SPLITS, load_instructions
from tuna_trl.errors import InputError


TRAIN = load_instructions("train")
HELDOUT = load_instructions("heldout")
ROWS = TRAIN + HELDOUT
KINDS = (
    "explain polite grammar shorten example words how_to message "
    "slogan summarise advice sentiment complete describe fact compare"
).split()


def _sha256(text):
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@pytest.fixture(scope="module")
def prompt_similarities():
    """(ROUGE-L F-measure, row, row) of all pairs of prompts."""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return [
        (scorer.score(a["prompt"], b["prompt"])["rougeL"].fmeasure, a, b) for a, b in itertools.combinations(ROWS, 2)
    ]


def test_the_splits_have_112_and_48_rows_and_each_row_names_its_own():
    assert (len(TRAIN), len(HELDOUT)) == (112, 48)
    assert {row["split"] for row in TRAIN} == {"train"}
    assert {row["split"] for row in HELDOUT} == {"heldout"}


def test_fields_are_exactly_these_and_all_strings():
    for row in ROWS:
        assert list(row) == ["prompt", "reference", "kind", "split"]
        assert all(isinstance(value, str) and value == value.strip() != "" for value in row.values()), row


def test_both_splits_hold_the_same_mix_of_kinds():
    assert Counter(row["kind"] for row in TRAIN) == dict.fromkeys(KINDS, 7)
    assert Counter(row["kind"] for row in HELDOUT) == dict.fromkeys(KINDS, 3)


@pytest.mark.parametrize("split", SPLITS)
def test_every_sixteen_rows_hold_each_kind_once(split):
    rows = load_instructions(split)
    assert [row["kind"] for row in rows] == KINDS * (len(rows) // len(KINDS))


def test_the_split_follows_the_hash_of_the_prompt():
    for kind in KINDS:
        heldout = [_sha256(row["prompt"]) for row in HELDOUT if row["kind"] == kind]
        train = [_sha256(row["prompt"]) for row in TRAIN if row["kind"] == kind]
        assert max(heldout) < min(train), kind


def test_prompts_are_short_and_references_are_short_sentences():
    for row in ROWS:
        assert 5 <= len(row["prompt"].split()) <= 30, row
        assert 8 <= len(row["reference"].split()) <= 35, row
        assert row["reference"].endswith("."), row


def test_text_is_one_line_without_control_characters():
    for row in ROWS:
        for text in (row["prompt"], row["reference"]):
            assert not [c for c in text if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029"], row
            assert "  " not in text, row


def test_no_prompt_or_reference_stands_twice():
    for field in ("prompt", "reference"):
        assert len({row[field].casefold() for row in ROWS}) == len(ROWS)


def test_no_two_prompts_are_near_duplicates(prompt_similarities):
    similarity, a, b = max(prompt_similarities, key=lambda pair: pair[0])
    assert similarity < 0.7, (a["prompt"], b["prompt"])


def test_no_heldout_prompt_resembles_a_train_prompt(prompt_similarities):
    across = [pair for pair in prompt_similarities if pair[1]["split"] != pair[2]["split"]]
    assert len(across) == 112 * 48
    similarity, a, b = max(across, key=lambda pair: pair[0])
    assert similarity <= 0.5, (a["prompt"], b["prompt"])


@pytest.mark.parametrize("split", SPLITS)
def test_loading_twice_gives_equal_rows_that_share_nothing(split):
    first, second = load_instructions(split), load_instructions(split)
    assert first == second
    first[0]["prompt"] = "changed"
    first.pop()
    assert load_instructions(split) == second


def test_a_wrong_split_is_an_input_error_that_names_the_nearest():
    with pytest.raises(InputError, match=r"`split` must be .*, got 'held_out'\. Did you mean 'heldout'\?"):
        load_instructions("held_out")
    with pytest.raises(InputError, match=r"got 'Train'\. Did you mean 'train'\?"):
        load_instructions("Train")


@pytest.mark.parametrize("split", ["", "validation", None, 3, ["train"]])
def test_a_split_that_is_near_to_none_is_an_input_error_all_the_same(split):
    with pytest.raises(InputError, match=r"must be one of 'train', 'heldout', got"):
        load_instructions(split)


def test_loading_imports_neither_datasets_nor_torch():
    code = (
        "import sys; from tuna_trl.data.demo import load_instructions; load_instructions('train'); "
        "sys.exit(' '.join({'datasets', 'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
