"""The command line: what is wrong is said in one message, with the right exit code, before anything is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


def tuna(*args, env=None, cwd=None):
    """Run the real command in a process of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", **(env or {})}
    for name in [name for name, value in environment.items() if value is None]:
        environment.pop(name)
    return subprocess.run(
        [sys.executable, "-m", "tuna_trl", *map(str, args)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
        timeout=300,
    )


@pytest.fixture
def called(monkeypatch, capsys):
    """Run the command in this process (loading torch once, not once a test); returns (exit code, stderr)."""

    def call(*args, **env):
        from tuna_trl.cli import main

        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["tuna-trl", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, capsys.readouterr().err

    return call


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, tuna_trl; tuna_trl.__version__; assert not {'torch', 'trl', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_env_prints_versions_and_no_key():
    result = tuna("env", env={"ANTHROPIC_API_KEY": "sk-planted-key"})
    assert result.returncode == 0
    assert "transformers:" in result.stdout and "ANTHROPIC_API_KEY:   set" in result.stdout
    assert "planted" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    "yaml, flags, message",
    [
        ("learning_rat: 1e-4\n", [], "unknown key 'learning_rat'. Did you mean 'learning_rate'?"),
        ("margin: 0.1\n", ["--margn", "1"], "unknown flag --margn. Did you mean 'margin'?"),
        ("margin: [\n", [], "is no valid YAML"),
        ("- a\n", [], "must hold `key: value` lines, got a list"),
        ("margin: abc\n", [], "--margin"),
        ("pair_reduction: mean\n", [], "pair_reduction"),
        ("packing: true\ndataset_name: x\n", [], "`packing` = True is not supported by TunaTrainer"),
        ("margin: 0.1\n", [], "`dataset_name` is missing"),
        ("dataset_name: nowhere.jsonl\nmodel_name_or_path: embedded\n", [], "nowhere.jsonl: there is no such file"),
        ("dataset_name: x\n", [], "`model_name_or_path` is missing"),
    ],
)
def test_a_wrong_config_is_one_message_and_exit_code_2(tmp_path, called, yaml, flags, message):
    output = "" if yaml.startswith("- ") else f"output_dir: {tmp_path / 'out'}\n"
    (tmp_path / "x.yaml").write_text(yaml + output)
    code, err = called("train", "--config", tmp_path / "x.yaml", *flags)
    assert code == 2, err
    assert message in err
    assert "Traceback" not in err and "usage:" not in err


def test_a_missing_config_file_is_named(called):
    code, err = called("train", "--config", "nowhere.yaml")
    assert code == 2 and "--config nowhere.yaml could not be read" in err


def test_a_model_that_cannot_be_loaded_is_named(tmp_path, called):
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "a", "responses": ["b", "c"], "scores": [1, 0]}) + "\n")
    given = ["--model_name_or_path", "no/such-model", "--dataset_name", tmp_path / "d.jsonl"]
    code, err = called("train", *given, "--output_dir", tmp_path / "out")
    assert code == 2, err
    assert "`model` 'no/such-model' could not be loaded" in err and "Traceback" not in err


def test_claude_without_a_key_is_said_before_anything_is_loaded(tmp_path, called):
    args = ["build", "judge", "--prompts", "demo:train", "--student", "no/such-model", "--judge", "claude"]
    code, err = called(*args, "--output", tmp_path / "x", "--max-cost", "1", ANTHROPIC_API_KEY="")
    assert code == 2, err
    assert "ANTHROPIC_API_KEY" in err and "reference" in err
    code, err = called("demo", "--judge", "claude", "--output", tmp_path / "demo", ANTHROPIC_API_KEY="")
    assert code == 2 and "ANTHROPIC_API_KEY" in err


def test_an_unknown_judge_is_named_with_a_suggestion(tmp_path, called):
    args = ["build", "judge", "--prompts", "demo:train", "--student", "embedded", "--judge", "referense"]
    code, err = called(*args, "--output", tmp_path / "x")
    assert code == 2 and "Did you mean 'reference'?" in err


def test_a_prompts_file_without_a_prompt_column_names_the_row_and_the_mend(tmp_path, called, tiny_folder):
    (tmp_path / "p.jsonl").write_text('{"instruction": "a"}\n')
    given = ["--prompts", tmp_path / "p.jsonl", "--model", tiny_folder]
    code, err = called("build", "teacher", *given, "--output", tmp_path / "x")
    assert code == 2, err
    assert "prompt" in err and "rename_column" in err


def test_build_train_and_resume_from_the_command_line(tmp_path, tiny_folder):
    prompts = [{"prompt": f"say {i}", "reference": f"it is {i}"} for i in range(6)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    common = ["--prompts", tmp_path / "p.jsonl", "--max-new-tokens", "6", "--num-responses", "3"]
    teacher = tuna("build", "teacher", *common, "--model", tiny_folder, "--output", tmp_path / "t", "--rank-truncated")
    assert teacher.returncode == 0, teacher.stderr
    judge = tuna("build", "judge", *common, "--student", tiny_folder, "--output", tmp_path / "j")
    assert judge.returncode == 0, judge.stderr
    assert (tmp_path / "t" / "README.md").is_file() and (tmp_path / "j" / "judgments").is_dir()
    assert f"--dataset_name {tmp_path / 't'}" in teacher.stdout  # every command ends by naming the next

    (tmp_path / "x.yaml").write_text(
        f"model_name_or_path: {tiny_folder}\ndataset_name: {tmp_path / 't'}\noutput_dir: {tmp_path / 'out'}\n"
        "use_peft: true\nlora_target_modules: all-linear\nlearning_rate: 1e-3\nreport_to: none\nmargin: 0.2\n"
        "per_device_train_batch_size: 2\nsave_steps: 1\n"
    )
    first = tuna("train", "--config", tmp_path / "x.yaml", "--max_steps", "2")
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file() and (tmp_path / "out" / "README.md").is_file()
    assert not [note for note in ("is_gradient_checkpointing", "gemm_4bit", "Warning") if note in first.stderr]
    second = tuna("train", "--config", tmp_path / "x.yaml", "--max_steps", "3")
    assert second.returncode == 0 and "Going on from" in second.stdout, second.stderr
    state = json.loads((tmp_path / "out" / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3


def test_debug_shows_the_traceback():
    result = tuna("train", "--config", "nowhere.yaml", env={"TUNA_TRL_DEBUG": "1"})
    assert result.returncode != 0 and "Traceback" in result.stderr
