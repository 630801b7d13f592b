"""Stages: done once, repeated when something before them changed, never taken for done when they were not."""

from __future__ import annotations

import json

import pytest

from tuna_trl.errors import BuildError
from tuna_trl.pipelines.stages import Stages, write_json


def run(folder, settings, *, fail_at=None):
    """Three stages that write their names; returns which of them worked."""
    worked = []
    stages = Stages(folder, say=lambda text: None)

    def work(name):
        if name == fail_at:
            raise KeyboardInterrupt
        worked.append(name)
        (folder / name).write_text(name)

    for name in ("a", "b", "c"):
        stages.run(name, name, settings.get(name, {}), folder / name, lambda name=name: work(name))
    return worked


def test_a_finished_stage_is_not_done_again(tmp_path):
    assert run(tmp_path, {}) == ["a", "b", "c"]
    assert run(tmp_path, {}) == []


def test_a_change_repeats_that_stage_and_all_behind_it_and_no_other(tmp_path):
    run(tmp_path, {})
    assert run(tmp_path, {"b": {"lr": 2}}) == ["b", "c"]


def test_an_interrupted_stage_is_done_by_the_next_run(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, {}, fail_at="b")
    assert run(tmp_path, {}) == ["b", "c"]


def test_a_stage_whose_output_is_gone_is_done_again(tmp_path):
    run(tmp_path, {})
    (tmp_path / "b").unlink()
    assert run(tmp_path, {}) == ["b"]


def test_only_an_unfinished_stage_of_the_same_settings_is_gone_on_from(tmp_path):
    seen = []

    def stage(settings, fail):
        stages = Stages(tmp_path, say=lambda text: None)

        def work():
            seen.append(stages.went_on)
            if fail:
                raise KeyboardInterrupt
            (tmp_path / "out").write_text("")

        stages.run("a", "a", settings, tmp_path / "out", work)

    for settings, fail in [({}, True), ({}, True), ({"lr": 2}, True), ({"lr": 2}, False)]:
        try:
            stage(settings, fail)
        except KeyboardInterrupt:
            pass
    (tmp_path / "out").unlink()
    stage({"lr": 2}, False)  # finished, and what it left was deleted
    assert seen == [False, True, False, True, False]


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "stages.json").write_text("{")
    with pytest.raises(BuildError, match="stages.json is damaged"):
        Stages(tmp_path, say=print)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    with pytest.raises(BuildError, match="could not be written"):
        write_json(tmp_path / "no" / "x.json", {})
