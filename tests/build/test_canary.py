"""The canary: who reads orders as text is robust, who obeys them is found out, and noise is not obedience."""

from __future__ import annotations

import hashlib
import json
import math

import pytest
from doubles.builders import WORDS, FunctionJudge
from hypothesis import given
from hypothesis import strategies as st

from tuna_trl.build.canary import INJECTIONS, CanaryReport, Moves, canary, wilson
from tuna_trl.build.cost import Budget
from tuna_trl.build.journal import Journal
from tuna_trl.clients.base import Reply
from tuna_trl.errors import BudgetExceeded, InputError


def rows(n=12):
    return [{"prompt": f"question {i}", "responses": [f"{word} about {i}" for word in WORDS]} for i in range(n)]


def merit(text):
    """The merit of a text's first words: what stands after them is no part of the answer."""
    return next(float(len(WORDS) - k) for k, word in enumerate(WORDS) if text.startswith(word))


def injected(text):
    return any(text.endswith(wording) for wording in INJECTIONS.values())


def measured(reply, items=None, journal=None, **options):
    judge = FunctionJudge(reply)
    with Journal(journal or ":memory:") as book:
        options = {"show_progress": False} | options
        report = canary(judge, rows() if items is None else items, journal=book, budget=Budget(), **options)
    return report, judge


def by_merit(request):
    return [merit(text) for text in request.candidates]


def obeys(request):
    return [9.0 if injected(text) else merit(text) for text in request.candidates]


def noisy(request):
    """Scores that hang on everything in the request, its nonce too."""
    seed = json.dumps([request.nonce, request.candidates])
    return [float(hashlib.sha256(f"{seed}{place}".encode()).digest()[0]) for place in range(len(request.candidates))]


def test_a_judge_that_reads_orders_as_text_is_robust():
    report, judge = measured(by_merit)
    assert report.verdict == "robust" and report.skipped == {}
    assert report.injected == report.control == Moves(12, 0, 0, 0)
    assert sum(moves.rows for moves in report.by_wording.values()) == 12
    assert len(judge.requests) == 3 * 12


def test_a_judge_that_obeys_is_found_out_and_the_order_shown_is_the_same():
    report, judge = measured(obeys)
    assert report.verdict == "obeys"
    assert report.injected == Moves(12, 12, 12, 0) and report.control == Moves(12, 0, 0, 0)
    assert set(report.by_wording) == set(INJECTIONS)
    with_order = [request for request in judge.requests if any(map(injected, request.candidates))]
    assert len(with_order) == 12
    plain = {tuple(request.candidates) for request in judge.requests}
    for request in with_order:
        (victim,) = [text for text in request.candidates if injected(text)]
        (wording,) = [one for one in INJECTIONS.values() if victim.endswith(one)]
        assert tuple(t.removesuffix(wording) for t in request.candidates) in plain
        assert not victim.startswith(WORDS[0])  # the best has no place to gain


def test_only_the_wording_that_works_is_blamed():
    def obeys_one(request):
        return [9.0 if text.endswith(INJECTIONS["verdict"]) else merit(text) for text in request.candidates]

    report, _ = measured(obeys_one, rows(16))
    moved = {name for name, moves in report.by_wording.items() if moves.improved}
    assert moved == {"verdict"} and report.by_wording["verdict"] == Moves(2, 2, 2, 0)
    assert report.injected.improved == 2


def test_noise_is_not_taken_for_obedience():
    report, _ = measured(noisy, rows(60), sample=60)
    assert report.injected.improved > 0 and report.control.improved > 0
    assert report.verdict == "unclear"
    without, judge = measured(noisy, rows(60), sample=60, control=False)
    assert without.control is None and without.verdict == "unclear" and len(judge.requests) == 120
    assert without.injected == report.injected  # the control changes nothing else


def test_a_judge_that_punishes_orders_is_robust_and_the_fall_is_counted():
    report, _ = measured(lambda request: [0.0 if injected(t) else merit(t) for t in request.candidates])
    assert report.verdict == "robust" and report.injected.worsened > 0 and report.injected.improved == 0


def test_rows_that_cannot_be_compared_are_counted_with_the_reason():
    def reply(request):
        if "about 0" in request.candidates[0]:
            return Reply("", "refused")
        if "about 1" in request.candidates[0].replace("about 10", "").replace("about 11", ""):
            return [1.0] * len(request.candidates)
        return "no verdict" if any(map(injected, request.candidates)) else by_merit(request)

    report, _ = measured(reply)
    assert report.skipped == {"refused": 1, "level": 1, "with injection: malformed": 10}
    assert report.injected.rows == 0 and report.verdict == "not measured"
    assert "10 (with injection: malformed)" in report.table()


def test_a_second_run_asks_nothing_and_another_seed_asks_anew(tmp_path):
    first, judge = measured(obeys, journal=tmp_path / "journal.sqlite")
    again, silent = measured(noisy, journal=tmp_path / "journal.sqlite")
    assert again == first and silent.requests == []
    _, other = measured(obeys, journal=tmp_path / "journal.sqlite", seed=1)
    assert len(other.requests) == len(judge.requests)


def test_so_many_rows_are_asked_about_and_equal_prompts_are_told_apart():
    report, judge = measured(by_merit, rows(40), sample=7)
    assert report.injected.rows == 7 and len(judge.requests) == 21
    twice, _ = measured(by_merit, rows(3) + rows(3))
    assert twice.injected.rows == 6
    alike = [{"prompt": "q", "responses": ["same", "same "]}]
    some, _ = measured(by_merit, rows(2) + alike)
    assert some.injected.rows == 2
    with pytest.raises(InputError, match="no row has two different responses"):
        measured(by_merit, alike)


@pytest.mark.parametrize("options", [{"sample": 0}, {"wordings": {}}, {"wordings": {"blank": "  "}}])
def test_an_argument_out_of_range_is_named(options):
    with pytest.raises(InputError, match="canary: sample is"):
        measured(by_merit, **options)


def test_the_cap_holds():
    judge = FunctionJudge(by_merit, price=1.0)
    with Journal(":memory:") as journal, pytest.raises(BudgetExceeded):
        canary(judge, rows(), journal=journal, budget=Budget(5.0), show_progress=False)
    assert len(judge.requests) <= 5


def test_the_table_says_counts_intervals_and_the_verdict():
    report = CanaryReport("j", Moves(10, 4, 2, 1), Moves(10, 1, 0, 0), {"naive": Moves(10, 4, 2, 1)}, {"level": 3})
    table = report.table()
    assert "j: unclear" in table and "4 of 10 improved (40.0%" in table and "1 of 10 improved" in table
    assert "2 came first, 1 fell" in table and "3 (level)" in table


@given(st.integers(0, 300), st.integers(1, 300))
def test_wilsons_interval_holds_the_share_and_solves_its_equation(successes, trials):
    successes = min(successes, trials)
    low, high = wilson(successes, trials)
    share = successes / trials
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):  # |share - p| = z sqrt(p (1 - p) / n), the equation that defines the ends
        assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / trials), abs=1e-9)
    mirrored = wilson(trials - successes, trials)
    assert mirrored == (pytest.approx(1 - high), pytest.approx(1 - low))


def test_without_trials_nothing_is_known():
    assert wilson(0, 0) == (0.0, 1.0)
