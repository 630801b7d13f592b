"""The table of layers in docs/architecture.md is what tests/test_layout.py enforces; files that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

from test_layout import FORBIDDEN, LAYERS


ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (\d) \| ([^|]*) \| [^|]* \|([^|]*)\|$", re.MULTILINE)


def named(cell: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", cell))


def test_the_table_has_every_part_in_its_layer_once():
    rows = [(int(layer), part) for layer, parts, _ in ROW.findall(PAGE) for part in re.findall(r"`(\w+)`", parts)]
    assert sorted(rows) == sorted((layer, part) for part, layer in LAYERS.items())


def test_the_table_says_who_must_not_import_whom():
    told = {part: named(never) for _, parts, never in ROW.findall(PAGE) for part in named(parts) if named(never)}
    assert told == FORBIDDEN


def test_the_path_of_a_row_leads_through_files_that_exist():
    path = PAGE.split("## The path of a row")[1].split("\n## ")[0]
    for stop in re.findall(r"│  ([\w/]+(?:, \w+)*) ", path):
        for name in stop.split(", "):
            places = (ROOT / "tuna_trl" / f"{name}.py", ROOT / "tuna_trl" / name)
            assert any(place.exists() for place in places), name


def test_the_index_has_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= set(re.findall(r"\]\((\w+\.md)\)", index))
