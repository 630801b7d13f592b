"""One arm with one seed, in a process of its own: trained stage by stage, then measured.

`python -m tuna_trl.pipelines.ablation_run run.json` is what [`.ablation`] starts; all that it is told is in that file.
What is finished is skipped, a stage that was killed goes on from its last whole checkpoint. The process ends when its
standard input does, so that it does not outlive a sweep that was killed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..build.journal import Journal
from ..checkpoints import set_checkpoints_aside
from ..errors import BuildError, InputError, TrainingMemoryError
from ..library_notes import leave_the_terminal
from .ablation_config import LOADING, START, Arm, Sweep, make_sweep
from .baselines import KINDS, generation_defaults, judge_reward, make_trainer, parse, training_rows
from .stages import write_json


def run_arm(spec: Mapping[str, Any]) -> None:
    """Train and measure what a `run.json` says.

    Args:
        spec: `sweep` (the file's content), `arm`, `seed`, `folder`, `keys` (of each stage), `key` (of it all),
            `needs` (name of another arm -> the folder of its model).

    Raises:
        InputError: data or options are wrong.
    """
    sweep = make_sweep(spec["sweep"])
    arm, folder = sweep.arm(spec["arm"]), Path(spec["folder"])
    model: Path | None = None
    totals = []
    for stage, key in enumerate(spec["keys"]):
        model, done = _stage(sweep, arm, spec, stage, key, model)
        totals.append(done)
    found = _measured(sweep, arm, spec, model)
    cost = {name: sum(one[name] for one in totals) for name in totals[0]} if totals else {}
    write_json(folder / "measured.json", {"key": spec["key"], "cost": cost, "stages": totals, **found})


def model_folder(folder: Path, stages: int) -> Path:
    """Where the model of a finished run lies."""
    return folder / f"stage_{stages}" / "model"


def _stage(
    sweep: Sweep, arm: Arm, spec: Mapping[str, Any], stage: int, key: str, before: Path | None
) -> tuple[Path, dict[str, Any]]:
    """One training, unless it is done; returns the folder of its model and what it took."""
    folder = Path(spec["folder"]) / f"stage_{stage + 1}"
    done, begun, target = folder / "done.json", folder / "begun.json", folder / "model"
    if (entry := _read(done)) is not None and entry["key"] == key and target.is_dir():
        return target, entry["totals"]
    folder.mkdir(parents=True, exist_ok=True)
    if (entry := _read(begun)) is None or entry["key"] != key:
        set_checkpoints_aside(folder)
        done.unlink(missing_ok=True)
        write_json(begun, {"key": key})
    totals = _train(sweep, arm, spec, stage, before, target)
    write_json(done, {"key": key, "totals": totals})
    for checkpoint in folder.glob("checkpoint-*"):  # optimiser states, which nobody goes on from
        shutil.rmtree(checkpoint, ignore_errors=True)
    return target, totals


def _train(
    sweep: Sweep, arm: Arm, spec: Mapping[str, Any], stage: int, before: Path | None, target: Path
) -> dict[str, Any]:
    from transformers.trainer_callback import PrinterCallback
    from trl import get_peft_config

    from .token_meter import TokenBar, TokenMeter, last_whole_checkpoint
    from .training_bar import TrainingBar

    kind = KINDS[arm.trainer]
    rows = _ranked_rows(sweep, arm, spec, stage)
    options = {**arm.options, **(arm.second if stage else {})}
    longest = max((len(row["responses"]) for row in rows), default=1)
    options |= generation_defaults(arm.trainer, options, longest, sweep.max_new_tokens)
    args, model_config = parse(arm.trainer, options, target.parent, spec["seed"])
    budget = None
    if sweep.tokens is not None:  # of several stages each gets the same
        budget = max(1, sweep.tokens // len(arm.source.stages))
        args.max_steps = 10**9  # the meter ends it
    meter = TokenMeter(kind.counts, budget, ranking=bool(getattr(args, "ranking_weight", 1.0)))
    model, tokenizer = _start(sweep, arm, spec["seed"], model_config, before)
    if arm.trainer == "reward_judge":
        model_config.lora_task_type = "SEQ_CLS"
    reward = None
    if kind.rows == "prompts":
        reward = judge_reward(_reward(sweep, arm, spec))
    trainer = make_trainer(
        arm.trainer,
        model,
        tokenizer,
        args,
        training_rows(arm.trainer, rows, arm.data.get("pairs")),
        meter=meter,
        peft_config=None if before is not None and _is_adapter(before) else get_peft_config(model_config),
        reward=reward,
    )
    trainer.remove_callback(PrinterCallback)
    title = f"Training {arm.name}, seed {spec['seed']}"
    trainer.add_callback(TrainingBar(title) if budget is None else TokenBar(title, meter))
    checkpoint = last_whole_checkpoint(target.parent)
    if checkpoint is not None:
        meter.load(checkpoint)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    write_json(target.parent / "log_history.json", _finite(trainer.state.log_history))
    _save(trainer, tokenizer, target, merge=arm.trainer == "reward_judge")
    return asdict(meter.totals)


def _ranked_rows(sweep: Sweep, arm: Arm, spec: Mapping[str, Any], stage: int) -> Any:
    from .ablation_data import load_rows, load_sft, reranked, stage_rows

    sources = {name: load_rows(name, sweep.train_split, "train") for name in arm.source.stages[stage]}
    mixed_in = load_sft(arm.data["mix_sft"]) if arm.data.get("mix_sft") else None
    if not arm.data.get("ranked_by"):
        return stage_rows(arm, stage, sources, mixed_in)
    from datasets import concatenate_datasets

    rows = reranked(stage_rows(arm, stage, sources, None), _reward_model(spec, arm.data["ranked_by"]))
    return rows if mixed_in is None else concatenate_datasets([rows, mixed_in])


def _start(sweep: Sweep, arm: Arm, seed: int, model_config: Any, before: Path | None) -> tuple[Any, Any]:
    """The model that training starts from, and the tokenizer that all arms share."""
    import torch
    from transformers import AutoModelForSequenceClassification, set_seed

    from ..loading import load_model, load_tokenizer, resolve

    tokenizer = load_tokenizer(sweep.model)
    kwargs = _loading(model_config)
    set_seed(seed)  # a reward model's head is drawn here
    if arm.trainer == "reward_judge":
        if kwargs["dtype"] != "auto":
            kwargs["dtype"] = getattr(torch, kwargs["dtype"])
        name = resolve(sweep.model if before is None else str(before))
        return AutoModelForSequenceClassification.from_pretrained(name, num_labels=1, **kwargs), tokenizer
    name = sweep.model if before is None else str(before)
    return load_model(name, trainable=before is not None, **kwargs), tokenizer


def _reward(sweep: Sweep, arm: Arm, spec: Mapping[str, Any]) -> Any:
    """The judge that an on-policy arm is rewarded by: another arm's reward model, or a judge by name."""
    from ..clients.judges import judge_by_name

    name = arm.data.get("reward")
    if name is not None and name in spec["needs"]:
        return _reward_model(spec, name)
    options = dict(sweep.judge) if name is None else {"name": name}
    return judge_by_name(options.pop("name"), **options)


def _reward_model(spec: Mapping[str, Any], name: str) -> Any:
    from ..clients.reward_model import RewardModelJudge

    return RewardModelJudge(spec["needs"][name], name=name)


def _save(trainer: Any, tokenizer: Any, target: Path, *, merge: bool) -> None:
    """The trained model, whole or not at all; an adapter as an adapter, a reward model merged, as judges load it."""
    work = target.with_name("model.unfinished")
    shutil.rmtree(work, ignore_errors=True)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if merge and hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.save_pretrained(work)
    tokenizer.save_pretrained(work)
    shutil.rmtree(target, ignore_errors=True)
    work.rename(target)


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _measured(sweep: Sweep, arm: Arm, spec: Mapping[str, Any], model: Path | None) -> dict[str, Any]:
    from ..loading import load_tokenizer
    from .ablation_data import load_heldout, load_prompts
    from .measure import measure_judge, measure_model

    heldout = load_heldout(sweep)
    if arm.trainer == "reward_judge":
        from ..clients.reward_model import RewardModelJudge

        return measure_judge(RewardModelJudge(str(model), name=arm.name, batch_size=sweep.batch_size), heldout)
    name = sweep.model if arm.name == START else str(model)
    with Journal(sweep.output / "answers.sqlite") as journal:
        return measure_model(
            _loaded(name, arm.options),
            load_tokenizer(sweep.model),
            heldout,
            load_prompts(sweep, heldout),
            name=f"{arm.name}, seed {spec['seed']}",
            journal=journal,
            max_new_tokens=sweep.max_new_tokens,
            batch_size=sweep.batch_size,
            own_exponent=float(arm.options.get("length_exponent", 1.0)),
        )


def _loaded(name: str, options: Mapping[str, Any]) -> Any:
    """A model as it was trained: in the arm's dtype and quantisation."""
    from trl import ModelConfig

    from ..loading import load_model

    given = {option: options[option] for option in LOADING if options.get(option) is not None}
    return load_model(name, **_loading(ModelConfig(**given)))


def _loading(model_config: Any) -> dict[str, Any]:
    """What `load_model` is told by a `trl.ModelConfig`."""
    from trl import get_quantization_config

    kwargs: dict[str, Any] = {"revision": model_config.model_revision, "dtype": model_config.dtype or "float32"}
    if model_config.attn_implementation:
        kwargs["attn_implementation"] = model_config.attn_implementation
    quantization = get_quantization_config(model_config)
    if quantization is not None:
        kwargs["quantization_config"] = quantization
    return kwargs


def _finite(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Log entries as JSON takes them."""
    return json.loads(json.dumps(history, default=float), parse_constant=lambda name: None)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, json.JSONDecodeError) as error:
        raise BuildError(f"{path} is damaged ({error}); delete it to do this run anew.") from error


def _end_with_the_sweep() -> None:
    """Leave at once when the sweep is gone: two processes must not train into one folder."""

    def wait() -> None:
        while os.read(0, 1024):  # not through sys.stdin, whose lock the interpreter wants when it ends
            pass
        os._exit(137)

    threading.Thread(target=wait, daemon=True).start()


def main(path: str) -> int:
    """Run a `run.json`; the exit code is that of the command line."""
    _end_with_the_sweep()
    leave_the_terminal()
    try:
        run_arm(json.loads(Path(path).read_text(encoding="utf-8")))
    except KeyboardInterrupt:
        return 130
    except InputError as error:
        sys.stderr.write(f"tuna-trl: {error}\n")
        return 2
    except (BuildError, TrainingMemoryError, OSError) as error:
        sys.stderr.write(f"tuna-trl: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
