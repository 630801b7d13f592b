"""What a judge's build came to, printed at its end and put into the card: rows, tokens, money, agreement, bias.

Reads the ranked rows and the judgments, and nothing else, so that a dataset from the Hub can be summed up as well.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..clients.base import Usage
from ..data.card import counted
from ..data.schema import STATUSES
from .bias import BiasReport, bias_report


_KINDS = tuple(field.name for field in fields(Usage))


@dataclass(frozen=True)
class JudgeSummary:
    """Totals over all splits.

    Args:
        rows: how many.
        status: rows by status.
        replies: replies by status, malformed ones that were asked again included.
        refusals: refused replies by the category that the provider gave.
        usage: tokens by kind over all replies (`output` includes `thinking`).
        cost: USD over the replies whose price is known; None where none is.
        unpriced: replies without a known price.
        bias: see [`bias_report`].
    """

    rows: int
    status: dict[str, int]
    replies: dict[str, int]
    refusals: dict[str, int]
    usage: dict[str, int]
    cost: float | None
    unpriced: int
    bias: BiasReport

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the card and for provenance."""
        return {name: value for name, value in vars(self).items() if name != "bias"} | {"bias": self.bias.to_json()}

    def table(self) -> str:
        """The figures as people read them."""
        lines = [
            ("judge", ", ".join(self.bias.judges) or "none was asked"),
            ("rows", f"{self.rows:,}: {_counts(self.status)}"),
            ("replies", f"{sum(self.replies.values()):,}: {_counts(self.replies)}" if self.replies else "none"),
            *([("refused", _counts(self.refusals))] if self.refusals else []),
            ("tokens", _tokens(self.usage)),
            ("cost", self._money()),
        ]
        return "\n".join([*(f"{name:<16} {text}" for name, text in lines), self.bias.table()])

    def _money(self) -> str:
        if self.cost is None:
            return "unknown: no reply has a known price" if self.replies else "nothing was asked"
        unknown = f", and {counted(self.unpriced, 'reply')} without a known price" if self.unpriced else ""
        return f"{self.cost:,.4f} USD{unknown}"


def summarise_judge_build(ranked: Any, judgments: Any) -> JudgeSummary:
    """Sum up a judge's build.

    Args:
        ranked, judgments: what [`tuna_trl.build.judge.judge_builds`] returns, or the two configs of its dataset. Both
            are read twice, row by row.
    """
    status = Counter(row["status"] for row in _rows(ranked, ["status"]))
    replies: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    usage = dict.fromkeys(_KINDS, 0)
    costs: list[float] = []
    for reply in _rows(judgments, ["status", "usage", "cost", "raw"]):
        replies[reply["status"]] += 1
        for kind in _KINDS:
            usage[kind] += (reply["usage"] or {}).get(kind) or 0
        costs += [] if reply["cost"] is None else [reply["cost"]]
        if reply["status"] == "refused":
            refusals[refusal_category(reply["raw"])] += 1
    asked = sum(replies.values())
    return JudgeSummary(
        rows=sum(status.values()),
        status={name: status[name] for name in STATUSES if status[name]},
        replies={name: replies[name] for name in STATUSES if replies[name]},
        refusals=dict(refusals.most_common()),
        usage=usage,
        cost=math.fsum(costs) if costs else None,
        unpriced=asked - len(costs),
        bias=bias_report(judgments, ranked),
    )


def refusal_category(raw: str | None) -> str:
    """The category of a refusal, as the client put it into the stored reply; "no category" where there is none.

    >>> refusal_category('{"stop_details": {"category": "frontier_llm"}, "text": ""}')
    'frontier_llm'
    """
    try:
        category = json.loads(raw or "")["stop_details"]["category"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return "no category"
    return category if isinstance(category, str) and category else "no category"


def _rows(splits: Any, columns: list[str]) -> Iterator[Mapping[str, Any]]:
    parts: Iterable[Any] = splits.values() if isinstance(splits, Mapping) else [splits]
    for part in parts:
        yield from part.select_columns(columns) if hasattr(part, "select_columns") else part


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none"


def _tokens(usage: Mapping[str, int]) -> str:
    if not any(usage.values()):
        return "none"
    text = f"{usage['input']:,} in"
    for kind, words in (("cached", "read from the cache"), ("cache_write", "written to it")):
        text += f", {usage[kind]:,} {words}" if usage[kind] else ""
    text += f", {usage['output']:,} out"
    return text + (f" (of which {usage['thinking']:,} thinking)" if usage["thinking"] else "")
