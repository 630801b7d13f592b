"""Laws of tokenising a row (design: prompt boundary, two masks): where a response begins, where its score ends."""

from __future__ import annotations

import copy
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ranked_rows import simple_row
from tiny import CHATML, chatml_tokenizer, llama3_tokenizer

from tuna_trl.data.tokenize import language_modelling_row, tokenize_chat_pair, tokenize_row, tokenize_text_row
from tuna_trl.tokens import Template, common_prefix_length


# the words of the tokenizer's merges, so that tokens merge within and across the boundary
words = st.text("the inra", max_size=8)
TEMPLATES = {
    "chatml": Template(chatml_tokenizer()),
    "llama 3": Template(llama3_tokenizer()),
    # the generation prompt ends with a space, which merges with a response that begins with "a" or "the"
    "space": Template(
        chatml_tokenizer(),
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
    ),
}


def row_of(prompt, contents, reference=None, cut=()):
    responses = [{"content": c, "rank": k + 1, "score": -float(k)} for k, c in enumerate(contents)]
    for k in cut:
        responses[k]["finish_reason"] = "length"
    return {"prompt": prompt, "responses": responses, "reference": reference}


def conversation(template, prompt, content):
    return template.chat_ids([{"role": "user", "content": prompt}, {"role": "assistant", "content": content}])


@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None, max_examples=50)
@given(prompt=words, contents=st.lists(words, min_size=1, max_size=4), reference=st.none() | words)
def test_prompt_and_response_are_the_tokens_of_the_conversation_and_all_share_the_prompt(
    name, prompt, contents, reference
):
    template = TEMPLATES[name]
    row = tokenize_row(row_of(prompt, contents, reference), template)
    full = [conversation(template, prompt, content) for content in contents]
    alone = template.chat_ids([{"role": "user", "content": prompt}], add_generation_prompt=True)
    everything = full + ([conversation(template, prompt, reference)] if reference is not None else [])
    assert [row["prompt_ids"] + ids for ids in row["response_ids"]] == full
    assert row["prompt_ids"] + row["reference_ids"] == (everything[-1] if reference is not None else row["prompt_ids"])
    assert len(row["prompt_ids"]) == min(common_prefix_length(alone, ids) for ids in everything)
    assert row["response_labels"] == row["response_ids"]
    assert row["length"] == len(row["prompt_ids"]) + sum(map(len, row["response_ids"]))


@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None, max_examples=50)
@given(prompt=words, contents=st.lists(words, min_size=1, max_size=4))
def test_the_score_ends_with_the_end_token_and_the_labels_with_the_template(name, prompt, contents):
    template = TEMPLATES[name]
    row, end = tokenize_row(row_of(prompt, contents), template), template.tokenizer.eos_token_id
    for ids, labels, length in zip(row["response_ids"], row["response_labels"], row["score_lengths"], strict=True):
        assert ids[length - 1] == end and ids.count(end) == 1
        tail = len(template.turn_end.tail) - template.turn_end.kept
        assert labels == ids and len(ids) - length == tail == (1 if name == "chatml" else 0)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None, max_examples=50)
@given(prompt=words, content=words)
def test_a_response_that_its_sampler_cut_has_no_end_token_and_is_scored_to_its_last_word(name, prompt, content):
    template = TEMPLATES[name]
    row = tokenize_row(row_of(prompt, [content, content], cut=[1]), template)
    whole, cut = row["response_ids"]
    assert template.tokenizer.eos_token_id not in cut
    assert cut == whole[: len(whole) - len(template.turn_end.tail)]
    assert row["score_lengths"] == [len(cut) + 1, len(cut)]


def test_a_cut_response_has_no_end_token_even_where_its_last_word_merges_with_the_template():
    # the tail is " <|im_end|>"; behind "word " its space merges into a double one, and the tail looks otherwise
    template = Template(
        chatml_tokenizer(more_merges=[("Ġ", "Ġ")]),
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + ' <|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
    )
    end = template.tokenizer.eos_token_id
    for content in ("word", "word "):
        row = tokenize_row(row_of("q", [content, content], cut=[1]), template)
        whole, cut = row["response_ids"]
        assert whole[-1] == end and row["score_lengths"][0] == len(whole)
        assert end not in cut and row["score_lengths"][1] == len(cut)
        assert template.tokenizer.decode(cut).rstrip() == "word"


def test_a_boundary_that_merges_in_one_response_moves_for_all():
    template = TEMPLATES["space"]
    apart = tokenize_row(row_of("q", ["zebra", "xenon"]), template)
    merged = tokenize_row(row_of("q", ["zebra", "a word"]), template)
    assert len(merged["prompt_ids"]) == len(apart["prompt_ids"]) - 1
    space, space_a = template.tokenizer.convert_tokens_to_ids(["Ġ", "Ġa"])
    assert [ids[0] for ids in merged["response_ids"]] == [space, space_a]
    assert merged["score_lengths"][0] == apart["score_lengths"][0] + 1


def test_what_all_responses_have_in_common_is_still_scored(tiny_tokenizer):
    template = Template(tiny_tokenizer)
    contents = ["In short: yes", "In short: no", "In short: yes and no"]
    row = tokenize_row(row_of("q", contents), template)
    alone = template.chat_ids([{"role": "user", "content": "q"}], add_generation_prompt=True)
    assert row["prompt_ids"] == alone
    for ids, content, length in zip(row["response_ids"], contents, row["score_lengths"], strict=True):
        assert tiny_tokenizer.decode(ids[: length - 1]) == content


def test_a_row_has_exactly_one_bos_whatever_adds_it():
    template = TEMPLATES["llama 3"]
    bos = template.tokenizer.bos_token_id
    chat = tokenize_row(row_of("q", ["one", "two"], "three"), template)
    text = tokenize_text_row("question ", ["one", "two"], [1, 2], template)
    bare = tokenize_text_row("", ["one", "two"], [1, 2], template)
    for row in (chat, text, bare):
        assert row["prompt_ids"][0] == bos and row["prompt_ids"].count(bos) == 1
        assert not any(bos in ids for ids in [*row["response_ids"], row["reference_ids"]])


def test_ranks_and_scores_come_along_and_null_means_not_ranked(tiny_tokenizer):
    row = row_of("q", ["a", "b", "c"])
    row["responses"][2] |= {"rank": None, "score": None}
    tokenised = tokenize_row(row, Template(tiny_tokenizer))
    assert tokenised["ranks"] == [1, 2, 0]
    assert tokenised["scores"][:2] == [0.0, -1.0] and math.isnan(tokenised["scores"][2])


def test_template_arguments_and_tools_of_a_row_reach_the_template():
    shown = "{{ mood }}{% if tools %}{{ tools[0]['function']['name'] }}{% endif %}" + CHATML
    template = Template(chatml_tokenizer(), shown)
    tools = [{"type": "function", "function": {"name": "lookup", "description": "", "parameters": {}}}]
    row = row_of("q", ["x"]) | {"chat_template_kwargs": {"mood": "calm"}, "tools": json.dumps(tools)}
    text = template.tokenizer.decode(tokenize_row(row, template)["prompt_ids"])
    assert "calm" in text and "lookup" in text


def test_a_row_is_read_only(tiny_tokenizer):
    row = simple_row(3)
    before = copy.deepcopy(row)
    tokenize_row(row, Template(tiny_tokenizer))
    assert row == before


# ---- Plain text ----


@settings(deadline=None, max_examples=150)
@given(prompt=words, responses=st.lists(words, min_size=1, max_size=3))
def test_text_is_joined_before_it_is_tokenised_and_ends_with_the_end_token(prompt, responses):
    template = TEMPLATES["chatml"]
    eos, alone = template.tokenizer.eos_token, template.text_ids(prompt)
    row = tokenize_text_row(prompt, responses, list(range(1, len(responses) + 1)), template)
    full = [template.text_ids(prompt + response + eos) for response in responses]
    assert [row["prompt_ids"] + ids for ids in row["response_ids"]] == full
    assert len(row["prompt_ids"]) == min(common_prefix_length(alone, ids) for ids in full)
    assert row["score_lengths"] == [len(ids) for ids in row["response_ids"]]


def test_text_that_ends_with_the_end_token_gets_no_second_one(tiny_tokenizer):
    template = Template(tiny_tokenizer)
    without, given_one = (tokenize_text_row("q ", [text], [1], template) for text in ("yes", "yes<|im_end|>"))
    assert without["response_ids"] == given_one["response_ids"]
    assert without["response_ids"][0].count(tiny_tokenizer.eos_token_id) == 1


# ---- Conversations, language modelling ----


def test_several_messages_of_a_response_are_scored_to_the_end_of_the_last(tiny_tokenizer):
    template, end = Template(tiny_tokenizer), tiny_tokenizer.eos_token_id
    prompt = [{"role": "user", "content": "q"}]
    answer = [
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "b"},
    ]
    row = tokenize_chat_pair(prompt, [answer, answer[:1]], [1, 2], template)
    assert row["prompt_ids"] + row["response_ids"][0] == template.chat_ids(prompt + answer)
    for ids, length in zip(row["response_ids"], row["score_lengths"], strict=True):
        assert ids[length - 1] == end and len(ids) == length + 1


def test_language_modelling_is_one_response_without_a_prompt():
    row = language_modelling_row([5, 6, 7])
    assert (row["prompt_ids"], row["response_ids"], row["ranks"]) == ([], [[5, 6, 7]], [1])
    assert row["response_labels"] == [[5, 6, 7]] and row["length"] == 3
    assert language_modelling_row([5, 6, 7], [-100, 6, -100])["response_labels"] == [[-100, 6, -100]]
