"""The page about SFTConfig's fields is what the code does: each field is honoured or refused, none is forgotten."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from transformers import TrainingArguments
from trl import SFTConfig

from tuna_trl.config import REFUSED_FIELDS
from tuna_trl.config_table import HONOURED_FIELDS, sft_config_table


INHERITED = {f.name for f in dataclasses.fields(TrainingArguments)}


def test_each_field_of_sftconfig_is_honoured_or_refused_and_not_both():
    own = {f.name for f in dataclasses.fields(SFTConfig)} - INHERITED
    refused = set(REFUSED_FIELDS) - INHERITED
    assert own == set(HONOURED_FIELDS) | refused
    assert not set(HONOURED_FIELDS) & refused


def test_a_refused_field_exists():
    assert set(REFUSED_FIELDS) <= {f.name for f in dataclasses.fields(SFTConfig)}


def test_the_page_is_what_the_code_says():
    page = Path(__file__).parents[1] / "docs" / "sft_config.md"
    assert page.read_text(encoding="utf-8") == sft_config_table(), (
        "run python -m tuna_trl.config_table > docs/sft_config.md"
    )
