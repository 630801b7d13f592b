"""What a judge's build would ask for, how long it would take and what it would cost: said before anything is spent.

The student draws about twenty prompts and a free judge is asked a few questions, under the build's own journal keys,
so that the build goes on from them. A paid judge is asked nothing but how many tokens a request has, where it says so.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ..clients.base import Judge, JudgeRequest, Sampler, Sampling, Usage
from ..clients.prices import load_prices
from ..errors import BuildError, InputError
from .buckets import Drawn, drawn_from
from .case import make_case
from .cost import Budget
from .dry_run import Range, shown_range
from .items import PromptItem, as_splits, read_items
from .journal import Journal
from .judge import JudgeBuildConfig
from .judging import Question, ask_all
from .processes import Share
from .progress import progress
from .questions import KIND
from .sampling import WINDOW, Ask, Diversity, SampleWindows


_PROBE = 20  # prompts that the student draws
_SAMPLE = 50  # rows of which one question each is rendered and counted
_ASKED = 8  # questions that a free judge is asked
_BYTES_PER_TOKEN = (6.0, 4.0, 1.0)  # of a request: low, expected, high count of tokens


@dataclass(frozen=True)
class JudgeDryRun:
    """What is left to do. Tokens and money are those of the judge, for what the journal does not hold yet.

    Args:
        student: whose responses.
        judge: its name.
        rows: of all splits.
        drawn: rows whose responses are in the journal.
        answered: questions whose reply is in the journal.
        questions: requests left, high where no two responses of a row are equal.
        input_tokens: of these requests.
        output_tokens: of their replies; None where neither replies nor the judge's limit tell.
        sampling_seconds, judging_seconds: None where nothing was probed.
        cost: USD, without batches; None where a price is not known: unknown, never 0.
        batch_cost: USD, in batches; None also where the judge has none.
        has_batches: whether it has.
        notes: sentences on what the figures rest on.
    """

    student: str
    judge: str
    rows: int
    drawn: int
    answered: int
    questions: Range
    input_tokens: Range
    output_tokens: Range | None
    sampling_seconds: Range | None
    judging_seconds: Range | None
    cost: Range | None
    batch_cost: Range | None
    has_batches: bool
    notes: tuple[str, ...] = ()

    def table(self) -> str:
        """The figures as people read them."""
        money = "{:,.2f} USD"
        batch = _or_unknown(self.batch_cost, money) if self.has_batches else "none"
        lines = [
            ("student", self.student),
            ("judge", self.judge),
            ("rows", f"{self.rows:,}, of which {self.drawn:,} are sampled already"),
            ("", "low / expected / high"),
            ("questions", f"{shown_range(self.questions)} ({self.answered:,} more are answered already)"),
            ("input tokens", shown_range(self.input_tokens)),
            ("output tokens", _or_unknown(self.output_tokens)),
            ("sampling", _or_unknown(self.sampling_seconds, clock=True)),
            ("judging", _or_unknown(self.judging_seconds, clock=True)),
            ("price", _or_unknown(self.cost, money)),
            ("in batches", batch),
        ]
        return "\n".join([*(f"{name:<14} {value}".rstrip() for name, value in lines), *self.notes])


def judge_dry_run(
    prompts: Any,
    student: Sampler,
    judge: Judge,
    config: JudgeBuildConfig | None = None,
    *,
    probe_judge: bool | None = None,
) -> JudgeDryRun:
    """Count, probe and price a build without building it.

    Args:
        prompts, student, judge, config: as for [`tuna_trl.build.judge.build_judge_ranked`]; no cap is needed.
        probe_judge: ask the judge a few questions to learn its pace (they are journalled); default: if it is free.

    Returns:
        see [`JudgeDryRun`]. Input tokens are counted by the judge where it can (`count_tokens(request) -> int | None`)
        on one question of each of 50 rows, else taken to be 6, 4 and 1 bytes each. The expected length of a reply is
        that of the replies in the journal, else half of the judge's limit.

    Raises:
        InputError: prompts or config are not usable.
    """
    config = config or JudgeBuildConfig()
    with Journal(config.journal or ":memory:") as journal:
        survey = _Survey(student, judge, config, journal)
        for split, rows in as_splits(prompts).items():
            survey.read(split, rows)
        if survey.sample and (probe_judge if probe_judge is not None else not judge.paid):
            survey.ask_a_few()
        return survey.result()


@dataclass
class _Survey:
    """One pass over the prompts: what is drawn, what is answered, and a sample of what is not."""

    student: Sampler
    judge: Judge
    config: JudgeBuildConfig
    journal: Journal
    sample: list[Question] = field(default_factory=list)  # one question a row, drawn evenly
    rows: int = 0
    undrawn: int = 0
    answered: int = 0
    left: int = 0  # questions of drawn rows
    asked: int = 0  # questions of drawn rows, answered or not
    replies: list[int] = field(default_factory=list)  # output tokens of replies in the journal
    sampling: list[float] = field(default_factory=list)  # seconds a prompt, of each bucket that was probed
    judging: float | None = None  # seconds a question
    seen: int = 0
    has_replies: bool = False
    draw: random.Random = field(default_factory=lambda: random.Random(0))

    def read(self, split: str, rows: Any) -> None:
        """The rows of one split, window by window, as the build cuts them."""
        config = self.config
        windows = SampleWindows(self.student, _ask(config), self.journal, _whole, _never, False, "train", Share())
        source = iter(read_items(rows, limit=config.limit))
        self.has_replies = self.journal.count(KIND) > 0
        place = 0
        while items := list(islice(source, WINDOW)):
            due, result = windows.survey(items)
            due = [bucket for bucket in due if self._rest(windows, bucket, items, result)]
            if due and not self.sampling:
                self._probe(windows, due, items, result)
            for i, drawn in enumerate(result):
                if drawn is not None:
                    self._count(drawn, f"{split}[{place + i}]")
            self.rows += len(items)
            self.undrawn += sum(drawn is None for drawn in result)
            place += len(items)

    def _rest(self, windows: SampleWindows, bucket: Any, items: list[PromptItem], result: list[Any]) -> int:
        """Take what a build with other neighbours (a shorter one, say) has drawn of a bucket; how much is left."""
        begun = windows.begun(bucket, items)
        for i, entry in zip(bucket.places, begun.entries, strict=True):
            result[i] = None if entry is None else drawn_from(items[i], entry)
        return len(begun.rest)

    def _probe(self, windows: SampleWindows, due: list[Any], items: list[Any], result: list[Any]) -> None:
        count = min(math.ceil(_PROBE / self.config.bucket_size), len(due))
        chosen = [due[(2 * k + 1) * len(due) // (2 * count)] for k in range(count)]  # evenly over lengths
        with progress("Probing the student", len(chosen), show=self.config.show_progress) as advance:
            for bucket in chosen:
                began = time.perf_counter()
                windows.work_on(bucket, items, result)
                self.sampling.append((time.perf_counter() - began) / len(bucket.places))
                advance(1)

    def _count(self, drawn: Drawn, where: str) -> None:
        config = self.config
        case = make_case(drawn, where=where, seed=config.seed, repeats=config.repeats, orders=self.judge.orders)
        self.asked += len(case.questions)
        left = []
        for question in case.questions:
            record = self.journal.get(question.key(self.judge, 0)) if self.has_replies else None
            if record is None:
                left.append(question)
            elif len(self.replies) < 100_000:
                self.replies.append(record["usage"]["output"])
        self.answered += len(case.questions) - len(left)
        self.left += len(left)
        if not left:
            return
        self.seen += 1
        question = left[self.draw.randrange(len(left))]
        if len(self.sample) < _SAMPLE:  # reservoir: every row is as likely to stay
            self.sample.append(question)
        elif (place := self.draw.randrange(self.seen)) < _SAMPLE:
            self.sample[place] = question

    def ask_a_few(self) -> None:
        """The pace of a judge, from a few questions of the sample; what it says is kept for the build."""
        some = self.sample[: max(_ASKED, self.judge.max_batch)]
        began = time.perf_counter()
        ask_all(some, self.judge, journal=self.journal, budget=Budget(math.inf), max_malformed=0, show_progress=False)
        self.judging = (time.perf_counter() - began) / len(some)
        self.replies += [question.answers[-1].reply.usage.output for question in some]
        self.left -= len(some)
        self.answered += len(some)

    def result(self) -> JudgeDryRun:
        questions = self._questions()
        notes: list[str] = []
        tokens = _input(self.judge, [question.request for question in self.sample], notes)
        per = self._output()
        cost, batch_cost, has_batches = self._prices(questions, tokens, per, notes)
        again = self.config.max_malformed
        if again and self.judge.method == "judge":
            notes.append(f"Malformed verdicts, asked for again up to {again} times, come on top.")
        pace = self.sampling
        seconds = Range(min(pace), sum(pace) / len(pace), max(pace)) if pace else None
        nothing = Range(0, 0, 0)
        return JudgeDryRun(
            self.student.name,
            self.judge.name,
            self.rows,
            self.rows - self.undrawn,
            self.answered,
            questions,
            _product(questions, tokens),
            None if per is None else _product(questions, per),
            nothing if not self.undrawn else None if seconds is None else seconds.times(self.undrawn),
            nothing if not questions.high else None if self.judging is None else questions.times(self.judging),
            cost,
            batch_cost,
            has_batches,
            tuple(notes),
        )

    def _questions(self) -> Range:
        """Questions left: those of drawn rows are known, those of others have as many as the drawn have on average,
        and at most as many as when no two responses are equal."""
        drawn = self.rows - self.undrawn
        most = self.config.repeats * len(self.judge.orders(range(self.config.num_responses)))
        most = most if self.config.num_responses > 1 else 0
        expected = self.asked / drawn if drawn else most
        return Range(self.left, self.left + self.undrawn * expected, self.left + self.undrawn * most)

    def _output(self) -> Range | None:
        """Tokens of a reply: as in the journal, else by assumption; None where the judge's limit is not known."""
        if self.judge.method != "judge":
            return Range(0, 0, 0)  # a reward model or a comparison writes nothing
        known = self.judge.fingerprint()
        limit = known.get("max_tokens", known.get("max_new_tokens"))
        if len(self.replies) >= 2:
            mean, error = _mean(self.replies)
            return Range(max(0.0, mean - 2 * error), mean, max(limit or 0, *self.replies))
        return None if limit is None else Range(limit / 8, limit / 2, limit)

    def _prices(
        self, questions: Range, tokens: Range, output: Range | None, notes: list[str]
    ) -> tuple[Range | None, Range | None, bool]:
        batches = None
        if self.judge.paid and hasattr(self.judge, "batch"):
            try:
                batches = self.judge.batch()
            except InputError as error:  # a judge behind several servers, say
                notes.append(f"No batches: {error}")
        requests = [question.request for question in self.sample]
        cost = _price(self.judge, requests, questions, tokens, output)
        batch_cost = None if batches is None else _price(batches, requests, questions, tokens, output)
        if self.judge.paid:
            notes.append(f"Prices as of {load_prices().date_of(self.judge.name) or load_prices().date}.")
        return cost, batch_cost, batches is not None


def _price(
    priced: Any, requests: Sequence[JudgeRequest], questions: Range, tokens: Range, output: Range | None
) -> Any:
    """By the mean request, because a price may depend on its length; the high end is what the cap would reserve."""
    if not questions.high:
        return Range(0, 0, 0)
    free = priced.cost(Usage(input=1, output=1)) == 0
    if free or not requests:
        return Range(0, 0, 0) if free else None
    bounds = [priced.worst_case_cost(request) for request in requests]
    if output is None or None in bounds:
        return None
    ends = []
    for sent, received in ((tokens.low, output.low), (tokens.expected, output.expected)):
        ends.append(priced.cost(Usage(input=round(sent), output=round(received))))
    if None in ends:
        return None
    high = questions.high * math.fsum(bounds) / len(bounds)
    low, expected = questions.low * ends[0], questions.expected * ends[1]
    return Range(low, expected, max(high, expected))


def _input(judge: Judge, requests: Sequence[JudgeRequest], notes: list[str]) -> Range:
    """Tokens of one request: counted by the judge, else by its bytes."""
    if not requests:
        return Range(0, 0, 0)
    counted = _counted(judge, requests, notes)
    if counted:
        mean, error = _mean(counted)
        notes.append(f"Input tokens of {len(counted)} requests were counted by the provider.")
        return Range(max(0.0, mean - 2 * error), mean, mean + 2 * error)
    size = sum(_bytes(judge, request) for request in requests) / len(requests)
    low, expected, high = (size / per for per in _BYTES_PER_TOKEN)
    return Range(low, expected, high)


def _counted(judge: Judge, requests: Sequence[JudgeRequest], notes: list[str]) -> list[int]:
    count: Callable[[JudgeRequest], int | None] | None = getattr(judge, "count_tokens", None)
    if count is None:
        return []
    try:
        counts = [count(request) for request in requests]
    except BuildError as error:
        notes.append(f"The provider did not count tokens ({error}); input is estimated by its bytes.")
        return []
    return [] if None in counts else [number for number in counts if number is not None]


def _bytes(judge: Judge, request: JudgeRequest) -> int:
    protocol = getattr(judge, "protocol", None)
    if protocol is None:
        texts = [message["content"] for message in request.prompt] + list(request.candidates)
    else:
        texts = [*protocol.render(request), json.dumps(protocol.schema(len(request.candidates)))]
    return sum(len(text.encode("utf-8", "replace")) for text in texts)


def _ask(config: JudgeBuildConfig) -> Ask:
    """What the build asks of the student; the same keys, so that what is probed here is not drawn again there."""
    diversity = None
    if config.rouge_threshold is not None:
        diversity = Diversity(
            config.rouge_threshold, config.temperature_step, config.max_tries, config.rouge_tokenizer
        )
    sampling = Sampling(config.temperature, config.top_p, config.top_k, config.max_new_tokens)
    return Ask(config.num_responses, sampling, config.seed, config.bucket_size, diversity)


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    mean = math.fsum(values) / len(values)
    spread = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(spread / max(1, len(values) - 1) / len(values))


def _product(a: Range, b: Range) -> Range:
    return Range(a.low * b.low, a.expected * b.expected, a.high * b.high)


def _or_unknown(figure: Range | None, form: str = "{:,.0f}", *, clock: bool = False) -> str:
    return "unknown" if figure is None else shown_range(figure, form, clock=clock)


def _whole(drawn: Drawn) -> Drawn:
    return drawn


def _never(drawn: Drawn) -> bool:
    return False
