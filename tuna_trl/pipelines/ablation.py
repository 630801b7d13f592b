"""`tuna-trl ablate`: every arm with every seed, each in a process of its own, then one judging of all answers.

Runs are named by a hash of all that goes into them: a sweep that is run again does what is missing or has changed.
This file plans and starts; what happens in a run is in [`.ablation_run`], what comes out in [`.ablation_results`].
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..build.cost import Budget
from ..build.journal import Journal
from ..data.schema import digest
from ..errors import BuildError, InputError, did_you_mean
from ..evaluation.answers import judge_answers
from ..evaluation.results import file_name
from .ablation_config import START, Arm, Sweep, read_sweep
from .ablation_data import (
    load_heldout,
    load_prompts,
    load_rows,
    load_sft,
    model_identity,
    refuse_overlap,
    rows_digest,
)
from .ablation_results import aggregate, write_results
from .baselines import KINDS, generation_defaults, parse
from .stages import write_json


if TYPE_CHECKING:
    from datasets import Dataset

    from ..clients.base import Judge

try:
    import fcntl
except ImportError:  # not on Windows, where two sweeps in one folder are the user's to avoid
    fcntl = None  # type: ignore[assignment]

_FORMAT = 1  # of what is measured; a change of it measures and trains anew
Call = Callable[[Path], int]


@dataclass(frozen=True)
class Run:
    """One arm with one seed. `keys`: of each training stage; `key`: of the training and what is measured of it."""

    arm: Arm
    seed: int
    folder: Path
    keys: tuple[str, ...]
    key: str
    needs: Mapping[str, Path]  # other arms' models


def run_ablation(
    path: Path, *, call: Call | None = None, say: Callable[[str], None] = print
) -> tuple[dict[str, Any] | None, int]:
    """Run (or finish) the sweep of a YAML file.

    Args:
        call: runs the `run.json` of one run and returns its exit code; by default in a process of its own.

    Returns:
        what `results.json` holds, and 0; or None and the exit code of the run that failed.

    Raises:
        InputError: the file, its data or an option are wrong; said before anything is trained.
    """
    content = _content(path)
    sweep = read_sweep(path)
    heldout = load_heldout(sweep)
    prompts = load_prompts(sweep, heldout)
    _check(sweep, prompts)
    runs = plan(sweep, heldout, prompts)
    with _alone(sweep.output):
        for place, run in enumerate(runs):
            title = f"{place + 1}/{len(runs)} {run.arm.name}, seed {run.seed}"
            if _finished(run):
                say(f"{title}: done before.")
                continue
            say(f"{title} ...")
            write_json(_prepared(run.folder) / "run.json", _spec(run, content))
            code = (call or _call)(run.folder / "run.json")
            if code:
                return None, code
            if not _finished(run):
                raise BuildError(f"{title} ended without its figures; run the same command again.")
        judge = _judge(**sweep.judge)  # only now, so that a judge in this process takes no memory from the runs
        found = _judged(sweep, runs, prompts, judge)
        result = aggregate(sweep, found, heldout, judge.fingerprint())
        write_results(result, sweep.output)
    return result, 0


def plan(sweep: Sweep, heldout: Dataset, prompts: list[dict[str, Any]]) -> list[Run]:
    """The runs of a sweep, in order: a reward model before what needs it, and one seed of all arms before the next.

    Raises:
        InputError: a training set shares prompts with what is measured on, or cannot be loaded.
    """
    measured = [*heldout["prompt"], *(row["prompt"] for row in prompts)]
    names = dict.fromkeys(name for arm in sweep.arms for name in arm.source.names)
    data: dict[str, Any] = {}
    for name in names:
        rows = load_rows(name, sweep.train_split, "train")
        refuse_overlap(sweep, name, rows, measured)
        data[name] = rows_digest(rows)
    for name in dict.fromkeys(arm.data["mix_sft"] for arm in sweep.arms if "mix_sft" in arm.data):
        rows = load_sft(name)
        refuse_overlap(sweep, name, rows, measured)
        data[name] = rows_digest(rows)
    shared = {
        "format": _FORMAT,
        "model": model_identity(sweep.model),
        "tokens": sweep.tokens,
        "max_new_tokens": sweep.max_new_tokens,
        "judge": dict(sweep.judge),
    }
    figures = [rows_digest(heldout), rows_digest(prompts), sweep.max_new_tokens]
    runs = []
    for seed in sweep.seeds:
        arms = [arm for arm in sweep.arms if arm.name != START or seed == sweep.seeds[0]]
        done: dict[str, Run] = {}
        for arm in sorted(arms, key=lambda arm: 0 if arm.name == START else 1 if arm.trainer == "reward_judge" else 2):
            run = _run(sweep, arm, seed, data, shared, figures, done)
            done[arm.name] = run
            runs.append(run)
    return runs


def _run(
    sweep: Sweep,
    arm: Arm,
    seed: int,
    data: Mapping[str, str],
    shared: Mapping[str, Any],
    figures: list[Any],
    done: Mapping[str, Run],
) -> Run:
    from .ablation_run import model_folder

    needs = {name: done[name] for name in arm.needs if name in done}
    keys: list[str] = []
    for stage, names in enumerate(arm.source.stages):
        goes_in = {
            "model": shared["model"],
            "format": shared["format"],
            "trainer": arm.trainer,
            "preset": dict(KINDS[arm.trainer].preset),
            "options": {**arm.options, **(arm.second if stage else {})},
            "rows": [data[name] for name in names],
            "data": {**arm.data, "mix_sft": data.get(arm.data.get("mix_sft", ""))},
            "needs": {name: run.keys for name, run in needs.items()},
            "tokens": shared["tokens"] and [shared["tokens"], len(arm.source.stages)],
            "seed": seed,
            "before": keys[-1] if keys else None,
        }
        if KINDS[arm.trainer].rows == "prompts":
            goes_in |= {"judge": shared["judge"], "max_new_tokens": shared["max_new_tokens"]}
        keys.append(digest(goes_in))
    key = digest([shared["format"], shared["model"], arm.trainer, dict(arm.options), keys, figures])
    folder = sweep.output / "runs" / file_name(arm.name) / f"seed_{seed}"
    folders = {name: model_folder(run.folder, len(run.keys)) for name, run in needs.items()}
    return Run(arm, seed, folder, tuple(keys), key, folders)


def _check(sweep: Sweep, prompts: list[dict[str, Any]]) -> None:
    """Everything that can be said before the first training."""
    if Path(sweep.model, "adapter_config.json").is_file():
        raise InputError(
            f"`model` {sweep.model} is an adapter, and arms have their own: merge it first (tuna-trl merge)."
        )
    judge = _light_judge(**sweep.judge)
    if judge is not None and judge.paid and sweep.max_cost is None:
        raise InputError(f"{judge.name} costs money: set `max_cost` in USD, the most that it may spend.")
    if judge is not None and judge.method == "reference" and any(row["reference"] is None for row in prompts):
        raise InputError(
            f"The judge {judge.name} compares with a reference, and some prompts have none: give `prompts` with "
            "`reference`, or a judge that needs none."
        )
    names = {arm.name for arm in sweep.arms if arm.trainer == "reward_judge"}
    for arm in sweep.arms:
        if arm.name == START:
            continue
        for options in (arm.options, {**arm.options, **arm.second}) if arm.second else (arm.options,):
            options = {**options, **generation_defaults(arm.trainer, options, 2, sweep.max_new_tokens)}
            _, model_config = parse(arm.trainer, options, sweep.output, sweep.seeds[0])
        if arm.trainer == "reward_judge" and (model_config.load_in_4bit or model_config.load_in_8bit):
            raise InputError(
                f"arm {arm.name}: a reward model is merged to judge, so it is not trained on 4 or 8 bits."
            )
        reward = arm.data.get("reward")
        if KINDS[arm.trainer].rows == "prompts" and reward not in names:
            _check_reward(arm, judge if reward is None else _light_judge(reward))


def _check_reward(arm: Arm, judge: Judge | None) -> None:
    if judge is not None and judge.paid:
        raise InputError(
            f"arm {arm.name}: the judge {judge.name} costs money at every step, without a bound; give `reward`: a "
            "local judge, or an arm with `trainer: reward_judge`."
        )


def _judge(name: str, **options: Any) -> Judge:
    from ..clients.judges import judge_by_name

    return judge_by_name(name, **options)


def _light_judge(name: str, **options: Any) -> Judge | None:
    """The judge; None for one that is a model of this process, which is not loaded before it is needed.

    Raises:
        InputError: the name or an option is unknown.
    """
    from ..clients.judges import judge_options

    known = judge_options(name)
    for option in options:
        if option not in known:
            raise InputError(f"`judge` {name!r} has no option {option!r}.{did_you_mean(option, known)}")
    return None if name.startswith(("local:", "reward:")) else _judge(name, **options)


def _judged(
    sweep: Sweep, runs: list[Run], prompts: list[dict[str, Any]], judge: Judge
) -> dict[str, dict[int, dict[str, Any]]]:
    """What was measured of each run, the judge's scores added; all answers to a prompt are judged together."""
    found: dict[str, dict[int, dict[str, Any]]] = {arm.name: {} for arm in sweep.arms}
    for run in runs:
        found[run.arm.name][run.seed] = _read(run.folder / "measured.json")
    answers = {
        f"{name}, seed {seed}": one["answers"]
        for name, by_seed in found.items()
        for seed, one in by_seed.items()
        if "answers" in one
    }
    with Journal(sweep.output / "judgments.sqlite") as journal:
        scores = judge_answers(
            [row["prompt"] for row in prompts],
            [row["reference"] for row in prompts],
            answers,
            judge,
            journal=journal,
            budget=Budget(math.inf if sweep.max_cost is None else sweep.max_cost),
        )
    for name, by_seed in found.items():
        for seed, one in by_seed.items():
            if "answers" in one:
                one["judge_score"] = scores[f"{name}, seed {seed}"]
    return found


def _spec(run: Run, content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "sweep": content,
        "arm": run.arm.name,
        "seed": run.seed,
        "folder": str(run.folder),
        "keys": list(run.keys),
        "key": run.key,
        "needs": {name: str(folder) for name, folder in run.needs.items()},
    }


def _finished(run: Run) -> bool:
    path = run.folder / "measured.json"
    return path.is_file() and _read(path)["key"] == run.key


def _prepared(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"{folder} cannot be used: {error}.") from error
    return folder


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise BuildError(f"{path} is damaged ({error}); delete it to do this run anew.") from error


def _content(path: Path) -> Any:
    """The file as JSON takes it, for the processes of the runs."""
    import yaml

    read_sweep(path)  # says what is wrong with the file in its own words
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        return json.loads(json.dumps(content))
    except TypeError as error:
        raise InputError(f"{path}: {error}; write dates and the like in quotes.") from None


def _call(file: Path) -> int:
    """One run in a process of its own, on this terminal and on one device; it ends when this process does."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": devices.split(",")[0], "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "tuna_trl.pipelines.ablation_run", str(file)]
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
            return process.wait()
    except KeyboardInterrupt:  # the run got it too
        return 130


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One sweep at a time in a folder; the lock ends with the process however that ends."""
    _prepared(folder)
    with open(folder / ".lock", "w") as handle:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"Another sweep is running in {folder}; wait for it, or name another `output`."
                ) from None
            except OSError:  # a file system without locks
                pass
        yield
