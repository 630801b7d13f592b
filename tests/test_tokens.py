"""Laws of the template: where a turn ends, what pads, and that asking changes nothing."""

from __future__ import annotations

import doctest
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import CHATML, chatml_tokenizer, llama3_tokenizer

import tuna_trl.tokens
from tuna_trl import InputError
from tuna_trl.tokens import Template, TurnEnd, common_prefix_length


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "the answer"}]
ids = st.lists(st.integers(0, 3), max_size=8)


@given(ids, ids)
def test_a_common_prefix_is_common_and_no_longer_one_is(first, second):
    n = common_prefix_length(first, second)
    assert first[:n] == second[:n]
    assert n == min(len(first), len(second)) or first[n] != second[n]
    assert n == common_prefix_length(second, first)


def test_a_chatml_turn_ends_at_its_end_token_and_the_newline_is_its_tail(tiny_tokenizer):
    end, newline = tiny_tokenizer.convert_tokens_to_ids(["<|im_end|>", "Ċ"])
    assert Template(tiny_tokenizer).turn_end == TurnEnd((end, newline), 1, end)


def test_a_llama_3_turn_ends_with_its_end_token_alone():
    tokenizer = llama3_tokenizer()
    assert Template(tokenizer).turn_end == TurnEnd((tokenizer.eos_token_id,), 1, tokenizer.eos_token_id)


def test_an_end_token_that_is_added_but_not_special_ends_a_turn(tiny_tokenizer):
    tiny_tokenizer.add_tokens(["<end>"])
    tiny_tokenizer.chat_template = CHATML.replace("<|im_end|>", "<end>")
    turn_end = Template(tiny_tokenizer).turn_end
    assert turn_end.tail[: turn_end.kept] == (tiny_tokenizer.convert_tokens_to_ids("<end>"),)


@pytest.mark.parametrize("behind, length", [("", 0), ("\n\n", 2)], ids=["nothing", "blank line"])
def test_a_turn_without_an_end_token_ends_where_its_text_does(tiny_tokenizer, behind, length):
    tiny_tokenizer.chat_template = CHATML.replace("<|im_end|>' + '\n'", "%s'" % behind.replace("\n", "\\n"))  # noqa: UP031
    turn_end = Template(tiny_tokenizer).turn_end
    assert (len(turn_end.tail), turn_end.kept, turn_end.token) == (length, length, None)


def test_words_that_a_template_trims_do_not_hide_the_end(tiny_tokenizer):
    tiny_tokenizer.chat_template = CHATML.replace("message['content']", "(message['content'] | trim)")
    assert Template(tiny_tokenizer).turn_end == Template(chatml_tokenizer()).turn_end


def test_a_given_template_is_used_instead_of_the_tokenizers_own(tiny_tokenizer):
    tiny_tokenizer.chat_template = None
    template = Template(tiny_tokenizer, CHATML)
    assert template.turn_end.kept == 1
    assert template.chat_ids(CHAT) == Template(chatml_tokenizer()).chat_ids(CHAT)


def test_a_conversation_and_a_text_have_exactly_one_bos():
    tokenizer = llama3_tokenizer()
    template, bos = Template(tokenizer), tokenizer.bos_token_id
    for found in (
        template.chat_ids(CHAT),
        template.chat_ids(CHAT[:1], add_generation_prompt=True),
        template.text_ids("the text"),
    ):
        assert found[0] == bos and found.count(bos) == 1
    assert bos not in template.turn_end.tail
    assert template.text_ids(tokenizer.bos_token + "the text") == template.text_ids("the text")


def test_padding_is_the_pad_token_else_the_end_token_else_an_error():
    tokenizer = chatml_tokenizer()
    assert Template(tokenizer).pad_token_id == tokenizer.pad_token_id
    tokenizer.pad_token = None
    assert Template(tokenizer).pad_token_id == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="`processing_class` has neither a pad token nor an end token.*set"):
        _ = Template(tokenizer).pad_token_id


def test_a_missing_chat_template_is_named_with_three_ways_out(tiny_tokenizer):
    tiny_tokenizer.chat_template = None
    for ask in (lambda t: t.turn_end, lambda t: t.chat_ids(CHAT)):
        with pytest.raises(InputError, match="no chat template.*instruction-tuned.*chat_template_path"):
            ask(Template(tiny_tokenizer))


def test_asking_changes_neither_the_tokenizer_nor_the_hash_that_datasets_caches_by(tiny_tokenizer):
    from datasets.fingerprint import Hasher

    template = Template(tiny_tokenizer)
    before, tokens = Hasher.hash(template), tiny_tokenizer.special_tokens_map
    _ = template.turn_end, template.chat_ids(CHAT), template.text_ids("text"), template.pad_token_id
    assert Hasher.hash(template) == before
    assert tiny_tokenizer.special_tokens_map == tokens and tiny_tokenizer.chat_template == CHATML
    assert pickle.loads(pickle.dumps(template)).turn_end == template.turn_end
    assert Hasher.hash(Template(tiny_tokenizer, CHATML + "\n")) != before


def test_the_worked_example_is_true():
    assert doctest.testmod(tuna_trl.tokens).failed == 0
