"""Laws of preparation: every type of row becomes the one tokenised row; a bad one is named with the way out."""

from __future__ import annotations

import pytest
from datasets import Dataset
from ranked_rows import dataset_of, simple_row
from tiny import CHATML, chatml_tokenizer
from trl_rows import assistant, prepared, turns, user

from tuna_trl import InputError, SchemaError
from tuna_trl.data.prepare import TOKENISED_COLUMNS, detect_kind
from tuna_trl.tokens import Template


def test_a_users_rows_and_full_rows_give_the_same_tokens():
    full = simple_row(0)
    own = {
        "prompt": full["prompt"][0]["content"],
        "responses": [r["content"] for r in full["responses"]][::-1],  # any order: ranks decide
        "scores": [r["score"] for r in full["responses"]][::-1],
    }
    (first,), (second,) = prepared(dataset_of([full])), prepared([own])
    for name in ("prompt_ids", "response_ids", "response_labels", "score_lengths", "ranks", "scores", "length"):
        assert first[name] == second[name]


@pytest.mark.parametrize(
    "status, trains", [("ok", True), ("partial", True), ("refused", False), ("inconsistent", False)]
)
def test_only_rows_whose_ranking_came_off_train(status, trains):
    kept = prepared(dataset_of([simple_row(0), simple_row(1, status=status)]))
    assert len(kept) == 1 + trains


@pytest.mark.parametrize("format", ["torch", "numpy", "pandas", None])
def test_the_format_of_a_dataset_does_not_show_in_its_tokens(format):
    rows = [{"prompt": f"q {i}", "responses": ["the a", "b", "the a"], "scores": [3.0, 2.0, 1.0]} for i in range(2)]
    plain = prepared(rows)
    other = prepared(Dataset.from_list(rows).with_format(format))
    for name in ("prompt_ids", "response_ids", "ranks", "scores"):
        assert other.with_format(None)[:][name] == plain[:][name]
    assert type(other[0]["ranks"]) is list


def test_own_columns_stay_for_callbacks_and_the_dataset_is_read_only():
    dataset = Dataset.from_list([{"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2], "topic": "x"}])
    before = dataset._fingerprint
    result = prepared(dataset)
    assert set(TOKENISED_COLUMNS) <= set(result.column_names) and result[0]["topic"] == "x"
    assert not {"kept", "cut_responses", "dropped_responses"} & set(result.column_names)
    assert dataset._fingerprint == before and dataset.column_names == ["prompt", "responses", "ranks", "topic"]


def test_prepared_rows_pass_through_untouched():
    result = prepared([{"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2]}])
    assert prepared(result) is result


def test_a_stream_gives_the_rows_of_a_dataset():
    rows = [{"prompt": f"q {i}", "responses": ["x" * (20 * i + 1), "b", "c"], "ranks": [1, 2, 3]} for i in range(4)]
    stream = prepared(Dataset.from_list(rows).to_iterable_dataset(), max_length=60)
    expected = prepared(rows, max_length=60)
    found = list(stream)
    assert [row["response_ids"] for row in found] == expected["response_ids"]
    assert found[0].keys() == set(expected.column_names)


# ---- Bad input ----


BAD = {
    "no known type": ([{"a": 1, "b": 2}], r"columns \('a', 'b'\) fit no known type.*`prompt` and `responses`"),
    "a typing error": ([{"prompt": "q", "respones": ["a"]}], "For 'respones': Did you mean 'responses'"),
    "KTO rows": ([{"prompt": "q", "completion": "a", "label": True}], "unpaired preference rows.*KTOTrainer"),
    "an empty dataset": ([], "The train dataset is empty"),
    "no responses": (
        [{"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2]}, {"prompt": "q", "responses": [], "ranks": []}],
        "train row 1: column 'responses' is an empty list.*filter",
    ),
    "a rank for a response that isn't there": (
        [{"prompt": "q", "responses": ["a", "b"], "ranks": [1, 3]}],
        "train row 0: column 'responses.1..rank' is 3, but there are only 2 responses",
    ),
    "nothing to rank by": ([{"prompt": "q", "responses": ["a", "b"]}], "train row 0.*'scores' or 'ranks' is needed"),
    "one rank too few": (
        [{"prompt": "q", "responses": ["a", "b"], "ranks": [1]}],
        "train row 0: column 'ranks' has 1 entries for 2 responses",
    ),
    "text and messages in one pair": (
        [{"prompt": "q", "chosen": "a", "rejected": [assistant("b")]}],
        "train row 0: `chosen` and `rejected` must both be strings or both be lists",
    ),
    "a conversational prompt before text": (
        [{"prompt": [user("q")], "chosen": "a", "rejected": "b"}],
        "train row 0: `prompt` is a list of messages but `chosen` a string",
    ),
    "text and messages in prompt and completion": (
        [{"prompt": "q", "completion": [assistant("a")]}],
        "train row 0: `prompt` and `completion` must both be strings or both",
    ),
    "a pair without an answer": (
        [{"chosen": [user("q")], "rejected": [user("q")]}],
        "train row 0: `chosen` and `rejected` need a common prompt and an answer",
    ),
    "labels of another length": (
        [{"input_ids": [1, 2, 3], "labels": [1, 2]}],
        "train row 0: `labels` has 2 entries for 3 `input_ids`",
    ),
    "a mask of another length": (
        [{"input_ids": [1, 2, 3], "assistant_masks": [0, 1]}],
        "train row 0: `assistant_masks` has 2 entries for 3 `input_ids`",
    ),
    "text that is none": ([{"text": "a"}, {"text": None}], "train row 1: column 'text' is None, expected a string"),
    "messages that are none": (
        [{"messages": "hello"}],
        "train row 0: `messages` must be a non-empty list of messages",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named_with_dataset_row_column_and_way_out(name):
    rows, message = BAD[name]
    with pytest.raises(InputError, match=message):
        prepared(rows)


def test_preparing_again_finds_its_cache_unless_something_changed(tmp_path):
    """A second run, and every further process of a node, reads what the first has written."""
    Dataset.from_list([{"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2]}]).save_to_disk(tmp_path / "rows")
    used = chatml_tokenizer()
    Template(used).chat_ids([user("used before")])
    results = [prepared(Dataset.load_from_disk(tmp_path / "rows"), tokenizer) for tokenizer in (None, None, used)]
    assert len({result.cache_files[0]["filename"] for result in results}) == 1
    other = chatml_tokenizer()
    other.chat_template = CHATML + "{# other #}"
    for changed in (
        prepared(Dataset.load_from_disk(tmp_path / "rows"), other),
        prepared(Dataset.load_from_disk(tmp_path / "rows"), max_length=99),
    ):
        assert changed.cache_files != results[0].cache_files


def test_rows_that_another_version_of_the_code_made_are_not_served(tmp_path, monkeypatch):
    """0.1.0.dev0 met columns of its own earlier cache: `datasets` keys by a function's name, not by what it does."""
    Dataset.from_list([{"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2]}]).save_to_disk(tmp_path / "rows")
    now = prepared(Dataset.load_from_disk(tmp_path / "rows"))
    monkeypatch.setattr("tuna_trl.data.prepare.code_digest", lambda: "another version")
    then = prepared(Dataset.load_from_disk(tmp_path / "rows"))
    assert then.cache_files != now.cache_files
    assert repr(then.to_list()) == repr(now.to_list())  # scores are NaN, which equals nothing


def test_assistant_only_loss_without_marks_in_the_template_is_named():
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = CHATML.replace("<|im_start|>", "<|im_start|> ")  # one that TRL has no marked twin of
    with pytest.raises(InputError, match="assistant_only_loss.*generation"):
        prepared([{"messages": turns(0)}], tokenizer, assistant_only_loss=True)


def test_a_conversation_needs_a_template():
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="has no chat template.*chat_template_path"):
        prepared([{"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2]}], tokenizer)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2]},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "completion": "a"},
    ],
    ids=["ranked", "pair", "SFT"],
)
def test_a_missing_reference_is_named_before_training(row):
    with pytest.raises(SchemaError, match="train row 0: `mle_target='reference'`.*column 'reference'.*'best'"):
        prepared([row], needs_reference=True)
    assert len(prepared([row])) == 1


@pytest.mark.parametrize(
    "columns, kind",
    [
        (["prompt", "responses", "chosen", "rejected"], "ranked"),
        (["prompt", "chosen", "rejected", "messages"], "preference"),
        (["prompt", "completion", "text"], "prompt-completion"),
        (["messages", "text"], "messages"),
        (["input_ids", "text"], "pre-tokenised"),
        (["prompt_ids", "response_ids", "prompt", "responses"], "tokenised"),
        (["text", "label"], "text"),
    ],
)
def test_the_richest_type_wins(columns, kind):
    assert detect_kind(columns) == kind
