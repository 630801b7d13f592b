"""Options that several verbs have, so that a flag has one name, one type and one explanation wherever it stands.

Types for typer and nothing else; loads nothing heavy. A judge's own flags are in [`.judging`].
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Engine(StrEnum):
    """Where a local teacher works."""

    local = "local"
    ray = "ray"


Prompts = Annotated[
    str,
    typer.Option(help="A .jsonl(.gz), .json or .parquet file or a Hub id with a `prompt` column, or demo:train."),
]
DatasetFolder = Annotated[Path, typer.Option("--output", help="Folder of the ranked dataset.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")]
Limit = Annotated[int | None, typer.Option(help="The first so many rows of each split only.")]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON and nothing else.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub dataset.")]
HubConfig = Annotated[str | None, typer.Option("--config", help="Config (subset) of a Hub dataset.")]

# how responses are drawn
NumResponses = Annotated[int, typer.Option(help="Responses a prompt.")]
Temperature = Annotated[float, typer.Option(help="Sampling temperature.")]
MaxNewTokens = Annotated[int, typer.Option(help="Tokens a response may have.")]
Seed = Annotated[int, typer.Option(help="Seed of the samples.")]

# what is kept, and what is only looked at
JournalFile = Annotated[Path | None, typer.Option(help="Where replies are kept; default: OUTPUT.journal.sqlite.")]
NoResume = Annotated[bool, typer.Option("--no-resume", help="Begin anew; the journal is set aside.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it takes and costs, and do nothing more.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Ask again for what failed.")]

# a teacher: here, behind servers, on a Ray cluster
BaseUrls = Annotated[
    list[str] | None,
    typer.Option(help="An OpenAI-compatible server, as http://host:8000/v1; may be repeated. Key: OPENAI_API_KEY."),
]
ExtraBody = Annotated[
    str | None,
    typer.Option(help='With --base-url: more of each request, as JSON: \'{"top_k": 0, "min_p": 0}\' for llama.cpp.'),
]
System = Annotated[str | None, typer.Option(help="With --base-url: a system prompt before every prompt.")]
IncludeEos = Annotated[
    bool | None, typer.Option(help="With --base-url: whether the end token's log-prob counts; default: see docs.")
]
Paid = Annotated[
    bool | None, typer.Option("--paid/--free", help="With --base-url: whether it costs; default: https does.")
]
Prices = Annotated[Path | None, typer.Option(help="A YAML of prices, laid over ours.")]
Concurrency = Annotated[int | None, typer.Option(help="With --base-url: requests at once; default: 8.")]
MaxCost = Annotated[float | None, typer.Option(help="Most that what is paid may cost, USD; inf: any.")]
LengthExponent = Annotated[float, typer.Option(help="Score = log-prob / tokens ** this; 1 = mean, 0 = sum.")]
RankTruncated = Annotated[bool, typer.Option(help="Rank responses that their sampler cut too.")]
OnEngine = Annotated[Engine, typer.Option(help="ray: a local teacher on the machines of a Ray cluster.")]
Workers = Annotated[int, typer.Option(help="With --engine ray: teachers at once.")]
GpusPerWorker = Annotated[float, typer.Option(help="With --engine ray: GPUs of each.")]

# what is evaluated
Models = Annotated[
    list[str],
    typer.Option("--model", help="A Hub id, a folder or 'embedded'; repeatable. With --base-url a server's id."),
]
Adapters = Annotated[
    list[str] | None, typer.Option("--adapter", help="An adapter's folder, on the first --model; repeatable.")
]
Results = Annotated[
    Path, typer.Option("--output", help="Folder of the results; run again to go on after an interruption.")
]
BenchmarkLimit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Fewer: the first so many (of each task and template).")
]
BaseUrl = Annotated[str | None, typer.Option(help="An OpenAI-compatible server, as http://host:8000/v1.")]
BatchTokens = Annotated[int, typer.Option(help="Tokens (prompts and answers) of one forward pass; less memory: less.")]
Template = Annotated[str, typer.Option(help="chat (the model's), raw (the bare prompt) or alpaca.")]
