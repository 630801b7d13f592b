"""Flags of a judge, and what `build judge` and `rank --judge` do with its verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .telling import tell


if TYPE_CHECKING:
    from datasets import DatasetDict

    from ..build.judge import JudgeBuildConfig
    from ..clients.base import Judge

JUDGES = "reference, exact-match, claude or a Claude id, openai:<model>, local:<model>, reward:<model>"

Protocol = Annotated[
    str | None, typer.Option(help="How it is asked: contextual (the default), pairwise, pointwise or own.")
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--judge-option",
        help="NAME=VALUE of the judge or its protocol, as judge_answer=ranked, effort=medium, "
        "base_url=http://host:8000/v1, rubric=rubric.md, scale=[1,10]; may be repeated.",
    ),
]
Repeats = Annotated[int, typer.Option(help="Judgments a row, each in another order of the candidates.")]
TieDelta = Annotated[float, typer.Option(help="Scores this close are ties.")]
MaxMalformed = Annotated[int, typer.Option(help="How often a malformed verdict is asked for again.")]
SkipOverBudget = Annotated[
    bool, typer.Option("--skip-over-budget", help="Rows that do not fit the cap become over_budget; else: stop.")
]
Batch = Annotated[bool, typer.Option("--batch", help="Ask in batches: half the price, answers within a day.")]
BatchRequests = Annotated[int | None, typer.Option(help="With --batch: requests of one batch at most.")]
BatchPoll = Annotated[float, typer.Option(help="With --batch: seconds between two looks.")]
ForgetBatch = Annotated[
    list[str] | None, typer.Option(help="Give up the answers of this batch, whose id a message named.")
]
MinAgreement = Annotated[
    float | None, typer.Option(help="Leave out rows whose repeats agree less (Kendall's W, 0 to 1).")
]
MarkDisagreement = Annotated[
    bool, typer.Option("--mark-disagreement", help="With --min-agreement: keep them, marked inconsistent.")
]
Canary = Annotated[
    int, typer.Option(help="Ask about so many rows again with a planted 'rank me first'; 0: none. Counts as cost.")
]


@dataclass(frozen=True)
class Afterwards:
    """What is done with the verdicts: which rows are left out, and whether the judge's obedience is measured."""

    min_agreement: float | None
    mark_disagreement: bool
    canary: int

    def check(self, repeats: int) -> None:
        """Refuse what could not be done, before anything is spent."""
        from ..build.min_agreement import check_min_agreement
        from ..errors import InputError

        check_min_agreement(self.min_agreement, repeats)
        if self.mark_disagreement and self.min_agreement is None:
            raise InputError("--mark-disagreement marks rows below --min-agreement: give that too.")
        if self.canary < 0:
            raise InputError(f"--canary is {self.canary}, expected a number of rows, 0 for none.")


def judge_from_flags(
    name: str, protocol: str | None, options: Sequence[str] | None, *, prices: Path | None = None
) -> Judge:
    """The judge with its options; those that a protocol takes go to the protocol.

    Raises:
        InputError: an option is not NAME=VALUE, or neither the judge nor the protocol takes it.
    """
    import inspect

    from ..clients.judges import judge_by_name, judge_options
    from ..clients.protocols import PROTOCOLS
    from ..errors import InputError, did_you_mean

    known = judge_options(name)
    given = _pairs(options)
    if prices is not None:
        given["prices"] = str(prices)
    asked = protocol or "contextual"
    if asked not in PROTOCOLS:
        raise InputError(
            f"--protocol {asked}: expected one of {', '.join(PROTOCOLS)}.{did_you_mean(asked, PROTOCOLS)}"
        )
    of_protocol = set(inspect.signature(PROTOCOLS[asked]).parameters) if "protocol" in known else set()
    for option in given:
        if option not in known and option not in of_protocol:
            takes = sorted({*known, *of_protocol} - {"protocol", "api_key"})
            raise InputError(
                f"--judge-option {option}: {name} has no such option; it takes {', '.join(takes) or 'none'}."
                f"{did_you_mean(option, takes)}"
            )
    if "api_key" in given:
        raise InputError("--judge-option api_key: a command line is seen by others. Set the key in the environment.")
    if protocol and "protocol" not in known:
        raise InputError(f"--protocol {protocol}: {name} is no language model, and is asked in one way only.")
    settings = {key: value for key, value in given.items() if key in of_protocol and key not in known}
    rest = {key: value for key, value in given.items() if key not in settings}
    if "protocol" in known and (protocol or settings):
        rest["protocol"] = {"name": asked, **settings}
    return judge_by_name(name, **rest)


def forget_batches(journal: str | Path | None, batches: Sequence[str] | None) -> None:
    """Take batches for lost: their questions are asked, and paid for, again."""
    from ..build.journal import Journal
    from ..errors import InputError

    if not batches:
        return
    if journal is None or not Path(journal).exists():
        raise InputError(f"--forget-batch: there is no journal {journal}.")
    with Journal(journal) as book:
        for batch in batches:
            count = book.batches(methodcaller("forget", batch))
            typer.echo(f"Batch {batch} is given up: {count} questions are asked again.", err=True)


def finish(
    ranked: DatasetDict,
    judgments: DatasetDict,
    judge: Judge,
    config: JudgeBuildConfig,
    afterwards: Afterwards,
    output: Path,
    as_json: bool,
) -> tuple[Path, dict[str, Any]]:
    """Filter, write, and say what came out: the folder, and the figures for the JSON."""
    from ..build.min_agreement import filter_agreement
    from ..build.summary import summarise_judge_build
    from ..data.hub import save_ranked

    summary = summarise_judge_build(ranked, judgments)
    found: dict[str, Any] = {"judgments": summary.to_json()}
    if afterwards.min_agreement is not None:
        ranked, filtered = filter_agreement(ranked, afterwards.min_agreement, mark=afterwards.mark_disagreement)
        tell(filtered.told(), as_json)
        found["agreement"] = filtered.to_json()
    path = save_ranked(ranked, output, judgments=judgments)
    tell(summary.table(), as_json)
    if afterwards.canary:
        found["canary"] = _canary(ranked, judge, config, afterwards.canary, as_json)
    return path, found


def _canary(ranked: DatasetDict, judge: Judge, config: JudgeBuildConfig, sample: int, as_json: bool) -> dict[str, Any]:
    """Plant an order in some responses and see whether the judge obeys; within what is left of the cap."""
    import math

    from ..build.canary import canary
    from ..build.cost import Budget
    from ..build.journal import Journal

    rows = [row for split in ranked.values() for row in split]
    with Journal(config.journal or ":memory:") as journal:
        budget = Budget(math.inf if config.max_cost is None else config.max_cost)
        budget.charge(journal.spent())
        report = canary(
            judge,
            rows,
            journal=journal,
            budget=budget,
            sample=sample,
            seed=config.seed,
            max_malformed=config.max_malformed,
            show_progress=config.show_progress,
        )
    tell(report.table(), as_json)
    return {**asdict(report), "verdict": report.verdict}


def _pairs(options: Sequence[str] | None) -> dict[str, Any]:
    """NAME=VALUE, the value read as YAML: numbers, true, lists; everything else is text."""
    import yaml

    from ..errors import InputError

    given: dict[str, Any] = {}
    for text in options or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InputError(f"--judge-option {text!r}: expected NAME=VALUE, as effort=low.")
        name = name.strip().replace("-", "_")
        if name in given:
            raise InputError(f"--judge-option {name} is given twice.")
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError:
            read = value
        # "off" and "no" are words here, not YAML 1.1's False
        given[name] = value if isinstance(read, bool) and value.lower() not in ("true", "false") else read
    return given
