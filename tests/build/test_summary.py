"""What is said at the end of a judge's build adds up."""

from __future__ import annotations

import json

from doubles.builders import FunctionJudge, ListSampler, config, four, prefers, prompts

from tuna_trl.build.judge import judge_builds
from tuna_trl.build.summary import refusal_category, summarise_judge_build
from tuna_trl.clients.base import Reply, Usage


def build(reply, rows=6, price=0.25, **options):
    judge = FunctionJudge(reply, price=price)
    return judge_builds(prompts(rows), ListSampler(four), judge, config(**options)), judge


def mixed(request):
    """Refused for every third question, malformed at first for every other one."""
    k = int(request.prompt[0]["content"].split()[-1])
    if k % 3 == 2:
        details = {"stop_details": {"category": "frontier_llm" if k == 2 else None}, "text": ""}
        return Reply(json.dumps(details), "refused", "r", "judge-1", Usage(input=5, cached=2, cache_write=1))
    if k % 3 == 1:
        return "A > B"
    return Reply('{"scores": [4, 3, 2, 1], "order": null}', "stop", "r", "judge-1", Usage(7, 0, 0, 9, 4))


def test_rows_replies_tokens_and_money_add_up():
    (ranked, judgments), judge = build(mixed, max_malformed=2)
    summary = summarise_judge_build(ranked, judgments)
    assert summary.rows == 6 and summary.status == {"ok": 2, "refused": 2, "malformed": 2}
    assert summary.replies == {"ok": 2, "refused": 2, "malformed": 6} and len(judge.requests) == 10
    assert summary.refusals == {"frontier_llm": 1, "no category": 1}
    assert summary.usage == {
        "input": 2 * 5 + 2 * 7 + 6 * 10, "cached": 4, "cache_write": 2, "output": 2 * 9 + 6, "thinking": 8,
    }  # fmt: skip
    assert summary.cost == 2.5 and summary.unpriced == 0
    text = summary.table()
    for line in ("6: 2 ok, 2 refused, 2 malformed", "1 frontier_llm", "84 in, 4 read from the cache, 2 written to it",
                 "24 out (of which 8 thinking)", "2.5000 USD"):  # fmt: skip
        assert line in text
    assert json.loads(json.dumps(summary.to_json(), allow_nan=False))["bias"]["judges"] == ["judge-1"]


def test_a_price_that_is_not_known_is_not_nothing():
    (ranked, judgments), _ = build(prefers("beta"), price=None)
    summary = summarise_judge_build(ranked, judgments)
    assert summary.cost is None and summary.unpriced == 6 and "unknown" in summary.table()
    some = judgments["train"].map(lambda row, i: {"cost": 0.5 if i else None}, with_indices=True)
    summary = summarise_judge_build(ranked, {"train": some})
    assert summary.cost == 2.5 and summary.unpriced == 1 and "1 reply without" in summary.table()


def test_splits_are_added_up_and_lists_do_as_well():
    (ranked, judgments), _ = build(prefers("beta"), repeats=2)
    summary = summarise_judge_build(ranked, judgments)
    assert summarise_judge_build(list(ranked["train"]), list(judgments["train"])) == summary
    two = summarise_judge_build(
        {"a": ranked["train"], "b": ranked["train"]}, {"a": judgments["train"], "b": judgments["train"]}
    )
    assert two.rows == 12 and two.cost == 2 * summary.cost


def test_a_build_in_which_nothing_was_asked_says_so():
    sampler = ListSampler(lambda prompt: ["same"] * 4)
    build = judge_builds(prompts(2), sampler, FunctionJudge(prefers("x")), config())
    summary = summarise_judge_build(*build)
    assert summary.cost is None and "nothing was asked" in summary.table() and "none was asked" in summary.table()


def test_a_category_is_read_or_missing_but_never_an_error():
    assert refusal_category('{"stop_details": {"category": "bio"}}') == "bio"
    for raw in (None, "", "no", "[]", '{"stop_details": null}', '{"stop_details": {"category": 3}}', "[" * 100_000):
        assert refusal_category(raw) == "no category"
