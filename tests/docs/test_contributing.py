"""CONTRIBUTING.md works: its recipes, done in a copy of the tree, pass their tests and the linter."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
PAGE = ROOT / "CONTRIBUTING.md"
BLOCK = re.compile(
    r"^```python\n# (?P<file>[\w/.]+)"
    r"(?:, (?P<where>behind|instead of): (?P<line>[^\n]*)|(?P<end>, at its end))?\n"
    r"(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
CHECKS = {
    "A ranking loss": ["tests/losses/test_all_losses.py", "-k", "ranknet or every"],
    "A judge": ["tests/clients/test_numeric.py"],
    "A teacher behind a network": ["tests/clients/test_own_server.py"],
    "An importer": ["tests/data/convert/test_importing.py", "-k", "stack_exchange or every"],
}


def sections() -> dict[str, str]:
    """Title -> text of the sections that hold recipes."""
    parts = re.split(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {title: text for title, text in zip(parts[::2], parts[1::2], strict=True) if "```python" in text}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The tree with all recipes done."""
    target = tmp_path_factory.mktemp("contributed")
    ignore = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
    for folder in ("tuna_trl", "tests", "docs"):
        shutil.copytree(ROOT / folder, target / folder, ignore=ignore)
    for name in ("setup.cfg", ".ruff.toml"):
        shutil.copy(ROOT / name, target / name)
    for text in sections().values():
        blocks = list(BLOCK.finditer(text))
        assert len(blocks) == text.count("```python"), "a block does not say which file it belongs to"
        for block in blocks:
            _done(target / block["file"], block)
    return target


def _done(path: Path, block: re.Match[str]) -> None:
    """Do what one block says."""
    if block["end"]:
        return path.write_text(path.read_text(encoding="utf-8") + "\n\n" + block["code"], encoding="utf-8")
    if block["where"] is None:
        assert not path.exists(), f"{block['file']} is there already"
        return path.write_text(block["code"], encoding="utf-8")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    (place,) = [i for i, line in enumerate(lines) if line.strip() == block["line"].strip()]
    start = place if block["where"] == "instead of" else place + 1
    lines[start : place + 1] = [block["code"]]
    path.write_text("".join(lines), encoding="utf-8")


def test_every_recipe_has_a_check():
    assert set(sections()) == set(CHECKS)


def test_what_a_recipe_adds_is_short():
    for block in BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        if block["file"].startswith("tuna_trl/"):
            written = [line for line in block["code"].splitlines() if line.strip() and "import" not in line]
            assert len(written) <= 30, f"{block['file']}: {len(written)} lines"


@pytest.mark.parametrize("title", CHECKS)
def test_a_recipe_passes_its_tests(title, copy):
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CHECKS[title]],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    assert re.search(r"\b[1-9]\d* passed", result.stdout)


def test_what_the_recipes_write_passes_the_linter_and_the_formatter(copy):
    for command in (["check"], ["format", "--check"]):
        files = sorted({block["file"] for block in BLOCK.finditer(PAGE.read_text(encoding="utf-8"))})
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", *files], cwd=copy, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr
