"""The API pages, docs/api/*.md, from docstrings: `make docs`. Reads the source by griffe and imports none of it.

What is on which page, and in which order, stands in `PAGES`; tests/docs/test_api.py says what has to be there.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import griffe
from api_pages import PAGES, Page


ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "api"
WIDTH = 119
LINK = re.compile(r"\[`([\w.]+)(\(\))?`\](?!\()")
HEADINGS = {"parameters": "Arguments", "other parameters": "More arguments", "attributes": "Attributes"}


def load() -> griffe.Object:
    """The package as griffe reads it. Where a class is a dataclass, its fields are its parameters."""
    return griffe.load("tuna_trl", search_paths=[str(ROOT)], try_relative_path=False, allow_inspection=False)


def resolve(package: griffe.Object, path: str) -> griffe.Object:
    """What a dotted path names; one that `tuna_trl` has lazily is found under TYPE_CHECKING."""
    found = package[path.removeprefix("tuna_trl.")]
    return found.final_target if found.is_alias else found


def methods(thing: griffe.Object) -> list[griffe.Object]:
    """The members of a class that its page shows: those with a docstring and no underscore, and `__call__`."""
    if not thing.is_class:
        return []
    own = [m for m in thing.members.values() if not m.is_alias and m.docstring and (m.is_function or property_(m))]
    return [m for m in own if m.name == "__call__" or not m.name.startswith("_")]


def property_(thing: griffe.Object) -> bool:
    return "property" in thing.labels


def parameters(thing: griffe.Object) -> list[griffe.Parameter]:
    """What a call passes: no `self`, no `cls`; of a class, what its constructor takes."""
    if thing.is_class:
        thing = thing.members.get("__init__", thing)
        given = thing.parameters if thing.is_function else []
    else:
        given = thing.parameters if thing.is_function else []
    return [p for p in given if p.name not in ("self", "cls")]


def bases(thing: griffe.Object) -> list[str]:
    """What a class extends, as far as a user knows it."""
    named = [str(base) for base in thing.bases] if thing.is_class else []
    return [base for base in named if base != "Protocol" and not base.startswith("_")]


def signature(thing: griffe.Object) -> str:
    """As Python would write it; over several lines where one is too narrow."""
    if thing.is_attribute:
        return f"{thing.name}: {thing.annotation}" if property_(thing) else f"{thing.name} = {thing.value}"
    if thing.is_class and any(str(base) == "Protocol" for base in thing.bases):
        fields = [m for m in thing.members.values() if m.is_attribute and not property_(m)]
        lines = [f"    {m.name}: {m.annotation}" for m in fields]
        return "\n".join([f"class {thing.name}(Protocol):", *lines])
    if bases(thing) and "__init__" not in thing.members:
        return f"class {thing.name}({', '.join(bases(thing))})"
    shown: list[str] = []
    star = False
    for p in parameters(thing):
        prefix = {"variadic positional": "*", "variadic keyword": "**"}.get(p.kind.value, "")
        if p.kind.value == "keyword-only" and not star:
            shown.append("*")
        star = star or prefix == "*" or p.kind.value == "keyword-only"
        hint = f": {p.annotation}" if p.annotation is not None else ""
        default = "" if p.default is None or prefix else f" = {p.default}" if hint else f"={p.default}"
        shown.append(f"{prefix}{p.name}{hint}{default}")
    returns = f" -> {thing.returns}" if thing.is_function and thing.returns is not None else ""
    line = f"{thing.name}({', '.join(shown)}){returns}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{thing.name}(", *(f"    {one}," for one in shown), f"){returns}"])


class Pages:
    """The pages as text, and where each name stands."""

    def __init__(self, pages: tuple[Page, ...] = PAGES):
        self.package, self.pages = load(), pages
        self.things = {path: resolve(self.package, path) for page in pages for path in page.names}
        self.places: dict[str, str] = {}
        for page in pages:
            for path in page.names:
                thing = self.things[path]
                for member in ("", *(f".{method.name}" for method in methods(thing))):
                    place = f"{page.file}#{thing.name}{member.removeprefix('.')}".lower()
                    self.places |= {f"{name}{member}": place for name in (path, thing.path, thing.name)}

    def text(self, page: Page) -> str:
        """One page."""
        parts = [f"# {page.title}", f"{page.about} [All pages](README.md)."]
        parts.append("\n".join(self._entry(path, page) for path in page.names))
        for path in page.modules:
            text = self._linked(fenced(resolve(self.package, path).docstring.value), page)
            parts += [f"**`{path}`**", text]
        for path in page.names:
            thing = self.things[path]
            module, _, name = path.rpartition(".")
            parts += [f"## `{name}`", f"`from {module} import {name}`", *self._body(thing, page)]
            for method in methods(thing):
                parts += [f"### `{name}.{method.name}`", *self._body(method, page)]
        return "\n\n".join(part for part in parts if part) + "\n"

    def index(self) -> str:
        """The page that leads to the others."""
        head = (
            "# The API\n\nGenerated from the docstrings by `make docs`; a name that is not here may change without "
            "notice ([what may change when](../compatibility.md))."
        )
        pages = []
        for page in self.pages:
            names = [f"[`{path.rpartition('.')[2]}`]({self.places[path]})" for path in page.names]
            pages.append(f"- [{page.title}]({page.file}): {', '.join(names)}.")
        return "\n".join([head, "", *pages]) + "\n"

    def _entry(self, path: str, page: Page) -> str:
        docstring = self.things[path].docstring
        first = re.split(r"(?<=\.)\s+(?=[A-Z`\"])|\n\n", docstring.value.strip(), maxsplit=1)[0] if docstring else ""
        place = self.places[path].removeprefix(page.file)
        return f"- [`{path.rpartition('.')[2]}`]({place}): {self._linked(' '.join(first.split()), page).rstrip(':')}"

    def _body(self, thing: griffe.Object, page: Page) -> list[str]:
        parts = [f"```python\n{signature(thing)}\n```"]
        if bases(thing) and "__init__" in thing.members:
            parts.append(f"Extends {', '.join(self._link(base, page.file) for base in bases(thing))}.")
        if thing.docstring:
            options = {"returns_multiple_items": False, "returns_named_value": False, "warnings": False}
            for section in thing.docstring.parse("google", **options):
                parts += self._section(section, page, str(getattr(thing, "returns", None)))
        return parts

    def _section(self, section: griffe.DocstringSection, page: Page, returns: str) -> list[str]:
        kind = section.kind.value
        if kind == "text":
            return [self._linked(fenced(section.value.replace("Args: as [", "Arguments: as [")), page)]
        if kind == "admonition":
            return [f"**{section.title}**", self._linked(fenced(section.value.description), page)]
        if kind == "examples":
            return ["**Examples**", fenced("\n\n".join(text for _, text in section.value))]
        if kind in HEADINGS:
            lines = [(", ".join(f"`{n}`" for n in item.name.split(", ")), item.description) for item in section.value]
            return [f"**{HEADINGS[kind]}**", "\n".join(self._item(name, text, page) for name, text in lines)]
        if kind == "raises":
            kinds = [re.findall(r"[\w.]+", str(item.annotation)) for item in section.value]
            shown = [self._linked(", ".join(f"[`{kind}`]" for kind in one), page) for one in kinds]
            lines = list(zip(shown, (item.description for item in section.value), strict=True))
            return ["**Raises**", "\n".join(self._item(name, text, page) for name, text in lines)]
        # griffe reads "what: description" as a type; without one it gives the annotation
        texts = []
        for item in section.value:
            of = "" if item.annotation is None else str(item.annotation)
            texts.append(item.description if of in ("", returns) else f"{of}: {item.description}")
        return [f"**{kind.capitalize()}**", self._linked("\n\n".join(texts), page)]

    def _item(self, name: str, text: str, page: Page) -> str:
        return f"- {name}: " + self._linked(text.strip().replace("\n", "\n  "), page)

    def _linked(self, text: str, page: Page) -> str:
        """[`name`] as a link where the name has a page, and as mere code where it has none."""
        return LINK.sub(lambda m: self._link(m[1], page.file, m[2] or ""), text)

    def _link(self, name: str, here: str, call: str = "") -> str:
        place = self.places.get(name)
        return f"[`{name}{call}`]({place.removeprefix(here)})" if place else f"`{name}{call}`"


def fenced(text: str) -> str:
    """Doctests in fences; the rest is Markdown as it is."""
    blocks = [re.sub(r"  # doctest: \+\w+", "", block) for block in text.split("\n\n")]
    return "\n\n".join(f"```pycon\n{b}\n```" if b.lstrip().startswith(">>> ") else b for b in blocks)


def generated() -> dict[str, str]:
    """File name -> text of every page."""
    pages = Pages()
    return {"README.md": pages.index(), **{page.file: pages.text(page) for page in pages.pages}}


def main() -> int:
    texts = generated()
    FOLDER.mkdir(exist_ok=True)
    for old in {path.name for path in FOLDER.glob("*.md")} - set(texts):
        (FOLDER / old).unlink()
    for name, text in texts.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    sys.stdout.write(f"docs/api: {len(texts)} pages\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
