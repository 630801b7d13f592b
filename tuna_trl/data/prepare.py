"""A dataset as a TRL user has it -> tokenised rows that fit. Detects the type, tokenises; [`tuna_trl.data.fitting`]
deals with excess length.

Every type ends in the one tokenised row of [`tuna_trl.data.tokenize`]: ranked rows with N responses, preference pairs
with 2, prompt-completion and language modelling with 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, SchemaError, did_you_mean
from ..tokens import Template, TemplateRefusal
from .fitting import EXCESS_LENGTH_STRATEGIES, TRAINED_STATUSES, fit_dataset
from .schema import normalise_row
from .tokenize import (
    language_modelling_row,
    template_kwargs,
    tokenize_chat_pair,
    tokenize_row,
    tokenize_text_row,
)


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

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
    needs_reference: bool = False
    num_proc: int | None = None

    @classmethod
    def of(cls, args: Any) -> Preparation:
        """What a `TunaConfig` says of it."""
        return cls(
            max_length=args.max_length,
            excess_length_strategy=args.excess_length_strategy,
            max_responses=args.max_responses,
            completion_only_loss=args.completion_only_loss,
            assistant_only_loss=args.assistant_only_loss,
            dataset_text_field=args.dataset_text_field,
            needs_reference=args.mle_target == "reference" and args.mle_weight > 0,
            num_proc=args.dataset_num_proc,
        )

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
    spoken = kind in ("ranked", "messages", "conversations", "pre-tokenised")
    if options.assistant_only_loss and not spoken and not isinstance(first.get("prompt", first.get("chosen")), list):
        raise InputError(
            f"`assistant_only_loss=True`, but the {name} dataset is not conversational ({kind}): plain text has no "
            "assistant's words. Leave it out; prompt-completion data is trained on completions alone anyway."
        )
    dataset = dataset.with_format(None)  # tensors and arrays are no rows
    _refuse_vision(dataset[0] if isinstance(dataset, Dataset) else first, name)
    extra = {"num_proc": options.num_proc, "desc": f"Tokenising {name}"} if isinstance(dataset, Dataset) else {}
    tokenised = dataset.map(
        _tokenise_any,
        with_indices=True,
        fn_kwargs={"kind": kind, "template": template, "options": options, "name": name, "code": code_digest()},
        **extra,
    )
    strategy = options.excess_length_strategy or ("drop" if kind in ("ranked", "preference") else "truncate")
    return fit_dataset(tokenised, strategy, options, name)


@cache
def code_digest() -> str:
    """Changes with the code that prepares rows. `datasets` keys its cache by the *name* of a function that can be
    imported, so that another version of ours would be served the rows that this one made."""
    package = Path(__file__).parents[1]
    files = [
        package / "tokens.py",
        *(package / "data" / f"{name}.py" for name in ("prepare", "tokenize", "fitting", "schema")),
    ]
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _refuse_vision(row: Mapping[str, Any], name: str) -> None:
    """Text alone is scored: an image that is left out would be trained on as if it did not matter."""
    media = {column: row.get(column) for column in ("image", "images", "videos", "audio", "audios")}
    found = next((column for column, value in media.items() if value is not None and value != []), None)
    turns = [turn for value in row.values() if isinstance(value, list) for turn in value if isinstance(turn, Mapping)]
    parts = [part for turn in turns if isinstance(turn.get("content"), list) for part in turn["content"]]
    kinds = [part.get("type") for part in parts if isinstance(part, Mapping)]
    if found is None and all(kind in (None, "text") for kind in kinds):
        return
    seen = f"a column {found!r}" if found else f"messages with parts of type {next(k for k in kinds if k != 'text')!r}"
    raise SchemaError(
        f"The {name} dataset has {seen}: vision and audio data are not supported, responses are scored as text. If the"
        f" text stands alone, drop them with dataset.remove_columns({found or 'images'!r}), else use trl.SFTTrainer."
    )


def _tokenise_any(
    row: Mapping[str, Any], index: int, kind: str, template: Template, options: Preparation, name: str, code: str
) -> dict[str, Any]:
    """One row of any kind, tokenised; errors name the dataset and the row. `code` is for the cache's key alone."""
    where = f"{name} row {index}"
    _check_template_columns(row, where)
    try:
        tokenised = _tokenise_kind(row, where, kind, template, options)
    except TemplateRefusal as error:
        raise SchemaError(f"{where}: {error}") from error
    if options.needs_reference and not tokenised["reference_ids"]:
        raise SchemaError(
            f"{where}: `mle_target='reference'`, but there is no answer in a column 'reference'. Give every row one, "
            "or use `mle_target='best'`."
        )
    return tokenised


def _check_template_columns(row: Mapping[str, Any], where: str) -> None:
    """`tools` and `chat_template_kwargs` go to the chat template as they are."""
    for column, kind in (("tools", list), ("chat_template_kwargs", Mapping)):
        value = row.get(column)
        if column == "tools" and isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                pass
        if value is not None and not isinstance(value, kind):
            wanted = "a list of tools, or JSON of one" if kind is list else "a dict of arguments of the template"
            raise SchemaError(f"{where}: column {column!r} is {str(value)[:60]!r}, expected {wanted}, or null.")


def _tokenise_kind(
    row: Mapping[str, Any], where: str, kind: str, template: Template, options: Preparation
) -> dict[str, Any]:
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
    ids = row["input_ids"]
    if not isinstance(ids, Sequence) or not all(isinstance(i, int) and i >= 0 for i in ids):
        raise SchemaError(
            f"{where}: column 'input_ids' is {str(ids)[:60]!r}, expected a list of token ids. Text goes into a column "
            f"{options.dataset_text_field!r}."
        )
    given = {name: row[name] for name in columns if row.get(name) is not None}
    for name, values in given.items():
        if len(values) != len(ids):
            raise SchemaError(f"{where}: `{name}` has {len(values)} entries for {len(ids)} `input_ids`.")
    if "labels" in given:
        return language_modelling_row(ids, given["labels"])
    return language_modelling_row(
        ids, [i if all(bits) else -100 for i, *bits in zip(ids, *given.values(), strict=True)]
    )


def _shared_text(first: str, second: str) -> int:
    """Length of the common start of two texts, less a last space: the implicit prompt of pairs, as TRL cuts it."""
    end = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    return end - 1 if end and first[end - 1] == " " else end


def _nearest(columns: list[str]) -> str:
    """A hint for the first column whose name is close to one that is expected."""
    expected = sorted({name for needed in _KINDS.values() for name in needed} - {"prompt_ids", "response_ids"})
    for column in columns:
        if column not in expected and (hint := did_you_mean(column, expected)):
            return f" For {column!r}:{hint}"
    return ""
