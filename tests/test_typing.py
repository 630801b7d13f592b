"""The public API has types, and a user's type checker sees them: `py.typed`, from an installed wheel."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import packaged
import pytest

import tuna_trl


CONSUMER = packaged.ROOT / "tests" / "typing" / "consumer.py"
WRONG = """\
from tuna_trl import TunaConfig, load_ranked, save_ranked

load_ranked(3)
TunaConfig(output_dir="x", margni=0.1)
TunaConfig(output_dir="x", margin="wide")
length: int = save_ranked
load_ranked("x").no_such_method()
"""


@pytest.fixture(scope="module")
def mypy(tmp_path_factory):
    """mypy with the project's settings, on files outside the checkout, against the package from its wheel."""
    folder = tmp_path_factory.mktemp("consumer")
    wheel, _ = packaged.built(packaged.copied(folder / "source"), folder / "dist")
    python = packaged.environment(folder / "venv", wheel)
    work = folder / "work"
    work.mkdir()
    settings = [f"--config-file={packaged.ROOT / 'setup.cfg'}", f"--python-executable={python}"]
    environment = {name: value for name, value in os.environ.items() if name != "MYPYPATH"}

    def check(**files):
        for name, text in files.items():
            (work / f"{name}.py").write_text(text)
        command = [sys.executable, "-m", "mypy", *settings, "--cache-dir", str(folder / "cache")]
        done = subprocess.run(
            [*command, *(f"{name}.py" for name in files)],
            capture_output=True,
            text=True,
            cwd=work,
            env=environment,
        )
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return done.stdout

    return check


def test_a_strict_consumer_of_every_public_name_is_clean_and_a_wrong_one_is_not(mypy):
    found = mypy(consumer=CONSUMER.read_text(encoding="utf-8"), wrong=WRONG)
    assert not [line for line in found.splitlines() if line.startswith("consumer.py")], found
    wrong = {line.split(":")[1] for line in found.splitlines() if line.startswith("wrong.py") and "error" in line}
    assert {"3", "4", "5", "6"} <= wrong, found


def test_the_consumer_uses_every_public_name():
    tree = ast.parse(CONSUMER.read_text(encoding="utf-8"))
    (names,) = (
        {alias.name for alias in node.names}
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "tuna_trl"
    )
    assert names == set(tuna_trl.__all__) - {"__version__"}
    assert names <= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
