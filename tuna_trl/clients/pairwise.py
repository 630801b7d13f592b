"""The pairwise protocol: two candidates a question, every pair in both orders, so that no place is anybody's.

As in MT-bench and FairEval (arXiv 2305.17926) a pair whose two orders disagree is a tie. N candidates take N (N - 1)
questions a repeat. Knows no SDK and no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ..data.schema import digest
from ..errors import InputError
from .base import JudgeRequest, Reply, Verdict
from .verdicts import Malformed, check_fields, closed_object, read_reply, shown, shown_row, source, template


WINNERS = {"A": (1.0, 0.0), "B": (0.0, 1.0), "tie": (0.5, 0.5)}
_TEMPLATES = ("pairwise_system.jinja", "pairwise_user.jinja", "untrusted.jinja", "row.jinja", "reference_note.jinja")


@dataclass(frozen=True)
class PairwiseProtocol:
    """How a judge LLM is asked which of two candidates is better.

    A comparison gives its winner 1 and its loser 0, both 0.5 in a tie. The score of a response is the mean over its
    comparisons, in both orders and with every other response: its win rate, from 0 to 1.

    Args:
        show_reference: show the row's `reference` to the judge where there is one.
    """

    show_reference: bool = False

    name = "pairwise"

    def orders(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        """Every pair, in both orders one after the other."""
        return [pair for a, b in combinations(order, 2) for pair in ((a, b), (b, a))]

    def fingerprint(self) -> dict[str, Any]:
        return {
            "protocol": "pairwise",
            "show_reference": self.show_reference,
            "templates": digest([source(name) for name in _TEMPLATES]),
            "schema": digest(self.schema(2)),
        }

    def render(self, request: JudgeRequest) -> tuple[str, str]:
        """System prompt and user turn.

        Raises:
            InputError: the request has no nonce, or not two candidates.
        """
        if len(request.candidates) != 2:
            raise InputError(
                f"The pairwise protocol shows two candidates in a question, got {len(request.candidates)}: ask the "
                "questions that its `orders` lists."
            )
        row = shown_row(request, show_reference=self.show_reference)
        system = template(_TEMPLATES[0]).render(has_reference=row["reference"] is not None)
        return system, template(_TEMPLATES[1]).render(row)

    def schema(self, n: int) -> dict[str, Any]:
        """JSON schema of a verdict; the reason stands before the winner, so that it is a reason."""
        return closed_object({"rationale": {"type": "string"}, "winner": {"type": "string", "enum": list(WINNERS)}})

    def parse(self, request: JudgeRequest, reply: Reply) -> Verdict:
        return read_reply(request, reply, _read)


def _read(verdict: Any) -> Verdict:
    check_fields(verdict, ("rationale", "winner"), "the verdict")
    if not isinstance(verdict["rationale"], str):
        raise Malformed("rationale is not a string")
    winner = verdict["winner"]
    if not isinstance(winner, str) or winner not in WINNERS:
        raise Malformed(f"winner is {shown(winner)}, expected A, B or tie")
    return Verdict("ok", WINNERS[winner])
