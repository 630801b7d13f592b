"""`tuna-trl generate`: a model's answers to prompts, on stdout or in a file. What it says besides goes to stderr."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Dtype, Json, Limit, Seed
from .sources import journal_beside, load_prompts, local_sampler
from .telling import print_json, tell


if TYPE_CHECKING:
    from ..build.items import PromptItem
    from ..build.sampling import Drawn

_BUCKET = 16  # prompts of one forward pass, and of one record of the journal


def generate(
    model: Annotated[str, typer.Option(help="A Hub id, a model's or adapter's folder, or 'embedded'.")],
    prompt: Annotated[list[str] | None, typer.Option(help="The prompt; may be repeated. Default: stdin.")] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="Prompts of a .jsonl(.gz), .json or .parquet file or a Hub id, or demo:heldout."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt for prompts that bring none.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0: the most probable token each time; 1: sample.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the tokens that have this much probability.")] = 1.0,
    num_responses: Annotated[int, typer.Option(min=1, help="Answers a prompt; more than one are sampled.")] = 1,
    seed: Seed = 0,
    limit: Limit = None,
    dtype: Dtype = "float32",
    output: Annotated[
        Path | None, typer.Option(help="A .jsonl for prompts and answers; run again after an interruption.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Let a model answer: `--prompt "..."`, a file of prompts, or what is piped in. Greedy unless --temperature says
    otherwise. Answers go to stdout, or with --output into a file whose rows `rank` reads."""
    from ..clients.base import Sampling
    from ..errors import InputError

    if num_responses > 1 and temperature == 0:
        raise InputError(
            f"--num-responses {num_responses} with --temperature 0 is the same answer {num_responses} times: set a "
            "temperature, such as 1."
        )
    if not 0 < top_p <= 1:
        raise InputError(f"--top-p is {top_p:g}, expected more than 0 and at most 1; 1 cuts nothing.")
    if output is not None:
        _check_output(output, overwrite)
        output.parent.mkdir(parents=True, exist_ok=True)
    items = _items(prompt, prompts, system, limit)
    sampling = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens)
    rows = _answered(items, local_sampler(model, dtype), sampling, num_responses, seed, output)
    if output is not None:
        _to_file(rows, output, model, as_json)
    elif as_json:
        print_json({"model": model, "answers": [*rows]})
    else:
        _print(rows, len(items), num_responses)
    if output is None or num_responses == 1:
        held_out = "--data <held-out ranked dataset> --output <folder>"
        tell(f"Next: tuna-trl evaluate ranking --model {shlex.quote(model)} {held_out}", True)


def ask(model: str | Path) -> str:
    """The command that other verbs name when a model is there."""
    return f'tuna-trl generate --model {shlex.quote(str(model))} --prompt "<your question>"'


def _items(prompt: list[str] | None, prompts: str | None, system: str | None, limit: int | None) -> list[PromptItem]:
    """What is to be answered, each with the system prompt that it has or gets."""
    from ..build.items import as_splits, prompt_items
    from ..data.schema import as_messages
    from ..errors import InputError

    if prompt and prompts is not None:
        raise InputError("--prompt and --prompts were both given: name the prompts in one way.")
    if prompts is None:
        given = prompt or [_piped()]
        for text in given:
            if not text.strip():
                raise InputError(
                    f"{'--prompt' if prompt else 'What was piped in'} is empty: there is nothing to answer."
                )
        rows: list[Mapping[str, Any]] = [{"prompt": text} for text in given]
        items = prompt_items(rows, limit=limit)
    else:
        items = [
            item for split in as_splits(load_prompts(prompts)).values() for item in prompt_items(split, limit=limit)
        ]
    if system is None:
        return items
    led = [item.prompt if item.prompt[0]["role"] == "system" else [*_system(system), *item.prompt] for item in items]
    return prompt_items(
        {"prompt": as_messages(messages), "reference": item.reference, "source": item.source}
        for messages, item in zip(led, items, strict=True)
    )


def _system(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": text}]


def _piped() -> str:
    """All of stdin, without the line break that ends it."""
    from ..errors import InputError

    if sys.stdin is None or sys.stdin.isatty():
        raise InputError('Nothing to answer: give --prompt "...", --prompts FILE, or pipe a prompt in.')
    return sys.stdin.read().removesuffix("\n")


def _check_output(output: Path, overwrite: bool) -> None:
    from ..errors import InputError

    if output.suffix != ".jsonl":
        raise InputError(f"--output {output}: answers are written as JSON Lines; name a file that ends in .jsonl.")
    if output.exists() and not overwrite:
        raise InputError(f"--output {output} is there already; name another file, or replace it with --overwrite.")


def _answered(
    items: list[PromptItem], sampler: Any, sampling: Any, num_responses: int, seed: int, output: Path | None
) -> Iterator[dict[str, Any]]:
    """Prompts with their answers, in order. What goes into a file is journalled beside it until the file is whole."""
    from ..build.journal import Journal
    from ..build.sampling import Ask, draw_each

    with Journal(journal_beside(output) if output is not None else ":memory:") as journal:
        yield from draw_each(
            items,
            sampler,
            Ask(num_responses, sampling, seed, _BUCKET),
            journal=journal,
            finish=lambda drawn: _row(drawn, sampler.name),
            total=len(items),
            show_progress=output is not None or len(items) > _BUCKET,
        )


def _row(drawn: Drawn, model: str) -> dict[str, Any]:
    """A prompt and its answers, in the columns that `tuna-trl rank` reads."""
    responses = [
        {
            "content": sample.text,
            "model": model,
            "finish_reason": sample.finish_reason,
            "num_tokens": sample.usage.output,
        }
        for sample in drawn.samples
    ]
    more = {name: value for name in ("reference", "source") if (value := getattr(drawn.item, name)) is not None}
    return {"prompt": drawn.item.prompt, **more, "responses": responses}


def _print(rows: Iterable[dict[str, Any]], count: int, num_responses: int) -> None:
    """The answers alone on stdout, a blank line between two; on stderr which prompt is answered, if there are more."""
    for i, row in enumerate(rows):
        if count > 1:
            tell(f"[{i + 1}/{count}] {' '.join(row['prompt'][-1]['content'].split())[:90]}", True)
        for k, response in enumerate(row["responses"]):
            typer.echo(("\n" if i or k else "") + response["content"])
            if response["finish_reason"] == "length":
                which = f" {k + 1}" if num_responses > 1 else ""
                tell(f"Answer{which} was cut after {response['num_tokens']} tokens (--max-new-tokens).", True)


def _to_file(rows: Iterable[dict[str, Any]], output: Path, model: str, as_json: bool) -> None:
    """The file, whole or not at all; the journal has done its work then."""
    count, cut, answers = 0, 0, 0
    work = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with work.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count, answers = count + 1, answers + len(row["responses"])
                cut += sum(response["finish_reason"] == "length" for response in row["responses"])
        work.replace(output)
    finally:
        work.unlink(missing_ok=True)
    for more in ("", "-wal", "-shm"):  # SQLite's
        Path(f"{journal_beside(output)}{more}").unlink(missing_ok=True)
    tell(f"{answers:,} answers to {count:,} prompts written to {output}; {cut:,} were cut (--max-new-tokens).", True)
    following = f"tuna-trl rank --data {output} --judge <judge> --output {output.with_suffix('')}-ranked"
    if answers > count:
        tell(f"Next: {following}", True)
    if as_json:
        print_json({"model": model, "output": output, "prompts": count, "answers": answers, "cut": cut})
