"""A ranked row in the terminal: the prompt and its responses best first; or what of it a model would be trained on.

Writes to the console it is given. Texts are foreign: none is read as markup, and no control character gets through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.card import printable
from ..data.ranked_source import RankedSource, open_ranked
from ..errors import InputError, did_you_mean
from .examples import response_facts
from .text import first_line, number, shown


if TYPE_CHECKING:
    from rich.console import Console

# what becomes of a token -> style on a terminal
KINDS = {
    "scored and trained": "green",  # s_k averages it, and MLE trains it
    "scored": "cyan",  # by the ranking loss alone
    "trained": "yellow",  # by MLE alone: what a template writes behind the end of the turn
    "masked": "bright_black",
}


def preview(
    path_or_id: str | Path,
    console: Console,
    *,
    row: int = 0,
    split: str | None = None,
    model: str | None = None,
    mle_target: str = "all",
    revision: str | None = None,
) -> None:
    """Print one row of a ranked dataset.

    Args:
        console: of rich; without colours (a pipe) the tokens' kinds are written as words.
        row: its number, from 0.
        split: by default the first.
        model: shows the tokens that its tokenizer makes of the row, and which of them are trained.
        mle_target: what MLE trains, as in [`tuna_trl.TunaConfig`].

    Raises:
        InputError: there is no such dataset, split, row or model.
    """
    source = open_ranked(path_or_id, revision)
    name, found = _row(source, split, row)
    _heading(console, found, f"{first_line(source.name)}, split {name}, row {row:,}")
    if model is None:
        _print_row(console, found)
        return
    from ..loading import load_tokenizer

    print_tokens(console, found, load_tokenizer(model), mle_target)


def _row(source: RankedSource, split: str | None, row: int) -> tuple[str, Mapping[str, Any]]:
    name = next(iter(source.splits)) if split is None else split
    if name not in source.splits:
        there = ", ".join(map(repr, source.splits))
        raise InputError(f"{source.name} has no split {name!r}; it has {there}.{did_you_mean(name, source.splits)}")
    if row < 0:
        raise InputError(f"--row {row}: rows are counted from 0.")
    found = next(islice(source.splits[name], row, None), None)
    if found is None:
        count = sum(1 for _ in source.splits[name])
        raise InputError(f"--row {row}: split {name!r} of {source.name} has {count:,} rows, counted from 0.")
    return name, found


def _heading(console: Console, row: Mapping[str, Any], title: str) -> None:
    facts = [f"status {row['status']}", f"{row['ranking_method']}" + (f" by {row['ranker']}" if row["ranker"] else "")]
    for column in ("score_gap", "agreement_w", "agreement_tau"):
        if row[column] is not None:
            facts.append(f"{column} {number(row[column], 2)}")
    if row["num_ties"]:
        facts.append(f"{row['num_ties']} tied")
    _line(console, printable(title), "bold")
    _line(console, first_line("; ".join(facts), 400), "bright_black")


def _print_row(console: Console, row: Mapping[str, Any]) -> None:
    for message in row["prompt"]:
        _part(console, first_line(message["role"], 40), message["content"])
    if row["reference"] is not None:
        _part(console, "reference (given, not ranked)", row["reference"])
    for response in row["responses"]:
        _part(console, _response_title(response), response["content"], best=response["rank"] == 1)


def _response_title(response: Mapping[str, Any]) -> str:
    rank = "not ranked" if response["rank"] is None else f"rank {response['rank']}"
    words = [rank, *response_facts(response), first_line(response["model"] or "", 80)]
    return "; ".join(word for word in words if word)


def _part(console: Console, title: str, text: str, best: bool = False) -> None:
    cut = shown(text)
    console.print()
    _line(console, f"## {title}", "bold green" if best else "bold")
    _line(console, cut.text if cut.text.strip() else "(empty)")
    if cut.note:
        _line(console, cut.note, "bright_black")


def _line(console: Console, text: str, style: str = "") -> None:
    from rich.text import Text

    console.print(Text(text, style), soft_wrap=not console.is_terminal)


def print_tokens(console: Console, row: Mapping[str, Any], tokenizer: Any, mle_target: str = "all") -> None:
    """What the collator makes of a row: of each response the tokens, by what becomes of them in training."""
    from ..collator import RankedCollator
    from ..data.fitting import TRAINED_STATUSES
    from ..data.tokenize import tokenize_row
    from ..tokens import Template

    template = Template(tokenizer)
    if row["status"] not in TRAINED_STATUSES:  # as training does: the row is there, and nothing of it is ranked
        row = {**row, "responses": [{**response, "rank": None} for response in row["responses"]]}
    tokenised = tokenize_row(row, template)
    batch = RankedCollator(template.pad_token_id, mle_target)([tokenised])
    prompt = len(tokenised["prompt_ids"])
    _legend(console)
    console.print()
    _line(console, f"## prompt, {prompt:,} tokens, before every response", "bold")
    _runs(console, tokenizer, [("masked", i) for i in tokenised["prompt_ids"]])
    titles = [_response_title(response) for response in row["responses"]]
    if batch["input_ids"].shape[1] > len(titles):
        titles.append("reference (mle_target)")
    for k, title in enumerate(titles):
        length = int(batch["attention_mask"][0, k].sum())
        scored = batch["score_mask"][0, k] & batch["rank_mask"][0, k]
        trained = batch["labels"][0, k] != -100
        tokens = [
            (_kind(bool(scored[i]), bool(trained[i])), int(batch["input_ids"][0, k, i])) for i in range(prompt, length)
        ]
        console.print()
        _line(console, f"## {title}", "bold")
        _line(console, f"{length - prompt:,} tokens here, {length:,} with the prompt (max_length)", "bright_black")
        _runs(console, tokenizer, tokens)


def _kind(scored: bool, trained: bool) -> str:
    if scored:
        return "scored and trained" if trained else "scored"
    return "trained" if trained else "masked"


def _legend(console: Console) -> None:
    from rich.text import Text

    if _coloured(console):
        text = Text("tokens: ")
        for kind, style in KINDS.items():
            text.append(kind, style).append("  ")
        console.print(text)


def _runs(console: Console, tokenizer: Any, tokens: list[tuple[str, int]]) -> None:
    """The text of tokens: coloured, or (without colours) a line for each run of one kind."""
    from rich.text import Text

    line = Text()
    for kind, text, count in _decoded(tokenizer, tokens):
        if _coloured(console):
            line.append(text, KINDS[kind])
        else:
            _line(console, f"[{kind}, {count}] {text!r}")
    if _coloured(console):
        console.print(line)


def _decoded(tokenizer: Any, tokens: list[tuple[str, int]]) -> Iterator[tuple[str, str, int]]:
    """Runs of one kind: (kind, text, number of tokens). Decoded together, because a letter may be several tokens."""
    for kind, run in groupby(tokens, key=lambda token: token[0]):
        ids = [token for _, token in run]
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        yield kind, shown(text).text, len(ids)


def _coloured(console: Console) -> bool:
    return console.color_system is not None and not console.no_color
