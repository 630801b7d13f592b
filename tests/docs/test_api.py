"""docs/api is what the docstrings say: the committed pages, the names on them, and every argument of every name."""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections import Counter
from pathlib import Path

import griffe
import pytest

import tuna_trl


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))
import build_api  # noqa: E402
from api_pages import PAGES  # noqa: E402


API = build_api.Pages()
NAMES = [path for page in PAGES for path in page.names]
THINGS = {thing.path: thing for path in NAMES for thing in (API.things[path], *build_api.methods(API.things[path]))}
REFERENCE = re.compile(r"Args: as \[`([\w.]+)`\]")
GIT_HUB = str.maketrans("", "", "`.")


def sources() -> list[str]:
    """The Python of the pages and the examples; pages also write it in indented blocks and one-liners."""
    code = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "examples").rglob("*.py"))]
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        fenced = re.findall(r"^ *```python\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
        code += [textwrap.dedent(block) for block in fenced]
        code += re.findall(r"from tuna_trl[\w.]* import \w+(?:, \w+)*", text)
    return code


def imported() -> set[str]:
    """Where the names are defined that pages and examples import from the package."""
    found = set()
    for code in sources():
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tuna_trl":
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {build_api.resolve(API.package, path).path for path in found}


def annotations(thing: griffe.Object) -> list[griffe.Expr]:
    """Of what a call takes and gives back."""
    given = [p.annotation for p in build_api.parameters(thing)]
    return [a for a in [*given, getattr(thing, "returns", None)] if isinstance(a, griffe.Expr)]


def public() -> set[str]:
    """What has to be on a page, by where it is defined."""
    roots = {build_api.resolve(API.package, f"tuna_trl.{name}").path for name in tuna_trl._WHERE}
    roots |= {build_api.resolve(API.package, f"tuna_trl.losses.{n}").path for n in API.package["losses"].exports}
    roots |= imported()
    for path in sorted(roots):
        for annotation in annotations(build_api.resolve(API.package, path)):
            used = {e.canonical_path for e in annotation.iterate() if isinstance(e, griffe.ExprName)}
            ours = [build_api.resolve(API.package, name) for name in used if name.startswith("tuna_trl.")]
            roots |= {thing.path for thing in ours if thing.is_class}
    return roots


def arguments(thing: griffe.Object) -> list[str]:
    """The names of its Args sections (`a, b: ...` documents two)."""
    sections = thing.docstring.parse("google", warnings=False)
    items = [i for section in sections if section.kind.value == "parameters" for i in section.value]
    return [name.lstrip("*") for item in items for name in item.name.split(", ")]


def referred(thing: griffe.Object) -> set[str]:
    """The arguments that a docstring leaves to another's: 'Args: as [`that`]'."""
    found: set[str] = set()
    for name in REFERENCE.findall(thing.docstring.value):
        others = [o for path, o in THINGS.items() if path == name or path.endswith(f".{name}")]
        assert len(others) == 1, f"{thing.path} refers to {name}, which is no public name"
        found |= {*arguments(others[0]), *referred(others[0])}
    return found


def test_the_committed_pages_are_the_generated_ones():
    committed = {path.name: path.read_text(encoding="utf-8") for path in build_api.FOLDER.glob("*.md")}
    generated = build_api.generated()
    assert committed.keys() == generated.keys(), "run `make docs`"
    assert [name for name in generated if committed[name] != generated[name]] == [], "run `make docs`"


def test_the_pages_are_the_same_whoever_makes_them():
    text = "".join(build_api.generated().values())
    assert text == "".join(build_api.generated().values())
    assert str(ROOT) not in text and not re.search(r"0x[0-9a-f]{6}|<\w+ object", text)


def test_every_public_name_stands_on_one_page():
    twice = [name for name, count in Counter(thing.path for thing in API.things.values()).items() if count > 1]
    missing = public() - {thing.path for thing in API.things.values()}
    assert not twice and not missing, f"docs/api_pages.py: twice {twice}, missing {sorted(missing)}"


def test_every_registered_loss_is_public():
    from tuna_trl import losses

    assert {function.__name__ for function in losses._LOSSES.values()} <= set(losses.__all__)


@pytest.mark.parametrize("path", NAMES)
def test_a_page_imports_a_name_from_where_the_package_has_it(path):
    module, _, name = path.rpartition(".")
    if name in tuna_trl._WHERE:
        assert module == "tuna_trl" or module == "tuna_trl.losses", f"{path} is public as tuna_trl.{name}"
    assert module != "tuna_trl" or name in tuna_trl._WHERE


@pytest.mark.parametrize("path", THINGS)
def test_arguments_are_those_of_the_signature(path):
    thing = THINGS[path]
    assert thing.docstring, f"{path} has no docstring"
    own, signature = arguments(thing), [p.name for p in build_api.parameters(thing)]
    assert len(own) == len(set(own)), f"{path} documents an argument twice: {own}"
    assert set(own) <= set(signature), f"{path} takes no {sorted(set(own) - set(signature))}"
    if not thing.docstring.value.startswith("As in transformers"):
        silent = [name for name in signature if name not in own and name not in referred(thing)]
        assert not silent, f"{path} ({thing.filepath.name}:{thing.lineno}) does not say what {silent} are"


@pytest.mark.parametrize("page", ["README.md", *(page.file for page in PAGES)])
def test_links_lead_to_a_heading(page):
    def headings(file: str) -> list[str]:
        lines = (build_api.FOLDER / file).read_text(encoding="utf-8").splitlines()
        return [line.lstrip("# ").translate(GIT_HUB).lower() for line in lines if re.match("#+ `", line)]

    text = (build_api.FOLDER / page).read_text(encoding="utf-8")
    assert len(headings(page)) == len(set(headings(page)))
    assert "[`" not in re.sub(r"\[`[^`\]]+`\]\([^)]+\)", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for file, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
        assert (build_api.FOLDER / (file or page)).resolve().exists(), f"{page} links to {file}"
        assert not anchor or anchor in headings(file or page), f"{page} links to {file}#{anchor}"
