"""What can be wrong in a ranked row under one model's tokenizer and chat template, and how long its responses are.

Reads the tokenizer and changes nothing; holds counts of lengths, no rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..tokens import Template, TemplateRefusal
from .tokenize import tokenize_row
from .validate_findings import LengthTable, Seen
from .validate_row import any_of, texts_of


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIMITS = (512, 1024, 2048, 4096)  # tokens that the table of lengths shows besides max_length
_LONGEST = 10**6  # a tokenizer without a limit says 10**30


class TokenChecks:
    """The checks of one model.

    Args:
        name: how findings and the table call it.
        max_length: tokens of a prompt with one response; None: nothing is too long.

    Raises:
        InputError: the tokenizer has no chat template.
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
        self.name, self.max_length = name, max_length
        self.template = Template(tokenizer)
        self.template.require_chat()
        self.bos = tokenizer.bos_token_id
        special = {*tokenizer.all_special_tokens, *_added(tokenizer)} - {""}
        self._special = any_of(special) if special else None
        self._lengths: Counter[int] = Counter()  # of a prompt with one ranked response
        self._longest: Counter[int] = Counter()  # of each row's longest
        self._second: Counter[int] = Counter()  # of each row's second shortest: longer than a limit, and it is dropped
        self._groups: Counter[int] = Counter()  # of whole rows

    def model_findings(self) -> Iterator[Seen]:
        """What is wrong with the template itself."""
        if self.template.turn_end.token is None:
            yield Seen(
                "end token", f"chat template of {self.name}", "the template ends a turn without a special token"
            )

    def row_findings(self, row: Mapping[str, Any]) -> Iterator[Seen]:
        """What is wrong in a well-formed row; its lengths are added to the table."""
        for column, text in texts_of(row):
            if self._special is not None and (found := self._special.search(text)):
                yield Seen("control token", column, f"{found.group()!r} of {self.name}, at character {found.start()}")
        try:
            tokenised = tokenize_row(row, self.template)
        except TemplateRefusal as error:
            yield Seen("template", "prompt", str(error))
            return
        prompt = tokenised["prompt_ids"]
        if self.bos is not None and prompt[:2] == [self.bos, self.bos]:
            yield Seen("double BOS", "prompt", f"the prompt begins with two of {self.name}'s BOS (token {self.bos})")
        yield from self._ends(row, tokenised)
        yield from self._length(row, tokenised)

    def table(self) -> LengthTable:
        """The lengths of all rows so far."""
        model_limit = self.template.tokenizer.model_max_length
        limits = {*LIMITS, *([self.max_length] if self.max_length else [])}
        limits |= {model_limit} if model_limit < _LONGEST else set()
        return LengthTable(
            responses=self._lengths.total(),
            rows=self._longest.total(),
            quantiles=_quantiles(self._lengths),
            group=_quantiles(self._groups),
            limits={limit: [_over(c, limit) for c in self._by_limit()] for limit in sorted(limits)},
        )

    def _by_limit(self) -> tuple[Counter[int], Counter[int], Counter[int]]:
        return self._lengths, self._longest, self._second

    def _ends(self, row: Mapping[str, Any], tokenised: Mapping[str, Any]) -> Iterator[Seen]:
        end = self.template.turn_end.token
        if end is None:  # said once, of the model
            return
        for k, response in enumerate(row["responses"]):
            ids, length = tokenised["response_ids"][k], tokenised["score_lengths"][k]
            if response.get("finish_reason") != "length" and (not length or ids[length - 1] != end):
                last = ids[length - 1] if length else None
                yield Seen(
                    "end token", "responses.content", f"[{k}] ends with token {last} under {self.name}", str(end)
                )
                return

    def _length(self, row: Mapping[str, Any], tokenised: Mapping[str, Any]) -> Iterator[Seen]:
        prompt = len(tokenised["prompt_ids"])
        ranked = [
            prompt + len(ids)
            for ids, response in zip(tokenised["response_ids"], row["responses"], strict=True)
            if response["rank"] is not None
        ]
        if not ranked:
            return
        ranked.sort()
        self._lengths.update(ranked)
        self._longest[ranked[-1]] += 1
        second = ranked[min(1, len(ranked) - 1)]
        self._second[second] += 1
        self._groups[tokenised["length"]] += 1
        if self.max_length is not None and second > self.max_length:
            found = (
                f"the second shortest response has {second:,} tokens with its prompt ({prompt:,}) under {self.name}"
            )
            yield Seen("too long", "responses", found, f"at most {self.max_length:,}")


def _added(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Added tokens that are marked special; others are words."""
    return {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}


def _over(lengths: Counter[int], limit: int) -> int:
    return sum(count for length, count in lengths.items() if length > limit)


def _quantiles(lengths: Counter[int]) -> dict[str, int]:
    """p50, p90, p95, p99 and the longest (the lower of two neighbours); empty where there are no lengths."""
    total, ordered = lengths.total(), sorted(lengths)
    result, seen, wanted = {}, 0, [("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)]
    for length in ordered:
        seen += lengths[length]
        while wanted and seen > int(wanted[0][1] * (total - 1)):
            result[wanted.pop(0)[0]] = length
    return result
