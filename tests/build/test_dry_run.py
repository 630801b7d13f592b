"""What a dry run says: counts that are right, figures that bound, prices that are unknown where they are; it spends
nothing, and what it probes is not lost."""

from __future__ import annotations

import math

import pytest
from doubles.remote import CountingRemote
from doubles.samplers import SeedSampler
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_trl.build.dry_run import DryRun, Range, dry_run
from tuna_trl.build.journal import Journal
from tuna_trl.build.teacher import TeacherBuildConfig, build_teacher_ranked
from tuna_trl.clients.base import Usage
from tuna_trl.errors import SchemaError


def prompts(n):
    return [{"prompt": f"question {i}" + "!" * (i % 30)} for i in range(n)]


def config(**options):
    return TeacherBuildConfig(**({"show_progress": False} | options))


class TestLocal:
    @settings(max_examples=20)
    @given(count=st.integers(1, 60), size=st.integers(1, 30), window=st.integers(1, 70))
    def test_it_draws_about_twenty_prompts_which_the_build_does_not_draw_again(
        self, tmp_path_factory, count, size, window
    ):
        options = config(bucket_size=size, window_size=window, journal=tmp_path_factory.mktemp("j") / "j")
        probe = SeedSampler()
        run = dry_run(prompts(count), probe, options)
        probed = sum(len(call[0]) for call in probe.calls)
        assert probed <= min(count, 20 + size)
        assert run.prompts == count and run.responses == 4 * count and run.known == 4 * probed
        build = SeedSampler()
        build_teacher_ranked(prompts(count), build, options)
        drawn = [text for call in build.calls for text in call[0]]
        assert len(drawn) == count - probed
        assert run.input_tokens.expected == sum(map(len, drawn))
        left = [seeds for call in probe.calls + build.calls for row in call[3] for seeds in row]
        assert len(left) == len(set(left)) == 4 * count

    def test_its_figures_bound_what_then_happens(self, tmp_path):
        options = config(journal=tmp_path / "j", max_new_tokens=6)
        run = dry_run(prompts(400), SeedSampler(), options)
        rows = build_teacher_ranked(prompts(400), SeedSampler(), options)["train"]
        tokens = sum(r["num_tokens"] for row in rows for r in row["responses"]) * (400 - run.known / 4) / 400
        assert run.output_tokens.low <= run.output_tokens.expected <= run.output_tokens.high
        assert run.output_tokens.low * 0.9 <= tokens <= run.output_tokens.high
        assert 0 < run.seconds.low <= run.seconds.expected <= run.seconds.high
        assert run.cost == Range(0, 0, 0)

    def test_when_all_is_there_nothing_is_left(self, tmp_path):
        options = config(journal=tmp_path / "j")
        build_teacher_ranked(prompts(30), SeedSampler(), options)
        silent = SeedSampler()
        run = dry_run(prompts(30), silent, options)
        assert not silent.calls and run.known == run.responses == 120
        assert run.seconds == run.output_tokens == Range(0, 0, 0)

    def test_a_bad_row_is_found(self):
        with pytest.raises(SchemaError, match="row 1"):
            dry_run([{"prompt": "a"}, {}], SeedSampler(), config())


class TokenPriced(CountingRemote):
    """Costs 1 USD a million tokens sent and 10 a million received."""

    def worst_case_cost(self, prompt, n, sampling):
        return (len(prompt[-1]["content"]) * n + 100 + 10 * n * sampling.max_new_tokens) / 1e6

    def cost(self, usage: Usage):
        return (usage.input + 10 * usage.output) / 1e6


class TestServer:
    def test_it_asks_nothing_and_needs_no_cap(self):
        sampler = TokenPriced(paid=True)
        run = dry_run(prompts(50), sampler, config())
        assert sampler.requests == [] and sampler.checks == 0
        assert (run.prompts, run.responses, run.known, run.seconds) == (50, 200, 0, None)
        assert 0 < run.cost.low < run.cost.expected < run.cost.high

    @settings(max_examples=15)
    @given(known=st.integers(0, 10), n=st.integers(1, 5))
    def test_only_what_is_left_is_counted_and_the_high_price_is_what_the_cap_would_reserve(
        self, tmp_path_factory, known, n
    ):
        options = dict(journal=tmp_path_factory.mktemp("j") / "j", num_responses=n, max_new_tokens=50)
        if known:
            build_teacher_ranked(prompts(10), TokenPriced(), config(limit=known, **options))
        sampler = TokenPriced()
        run = dry_run(prompts(10), sampler, config(**options))
        assert sampler.requests == [] and run.known == known * n
        sampling = type("S", (), {"max_new_tokens": 50})
        left = [[{"content": row["prompt"]}] for row in prompts(10)[known:]]
        assert run.cost.high == pytest.approx(sum(sampler.worst_case_cost(p, n, sampling) for p in left))
        assert run.output_tokens.high == 50 * n * (10 - known)
        if known * n > 1:
            assert run.output_tokens.expected <= 6 * n * (10 - known)  # the double's replies have 2 to 6 tokens

    @pytest.mark.parametrize("paid", [True, False])
    def test_a_price_that_is_not_known_is_unknown_and_never_nothing(self, paid):
        run = dry_run(prompts(3), CountingRemote(paid=paid, price=None), config())
        assert run.cost is None
        (line,) = [line for line in run.table().splitlines() if line.startswith("price")]
        assert line.split() == ["price", "unknown"]
        assert "0.00" not in run.table()

    def test_the_table_names_the_date_of_the_prices(self):
        from tuna_trl.clients.prices import load_prices

        assert load_prices().date in dry_run(prompts(3), TokenPriced(), config()).table()


def test_the_table_reads_as_people_read():
    run = DryRun(
        "teacher-1",
        52_000,
        208_000,
        16,
        Range(1e6, 2e6, 8e6),
        Range(5, 5, 5),
        Range(30, 300, 8000),
        Range(1, 2.5, 9.125),
    )
    assert run.table().splitlines() == [
        "teacher        teacher-1",
        "prompts        52,000",
        "responses      208,000, of which 16 are in the journal already",
        "               low / expected / high",
        "input tokens   1,000,000 / 2,000,000 / 8,000,000",
        "output tokens  5",
        "time           30 s / 5 min / 2.2 h",
        "price          1.00 USD / 2.50 USD / 9.12 USD",
    ]


def test_a_probe_without_a_file_leaves_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert math.isfinite(dry_run(prompts(5), SeedSampler(), config()).seconds.high)
    assert list(tmp_path.iterdir()) == []
    with Journal(":memory:") as journal:
        assert journal.count() == 0
