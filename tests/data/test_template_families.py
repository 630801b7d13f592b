"""Laws that hold for every family of chat templates: one BOS, an end that is scored and trained, one prompt for all.

What is expected is read off the template's own rendering with plain loops, never off the code under test.
"""

from __future__ import annotations

import copy

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from templates import FAMILIES, OWN, SHIPPED, TRL_TEMPLATES
from tiny import random_llama
from training import QUIET, config
from trl import SFTConfig, SFTTrainer
from trl_rows import assistant, prepared, turns, user

from tuna_trl import TunaTrainer
from tuna_trl.collator import RankedCollator
from tuna_trl.data.tokenize import tokenize_row
from tuna_trl.errors import InputError
from tuna_trl.tokens import Template


families = pytest.mark.parametrize("name", FAMILIES)
# the templates of Llama 3.1 write today's date where a row gives none
DATE = {"date_string": "26 Jul 2024"}
# what the tokenizers merge, what templates trim, what they search for, and what is no single character
words = st.text("the in\n é", max_size=10) | st.sampled_from(["<think>\na\n</think>\n\nthe", "\n\nin", "in ", "🙂 t"])
MERGES = "e"  # some tokenizers here have a token of it with the space behind it
prompts = st.builds(lambda text: [user(text)], words) | st.builds(
    lambda a, b: [user(a), assistant(b), user("t")], words, words
)


def ranked(prompt, contents, cut=()):
    """A ranked row whose responses `cut` were cut by their sampler."""
    responses = [
        {"content": c, "rank": k + 1, "finish_reason": "length" if k in cut else "stop"}
        for k, c in enumerate(contents)
    ]
    return {"prompt": prompt, "responses": responses, "chat_template_kwargs": DATE}


def rendered(family, messages, **kwargs):
    """Token ids as the tokenizer's own template gives them."""
    encoded = family.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **DATE, **kwargs)
    return list(encoded["input_ids"])


def sequences(row):
    return [row["prompt_ids"] + ids for ids in row["response_ids"]]


def assert_one_bos(ids, family):
    if family.bos is None:
        bos = family.tokenizer.bos_token_id
        assert bos is None or ids[:2] != [bos, bos]  # SmolLM's BOS begins every turn
    else:
        bos = family.tokenizer.convert_tokens_to_ids(family.bos)
        assert ids[0] == bos and ids.count(bos) == 1


def test_every_family_is_there_and_trl_ships_some():
    assert {"llama 3", "qwen", "gemma", "mistral", "smollm"} <= OWN.keys()
    assert {name.removeprefix("trl/")[:4] for name in SHIPPED} == {"llam", "qwen", "gemm"}
    assert TRL_TEMPLATES.is_dir() and any(not family.system for family in SHIPPED.values())


# ---- Ranked rows ----


@families
@settings(deadline=None, max_examples=15)
@given(prompt=prompts, contents=st.lists(words, min_size=1, max_size=4))
def test_prompt_and_response_are_the_rendered_conversation_and_part_where_any_response_does(name, prompt, contents):
    family = FAMILIES[name]
    row = tokenize_row(ranked(prompt, contents), Template(family.tokenizer))
    full = [rendered(family, [*prompt, assistant(c)]) for c in contents]
    assert sequences(row) == full
    alone = rendered(family, prompt, add_generation_prompt=True)
    shared = 0
    while all(shared < min(len(alone), len(ids)) and ids[shared] == alone[shared] for ids in full):
        shared += 1
    assert len(row["prompt_ids"]) == shared


@families
@settings(deadline=None, max_examples=15)
@given(prompt=prompts, contents=st.lists(words, min_size=1, max_size=4))
def test_every_sequence_begins_with_the_familys_one_bos(name, prompt, contents):
    family = FAMILIES[name]
    row = tokenize_row(ranked(prompt, contents), Template(family.tokenizer))
    for ids in sequences(row):
        assert_one_bos(ids, family)


@families
@settings(deadline=None, max_examples=15)
@given(prompt=prompts, contents=st.lists(words, min_size=1, max_size=4))
def test_the_end_of_the_turn_is_the_last_scored_token_and_is_trained(name, prompt, contents):
    family = FAMILIES[name]
    template = Template(family.tokenizer)
    batch = RankedCollator(pad_token_id=template.pad_token_id)([tokenize_row(ranked(prompt, contents), template)])
    end = family.end_id
    for k in range(len(contents)):
        last = batch["score_mask"][0, k].nonzero().max()
        assert batch["input_ids"][0, k, last] == end == batch["labels"][0, k, last]
        behind = batch["input_ids"][0, k, last + 1 :][batch["attention_mask"][0, k, last + 1 :].bool()]
        assert family.tokenizer.decode(behind).strip() == ""  # the template's newline at most


@families
@settings(deadline=None, max_examples=15)
@given(prompt=prompts, content=words)
def test_a_response_that_was_cut_has_no_end_and_is_otherwise_the_same(name, prompt, content):
    family = FAMILIES[name]
    row = tokenize_row(ranked(prompt, [content, content], cut=[1]), Template(family.tokenizer))
    full, cut = row["response_ids"]
    assert full[: len(cut)] == cut and family.end_id not in cut
    left_out = family.tokenizer.decode(full[len(cut) :])
    assert left_out.strip() == family.end  # and the template's white space on both sides of it
    if content and not content[-1].isspace() and content[-1] not in MERGES:
        assert not family.tokenizer.decode(cut[-1:]).isspace()
    assert row["score_lengths"] == [full.index(family.end_id) + 1, len(cut)]


@families
def test_a_common_opening_of_all_responses_is_still_response(name):
    family = FAMILIES[name]
    template, prompt = Template(family.tokenizer), [user("Which river is the longest?")]
    alike = tokenize_row(ranked(prompt, ["the river in the north", "the river in the south"]), template)
    unlike = tokenize_row(ranked(prompt, ["the river in the north", "no, a sea"]), template)
    assert alike["prompt_ids"] == unlike["prompt_ids"]
    opening = [family.tokenizer.decode(ids) for ids in alike["response_ids"]]
    assert all("the river in the" in text for text in opening)


@families
def test_a_row_of_a_dataset_is_the_row_of_the_function(name):
    family = FAMILIES[name]
    row = ranked(turns(1)[:3], ["the end", "in a\n\nword", "the end of it"], cut=[2])
    (found,) = prepared([row], family.tokenizer)
    expected = tokenize_row(row, Template(family.tokenizer))
    assert all(found[key] == expected[key] for key in ("prompt_ids", "response_ids", "score_lengths", "ranks"))


# ---- One response, messages, text: SFTTrainer's tokens ----


def sft_rows(rows, family, folder, **changes):
    """`(input_ids, labels)` as SFTTrainer prepares them."""
    tokenizer = copy.deepcopy(family.tokenizer)
    trainer = SFTTrainer(
        random_llama(len(tokenizer), max_position_embeddings=2048),
        SFTConfig(output_dir=str(folder), **{**QUIET, "bf16": False, **changes}),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


def tuna_rows(rows, family, folder, **changes):
    trainer = TunaTrainer(
        random_llama(len(family.tokenizer), max_position_embeddings=2048),
        config(folder, **changes),
        train_dataset=Dataset.from_list(rows),
        processing_class=family.tokenizer,
    )
    return [whole(row) for row in trainer.train_dataset]


def whole(row):
    (ids,), (labels,) = row["response_ids"], row["response_labels"]
    return row["prompt_ids"] + ids, [-100] * len(row["prompt_ids"]) + labels


@families
def test_one_response_has_the_tokens_and_labels_of_sft_trainers_prompt_and_completion(name, tmp_path):
    family = FAMILIES[name]
    pairs = [
        ([user("the question")], "the answer"),
        (turns(1)[:3], "\n\nin the end "),
        ([user("q "), assistant("<think>\nwhy\n</think>\n\nthis"), user("and?")], "<think>\nso\n</think>\n\nthat"),
    ]
    if family.system:
        pairs.append(([{"role": "system", "content": "Be brief."}, user("q")], "a"))
    rows = [{"prompt": p, "completion": [assistant(c)], "chat_template_kwargs": DATE} for p, c in pairs]
    expected = sft_rows(rows, family, tmp_path)
    assert tuna_rows(rows, family, tmp_path) == expected
    assert tuna_rows([ranked(p, [c]) for p, c in pairs], family, tmp_path) == expected


@families
def test_messages_and_text_have_the_tokens_and_labels_of_sft_trainer_and_one_bos(name, tmp_path):
    family = FAMILIES[name]
    conversations = [{"messages": turns(i), "chat_template_kwargs": DATE} for i in range(3)]
    texts = [{"text": "the text " * i} for i in range(1, 3)]
    pairs = [{"prompt": "the question ", "completion": "in the end"}]
    for rows in (conversations, texts, pairs):
        found = tuna_rows(rows, family, tmp_path)
        assert found == sft_rows(rows, family, tmp_path)
        for ids, labels in found:
            assert_one_bos(ids, family)
            end = family.end_id if rows is conversations else family.tokenizer.eos_token_id
            assert end in ids[-2:] and end in labels[-2:]


# templates that trl has a twin of, which marks the assistant's words
TWINS = [name for name in SHIPPED if (TRL_TEMPLATES / f"{name.removeprefix('trl/')}_training.jinja").is_file()]


def test_some_templates_have_a_twin():
    assert len(TWINS) >= 4


@pytest.mark.parametrize("name", TWINS)
def test_the_assistants_words_alone_train_as_with_sft_trainer_and_so_does_their_end(name, tmp_path):
    family = FAMILIES[name]
    rows = [{"messages": turns(i), "chat_template_kwargs": DATE} for i in range(2)]
    found = tuna_rows(rows, family, tmp_path, assistant_only_loss=True)
    assert found == sft_rows(rows, family, tmp_path, assistant_only_loss=True)
    for (ids, labels), row in zip(found, rows, strict=True):
        trained = family.tokenizer.decode([label for label in labels if label != -100])
        assert all(m["content"].strip() in trained for m in row["messages"] if m["role"] == "assistant")
        assert "question" not in trained and "and?" not in trained
        assert labels.count(family.end_id) == 2 < ids.count(family.end_id)


# ---- What a template refuses ----

REFUSING = [name for name, family in FAMILIES.items() if not family.system]
SYSTEM = {"role": "system", "content": "Be brief."}
REFUSED = {
    "ranked": lambda: ranked([SYSTEM, user("q")], ["a", "b"]),
    "prompt-completion": lambda: {"prompt": [SYSTEM, user("q")], "completion": [assistant("a")]},
    "preference": lambda: {"prompt": [SYSTEM, user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
    "messages": lambda: {"messages": [SYSTEM, user("q"), assistant("a")]},
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", REFUSING)
def test_a_system_message_that_a_template_refuses_is_named_with_its_row_and_the_way_out(name, kind):
    good = {"prompt": [user("q")], "messages": [user("q"), assistant("a")]}
    bad = REFUSED[kind]()
    rows = [{**bad, **{key: value for key, value in good.items() if key in bad}}, bad]
    with pytest.raises(InputError, match=r"train row 1\b.*chat template.*[Rr]ole.*first user message"):
        prepared(rows, FAMILIES[name].tokenizer)


def test_turns_that_do_not_alternate_are_refused_by_the_template_with_row_and_reason():
    with pytest.raises(InputError, match=r"train row 0\b.*Roles must alternate"):
        prepared([{"messages": [user("q"), user("again"), assistant("a")]}], FAMILIES["gemma"].tokenizer)


def test_a_message_without_a_role_is_named_with_its_row():
    rows = [{"prompt": [{"from": "human", "value": "q"}], "completion": [{"from": "gpt", "value": "a"}]}]
    with pytest.raises(InputError, match=r"train row 0\b.*role"):
        prepared(rows, FAMILIES["llama 3"].tokenizer)
