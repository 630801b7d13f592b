"""One dataset row -> token ids of one prompt and N responses. Pure functions of a row, so that `datasets` caches them.

A tokenised row, whatever it came from (a ranked row, a preference pair, an SFT example = N 1):

    prompt_ids       list<int>         shared by all responses; empty for `text` and `messages` (no prompt)
    response_ids     list<list<int>>   what follows, per response: words, end-of-turn token, template tail
    response_labels  list<list<int>>   the same, -100 where MLE does not train
    score_lengths    list<int>         s_k averages the first so many tokens: up to the end-of-turn token, included
    ranks            list<int>         1 = best; 0 = not ranked
    scores           list<float>       the ranker's; NaN = none
    reference_ids    list<int>         the reference answer, tokenised like a response; empty = none
    length           int               P + sum of R: tokens of the row with its prompt once
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..tokens import Template, common_prefix_length
from .schema import as_messages


def tokenize_row(row: Mapping[str, Any], template: Template) -> dict[str, Any]:
    """Tokenise a ranked row.

    The prompt ends where the prompt (with its generation prompt) and *any* of the full conversations part:
    prompt_len = min over k of common_prefix_length(prompt ids, ids of prompt + response k). Every later token is
    scored in every response, even where all responses agree. A response that its sampler cut (`finish_reason ==
    "length"`) gets no end token: the model must not learn to stop there.

    Args:
        row: `prompt` (messages), `responses` (best first), optionally `reference`.
    """
    prompt = as_messages(row["prompt"])
    extra = template_kwargs(row)
    prompt_ids = template.chat_ids(prompt, add_generation_prompt=True, **extra)
    full, ends, cuts = [], [], []
    texts = [(r["content"], r.get("finish_reason") == "length") for r in row["responses"]]
    if row.get("reference") is not None:
        texts.append((row["reference"], False))
    for text, cut in texts:
        ids, end = _with_turn_end(
            template.chat_ids([*prompt, {"role": "assistant", "content": text}], **extra), template, cut
        )
        full.append(ids)
        ends.append(end)
        cuts.append(cut)
    prompt_len = min((common_prefix_length(prompt_ids, ids) for ids in full), default=len(prompt_ids))
    responses = [ids[prompt_len:] for ids in full]
    n = len(row["responses"])
    return _tokenised(
        prompt_ids[:prompt_len],
        responses[:n],
        score_lengths=[max(end - prompt_len, 0) for end in ends[:n]],
        ranks=[int(r.get("rank") or 0) for r in row["responses"]],
        scores=[math.nan if r.get("score") is None else float(r["score"]) for r in row["responses"]],
        reference_ids=responses[n] if len(responses) > n else [],
    )


def tokenize_text_row(
    prompt: str, responses: Sequence[str], ranks: Sequence[int], template: Template
) -> dict[str, Any]:
    """Tokenise plain-text responses to a plain-text prompt: strings are joined, the end token is added if missing."""
    eos = template.tokenizer.eos_token or ""
    prompt_ids = template.text_ids(prompt)
    full = [template.text_ids(prompt + (r if eos and r.endswith(eos) else r + eos)) for r in responses]
    prompt_len = min((common_prefix_length(prompt_ids, ids) for ids in full), default=len(prompt_ids))
    tails = [ids[prompt_len:] for ids in full]
    return _tokenised(prompt_ids[:prompt_len], tails, [len(t) for t in tails], list(ranks))


def tokenize_chat_pair(
    prompt: Sequence[Mapping[str, str]],
    responses: Sequence[Sequence[Mapping[str, str]]],
    ranks: Sequence[int],
    template: Template,
    **kwargs: Any,
) -> dict[str, Any]:
    """Tokenise conversational responses that are lists of messages (TRL's `completion`, `chosen`, `rejected`)."""
    prompt_ids = template.chat_ids(prompt, add_generation_prompt=True, **kwargs)
    full, ends = [], []
    for response in responses:
        ids, end = _with_turn_end(template.chat_ids([*prompt, *response], **kwargs), template, cut=False)
        full.append(ids)
        ends.append(end)
    prompt_len = min((common_prefix_length(prompt_ids, ids) for ids in full), default=len(prompt_ids))
    return _tokenised(
        prompt_ids[:prompt_len],
        [ids[prompt_len:] for ids in full],
        [max(end - prompt_len, 0) for end in ends],
        list(ranks),
    )


def language_modelling_row(ids: Sequence[int], labels: Sequence[int] | None = None) -> dict[str, Any]:
    """A row without a prompt (`text`, `messages`, pre-tokenised): one response that is everything; N = 1."""
    ids = [int(i) for i in ids]
    row = _tokenised([], [ids], [len(ids)], [1])
    return row if labels is None else {**row, "response_labels": [[int(i) for i in labels]]}


def _tokenised(
    prompt_ids: Sequence[int],
    response_ids: Sequence[Sequence[int]],
    score_lengths: Sequence[int],
    ranks: Sequence[int],
    scores: Sequence[float] | None = None,
    reference_ids: Sequence[int] = (),
) -> dict[str, Any]:
    return {
        "prompt_ids": list(prompt_ids),
        "response_ids": [list(ids) for ids in response_ids],
        "response_labels": [list(ids) for ids in response_ids],
        "score_lengths": list(score_lengths),
        "ranks": list(ranks),
        "scores": list(scores) if scores is not None else [math.nan] * len(ranks),
        "reference_ids": list(reference_ids),
        "length": len(prompt_ids) + sum(len(ids) for ids in response_ids),
    }


def _with_turn_end(ids: list[int], template: Template, cut: bool) -> tuple[list[int], int]:
    """The ids of a conversation (without its tail if the response was cut) and where scoring ends in them."""
    turn_end = template.turn_end
    tail = len(turn_end.tail)
    if tail and tuple(ids[-tail:]) == turn_end.tail:
        start, end = len(ids) - tail, len(ids) - tail + turn_end.kept
    elif turn_end.token in ids:  # the last word has merged with the template's text in front of the end token
        start = len(ids) - 1 - ids[::-1].index(turn_end.token)
        end = start + 1
    else:
        return ids, len(ids)
    return (ids[:start], start) if cut else (ids, end)


def template_kwargs(row: Mapping[str, Any]) -> dict[str, Any]:
    """`tools` and `chat_template_kwargs` columns, as TRL reads them."""
    import json

    kwargs = dict(row.get("chat_template_kwargs") or {})
    tools = row.get("tools")
    if tools is not None:
        kwargs["tools"] = json.loads(tools) if isinstance(tools, str) else tools
    return kwargs
