"""The examples run, on a tiny model, as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("[0-9]*.py"))


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_an_example_is_short_and_runs(path, tmp_path, tiny_folder):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 120
    result = subprocess.run(
        [sys.executable, str(path), str(tiny_folder)],
        cwd=tmp_path,  # its outputs go under the working folder
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "->" in result.stdout
