"""Reading prompts: every accepted shape gives the same items, every defect is named with row, column and remedy."""

from __future__ import annotations

import itertools

import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_trl.build.items import as_splits, check_rows, prompt_items, read_items
from tuna_trl.data.schema import prompt_id
from tuna_trl.errors import InputError, SchemaError


ROWS = [{"prompt": text, "reference": text.upper(), "source": "book"} for text in ("a", "b", "a", "c", "a")]


@pytest.mark.parametrize(
    "prompts",
    [ROWS, tuple(ROWS), iter(ROWS), Dataset.from_list(ROWS), IterableDataset.from_generator(lambda: iter(ROWS))],
    ids=["list", "tuple", "iterator", "Dataset", "IterableDataset"],
)
def test_every_shape_of_rows_is_one_train_split(prompts):
    splits = as_splits(prompts)
    assert list(splits) == ["train"]
    items = prompt_items(splits["train"])
    assert [(item.prompt[0]["content"], item.occurrence, item.reference, item.source) for item in items] == [
        ("a", 0, "A", "book"), ("b", 0, "B", "book"), ("a", 1, "A", "book"), ("c", 0, "C", "book"),
        ("a", 2, "A", "book"),
    ]  # fmt: skip


@pytest.mark.parametrize("make", [DatasetDict, dict])
def test_splits_keep_their_names_and_order(make):
    splits = as_splits(make({"validation": Dataset.from_list(ROWS[:2]), "train": Dataset.from_list(ROWS)}))
    assert list(splits) == ["validation", "train"]
    assert [len(prompt_items(rows)) for rows in splits.values()] == [2, 5]


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=12),
    limit=st.none() | st.integers(1, 15),
)
def test_equal_prompts_are_counted_and_strings_equal_one_user_turn(texts, limit):
    as_text = prompt_items([{"prompt": text} for text in texts], limit=limit)
    as_turns = prompt_items([{"prompt": [{"role": "user", "content": text}]} for text in texts], limit=limit)
    assert as_text == as_turns and len(as_text) == min(len(texts), limit or len(texts))
    for i, item in enumerate(as_text):
        assert item.occurrence == texts[:i].count(texts[i])
        assert item.prompt_id == prompt_id(item.prompt)
        assert item.reference is None and item.source is None


def test_rows_are_read_as_they_are_asked_for():
    read = []

    def rows():
        for i in itertools.count():
            read.append(i)
            yield {"prompt": f"number {i % 7}"}

    items = read_items(rows())
    occurrences = [next(items).occurrence for _ in range(20)]
    assert read == list(range(20)) and occurrences == [i // 7 for i in range(20)]


def test_every_row_is_checked_before_a_build_but_those_of_an_iterator():
    bad = [*ROWS, {"prompt": ""}]
    assert check_rows({"train": ROWS, "test": iter(bad)}) == {"train": 5, "test": None}
    assert check_rows({"train": bad}, limit=5) == {"train": 5}
    with pytest.raises(SchemaError, match="row 5"):
        check_rows({"train": bad})
    stream = IterableDataset.from_generator(lambda: iter(ROWS))
    assert check_rows({"train": stream}) == {"train": 5} and len(prompt_items(stream)) == 5


def test_a_limit_reads_no_further_than_it_needs():
    endless = ({"prompt": f"number {i}"} for i in itertools.count())
    assert len(prompt_items(endless, limit=3)) == 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a"}, {"promt": "b"}], r"row 1: column 'prompt' is missing \(columns: 'promt'\).*rename_column"),
        ([{"prompt": "a"}, {}], r"row 1: column 'prompt' is missing \(columns: none\)"),
        (["just text"], r"row 0: expected a dict with a column 'prompt', got str.*Mend it with"),
        ([{"prompt": []}], r"row 0: `prompt` must be a non-empty string or list"),
        ([{"prompt": None}], r"row 0: `prompt` must be a non-empty string or list"),
        ([{"prompt": [{"role": "user"}]}], r"row 0: `prompt`: each message needs `role` and `content`"),
        ([{"prompt": " \n"}], r"row 0: column 'prompt' is empty.*filter"),
        (
            [{"prompt": [{"role": "user", "content": [{"type": "image"}]}]}],
            r"row 0: `prompt`: .*must be strings",
        ),
        (
            [{"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}],
            r"row 0: column 'prompt' ends with an assistant message.*Mend it",
        ),
        ([{"prompt": "a", "reference": 3}], r"row 0: column 'reference' must be a string or None, got int"),
        ([{"prompt": "a", "source": ["x"]}], r"row 0: column 'source' must be a string or None, got list"),
    ],
)
def test_a_bad_row_is_named_with_its_column_and_the_remedy(rows, message):
    with pytest.raises(SchemaError, match=message):
        prompt_items(rows)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("one prompt", r"`prompts` must be a Dataset.*got str"),
        (None, r"`prompts` must be a Dataset.*got NoneType"),
        ({"prompt": "a row"}, r"`prompts\['prompt'\]` must be a Dataset or a list of rows, got str.*single row"),
        ({}, "`prompts` has no splits"),
    ],
)
def test_what_is_no_rows_is_refused(prompts, message):
    with pytest.raises(InputError, match=message):
        as_splits(prompts)


def test_no_rows_at_all_are_refused():
    with pytest.raises(InputError, match="`prompts` has no rows"):
        prompt_items([])
