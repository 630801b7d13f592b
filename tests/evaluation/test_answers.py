"""Judged quality of answers: equal ones share a score, no model has a place, every question of a protocol is asked."""

from __future__ import annotations

import itertools

import pytest
from doubles.builders import FunctionJudge

from tuna_trl.build.cost import Budget
from tuna_trl.build.journal import Journal
from tuna_trl.errors import InputError
from tuna_trl.evaluation.answers import judge_answers


PROMPTS = [[{"role": "user", "content": f"question {i}"}] for i in range(3)]
ANSWERS = {"start": ["poor", "good", "same"], "tuna": ["good", "fair", "same"], "other": ["fair", "good", "same"]}
MERIT = {"good": 3.0, "fair": 2.0, "poor": 1.0, "same": 2.5}


class Pairwise(FunctionJudge):
    """Two at a time in both orders: 1 for the better, 0 for the worse, 0.5 each for a tie."""

    def orders(self, order):
        return list(itertools.permutations(order, 2))


class OneByOne(FunctionJudge):
    def orders(self, order):
        return [(i,) for i in order]


def merits(request):
    return [MERIT[text] for text in request.candidates]


def winner(request):
    a, b = merits(request)
    return [1.0 * (a > b) + 0.5 * (a == b), 1.0 * (b > a) + 0.5 * (a == b)]


def judged(judge, answers=ANSWERS):
    with Journal(":memory:") as journal:
        references = [None] * len(PROMPTS)
        return judge_answers(
            PROMPTS, references, answers, judge, journal=journal, budget=Budget(), show_progress=False
        )


@pytest.mark.parametrize("kind", [FunctionJudge, OneByOne])
def test_every_answer_has_the_judges_score(kind):
    assert judged(kind(merits)) == {name: [MERIT[text] for text in texts] for name, texts in ANSWERS.items()}


def test_a_pairwise_judge_gives_win_rates_over_the_other_answers():
    assert judged(Pairwise(winner)) == {"start": [0.0, 1.0, 0.5], "tuna": [1.0, 0.0, 0.5], "other": [0.5, 1.0, 0.5]}


def test_equal_answers_are_shown_once():
    judge = FunctionJudge(merits)
    judged(judge)
    assert sorted(len(request.candidates) for request in judge.requests) == [1, 2, 3]


def test_the_names_of_the_models_change_nothing():
    first, second = FunctionJudge(merits), FunctionJudge(merits)
    judged(first)
    judged(second, {f"zz {name}": texts for name, texts in reversed(ANSWERS.items())})
    assert {r.candidates for r in first.requests} == {r.candidates for r in second.requests}


def test_an_answer_with_an_unread_comparison_has_no_score():
    def sometimes(request):
        return "nonsense" if request.candidates == ("good", "poor") else winner(request)

    assert judged(Pairwise(sometimes)) == {
        "start": [None, 1.0, 0.5],
        "tuna": [None, 0.0, 0.5],
        "other": [0.5, 1.0, 0.5],
    }


def test_lists_of_another_length_are_refused():
    with pytest.raises(InputError, match=r"answers\['tuna'\]` has 1 entries for 3 prompts"):
        judged(FunctionJudge(merits), {"tuna": ["good"]})
