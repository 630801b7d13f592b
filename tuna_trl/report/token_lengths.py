"""How long the responses are for one tokenizer, and what a length limit would cut. Rows in, a record out."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

from ..data.tokenize import tokenize_row
from ..tokens import Template, TemplateRefusal
from .plots import histogram
from .sections import Chart, counted_rows


_LIMITS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
_MAX_ROWS = 5000  # tokenised: 1,000 rows of four answers take a second


class TokenLengths:
    """Tokens of prompt and response together, as training counts them, of up to 5,000 rows spread over the dataset.

    Args:
        tokenizer: with a chat template.
        rows: the dataset, whose length (where it has one) says how far apart the rows are.

    Raises:
        InputError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, rows: Any) -> None:
        self._template = Template(tokenizer)
        self._template.require_chat()
        try:
            total = len(rows)
        except TypeError:  # a stream
            total = 0
        self._known = total > 0
        self._stride = max(1, -(-total // _MAX_ROWS))
        self._seen = self._used = self._refused = 0
        self._all, self._longest = array("q"), array("q")

    def add(self, row: Mapping[str, Any]) -> None:
        """Tokenise the next row if it is one of those that are."""
        i, self._seen = self._seen, self._seen + 1
        if i % self._stride or self._used == _MAX_ROWS:
            return
        self._used += 1
        try:
            tokenised = tokenize_row(row, self._template)
        except TemplateRefusal:
            self._refused += 1
            return
        lengths = [len(tokenised["prompt_ids"]) + len(ids) for ids in tokenised["response_ids"]]
        self._all.extend(lengths)
        if lengths:
            self._longest.append(max(lengths))

    def section(self, name: str) -> dict[str, Any] | None:
        """What the report shows of them; None when no row could be tokenised."""
        if not self._all:
            return None
        import numpy as np

        every, longest = np.array(self._all), np.array(self._longest)
        own = getattr(self._template.tokenizer, "model_max_length", None)
        limits = [limit for limit in _LIMITS if limit < 2 * every.max()] or [_LIMITS[0]]
        if own is not None and own < 1e7:
            limits = sorted({*limits, int(own)})
        return {
            "chart": Chart(
                "Tokens of prompt and response",
                histogram(every.tolist(), label=f"{name}: tokens of prompt and response", x_label="tokens"),
            ),
            "limits": [(f"{n:,}", _share(every > n), _share(longest > n), n == own) for n in limits],
            "quantiles": [(f"{q:g} %", f"{np.quantile(every, q / 100):,.0f}") for q in (50, 90, 95, 99)]
            + [("longest", f"{every.max():,}")],
            "model": str(self._template.tokenizer.name_or_path).rstrip("/").split("/")[-1] or "the tokenizer",
            "note": self._note(),
        }

    def _note(self) -> str:
        whole = self._stride == 1 and self._used == self._seen
        which = "all" if whole else f"every {self._stride}th row, " if self._known else "the first "
        words = f"Over {'all ' if whole else which}{counted_rows(self._used)}."
        return words + (f" The chat template refuses {counted_rows(self._refused)}." if self._refused else "")


def _share(over: Any) -> str:
    return f"{100 * over.mean():.1f}"
