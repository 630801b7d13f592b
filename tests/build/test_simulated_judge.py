"""A judge of known quality, noise and favourite place: how often the best of four is found, by number of repeats.

Quality of a response ~ N(0, 1); each judgment adds N(0, 0.5^2) to each score, and 1 to that of the first place shown.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from doubles.builders import FunctionJudge, ListSampler, config, prompts

from tuna_trl.build.bias import bias_report
from tuna_trl.build.case import make_case, rank_case
from tuna_trl.build.items import PromptItem
from tuna_trl.build.judge import judge_builds
from tuna_trl.build.judging import Answer
from tuna_trl.build.sampling import Drawn
from tuna_trl.clients.base import Reply, Sample, Verdict
from tuna_trl.data.schema import prompt_id


NOISE, BONUS, N = 0.5, 1.0, 4
ROWS = 20_000


def found_by_the_builder(repeats: int, rows: int, seed: int) -> float:
    """Share of rows whose response of highest quality has rank 1, by the builder's own orders, means and ranks."""
    draw = np.random.default_rng(seed)
    quality = draw.normal(size=(rows, N))
    found = 0.0
    for r in range(rows):
        prompt = [{"role": "user", "content": str(r)}]
        item = PromptItem(prompt, prompt_id(prompt), 0, None, None)
        samples = tuple(Sample(f"answer {i}", (), "stop") for i in range(N))
        case = make_case(Drawn(item, samples, 1.0, 1, None), where="row", seed=seed, repeats=repeats)
        for question in case.questions:
            scores = quality[r, list(question.permutation)] + NOISE * draw.normal(size=N)
            scores[0] += BONUS
            question.answers.append(Answer(Reply(""), Verdict("ok", tuple(scores.tolist()))))
        ranks = rank_case(case, 0.0).ranks
        best = int(quality[r].argmax())
        found += (ranks[best] == 1) / ranks.count(1)
    return found / rows


def found_by_the_oracle(repeats: int, rows: int, seed: int) -> float:
    """The same law in five lines of its own: no loop over rows, no hashes, no ranks."""
    draw = np.random.default_rng(seed)
    quality = draw.normal(size=(rows, N))
    first = (draw.integers(0, N, (rows, 1)) + np.arange(repeats)) % N  # who is shown first, repeat by repeat
    noise = NOISE * draw.normal(size=(rows, N, repeats)).mean(axis=2)
    bonus = BONUS * (first[:, None, :] == np.arange(N)[None, :, None]).mean(axis=2)
    return float(((quality + noise + bonus).argmax(axis=1) == quality.argmax(axis=1)).mean())


@pytest.mark.parametrize(("repeats", "expected"), [(1, 0.64), (2, 0.76), (4, 0.86)])
def test_the_best_of_four_is_found_in_64_76_and_86_percent_of_rows(repeats, expected):
    assert found_by_the_builder(repeats, ROWS, seed=repeats) == pytest.approx(expected, abs=0.01)
    assert found_by_the_oracle(repeats, 400_000, seed=7) == pytest.approx(expected, abs=0.01)


def simulated(rows: int, repeats: int, seed: int = 0):
    """The whole builder with this judge: (ranked rows, judgments)."""
    draw = random.Random(seed)
    quality = {f"answer {i} to question {r}": draw.gauss(0, 1) for r in range(rows) for i in range(N)}

    def judge(request):
        # seeded by what is asked: threads may ask in any order
        noise = random.Random(f"{seed} {request.repeat} {request.prompt[0]['content']}")
        scores = [quality[text] + noise.gauss(0, NOISE) for text in request.candidates]
        return [scores[0] + BONUS, *scores[1:]]

    sampler = ListSampler(lambda prompt: [f"answer {i} to {prompt}" for i in range(N)])
    return judge_builds(prompts(rows), sampler, FunctionJudge(judge), config(repeats=repeats, seed=seed))


def test_a_full_round_leaves_no_effect_of_the_place_in_the_ranks():
    ranked, judgments = simulated(1000, repeats=N)
    position = bias_report(judgments, ranked).position
    assert position.balanced.value == 1.0
    assert position.left.rows == 1000 and position.left.covers(0.0)
    # the judge itself is what it was, and is found out: the first place is worth 1 - 1 / 4 points above the mean
    assert position.p_value < 1e-6 and position.first.low > 0.2
    assert position.effect.covers(BONUS * (1 - 1 / N))
    others = [place.first_share for place in position.places[1:]]
    assert max(others) - min(others) < 0.04  # 0.006 = one standard deviation of each


@pytest.mark.parametrize(("repeats", "least"), [(1, 0.2), (2, 0.05)])
def test_fewer_repeats_leave_some_of_it_and_the_report_says_so(repeats, least):
    position = bias_report(*reversed(simulated(600, repeats))).position
    assert position.left.low > least and position.balanced.value == 0.0
