"""The card of a ranked dataset: YAML for the Hub, and a page for people whose every figure is computed from the rows.

Response texts, model names and titles are other people's strings: each goes in through a filter that keeps it from
being read as Markdown or HTML. Writes nothing; [`tuna_trl.data.hub`] does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .summary import RankedSummary, summarise, summarise_judgments


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

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
    dataset_dict: Dataset | DatasetDict,
    *,
    judgments: Dataset | DatasetDict | None = None,
    license: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """The text of the README.md of a ranked dataset.

    Args:
        dataset_dict: the ranked rows, all splits.
        judgments: the judge replies; adds a section on them.
        license: a Hub licence id; never guessed, and its absence is said in the text.
        extra: more YAML fields (`language`, `pretty_name`, `source_datasets`, `configs`, …); `tags` are added to
            ours, every other field stands as given.

    Raises:
        InputError: `extra` is no mapping, or gives `license` a second time.
    """
    splits = dict(dataset_dict) if isinstance(dataset_dict, Mapping) else {"train": dataset_dict}
    if extra is not None and (not isinstance(extra, Mapping) or "license" in extra):
        raise InputError(f"`extra` must be a dict of YAML fields without 'license' (an argument), got {extra!r:.80}.")
    extra = dict(extra or {})
    summary = summarise(splits.values())
    if judgments is not None:
        judgments = summarise_judgments(judgments.values() if isinstance(judgments, Mapping) else judgments)
    body = (
        _environment()
        .get_template("card.md.jinja")
        .render(
            title=extra.get("pretty_name") or "Ranked responses",
            s=summary,
            splits={name: len(part) for name, part in splits.items()},
            judgments=judgments,
            license=license,
            methods=list(dict.fromkeys(method for method, _ in summary.rankers)),
            row=_typical_row(splits.values()),
            shown=_SHOWN_RESPONSES,
        )
    )
    return f"---\n{_front_matter(summary, license, extra)}---\n\n{body}"


def _front_matter(summary: RankedSummary, license: str | None, extra: dict[str, Any]) -> str:
    import yaml

    methods = {method for method, _ in summary.rankers}
    tags = [*_TAGS, *(["rlaif"] if "judge" in methods else []), _ARXIV, *(extra.pop("tags", None) or [])]
    fields = {
        "license": license,
        "size_categories": [next((name for limit, name in _SIZES if summary.rows < limit), "n>1T")],
        "task_categories": ["text-generation"],
        "tags": list(dict.fromkeys(tags)),
        "annotations_creators": ["machine-generated"] if methods and methods <= _MACHINE else None,
    }
    head = {name: extra.pop(name) for name in ("language", "pretty_name") if name in extra}
    fields = {**head, **{name: value for name, value in fields.items() if value is not None}, **extra}
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=120)


def _typical_row(splits: Iterable[Dataset]) -> dict[str, Any] | None:
    """The first row that trains, else the first row: shown as the example."""
    first = None
    for part in splits:
        for row in part:
            if row["status"] == "ok":
                return row
            first = first or row
    return first


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
