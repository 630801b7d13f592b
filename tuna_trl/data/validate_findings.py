"""What `validate` finds: kinds of findings with their mends, how they are counted, the report as text and as JSON.

Pure. Findings of one kind in one column are one [`Finding`]: how many there are, and the first few with their rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


EXAMPLES = 5  # rows shown of each finding
SHOWN = 160  # characters shown of what was found
_NORMALISE = "dataset.map(tuna_trl.normalise_row, features=tuna_trl.ranked_features())"
_FILTER = "dataset.filter(lambda row: ...)"


@dataclass(frozen=True)
class Kind:
    """What a finding means: `error` (training on it is wrong, or fails) or `warning`; what was expected; a mend."""

    severity: str
    expected: str
    mend: str


KINDS: dict[str, Kind] = {
    "columns": Kind(
        "error",
        "`prompt` and `responses`, with `scores` or `ranks`, or the columns of tuna_trl.ranked_features()",
        "tuna_trl.data.convert.import_ranked(dataset)  (tuna-trl import SRC OUT)",
    ),
    "features": Kind(
        "error",
        "the type that tuna_trl.ranked_features() says",
        "datasets.Dataset.from_list(list(dataset), features=tuna_trl.ranked_features())",
    ),
    "row": Kind("error", "a row as docs/data_format.md says", "see the message"),
    "type": Kind("error", "the type that docs/data_format.md says", _NORMALISE),
    "value": Kind("error", "one of the known values", "dataset.map(lambda row: {<column>: <known value>})"),
    "prompt": Kind(
        "error",
        "messages with `role` and `content`, of which some has words and the last is not the assistant's",
        'dataset.map(lambda row: {"prompt": row["prompt"][:-1]}), or ' + _FILTER,
    ),
    "prompt_id": Kind(
        "error",
        "the sha256 of the canonical JSON of `prompt`",
        'dataset.map(lambda row: {"prompt_id": tuna_trl.data.schema.prompt_id(row["prompt"])})',
    ),
    "no responses": Kind("error", "one response or more", 'dataset.filter(lambda row: len(row["responses"]) > 0)'),
    "index": Kind("error", "each response with an `index` of its own; `duplicate_of` is one of them", _NORMALISE),
    "ranks": Kind("error", "competition ranks (1, 2, 2, 4), stored best first, the unranked last", _NORMALISE),
    "order": Kind(
        "error",
        "a better rank for a higher score",
        "dataset.map(lambda row: tuna_trl.normalise_row({**row, 'responses': [{**r, 'rank': None} for r in "
        "row['responses']]}))",
    ),
    "equal scores": Kind("warning", "one rank for equal scores", "as for `order`, or leave it: the ranks train"),
    "half scored": Kind("warning", "a score and a rank for the same responses", _NORMALISE),
    "figures": Kind("error", "what the responses say", _NORMALISE),
    "status": Kind(
        "error",
        "two ranked responses or more in a row of several whose status is `ok` or `partial`",
        'dataset.filter(lambda row: sum(r["rank"] is not None for r in row["responses"]) > 1)',
    ),
    "status and ranks": Kind(
        "warning",
        "`ok` where all responses are ranked, `partial` where two or more are, another status where fewer are",
        'dataset.map(lambda row: {"status": "partial"})',
    ),
    "empty best": Kind(
        "error",
        "words in the best response, which is trained to be said",
        'dataset.filter(lambda row: row["responses"][0]["content"].strip() != "")',
    ),
    "empty": Kind(
        "warning",
        "words in a ranked response (or `finish_reason` 'stop', where its model ended it so)",
        'dataset.filter(lambda row: all(r["content"].strip() for r in row["responses"]))',
    ),
    "identical": Kind(
        "warning",
        "equal ranks for equal responses, the later one marked by `duplicate_of` (such a pair has no gradient)",
        "rank one of each; to_preference leaves such pairs out",
    ),
    "leak": Kind(
        "error",
        "no prompt in two splits",
        "dataset['train'].filter(lambda row: row['prompt_id'] not in set(dataset['test']['prompt_id']))",
    ),
    "repeated prompt": Kind(
        "warning", "each prompt once in a split", "merge its responses into one row, or keep both"
    ),
    "marker": Kind(
        "warning",
        "text without marks of a chat template",
        "dataset.map: replace the mark; or cut the response where the other speaker begins",
    ),
    "control token": Kind(
        "error",
        "text without the model's special tokens, which its tokenizer does not read as text",
        "dataset.map: replace the token by its words",
    ),
    "template": Kind(
        "error", "a conversation that the model's chat template takes", "pass another template, or " + _FILTER
    ),
    "end token": Kind(
        "error",
        "an end-of-turn token behind every response that was not cut, so that the model learns to stop",
        "pass a chat template that writes one: TunaConfig(chat_template_path=...)",
    ),
    "double BOS": Kind(
        "error",
        "one BOS at most",
        "take the BOS off the text; the template (or the tokenizer) writes it",
    ),
    "too long": Kind(
        "warning",
        "two ranked responses within max_length, so that the row trains",
        "raise max_length, or TunaConfig(excess_length_strategy='truncate')",
    ),
}


@dataclass(frozen=True)
class Seen:
    """One thing seen in one row (or in none: of a split, of a model)."""

    kind: str
    column: str
    found: str
    expected: str | None = None


@dataclass(frozen=True)
class Example:
    """Where something was found first: split, row (from 0; None where it is of no row) and what was there."""

    split: str
    row: int | None
    found: str


@dataclass
class Finding:
    """All findings of one kind in one column."""

    kind: str
    severity: str
    column: str
    expected: str
    mend: str
    count: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass
class LengthTable:
    """Tokens of a prompt with one response under one model's template.

    `quantiles`: p50 to p99 and the longest, in tokens; `group`: the same of a whole row (its prompt once). `limits`:
    for some max_length, [responses too long, rows that lose one, rows left with fewer than two].
    """

    responses: int
    rows: int
    quantiles: dict[str, int]
    group: dict[str, int]
    limits: dict[int, list[int]]


class Findings:
    """Adds up what is seen; holds at most [`EXAMPLES`] rows of each kind."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Finding] = {}

    def add(self, seen: Seen, split: str, row: int | None) -> None:
        finding = self._found.get((seen.kind, seen.column))
        if finding is None:
            kind = KINDS[seen.kind]
            finding = Finding(seen.kind, kind.severity, seen.column, kind.expected, kind.mend)
            self._found[seen.kind, seen.column] = finding
        finding.count += 1
        if len(finding.examples) < EXAMPLES:
            found = seen.found + (f"; expected {seen.expected}" if seen.expected else "")
            finding.examples.append(Example(split, row, clipped(found)))

    def sorted(self) -> list[Finding]:
        """Errors first, then by number."""
        return sorted(self._found.values(), key=lambda f: (f.severity != "error", -f.count, f.kind, f.column))


@dataclass
class ValidationReport:
    """What [`tuna_trl.data.validate.validate`] found; iterates over its findings, errors first.

    Args:
        rows: how many there are, by split.
        findings: what is wrong or odd, errors first.
        lengths: how long the responses are, by model.
        max_length: the limit in tokens that lengths were held against.
    """

    rows: dict[str, int]
    findings: list[Finding]
    lengths: dict[str, LengthTable]
    max_length: int | None = None

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    @property
    def sound(self) -> bool:
        """No finding of severity `error`."""
        return all(finding.severity != "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"sound": self.sound, **asdict(self)}

    def render(self) -> str:
        """The report as text: each finding, the tables of lengths, and one line that says whether it is sound."""
        lines = [line for finding in self.findings for line in _finding_lines(finding)]
        for model, table in self.lengths.items():
            lines += _length_lines(model, table, self.max_length)
        errors = sum(finding.severity == "error" for finding in self.findings)
        splits = ", ".join(f"{split} {count:,}" for split, count in self.rows.items())
        verdict = "sound" if self.sound else "not sound"
        lines.append(
            f"{sum(self.rows.values()):,} rows ({splits}): {verdict}; kinds of errors: {errors}, of warnings: "
            f"{len(self.findings) - errors}."
        )
        return "\n".join(lines)


def clipped(text: str) -> str:
    """At most [`SHOWN`] characters, without control characters: texts of a dataset are not trusted with a terminal."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: SHOWN + 1])
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _finding_lines(finding: Finding) -> list[str]:
    times = "time" if finding.count == 1 else "times"
    lines = [f"{finding.severity}: {finding.kind} in `{finding.column}`, {finding.count:,} {times}"]
    for example in finding.examples:
        row = "" if example.row is None else f"row {example.row}"
        where = ", ".join(part for part in (example.split, row) if part)
        lines.append(f"    {where + ': ' if where else ''}{example.found}")
    if finding.count > len(finding.examples):
        lines.append(f"    and {finding.count - len(finding.examples):,} more")
    return [*lines, f"    expected: {finding.expected}", f"    mend: {finding.mend}", ""]


def _length_lines(model: str, table: LengthTable, max_length: int | None) -> list[str]:
    lines = [f"Tokens under {model}: {table.responses:,} ranked responses of {table.rows:,} rows"]
    for name, values in (("prompt + response", table.quantiles), ("whole row", table.group)):
        lines.append(f"    {name:<18}" + "".join(f"{key:>6} {value:>7,}" for key, value in values.items()))
    for limit, (responses, losing, dropped) in table.limits.items():
        mark = " <- max_length" if limit == max_length else ""
        lines.append(
            f"    at {limit:>6,} tokens: {_share(responses, table.responses)} of responses too long, "
            f"{_share(losing, table.rows)} of rows lose one, {_share(dropped, table.rows)} keep fewer than two{mark}"
        )
    return [*lines, ""]


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / whole if whole else 0:.1f} %)"


def shown(value: Any) -> str:
    """A value as a finding shows it: its type and its beginning; never the whole of a long text."""
    text = repr(value[:80] if isinstance(value, str) else value)
    return f"{type(value).__name__} {text[:80]}"


def plural_roles(messages: Any) -> str:
    """The roles of messages, for a finding."""
    return ", ".join(str(m.get("role")) if isinstance(m, Mapping) else type(m).__name__ for m in messages) or "none"
