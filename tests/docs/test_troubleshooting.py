"""Each message that the troubleshooting page quotes is still one of ours, or of the library that the page names."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib import util
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
SECTION = re.compile(r"^### (?P<title>[^\n]*)\n\n(?P<text>.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)


def quoted() -> list[tuple[str, str | None]]:
    """(message, module that it is of or None for ours); a message with backquotes inside is alone in its title."""
    found = []
    for section in SECTION.finditer(PAGE.read_text(encoding="utf-8")):
        title, foreign = section["title"], re.match(r"From `([\w.]+)`\.", section["text"])
        if not title.startswith("`"):
            continue  # a symptom without a message
        parts = re.split(r"` (?:and|with) `", title[1:-1])
        for i, part in enumerate(parts):
            found.append((part, foreign[1] if foreign and i == len(parts) - 1 else None))
    return found


def texts_of(path: Path) -> list[str]:
    """The string literals of a file, joined as Python joins them; what an f-string fills in is one `…`."""
    result = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            result.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            result.append(node.value)
    return result


@cache
def ours() -> str:
    """All messages of the package, each on a line of its own (what is put together of parts: on following ones)."""
    files = sorted((ROOT / "tuna_trl").rglob("*.py"))
    return "\n".join(text.replace("\n", " ") for path in files for text in texts_of(path))


@cache
def of(module: str) -> str:
    return "\n".join(text.replace("\n", " ") for text in texts_of(Path(util.find_spec(module).origin)))


def stands_in(message: str, texts: str) -> bool:
    """Whether one of the texts has the fixed parts of a message in their order."""
    parts = [part for part in (part.strip() for part in message.replace("`", "").split("…")) if part]
    pattern = ".*?".join(map(re.escape, parts))
    return bool(parts) and re.search(pattern, texts.replace("`", "")) is not None


def test_the_page_has_messages_of_ours_and_of_others():
    modules = [module for _, module in quoted()]
    assert modules.count(None) >= 30 and len(modules) - modules.count(None) >= 3


@pytest.mark.parametrize(("message", "module"), quoted(), ids=[message[:50] for message, _ in quoted()])
def test_a_quoted_message_exists(message, module):
    # the memory error is put together of lines: each of its parts is a text of its own
    if message.startswith("Out of memory"):
        assert all(stands_in(part, ours()) for part in message.split("…"))
    else:
        assert stands_in(message, ours() if module is None else of(module))


def test_a_message_that_is_not_there_is_not_found():
    assert not stands_in("column … is made of cheese", ours())


@pytest.mark.parametrize("page", ["troubleshooting.md", "quickstart.md", "architecture.md"])
def test_a_flag_that_a_page_names_exists(page):
    """`--flags` in running text are those of tuna-trl, of TunaConfig's parser or of accelerate."""
    from tuna_trl.cli.train import training_names

    named = set(re.findall(r"`[^`\n]*?(--[a-z][\w-]+)", (ROOT / "docs" / page).read_text(encoding="utf-8")))
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tuna_trl" / "cli").glob("*.py"))
    for flag in named:
        plain = flag.removeprefix("--").replace("-", "_")
        assert plain in training_names() or re.search(rf"\b{plain}\b|{flag}\b", source), f"{page} names {flag}"
