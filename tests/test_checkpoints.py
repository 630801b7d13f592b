"""Checkpoints of a run that begins anew: kept, and never taken for its own."""

from __future__ import annotations

from tuna_trl.checkpoints import set_checkpoints_aside


def test_checkpoints_are_moved_and_nothing_else(tmp_path):
    for name in ("checkpoint-2", "checkpoint-10"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    (tmp_path / "README.md").write_text("")
    aside = set_checkpoints_aside(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "before-restart-1"]
    assert {(path.name, (path / "weights").read_text()) for path in aside.iterdir()} == {
        ("checkpoint-2", "checkpoint-2"),
        ("checkpoint-10", "checkpoint-10"),
    }


def test_a_second_restart_keeps_both(tmp_path):
    for _ in range(2):
        (tmp_path / "checkpoint-2").mkdir()
        last = set_checkpoints_aside(tmp_path)
    assert last.name == "before-restart-2" and (tmp_path / "before-restart-1" / "checkpoint-2").is_dir()


def test_a_folder_without_checkpoints_stays_as_it_is(tmp_path):
    assert set_checkpoints_aside(tmp_path) is None and set_checkpoints_aside(tmp_path / "none") is None
    assert list(tmp_path.iterdir()) == []
