"""Laws of preparation: the tokens of TRL's trainers from the same rows; what does not fit is lost as asked."""

from __future__ import annotations

import copy
import math

import pytest
from datasets import Dataset, IterableDataset
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ranked_rows import dataset_of, simple_row
from tiny import CHATML, CHATML_MARKED, chatml_tokenizer, llama3_tokenizer, random_llama
from training import QUIET, config, tokenised_row, tokenised_rows
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from tuna_trl import InputError, SchemaError, TunaTrainer
from tuna_trl.data.fitting import fit_row
from tuna_trl.data.prepare import TOKENISED_COLUMNS, Preparation, detect_kind, prepare_dataset
from tuna_trl.tokens import Template


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def turns(i):
    return [user(f"question {i}"), assistant(f"the answer {i}"), user("and?"), assistant("in " * (i + 1))]


def from_value(messages):
    return [{"from": m["role"], "value": m["content"]} for m in messages]


TOOLS = '[{"type": "function", "function": {"name": "lookup", "description": "", "parameters": {}}}]'
SHOWN = "{% if tools %}{{ tools[0]['function']['name'] }}{% endif %}{{ mood }}" + CHATML

# name -> (rows, changes of the config, what the tokenizer is: a template or a function that makes one)
SFT = {
    "prompt-completion": ([{"prompt": f"q {i} t", "completion": "he the" * i} for i in range(4)], {}, None),
    "prompt-completion with its end token": ([{"prompt": "q ", "completion": "a<|im_end|>"}], {}, None),
    "prompt-completion, conversational": (
        [{"prompt": [user(f"q {i}")], "completion": [assistant("the " * i)]} for i in range(4)],
        {},
        None,
    ),
    "prompt-completion, several turns": ([{"prompt": turns(1)[:1], "completion": turns(1)[1:]}], {}, None),
    "prompt-completion, whole sequence": (
        [{"prompt": "the ", "completion": "end"}],
        {"completion_only_loss": False},
        None,
    ),
    "prompt-completion, assistant only": (
        [{"prompt": turns(1)[:1], "completion": turns(1)[1:]}],
        {"assistant_only_loss": True},
        CHATML_MARKED,
    ),
    "prompt-completion, assistant only, whole sequence": (
        [{"prompt": turns(1)[:3], "completion": turns(1)[3:]}],
        {"assistant_only_loss": True, "completion_only_loss": False},
        CHATML_MARKED,
    ),
    "prompt-completion, truncated": (
        [{"prompt": "p" * 6, "completion": "c" * n} for n in (1, 3, 4, 30)]
        + [{"prompt": "p" * 10, "completion": "c"}],
        {"max_length": 10},
        None,
    ),
    "tools and template arguments": (
        [
            {
                "prompt": [user("q")],
                "completion": [assistant("a")],
                "tools": TOOLS,
                "chat_template_kwargs": {"mood": "calm"},
            }
        ],
        {},
        SHOWN,
    ),
    "messages": ([{"messages": turns(i)} for i in range(3)], {}, None),
    "messages, truncated": ([{"messages": turns(i)} for i in range(3)], {"max_length": 20}, None),
    "messages, assistant only": ([{"messages": turns(2)}], {"assistant_only_loss": True}, CHATML_MARKED),
    "messages, tools": ([{"messages": turns(0), "tools": TOOLS}], {}, SHOWN),
    "conversations": ([{"conversations": from_value(turns(i))} for i in range(2)], {}, None),
    "text": ([{"text": "the text " * i} for i in range(3)], {}, None),
    "text, another column": ([{"story": "the text"}], {"dataset_text_field": "story"}, None),
    "text, no limit": ([{"text": "the text " * 200}], {"max_length": None}, None),
    "input_ids": ([{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}], {}, None),
    "input_ids, truncated": ([{"input_ids": list(range(30))}], {"max_length": 7}, None),
    "input_ids and labels": ([{"input_ids": [5, 6, 7], "labels": [-100, 6, -100]}], {}, None),
    "input_ids and completion_mask": ([{"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1]}], {}, None),
    "input_ids and completion_mask, asked for": (
        [{"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1]}],
        {"completion_only_loss": True},
        None,
    ),
    "input_ids and both masks": (
        [{"input_ids": [5, 6, 7, 8], "completion_mask": [0, 1, 1, 1], "assistant_masks": [1, 1, 0, 1]}],
        {"completion_only_loss": True},
        None,
    ),
    "text behind a BOS": ([{"prompt": "the ", "completion": "end"}], {}, llama3_tokenizer),
    "messages behind a BOS": ([{"messages": turns(1)}], {}, llama3_tokenizer),
    "text of one row is a conversation of another": (
        [{"text": "plain", "source": "a"}, {"text": "text", "source": "b"}],
        {},
        None,
    ),
}


def tokenizer_of(kind):
    if callable(kind):
        tokenizer = kind()
    else:
        tokenizer = chatml_tokenizer()
        tokenizer.chat_template = kind or CHATML
    return tokenizer


def whole(row):
    """A tokenised row of one response as TRL stores it: `(input_ids, labels)`."""
    (ids,), (labels,) = row["response_ids"], row["response_labels"]
    return row["prompt_ids"] + ids, [-100] * len(row["prompt_ids"]) + labels


def sft_quiet():
    return {**QUIET, "bf16": False}


@pytest.mark.parametrize("name", SFT)
def test_sft_rows_have_the_tokens_and_labels_that_sft_trainer_prepares(name, tmp_path):
    rows, changes, kind = SFT[name]
    tokenizer, dataset = tokenizer_of(kind), Dataset.from_list(rows)
    model = random_llama(len(tokenizer), max_position_embeddings=4096)
    sft = SFTTrainer(
        copy.deepcopy(model),
        SFTConfig(output_dir=str(tmp_path), **sft_quiet(), **changes),
        train_dataset=dataset,
        processing_class=copy.deepcopy(tokenizer),
    )
    ours = TunaTrainer(model, config(tmp_path, **changes), train_dataset=dataset, processing_class=tokenizer)
    expected = [(row["input_ids"], row["labels"]) for row in sft.train_dataset]
    assert [whole(row) for row in ours.train_dataset] == expected
    assert all(row["ranks"] == [1] for row in ours.train_dataset)


def formatted(row):
    return f"Q: {row['question']} A: {row['answer']}"


def test_a_formatting_function_makes_the_text_that_it_makes_for_sft_trainer(tiny_llama, tiny_tokenizer, tmp_path):
    dataset = Dataset.from_list([{"question": f"the {i}", "answer": "a"} for i in range(3)])
    sft = SFTTrainer(
        copy.deepcopy(tiny_llama),
        SFTConfig(output_dir=str(tmp_path), **sft_quiet()),
        train_dataset=dataset,
        processing_class=copy.deepcopy(tiny_tokenizer),
        formatting_func=formatted,
    )
    ours = TunaTrainer(
        tiny_llama,
        config(tmp_path),
        train_dataset=dataset,
        processing_class=tiny_tokenizer,
        formatting_func=formatted,
    )
    assert [whole(row) for row in ours.train_dataset] == [(r["input_ids"], r["labels"]) for r in sft.train_dataset]


PAIRS = {
    "explicit": [{"prompt": f"q {i} t", "chosen": "he the", "rejected": "in a"} for i in range(3)],
    "implicit": [{"chosen": "the prompt, then yes", "rejected": "the prompt, then no"}],
    "implicit, cut at a space": [{"chosen": "Say: a", "rejected": "Say: b"}],
    "conversational": [{"prompt": [user("q")], "chosen": [assistant("yes")], "rejected": [assistant("no, no")]}],
    "conversational, implicit": [
        {"chosen": [user("q"), assistant("yes")], "rejected": [user("q"), assistant("no")]},
        {"chosen": [*turns(1), user("so?"), assistant("a")], "rejected": [*turns(1), user("so?"), assistant("b")]},
    ],
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_have_the_tokens_that_dpo_trainer_prepares_and_become_n_2(name, tiny_llama, tiny_tokenizer, tmp_path):
    dataset = Dataset.from_list(PAIRS[name])
    dpo = DPOTrainer(
        copy.deepcopy(tiny_llama),
        ref_model=copy.deepcopy(tiny_llama),
        args=DPOConfig(output_dir=str(tmp_path), **sft_quiet()),
        train_dataset=dataset,
        processing_class=copy.deepcopy(tiny_tokenizer),
    )
    ours = TunaTrainer(tiny_llama, config(tmp_path), train_dataset=dataset, processing_class=tiny_tokenizer)
    for row, expected in zip(ours.train_dataset, dpo.train_dataset, strict=True):
        assert row["prompt_ids"] == expected["prompt_ids"]
        assert row["response_ids"] == [expected["chosen_ids"], expected["rejected_ids"]]
        assert row["ranks"] == [1, 2]


def prepared(rows, tokenizer=None, **options):
    dataset = rows if isinstance(rows, (Dataset, IterableDataset)) else Dataset.from_list(rows)
    return prepare_dataset(dataset, Template(tokenizer or chatml_tokenizer()), Preparation(**options))


def test_the_shape_of_ultrafeedback_binarized_is_a_pair_behind_its_prompt():
    row = {
        "prompt": "q",
        "prompt_id": "0",
        "chosen": [user("q"), assistant("yes")],
        "rejected": [user("q"), assistant("no")],
        "messages": [user("q"), assistant("yes")],
        "score_chosen": 8.0,
        "score_rejected": 5.0,
    }
    explicit = {"prompt": [user("q")], "chosen": [assistant("yes")], "rejected": [assistant("no")]}
    (found,), (expected,) = prepared([row]), prepared([explicit])
    assert all(found[name] == expected[name] for name in ("prompt_ids", "response_ids", "ranks"))
    bare = {**row, "chosen": [assistant("yes")], "rejected": [assistant("no")]}
    assert prepared([bare])[0]["response_ids"] == expected["response_ids"]


# ---- Ranked rows ----


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


# ---- What is too long ----


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
    # a pair of text and messages has no Arrow type; a generator has none to infer
    dataset = Dataset.from_list(rows) if name not in ("text and messages in one pair",) else None
    if dataset is None:
        with pytest.raises(SchemaError, match=message):
            from tuna_trl.data.prepare import _tokenise_any

            _tokenise_any(rows[0], 0, "preference", Template(chatml_tokenizer()), Preparation(), "train")
        return
    with pytest.raises(InputError, match=message):
        prepared(dataset)


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
