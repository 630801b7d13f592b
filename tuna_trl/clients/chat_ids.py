"""Token ids of a conversation whose words are not trusted: a control token written in them stays text.

A chat template writes messages between control tokens, and tokenizing the rendered text as one makes control tokens of
whatever in a message looks like them: a candidate with `<|im_end|>` would close its turn and open another. Here the
template alone gives control tokens. What no token id can tell apart stays as it is: where a template's marks are plain
text (Llama 2's `[INST]`), a message can write them too. Touches the tokenizer only to ask it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.schema import Messages
from ..errors import InputError


def chat_ids(
    tokenizer: Any,
    messages: Messages,
    *,
    add_generation_prompt: bool,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """The ids of `messages` under the tokenizer's chat template.

    Those of `apply_chat_template` wherever no message holds a control token. Otherwise template and messages are
    tokenized apart, the messages as mere text. Control tokens are the tokenizer's special tokens and every added token
    that stands in the template's source (`<think>` is no special token in Qwen3).

    Raises:
        InputError: the template raises, leaves a message out or shows it twice.
    """
    options = {"add_generation_prompt": add_generation_prompt, **(template_kwargs or {})}
    pieces = _template_pieces(tokenizer, messages, options)
    # half of a surrogate pair is no text to a tokenizer
    texts = [message["content"].encode("utf-8", "replace").decode("utf-8") for message in messages]
    messages = [{"role": message["role"], "content": text} for message, text in zip(messages, texts, strict=True)]
    control = control_tokens(tokenizer)
    ours = [token for piece in pieces[::2] for token in _tokens(tokenizer, piece) if token in control]
    if all(control.isdisjoint(_tokens(tokenizer, text)) for text in texts):
        whole = list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options))
        if [token for token in whole if token in control] == ours:
            return whole
    ids: list[int] = []
    for k, piece in enumerate(pieces):
        ids += _tokens(tokenizer, piece) if k % 2 == 0 else _as_text(tokenizer, texts[int(piece)], control)
    return ids


def control_tokens(tokenizer: Any) -> frozenset[int]:
    """The ids that only a template may write."""
    template = str(tokenizer.chat_template)
    marks = {
        token
        for token, added in tokenizer.added_tokens_decoder.items()
        if added.special or (added.content.strip() and len(added.content) > 1 and added.content in template)
    }
    # an unknown character is no control token, although its id is among the special ones
    return frozenset(marks | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


def shows_messages(tokenizer: Any, roles: Sequence[str], template_kwargs: Mapping[str, Any] | None = None) -> bool:
    """Whether the template shows a conversation of these roles whole (some know no system message)."""
    messages = [{"role": role, "content": ""} for role in roles]
    try:
        _template_pieces(tokenizer, messages, {"add_generation_prompt": True, **(template_kwargs or {})})
    except InputError:
        return False
    return True


def _template_pieces(tokenizer: Any, messages: Messages, options: Mapping[str, Any]) -> list[str]:
    """What the template writes, with the number of a message wherever its content goes: text, number, text, ..., text.

    The template never sees the contents themselves, so they cannot steer it either.
    """
    from jinja2 import TemplateError

    marks = [f"tunatext{k}x" for k in range(len(messages))]
    hollow = [{"role": message["role"], "content": mark} for message, mark in zip(messages, marks, strict=True)]
    try:
        rest = tokenizer.apply_chat_template(hollow, tokenize=False, **options)
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise InputError(f"The tokenizer's chat template does not take messages of {roles}: {error}") from None
    pieces: list[str] = []
    for k, mark in enumerate(marks):
        before, found, rest = rest.partition(mark)
        if not found or mark in rest:
            raise InputError(
                f"The tokenizer's chat template does not show message {k} (role {messages[k]['role']!r}) exactly "
                "once, in its place. Use a tokenizer whose template does."
            )
        pieces += [before, str(k)]
    return [*pieces, rest]


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _as_text(tokenizer: Any, text: str, control: frozenset[int]) -> list[int]:
    """The ids of `text` without any control token.

    A tokenizer that makes one all the same (one that is not `special`, or appears by normalising the text) gets the
    text in halves, down to the place where the token comes apart.
    """
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if control.isdisjoint(ids):
        return ids
    if len(text) == 1:
        return [token for token in ids if token not in control]
    middle = len(text) // 2
    return _as_text(tokenizer, text[:middle], control) + _as_text(tokenizer, text[middle:], control)
