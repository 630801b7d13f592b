"""From verdicts to win, tie and lose. Pure functions; a game's result is seen from the first model: 1, 0.5 or 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import InputError
from ..ranking import Interval, bootstrap_interval
from .protocols import read_scores


@dataclass(frozen=True)
class Pair:
    """One question, judged in one order or in both.

    `result`: 1 the first model wins, 0.5 a tie, 0 it loses; None: a game could not be read, and the pair is dropped.
    `consistent`: whether both games say the same; None with fewer than two games that could be read.
    """

    question_id: Any
    result: float | None
    consistent: bool | None
    games: tuple[float | None, ...]


@dataclass(frozen=True)
class GameSummary:
    """Counts over pairs; `parse_errors` counts games. Rates are from 0 to 1 and None over no pair."""

    win: int
    tie: int
    lose: int
    dropped: int
    parse_errors: int
    games: int
    win_rate: float | None
    adjusted_win_rate: Interval  # a tie counts one half
    position_consistency: Interval  # share of pairs whose two games say the same

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def two_games(question_id: Any, first: float | None, second: float | None) -> Pair:
    """FastChat's rule: a model wins if both games name it; games that differ are a tie; an unreadable one drops the
    pair.

    Args:
        first, second: the results of the two games, both from the first model's side.
    """
    if first is None or second is None:
        return Pair(question_id, None, None, (first, second))
    return Pair(question_id, first if first == second else 0.5, first == second, (first, second))


def balanced_scores(question_id: Any, first: tuple[float, float] | None, second: tuple[float, float] | None) -> Pair:
    """Scores of 1 to 10, averaged over both orders, then compared (FairEval, arXiv 2305.17926).

    Args:
        first, second: (first model's score, second model's score) in each of the two games.
    """
    games = tuple(None if scores is None else _compare(*scores) for scores in (first, second))
    if first is None or second is None:
        return Pair(question_id, None, None, games)
    return Pair(question_id, _compare(first[0] + second[0], first[1] + second[1]), games[0] == games[1], games)


def summarise(pairs: Iterable[Pair]) -> GameSummary:
    """Win, tie, lose and their rates over the pairs that were not dropped."""
    pairs = list(pairs)
    results = [pair.result for pair in pairs]
    kept = [result for result in results if result is not None]
    agreeing = [None if pair.consistent is None else float(pair.consistent) for pair in pairs]
    win, lose = kept.count(1.0), kept.count(0.0)
    return GameSummary(
        win=win,
        tie=len(kept) - win - lose,
        lose=lose,
        dropped=len(results) - len(kept),
        parse_errors=sum(game is None for pair in pairs for game in pair.games),
        games=sum(len(pair.games) for pair in pairs),
        win_rate=win / len(kept) if kept else None,
        adjusted_win_rate=bootstrap_interval(results),
        position_consistency=bootstrap_interval(agreeing),
    )


@dataclass(frozen=True)
class ReviewSummary:
    """Reviews of 2023, in one order: win, tie, lose of the first model, and the sums of scores.

    `parse_errors`: reviews without scores, which are dropped. `by_hand`: reviews whose stored scores do not stand in
    the first line of their text, so that somebody read them.
    """

    win: int
    tie: int
    lose: int
    totals: tuple[float, float]
    parse_errors: int
    by_hand: int


def summarise_reviews(reviews: Sequence[Mapping[str, Any]]) -> ReviewSummary:
    """Reviews as FastChat stored them: their `score` where there is one, else what their `text` says.

    In each of FastChat's 13 files one review (question 69, mathematics) ends with its scores instead of beginning with
    them; the stored ones were read by hand and count.

    Raises:
        InputError: a review has neither text nor scores.
    """
    scores, by_hand = [], 0
    for place, review in enumerate(reviews):
        text, stored = review.get("text"), review.get("score")
        if not isinstance(text, str) and stored is None:
            raise InputError(f"Review {place} has neither `text` nor `score`.")
        read = read_scores(text) if isinstance(text, str) else None
        if stored is None:
            scores.append(read)
            continue
        if len(stored) != 2 or not all(isinstance(value, (int, float)) for value in stored):
            raise InputError(f"Review {place}: `score` is {stored!r}, expected two numbers.")
        both = (float(stored[0]), float(stored[1]))
        scores.append(None if both == (-1.0, -1.0) else both)  # FastChat's mark of an error
        by_hand += both not in ((-1.0, -1.0), read)
    kept = [both for both in scores if both is not None]
    results = [_compare(*both) for both in kept]
    totals = (sum(a for a, _ in kept), sum(b for _, b in kept))
    win, lose = results.count(1.0), results.count(0.0)
    return ReviewSummary(win, len(kept) - win - lose, lose, totals, len(scores) - len(kept), by_hand)


def _compare(a: float, b: float) -> float:
    return 0.5 if a == b else float(a > b)
