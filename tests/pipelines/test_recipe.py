"""A recipe: each stage gets what the ones before made, finished ones are skipped, what changed is done again."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tuna_trl.cli.run import options_of_verbs
from tuna_trl.errors import InputError
from tuna_trl.pipelines.recipe import WIRING, plan, read_recipe, run_recipe


KNOWN = options_of_verbs()
ROUND = [{"build judge": {"judge": "reference"}}, {"train": {"learning_rate": 1e-6}}]


def recipe(tmp_path, *stages, **top):
    prompts = tmp_path / "prompts.jsonl"
    if not prompts.exists():
        prompts.write_text('{"prompt": "Name a colour."}\n')
    content = {"output": str(tmp_path / "run"), "model": "start", "prompts": str(prompts), "stages": list(stages)}
    return content | top


def steps_of(tmp_path, *stages, **top):
    return plan(recipe(tmp_path, *stages, **top), KNOWN)


class Calls:
    """Stands for the command line: writes the output of a step, or fails at one."""

    def __init__(self, fail_at=None, code=1):
        self.fail_at, self.code, self.made, self.words = fail_at, code, [], []

    def __call__(self, step, words):
        self.words.append(words)
        if step.name == self.fail_at:
            return self.code
        step.output.mkdir(exist_ok=True)
        self.made.append(step.name)
        return 0


def run(tmp_path, *stages, calls=None, **top):
    calls = calls or Calls()
    code = run_recipe(steps_of(tmp_path, *stages, **top), tmp_path / "run", calls, say=lambda text: None)
    return code, calls


def test_every_stage_gets_the_model_and_the_data_of_the_stages_before(tmp_path):
    run_folder = tmp_path / "run"
    first, second, third, fourth, fifth = steps_of(
        tmp_path, {"build teacher": {"model": "big"}}, "train", *ROUND, "merge"
    )
    assert first.options["teacher"] == "big" and first.options["prompts"] == str(tmp_path / "prompts.jsonl")
    assert second.options["dataset_name"] == str(run_folder / "build_teacher_1")
    assert second.options["model_name_or_path"] == "start"
    assert third.options["student"] == str(run_folder / "train_1")
    assert fourth.options["dataset_name"] == str(run_folder / "build_judge_1")
    assert fourth.options["model_name_or_path"] == str(run_folder / "train_1")
    assert fifth.arguments == (str(run_folder / "train_2"),)


def test_the_name_of_a_stage_stands_for_what_it_made(tmp_path):
    teacher = {"build teacher": {"name": "by_likelihood"}}
    *_, again = steps_of(tmp_path, teacher, *ROUND, {"train": {"data": "by_likelihood", "model": "start"}})
    assert again.options["dataset_name"] == str(tmp_path / "run" / "by_likelihood")
    assert again.options["model_name_or_path"] == "start"


def test_a_group_is_repeated_with_names_and_models_of_its_own(tmp_path):
    steps = steps_of(tmp_path, {"repeat": 3, "stages": ROUND})
    assert [step.name for step in steps] == [f"{verb}_{k}" for k in (1, 2, 3) for verb in ("build_judge", "train")]
    assert len({step.options.get("student", step.output) for step in steps}) == 6
    assert len({str(step.output) for step in steps}) == 6


def test_an_adapter_is_trained_further_and_not_wrapped_again(tmp_path):
    lora = {"use_peft": True, "lora_r": 8}
    steps = steps_of(tmp_path, *ROUND, *ROUND, "merge", *ROUND, defaults={"train": lora})
    trained = [step.options for step in steps if step.verb == "train"]
    assert ["lora_r" in options for options in trained] == [True, False, True]
    assert all(options["learning_rate"] == 1e-6 for options in trained)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"biuld judge": {}}], r"stages\[0\]: 'biuld judge' is no stage\. Did you mean 'build judge'"),
        (
            [{"train": {"data": "x", "margn": 1}}],
            r"train_1 \(train\): there is no option 'margn'\. Did you mean 'margin'",
        ),
        ([{"build judge": {"num_response": 1}}], "no option 'num_response'. Did you mean 'num_responses'"),
        (["train"], r"Stage train_1 \(train\) has no data: put a builder before it"),
        ([{"repeat": 0, "stages": ROUND}], "`repeat: <1 or more>`"),
        ([{"repeat": 2, "stages": ROUND, "name": "x"}], "and nothing else"),
        ([{"repeat": 2, "stages": []}], r"stages\[0\]\.stages must be a list"),
        ([{"build judge": {}, "train": {}}], "a stage is one verb"),
        ([{"build judge": [1]}], "expected `key: value`"),
        ([3], "expected a verb and its options"),
        ([{"build judge": {"name": "x"}}, {"train": {"name": "x"}}], "Two stages are called 'x'"),
    ],
)
def test_what_is_wrong_is_named_before_anything_runs(tmp_path, stages, message):
    with pytest.raises(InputError, match=message):
        steps_of(tmp_path, *stages)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "must hold `key: value`"),
        ("output: [", "no YAML"),
        ("output: x", "`stages` is missing"),
        ("stages: [train]", "`output` is missing"),
        ("output: x\nstages: [train]\nmodle: y", "unknown key 'modle'. Did you mean 'model'"),
        ("output: x\nstages: [train]\ndefaults: [1]", "must be options by verb"),
        ("output: x\nstages: [train]\ndefaults: {trane: {}}", "'trane' is no stage. Did you mean 'train'"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_recipe(path)


def test_what_is_finished_is_not_run_again(tmp_path):
    assert run(tmp_path, *ROUND)[1].made == ["build_judge_1", "train_1"]
    assert run(tmp_path, *ROUND)[1].made == []


def test_a_changed_option_repeats_its_stage_and_those_behind_it(tmp_path):
    run(tmp_path, *ROUND, "merge")
    changed = [ROUND[0], {"train": {"learning_rate": 2e-6}}, "merge"]
    assert run(tmp_path, *changed)[1].made == ["train_1", "merge_1"]


def test_a_changed_file_repeats_the_stages_that_read_it(tmp_path):
    run(tmp_path, *ROUND)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Name a fish."}\n')
    assert run(tmp_path, *ROUND)[1].made == ["build_judge_1", "train_1"]


def test_a_stage_that_fails_ends_the_run_with_its_code_and_the_next_run_begins_there(tmp_path):
    code, calls = run(tmp_path, *ROUND, "merge", calls=Calls(fail_at="train_1", code=2))
    assert (code, calls.made) == (2, ["build_judge_1"])
    code, calls = run(tmp_path, *ROUND, "merge")
    assert (code, calls.made) == (0, ["train_1", "merge_1"])


def test_a_training_goes_on_from_checkpoints_of_the_same_settings_only(tmp_path):
    _, calls = run(tmp_path, *ROUND, calls=Calls(fail_at="train_1"))
    assert calls.words[-1][-1] == "--restart"  # whatever lies there is not this recipe's
    _, calls = run(tmp_path, *ROUND, calls=Calls(fail_at="train_1"))
    assert "--restart" not in calls.words[-1]
    changed = [ROUND[0], {"train": {"learning_rate": 2e-6}}]
    _, calls = run(tmp_path, *changed)
    assert calls.words[-1][-1] == "--restart"


def test_a_training_is_written_down_as_a_config_that_runs_by_hand(tmp_path):
    _, calls = run(tmp_path, *ROUND)
    config = Path(calls.words[-1][calls.words[-1].index("--config") + 1])
    written = yaml.safe_load(config.read_text())
    assert written["learning_rate"] == 1e-6 and written["output_dir"] == str(tmp_path / "run" / "train_1")


def test_every_wired_option_is_one_of_the_command_line():
    for verb, wiring in WIRING.items():
        assert verb in KNOWN, verb
        assert set(wiring.fills) <= KNOWN[verb], verb
