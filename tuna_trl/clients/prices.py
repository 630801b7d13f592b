"""What tokens cost: a dated table (prices.yaml beside this file) and the price of a usage. Touches no network.

A model that is not in the table has no price: None, never 0, so that nothing unknown passes for free.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import InputError
from .base import Usage


KINDS = ("input", "cached", "cache_write", "output")


@dataclass(frozen=True)
class PriceTable:
    """USD per million tokens, by model and kind of token, as of `date`; in a batch, `batch` times as much."""

    date: str
    models: Mapping[str, Mapping[str, Any]]
    batch: float = 0.5  # what Anthropic and OpenAI take

    def rates(self, model: str) -> Mapping[str, Any] | None:
        """The entry of a model; an id with a date (`claude-haiku-4-5-20251001`, `gpt-4o-2024-08-06`) has the price of
        the id without, unless it has its own."""
        return self.models.get(model) or self.models.get(re.sub(r"-(\d{8}|\d{4}-\d\d-\d\d)$", "", model))

    def date_of(self, model: str) -> str | None:
        """The day on which the price of `model` was looked up; None for a model without one."""
        rates = self.rates(model)
        return None if rates is None else str(rates.get("date", self.date))

    def batch_share(self, model: str) -> float:
        """The share of its price that a request to `model` pays in a batch."""
        return (self.rates(model) or {}).get("batch", self.batch)


def load_prices(path: str | Path | None = None) -> PriceTable:
    """The built-in table, with the models of a YAML file of the same form laid over it.

    Raises:
        InputError: the file cannot be read or is not of that form.
    """
    built_in = _built_in()
    if path is None:
        return built_in
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"prices: the price file {path} cannot be read: {error}.") from None
    own = _read(text, str(path))
    # Each entry keeps the date of the table it is from.
    dated = {
        model: {"date": built_in.date, "batch": built_in.batch, **rates} for model, rates in built_in.models.items()
    }
    return PriceTable(own.date, {**dated, **own.models}, own.batch)


def price(model: str, usage: Usage, table: PriceTable | None = None) -> float | None:
    """Price of `usage` in USD; None when the model, or a kind of token that was used, has no price in the table.

    `thinking` is a part of `output` and is not billed again.

    >>> price("claude-opus-5-5", Usage(input=1_000_000, output=100_000))
    6.0
    >>> price("a-model-nobody-knows", Usage(input=1)) is None
    True
    """
    rates = (table or _built_in()).rates(model)
    if rates is None:
        return None
    tier = rates.get("long_prompt")
    if tier and usage.input + usage.cached + usage.cache_write > tier["over"]:
        rates = tier
    total = 0.0
    for kind in KINDS:
        if tokens := getattr(usage, kind):
            if rates.get(kind) is None:
                return None
            total += tokens * rates[kind]
    return total / 1e6


@cache
def _built_in() -> PriceTable:
    text = resources.files("tuna_trl.clients").joinpath("prices.yaml").read_text(encoding="utf-8")
    return _read(text, "prices.yaml")


def _read(text: str, where: str) -> PriceTable:
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"prices: {where} is no YAML: {error}.") from None
    if not isinstance(content, Mapping) or not isinstance(content.get("models"), Mapping):
        raise InputError(
            f"prices: {where} needs a key `models` with an entry a model, like "
            "`models: {my-model: {input: 1.0, output: 5.0}}` (USD per million tokens)."
        )
    for model, rates in content["models"].items():
        _check_rates(rates, f"prices: {where}: {model}", tier=False)
    batch = content.get("batch", PriceTable.batch)
    _check_number(batch, f"prices: {where}: batch", "a share of the price, 0 or more")
    return PriceTable(str(content.get("date")), content["models"], batch)


def _check_rates(rates: Any, where: str, *, tier: bool) -> None:
    if not isinstance(rates, Mapping):
        raise InputError(f"{where} is {rates!r}, expected prices by kind ({', '.join(KINDS)}).")
    allowed = {*KINDS, "over"} if tier else {*KINDS, "long_prompt", "date", "batch"}
    if unknown := sorted(str(key) for key in set(rates) - allowed):
        raise InputError(f"{where} has unknown keys {', '.join(unknown)}; known: {', '.join(sorted(allowed))}.")
    if missing := [kind for kind in ("input", "output", *(["over"] if tier else [])) if kind not in rates]:
        raise InputError(f"{where} lacks {', '.join(missing)}.")
    for key, value in rates.items():
        if key == "long_prompt":
            _check_rates(value, f"{where}: long_prompt", tier=True)
        elif key == "date":
            if not re.fullmatch(r"\d{4}-\d\d-\d\d", str(value)):
                raise InputError(f"{where}: date is {value!r}, expected a day like 2026-11-01.")
        elif key == "batch":
            _check_number(value, f"{where}: batch", "a share of the price, 0 or more")
        else:
            _check_number(value, f"{where}: {key}", "a number of USD per million tokens, 0 or more")


def _check_number(value: Any, what: str, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 <= value < math.inf):
        raise InputError(f"{what} is {value!r}, expected {expected}.")
