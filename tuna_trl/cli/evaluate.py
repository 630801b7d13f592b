"""`tuna-trl evaluate`: benchmarks on models, adapters and servers; figures with intervals as JSON, table and plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Adapters, BaseUrl, BatchTokens, BenchmarkLimit, Dtype, Json, Models, Results, Template
from .telling import print_json


if TYPE_CHECKING:
    from ..evaluation.candidates import Candidate
    from ..evaluation.results import Evaluation

app = typer.Typer(
    name="evaluate",
    help="Did it help? Benchmarks on your models; the first --model is the one that the others are held against.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

MaxCost = Annotated[float | None, typer.Option(help="Most that paid servers and judges may cost, USD; inf: any.")]
MaxNewTokens = Annotated[int, typer.Option(help="Tokens of an answer.")]


@app.command("super-ni")
def super_ni(
    model: Models,
    data: Annotated[Path, typer.Option(help="A clone of allenai/natural-instructions (tasks/ and splits/).")],
    output: Results,
    adapter: Adapters = None,
    shots: Annotated[int, typer.Option(min=0, help="Positive examples in the prompt; 0 and 2 in papers.")] = 2,
    template: Template = "chat",
    limit: BenchmarkLimit = None,
    max_source_length: Annotated[int, typer.Option(help="Tokens of a prompt; longer ones lose examples.")] = 1024,
    max_new_tokens: MaxNewTokens = 128,
    dtype: Dtype = "float32",
    batch_tokens: BatchTokens = 32_768,
    base_url: BaseUrl = None,
    max_cost: MaxCost = None,
    as_json: Json = False,
) -> None:
    """Super-NaturalInstructions, English test tasks: ROUGE-L and exact match by category and task, next to copying."""
    from ..evaluation.super_ni import load_super_ni
    from ..evaluation.super_ni_runner import SuperNi

    benchmark = SuperNi(
        load_super_ni(data, limit=limit),
        shots=shots,
        template=template,
        max_source_length=max_source_length,
        max_new_tokens=max_new_tokens,
    )
    candidates = _candidates(model, adapter, template, dtype, batch_tokens, base_url)
    following = _next("lmentry", model, adapter, "--data <clone of aviaefrat/lmentry>", output)
    _run(benchmark, candidates, output, max_cost, as_json, following)


@app.command("lmentry")
def lmentry(
    model: Models,
    data: Annotated[Path, typer.Option(help="A clone of aviaefrat/lmentry, or its folder data.")],
    output: Results,
    adapter: Adapters = None,
    template: Template = "raw",
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Read answers up to the first line break and full stop (base models).")
    ] = False,
    core_only: Annotated[
        bool, typer.Option("--core-only", help="The 25 core tasks; no robustness, no score.")
    ] = False,
    limit: BenchmarkLimit = None,
    max_new_tokens: MaxNewTokens = 50,
    dtype: Dtype = "float32",
    batch_tokens: BatchTokens = 32_768,
    base_url: BaseUrl = None,
    max_cost: MaxCost = None,
    as_json: Json = False,
) -> None:
    """LMentry: accuracy on 25 elementary tasks, robustness, and the LMentry score, by scorers of our own."""
    from ..evaluation.lmentry.data import load_lmentry
    from ..evaluation.lmentry.runner import LMentry

    if base_url is not None and template == "raw":
        template = "chat"  # a server has no other
    examples = load_lmentry(data, limit=limit, core_only=core_only)
    benchmark = LMentry(examples, template=template, truncate=truncate, max_new_tokens=max_new_tokens)
    candidates = _candidates(model, adapter, template, dtype, batch_tokens, base_url)
    following = _next("vicuna-qa", model, adapter, "--data <FastChat's vicuna_bench> --judge <judge>", output)
    _run(benchmark, candidates, output, max_cost, as_json, following)


@app.command("ranking")
def ranking(
    model: Models,
    data: Annotated[str, typer.Option(help="A ranked dataset: a folder, a file of rows or a Hub id.")],
    output: Results,
    adapter: Adapters = None,
    split: Annotated[str | None, typer.Option(help="Its split; default: test, or the only one.")] = None,
    length_exponent: Annotated[float, typer.Option(help="Score = log-prob / tokens ** this.")] = 1.0,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a prompt with one response.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in one forward pass.")] = 8,
    limit: BenchmarkLimit = None,
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Ranking accuracy: pair accuracy, top-1 and tau-b of the model's likelihoods, next to "longer wins"."""
    from ..data.hub import load_ranked
    from ..evaluation.ranked import RankedData

    rows = _rows(load_ranked(data), data, split, limit)
    benchmark = RankedData(list(rows), length_exponent=length_exponent, max_length=max_length, batch_size=batch_size)
    following = _next("super-ni", model, adapter, "--data <clone of allenai/natural-instructions>", output)
    if adapter:
        following = f"Next: tuna-trl merge {adapter[-1]} --output {adapter[-1].rstrip('/')}-merged"
    _run(benchmark, _candidates(model, adapter, "chat", dtype, 32_768, None), output, None, as_json, following)


def _rows(dataset: Any, data: str, split: str | None, limit: int | None) -> Any:
    """The rows of one split, the first so many."""
    from ..errors import InputError, did_you_mean

    if split is None:
        split = "test" if "test" in dataset else next(iter(dataset)) if len(dataset) == 1 else None
    if split not in dataset:
        has = ", ".join(map(repr, dataset))
        raise InputError(f"{data} has the splits {has}: say which by --split.{did_you_mean(str(split), dataset)}")
    rows = dataset[split]
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


@app.command("vicuna-qa")
def vicuna_qa(
    model: Annotated[
        list[str],
        typer.Option("--model", help="A Hub id, a folder, 'embedded', or a .jsonl of answers; repeatable."),
    ],
    data: Annotated[Path, typer.Option(help="Folder with question.jsonl and the judge's prompts (FastChat).")],
    output: Results,
    judge: Annotated[str, typer.Option(help="claude, a Claude model id, a server's model id, or a local model.")],
    judge_base_url: Annotated[
        str | None, typer.Option(help="The judge is behind this OpenAI-compatible server.")
    ] = None,
    adapter: Adapters = None,
    against: Annotated[
        Path | None, typer.Option(help="Answers (.jsonl) to compare with; default: first --model.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="v2 (two games) or v1 (scores, as in papers of 2023).")] = "v2",
    prompts: Annotated[Path | None, typer.Option(help="Folder of the judge's prompts; default: DATA.")] = None,
    template: Template = "chat",
    limit: BenchmarkLimit = None,
    max_new_tokens: MaxNewTokens = 1024,
    dtype: Dtype = "float32",
    batch_tokens: BatchTokens = 32_768,
    base_url: BaseUrl = None,
    max_cost: MaxCost = None,
    as_json: Json = False,
) -> None:
    """Vicuna QA: a judge compares each model's answers with an opponent's, in both orders: win, tie, lose."""
    from ..errors import InputError
    from ..evaluation.vicuna.data import load_answers, load_questions
    from ..evaluation.vicuna.runner import VicunaQA

    if against is None and len(model) + len(adapter or ()) < 2:
        raise InputError(
            "One model alone has no opponent: name another --model or --adapter, or --against answers.jsonl."
        )
    questions = load_questions(data, limit=limit)
    opponent = None if against is None else (str(against), load_answers(against))
    reader = _judge(judge, judge_base_url, protocol, prompts or data, questions, dtype)
    if reader.paid and max_cost is None:
        raise InputError(f"{reader.name} costs money: set --max-cost in USD, the most that this may spend (inf: any).")
    benchmark = VicunaQA(questions, reader, against=opponent, template=template, max_new_tokens=max_new_tokens)
    candidates = _with_stored(model, adapter, template, dtype, batch_tokens, base_url)
    following = (
        f"Next, to let people judge: tuna-trl evaluate vicuna-export --data {data} --first <answers.jsonl> "
        f"--second <answers.jsonl> --output <folder>; the answers are in {output / 'predictions'}."
    )
    _run(benchmark, candidates, output, max_cost, as_json, following)


@app.command("vicuna-export")
def vicuna_export(
    data: Annotated[Path, typer.Option(help="Folder with question.jsonl.")],
    first: Annotated[Path, typer.Option(help="A model's answers (.jsonl).")],
    second: Annotated[Path, typer.Option(help="The other's.")],
    output: Annotated[Path, typer.Option(help="Folder for pairs.jsonl, pairs.html and key.json.")],
    seed: Annotated[int, typer.Option(help="Of order and sides.")] = 0,
) -> None:
    """Blinded, shuffled pairs for human annotators, and the key apart."""
    from ..evaluation.vicuna.data import load_answers, load_questions
    from ..evaluation.vicuna.human import export_blinded

    ours, theirs = (str(first), load_answers(first)), (str(second), load_answers(second))
    folder = export_blinded(load_questions(data), ours, theirs, output, seed=seed)
    typer.echo(f"Give {folder / 'pairs.html'} to the annotators, and keep {folder / 'key.json'} from them.")
    typer.echo(f"Next: tuna-trl evaluate vicuna-import --key {folder / 'key.json'} --verdicts verdicts.jsonl")


@app.command("vicuna-import")
def vicuna_import(
    key: Annotated[Path, typer.Option(help="key.json of the export.")],
    verdicts: Annotated[list[Path], typer.Option(help="verdicts.jsonl of one annotator; repeatable.")],
) -> None:
    """Win, tie and lose from the verdicts of human annotators."""
    import json
    from dataclasses import asdict

    from ..evaluation.vicuna.human import import_verdicts

    typer.echo(json.dumps(asdict(import_verdicts(key, verdicts)), indent=1))


def _candidates(
    models: Sequence[str],
    adapters: Sequence[str] | None,
    template: str,
    dtype: str,
    batch_tokens: int,
    base_url: str | None,
) -> Iterator[Candidate]:
    from ..errors import InputError
    from ..evaluation.candidates import local_candidates, server_candidate

    if base_url is None:
        return local_candidates(models, adapters or (), template=template, dtype=dtype, max_batch_tokens=batch_tokens)
    if adapters or len(models) != 1:
        raise InputError("With --base-url name one --model and no --adapter: the server loads its model itself.")
    from ..clients.openai_compatible import OpenAICompatibleSampler

    return server_candidate(models[0], lambda: OpenAICompatibleSampler(models[0], base_url), template=template)


def _with_stored(models: Sequence[str], adapters: Sequence[str] | None, *options: Any) -> Iterator[Candidate]:
    """Candidates among which files of answers may be; in the order given, models of this process one at a time."""
    from ..evaluation.candidates import stored_candidate
    from ..evaluation.vicuna.data import load_answers

    stored = {name: load_answers(name) for name in models if name.endswith(".jsonl")}
    named = [name for name in models if name not in stored]
    # made at once, so that what is wrong with a name is said before the first model answers
    loaded = _candidates(named, adapters, *options) if named or adapters else iter(())

    def each() -> Iterator[Candidate]:
        for name in models:
            yield stored_candidate(name, stored[name]) if name in stored else next(loaded)
        yield from loaded

    return each()


def _judge(name: str, base_url: str | None, protocol: str, prompts: Path, questions: Any, dtype: str) -> Any:
    from ..errors import InputError
    from ..evaluation.vicuna.data import load_prompts_v1, load_prompts_v2
    from ..evaluation.vicuna.protocols import PairV2, ScoresV1

    if protocol not in ("v1", "v2"):
        raise InputError(f"--protocol {protocol!r}: expected v2 (two games) or v1 (scores, as in papers of 2023).")
    if protocol == "v2":
        asks: Any = PairV2(load_prompts_v2(prompts))
    else:
        asks = ScoresV1(load_prompts_v1(prompts), {question.text: question.category for question in questions})
    if base_url is not None:
        from ..clients.openai_judge import OpenAICompatibleJudge

        return OpenAICompatibleJudge(name, base_url, protocol=asks)
    if name.startswith("claude"):
        from ..clients.anthropic_messages import AnthropicJudge

        return AnthropicJudge(protocol=asks) if name == "claude" else AnthropicJudge(name, protocol=asks)
    from ..clients.local_judge import TransformersJudge
    from ..loading import load_model, load_tokenizer

    return TransformersJudge(load_model(name, dtype=dtype), load_tokenizer(name), name=name, protocol=asks)


def _run(
    benchmark: Any,
    candidates: Iterator[Candidate],
    output: Path,
    max_cost: float | None,
    as_json: bool,
    following: str,
) -> None:
    from ..evaluation.runner import run

    evaluation = run(benchmark, candidates, output, max_cost=max_cost)
    _plot(evaluation, output)
    if as_json:
        print_json(evaluation.to_json())
        return
    typer.echo(evaluation.to_markdown().split("\n## ")[0].split("\n**Settings**")[0].rstrip())
    typer.echo(f"\nResults in {output}: results.json, results.md, plots/, predictions/.")
    typer.echo(following)


def _plot(evaluation: Evaluation, output: Path) -> None:
    """One SVG a figure, in `plots/`."""
    from ..evaluation.figure import interval_figure
    from ..evaluation.results import file_name, write_text

    folder = output / "plots"
    folder.mkdir(exist_ok=True)
    for name in dict.fromkeys(name for one in evaluation.models for name in one.scores.figures):
        rows = [
            (one.name, value.mean, value.low, value.high)
            for one in evaluation.models
            if (value := one.scores.figures.get(name)) is not None
            and not (value.mean is None or value.low is None or value.high is None)
        ]
        lines = [(own, line) for own, value in evaluation.baselines.items() if (line := value.get(name)) is not None]
        if rows:
            reference = max(lines, key=lambda line: line[1]) if lines else None
            figure = interval_figure(rows, title=f"{evaluation.benchmark}: {name}", reference=reference)
            write_text(folder / f"{file_name(name)}.svg", figure)


def _next(benchmark: str, models: Sequence[str], adapters: Sequence[str] | None, more: str, output: Path) -> str:
    named = " ".join([*(f"--model {name}" for name in models), *(f"--adapter {path}" for path in adapters or ())])
    return f"Next: tuna-trl evaluate {benchmark} {named} {more} --output {output.with_name(benchmark)}"
