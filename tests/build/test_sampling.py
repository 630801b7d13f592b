"""Drawing: order, seeds, fixed buckets, what a journal saves, and the diversity rule against a plain loop."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from doubles.samplers import SeedSampler
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tuna_trl.build.journal import Journal
from tuna_trl.build.processes import Share
from tuna_trl.build.sampling import Ask, Diversity, draw, draw_each, prompt_items, sample_seed
from tuna_trl.clients.base import Sample, Sampling
from tuna_trl.clients.local import TransformersSampler
from tuna_trl.errors import BuildError, InputError


TESTS = Path(__file__).resolve().parents[1]
TEXTS = ["a longer prompt", "short", "mid length", "short", "x", "another long prompt", "mid lengtH"]
ITEMS = prompt_items([{"prompt": text} for text in TEXTS])


def drawn_from(items, sampler, journal=":memory:", **overrides):
    asked = dict(n=3, sampling=Sampling(), seed=7, bucket_size=2, show_progress=False) | overrides
    if isinstance(journal, Journal):
        return draw(items, sampler, journal=journal, **asked)
    with Journal(journal) as opened:
        return draw(items, sampler, journal=opened, **asked)


class Stop(Exception):
    pass


def stop_at(call):
    def before(number):
        if number == call:
            raise Stop

    return before


class TestBuckets:
    @settings(max_examples=60, deadline=None)
    @given(
        texts=st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=12),
        size=st.integers(1, 5),
        n=st.integers(1, 3),
    )
    def test_results_come_in_the_order_of_the_items_and_buckets_in_that_of_length(self, texts, size, n):
        items, sampler = prompt_items([{"prompt": text} for text in texts]), SeedSampler()
        found = drawn_from(items, sampler, bucket_size=size, n=n)
        assert [drawn.item for drawn in found] == items
        order = sorted(range(len(items)), key=lambda i: (len(texts[i]), i))
        assert [call[0] for call in sampler.calls] == [
            tuple(texts[i] for i in order[k : k + size]) for k in range(0, len(order), size)
        ]
        for drawn in found:
            seeds = [sample_seed(7, drawn.item, 1, k) for k in range(n)]
            text = drawn.item.prompt[0]["content"]
            assert drawn.samples == tuple(SeedSampler._sample(text, 1.0, seed, k) for k, seed in enumerate(seeds))
            assert (drawn.temperature, drawn.tries, drawn.max_rouge) == (1.0, 1, None)

    def test_equal_prompts_get_samples_of_their_own(self):
        found = drawn_from(ITEMS, SeedSampler())
        assert TEXTS[1] == TEXTS[3] and not set(found[1].samples) & set(found[3].samples)

    def test_no_two_samples_share_a_seed_and_each_is_as_documented(self):
        seeds = [
            sample_seed(seed, item, attempt, k)
            for seed, item, attempt, k in itertools.product((0, 1), ITEMS, (1, 2, 3), range(4))
        ]
        assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
        text = f'[5,"{ITEMS[3].prompt_id}",1,2,3]'
        expected = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) // 2
        assert sample_seed(5, ITEMS[3], 2, 3) == expected

    @pytest.mark.parametrize("counts", [(2, 3), (3,), (3, 3, 3)])
    def test_another_number_of_responses_is_a_build_error_and_is_not_kept(self, counts, tmp_path):
        class Deaf(SeedSampler):
            def sample(self, prompts, n, sampling, *, seeds):
                return [[Sample("x", (-1.0,), "stop")] * count for count in counts]

        path = tmp_path / "journal.sqlite"
        with pytest.raises(BuildError, match="asked for 3 responses to each of 2 prompts and returned"):
            drawn_from(ITEMS[:2], Deaf(), path)
        with Journal(path) as journal:
            assert journal.count() == 0

    def test_a_bucket_size_below_one_is_refused(self):
        with pytest.raises(InputError, match="`bucket_size` must be at least 1, got 0"):
            drawn_from(ITEMS, SeedSampler(), bucket_size=0)


class TestJournal:
    @settings(max_examples=40, deadline=None)
    @given(stops=st.lists(st.integers(0, 4), max_size=3), diverse=st.booleans())
    def test_a_build_stopped_anywhere_asks_again_only_for_what_was_not_journalled(self, stops, diverse):
        overrides = {"diversity": Diversity(threshold=0.01)} if diverse else {}
        whole = SeedSampler()
        expected = drawn_from(ITEMS, whole, **overrides)
        asked = []
        with Journal(":memory:") as journal:
            for stop in stops:
                sampler = SeedSampler(before=stop_at(stop))
                try:
                    drawn_from(ITEMS, sampler, journal, **overrides)
                except Stop:
                    pass
                asked += sampler.calls
            before = journal.count()
            last = SeedSampler()
            assert drawn_from(ITEMS, last, journal, **overrides) == expected
            assert len([call for call in last.calls if call[2] == 1.0]) == 4 - before
            silent = SeedSampler(before=stop_at(0))
            assert drawn_from(ITEMS, silent, journal, **overrides) == expected
        if not diverse:
            assert asked + last.calls == whole.calls

    @pytest.mark.parametrize(
        "change",
        [
            {"n": 2},
            {"sampling": Sampling(temperature=0.9)},
            {"sampling": Sampling(max_new_tokens=9)},
            {"seed": 8},
            {"bucket_size": 3},
            {"diversity": Diversity()},
        ],
        ids=str,
    )
    def test_another_question_is_not_answered_from_the_journal(self, change):
        with Journal(":memory:") as journal:
            drawn_from(ITEMS[:2], SeedSampler(), journal)
            again = SeedSampler()
            drawn_from(ITEMS[:3], again, journal, **change)
            assert sum(len(call[0]) for call in again.calls) >= 3

    def test_another_model_is_not_answered_from_the_journal(self):
        class Other(SeedSampler):
            def fingerprint(self):
                return {"sampler": "seed", "version": 2}

        with Journal(":memory:") as journal:
            drawn_from(ITEMS, SeedSampler(), journal)
            other = Other()
            drawn_from(ITEMS, other, journal)
            assert len(other.calls) == 4

    def test_numbers_that_are_none_and_broken_text_survive_the_journal(self):
        odd = Sample("half \ud83d of a pair", (-1.0, math.nan, -math.inf), "stop")
        with Journal(":memory:") as journal:
            calls = [drawn_from(ITEMS[:1], SeedSampler(lambda *_: odd), journal, n=1) for _ in range(2)]
        for ((drawn,),) in zip(calls, strict=True):
            (sample,) = drawn.samples
            assert sample.text == "half \ufffd of a pair"
            assert sample.token_logprobs[0] == -1.0 and all(map(math.isnan, sample.token_logprobs[1:]))

    def test_whoever_journals_first_is_believed_by_both_though_a_lease_ran_out(self, tmp_path, monkeypatch):
        path = tmp_path / "journal.sqlite"
        monkeypatch.setattr("tuna_trl.build.leases.TERM", -1.0)
        mine = SeedSampler(lambda *_: Sample("mine", (-1.0,), "stop"))
        theirs = SeedSampler(
            lambda *_: Sample("theirs", (-1.0,), "stop"),
            before=lambda call: drawn_from(ITEMS, mine, path) if call == 0 else None,
        )
        found = drawn_from(ITEMS, theirs, path)
        assert {sample.text for drawn in found for sample in drawn.samples} == {"mine"}

    @pytest.mark.filterwarnings("ignore:Some responses have no ROUGE-L tokens")  # it babbles
    def test_a_resumed_build_of_a_real_model_is_equal_to_the_last_bit(self, tiny_llama, tiny_tokenizer):
        tiny_llama.generation_config.eos_token_id = list(range(40, 60))
        sampler = TransformersSampler(tiny_llama, tiny_tokenizer)
        overrides = {"sampling": Sampling(max_new_tokens=12), "diversity": Diversity(threshold=0.05)}
        expected = drawn_from(ITEMS, sampler, **overrides)
        real = sampler.sample
        with Journal(":memory:") as journal:
            for stop in (1, 3):
                calls = itertools.count()

                def stopped(*args, stop=stop, calls=calls, **kwargs):
                    if next(calls) == stop:
                        raise Stop
                    return real(*args, **kwargs)

                sampler.sample = stopped
                with pytest.raises(Stop):
                    drawn_from(ITEMS, sampler, journal, **overrides)
            sampler.sample = real
            assert 0 < journal.count() < 4
            assert drawn_from(ITEMS, sampler, journal, **overrides) == expected


def rouge(texts):
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    values = [scorer.score(a, b)["rougeL"].fmeasure for a, b in itertools.combinations(texts, 2)]
    return max(values, default=0.0), sum(values) / len(values) if values else 0.0


ANSWERS = ["the red fox ran", "the red fox sat", "a blue whale swims", "stones do not talk", "the red fox ran home"]


def answer(text, temperature, seed, place):
    noise = hashlib.sha256(f"{text}|{temperature}|{seed}".encode()).digest()
    return Sample(ANSWERS[noise[0] % len(ANSWERS)], (-noise[1] / 9 - 0.1,), "stop")


def read_from(source, taken):
    for item in source:
        taken.append(item)
        yield item


ASK = Ask(3, Sampling(), 7, bucket_size=2)


class TestWindows:
    @settings(max_examples=40, deadline=None)
    @given(
        texts=st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=12),
        window=st.integers(1, 13),
        size=st.integers(1, 4),
    )
    def test_each_window_is_drawn_by_itself_and_the_samples_are_those_of_one_window(self, texts, window, size):
        items, sampler, taken = prompt_items([{"prompt": text} for text in texts]), SeedSampler(), []
        ask, calls = Ask(2, Sampling(), 7, bucket_size=size), []
        with Journal(":memory:") as journal:
            options = dict(journal=journal, window_size=window, show_progress=False)
            found = []
            for drawn in draw_each(read_from(items, taken), sampler, ask, **options):
                assert len(taken) <= -(-(len(found) + 1) // window) * window
                found.append(drawn)
        assert found == drawn_from(items, SeedSampler(), n=2, bucket_size=size)
        for start in range(0, len(texts), window):
            part = texts[start : start + window]
            order = sorted(range(len(part)), key=lambda i: (len(part[i]), i))
            calls += [tuple(part[i] for i in order[k : k + size]) for k in range(0, len(part), size)]
        assert [call[0] for call in sampler.calls] == calls

    def test_a_window_size_below_one_is_refused(self):
        with Journal(":memory:") as journal, pytest.raises(InputError, match="`window_size` must be at least 1"):
            list(draw_each(ITEMS, SeedSampler(), ASK, journal=journal, window_size=0))

    def test_a_bad_lease_is_given_back_when_a_bucket_fails(self, tmp_path):
        with Journal(tmp_path / "j") as journal, Journal(tmp_path / "j") as other:
            with pytest.raises(Stop):
                drawn_from(ITEMS, SeedSampler(before=stop_at(1)), journal)
            assert len(drawn_from(ITEMS, SeedSampler(), other)) == 7
            assert other.sent_again() == 0


class TestLongerBuilds:
    @settings(max_examples=40, deadline=None)
    @given(limits=st.lists(st.integers(1, 7), min_size=1, max_size=4), size=st.integers(1, 4))
    def test_a_longer_build_asks_only_for_what_shorter_ones_have_not(self, limits, size):
        with Journal(":memory:") as journal:
            asked = set()
            for limit in [*limits, 7]:
                sampler = SeedSampler()
                found = drawn_from(ITEMS[:limit], sampler, journal, bucket_size=size)
                assert found == drawn_from(ITEMS[:limit], SeedSampler(), bucket_size=size)
                fresh = [seeds for call in sampler.calls for seeds in call[3]]
                assert asked.isdisjoint(fresh) and len(fresh) == len(set(fresh))
                asked.update(fresh)
            assert len(asked) == 7

    def test_a_changed_prompt_leaves_its_neighbours_alone(self):
        with Journal(":memory:") as journal:
            drawn_from(ITEMS, SeedSampler(), journal)
            sampler = SeedSampler()
            drawn_from(prompt_items([{"prompt": text} for text in ["new", *TEXTS[1:]]]), sampler, journal)
            assert [call[0] for call in sampler.calls] == [("new",)]

    def test_a_longer_build_killed_and_gone_on_with_is_the_one_that_was_not(self):
        def longer(journal, stop=None):
            sampler = SeedSampler(before=stop_at(stop))
            try:
                return drawn_from(ITEMS, sampler, journal), sampler.calls
            except Stop:
                return None, sampler.calls

        with Journal(":memory:") as one, Journal(":memory:") as other:
            for journal in (one, other):
                drawn_from(ITEMS[:3], SeedSampler(), journal)
            whole = longer(one)
            first, second = longer(other, stop=1), longer(other)
        assert first[0] is None and second[0] == whole[0]
        assert first[1] + second[1] == whole[1]


class TestRetries:
    @staticmethod
    def failing(seeds):
        def make(text, temperature, seed, place):
            bad = text == "short" and seed in seeds
            return Sample("odd", (), "stop") if bad else SeedSampler._sample(text, temperature, seed, place)

        return SeedSampler(make)

    def test_what_failed_is_drawn_again_with_new_seeds_once_a_run_and_then_counts(self):
        first = {sample_seed(7, ITEMS[i], 1, k) for i in (1, 3) for k in range(3)}
        second = {sample_seed(7, ITEMS[1], 1001, k) for k in range(3)}
        failed = dict(failed=lambda drawn: not all(s.token_logprobs for s in drawn.samples))
        with Journal(":memory:") as journal:

            def run(seeds, retry):
                sampler = self.failing(seeds)
                options = dict(journal=journal, retry=retry, show_progress=False, **failed)
                found = list(draw_each(ITEMS, sampler, ASK, **options))
                return [i for i, drawn in enumerate(found) if failed["failed"](drawn)], sampler.calls

            assert run(first, False)[0] == [1, 3]
            assert run(first, False) == ([1, 3], [])
            still, calls = run(first | second, True)
            assert still == [1] and [call[0] for call in calls] == [("short",), ("short",)]
            assert run(first | second, False) == ([1], [])
            still, calls = run(first | second, True)
            assert still == [] and [call[0] for call in calls] == [("short",)]
            assert run(first | second, False) == ([], [])


class TestShares:
    def test_helpers_draw_what_the_first_has_not_begun_and_yield_nothing(self, tmp_path):
        helper, first = SeedSampler(), SeedSampler()
        with Journal(tmp_path / "j") as journal:
            options = dict(journal=journal, window_size=4, show_progress=True)
            assert list(draw_each(ITEMS, helper, ASK, share=Share(1, 2), **options)) == []
            found = list(draw_each(ITEMS, first, ASK, share=Share(0, 2), **options))
        assert len(helper.calls) == 4 and first.calls == [] and len(found) == 7

    def test_each_begins_with_buckets_of_its_own(self, tmp_path):
        orders = []
        for rank in range(2):
            sampler = SeedSampler()
            with Journal(tmp_path / str(rank)) as journal:
                list(draw_each(ITEMS, sampler, ASK, journal=journal, share=Share(rank, 2), show_progress=False))
            orders.append([call[0] for call in sampler.calls])
        assert set(orders[0][:2]).isdisjoint(orders[1][:2]) and sorted(orders[0]) == sorted(orders[1])


class TestDiversity:
    @settings(max_examples=60, deadline=None)
    @given(
        texts=st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=6, unique=True),
        n=st.integers(1, 3),
        diversity=st.builds(Diversity, threshold=st.sampled_from([0.2, 0.75, 0.8, 1.0]), max_tries=st.integers(1, 4)),
        size=st.integers(1, 4),
    )
    def test_each_prompt_follows_the_papers_rule_whatever_its_bucket(self, texts, n, diversity, size):
        items, sampler = prompt_items([{"prompt": text} for text in texts]), SeedSampler(answer)
        found = drawn_from(items, sampler, n=n, bucket_size=size, diversity=diversity)
        for drawn in found:
            tries = []
            for attempt in range(1, diversity.max_tries + 1):
                temperature = round(1.0 + 0.1 * (attempt - 1), 9)
                seeds = [sample_seed(7, drawn.item, attempt, k) for k in range(n)]
                samples = tuple(answer(drawn.item.prompt[0]["content"], temperature, seed, 0) for seed in seeds)
                largest, mean = rouge([sample.text for sample in samples])
                tries.append((mean, samples, temperature, largest))
                if largest < diversity.threshold:
                    kept = tries[-1]
                    break
            else:
                kept = min(tries, key=lambda each: each[0])
            assert drawn.tries == len(tries)
            assert (drawn.samples, drawn.temperature) == kept[1:3]
            assert drawn.max_rouge == pytest.approx(kept[3], abs=1e-12)

    def test_only_prompts_whose_answers_are_alike_are_drawn_again_and_hotter(self):
        def alike_if_short(text, temperature, seed, place):
            return Sample("all the same" if len(text) < 6 else f"quite{place} another{place}", (-1.0,), "stop")

        sampler = SeedSampler(alike_if_short)
        found = drawn_from(ITEMS, sampler, bucket_size=5, diversity=Diversity(0.8, 0.25, 3))
        again = [(texts, temperature) for texts, _, temperature, _ in sampler.calls]
        assert again == [
            (("x", "short", "short", "mid length", "mid lengtH"), 1.0),
            (("x", "short", "short"), 1.25),
            (("x", "short", "short"), 1.5),
            (("a longer prompt", "another long prompt"), 1.0),
        ]
        # equally alike in every try: the first, coolest set is kept
        assert [(drawn.tries, drawn.temperature) for drawn in found] == [
            (1, 1.0), (3, 1.0), (1, 1.0), (3, 1.0), (3, 1.0), (1, 1.0), (1, 1.0),
        ]  # fmt: skip

    def test_a_set_that_passes_is_kept_before_one_that_failed_with_a_lower_mean(self):
        # first try: two of three equal, mean 1/3; second: every pair shares 3 of 5 words, mean 0.6, largest 0.6
        tries = {1.0: ["a b c d e", "a b c d e", "v w x y z"], 1.1: ["a b c d e", "a b c f g", "a b c h i"]}
        sampler = SeedSampler(lambda text, temperature, seed, k: Sample(tries[temperature][k], (-1.0,), "stop"))
        (drawn,) = drawn_from(ITEMS[:1], sampler, diversity=Diversity())
        assert [sample.text for sample in drawn.samples] == tries[1.1]
        assert (drawn.tries, drawn.temperature, drawn.max_rouge) == (2, 1.1, pytest.approx(0.6))

    @pytest.mark.parametrize(
        "values", [{"threshold": 0}, {"threshold": 1.1}, {"temperature_step": -0.1}, {"max_tries": 0}], ids=str
    )
    def test_values_out_of_range_are_refused(self, values):
        with pytest.raises(InputError, match=rf"`diversity.{next(iter(values))}`"):
            Diversity(**values)


class TestProgress:
    def test_a_file_gets_one_line_at_start_and_end_with_what_was_there_already(self, capfd):
        with Journal(":memory:") as journal:
            with pytest.raises(Stop):
                drawn_from(ITEMS, SeedSampler(before=stop_at(3)), journal, show_progress=True)
            assert capfd.readouterr().err.splitlines() == ["Sampling from seed-sampler: 7 prompts to go."]
            drawn_from(ITEMS, SeedSampler(), journal, show_progress=True)
        assert capfd.readouterr().err.splitlines() == [
            "Sampling from seed-sampler: 7 prompts to go.",
            "Sampling from seed-sampler: done (3 of 4 buckets were already in the journal).",
        ]

    def test_nothing_is_said_when_not_asked_to(self, capfd):
        drawn_from(ITEMS, SeedSampler(), show_progress=False)
        assert capfd.readouterr() == ("", "")


BUILD = """
    import json, os, signal, sys
    from doubles.samplers import SeedSampler
    from tuna_trl.build.teacher import TeacherBuildConfig, build_teacher_ranked

    journal, parquet, log, kill_at, prompts = sys.argv[1:]

    def before(call):
        if call == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)

    class Logged(SeedSampler):
        def sample(self, prompts, n, sampling, *, seeds):
            found = super().sample(prompts, n, sampling, seeds=seeds)
            with open(log, "a") as file:
                file.write(json.dumps(self.calls[-1][0]) + "\\n")
            return found

    config = TeacherBuildConfig(bucket_size=2, journal=journal, show_progress=False)
    rows = [{"prompt": text} for text in json.loads(prompts)]
    build_teacher_ranked(rows, Logged(before=before), config)["train"].to_parquet(parquet)
"""


def build(folder, name, journal, kill_at=-1):
    """One build in a process of its own: (exit code, the calls it finished, the parquet's bytes if there are any)."""
    parquet, log = folder / f"{name}.parquet", folder / f"{name}.log"
    arguments = [folder / journal, parquet, log, kill_at, json.dumps(TEXTS)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    command = [sys.executable, "-c", textwrap.dedent(BUILD), *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    calls = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    assert result.returncode in (0, -signal.SIGKILL), result.stderr
    return result.returncode, calls, parquet.read_bytes() if parquet.exists() else None


def test_a_build_killed_in_a_bucket_resumes_there_and_ends_in_the_same_bytes(tmp_path):
    code, all_calls, expected = build(tmp_path, "whole", "whole.sqlite")
    assert code == 0 and len(all_calls) == 4
    code, first_calls, nothing = build(tmp_path, "killed", "journal.sqlite", kill_at=2)
    assert code == -signal.SIGKILL and nothing is None
    code, later_calls, found = build(tmp_path, "resumed", "journal.sqlite")
    assert code == 0
    assert first_calls + later_calls == all_calls and len(first_calls) == 2
    assert found == expected


def test_an_item_is_what_it_was(tmp_path):
    # `draw` takes any items, not only consecutive ones: occurrence and id come from the item, not from its place
    (moved,) = drawn_from([replace(ITEMS[3], reference="r")], SeedSampler())
    assert moved.samples == drawn_from(ITEMS, SeedSampler())[3].samples


def test_the_tokenizer_of_the_diversity_check_is_part_of_the_journals_key_only_where_it_is_not_the_default():
    assert "tokenizer" not in Diversity().key()
    assert Diversity(tokenizer="unicode").key()["tokenizer"] == "unicode"
    with pytest.raises(InputError, match="`diversity.tokenizer` is 'unicod', expected one of rouge, unicode.*unicode"):
        Diversity(tokenizer="unicod")
