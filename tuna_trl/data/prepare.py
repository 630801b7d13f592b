"""A dataset as a TRL user has it -> tokenised rows that fit. Detects the type, tokenises, deals with excess length.

Every type ends in the one tokenised row of [`tuna_trl.data.tokenize`]: ranked rows with N responses, preference pairs
with 2, prompt-completion and language modelling with 1. What does not fit is dropped, cut or refused as asked, and
counted in a printed table, never silently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError, SchemaError, did_you_mean
from ..tokens import Template
from .schema import STATUSES, normalise_row
from .tokenize import (
    language_modelling_row,
    template_kwargs,
    tokenize_chat_pair,
    tokenize_row,
    tokenize_text_row,
)


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

EXCESS_LENGTH_STRATEGIES = ("drop", "truncate", "raise")
# A `partial` row has lost some responses (cut by the sampler, say); the ranked rest of it trains. The others do not.
TRAINED_STATUSES = ("ok", "partial")
TOKENISED_COLUMNS = (
    "prompt_ids",
    "response_ids",
    "response_labels",
    "score_lengths",
    "ranks",
    "scores",
    "reference_ids",
    "length",
)
_KINDS = {
    "tokenised": ("prompt_ids", "response_ids"),
    "pre-tokenised": ("input_ids",),
    "ranked": ("responses",),
    "preference": ("chosen", "rejected"),
    "unpaired": ("completion", "label"),
    "prompt-completion": ("prompt", "completion"),
    "messages": ("messages",),
    "conversations": ("conversations",),  # messages with `from` and `value` (ShareGPT)
}


@dataclass(frozen=True)
class Preparation:
    """How rows become tokens; plain values, so that `datasets` can hash it for its cache.

    `excess_length_strategy` None means: drop for ranked rows and pairs, truncate for the SFT types, as TRL does.
    """

    max_length: int | None = 1024
    excess_length_strategy: str | None = None
    max_responses: int | None = None
    completion_only_loss: bool | None = None
    assistant_only_loss: bool = False
    dataset_text_field: str = "text"
    num_proc: int | None = None

    def __post_init__(self) -> None:
        if self.excess_length_strategy not in (None, *EXCESS_LENGTH_STRATEGIES):
            raise InputError(
                f"`excess_length_strategy` is {self.excess_length_strategy!r}, expected one of "
                f"{', '.join(EXCESS_LENGTH_STRATEGIES)}."
                f"{did_you_mean(str(self.excess_length_strategy), EXCESS_LENGTH_STRATEGIES)}"
            )


def detect_kind(columns: list[str], text_field: str = "text") -> str:
    """The kind of a dataset by its columns.

    Raises:
        SchemaError: no kind fits, or rows are unpaired (KTO) and cannot be ranked.
    """
    have = set(columns)
    for kind, needed in _KINDS.items():
        if set(needed) <= have:
            if kind == "unpaired":
                raise SchemaError(
                    "The dataset has columns `completion` and `label`: unpaired preference rows (KTO) say whether an "
                    "answer is good, not which of several is better, so there is nothing to rank. Group the "
                    "completions of a prompt into one row with `responses` and `scores`, or train with "
                    "trl.KTOTrainer."
                )
            return kind
    if text_field in have:
        return "text"
    shown = ", ".join(repr(c) for c in columns) or "none"
    raise SchemaError(
        f"The dataset's columns ({shown}) fit no known type. Expected `prompt` and `responses` (ranked), `chosen` "
        f"and `rejected` (preference), `prompt` and `completion`, `messages`, {text_field!r} (SFT), or `input_ids` "
        f"(tokenised).{_nearest(columns)}"
    )


def prepare_dataset(
    dataset: Dataset | IterableDataset, template: Template, options: Preparation, *, name: str = "train"
) -> Dataset | IterableDataset:
    """Tokenise a dataset of any known type and deal with what is too long.

    Args:
        name: how errors and the printed table call the dataset.

    Returns:
        a dataset with the tokenised columns (and its own columns kept, for callbacks).

    Raises:
        TypeError: `dataset` is no dataset.
        SchemaError: a row is not what its type asks for; the message names row and column.
        InputError: nothing is left, or something is too long and the strategy is "raise".
    """
    from datasets import Dataset, IterableDataset

    if not isinstance(dataset, (Dataset, IterableDataset)):
        hint = " Pass Dataset.from_list(rows)." if isinstance(dataset, list) else ""
        raise TypeError(
            f"The {name} dataset must be a datasets.Dataset or IterableDataset, got {type(dataset).__name__}.{hint}"
        )
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
        raise InputError(
            f"The {name} dataset has a transform (`with_transform`), which preparation would bake into the tokens. "
            "Apply it with `dataset.map`, or let it make tokenised rows and pass "
            "`dataset_kwargs={'skip_prepare_dataset': True}`."
        )
    first = next(iter(dataset), None)
    if first is None:
        raise InputError(f"The {name} dataset is empty.")
    columns = dataset.column_names or list(first)
    kind = detect_kind(columns, options.dataset_text_field)
    if kind == "tokenised":
        return dataset
    dataset = dataset.with_format(None)  # tensors and arrays are no rows
    kwargs: dict[str, Any] = {}
    if isinstance(dataset, Dataset):
        kwargs = {"num_proc": options.num_proc, "desc": f"Tokenising {name}"}
    tokenised = dataset.map(
        _tokenise_any,
        with_indices=True,
        fn_kwargs={"kind": kind, "template": template, "options": options, "name": name},
        **kwargs,
    )
    kwargs["desc"] = f"Fitting {name}"
    strategy = options.excess_length_strategy or ("drop" if kind in ("ranked", "preference") else "truncate")
    limits = {"max_length": options.max_length, "strategy": strategy, "max_responses": options.max_responses}
    if not isinstance(dataset, Dataset):
        if strategy == "raise":  # a stream cannot be counted beforehand
            tokenised = tokenised.map(
                _refuse_long, with_indices=True, fn_kwargs={"max_length": options.max_length, "name": name}
            )
        fitted = tokenised.map(fit_row, fn_kwargs=limits)
        return fitted.filter(_is_kept).remove_columns(["kept", "cut_responses", "dropped_responses"])
    fitted = tokenised.map(fit_row, fn_kwargs=limits, **kwargs)
    return _kept_rows(fitted, tokenised, strategy, options, name)


def fit_row(
    row: Mapping[str, Any], max_length: int | None, strategy: str, max_responses: int | None = None
) -> dict[str, Any]:
    """One tokenised row cut to what trains: unranked and too long responses go, or are truncated.

    A ranked row that is left with fewer than two responses (an SFT row, or with `max_responses` 1: with none) is marked
    `kept=False`. Truncation keeps the start, as TRL does; a truncated response has no end token left, so its score ends
    at the cut.
    """
    prompt_length = len(row["prompt_ids"])
    ranked = [k for k, rank in enumerate(row["ranks"]) if rank > 0]
    wanted = min(2, len(row["ranks"]), max_responses or 2)
    too_long = [
        k for k in ranked if max_length is not None and prompt_length + len(row["response_ids"][k]) > max_length
    ]
    room = math.inf if max_length is None else max(max_length - prompt_length, 0)
    if strategy == "truncate":
        fitting = ranked if room > 0 else []
    else:
        fitting = [k for k in ranked if k not in set(too_long)]
    kept = fitting[:max_responses] if max_responses else fitting
    cut = (lambda ids: ids[: int(room)]) if strategy == "truncate" and room < math.inf else (lambda ids: ids)
    labels = [cut(row["response_labels"][k]) for k in kept]
    responses = [cut(row["response_ids"][k]) for k in kept]
    reference = row["reference_ids"]
    return {
        "response_ids": responses,
        "response_labels": labels,
        "score_lengths": [min(row["score_lengths"][k], len(ids)) for k, ids in zip(kept, responses, strict=True)],
        "ranks": [row["ranks"][k] for k in kept],
        "scores": [row["scores"][k] for k in kept],
        "reference_ids": reference if len(reference) <= room else [],
        "length": prompt_length + sum(map(len, responses)),
        "kept": len(kept) >= wanted and any(label != -100 for ids in labels for label in ids),
        "cut_responses": len(set(kept) & set(too_long)),
        "dropped_responses": len(row["ranks"]) - len(kept),
    }


def _tokenise_any(
    row: Mapping[str, Any], index: int, kind: str, template: Template, options: Preparation, name: str
) -> dict[str, Any]:
    """One row of any kind, tokenised; errors name the dataset and the row."""
    where = f"{name} row {index}"
    if kind == "ranked":
        full = normalise_row(row, where)
        if full["status"] not in TRAINED_STATUSES:
            full = {**full, "responses": [{**r, "rank": None} for r in full["responses"]]}
        extra = {key: row[key] for key in ("tools", "chat_template_kwargs") if row.get(key) is not None}
        return tokenize_row({**full, **extra}, template)
    if kind == "preference":
        return _preference(row, where, template)
    if kind == "prompt-completion":
        return _prompt_completion(row, where, template, options)
    if kind in ("messages", "conversations"):
        return _messages(row, kind, where, template, options)
    if kind == "text":
        text, eos = row[options.dataset_text_field], template.tokenizer.eos_token or ""
        if not isinstance(text, str):
            raise SchemaError(f"{where}: column {options.dataset_text_field!r} is {text!r}, expected a string.")
        return language_modelling_row(template.text_ids(text if eos and text.endswith(eos) else text + eos))
    return _pre_tokenised(row, where, options)


def _preference(row: Mapping[str, Any], where: str, template: Template) -> dict[str, Any]:
    chosen, rejected = row["chosen"], row["rejected"]
    prompt = row.get("prompt")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise SchemaError(f"{where}: `chosen` and `rejected` must both be strings or both be lists of messages.")
    if isinstance(chosen, str):
        if prompt is None:  # implicit prompt: what both have in common
            shared = _shared_text(chosen, rejected)
            prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if not isinstance(prompt, str):
            raise SchemaError(f"{where}: `prompt` is a list of messages but `chosen` a string; make both messages.")
        return tokenize_text_row(prompt, [chosen, rejected], [1, 2], template)
    if prompt is None:
        shared = next(
            (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
            min(len(chosen), len(rejected)),
        )
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    elif isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
        # the shape of ultrafeedback_binarized: `prompt` a string, and again the first message of both lists
        if chosen[:1] == prompt and rejected[:1] == prompt:
            chosen, rejected = chosen[1:], rejected[1:]
    if not prompt or not chosen or not rejected:
        raise SchemaError(f"{where}: `chosen` and `rejected` need a common prompt and an answer each behind it.")
    return tokenize_chat_pair(prompt, [chosen, rejected], [1, 2], template, **template_kwargs(row))


def _prompt_completion(row: Mapping[str, Any], where: str, template: Template, options: Preparation) -> dict[str, Any]:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) != isinstance(completion, str):
        raise SchemaError(f"{where}: `prompt` and `completion` must both be strings or both be lists of messages.")
    if isinstance(prompt, str):
        tokenised = tokenize_text_row(prompt, [completion], [1], template)
    else:
        tokenised = tokenize_chat_pair(prompt, [completion], [1], template, **template_kwargs(row))
    ids, P = tokenised["prompt_ids"] + tokenised["response_ids"][0], len(tokenised["prompt_ids"])
    labels = list(ids)
    if options.assistant_only_loss and not isinstance(prompt, str):
        labels = _assistant_labels([*prompt, *completion], where, template, template_kwargs(row))
    if options.completion_only_loss is False:
        return language_modelling_row(ids, labels)
    return {**tokenised, "response_labels": [labels[P:]]}


def _messages(
    row: Mapping[str, Any], column: str, where: str, template: Template, options: Preparation
) -> dict[str, Any]:
    messages = row[column]
    if not isinstance(messages, list) or not messages or not all(isinstance(m, Mapping) for m in messages):
        raise SchemaError(f"{where}: `{column}` must be a non-empty list of messages, got {str(messages)[:60]!r}.")
    if column == "conversations":
        names = {"from": "role", "value": "content"}
        messages = [{names.get(key, key): value for key, value in message.items()} for message in messages]
    kwargs = template_kwargs(row)
    labels = _assistant_labels(messages, where, template, kwargs) if options.assistant_only_loss else None
    return language_modelling_row(template.chat_ids(messages, **kwargs), labels)


def _assistant_labels(
    messages: Sequence[Mapping[str, Any]], where: str, template: Template, kwargs: Mapping[str, Any]
) -> list[int]:
    """The tokens that the template marks as the assistant's, -100 elsewhere."""
    encoded = template.chat(messages, return_assistant_tokens_mask=True, **kwargs)
    ids, mask = encoded["input_ids"], encoded["assistant_masks"]
    if 1 not in mask:
        raise SchemaError(
            f"{where}: `assistant_only_loss=True`, but the chat template marks no assistant tokens. It needs "
            "{% generation %} around them; pass such a template by `chat_template_path`."
        )
    return [i if m else -100 for i, m in zip(ids, mask, strict=True)]


def _pre_tokenised(row: Mapping[str, Any], where: str, options: Preparation) -> dict[str, Any]:
    """`input_ids` with `labels`, or with the masks that TRL makes them of: `completion_mask` counts where the loss is
    asked for on completions alone, `assistant_masks` always (trl 1.16, SFTTrainer._prepare_dataset)."""
    columns = ["labels"]
    if row.get("labels") is None:
        completions = options.completion_only_loss
        if completions is None:
            completions = "prompt" in row and "completion" in row
        columns = [*(["completion_mask"] if completions else []), "assistant_masks"]
    ids, given = row["input_ids"], {name: row[name] for name in columns if row.get(name) is not None}
    for name, values in given.items():
        if len(values) != len(ids):
            raise SchemaError(f"{where}: `{name}` has {len(values)} entries for {len(ids)} `input_ids`.")
    if "labels" in given:
        return language_modelling_row(ids, given["labels"])
    return language_modelling_row(ids, [i if all(bits) else -100 for i, *bits in zip(ids, *given.values(), strict=True)])


def _shared_text(first: str, second: str) -> int:
    """Length of the common start of two texts, less a last space: the implicit prompt of pairs, as TRL cuts it."""
    end = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    return end - 1 if end and first[end - 1] == " " else end


def _refuse_long(row: Mapping[str, Any], index: int, max_length: int | None, name: str) -> dict[str, Any]:
    longest = len(row["prompt_ids"]) + max(map(len, row["response_ids"]), default=0)
    if max_length is not None and longest > max_length:
        raise InputError(
            f"{name} row {index} has {longest} tokens, longer than `max_length` = {max_length}, and "
            "`excess_length_strategy` is 'raise'. Raise `max_length`, or use 'drop' or 'truncate'."
        )
    return {}


def _is_kept(row: Mapping[str, Any]) -> bool:
    return row["kept"]


def _kept_rows(fitted: Dataset, tokenised: Dataset, strategy: str, options: Preparation, name: str) -> Dataset:
    """The rows that train, with a table of what did not; an error where nothing is left or nothing may be lost."""
    kept = fitted["kept"]
    counts = {
        "rows": len(fitted),
        "rows dropped": len(fitted) - sum(kept),
        "responses": sum(len(ranks) for ranks in tokenised["ranks"]),
        "responses dropped": sum(fitted["dropped_responses"]),
        "responses truncated": sum(fitted["cut_responses"]),
    }
    lengths = sorted(
        len(prompt) + len(ids)
        for prompt, responses in zip(tokenised["prompt_ids"], tokenised["response_ids"], strict=True)
        for ids in responses
    )
    too_long = 0 if options.max_length is None else sum(length > options.max_length for length in lengths)
    if strategy == "raise" and too_long:
        raise InputError(
            f"{too_long} of {len(lengths)} responses of the {name} dataset are longer than `max_length` = "
            f"{options.max_length} tokens (the longest has {lengths[-1]}), and `excess_length_strategy` is 'raise'. "
            "Raise `max_length`, or use 'drop' or 'truncate'."
        )
    if not any(kept):
        raise InputError(
            f"No row of the {name} dataset is left to train on: of {len(fitted)} rows, {too_long} responses of "
            f"{len(lengths)} are longer than `max_length` = {options.max_length} tokens (the shortest has "
            f"{lengths[0] if lengths else 0}), and a row needs two ranked responses that fit"
            f"{' (or one, in SFT data)' if strategy == 'truncate' else ''}. "
            f"Statuses that train: {', '.join(TRAINED_STATUSES)} (of {', '.join(STATUSES)})."
        )
    if counts["rows dropped"] or counts["responses dropped"] or counts["responses truncated"]:
        _print_counts(name, counts, lengths, options.max_length)
    result = fitted if all(kept) else fitted.select([i for i, keep in enumerate(kept) if keep])
    return result.remove_columns(["kept", "cut_responses", "dropped_responses"])


def _print_counts(name: str, counts: Mapping[str, int], lengths: list[int], max_length: int | None) -> None:
    """One table on stderr, from the main process only."""
    from accelerate import PartialState
    from rich.console import Console
    from rich.table import Table

    if not PartialState().is_main_process:
        return
    table = Table(title=f"{name}: what trains", title_justify="left", show_header=False)
    for label, value in counts.items():
        table.add_row(label, f"{value:,}")
    if lengths:
        for quantile in (0.5, 0.95, 0.99):
            table.add_row(f"tokens, p{quantile * 100:.0f}", f"{lengths[int(quantile * (len(lengths) - 1))]:,}")
        table.add_row("tokens, longest", f"{lengths[-1]:,}")
        table.add_row("max_length", "none" if max_length is None else f"{max_length:,}")
    Console(stderr=True).print(table)


def _nearest(columns: list[str]) -> str:
    """A hint for the first column whose name is close to one that is expected."""
    expected = sorted({name for needed in _KINDS.values() for name in needed} - {"prompt_ids", "response_ids"})
    for column in columns:
        if column not in expected and (hint := did_you_mean(column, expected)):
            return f" For {column!r}:{hint}"
    return ""
