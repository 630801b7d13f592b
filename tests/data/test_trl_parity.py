"""Laws of parity: the tokens and labels that TRL's trainers prepare from the same rows."""

from __future__ import annotations

import copy

import pytest
from datasets import Dataset
from tiny import CHATML, CHATML_MARKED, chatml_tokenizer, llama3_tokenizer, random_llama
from training import QUIET, config
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl_rows import assistant, from_value, prepared, turns, user

from tuna_trl import TunaTrainer


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
