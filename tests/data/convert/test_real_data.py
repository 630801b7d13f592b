"""Import -> export on the real data beside the checkout: every row comes back as it was."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tuna_trl.data.convert import import_ranked, to_preference, to_source
from tuna_trl.data.schema import check_row


pytestmark = pytest.mark.shared

# file -> (shape, rows of it that answer two different prompts)
FILES = {
    "ranked/alpacaeval_ranked12.jsonl": ("alpaca_eval_lists", 0),
    "ranked/pandalm_ranked.jsonl": ("pandalm_lists", 0),
    "ranked/prometheus_vicuna_ranked.jsonl": ("prometheus", 0),
    "pairs/hh_harmless_base_test.jsonl": ("hh_rlhf", 3),
    "pairs/llms_from_scratch_preference_1100.jsonl": ("preference", 0),
}


@pytest.mark.parametrize("file", FILES)
def test_it_comes_back_as_it_was(file, shared_data):
    shape, odd = FILES[file]
    path = shared_data / file
    if not path.exists():
        pytest.skip(f"{file} is not part of this copy of the real data")
    with open(path, encoding="utf-8") as lines:
        source = [json.loads(line) for line in lines]
    tally = Counter()
    ranked = list(import_ranked(source, on_error="skip", tally=tally))
    assert tally[shape] == len(ranked)
    assert len(source) - len(ranked) <= odd
    for row in ranked:
        check_row(row)
    back = [json.dumps(row, sort_keys=True) for row in to_source(ranked)]
    given = {json.dumps(row, sort_keys=True) for row in source}
    assert len(back) == len(ranked) and set(back) <= given
    if len(ranked) == len(source):
        assert back == [json.dumps(row, sort_keys=True) for row in source]
    pairs = list(to_preference(ranked, pairs="all"))
    assert pairs and all(p["chosen"] != p["rejected"] for p in pairs)
