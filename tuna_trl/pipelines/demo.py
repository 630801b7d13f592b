"""The whole of Tuna once, on one small model: rank with a teacher, train, rank with a judge, train, compare.

Everything goes through the public functions that a user would call; each stage is skipped when it is done, so a second
run takes seconds, and a killed one goes on where it stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..build.judge import JudgeBuildConfig, judge_builds
from ..build.teacher import TeacherBuildConfig, build_teacher_ranked
from ..clients.judges import judge_by_name
from ..data.demo import load_instructions
from ..data.hub import load_ranked, save_ranked
from ..errors import InputError
from ..library_notes import leave_the_terminal
from .comparison import MODELS, compare
from .stages import Stages, write_json


if TYPE_CHECKING:
    from ..clients.base import Judge
    from ..clients.local import TransformersSampler


# Without it SmolLM2-135M ends 28 % of its samples within 40 tokens, with it 78 % (64 samples each, temperature 1).
SYSTEM = "You are a helpful assistant. Answer in one short sentence."


@dataclass(frozen=True)
class DemoConfig:
    """What `tuna-trl demo` does; the defaults take minutes on two cores.

    Args:
        output: the run folder.
        model: the start model (a name, see [`tuna_trl.loading.load_model`]); teacher and student are both this one.
        judge: `reference`, `claude` or a Claude model id.
        max_cost: most that the judge may cost in all, USD.
        train_rows, heldout_rows: the first so many instructions of each split; None = all. Every 16 rows hold one
            of each kind.
        num_responses: responses an instruction.
        heldout_samples: samples of the start model that the orders are compared on, an instruction.
        max_new_tokens: tokens a response may have; a longer one is cut.
        teacher_rank_truncated: whether the teacher ranks responses that were cut (the judge reads them anyway).
        epochs, teacher_learning_rate, judge_learning_rate, margin, mle_target: of the two trainings. The likelihood
            term trains the reference answers, as the paper's objective does; `all`, the released code's, would train
            a weak model on its own noise.
        batch_size: instructions an optimiser step.
        seed: of everything.
    """

    output: Path = Path("runs/demo")
    model: str = "embedded"
    judge: str = "reference"
    max_cost: float = 5.0
    train_rows: int | None = None
    heldout_rows: int | None = None
    num_responses: int = 4
    heldout_samples: int = 4
    max_new_tokens: int = 40
    teacher_rank_truncated: bool = False
    epochs: float = 1.0
    teacher_learning_rate: float = 2e-4
    judge_learning_rate: float = 4e-4
    margin: float = 0.1
    mle_target: str = "reference"
    batch_size: int = 8
    seed: int = 0
    say: Callable[[str], None] | None = None


def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Run (or finish) the demo; returns what `summary.json` holds.

    Raises:
        InputError: a setting is wrong, or Claude is asked for and no key is set; said before anything is sampled.
    """
    return _Demo(config).run()


class _Demo:
    """One run: the stages in order, each a method that writes one output."""

    def __init__(self, config: DemoConfig) -> None:
        leave_the_terminal()
        self.config = config
        self.say = config.say or _printer()
        self.judge: Judge = judge_by_name(config.judge)
        self.train_rows = _conversations("train")[: config.train_rows]
        self.heldout_rows = _conversations("heldout")[: config.heldout_rows]
        if len(self.train_rows) < 2 or len(self.heldout_rows) < 2:
            raise InputError("`train_rows` and `heldout_rows` must be at least 2.")
        self.folder = Path(config.output)
        self.stages = Stages(self.folder, self.say)

    def run(self) -> dict[str, Any]:
        config, folder = self.config, self.folder
        self.say(f"Model: {config.model}. Judge: {self._judge_line()}. Everything goes to {folder}/.")
        sampling = {
            "n": config.num_responses,
            "max_new_tokens": config.max_new_tokens,
            "rank_truncated": config.teacher_rank_truncated,
            "seed": config.seed,
        }
        data = {"model": config.model, "rows": self.train_rows, **sampling}
        training = {
            "epochs": config.epochs,
            "margin": config.margin,
            "mle_target": config.mle_target,
            "batch_size": config.batch_size,
        }
        run = self.stages.run
        run("teacher", "1/6 Teacher samples and ranks", data, folder / "teacher_ranked", self._teacher)
        settings = {**training, "lr": config.teacher_learning_rate}
        run("tuna_p", "2/6 Train on the teacher's ranking", settings, folder / "tuna_p" / "README.md", self._tuna_p)
        settings = {"judge": self.judge.fingerprint()}
        run("judge", "3/6 Tuna_p samples, the judge ranks", settings, folder / "judge_ranked", self._judge)
        settings = {**training, "lr": config.judge_learning_rate}
        run("tuna", "4/6 Train on the judge's ranking", settings, folder / "tuna" / "README.md", self._tuna)
        settings = {"rows": self.heldout_rows, "samples": config.heldout_samples}
        run("compare", "5/6 Compare on held-out instructions", settings, folder / "comparison.json", self._compare)
        run("report", "6/6 Report", {}, folder / "report.html", self._report)
        summary = self._summary()
        write_json(folder / "summary.json", summary)
        _print_summary(summary, folder)
        return summary

    # ---- stages ----

    def _teacher(self) -> None:
        config = self.config
        build = TeacherBuildConfig(
            num_responses=config.num_responses,
            max_new_tokens=config.max_new_tokens,
            rank_truncated=config.teacher_rank_truncated,
            seed=config.seed,
            journal=self.folder / "journal.sqlite",
        )
        rows = build_teacher_ranked(self.train_rows, self._sampler("start"), build)
        save_ranked(rows, self.folder / "teacher_ranked")

    def _tuna_p(self) -> None:
        self._train("teacher_ranked", "tuna_p", None, self.config.teacher_learning_rate)

    def _judge(self) -> None:
        build = self._judge_config(self.config.num_responses, self.config.seed)
        rows, judgments = judge_builds(self.train_rows, self._sampler("tuna_p"), self.judge, build)
        save_ranked(rows, self.folder / "judge_ranked", judgments=judgments)

    def _tuna(self) -> None:
        self._train("judge_ranked", "tuna", "tuna_p", self.config.judge_learning_rate)

    def _compare(self) -> None:
        # another seed than the training samples', and no redraw for diversity: the start model's own distribution
        build = replace(self._judge_config(self.config.heldout_samples, self.config.seed + 1), rouge_threshold=None)
        if self.judge.paid:
            build = replace(build, max_cost=self._left("judge_ranked"))
        rows, judgments = judge_builds(self.heldout_rows, self._sampler("start"), self.judge, build)
        save_ranked(rows, self.folder / "heldout_ranked", judgments=judgments)
        result = compare(
            rows["train"],
            {name: self._loaded(name) for name in MODELS},
            self.judge,
            journal=build.journal,
            max_cost=self._left("judge_ranked", "heldout_ranked") if self.judge.paid else None,
            max_new_tokens=self.config.max_new_tokens,
        )
        write_json(self.folder / "comparison.json", result)

    def _report(self) -> None:
        from ..report.html import write_report

        result = json.loads((self.folder / "comparison.json").read_text(encoding="utf-8"))
        write_report(
            self.folder / "report.html",
            title="Tuna on " + self.config.model,
            summary=self._summary(),
            datasets={
                "Teacher-ranked (training)": load_ranked(self.folder / "teacher_ranked", split="train"),
                "Judge-ranked (training)": load_ranked(self.folder / "judge_ranked", split="train"),
                "Held-out samples": load_ranked(self.folder / "heldout_ranked", split="train"),
            },
            runs={name: _history(self.folder / name) for name in ("tuna_p", "tuna")},
            examples=result["examples"],
        )

    # ---- parts ----

    def _train(self, data: str, name: str, start: str | None, learning_rate: float) -> None:
        """One training; a checkpoint of an earlier, killed run of the same settings is gone on from."""
        from peft import LoraConfig
        from transformers.trainer_callback import PrinterCallback
        from transformers.trainer_utils import get_last_checkpoint

        from ..checkpoints import set_checkpoints_aside
        from ..config import TunaConfig
        from ..trainer import TunaTrainer
        from .training_bar import TrainingBar

        folder = self.folder / name
        if not self.stages.went_on:
            set_checkpoints_aside(folder)
        model, tokenizer = self._loaded(start or "start", trainable=True)
        args = TunaConfig(
            output_dir=str(folder),
            learning_rate=learning_rate,
            num_train_epochs=self.config.epochs,
            # one instruction at a time: the least padding; 8 of them make a step
            per_device_train_batch_size=1,
            gradient_accumulation_steps=self.config.batch_size,
            margin=self.config.margin,
            mle_target=self.config.mle_target,
            lr_scheduler_type="cosine",
            warmup_steps=1,
            max_length=512,
            activation_checkpointing=False,
            logging_steps=1,
            save_steps=4,
            save_total_limit=2,
            report_to="none",
            disable_tqdm=True,  # TrainingBar shows the steps
            seed=self.config.seed,
        )
        trainer = TunaTrainer(
            model,
            args,
            train_dataset=load_ranked(self.folder / data, split="train"),
            processing_class=tokenizer,
            peft_config=None if start else LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(TrainingBar(f"Training {name}"))
        trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.is_dir() else None)
        trainer.save_state()
        trainer.save_model(str(folder))
        trainer.create_model_card(model_name=name)  # last: the stage is done when the card stands

    def _loaded(self, name: str, trainable: bool = False) -> tuple[Any, Any]:
        """(model, tokenizer): the start model, or it with the adapter that a training left."""
        from peft import PeftModel

        from ..loading import load_model, load_tokenizer

        model = load_model(self.config.model)
        if name != "start":
            model = PeftModel.from_pretrained(model, self.folder / name, is_trainable=trainable)
        return model, load_tokenizer(self.config.model)

    def _sampler(self, name: str) -> TransformersSampler:
        from ..clients.local import TransformersSampler

        model, tokenizer = self._loaded(name)
        return TransformersSampler(model, tokenizer, name=f"{self.config.model}:{name}")

    def _judge_config(self, n: int, seed: int) -> JudgeBuildConfig:
        return JudgeBuildConfig(
            num_responses=n,
            max_new_tokens=self.config.max_new_tokens,
            seed=seed,
            max_cost=self._left() if self.judge.paid else None,
            journal=self.folder / "journal.sqlite",
        )

    def _left(self, *finished: str) -> float:
        """What is left of the cap behind finished builds, from their judgments; a build counts its own journal."""
        from datasets import load_dataset

        spent = 0.0
        for name in finished:
            if (self.folder / name / "judgments").is_dir():
                for split in load_dataset(str(self.folder / name), "judgments").values():
                    spent += math.fsum(cost or 0.0 for cost in split["cost"])
        return max(self.config.max_cost - spent, 0.0)

    def _judge_line(self) -> str:
        if self.judge.paid:
            return f"{self.judge.name} (paid; at most {self.config.max_cost:.2f} USD in all)"
        return f"{self.judge.name} (offline: similarity to the reference answer, no reader)"

    def _summary(self) -> dict[str, Any]:
        result = json.loads((self.folder / "comparison.json").read_text(encoding="utf-8"))
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(replace(self.config, say=None)).items()}
        settings.pop("say")
        return {
            **{key: value for key, value in result.items() if key != "examples"},
            "seconds": self.stages.seconds,
            "judge": self.judge.name,
            "settings": settings,
        }


def _conversations(split: Literal["train", "heldout"]) -> list[dict[str, Any]]:
    """The demo's instructions as rows with a system prompt that asks for short answers."""
    return [
        {
            "prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row["prompt"]}],
            "reference": row["reference"],
            "source": row["kind"],
        }
        for row in load_instructions(split)
    ]


def _history(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]


def _printer() -> Callable[[str], None]:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    return lambda text: console.print(text, markup=False)


def _print_summary(summary: dict[str, Any], folder: Path) -> None:
    """The comparison as one table on stdout."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    # two decimals: 76 columns, so that no cell breaks on a terminal of 80; summary.json has all digits
    table = Table(title="Held-out instructions: mean [95 % interval]", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for title in ("rank accuracy", "Kendall tau", "judge score"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, metrics in summary["models"].items():
        table.add_row(name, *(shown(metrics[key]) for key in ("rank_accuracy", "kendall_tau", "judge_score")))
    for name, interval in summary["length_baseline"].items():
        table.add_row(name.replace("_", " "), shown(interval), "", "")
    table.add_row("copy the prompt", "", "", shown(summary["copy_baseline"]))
    console.print(table)
    for name, metrics in summary["differences"].items():
        words = ", ".join(f"{key.replace('_', ' ')} {shown(value, '+.3f')}" for key, value in metrics.items())
        console.print(f"{name} - start, paired: {words}", soft_wrap=True)
    console.print(f"Judge: {summary['judge']}. Numbers: {folder / 'summary.json'}", soft_wrap=True)
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)


def shown(interval: dict[str, Any], form: str = ".2f") -> str:
    """`0.53 [0.47, 0.60]`, or `-` where nothing was measured."""
    if interval["mean"] is None:
        return "-"
    return f"{interval['mean']:{form}} [{interval['low']:{form}}, {interval['high']:{form}}]"
