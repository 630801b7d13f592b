"""The kinds of training: which rows each reads, which options it takes, which tokens it is said to have trained on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sweeps import InThisProcess, sweep_content, write_sweep
from tiny import chatml_tokenizer
from training import ranked_dataset

from tuna_trl.clients.reference import ReferenceJudge
from tuna_trl.collator import RankedCollator
from tuna_trl.data.files import rows_to_dataset
from tuna_trl.data.tokenize import tokenize_row
from tuna_trl.errors import InputError
from tuna_trl.pipelines.ablation import run_ablation
from tuna_trl.pipelines.ablation_data import load_sft, reranked
from tuna_trl.pipelines.baselines import KINDS, generation_defaults, judge_reward, parse, reaches, training_rows
from tuna_trl.pipelines.token_meter import TokenMeter, count, last_whole_checkpoint
from tuna_trl.tokens import Template


@pytest.fixture
def ranked():
    return rows_to_dataset((f"row {i}", row) for i, row in enumerate(ranked_dataset(8)))


def ranks(row):
    return [response["rank"] for response in row["responses"] if response["rank"] is not None]


def test_every_kind_is_trained_measured_and_judged(tmp_path, tiny_folder):
    arms = {name: {"trainer": name} for name in KINDS if name != "start"}
    arms["dpo_all"] = {"trainer": "dpo", "pairs": "all"}
    arms["by_proxy"] = {"ranked_by": "reward_judge"}
    arms["rloo"]["reward"] = "reward_judge"
    path = write_sweep(tmp_path, sweep_content(tmp_path, tiny_folder, arms))
    calls = InThisProcess()
    result, code = run_ablation(path, call=calls, say=lambda text: None)
    assert code == 0 and [name for name, _ in calls.asked][:2] == ["start", "reward_judge"]
    for name, arm in result["arms"].items():
        figures = set(arm["figures"])
        wanted = {"rank_accuracy", "kendall_tau"}
        assert figures == (wanted if name == "reward_judge" else wanted | {"judge_score", "answer_tokens"})
        assert name == "start" or arm["cost"]["0"]["tokens"] > 0
        assert name == "start" or arm["cost"]["0"]["steps"] == 2
    assert {"results.json", "results.md", "results.svg"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_rows_of_each_kind_are_those_of_the_ranking(ranked):
    best = training_rows("sft_best", ranked)
    assert [row["completion"][0]["content"] for row in best] == [row["responses"][0]["content"] for row in ranked]
    assert len(training_rows("sft_all", ranked)) == sum(len(ranks(row)) for row in ranked)
    reference = training_rows("sft_reference", ranked)
    assert [row["completion"][0]["content"] for row in reference] == ranked["reference"]
    pairs = sum(a < b for row in ranked for a in ranks(row) for b in ranks(row))
    assert len(training_rows("dpo", ranked, "all")) == pairs > len(training_rows("dpo", ranked)) == len(ranked)
    assert training_rows("grpo", ranked).column_names == ["prompt", "reference"]
    assert training_rows("tuna", ranked) is ranked
    with pytest.raises(InputError, match="none of 8 rows"):
        training_rows("sft_reference", ranked.map(lambda row: {"reference": None}, features=ranked.features))


def test_the_same_file_of_options_makes_every_config(tmp_path):
    for kind in KINDS:
        if kind != "start":
            given = {"learning_rate": "1e-3", "use_peft": True, "lora_r": 3, "activation_checkpointing": False}
            given |= generation_defaults(kind, given, 4, 32)
            args, model_config = parse(kind, given, tmp_path, 7)
            assert args.learning_rate == 1e-3 and args.seed == 7 and args.activation_checkpointing is False
            assert model_config.use_peft and model_config.lora_r == 3
            assert args.output_dir == str(tmp_path) and args.report_to == []


def test_an_on_policy_step_takes_as_many_prompts_as_any_other(tmp_path):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    args, _ = parse("grpo", {**options, **generation_defaults("grpo", options, 4, 32)}, tmp_path, 0)
    assert args.num_generations == 4 and args.max_completion_length == 32
    assert args.generation_batch_size // args.num_generations == 2 * 3
    assert generation_defaults("grpo", {"num_generations": 2}, 4, 32)["num_generations"] == 2
    assert generation_defaults("dpo", options, 4, 32) == {}


def test_what_only_ranking_has_reaches_only_ours():
    assert reaches("tuna", "margin") and reaches("rrhf", "margin") and not reaches("dpo", "margin")
    assert all(reaches(kind, "learning_rate") and reaches(kind, "max_length") for kind in KINDS if kind != "start")


# ---- tokens ----


@pytest.mark.parametrize("target", ["all", "best", "reference", "none"])
@pytest.mark.parametrize("ranking", [True, False])
def test_ranked_tokens_are_those_of_a_loss(ranked, target, ranking):
    tokenizer = chatml_tokenizer()
    template = Template(tokenizer)
    rows = [tokenize_row(row, template) for row in ranked]
    batch = RankedCollator(pad_token_id=template.pad_token_id, mle_target=target)(rows)
    expected, mle_end, rank_end = 0, 2, 1  # <|im_end|>; the likelihood also has the line break behind it
    for row in ranked:
        for response in row["responses"]:
            length = len(tokenizer(response["content"])["input_ids"])
            likely = target == "all" or (target == "best" and response["rank"] == 1)
            expected += length + mle_end if likely else (length + rank_end) * ranking
        if target == "reference":
            expected += len(tokenizer(row["reference"])["input_ids"]) + mle_end
    tokens, processed = count(batch, "ranked", ranking=ranking)
    assert tokens == expected
    assert processed == int(batch["attention_mask"].sum()) >= tokens


def test_tokens_of_the_other_kinds():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    labels = torch.tensor([[-100, 5, 6, 7], [3, 4, -100, -100]])
    # a first label has nothing before it to be predicted from
    assert count({"input_ids": mask, "attention_mask": mask, "labels": labels}, "labels") == (4, 6)
    assert count({"input_ids": mask, "labels": labels}, "labels") == (4, 8)
    assert count({"attention_mask": mask, "completion_mask": mask[:, 2:]}, "completions") == (2, 6)
    assert count({"prompt_mask": mask, "completion_mask": mask}, "completions") == (6, 12)
    assert count({"attention_mask": mask}, "sequences") == (6, 6)


def test_a_meter_is_carried_by_whole_checkpoints(tmp_path):
    meter = TokenMeter("sequences", 10)
    meter.on_train_begin(None, None, None)
    meter.add({"attention_mask": torch.ones(2, 4)})
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    meter.save(tmp_path / "checkpoint-9")
    meter.save(tmp_path / "checkpoint-10")
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    other = TokenMeter("sequences", 10)
    other.load(tmp_path / "checkpoint-10")
    assert other.totals == meter.totals and other.share == 0.8
    control = SimpleNamespace(should_training_stop=False)
    other.on_step_end(None, SimpleNamespace(global_step=4), control)
    assert not control.should_training_stop
    other.add({"attention_mask": torch.ones(1, 2)})
    other.on_step_end(None, SimpleNamespace(global_step=5), control)
    assert control.should_training_stop and other.totals.steps == 5


# ---- judges as rewards and as rankers ----


class Counting:
    """Scores by length; keeps what it was asked."""

    name = "counting"

    def __init__(self, status="ok"):
        self.requests, self.status = [], status

    def ask(self, requests):
        self.requests += requests
        return requests

    def parse(self, request, reply):
        scores = tuple(float(len(text)) for text in request.candidates)
        return SimpleNamespace(status=self.status, scores=scores)


def test_the_samples_of_a_prompt_are_judged_together_and_equal_ones_once():
    judge = Counting()
    prompts = [[{"role": "user", "content": c}] for c in "aabba"]
    texts = ["x", "xx", "xxx", "x", "x"]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    found = judge_reward(judge)(prompts=prompts, completions=completions, completion_ids=[], reference=["r"] * 5)
    assert found == [1.0, 2.0, 3.0, 1.0, 1.0]
    assert [request.candidates for request in judge.requests] == [("x", "xx"), ("xxx", "x")]
    assert judge_reward(Counting("malformed"))(prompts=prompts, completions=completions) == [None] * 5


def test_a_reference_judge_rewards_likeness():
    reward = judge_reward(ReferenceJudge())
    prompt = [{"role": "user", "content": "?"}]
    found = reward(prompts=[prompt] * 2, completions=["a red fox", "no"], reference=["a red fox"] * 2)
    assert found[0] == 1.0 > found[1]


def test_rows_are_ranked_anew_by_scores(ranked):
    from tuna_trl.data.schema import check_row

    for old, new in zip(ranked, reranked(ranked, Counting()), strict=True):
        check_row(new)
        lengths = [len(response["content"]) for response in new["responses"]]
        assert lengths == sorted(lengths, reverse=True) and new["ranker"] == "counting"
        assert {r["index"] for r in new["responses"]} == {r["index"] for r in old["responses"]}
    with pytest.raises(InputError, match="could score none"):
        reranked(ranked, Counting("malformed"))


def test_sft_rows_of_every_form_become_one_response(tmp_path):
    file = tmp_path / "sft.jsonl"
    file.write_text(
        '{"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]}\n'
        '{"prompt": [{"role": "user", "content": "p"}], "completion": [{"role": "assistant", "content": "c"}]}\n'
        '{"instruction": "p", "input": "", "output": "c"}\n'
        '{"prompt": "p", "responses": [{"content": "d", "rank": 2}, {"content": "c", "rank": 1}]}\n'
    )
    for row in load_sft(str(file)):
        assert row["prompt"] == [{"role": "user", "content": "p"}]
        assert [(r["content"], r["rank"]) for r in row["responses"]] == [("c", 1)]
    file.write_text('{"text": "p"}\n')
    with pytest.raises(InputError, match="row 0 has the columns 'text'"):
        load_sft(str(file))
