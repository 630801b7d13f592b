"""Reading replies: any bytes are a reply or a fault, and tokens belong to a text however it is cut into them."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuna_trl.build.teacher import sum_logprob
from tuna_trl.clients.openai_replies import Choice, Token, read_chat_reply, spells
from tuna_trl.clients.retry import Fault


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=30)
visible = st.text("abcäß漢🙂", min_size=1, max_size=12)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def cut(data, raw: bytes) -> list[bytes]:
    """The bytes in pieces, cut anywhere, in the middle of characters too."""
    places = sorted(data.draw(st.sets(st.integers(1, max(1, len(raw) - 1)), max_size=8)))
    return [raw[a:b] for a, b in zip([0, *places], [*places, len(raw)], strict=True) if raw[a:b]]


def choice_of(pieces, text, finish):
    return Choice(text, finish, tuple(Token(piece, -1.0 - k, {}) for k, piece in enumerate(pieces)))


@given(st.data(), texts)
def test_a_text_is_spelt_by_its_bytes_however_they_are_cut(data, text):
    pieces = cut(data, text.encode())
    assert spells(pieces, text) and spells(pieces, text.strip())


@given(st.data(), texts)
def test_a_text_is_spelt_by_pieces_with_broken_characters(data, text):
    pieces = [piece.decode("utf-8", "replace").encode() for piece in cut(data, text.encode())]
    assert spells(pieces, text)


@given(visible, visible)
def test_another_text_is_not_spelt(one, other):
    assert spells([one.encode()], other) == (one == other)
    assert not spells([one.encode(), other.encode()], one)


@given(st.data(), visible, st.sampled_from([b"", b"<|im_end|>", b"</s>"]))
def test_the_end_token_is_found_whatever_it_is_called(data, text, end):
    pieces = cut(data, text.encode())
    with_end, without = choice_of([*pieces, end], text, "stop"), choice_of(pieces, text, "stop")
    cut_off = choice_of(pieces, text, "length")
    assert (with_end.end_token(), without.end_token()) == ("included", "absent")
    assert len(with_end.scored(True)) == len(with_end.scored(False)) + 1 == len(pieces) + 1
    assert without.scored(True) == () and without.scored(False) == with_end.scored(False)
    assert cut_off.scored(True) == cut_off.scored(False) == without.scored(False)


@given(st.data(), visible, visible, st.booleans(), st.sampled_from(["stop", "length"]))
def test_log_probs_of_more_than_the_text_are_never_scored(data, text, hidden, include_eos, finish):
    pieces = cut(data, hidden.encode()) + cut(data, text.encode()) + [b"</s>"]
    assert choice_of(pieces, text, finish).scored(include_eos) == ()


@given(anything)
def test_any_json_is_a_reply_or_a_fault(value):
    try:
        reply = read_chat_reply(json.dumps(value))
    except Fault:
        return
    assert reply.choices


@given(st.text(max_size=40))
def test_any_text_is_a_reply_or_a_fault(body):
    with pytest.raises(Fault):
        read_chat_reply(body)


@given(anything, anything, anything, anything, st.booleans())
def test_whatever_a_choice_holds_its_samples_are_whole_or_fail(content, finish, logprobs, usage, include_eos):
    choice = {"message": {"content": content}, "finish_reason": finish, "logprobs": {"content": logprobs}}
    reply = read_chat_reply(json.dumps({"choices": [choice], "usage": usage}))
    (sample,) = reply.samples(include_eos)
    total = sum_logprob(sample)
    assert isinstance(sample.text, str) and isinstance(sample.finish_reason, str) and sample.usage.output >= 0
    assert total is None or (math.isfinite(total) and sample.finish_reason in ("stop", "length"))
