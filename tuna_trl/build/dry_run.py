"""What a teacher's build would ask for, how long it would take and what it would cost: said before anything is spent.

A server is asked nothing. A local teacher draws about twenty prompts, under their own journal keys, so that the build
goes on from them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from ..clients.base import RemoteSampler, Sampler, Usage
from ..clients.prices import load_prices
from .buckets import Drawn
from .cost import Budget, total_cost
from .items import PromptItem, read_items
from .journal import Journal
from .processes import Share
from .progress import progress
from .remote import Asking
from .sampling import SampleWindows
from .teacher import TeacherBuild, TeacherBuildConfig


_PROBE = 20  # prompts
_BYTES_PER_TOKEN = (6.0, 4.0, 1.0)  # of a prompt for a server: low, expected, high count of tokens


@dataclass(frozen=True)
class Range:
    """A figure that is not known yet: low, expected, high."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> Range:
        return Range(self.low * factor, self.expected * factor, self.high * factor)


@dataclass(frozen=True)
class DryRun:
    """What is left to do. Tokens and money are those of what the journal does not hold yet.

    `seconds` is None where nothing was probed, `cost` (USD) where the price is not known: unknown, never 0.
    """

    teacher: str
    prompts: int
    responses: int
    known: int  # responses that are in the journal already
    input_tokens: Range
    output_tokens: Range
    seconds: Range | None
    cost: Range | None
    notes: tuple[str, ...] = ()

    def table(self) -> str:
        """The figures as people read them."""
        cost = "unknown" if self.cost is None else shown_range(self.cost, "{:,.2f} USD")
        seconds = "unknown" if self.seconds is None else shown_range(self.seconds, clock=True)
        lines = [
            ("teacher", self.teacher),
            ("prompts", f"{self.prompts:,}"),
            ("responses", f"{self.responses:,}, of which {self.known:,} are in the journal already"),
            ("", "low / expected / high"),
            ("input tokens", shown_range(self.input_tokens)),
            ("output tokens", shown_range(self.output_tokens)),
            ("time", seconds),
            ("price", cost),
        ]
        return "\n".join([*(f"{name:<14} {value}".rstrip() for name, value in lines), *self.notes])


def dry_run(prompts: Any, teacher: Sampler | RemoteSampler, config: TeacherBuildConfig | None = None) -> DryRun:
    """Count, probe and price a build without building it.

    Args:
        prompts, teacher, config: as for [`tuna_trl.build.teacher.build_teacher_ranked`]; a paid teacher needs no cap.

    Returns:
        see [`DryRun`]. Input tokens of a local teacher are exact; a server's are taken to be 6, 4 and 1 bytes each,
        and the expected length of its responses is that of what the journal holds, else half of `max_new_tokens`.

    Raises:
        InputError: prompts or config are not usable.
    """
    config = config or TeacherBuildConfig()
    build = TeacherBuild(prompts, teacher, config, Share())
    with build.journal() as journal:
        return (_remote if build.remote else _local)(build, journal)


def _local(build: TeacherBuild, journal: Journal) -> DryRun:
    config, n = build.config, build.config.num_responses
    count = missing = tokens = 0
    lengths: list[int] = []
    pace: list[float] = []  # seconds a prompt, of each bucket that was probed
    for split, rows in build.prompts.items():
        windows = SampleWindows(build.teacher, build.ask, journal, _response_lengths, _never, False, split, Share())
        source = iter(read_items(rows, limit=config.limit))
        while items := list(islice(source, config.window_size)):
            due, result = windows.survey(items)
            count += len(items)
            if due and not pace:
                chosen = _spread(due, math.ceil(_PROBE / config.bucket_size))
                with progress("Probing", len(chosen), show=config.show_progress) as advance:
                    for bucket in chosen:
                        began = time.perf_counter()
                        windows.work_on(bucket, items, result)
                        pace.append((time.perf_counter() - began) / len(bucket.places))
                        advance(1)
                due = [bucket for bucket in due if bucket not in chosen]
            lengths += [length for each in result if each for length in each] if len(lengths) < 100_000 else []
            left = [items[i].prompt for bucket in due for i in bucket.places]
            missing += len(left)
            tokens += sum(build.teacher.prompt_lengths(left)) if left else 0
    output = _output(lengths, config.max_new_tokens, missing * n)
    seconds = Range(min(pace), sum(pace) / len(pace), max(pace)).times(missing) if pace else None
    return DryRun(
        build.teacher.name,
        count,
        count * n,
        (count - missing) * n,
        Range(tokens, tokens, tokens),
        output,
        seconds if missing else Range(0, 0, 0),
        Range(0, 0, 0),
        ("A local teacher costs nothing but time. What was probed is in the journal.",),
    )


def _remote(build: TeacherBuild, journal: Journal) -> DryRun:
    config, teacher, n = build.config, build.teacher, build.config.num_responses
    budget = Budget(math.inf)
    count = missing = size = 0
    lengths: list[int] = []
    bounds: list[float | None] = []
    requests = 0
    for rows in build.prompts.values():
        asking = Asking(teacher, build.ask, journal, budget, _response_lengths, _never, False)
        for item in read_items(rows, limit=config.limit):
            pending = asking.begin(item)
            lost = sum(record is None for record in pending.records)
            if len(lengths) < 100_000:
                lengths += [len(r["sample"]["token_logprobs"]) for r in pending.records if r and "sample" in r]
            count += 1
            if lost:
                missing += lost
                requests += 1
                size += _bytes(item)
                bounds.append(teacher.worst_case_cost(item.prompt, lost, build.sampling))
    low, expected, high = (size / per for per in _BYTES_PER_TOKEN)
    tokens = Range(low, expected, high * n)  # n times where the server gives one sample a request
    output = _output(lengths, config.max_new_tokens, missing)
    dated = load_prices().date
    return DryRun(
        teacher.name,
        count,
        count * n,
        count * n - missing,
        tokens,
        output,
        None if missing else Range(0, 0, 0),
        _price(teacher, requests, replace(tokens, high=high), output, bounds),
        (f"A server is not asked anything before the run, so its time is not known. Prices as of {dated}.",),
    )


def _price(
    teacher: RemoteSampler, requests: int, tokens: Range, output: Range, bounds: Sequence[float | None]
) -> Range | None:
    """By the mean request, because a price may depend on its length; the high end is what the cap would reserve."""
    if not requests:
        return Range(0, 0, 0)
    ends: list[float] = []
    for sent, received in ((tokens.low, output.low), (tokens.expected, output.expected)):
        one = teacher.cost(Usage(input=round(sent / requests), output=round(received / requests)))
        if one is None:
            return None
        ends.append(one * requests)
    highest = total_cost(bounds)
    return None if highest is None else Range(ends[0], ends[1], max(highest, ends[1]))


def _output(lengths: Sequence[int], limit: int, responses: int) -> Range:
    """Tokens of so many responses: by the mean of those at hand with two standard errors, else by assumption."""
    if len(lengths) < 2:
        return Range(limit / 8, limit / 2, limit).times(responses)
    mean = sum(lengths) / len(lengths)
    spread = math.sqrt(sum((length - mean) ** 2 for length in lengths) / (len(lengths) - 1) / len(lengths))
    return Range(max(1.0, mean - 2 * spread), mean, limit).times(responses)


def _spread(buckets: Sequence[Any], count: int) -> list[Any]:
    """So many of the buckets, evenly over their order, which is that of length."""
    count = min(count, len(buckets))
    return [buckets[(2 * k + 1) * len(buckets) // (2 * count)] for k in range(count)]


def _response_lengths(drawn: Drawn) -> list[int]:
    return [len(sample.token_logprobs) for sample in drawn.samples]


def _never(drawn: Drawn) -> bool:
    return False


def _bytes(item: PromptItem) -> int:
    return sum(len(message["content"].encode("utf-8", "replace")) + 16 for message in item.prompt)


def shown_range(figure: Range, form: str = "{:,.0f}", *, clock: bool = False) -> str:
    """A figure as people read it: low / expected / high, or one number where it is known; `clock`: it is seconds."""
    values: Iterable[float] = (figure.low, figure.expected, figure.high)
    if figure.low == figure.expected == figure.high:
        values = (figure.expected,)
    return " / ".join(_duration(value) if clock else form.format(value) for value in values)


def _duration(seconds: float) -> str:
    """A time as people say it.

    >>> _duration(3), _duration(125), _duration(7300)
    ('3 s', '2 min', '2.0 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
