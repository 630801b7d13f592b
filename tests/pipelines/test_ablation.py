"""A sweep: what is finished is skipped, what changed is done again, equal settings are equal, means are means."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweeps import BASE, InThisProcess, ranked_file, sweep_content, write_sweep

from tuna_trl.errors import InputError
from tuna_trl.pipelines.ablation import run_ablation
from tuna_trl.pipelines.ablation_config import make_sweep, read_sweep
from tuna_trl.pipelines.ablation_data import fewer_responses, load_rows
from tuna_trl.pipelines.ablation_figure import figure
from tuna_trl.pipelines.ablation_results import FIGURES, aggregate, markdown, over_seeds
from tuna_trl.pipelines.baselines import generation_defaults, parse


ROOT = Path(__file__).parents[2]
EXAMPLES = sorted([*(ROOT / "examples" / "ablations").glob("*.yaml"), *(ROOT / "benchmarks").glob("*.yaml")])


def run(folder, content, **calls):
    calls = InThisProcess(**calls)
    result, code = run_ablation(write_sweep(folder, content), call=calls, say=lambda text: None)
    return result, code, calls.asked


@pytest.fixture
def content(tmp_path, tiny_folder):
    def make(arms, **top):
        return sweep_content(tmp_path, tiny_folder, arms, **top)

    return make


# ---- resuming and pairing ----


def test_a_finished_sweep_runs_nothing_and_says_the_same(tmp_path, content):
    sweep = content({"sft": {"trainer": "sft_best"}, "tuna": {}}, seeds=[0, 1])
    first, code, asked = run(tmp_path, sweep)
    assert code == 0 and asked == [("start", 0), ("sft", 0), ("tuna", 0), ("sft", 1), ("tuna", 1)]
    written = (tmp_path / "out" / "results.json").read_bytes()
    again, code, asked = run(tmp_path, sweep)
    assert code == 0 and asked == [] and again == first
    assert (tmp_path / "out" / "results.json").read_bytes() == written


def test_what_changed_is_done_again_and_nothing_else(tmp_path, content):
    arms = {"one": {"learning_rate": 1e-3}, "two": {"learning_rate": 1e-4}}
    run(tmp_path, content(arms))
    trained = tmp_path / "out" / "runs" / "one" / "seed_0" / "stage_1" / "done.json"
    before = trained.stat().st_mtime_ns
    arms["two"]["learning_rate"] = 3e-4
    assert run(tmp_path, content(arms))[2] == [("two", 0)]
    ranked_file(tmp_path / "heldout.jsonl", 3, seed=5, word="other")
    result, _, asked = run(tmp_path, content(arms))  # other held-out rows: all are measured, none is trained
    assert asked == [("start", 0), ("one", 0), ("two", 0)] and trained.stat().st_mtime_ns == before
    assert result["arms"]["one"]["figures"]["judge_score"]["rows"] == 3
    ranked_file(tmp_path / "train.jsonl", 9, seed=6, word="train")
    assert run(tmp_path, content(arms))[2] == [("one", 0), ("two", 0)]
    assert trained.stat().st_mtime_ns > before


def test_a_run_that_fails_stops_the_sweep_and_keeps_what_is_finished(tmp_path, content):
    arms = {"one": {}, "two": {"mle_weight": 0}}
    result, code, asked = run(tmp_path, content(arms), fail_at="two")
    assert result is None and code == 2 and asked[-1] == ("two", 0)
    assert run(tmp_path, content(arms))[2] == [("two", 0)]


@pytest.mark.parametrize("trainer", ["tuna", "sft_best", "dpo"])
def test_a_stopped_training_goes_on_to_the_same_end(tmp_path, content, trainer, monkeypatch):
    from tuna_trl.pipelines.token_meter import TokenMeter

    base = {**BASE, "max_steps": 4, "save_steps": 1}
    whole, *_ = run(tmp_path, content({"arm": {"trainer": trainer}}, base=base, output=str(tmp_path / "whole")))

    def stop(self, args, state, control, **kwargs):
        stepped(self, args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt

    sweep = content({"arm": {"trainer": trainer}}, base=base)
    with monkeypatch.context() as patch:
        stepped = TokenMeter.on_step_end
        patch.setattr(TokenMeter, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, sweep)
    folder = tmp_path / "out" / "runs" / "arm" / "seed_0" / "stage_1"
    assert (folder / "checkpoint-2").is_dir()
    (folder / "checkpoint-3").mkdir(exist_ok=True)  # as a kill leaves it: begun and not whole
    parts, code, asked = run(tmp_path, sweep)
    assert code == 0 and asked == [("arm", 0)]
    for key in ("tokens", "processed", "steps"):
        assert parts["arms"]["arm"]["cost"]["0"][key] == whole["arms"]["arm"]["cost"]["0"][key]
    assert weights(tmp_path / "out", "arm") == weights(tmp_path / "whole", "arm")


def weights(output, arm, stage=1):
    from safetensors.numpy import load_file

    file = output / "runs" / arm / "seed_0" / f"stage_{stage}" / "model" / "adapter_model.safetensors"
    return {name: value.tobytes() for name, value in load_file(file).items()}


def test_arms_of_equal_settings_are_equal_and_of_other_seeds_are_not(tmp_path, content):
    arms = {"one": {"mle_target": "best"}, "two": {"mle_target": "best"}, "other": {"mle_target": "all"}}
    result, *_ = run(tmp_path, content(arms, seeds=[0, 3]))
    assert weights(tmp_path / "out", "one") == weights(tmp_path / "out", "two")
    assert weights(tmp_path / "out", "one") != weights(tmp_path / "out", "other")
    one, two = result["arms"]["one"], result["arms"]["two"]
    assert one["figures"] == two["figures"] and one["seed_means"] == two["seed_means"]
    runs = [(tmp_path / "out" / "runs" / "one" / f"seed_{seed}" / "measured.json").read_text() for seed in (0, 3)]
    rows = [json.loads(text)["rank_accuracy"] for text in runs]
    assert one["figures"]["rank_accuracy"]["mean"] == pytest.approx(np.mean(rows))


# ---- data options ----


def test_two_stages_are_trained_one_on_the_other_in_the_order_given(tmp_path, content):
    first = str(ranked_file(tmp_path / "first.jsonl", 8, seed=3, word="first"))
    second = str(ranked_file(tmp_path / "second.jsonl", 8, seed=4, word="second"))
    arms = {
        "forth": {"train": [first, second], "second_stage": {"learning_rate": 1e-3}},
        "back": {"train": [second, first]},
        "mixed": {"train": {"mixed": [first, second]}},
        "only": {"train": first},
    }
    result, *_ = run(tmp_path, content(arms))
    assert weights(tmp_path / "out", "forth", 1) == weights(tmp_path / "out", "only")
    assert weights(tmp_path / "out", "forth", 2) != weights(tmp_path / "out", "forth", 1)
    assert weights(tmp_path / "out", "forth", 2) != weights(tmp_path / "out", "back", 2)
    assert [result["arms"][name]["cost"]["0"]["steps"] for name in arms] == [4, 4, 2, 2]


def test_sft_data_mixed_in_trains_the_likelihood_and_makes_no_pair(tmp_path, content):
    sft = tmp_path / "sft.jsonl"
    sft.write_text('{"instruction": "Say it", "input": "now", "output": "it"}\n{"prompt": "a", "completion": "b"}\n')
    arms = {"mixed": {"mix_sft": str(sft), "train_rows": 2}, "plain": {"train_rows": 2}}
    base = {**BASE, "max_steps": -1, "num_train_epochs": 1}
    result, *_ = run(tmp_path, content(arms, base=base))
    cost = {name: result["arms"][name]["cost"]["0"]["tokens"] for name in arms}
    # "it" and "b" with <|im_end|> and a line break, in bytes
    assert cost["mixed"] - cost["plain"] == (2 + 2) + (1 + 2)


@given(st.lists(st.one_of(st.none(), st.integers(1, 4)), min_size=1, max_size=6), st.data())
def test_fewer_responses_are_the_first_drawn_and_the_best_of_them(ranks, data):
    from tuna_trl.data.schema import check_row, dense_to_competition, make_row

    ranked = iter(dense_to_competition([rank for rank in ranks if rank is not None]))
    ranks = [None if rank is None else next(ranked) for rank in ranks]
    responses = [{"content": str(i), "index": i, "rank": rank} for i, rank in enumerate(ranks)]
    row = make_row("p", responses, ranking_method="judge", ranker="j")
    drawn = data.draw(st.one_of(st.none(), st.integers(1, 7)))
    best = data.draw(st.one_of(st.none(), st.integers(1, 7)))
    found = fewer_responses(row, drawn, best)
    check_row(found)
    within = [(rank, i) for i, rank in enumerate(ranks) if rank is not None and (drawn is None or i < drawn)]
    kept = [r["index"] for r in found["responses"] if r["rank"] is not None]
    assert kept == [i for _, i in sorted(within)][:best]
    for a in found["responses"]:
        for b in found["responses"]:
            if a["rank"] is not None and b["rank"] is not None:
                assert (a["rank"] < b["rank"]) == (ranks[a["index"]] < ranks[b["index"]])
    assert row == make_row("p", responses, ranking_method="judge", ranker="j")  # not changed


# ---- the budget ----


@pytest.mark.parametrize("trainer", ["tuna", "sft_all", "grpo"])
def test_a_budget_ends_every_arm_at_the_step_that_reaches_it(tmp_path, content, trainer):
    base = {k: v for k, v in BASE.items() if k != "max_steps"} | {"lr_scheduler_type": "linear", "logging_steps": 1}
    result, *_ = run(tmp_path, content({"arm": {"trainer": trainer}}, base=base, tokens=400))
    cost = result["arms"]["arm"]["cost"]["0"]
    assert 400 <= cost["tokens"] < 400 + 2.5 * cost["tokens"] / cost["steps"]
    log = json.loads((tmp_path / "out" / "runs" / "arm" / "seed_0" / "stage_1" / "log_history.json").read_text())
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    assert rates == sorted(rates, reverse=True) and rates[0] == pytest.approx(1e-2) and rates[-1] < 4e-3


# ---- the figures ----


def test_over_seeds_is_the_mean_and_lacks_what_a_seed_lacks():
    assert over_seeds([[1.0, None, 0.0], [0.0, 1.0, 0.5]]) == [0.5, None, 0.25]


def test_the_aggregation_agrees_with_an_oracle(tmp_path, content):
    rng = random.Random(0)
    rows = str(ranked_file(tmp_path / "many.jsonl", 30, seed=2, word="many"))
    arms = {"sft": {"trainer": "sft_best"}, "tuna": {}}
    sweep = make_sweep(content(arms, seeds=[0, 1, 2], heldout=rows, baseline=["sft", "tuna"]))
    heldout = load_rows(sweep.heldout, None, "test")
    runs = {}
    for arm in sweep.arms:
        seeds = sweep.seeds[:1] if arm.name == "start" else sweep.seeds
        runs[arm.name] = {seed: measured(rng, heldout) for seed in seeds}
    result = aggregate(sweep, runs, heldout, {"judge": "test"})
    for name, by_seed in runs.items():
        for key in FIGURES:
            mean, low, high = oracle([run[key] for run in by_seed.values()])
            found = result["arms"][name]["figures"][key]
            assert found["mean"] == pytest.approx(mean)
            assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.12 * (high - low))
            for other in {"start", "sft", "tuna"} - {name}:
                rows = [run[key] for run in runs[other].values()]
                mean, low, high = oracle([run[key] for run in by_seed.values()], rows)
                found = result["arms"][name]["differences"][other][key]
                assert found["mean"] == pytest.approx(mean)
                assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.12 * (high - low))
    assert result["arms"]["tuna"]["seed_means"]["answer_tokens"]["2"] == pytest.approx(
        np.mean(runs["tuna"][2]["answer_tokens"])
    )
    text = markdown(result)
    for name in runs:
        assert f"| {name} |" in text and f"## Difference to {name}, prompt by prompt" in text
    assert figure(result).count("<circle") == 4 * (1 + 4 + 4)  # means, and three seeds of two arms


def test_the_baselines_are_those_named_else_the_first_that_is_sft_on_best(content):
    arms = {"one": {}, "two": {"trainer": "sft_best"}, "three": {"trainer": "sft_best"}}
    named = {None: ("two",), "one": ("one",)}
    assert {name: make_sweep(content(arms, baseline=name)).baselines for name in named} == named
    assert make_sweep(content(arms, baseline=["three", "one"])).baselines == ("three", "one")
    assert make_sweep(content({"one": {}})).baselines == ()


def measured(rng, heldout):
    found = {key: [rng.random() for _ in heldout] for key in FIGURES}
    found["response_tokens"] = [[len(r["content"]) for r in row["responses"]] for row in heldout]
    return {**found, "finish_reasons": ["stop"] * len(heldout), "cost": {}}


def oracle(runs, against=None):
    """Mean and interval by plain loops, with another generator: equal up to the noise of the resampling."""
    rows = [sum(run[i] for run in runs) / len(runs) for i in range(len(runs[0]))]
    if against is not None:
        rows = [value - sum(run[i] for run in against) / len(against) for i, value in enumerate(rows)]
    rng, means = random.Random(1), []
    for _ in range(4000):
        means.append(sum(rng.choice(rows) for _ in rows) / len(rows))
    means.sort()
    return sum(rows) / len(rows), means[100], means[-101]


def test_the_figure_is_xml_and_takes_any_name(tmp_path, content):
    from xml.etree import ElementTree

    rng = random.Random(0)
    sweep = make_sweep(content({'<a> & "b" |': {}}, seeds=[0]))
    heldout = load_rows(sweep.heldout, None, "test")
    runs = {arm.name: {0: measured(rng, heldout)} for arm in sweep.arms}
    result = aggregate(sweep, runs, heldout, {"judge": "test"})
    ElementTree.fromstring(figure(result))
    header = markdown(result).splitlines()[2]
    assert all(line.replace("\\|", "").count("|") == header.count("|") for line in markdown(result).splitlines()[2:6])
    assert not math.isnan(result["arms"]["start"]["figures"]["rank_accuracy"]["mean"])


# ---- what is refused ----


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arm": {}}, "Did you mean 'arms'"),
        ({"seeds": [0, 0]}, "seeds"),
        ({"seeds": 3}, "seeds"),
        ({"tokens": 0}, "tokens"),
        ({"baseline": "sft"}, "no arm in `baseline` 'sft'"),
        ({"baseline": ["a", "b"]}, "no arm in `baseline` 'b'"),
        ({"baseline": ["a", "a"]}, "different"),
        ({"baseline": []}, "baseline"),
        ({"baseline": {"a": 1}}, "baseline"),
        ({"arms": {}}, "nothing to compare"),
        ({"arms": {"a": {"trainer": "sft"}}}, "Did you mean 'sft_"),
        ({"arms": {"a": {"margn": 1}}}, "Did you mean 'margin'"),
        ({"arms": {"a": {"trainer": "dpo", "margin": 1}}}, "DPOConfig has no `margin`"),
        ({"base": {"bta": 1}}, "TunaConfig has no `bta`"),
        ({"base": {"max_length": 9}, "arms": {"a": {"trainer": "grpo"}}}, "without: \\[max_length\\]"),
        ({"base": {"output_dir": "x"}}, "output_dir"),
        ({"arms": {"a": {"trainer": "rrhf", "ranking_loss": "tuna"}}}, "trainer: tuna"),
        ({"arms": {"a": {"ranked_by": "b"}}}, "ranked_by"),
        ({"arms": {"a": {"trainer": "dpo", "pairs": "worst"}}}, "pairs"),
        ({"arms": {"a": {"trainer": "dpo", "mix_sft": "x"}}}, "mix_sft"),
        ({"arms": {"a": {"train_rows": "many"}}}, "train_rows"),
        ({"arms": {"a": {"train": ["x", "y", "z"]}}}, "train"),
        ({"arms": {"a": {"second_stage": {"learning_rate": 1}}}}, "two stages"),
        ({"arms": {"start": {"trainer": "tuna"}}}, "untrained"),
        ({"arms": {"a": {}, "A": {}}}, "share a folder"),
        ({"vary": {"margin": 1}}, "list of values"),
        ({"vary": {"margin": [1, 1]}}, "twice"),
        ({"vary": {"margin": [1]}, "vary_from": "b"}, "vary_from"),
        ({"grid": {"magrin": [1]}}, "margin"),
        ({"judge": 3}, "judge"),
        ({"heldout": None}, "heldout"),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_loaded(content, change, words):
    with pytest.raises(InputError, match=words):
        make_sweep({**content({"a": {}}), **change})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"judge": "refrence"}, "reference"),
        ({"base": {**BASE, "learning_rate": "fast"}}, "learning_rate"),
        ({"base": {**BASE, "mle_weight": -1}}, "mle_weight"),
        ({"train": "nowhere"}, "nowhere"),
    ],
)
def test_a_wrong_value_is_said_before_anything_is_trained(tmp_path, content, change, words):
    calls = InThisProcess()
    with pytest.raises(InputError, match=words):
        run_ablation(write_sweep(tmp_path, {**content({"a": {}}), **change}), call=calls, say=lambda text: None)
    assert calls.asked == []


def test_prompts_that_are_trained_on_are_not_measured_on(tmp_path, content):
    sweep = content({"a": {}})
    with pytest.raises(InputError, match="12 of 12 prompts"):
        run(tmp_path, {**sweep, "heldout": sweep["train"]})


def test_vary_is_one_arm_a_value_and_grid_one_a_combination(content):
    arms = {"ground": {"mle_target": "best"}}
    top = {"vary": {"margin": [0, 0.5]}, "grid": {"num_responses": [2, 3], "mle_weight": [1]}, "vary_from": "ground"}
    sweep = make_sweep(content(arms, **top))
    names = [
        "start",
        "ground",
        "margin=0",
        "margin=0.5",
        "num_responses=2,mle_weight=1",
        "num_responses=3,mle_weight=1",
    ]
    assert [arm.name for arm in sweep.arms] == names
    assert all(arm.options["mle_target"] == "best" for arm in sweep.arms[1:])
    assert sweep.arm("margin=0.5").options["margin"] == 0.5
    assert sweep.arms[-1].data == {"num_responses": 3}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_option_of_an_example_is_one_that_its_trainer_takes(path, tmp_path):
    sweep = read_sweep(path)
    for arm in sweep.arms[1:]:
        options = {**arm.options, **arm.second}
        options |= generation_defaults(arm.trainer, options, 4, sweep.max_new_tokens)
        args, model_config = parse(arm.trainer, options, tmp_path, 0)
        assert model_config.use_peft and args.lr_scheduler_type == "cosine"


def test_there_are_examples():
    assert EXAMPLES


def test_a_judge_in_this_process_is_loaded_when_all_is_trained(tmp_path, content, monkeypatch):
    from tuna_trl.clients import judges

    loaded = []
    make = judges.judge_by_name

    def noted(name, **options):
        loaded.append(name)
        return make("reference")

    monkeypatch.setattr(judges, "judge_by_name", noted)
    calls = InThisProcess()
    path = write_sweep(tmp_path, content({"a": {}}, judge={"name": "local:nowhere", "dtype": "bfloat16"}))
    _, code = run_ablation(path, call=lambda file: calls(file) or loaded.clear() or 0, say=lambda text: None)
    assert code == 0 and len(calls.asked) == 2 and loaded == ["local:nowhere"]
    with pytest.raises(InputError, match="dtype"):
        run(tmp_path, content({"a": {}}, judge={"name": "local:nowhere", "dtyp": "bfloat16"}))
