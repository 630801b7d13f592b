"""Pad, end-of-turn and chat template: what a tokenizer says about where a response begins, ends and is padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .errors import InputError


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "zq"  # a content that no template rewrites


@dataclass(frozen=True)
class TurnEnd:
    """What a chat template writes behind an assistant's words: `tail` (token ids), of which the first `kept` are
    scored: up to the end-of-turn token, included. Templates of the ChatML family add a newline behind it. `token` is
    that end-of-turn token, None where a template ends a turn with plain text."""

    tail: tuple[int, ...]
    kept: int
    token: int | None = None


class TemplateRefusal(InputError):
    """A chat template does not take a conversation; whoever knows which row it was says so."""


class Template:
    """A tokenizer with its chat template, asked in one place. The tokenizer is read, never changed.

    Args:
        tokenizer: a fast or slow transformers tokenizer.
        chat_template: a template to use instead of the tokenizer's own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template

    def __getstate__(self) -> dict[str, Any]:
        # cached_property values are left out, so that `datasets` hashes the same template to the same fingerprint
        return {"tokenizer": self.tokenizer, "chat_template": self.chat_template}

    @property
    def pad_token_id(self) -> int:
        """The id that fills rows: the pad token, else the end token. Attention masks say what is padding, not it."""
        for token_id in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token_id is not None:
                return token_id
        raise InputError(
            "`processing_class` has neither a pad token nor an end token; set `tokenizer.pad_token` to a token of its "
            "vocabulary."
        )

    def require_chat(self) -> None:
        if not (self.chat_template or self.tokenizer.chat_template):
            raise InputError(
                f"`processing_class`: the tokenizer {self.tokenizer.name_or_path!r} has no chat template, and the "
                "dataset is conversational. Use an instruction-tuned model, set `tokenizer.chat_template`, or pass "
                "`TunaConfig(chat_template_path=...)`."
            )

    def chat_ids(self, messages: Sequence[Mapping[str, str]], **kwargs: Any) -> list[int]:
        """Token ids of a conversation through the chat template."""
        return list(self.chat(messages, **kwargs)["input_ids"])

    def chat(self, messages: Sequence[Mapping[str, str]], **kwargs: Any) -> Mapping[str, Any]:
        """`apply_chat_template` with token ids (and masks, if asked for)."""
        self.require_chat()
        if self.chat_template:
            kwargs.setdefault("chat_template", self.chat_template)
        from jinja2 import TemplateError

        try:
            conversation: Any = list(messages)
            rendered: Any = self.tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=True, **kwargs)
            return rendered
        except TemplateError as error:  # `raise_exception` in the template, or a message without what it reads
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise TemplateRefusal(
                f"the chat template of {self.tokenizer.name_or_path!r} refuses the conversation ({roles}): {error}. "
                "Every message needs `role` and `content`; put a system prompt that is refused into the first user "
                "message, let user and assistant alternate, or pass another template by `chat_template_path`."
            ) from error

    def text_ids(self, text: str) -> list[int]:
        """Token ids of plain text, with the special tokens that the tokenizer itself adds: one BOS, also before a text
        that begins with one (of which SFTTrainer makes two)."""
        ids = list(self.tokenizer(text=text)["input_ids"])
        bos = self.tokenizer.bos_token_id
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids

    @cached_property
    def turn_end(self) -> TurnEnd:
        """Found by rendering a probe turn: the first added token behind the content ends the turn."""
        self.require_chat()
        kwargs: dict[str, Any] = {"chat_template": self.chat_template} if self.chat_template else {}
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
        text = str(self.tokenizer.apply_chat_template(messages, tokenize=False, **kwargs))
        head, found, tail_text = text.rpartition(_PROBE)
        tail: tuple[int, ...] = ()
        if found and tail_text:
            # in its place: alone, SentencePiece (Llama 2, Mistral) puts a space in front of it
            whole, words = (self.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, head + _PROBE))
            tail = tuple(whole[common_prefix_length(whole, words) :])
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        for i, token in enumerate(tail):
            if token in special:
                return TurnEnd(tail, i + 1, token)
        return TurnEnd(tail, len(tail))


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading tokens two sequences share.

    >>> common_prefix_length([1, 2, 3], [1, 2, 4, 5])
    2
    """
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))
