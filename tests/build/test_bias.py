"""The bias report against a slow oracle, and on judges whose faults are known because they were built in."""

from __future__ import annotations

import json
import random
from itertools import combinations

import numpy as np
import pytest
from datasets import DatasetDict
from doubles.builders import FunctionJudge, ListSampler, config, four, prefers, prompts
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tuna_trl.build.bias import bias_report, family
from tuna_trl.build.judge import judge_builds
from tuna_trl.data.schema import competition_ranks, make_row
from tuna_trl.errors import InputError, SchemaError


def judgment(key="p", permutation=(0, 1, 2), scores=(3.0, 2.0, 1.0), **fields):
    row = {
        "prompt_id": key, "occurrence": 0, "repeat": 0, "attempt": 0, "judge": "judge-1", "status": "ok",
        "permutation": list(permutation), "scores": None if scores is None else list(scores),
    }  # fmt: skip
    return row | fields


def ranked(prompt, scores, lengths=None, **fields):
    """A ranked row whose responses have these scores (None: not ranked) and lengths in tokens."""
    placed = [i for i, score in enumerate(scores) if score is not None]
    ranks = dict(zip(placed, competition_ranks([scores[i] for i in placed]), strict=True))
    responses = [
        {"content": "x" * (i + 1), "rank": ranks.get(i), "score": score, "model": "student-1", "source": "student",
         "num_tokens": None if lengths is None else lengths[i]}
        for i, score in enumerate(scores)
    ]  # fmt: skip
    row = make_row(prompt, responses, ranking_method="judge", ranker="judge-1", **fields)
    return row


def random_build(seed, rows=30, repeats=3, n=4, bonus=0.0):
    """Judgments and ranked rows of a judge with few score levels, so that ties are common."""
    draw = random.Random(seed)
    judgments, data = [], []
    for r in range(rows):
        merit = [draw.randint(0, 4) for _ in range(n)]
        order = draw.sample(range(n), n)
        sums = [0.0] * n
        prompt = f"prompt {r}"
        row = None
        for k in range(repeats):
            shown = order[k % n :] + order[: k % n]
            scores = [float(merit[i] + draw.randint(0, 2)) + bonus * (place == 0) for place, i in enumerate(shown)]
            for i, score in zip(shown, scores, strict=True):
                sums[i] += score / repeats
            row = ranked(prompt, sums, [draw.randint(1, 9) for _ in range(n)])
            judgments.append(judgment(row["prompt_id"], shown, scores, repeat=k))
        data.append(row)
    return judgments, data


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_every_figure_is_the_slow_oracles(seed, repeats):
    judgments, data = random_build(seed, rows=12, repeats=repeats)
    report = bias_report(judgments, data)
    for place in report.position.places:
        at = [j["scores"][place.place] for j in judgments]
        wins = [
            (j["scores"][place.place] == max(j["scores"])) / j["scores"].count(max(j["scores"])) for j in judgments
        ]
        assert place.shown == len(judgments) and place.expected == 0.25
        assert place.mean_score == pytest.approx(np.mean(at))
        assert place.effect == pytest.approx(np.mean([s - np.mean(j["scores"]) for s, j in zip(at, judgments)]))  # noqa: B905
        assert place.first_share == pytest.approx(np.mean(wins))
    assert report.position.first.value == pytest.approx(report.position.places[0].first_share - 0.25)
    rhos, won, pairs = [], 0, 0
    for row in data:
        lengths, quality = zip(*((r["num_tokens"], -r["rank"]) for r in row["responses"]), strict=True)
        if len(set(lengths)) > 1 and len(set(quality)) > 1:
            rhos.append(stats.spearmanr(lengths, quality).statistic)
        for i, j in combinations(range(4), 2):
            if lengths[i] != lengths[j] and quality[i] != quality[j]:
                pairs += 1
                won += (lengths[i] > lengths[j]) == (quality[i] > quality[j])
    assert report.length.rho.value == pytest.approx(np.mean(rhos)) and report.length.rho.rows == len(rhos)
    assert report.length.pairs == pairs and report.length.longer_wins.value == pytest.approx(won / pairs)
    left = []
    for row in data:
        first = next(j for j in judgments if j["prompt_id"] == row["prompt_id"])["permutation"][0]
        best = [r["index"] for r in row["responses"] if r["rank"] == 1]
        left.append((first in best) / len(best) - 0.25)
    assert report.position.left.value == pytest.approx(np.mean(left))
    assert report.position.balanced.value == float(repeats == 4)
    assert json.loads(json.dumps(report.to_json()))["length"]["pairs"] == pairs


@given(st.integers(0, 10_000))
@settings(max_examples=15)
def test_agreement_is_that_of_the_repeats_compared_one_by_one(seed):
    judgments, data = random_build(seed, rows=10, repeats=3)
    agreement = bias_report(judgments, data).agreement
    equal, best, turned, untied = [], [], 0, 0
    for row in data:
        tables = [
            dict(zip(j["permutation"], j["scores"], strict=True))
            for j in judgments
            if j["prompt_id"] == row["prompt_id"]
        ]
        orders = [[np.sign(t[a] - t[b]) for a in range(4) for b in range(4)] for t in tables]
        equal.append(all(order == orders[0] for order in orders))
        for s, t in combinations(tables, 2):
            best.append({i for i in s if s[i] == max(s.values())} == {i for i in t if t[i] == max(t.values())})
            for a, b in combinations(range(4), 2):
                if s[a] != s[b] and t[a] != t[b]:
                    untied += 1
                    turned += (s[a] > s[b]) != (t[a] > t[b])
    assert agreement.repeats == {3: 10}
    assert agreement.all_equal.value == pytest.approx(np.mean(equal))
    assert agreement.same_best.value == pytest.approx(np.mean(best))
    assert agreement.turned.value == pytest.approx(turned / untied)


@pytest.mark.parametrize("repeats", [1, 4])
def test_a_judge_without_a_favourite_place_is_rarely_accused(repeats):
    reports = [bias_report(*random_build(seed, rows=50, repeats=repeats)).position for seed in range(60)]
    accused = sum(report.p_value < 0.05 for report in reports)
    assert accused <= 9  # 3 expected, 1.7 = one standard deviation; with all places in a row the test is cautious
    assert sum(report.first.covers(0.0) for report in reports) >= 50


def test_a_judge_with_a_favourite_place_is_found_out_and_a_full_round_takes_it_out_of_the_ranks():
    position = bias_report(*random_build(3, rows=200, repeats=1, bonus=2.0)).position
    assert position.p_value < 1e-6 and position.first.low > 0.1 and position.effect.low > 1.0
    assert position.left.low > 0.1
    position = bias_report(*random_build(3, rows=200, repeats=4, bonus=2.0)).position
    assert position.p_value < 1e-6 and position.first.low > 0.1  # the judge is what it was
    assert position.left.covers(0.0)  # and the ranks are rid of it


def test_a_judge_that_looks_at_nothing_but_the_place_is_found_out():
    """Every row deviates in exactly the same way, so that the covariance about the mean would be nothing."""
    build = judge_builds(prompts(40), ListSampler(four), FunctionJudge(lambda r: [1.0, 0.0, 0.0, 0.0]), config())
    position = bias_report(build[1], build[0]).position
    assert position.places[0].first_share == 1.0 and position.p_value < 1e-6


def test_only_the_last_attempt_counts_and_what_could_not_be_read_does_not():
    rows = [ranked("q", [3.0, 2.0, 1.0])]
    key = rows[0]["prompt_id"]
    judgments = [
        judgment(key, scores=[None] * 3, status="malformed"),
        judgment(key, attempt=1),
        judgment(key, repeat=1, scores=[None] * 3, status="refused"),
        judgment(key, repeat=2, scores=[3.0, 9.0, 0.0], status="inconsistent"),
        judgment(key, repeat=3, scores=[1.0, None, 0.0]),
    ]
    report = bias_report(judgments, rows)
    assert [place.shown for place in report.position.places] == [1, 1, 1]
    assert report.agreement.repeats == {1: 1} and report.agreement.same_best.rows == 0
    assert "repeats=2" in report.table()


def test_questions_of_two_and_of_one_are_counted_as_what_they_are():
    rows = [ranked("q", [2.0, 1.0, 0.0])]
    key = rows[0]["prompt_id"]
    pairs = [judgment(key, pair, [1.0, 0.0]) for pair in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)]]
    position = bias_report(pairs, rows).position
    assert [place.expected for place in position.places] == [0.5, 0.5] and position.places[0].first_share == 1.0
    assert position.balanced.value == 1.0 and position.left.rows == 0  # no question shows all three
    alone = [judgment(key, (i,), [float(i)], repeat=k) for i in range(3) for k in range(2)]
    report = bias_report(alone, rows)
    assert report.position.places == () and report.position.p_value is None
    assert report.agreement.all_equal.value == 1.0
    assert "not measured" in report.table()


def test_the_judges_own_are_measured_against_the_others_of_their_row():
    def row(k, ranks):
        kinds = [("claude-opus-5-5", "judge"), ("claude-haiku-5-5", "dataset"), ("llama-7b", "dataset")]
        responses = [
            {"content": f"{k}{model}", "rank": rank, "model": model, "source": source}
            for (model, source), rank in zip(kinds, ranks, strict=True)
        ]
        return make_row(f"q{k}", responses, ranking_method="judge", ranker="claude-opus-5-5")

    found = bias_report([], [row(0, [1, 2, 3]), row(1, [2, 2, 1]), row(2, [1, None, 2])]).self_preference
    # own against the mean of the others: 2.5 - 1, (1 + 2.5) / 2 - 2.5, 2 - 1; the family: 3 - 1.5, 1 - 2.5, 2 - 1
    assert found["answer"].advantage.value == pytest.approx((1.5 - 0.75 + 1) / 3)
    assert found["answer"] == found["model"]
    assert found["family"].advantage.value == pytest.approx((1.5 - 1.5 + 1) / 3) and found["family"].responses == 5
    assert bias_report([], [ranked("q", [1.0, 2.0])]).self_preference == {}


@pytest.mark.parametrize(
    ("model", "name"),
    [("claude-fable-5-1", "claude"), ("openai/gpt-4.1", "gpt"), ("GPT-4o", "gpt"), ("mistral:7b", "mistral"),
     ("google/gemma-3", "gemma"), ("01-ai", "01-ai"), ("Qwen/Qwen2.5-7B", "qwen")],
)  # fmt: skip
def test_a_family_is_the_name_without_its_numbers(model, name):
    assert family(model) == name


def test_lengths_are_in_characters_where_tokens_are_not_known():
    report = bias_report([], [ranked("a", [1.0, 2.0], [9, 1]), ranked("b", [1.0, 2.0])])
    assert report.length.unit == "characters" and report.length.longer_wins.value == 1.0
    assert bias_report([], [ranked("a", [1.0, 2.0], [9, 1])]).length.longer_wins.value == 0.0


def test_equal_prompts_of_two_splits_and_of_one_stay_apart():
    options = config(repeats=2)
    twice = [{"prompt": "same"}, {"prompt": "same"}]
    rows, judgments = judge_builds(
        {"a": twice, "b": twice}, ListSampler(four), FunctionJudge(prefers("beta")), options
    )
    report = bias_report(judgments, rows)
    assert report.agreement.repeats == {2: 4}
    assert report.position.left.rows == 4
    # a stream, read once, says the same
    assert (
        bias_report({s: iter(list(p)) for s, p in judgments.items()}, {s: iter(list(p)) for s, p in rows.items()})
        == report
    )


def test_judgments_of_another_build_are_refused():
    build = judge_builds({"a": prompts(1)}, ListSampler(four), FunctionJudge(prefers("x")), config())
    with pytest.raises(InputError, match="splits that `ranked` lacks: a"):
        bias_report(build[1], DatasetDict(b=build[0]["a"]))
    with pytest.raises(SchemaError, match=r"split 'train', row 1: column 'scores' has 2 entries for 3"):
        bias_report([judgment(), judgment(scores=[1.0, 2.0])], [])


def test_an_empty_build_says_so():
    text = bias_report([], []).table()
    assert "nan" not in text and "None" not in text and text.count("unknown (no rows)") == 2
