"""Dataset rows as TRL users have them, and `prepared`: what preparation makes of some."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, IterableDataset
from tiny import chatml_tokenizer

from tuna_trl.data.prepare import Preparation, prepare_dataset
from tuna_trl.tokens import Template


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def turns(i: int) -> list[dict[str, str]]:
    return [user(f"question {i}"), assistant(f"the answer {i}"), user("and?"), assistant("in " * (i + 1))]


def from_value(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"from": m["role"], "value": m["content"]} for m in messages]


def prepared(rows: Any, tokenizer: Any = None, **options: Any) -> Any:
    dataset = rows if isinstance(rows, (Dataset, IterableDataset)) else Dataset.from_list(rows)
    return prepare_dataset(dataset, Template(tokenizer or chatml_tokenizer()), Preparation(**options))
