"""Ranked rows for tests: a hypothesis strategy of any legal row, and small datasets with known figures."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from tuna_trl.data.schema import RANKING_METHODS, SOURCES, STATUSES, competition_ranks, make_row, ranked_features


settings.register_profile("tuna", deadline=None, max_examples=50)  # a first import is slow; no law is about time
settings.load_profile("tuna")

# what Arrow can hold: any text but lone surrogates
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
finite = st.floats(-1e6, 1e6, allow_nan=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """Any row that `make_row` makes: ties, unranked responses, nulls, hostile text, every status."""
    n = draw(st.integers(1, 5))
    scores = draw(st.lists(st.none() | st.sampled_from([0.0, 1.0, 2.5]) | finite, min_size=n, max_size=n))
    scored = [k for k, score in enumerate(scores) if score is not None]
    ranks = dict(zip(scored, competition_ranks([scores[k] for k in scored]), strict=True))
    if not ranks:
        ranks = dict.fromkeys(range(n), 1)
    responses = [
        {
            "index": k,
            "rank": ranks.get(k),
            "score": scores[k],
            "model": draw(st.none() | texts),
            "content": draw(texts),
            "logprob": draw(st.none() | finite),
            "num_tokens": draw(st.none() | st.integers(0, 2**31 - 1)),
            "finish_reason": draw(st.sampled_from([None, "stop", "length"])),
            "duplicate_of": draw(st.none() | st.integers(0, n - 1)),
            "source": draw(st.sampled_from(SOURCES)),
        }
        for k in range(n)
    ]
    return make_row(
        draw(texts | st.lists(st.fixed_dictionaries({"role": texts, "content": texts}), min_size=1, max_size=3)),
        responses,
        ranking_method=draw(st.sampled_from(RANKING_METHODS)),
        ranker=draw(st.none() | texts),
        status=draw(st.sampled_from(STATUSES)),
        reference=draw(st.none() | texts),
        agreement_w=draw(st.none() | st.floats(0, 1)),
        agreement_tau=draw(st.none() | st.floats(-1, 1)),
        source=draw(st.none() | texts),
        provenance=draw(st.dictionaries(texts, json_values, max_size=3)),
    )


def simple_row(i: int = 0, n: int = 3, **changes: Any) -> dict[str, Any]:
    """Row number i: n responses, the longest best, scores n, n - 1, … and nothing tied."""
    responses = [
        {
            "content": f"answer {i} {'long ' * (n - k)}".strip(),
            "rank": k + 1,
            "score": float(n - k),
            "model": "student",
            "num_tokens": 10 * (n - k),
            "logprob": -1.5 * (k + 1),
            "finish_reason": "stop",
            "source": "student",
        }
        for k in range(n)
    ]
    known = {"ranking_method": "judge", "ranker": "a-judge", "provenance": {"seed": 7, "row": i}}
    return make_row(f"question {i}", responses, **{**known, **changes})


def dataset_of(rows: list[dict[str, Any]]):
    from datasets import Dataset

    return Dataset.from_list(rows, features=ranked_features())
