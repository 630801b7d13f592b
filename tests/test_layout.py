"""The arrows of the layout: who may import whom. Read from the source, so that a lazy import counts too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1] / "tuna_trl"

# layer of each part; a part may import parts of its own or a lower layer, and what `FORBIDDEN` does not name
LAYERS = {
    "errors": 0,
    "library_notes": 0,
    "_version": 0,
    "py": 0,
    "metrics": 0,
    "losses": 0,
    "accelerate_configs": 0,
    "head": 0,
    "sharding": 0,
    "packing": 0,
    "collator": 0,
    "tokens": 0,
    "data": 1,
    "config": 1,
    "attention": 2,
    "layouts": 2,
    "sampler": 2,
    "checkpoints": 2,
    "scoring": 2,
    "loading": 2,
    "adapters": 2,
    "batch_metrics": 2,
    "callbacks": 2,
    "memory_error": 2,
    "setup_arguments": 3,
    "argument_checks": 3,
    "model_card": 3,
    "config_table": 3,
    "reference_model": 3,
    "ranking_table": 3,
    "trainer": 3,
    "clients": 3,
    "build": 4,
    "evaluation": 4,
    "report": 4,
    "pipelines": 5,
    "estimate": 5,
    "cli": 6,
    "__main__": 7,
    "__init__": 7,
}
FORBIDDEN = {
    "trainer": {"clients", "build", "evaluation", "report"},
    "clients": {"trainer", "build", "evaluation"},
    "report": {"trainer", "clients", "build", "evaluation", "scoring"},
    "build": {"trainer", "evaluation"},
}


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """The parts of the package that a module imports relatively, at the top or inside a function."""
    package = ["tuna_trl", *path.relative_to(ROOT).parts[:-1]]
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            module = [*base, *(node.module.split(".") if node.module else [])]
            if len(module) > 1:
                found.add(module[1])
            else:
                found |= {alias.name for alias in node.names}
    return found


MODULES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_imports_from_a_layer_above_it(path):
    own = part(path)
    assert own in LAYERS, f"{own} has no layer; give it one"
    if own == "__init__":
        return
    for other in imported_parts(path):
        assert other in LAYERS, f"{path}: imports {other}, which has no layer"
        assert LAYERS[other] <= LAYERS[own], f"{path} (layer {LAYERS[own]}) imports {other} (layer {LAYERS[other]})"
        assert other not in FORBIDDEN.get(own, set()), f"{path} imports {other}"


def test_the_reader_of_imports_sees_lazy_ones():
    assert "collator" in imported_parts(ROOT / "scoring.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(path):
    text = path.read_text(encoding="utf-8")
    if text.strip() and path.name not in ("_version.py",):
        assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"


def test_pytest_goes_into_every_folder_of_tests(request):
    """Its default leaves out folders called build, so that tests/build was not run for a while."""
    import fnmatch

    skipped = request.config.getini("norecursedirs")
    folders = [path for path in Path(__file__).parent.rglob("*") if path.is_dir() and path.name != "__pycache__"]
    assert folders and not [f for f in folders for pattern in skipped if fnmatch.fnmatch(f.name, pattern)]
