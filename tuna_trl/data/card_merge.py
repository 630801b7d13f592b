"""A card that is written again without losing what a person wrote in it. Texts in, text out; reads and writes no file.

Each section that this package writes stands between two comments that hold a hash of it. A section whose text still
has its hash is ours to replace; one that was edited is a person's, as is all text outside the sections, and stays.
In the YAML, `configs` and `dataset_info` are merged by the name of the config, tags are joined, and a field that a
person set is replaced only by one that was given on purpose.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError


_BEGIN = re.compile(r"^<!-- tuna-trl: ([a-z]+) ([0-9a-f]{16}) -->[ \t]*\n", re.MULTILINE)
_COMPUTED = ("size_categories",)  # no person's to say
_BY_CONFIG = ("configs", "dataset_info")


@dataclass(frozen=True)
class Part:
    """A piece of a card's body: one of our sections by name, or (name None) text that is not ours."""

    name: str | None
    text: str
    hash: str = ""

    @property
    def edited(self) -> bool:
        """Whether a person changed this section since it was written."""
        return self.name is not None and _hash(self.text) != self.hash

    def __str__(self) -> str:
        if self.name is None:
            return self.text
        return f"<!-- tuna-trl: {self.name} {self.hash} -->\n{self.text}\n<!-- /tuna-trl: {self.name} {self.hash} -->"


@dataclass(frozen=True)
class Merged:
    """The card as merged; the names of the sections that a person had edited, which stand as they did; and whether
    text between the sections of the new card was left out, because the old card has its own."""

    text: str
    kept: tuple[str, ...] = ()
    left_out: bool = False


def section(name: str, text: str) -> Part:
    """A section as this package writes it."""
    text = text.strip("\n")
    return Part(name, text, _hash(text))


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """The YAML fields and the body of a card; a card without YAML has none.

    Raises:
        InputError: the YAML cannot be read, so nothing can be merged into it without loss.
    """
    import yaml

    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    found = re.match(r"---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", text, re.DOTALL | re.MULTILINE)
    if not found:
        return {}, text
    try:
        fields = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise InputError(f"The YAML at the head of the README.md that is there cannot be read: {error}.") from error
    if fields is not None and not isinstance(fields, dict):
        raise InputError("The YAML at the head of the README.md that is there holds no `key: value` lines.")
    return fields or {}, text[found.end() :]


def join_card(fields: Mapping[str, Any], parts: Iterable[Part]) -> str:
    """The text of a card from its YAML fields and the pieces of its body."""
    import yaml

    front = yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True, width=120)
    body = "\n\n".join(text for part in parts if (text := str(part).strip("\n")))
    return f"---\n{front}---\n\n{body}\n"


def split_body(body: str) -> list[Part]:
    """The pieces of a body in order. The text of a section is not looked into, so that a foreign text that holds such
    comments cannot end it: the comment behind a section bears the hash of what is before it."""
    parts, start = [], 0
    while found := _BEGIN.search(body, start):
        name, known = found.groups()
        end = body.find(f"\n<!-- /tuna-trl: {name} {known} -->", found.end() - 1)
        if end < 0:  # its end was deleted: nobody's but a person's
            parts.append(Part(None, body[start : found.end()]))
            start = found.end()
            continue
        parts.append(Part(None, body[start : found.start()]))
        parts.append(Part(name, body[found.end() : end], known))
        start = body.index("-->", end) + 3
    parts.append(Part(None, body[start:]))
    return [part for part in parts if part.name or part.text.strip()]


def merge_card(
    old: str | None, new: str, *, given: Collection[str] = (), owned: Collection[str] = (), drop_missing: bool = False
) -> Merged:
    """The new card, with what a person wrote in the old one.

    Args:
        old: the card that is there, None if there is none.
        new: the card as this package writes it now.
        given: YAML fields of `new` that were given on purpose and replace a person's.
        owned: configs that are dropped from the YAML where `new` has none of that name.
        drop_missing: whether unedited sections of `old` go that `new` does not have.

    Raises:
        InputError: the YAML of `old` cannot be read.
    """
    if old is None or not old.strip():
        return Merged(new)
    (old_fields, old_body), (new_fields, new_body) = split_card(old), split_card(new)
    before, after = split_body(old_body), split_body(new_body)
    fields = _merge_fields(old_fields, new_fields, given, owned)
    own = [part.text.strip() for part in before if part.name is None]
    if not own:
        before = _with_text_of(before, after)
    left_out = bool(own) and any(part.name is None and part.text.strip() not in own for part in after)
    kept = tuple(part.name for part in before if part.edited and part.name)
    return Merged(join_card(fields, _merge_parts(before, after, drop_missing)), kept, left_out)


def _with_text_of(before: list[Part], after: list[Part]) -> list[Part]:
    """`before` with the text that stands between the sections of `after`, each behind the section that it follows."""
    result, previous = list(before), None
    for part in after:
        if part.name is None:
            place = next((i + 1 for i, other in enumerate(result) if previous and other.name == previous), None)
            result.insert(place if place is not None else len(result) if previous else 0, part)
        else:
            previous = part.name
    return result


def _merge_fields(
    old: Mapping[str, Any], new: Mapping[str, Any], given: Collection[str], owned: Collection[str]
) -> dict[str, Any]:
    result = dict(old)
    for name, value in new.items():
        if name == "tags":
            result[name] = list(dict.fromkeys([*_listed(old.get(name)), *value]))
        elif name not in _BY_CONFIG and (name in given or name in _COMPUTED or old.get(name) is None):
            result[name] = value
    for name in _BY_CONFIG:
        entries = {_config(entry): entry for entry in _listed(old.get(name))}
        fresh = {_config(entry): entry for entry in _listed(new.get(name))}
        entries = {config: entry for config, entry in entries.items() if config in fresh or config not in owned}
        for config, entry in fresh.items():
            # a person may have added `default: true` to a config; its features and sizes are counted
            entries[config] = {**entries.get(config, {}), **entry} if name == "configs" else entry
        result.pop(name, None)
        if name == "dataset_info" and len(entries) == 1:  # as `datasets` writes it: alone without a list
            (result[name],) = entries.values()
        elif entries:
            result[name] = [{"config_name": config, **entry} for config, entry in entries.items()]
    return result


def _merge_parts(before: list[Part], after: list[Part], drop_missing: bool) -> list[Part]:
    fresh = {part.name: part for part in after if part.name}
    known = {part.name for part in before if part.name}
    if not any(part.name for part in before):  # a person's own page, with a title of its own
        if any(re.search(r"^# ", part.text, re.MULTILINE) for part in before):
            fresh.pop("title", None)
        return [*before, *fresh.values()]
    result: list[Part] = []
    for part in before:
        if part.name is None or part.edited:
            result.append(part)
        elif part.name in fresh:
            result.append(fresh[part.name])
        elif not drop_missing:
            result.append(part)
    previous = None
    for name, part in fresh.items():  # what is new comes behind the section that it follows
        if name not in known:
            places = [i for i, other in enumerate(result) if other.name == previous]
            result.insert(places[-1] + 1 if previous and places else 0 if previous is None else len(result), part)
        previous = name
    return result


def _config(entry: Mapping[str, Any]) -> str:
    return str(entry.get("config_name") or "default")


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _hash(text: str) -> str:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").strip("\n").split("\n")]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:16]
