"""What a user of the package writes: every public name once, read by mypy (tests/test_typing.py), never run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import tuna_trl
from tuna_trl import (
    BudgetExceeded,
    BuildError,
    InputError,
    JudgeBuildConfig,
    RankedCollator,
    SchemaError,
    TeacherBuildConfig,
    TrainingMemoryError,
    TunaConfig,
    TunaTrainer,
    build_judge_ranked,
    build_teacher_folder,
    build_teacher_ranked,
    import_ranked,
    judge_by_name,
    lm_eval_tasks_path,
    load_ranked,
    normalise_row,
    push_to_hub,
    rank_by_judge,
    rank_by_teacher,
    ranked_features,
    ranking_loss,
    register_ranking_loss,
    save_ranked,
    score_rows,
    to_kto,
    to_lmops,
    to_preference,
    to_sft,
    validate,
)
from tuna_trl.clients.local import TransformersSampler
from tuna_trl.loading import load_model, load_tokenizer


version: str = tuna_trl.__version__
prompts: list[dict[str, Any]] = [{"prompt": "Name a colour.", "reference": "Blue."}]


def build(folder: Path) -> Path:
    sampler = TransformersSampler(load_model("embedded"), load_tokenizer("embedded"), name="embedded")
    by_teacher = build_teacher_ranked(prompts, sampler, TeacherBuildConfig(num_responses=4, journal=folder / "j"))
    whole: Path = build_teacher_folder(prompts, sampler, folder / "t", card={"license": "cc0-1.0"})
    judge = judge_by_name("claude", effort="low")
    try:
        by_judge = build_judge_ranked(prompts, sampler, judge, JudgeBuildConfig(repeats=2, max_cost=1.0))
    except BudgetExceeded as error:
        raise BuildError(str(error)) from error
    rejudged, judgments = rank_by_judge(by_teacher, judge)
    rescored = rank_by_teacher(by_judge, load_model("embedded"), load_tokenizer("embedded"), name="embedded")
    saved: Path = save_ranked(rejudged, folder / "r", judgments=judgments)
    for split in rescored.values():
        assert split.features == ranked_features()
    return whole if whole.exists() else saved


def data(folder: Path) -> dict[str, Any]:
    rows = load_ranked(folder, split="train", revision="main")
    tally: Mapping[str, Any] = normalise_row({"prompt": "a", "responses": ["b", "c"], "scores": [1, 0]})
    report = validate(rows, load_tokenizer("embedded"), max_length=512)
    sound: bool = report.sound
    imported = import_ranked(rows, "nectar", on_error="skip")
    exported = [to_sft(imported), to_preference(imported, pairs="all"), to_kto(imported), to_lmops(imported)]
    url: str = push_to_hub(folder, "owner/name", private=True).url
    return {"tally": tally, "sound": sound, "exported": exported, "url": url, "tasks": lm_eval_tasks_path()}


def train(folder: Path) -> None:
    rows = load_ranked(folder)
    config = TunaConfig(output_dir="out", margin=0.1, mle_target="best", learning_rate=1e-4, max_length=512)
    try:
        trainer = TunaTrainer("embedded", config, train_dataset=rows["train"])
        trainer.train()
        trainer.save_model("out")
    except SchemaError as error:
        raise InputError(str(error)) from error
    except TrainingMemoryError as error:
        raise SystemExit(str(error)) from error
    collator = RankedCollator(pad_token_id=0)
    scored: list[list[dict[str, float | int | None]]] = score_rows(load_model("x"), load_tokenizer("x"), prompts)
    assert collator and scored


def own_loss(logps: Tensor, lengths: Tensor, ranks: Tensor, mask: Tensor, **_: Any) -> Tensor:
    return (logps * mask / lengths).sum(-1) * ranks.max(-1).values


register_ranking_loss("own", own_loss, needs_reference=False)
assert ranking_loss("own") is own_loss
