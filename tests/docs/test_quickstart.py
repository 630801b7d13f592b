"""The quickstart's commands run as typed, in order, and say what the page shows (on a tiny model, so no figures)."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "quickstart.md"
FILES = ROOT / "examples" / "quickstart"


def transcript() -> list[tuple[str, list[str]]]:
    """(command, lines of output as shown), in order."""
    found: list[tuple[str, list[str]]] = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("    $ "):
            found.append((line.removeprefix("    $ "), []))
        elif line.startswith("    ") and found:
            found[-1][1].append(line.removeprefix("    "))
    return found


def test_the_page_shows_the_files_as_they_are():
    page = PAGE.read_text(encoding="utf-8")
    assert (FILES / "train.yaml").read_text(encoding="utf-8") in page
    rows = [json.loads(line) for line in (FILES / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 20
    assert all(len(row["responses"]) == 3 and row["scores"] == [2, 1, 0] for row in rows)


@pytest.fixture
def shell(tmp_path, tiny_folder, monkeypatch, capfd):
    """Runs a command of the page and gives what it prints; the embedded model is the tiny one."""
    from tuna_trl.cli import main

    copies = tmp_path / "examples" / "quickstart"
    shutil.copytree(FILES, copies)
    config = copies / "train.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("embedded", str(tiny_folder)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def run(command: str) -> str:
        words = shlex.split(command.replace("embedded", str(tiny_folder)))
        if words[0] == "cd":
            monkeypatch.chdir(words[1])
        elif words[0] == "tuna-trl":
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as stop:
                main()
            assert not stop.value.code, capfd.readouterr().err
        elif words[0] == "python":
            subprocess.run([sys.executable, *words[1:]], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        elif words[0] != ".":  # activation: the tests run in their environment already
            subprocess.run(command, shell=True, check=True)
        return capfd.readouterr().out.replace(str(tiny_folder), "embedded")

    return run


def test_every_command_runs_and_says_what_is_shown(shell):
    shown = 0
    for command, lines in transcript():
        said = shell(command)
        for line in [] if command.startswith("tuna-trl generate") else lines:
            # figures and answers are those of another model; what holds none must be there to the letter
            if line.strip() and "…" not in line and not re.search(r"\d| -> |^\s*\|", line):
                assert line in said.splitlines(), f"{command} does not say {line!r}"
                shown += 1
    assert shown >= 3
