"""Laws of importing: naming the package costs no framework, and every public name resolves."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import tuna_trl


HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "accelerate", "anthropic", "matplotlib", "pandas")


def loaded_by(statement: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded behind a statement."""
    code = f"import json, sys\n{statement}\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "statement",
    [
        "import tuna_trl; tuna_trl.__version__; dir(tuna_trl)",
        "from tuna_trl import InputError, SchemaError, BuildError, normalise_row",
        "import tuna_trl.data.schema, tuna_trl.tokens, tuna_trl.adapters, tuna_trl.loading, tuna_trl.data.prepare",
        "import tuna_trl.cli",
    ],
)
def test_importing_loads_no_framework(statement):
    assert loaded_by(statement) == set()


def test_every_public_name_resolves_and_is_listed():
    assert dir(tuna_trl) == sorted(tuna_trl.__all__)
    for name in tuna_trl.__all__:
        assert getattr(tuna_trl, name) is not None, name
    assert set(tuna_trl._WHERE) == set(tuna_trl.__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'tuna_trl' has no attribute 'TunaTrainr'"):
        _ = tuna_trl.TunaTrainr


def test_the_names_for_type_checkers_are_the_names_that_resolve():
    import ast
    from pathlib import Path

    tree = ast.parse(Path(tuna_trl.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    declared = {alias.name: "." + node.module for node in block.body for alias in node.names}
    assert declared == tuna_trl._WHERE
