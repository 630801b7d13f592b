"""Prices are data, dated and overridable, and what is unknown costs None, not nothing."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuna_trl.clients.base import Usage
from tuna_trl.clients.prices import KINDS, PriceTable, load_prices, price
from tuna_trl.errors import InputError


TABLE = PriceTable("2026-01-01", {"m": {"input": 1.0, "cached": 0.5, "cache_write": 2.0, "output": 8.0}})
tokens = st.integers(0, 10**7)
usages = st.builds(Usage, input=tokens, cached=tokens, cache_write=tokens, output=tokens, thinking=tokens)


def test_the_built_in_table_is_dated_and_complete():
    table = load_prices()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", table.date)
    assert "claude-opus-5-5" in table.models
    for model, rates in table.models.items():
        assert all(rates[kind] > 0 for kind in (KINDS if model.startswith("claude") else ("input", "output")))
        assert rates.get("cached", 0) < rates["input"] < rates["output"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", table.date_of(model))


def test_every_entry_has_a_date_of_its_own_or_the_tables(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(
        "date: 2027-02-03\nmodels: {mine: {input: 0, output: 1, date: 2027-01-01}, other: {input: 1, output: 1}}"
    )
    table = load_prices(path)
    assert (table.date_of("mine"), table.date_of("other")) == ("2027-01-01", "2027-02-03")
    assert table.date_of("claude-opus-5-5") == load_prices().date_of("claude-opus-5-5") == load_prices().date
    assert table.date_of("unknown") is None


@given(usages, usages)
def test_the_price_of_a_sum_is_the_sum_of_prices(a, b):
    assert price("m", a + b, TABLE) == pytest.approx(price("m", a, TABLE) + price("m", b, TABLE))


def test_each_kind_is_billed_at_its_rate_and_thinking_is_part_of_the_output():
    million = 10**6
    assert price("m", Usage(million, 2 * million, million, million, thinking=million), TABLE) == 1 + 1 + 2 + 8


def test_what_is_not_in_the_table_has_no_price():
    assert price("unknown", Usage(input=1), TABLE) is None
    only = PriceTable("2026-01-01", {"m": {"input": 1.0, "output": 8.0}})
    assert price("m", Usage(input=10**6), only) == 1.0
    assert price("m", Usage(input=1, cached=1), only) is None


def test_a_dated_id_has_the_price_of_its_model():
    usage = Usage(input=1000, output=10)
    assert price("claude-haiku-4-5-20251001", usage) == price("claude-haiku-4-5", usage) is not None
    assert price("gpt-4o-2024-08-06", usage) == price("gpt-4o", usage) < price("gpt-4o-2024-05-13", usage)


def test_a_long_prompt_is_billed_at_its_own_rates():
    rates = {"input": 0.1, "output": 0.5, "long_prompt": {"over": 100, "input": 1.0, "cached": 0.2, "output": 5.0}}
    table = PriceTable("2026-01-01", {"m": rates})
    assert price("m", Usage(input=100, output=10), table) == pytest.approx((100 * 0.1 + 10 * 0.5) / 1e6)
    assert price("m", Usage(input=51, cached=50, output=10), table) == pytest.approx((51 + 50 * 0.2 + 10 * 5.0) / 1e6)


def test_a_users_file_is_laid_over_the_table(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(
        "date: 2027-02-03\nmodels:\n  claude-opus-5-5: {input: 3, output: 9}\n  mine: {input: 0, output: 1}"
    )
    table = load_prices(path)
    assert table.date == "2027-02-03"
    assert price("claude-opus-5-5", Usage(input=10**6), table) == 3
    assert price("mine", Usage(output=10**6), table) == 1
    assert price("claude-sonnet-5-5", Usage(input=10**6), table) == price("claude-sonnet-5-5", Usage(input=10**6))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models: [", "no YAML"),
        ("just a string", "`models`"),
        ("models: [a, b]", "`models`"),
        ("models: {m: 3}", "expected prices by kind"),
        ("models: {m: {input: 1}}", "lacks output"),
        ("models: {m: {input: 1, output: 2, outptu: 3}}", "unknown keys outptu"),
        ("models: {m: {input: -1, output: 2}}", "input is -1"),
        ("models: {m: {input: .nan, output: 2}}", "input is nan"),
        ("models: {m: {input: 1, output: 2, date: lately}}", "date is 'lately'"),
        ("models: {m: {input: cheap, output: 2}}", "input is 'cheap'"),
        ("models: {m: {input: 1, output: 2, long_prompt: {input: 1, output: 2}}}", "lacks over"),
    ],
)
def test_a_wrong_file_is_refused_with_its_fault_named(tmp_path, text, says):
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(says)):
        load_prices(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_prices(tmp_path / "none.yaml")
