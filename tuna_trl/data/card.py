"""The card of a ranked dataset: YAML for the Hub, and a page for people whose every figure is computed from the rows.

Response texts, model names and titles are other people's strings: each goes in through a filter that keeps it from
being read as Markdown or HTML. Writes nothing; [`tuna_trl.data.hub`] and [`tuna_trl.data.push`] do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .card_merge import Merged, join_card, merge_card, section, split_card
from .judgment_summary import summarise_judgments
from .summary import RankedCounter, RankedSummary, rows_of


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_SIZES: tuple[tuple[float, str], ...]
_SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"))
_SIZES += ((1e8, "10M<n<100M"), (1e9, "100M<n<1B"), (1e10, "1B<n<10B"), (1e11, "10B<n<100B"), (1e12, "100B<n<1T"))
_MACHINE = {"teacher_logprob", "judge", "reward_model", "reference"}
_TAGS = ("tuna-trl", "trl", "preference", "ranking")
_ARXIV = "arxiv:2310.13385"
_SHOWN_CHARACTERS = 800  # of each text of the row shown
_SHOWN_RESPONSES = 8
# C0 and C1 controls but tab and newline, and the bidirectional overrides that make text read as what it is not
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def ranked_card(
    dataset_dict: Dataset | DatasetDict | Mapping[str, Any] | CardRows,
    *,
    judgments: Dataset | DatasetDict | Mapping[str, Any] | None = None,
    license: str | None = None,
    extra: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> str:
    """The text of the README.md of a ranked dataset.

    Args:
        dataset_dict: the ranked rows, all splits: anything that can be gone through by split, which is read once, or
            what was read of it before.
        judgments: the judge replies; adds a section on them.
        license: a Hub licence id; never guessed, and its absence is said in the text.
        extra: more YAML fields (`language`, `pretty_name`, `source_datasets`, `configs`, …); `tags` are added to
            ours, every other field stands as given.
        name: what the snippets load: an id on the Hub. By default they name the folder in words.

    Raises:
        InputError: `extra` is no mapping, or gives `license` a second time.
    """
    if extra is not None and (not isinstance(extra, Mapping) or "license" in extra):
        raise InputError(f"`extra` must be a dict of YAML fields without 'license' (an argument), got {extra!r:.80}.")
    extra = dict(extra or {})
    rows = dataset_dict if isinstance(dataset_dict, CardRows) else CardRows(dataset_dict)
    if judgments is not None:
        judgments = summarise_judgments(judgments.values() if isinstance(judgments, Mapping) else judgments)
    body = (
        _environment()
        .get_template("card.md.jinja")
        .render(
            title=str(extra.get("pretty_name") or "") or "Ranked responses",
            s=rows.summary,
            splits=rows.splits,
            judgments=judgments,
            license=None if license is None else str(license),
            methods=list(dict.fromkeys(method for method, _ in rows.summary.rankers)),
            hashes=prompt_hashes(rows.summary.provenance),
            row=rows.typical,
            shown=_SHOWN_RESPONSES,
            name=json.dumps(name or "path/of/this/folder", ensure_ascii=False),
            on_hub=name is not None,
        )
    )
    # the template opens a section by a control character, which no text of a row can hold in here
    parts = [section(*part.split("\n", 1)) for part in body.split("\x1e")[1:]]
    return join_card(_front_matter(rows.summary, license, extra), parts)


def updated_card(
    old: str | None,
    dataset_dict: Any,
    *,
    infos: Mapping[str, Any],
    judgments: Any = None,
    license: str | None = None,
    extra: Mapping[str, Any] | None = None,
    name: str | None = None,
    owned: Collection[str] = (),
    drop_missing: bool = False,
) -> Merged:
    """The card of a dataset whose old card may bear a person's hand: see [`ranked_card`] and [`merge_card`].

    A licence and a name that stand in the old YAML count where none is given.

    Args:
        infos: the YAML fields `configs` and `dataset_info`.
    """
    there = split_card(old)[0] if old else {}
    extra = dict(extra or {})
    given = {*extra, "license"}
    for name_of in ("pretty_name", "language"):
        if there.get(name_of) is not None:
            extra.setdefault(name_of, there[name_of])
    license = there.get("license") if license is None else license
    text = ranked_card(dataset_dict, judgments=judgments, license=license, extra={**extra, **infos}, name=name)
    return merge_card(old, text, given=given, owned=owned, drop_missing=drop_missing)


class CardRows:
    """One pass over the rows: their figures, how many there are by split, and the first that trains as an example."""

    def __init__(self, dataset_dict: Any) -> None:
        from tqdm import tqdm

        splits = dataset_dict if isinstance(dataset_dict, Mapping) else {"train": dataset_dict}
        counter, self.splits, self.typical = RankedCounter(), {}, None
        for split, part in splits.items():
            number = 0
            for row in tqdm(rows_of([part]), desc="summing up", disable=None, delay=3.0):
                counter.add(row)
                number += 1
                if self.typical is None or (self.typical["status"] != "ok" and row["status"] == "ok"):
                    self.typical = row
            self.splits[split] = number
        self.summary = counter.summary()


def prompt_hashes(provenance: Any, path: str = "") -> dict[str, str]:
    """The hashes of prompts and templates in what all rows share, by where they stand.

    >>> prompt_hashes({"judge": {"templates": "0" * 64, "model": "m"}})
    {'judge.templates': '0000000000000000000000000000000000000000000000000000000000000000'}
    """
    if not isinstance(provenance, Mapping):
        return {}
    found: dict[str, str] = {}
    for key, value in provenance.items():
        here = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping):
            found |= prompt_hashes(value, here)
        elif re.search("prompt|template", str(key)) and re.fullmatch("[0-9a-f]{64}", str(value)):
            found[here] = value
    return found


def _front_matter(summary: RankedSummary, license: str | None, extra: dict[str, Any]) -> dict[str, Any]:
    methods = {method for method, _ in summary.rankers}
    tags = [*_TAGS, *(["rlaif"] if "judge" in methods else []), _ARXIV, *(extra.pop("tags", None) or [])]
    fields = {
        "license": license,
        "size_categories": [next((name for limit, name in _SIZES if summary.rows < limit), "n>1T")],
        "task_categories": ["text-generation"],
        "tags": list(dict.fromkeys(tags)),
        "annotations_creators": ["machine-generated"] if methods and methods <= _MACHINE else None,
    }
    head: dict[str, Any] = {name: extra.pop(name) for name in ("language", "pretty_name") if name in extra}
    return {**head, **{name: value for name, value in fields.items() if value is not None}, **extra}


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # autoescape is for HTML; here every foreign string goes through `code`, `plain` or `fenced`
    environment = Environment(
        loader=PackageLoader("tuna_trl.data"), trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters |= {"code": code, "plain": plain, "fenced": fenced, "figure": figure, "counted": counted}
    environment.filters |= {"json_text": lambda value: json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)}
    return environment


def figure(value: float | None, digits: int = 2) -> str:
    """A number as the card prints it, with a true minus sign; a dash for none.

    >>> figure(-0.5), figure(None)
    ('−0.50', '–')
    """
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def printable(text: str) -> str:
    """A text without controls, bidirectional overrides and lone surrogates (each a U+FFFD), its lines ended by \\n.

    >>> printable("a\\x00b\\r\\n")
    'a\ufffdb\\n'
    """
    return _CONTROLS.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "row"), counted(2000, "row")
    ('1 row', '2,000 rows')
    """
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number:,} {noun if number == 1 else plural}"


def code(text: str | None) -> str:
    """A name as a code span that is safe in a table cell: one line, at most 80 characters.

    >>> code("a|b")
    '`a\\\\|b`'
    """
    if text is None:
        return "–"
    text = " ".join(printable(text).split()) or "\ufffd"
    text = (text if len(text) <= 80 else text[:79] + "…").replace("|", "\\|")
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def plain(text: str) -> str:
    """A string as ordinary text on one line: nothing in it is Markdown or HTML any more.

    >>> plain("a <b> *c*")
    'a \\\\<b\\\\> \\\\*c\\\\*'
    """
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(printable(text).split()))


def fenced(text: str, limit: int = _SHOWN_CHARACTERS, language: str = "text") -> str:
    """A text as a code block whose fence is longer than any in the text; cut at `limit` characters, and saying so."""
    note = "" if len(text) <= limit else f"\n\n*cut here; {len(text):,} characters in all*"
    text = printable(text[:limit])
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}{note}"
