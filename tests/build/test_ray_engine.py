"""Ray Data as the engine: the rows of the local sampler and scorer, and a journal that goes on. Skipped where ray is
absent."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest
from doubles.samplers import SeedSampler
from doubles.scorers import HashScorer

from tuna_trl.build.journal import Journal
from tuna_trl.build.rank import RankConfig, rank_folder, rank_given
from tuna_trl.build.ray_engine import RaySampler
from tuna_trl.build.ray_scoring import RayScorer
from tuna_trl.build.teacher import TeacherBuildConfig, build_teacher_ranked
from tuna_trl.data.hub import load_ranked
from tuna_trl.errors import BuildError, InputError


TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cluster():
    """Two CPUs of this machine, and nothing outside it."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'tuna-trl[ray]'")
    with pytest.MonkeyPatch.context() as patch:  # the workers inherit it
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield ray
        ray.shutdown()


def prompts(n=40):
    return [{"prompt": f"question {i % 23} " + "on and " * (i % 5)} for i in range(n)]


def config(**options):
    return TeacherBuildConfig(**({"bucket_size": 7, "window_size": 20, "show_progress": False} | options))


def without_ray(monkeypatch):
    import builtins

    real = builtins.__import__

    def importing(name, *args, **kwargs):
        if name == "ray":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)


def test_without_ray_the_way_to_get_it_is_said(monkeypatch):
    without_ray(monkeypatch)
    for kind in (RaySampler, RayScorer):
        with pytest.raises(InputError, match=r"pip install 'tuna-trl\[ray\]'"):
            kind(SeedSampler, name="seed-sampler")


@pytest.mark.slow
def test_the_rows_are_those_of_the_local_sampler_and_the_journal_goes_on(cluster, tmp_path):
    expected = build_teacher_ranked(prompts(), SeedSampler(), config())["train"].to_list()
    sampler = RaySampler(SeedSampler, name="seed-sampler", workers=2)
    limited = build_teacher_ranked(prompts(), sampler, config(limit=5, journal=tmp_path / "j"))["train"]
    assert limited.to_list() == build_teacher_ranked(prompts(), SeedSampler(), config(limit=5))["train"].to_list()
    assert build_teacher_ranked(prompts(), sampler, config(journal=tmp_path / "j"))["train"].to_list() == expected
    local = SeedSampler()
    assert build_teacher_ranked(prompts(), local, config(journal=tmp_path / "j"))["train"].to_list() == expected
    assert local.calls == []
    with Journal(tmp_path / "j") as journal:
        assert journal.sent_again() == 0


def tiny_sampler(folder):
    import torch

    from tuna_trl.clients.local import TransformersSampler
    from tuna_trl.loading import load_model, load_tokenizer

    torch.set_num_threads(1)
    return TransformersSampler(load_model(folder, dtype="float32"), load_tokenizer(folder), name="tiny")


@pytest.mark.slow
def test_a_tiny_model_on_ray_gives_the_same_floats(cluster, tiny_folder, monkeypatch):
    import torch

    make = functools.partial(tiny_sampler, str(tiny_folder))
    options = config(max_new_tokens=6, rank_truncated=True)
    threads = torch.get_num_threads()
    try:
        local = build_teacher_ranked(prompts(20), make(), options)["train"].to_list()
    finally:
        torch.set_num_threads(threads)
    on_ray = build_teacher_ranked(prompts(20), RaySampler(make, name="tiny"), options)["train"].to_list()
    assert on_ray == local


def test_an_iterator_and_senseless_numbers_are_refused(cluster):
    with pytest.raises(InputError, match="workers=0"):
        RaySampler(SeedSampler, name="seed-sampler", workers=0)
    with pytest.raises(InputError, match="is an iterator"):
        build_teacher_ranked(iter(prompts()), RaySampler(SeedSampler, name="s"), config())


def test_an_error_of_the_sampler_comes_through(cluster):
    class Refusing(SeedSampler):
        def prompt_lengths(self, prompts):
            raise InputError("`prompts[0]` has too many tokens")

    with pytest.raises(InputError, match="too many tokens"):
        build_teacher_ranked(prompts(), RaySampler(Refusing, name="s"), config())


def given(n=40):
    return [{"prompt": f"question {i % 23}", "responses": ["a", "b " * (i % 7 + 1), f"c {i % 23}"]} for i in range(n)]


def ranking(**options):
    return RankConfig(**({"bucket_size": 7, "window_size": 20, "show_progress": False} | options))


@pytest.mark.slow
def test_scores_on_ray_are_the_local_ones_and_the_journal_goes_on(cluster, tmp_path):
    expected = rank_given(given(), HashScorer(), ranking())["train"].to_list()
    scorer = RayScorer(HashScorer, name="hash-scorer", workers=2)
    limited = rank_given(given(), scorer, ranking(limit=20, journal=tmp_path / "j"))["train"].to_list()
    assert limited == expected[:20]
    folder = rank_folder(given(), scorer, tmp_path / "ds", ranking(journal=tmp_path / "j"))
    assert load_ranked(folder, "train").to_list() == expected
    local = HashScorer()
    assert rank_given(given(), local, ranking(journal=tmp_path / "j"))["train"].to_list() == expected
    assert local.calls == []
    with Journal(tmp_path / "j") as journal:
        assert journal.sent_again() == 0


def tiny_scorer(folder):
    import torch

    from tuna_trl.clients.local_scorer import TransformersScorer
    from tuna_trl.loading import load_model, load_tokenizer

    torch.set_num_threads(1)
    return TransformersScorer(load_model(folder, dtype="float32"), load_tokenizer(folder), name="tiny")


@pytest.mark.slow
def test_a_tiny_model_on_ray_scores_to_the_same_floats(cluster, tiny_folder):
    import torch

    make = functools.partial(tiny_scorer, str(tiny_folder))
    threads = torch.get_num_threads()
    try:
        local = rank_given(given(20), make(), ranking())["train"].to_list()
    finally:
        torch.set_num_threads(threads)
    assert rank_given(given(20), RayScorer(make, name="tiny"), ranking())["train"].to_list() == local


def test_an_iterator_and_a_failing_scorer_are_said(cluster):
    class Refusing(HashScorer):
        def fingerprint(self):
            raise InputError("`tokenizer` has no chat template")

    with pytest.raises(InputError, match="no chat template"):
        rank_given(given(), RayScorer(Refusing, name="s"), ranking())
    with pytest.raises(InputError, match="is an iterator"):
        rank_given(iter(given()), RayScorer(HashScorer, name="s"), ranking())


class BreakingScorer(HashScorer):
    def score_given(self, rows, *, batch_size, max_length):
        raise RuntimeError("out of memory")


@pytest.mark.slow
def test_a_scorer_that_breaks_on_ray_is_a_build_error_and_leaves_no_lease(cluster, tmp_path):
    with pytest.raises(BuildError, match="Ray could not go on"):
        rank_given(given(), RayScorer(BreakingScorer, name="s"), ranking(journal=tmp_path / "j"))
    scorer = HashScorer()
    assert len(rank_given(given(), scorer, ranking(journal=tmp_path / "j"))["train"]) == 40
    with Journal(tmp_path / "j") as journal:
        assert journal.sent_again() == 0
