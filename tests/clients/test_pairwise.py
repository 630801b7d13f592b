"""The pairwise protocol: every pair in both orders, two candidates a question."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuna_trl.clients.base import JudgeProtocol, JudgeRequest
from tuna_trl.clients.pairwise import PairwiseProtocol
from tuna_trl.errors import InputError


PROMPT = [{"role": "user", "content": "q"}]


@given(st.lists(st.integers(0, 50), unique=True, max_size=8))
def test_every_ordered_pair_is_asked_about_once(order):
    questions = PairwiseProtocol().orders(order)
    assert sorted(questions) == sorted(permutations(order, 2))
    for place in (0, 1):  # so that each response stands at each place equally often
        assert sorted(pair[place] for pair in questions) == sorted(order * (len(order) - 1))


@pytest.mark.parametrize("candidates", [("a",), ("a", "b", "c")])
def test_another_number_of_candidates_than_two_is_refused(candidates):
    with pytest.raises(InputError, match=f"two candidates in a question, got {len(candidates)}"):
        PairwiseProtocol().render(JudgeRequest(PROMPT, candidates, None, 0, "n1"))


def test_the_reason_is_written_before_the_winner():
    assert list(PairwiseProtocol().schema(2)["properties"]) == ["rationale", "winner"]


def test_the_reference_is_shown_only_when_switched_on_and_changes_the_fingerprint():
    request = JudgeRequest(PROMPT, ("a", "b"), "the given answer", 0, "n1")
    assert "the given answer" not in "".join(PairwiseProtocol().render(request))
    system, user = PairwiseProtocol(show_reference=True).render(request)
    assert "the given answer" in user and "the given answer" not in system
    assert PairwiseProtocol(True).fingerprint() != PairwiseProtocol().fingerprint()
    assert isinstance(PairwiseProtocol(), JudgeProtocol)
