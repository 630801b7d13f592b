"""What a judge's dry run says: counts that are right, figures that bound what then happens, nothing spent, nothing
drawn or asked twice, and prices that are unknown where they are."""

from __future__ import annotations

import json
import math

import pytest
from doubles.builders import FunctionJudge, config, four, prefers, prompts
from doubles.builders import ListSampler as Texts
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_trl.build.dry_run import Range
from tuna_trl.build.judge import judge_builds
from tuna_trl.build.judge_dry_run import judge_dry_run
from tuna_trl.clients.base import Reply, Usage
from tuna_trl.clients.contextual import ContextualProtocol
from tuna_trl.clients.pairwise import PairwiseProtocol
from tuna_trl.clients.prices import load_prices
from tuna_trl.clients.reference import ReferenceJudge
from tuna_trl.errors import BuildError, InputError, SchemaError


class Counting(FunctionJudge):
    """A language model by its price: 1 USD a million tokens sent, 10 a million received; tokens are bytes / 4."""

    name = "claude-opus-5-5"

    def __init__(self, reply=lambda request: [4.0, 3.0, 2.0, 1.0], *, limit=100, protocol=None, paid=True, **options):
        super().__init__(reply, paid=paid, **options)
        self.protocol = protocol or ContextualProtocol()
        self.limit = limit

    def fingerprint(self):
        return {"judge": "counting", "max_tokens": self.limit, **self.protocol.fingerprint()}

    def orders(self, order):
        return self.protocol.orders(order)

    def text(self, request):
        return "".join(self.protocol.render(request)) + json.dumps(self.protocol.schema(len(request.candidates)))

    def _one(self, request):
        reply = super()._one(request)
        sent = len(self.text(request)) // 4
        return Reply(reply.raw, "stop", "req", self.name, Usage(input=sent, output=20 + sent % 40))

    def worst_case_cost(self, request):
        return (len(self.text(request).encode()) + 1000 + 10 * self.limit) / 1e6

    def cost(self, usage):
        return (usage.input + 10 * usage.output) / 1e6


class Batching(Counting):
    def batch(self):
        judge = self

        class Half:
            def cost(self, usage):
                return judge.cost(usage) / 2

            def worst_case_cost(self, request):
                return judge.worst_case_cost(request) / 2

        return Half()


def look(n, judge, sampler=None, **options):
    return judge_dry_run(prompts(n), sampler or Texts(four), judge, config(**options))


@settings(max_examples=10)
@given(count=st.integers(1, 40), size=st.integers(1, 30), repeats=st.integers(1, 2), known=st.integers(0, 8))
def test_a_paid_judge_is_asked_nothing_and_what_the_student_draws_is_not_drawn_again(
    tmp_path_factory, count, size, repeats, known
):
    options = {"journal": tmp_path_factory.mktemp("j") / "j", "bucket_size": size, "repeats": repeats}
    budget = {"max_cost": math.inf}
    known = min(known, count)
    if known:
        judge_builds(prompts(count), Texts(four), Counting(), config(limit=known, **options, **budget))
    probe, judge = Texts(four), Counting()
    run = look(count, judge, probe, **options)
    assert judge.requests == [] and probe.calls <= 20 + size
    assert run.rows == count and run.drawn == known + probe.calls
    assert run.answered == known * repeats
    left = count * repeats - run.answered  # all four responses of every row differ
    assert run.questions == Range(run.drawn * repeats - run.answered, left, left)
    sampler, paid = Texts(four), Counting()
    judge_builds(prompts(count), sampler, paid, config(**options, **budget))
    assert sampler.calls == count - run.drawn and len(paid.requests) == run.questions.expected


@pytest.mark.parametrize("protocol", [ContextualProtocol(), PairwiseProtocol()])
def test_its_figures_bound_what_then_happens(tmp_path, protocol):
    def verdict(request):
        return [float(len(request.candidates) - i) for i in range(len(request.candidates))]

    options = {"journal": tmp_path / "j", "bucket_size": 4, "max_cost": math.inf}
    judge_builds(prompts(40), Texts(four), Batching(verdict, protocol=protocol), config(limit=8, **options))
    run = judge_dry_run(prompts(40), Texts(four), Batching(verdict, protocol=protocol), config(**options))
    judge = Batching(verdict, protocol=protocol)
    rows = judge_builds(prompts(40), Texts(four), judge, config(**options))[1]["train"]
    asked = list(rows)[run.answered :]
    assert run.questions.expected == len(judge.requests) == len(asked)
    spent = sum(row["cost"] for row in asked)
    sent = sum(row["usage"]["input"] for row in asked)
    received = sum(row["usage"]["output"] for row in asked)
    assert run.input_tokens.low <= sent <= run.input_tokens.high
    assert run.input_tokens.expected == pytest.approx(sent, rel=0.02)
    assert run.output_tokens.low * 0.95 <= received <= run.output_tokens.high
    assert run.output_tokens.expected == pytest.approx(received, rel=0.1)
    assert run.cost.low < run.cost.expected < run.cost.high and spent <= run.cost.high
    worst = sum(judge.worst_case_cost(request) for request in judge.requests)
    assert run.cost.high == pytest.approx(worst, rel=0.02)
    for half, whole in zip(vars(run.batch_cost).values(), vars(run.cost).values(), strict=True):
        assert half == pytest.approx(whole / 2)


def test_equal_responses_are_not_priced():
    def texts(prompt):
        return ["same"] * 4 if int(prompt.split()[-1]) % 2 else ["a", "b", "a", "b"]

    run = look(100, Counting(protocol=PairwiseProtocol()), Texts(texts), repeats=2, bucket_size=10)
    drawn = run.drawn / 2 * 4  # half the rows have one pair, in both orders, twice
    assert run.questions.low == drawn
    assert run.questions.expected == pytest.approx(100 / 2 * 4, rel=0.2)
    assert run.questions.high == drawn + (100 - run.drawn) * 2 * 12


def test_a_free_judge_is_asked_a_few_which_the_build_does_not_ask_again(tmp_path):
    options = {"journal": tmp_path / "j", "repeats": 2}
    judge = FunctionJudge(prefers("beta"))
    run = look(40, judge, **options)
    assert 0 < len(judge.requests) <= 8 and run.judging_seconds.expected > 0
    assert run.cost == Range(0, 0, 0) and run.answered == len(judge.requests)
    build = FunctionJudge(prefers("beta"))
    judge_builds(prompts(40), Texts(four), build, config(**options))
    assert len(build.requests) == 80 - len(judge.requests) == run.questions.expected
    assert look(40, FunctionJudge(prefers("beta")), **options).judging_seconds == Range(0, 0, 0)


def test_the_reference_judge_takes_time_and_nothing_else():
    run = look(10, ReferenceJudge())
    assert run.output_tokens == run.cost == Range(0, 0, 0) and run.judging_seconds.high > 0
    assert not run.has_batches and run.batch_cost is None and "in batches     none" in run.table()


def test_tokens_that_the_provider_counts_are_taken():
    judge = Counting()
    judge.count_tokens = lambda request: 700
    run = look(10, judge)
    assert run.input_tokens == Range(7000, 7000, 7000) and "counted by the provider" in run.table()
    judge.count_tokens = lambda request: None
    assert look(10, judge).input_tokens.high > look(10, judge).input_tokens.low

    def unreachable(request):
        raise BuildError("no connection")

    judge.count_tokens = unreachable
    assert "no connection" in look(10, judge).table()


@pytest.mark.parametrize("batches", [True, False])
def test_a_price_that_is_not_known_is_unknown_and_never_nothing(batches):
    judge = (Batching if batches else Counting)()
    judge.cost = lambda usage: None
    judge.worst_case_cost = lambda request: None
    if batches:
        judge.batch = lambda: judge
    run = look(3, judge)
    assert run.cost is None and run.batch_cost is None and "0.00" not in run.table()
    assert run.table().count("unknown") == (3 if batches else 2)  # price, in batches, judging


def test_a_limit_that_is_not_known_leaves_the_price_unknown():
    judge = Counting(limit=None)
    judge.worst_case_cost = lambda request: 1.0
    run = look(3, judge)
    assert run.output_tokens is None and run.cost is None


def test_a_judge_that_says_it_has_no_batches_here_is_believed():
    def several_servers():
        raise InputError("a batch goes to one server")

    judge = Batching()
    judge.batch = several_servers
    run = look(3, judge)
    assert not run.has_batches and run.cost.high > 0 and "a batch goes to one server" in run.table()


def test_a_bad_row_is_found_and_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SchemaError, match="row 1"):
        judge_dry_run([{"prompt": "a"}, {}], Texts(four), Counting(), config())
    look(3, Counting())
    assert list(tmp_path.iterdir()) == []


def test_the_table_reads_as_people_read():
    lines = look(30, Batching(), repeats=4).table().splitlines()
    names = ["student", "judge", "rows", "", "questions", "input tokens", "output tokens", "sampling", "judging"]
    assert [line[:14].strip() for line in lines[:11]] == [*names, "price", "in batches"]
    assert lines[4].endswith("120 (0 more are answered already)")
    assert load_prices().date in lines[-2] and "Malformed" in lines[-1] or load_prices().date in lines[-1]
