"""Every Python block of README and docs runs, in order, one namespace a page, on the tiny model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [code for name, code in BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


def test_the_readme_has_code():
    assert blocks(ROOT / "README.md", "python") and blocks(ROOT / "README.md", "yaml")


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_blocks_run(page, tmp_path, monkeypatch, tiny_folder):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for code in blocks(page, "python"):
        exec(compile(code.replace('"embedded"', repr(str(tiny_folder))), page.name, "exec"), namespace)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "yaml")], ids=lambda p: p.name)
def test_yaml_blocks_name_known_keys_only(page, tmp_path):
    from tuna_trl.cli.run import options_of_verbs
    from tuna_trl.cli.train import _parse
    from tuna_trl.pipelines.recipe import plan, read_recipe

    for code in blocks(page, "yaml"):
        path = tmp_path / "x.yaml"
        path.write_text(code)
        if "stages" in yaml.safe_load(code):
            assert plan(read_recipe(path), options_of_verbs())
            continue
        script, training, model = _parse(path, [])
        assert training.output_dir == yaml.safe_load(code)["output_dir"]


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
