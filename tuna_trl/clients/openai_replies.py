"""A reply of a chat.completions server, read into samples: from the body itself, never repaired by guess. No network.

Servers differ in what their log-probs cover: vLLM, llama.cpp and TGI list the end token, OpenAI's API does not, and a
reasoning parser takes text out that the log-probs still hold. So the tokens are held against the text, and log-probs
that do not belong to it are left out, which fails the response.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .base import Sample, Usage
from .retry import Fault


# OpenAI's word for "not in the top list"; no model assigns it to a token that it drew.
NO_LOGPROB = -9999.0
_STOP = {"stop": "stop", "length": "length", "eos_token": "stop", "stop_sequence": "stop", "max_tokens": "length"}
_BLANKS = str.maketrans("\u2581\u0120\u010a", "   ")  # how SentencePiece and byte-level BPE write blanks


@dataclass(frozen=True)
class Token:
    """One token of a reply: its bytes, its log-prob (NaN if the server gave none), its rivals at the same place."""

    piece: bytes
    logprob: float
    top: Mapping[bytes, float]


@dataclass(frozen=True)
class Choice:
    """One sample as the server put it. `tokens` is None where no log-probs came, empty where none are due."""

    text: str
    finish_reason: str
    tokens: tuple[Token, ...] | None

    def end_token(self) -> str:
        """Whether the tokens hold an end token after the text: `included`, `absent`, or `mismatch` where they are not
        the tokens of this text at all."""
        pieces = [token.piece for token in self.tokens or ()]
        stopped = self.finish_reason == "stop" and pieces
        if stopped and not pieces[-1] and spells(pieces, self.text):
            return "included"  # llama.cpp writes its end token as nothing
        if spells(pieces, self.text):
            return "absent"
        return "included" if stopped and spells(pieces[:-1], self.text) else "mismatch"

    def scored(self, include_eos: bool) -> tuple[float, ...]:
        """The log-probs to score: of the text's tokens and, with `include_eos`, of the end token that followed them.

        Empty, so that the response fails, where there are none, where they belong to another text, where the end
        token is wanted and missing, and where something else than the model ended the text (a content filter).
        """
        if not self.tokens or self.finish_reason not in ("stop", "length"):
            return ()
        end = self.end_token()
        if end == "mismatch" or (self.finish_reason == "stop" and include_eos and end == "absent"):
            return ()
        logprobs = tuple(token.logprob for token in self.tokens)
        return logprobs[:-1] if end == "included" and not include_eos else logprobs


@dataclass(frozen=True)
class PromptToken:
    """One token of the prompt, where a server scores it (vLLM's `prompt_logprobs`)."""

    id: int
    piece: bytes
    logprob: float


@dataclass(frozen=True)
class ChatReply:
    """A whole reply: its choices in the server's numbering, what it says was used, and the scored prompt.

    `prompt` lacks the very first token, which has no log-prob; it is None where the server did not score it.
    """

    choices: tuple[Choice, ...]
    usage: Usage
    prompt: tuple[PromptToken, ...] | None = None

    def samples(self, include_eos: bool) -> list[Sample]:
        """The samples; their usages add up to the reply's.

        The input counts in the first one. Output is counted from the log-probs, because llama.cpp's `usage` holds one
        choice of `n`; what a server bills beyond that (hidden reasoning) counts in the first one as well.
        """
        counts = [len(choice.tokens or ()) for choice in self.choices]
        rest = max(0, self.usage.output - sum(counts))
        samples = []
        for k, (choice, count) in enumerate(zip(self.choices, counts, strict=True)):
            usage = Usage(output=count)
            if k == 0:
                first = self.usage
                usage = Usage(first.input, first.cached, first.cache_write, count + rest, first.thinking)
            samples.append(Sample(choice.text, choice.scored(include_eos), choice.finish_reason, usage))
        return samples


def read_chat_reply(body: str) -> ChatReply:
    """The reply in `body`.

    Raises:
        Fault: it is no reply: no JSON, an error with status 200, no choices, a choice without a message.
    """
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Fault(f"the body is no JSON ({type(error).__name__})") from None
    if not isinstance(reply, Mapping):
        raise Fault("the body is no JSON object")
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices:
        raise Fault("the body is an error" if reply.get("error") else "the body has no choices")
    if not all(isinstance(choice, Mapping) and isinstance(choice.get("message"), Mapping) for choice in choices):
        raise Fault("a choice has no message")
    numbers = [choice.get("index") for choice in choices]
    if sorted(str(number) for number in numbers) == sorted(str(k) for k in range(len(choices))):
        choices = sorted(choices, key=lambda choice: int(choice["index"]))
    parts = tuple(_choice(choice) for choice in choices)
    return ChatReply(parts, read_usage(reply.get("usage")), _prompt(reply.get("prompt_logprobs")))


def _choice(choice: Mapping[str, Any]) -> Choice:
    text = choice["message"].get("content")
    reason = choice.get("finish_reason")
    logprobs = choice.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if not isinstance(tokens, list) or not all(isinstance(token, Mapping) for token in tokens):
        tokens = None
    return Choice(
        text=text if isinstance(text, str) else "",
        finish_reason=_STOP.get(str(reason), str(reason) if reason else "unknown"),
        tokens=None if tokens is None else tuple(_token(token) for token in tokens),
    )


def _token(entry: Mapping[str, Any]) -> Token:
    top = entry.get("top_logprobs")
    rivals = [rival for rival in top if isinstance(rival, Mapping)] if isinstance(top, list) else []
    return Token(_piece(entry), _number(entry.get("logprob")), {_piece(r): _number(r.get("logprob")) for r in rivals})


def _prompt(places: Any) -> tuple[PromptToken, ...] | None:
    """vLLM's `prompt_logprobs`: None for the first place, then rivals by token id, the real one first."""
    if not isinstance(places, list) or not all(isinstance(place, Mapping) and place for place in places[1:]):
        return None
    tokens = []
    for place in places[1:]:
        number, entry = next(iter(place.items()))
        if not isinstance(entry, Mapping) or not str(number).isdecimal():
            return None
        piece = entry.get("decoded_token")
        raw = piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else b""
        tokens.append(PromptToken(int(number), raw, _number(entry.get("logprob"))))
    return tuple(tokens)


def _piece(entry: Mapping[str, Any]) -> bytes:
    """A token's bytes: half a character has no string of its own, so `bytes` goes before `token`."""
    raw, token = entry.get("bytes"), entry.get("token")
    if isinstance(raw, list) and raw and all(type(byte) is int and 0 <= byte < 256 for byte in raw):
        return bytes(raw)
    return token.encode("utf-8", "surrogatepass") if isinstance(token, str) else b""


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def read_usage(usage: Any) -> Usage:
    usage = usage if isinstance(usage, Mapping) else {}
    cached = _count(usage.get("prompt_tokens_details"), "cached_tokens")
    return Usage(
        input=max(0, _count(usage, "prompt_tokens") - cached),
        cached=cached,
        output=_count(usage, "completion_tokens"),
        thinking=_count(usage.get("completion_tokens_details"), "reasoning_tokens"),
    )


def _count(mapping: Any, key: str) -> int:
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    return value if type(value) is int and value >= 0 else 0


def spells(pieces: Sequence[bytes], text: str) -> bool:
    """Whether the pieces, joined, are the text, but for blanks and for characters that no piece holds whole.

    Blanks: servers strip texts, and a SentencePiece token decoded alone loses its leading blank. A piece that is part
    of a character comes as U+FFFD from servers without `bytes`; it stands for anything.
    """
    parts = _squeezed(b"".join(pieces).decode("utf-8", "replace")).split("\ufffd")
    text = _squeezed(text).replace("\ufffd", "")
    if len(parts) == 1:
        return parts[0] == text
    if not text.startswith(parts[0]):
        return False
    place = len(parts[0])
    for part in parts[1:-1]:
        found = text.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return text.endswith(parts[-1]) and len(text) - len(parts[-1]) >= place


def _squeezed(text: str) -> str:
    return "".join(text.translate(_BLANKS).split())
