"""`tuna-trl train --accelerate_config`: flags find their way, what cannot work is refused, two processes are one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from training import ranked_dataset

from tuna_trl.cli import launch
from tuna_trl.cli.train import _parse, _split, training_names


TRAIN = ["--margin", "--learning_rate", "--lora_target_modules", "--no_bf16", "--config_name"]


def train(folder, model, *flags, batch=2):
    """Run the real command on eight rows; its answer."""
    data = folder / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ranked_dataset(8)))
    command = [sys.executable, "-m", "tuna_trl", "train", *flags]
    command += ["--model_name_or_path", str(model), "--dataset_name", str(data), "--output_dir", str(folder / "out")]
    command += ["--max_steps", "2", "--report_to", "none", "--per_device_train_batch_size", str(batch)]
    command += ["--train_sampling_strategy", "sequential", "--shuffle_dataset", "false", "--logging_steps", "1"]
    command += ["--optim", "sgd", "--learning_rate", "0.05"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, timeout=300)


@pytest.fixture
def called(monkeypatch, capsys):
    """(exit code, stderr) of the command in this process; a launch that would happen is written down instead."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    launches = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", launches.append)

    def call(*args):
        from tuna_trl.cli import main

        monkeypatch.setattr(sys, "argv", ["tuna-trl", "train", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, capsys.readouterr().err

    call.launches = launches
    return call


values = st.text("abc12./", min_size=1)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(TRAIN), st.lists(values, max_size=3)),
            st.tuples(
                st.sampled_from(["--num_processes", "--main-process-port", "--gpu_ids"]),
                st.lists(values, min_size=1, max_size=1),
            ),
            st.tuples(
                st.sampled_from(["--multi_gpu", "--use_fsdp", "--num_machines=2", "--accelerate_config=x"]),
                st.just([]),
            ),
        )
    )
)
def test_every_flag_goes_to_one_side_with_its_values_in_order(groups):
    training = training_names() | {"config_name"}
    wanted: tuple[list[str], list[str]] = ([], [])
    for flag, given_values in groups:
        wanted[flag in TRAIN].extend([flag, *given_values])
    assert launch.split_flags([t for flag, v in groups for t in (flag, *v)], training) == wanted


def test_a_flag_that_both_know_is_the_trainings():
    assert "debug" in training_names() and "debug" in launch.launch_options()
    assert launch.split_flags(["--debug", "x"], training_names()) == ([], ["--debug", "x"])


def test_without_flags_of_a_launch_nothing_is_launched(tmp_path, called):
    assert _split(None, ["--margin", "0.2"]) == ([], ["--margin", "0.2"])
    code, err = called("--dataset_name", "x", "--output_dir", tmp_path)
    assert code == 2 and "`model_name_or_path` is missing" in err and not called.launches


def test_the_launch_gets_configuration_flags_and_the_command(tmp_path, called):
    (tmp_path / "x.yaml").write_text(f"output_dir: {tmp_path}\nmargin: 0.1\n")
    flags = ["--config", tmp_path / "x.yaml", "--restart", "--margin", "0.2", "--main_process_port", "29501"]
    code, err = called(*flags, "--accelerate_config", "fsdp2", "--num_processes", "4")
    assert code == 0, err
    (arguments,) = called.launches
    assert arguments.config_file == str(launch.shipped_configs()["fsdp2"])
    assert (arguments.num_processes, arguments.main_process_port, arguments.module) == (4, 29501, True)
    assert arguments.training_script == "tuna_trl"
    command = ["train", "--config", str(tmp_path / "x.yaml"), "--restart", "--margin", "0.2"]
    assert arguments.training_script_args == command
    assert launch.LAUNCHED not in os.environ


def test_a_yaml_may_name_the_launch_as_trls_may_and_flags_overrule_it(tmp_path, called, monkeypatch):
    path = tmp_path / "x.yaml"
    path.write_text(
        f"output_dir: {tmp_path}\ndataset_name: d\nmargin: 0.1\naccelerate_config: zero3\nnum_processes: 8\n"
        "multi_gpu: false\nenv:\n  TUNA_TEST_SAID: yes it did\n"
    )
    monkeypatch.setenv("TUNA_TEST_SAID", "no")
    code, err = called("--config", path, "--accelerate_config", "multi_gpu", "--num_processes", "2")
    assert code == 0, err
    (arguments,) = called.launches
    assert arguments.config_file == str(launch.shipped_configs()["multi_gpu"]) and arguments.num_processes == 2
    assert os.environ["TUNA_TEST_SAID"] == "yes it did"
    # a process of the launch reads the same file and launches nothing
    monkeypatch.setenv(launch.LAUNCHED, "1")
    assert _split(path, []) == ([], [])
    assert _parse(path, [])[1].margin == 0.1


def test_a_file_is_taken_as_well(tmp_path, called):
    own = tmp_path / "own.yaml"
    own.write_text(launch.shipped_configs()["multi_gpu"].read_text() + "num_processes: 3\n")
    assert called("--accelerate_config", own)[0] == 0
    assert called.launches[0].config_file == str(own)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--accelerate_config", "fsdp3"], "is neither a file nor one of"),
        (["--accelerate_config", "fsdp3"], "Did you mean 'fsdp2'?"),
        (["--num_proceses", "2"], "unknown flag --num_proceses. Did you mean 'num_processes'?"),
        (["--accelerate_config", "multi_gpu"], "say --num_processes"),
        (["--accelerate_config", "multi_gpu", "--config_file", "x"], "both name a configuration"),
        (["--cpu", "--num_processes", "2"], "starts one process, not 2; use --accelerate_config multi_cpu"),
        (["--accelerate_config", "fsdp2", "--num_processes", "2", "--cpu"], "plain DDP"),
        (["--use_fsdp", "--cpu"], "plain DDP"),
        (["--config_file", "nowhere.yaml"], "nowhere.yaml could not be read"),
        (["--machine_rank", "first"], "accelerate launch: argument --machine_rank"),
    ],
)
def test_what_cannot_be_launched_is_one_message_and_exit_code_2(called, flags, message):
    code, err = called(*flags)
    assert code == 2 and message in err, err
    assert "Traceback" not in err and "usage" not in err and not called.launches


def test_deepspeed_that_is_not_installed_is_said_before_anything_starts(called, monkeypatch):
    monkeypatch.setattr("tuna_trl.cli.launch.util.find_spec", lambda name: None)
    code, err = called("--accelerate_config", "zero3", "--num_processes", "2")
    assert code == 2 and "pip install deepspeed" in err and not called.launches


def test_a_yaml_key_that_nobody_knows_is_named(tmp_path, called):
    (tmp_path / "x.yaml").write_text("num_proceses: 2\n")
    code, err = called("--config", tmp_path / "x.yaml")
    assert code == 2 and "unknown key 'num_proceses'. Did you mean 'num_processes'?" in err


def test_two_launched_processes_give_the_checkpoint_of_one(tmp_path, tiny_folder):
    logs, weights = [], []
    for name, flags, batch in (
        ("one", [], 4),
        ("two", ["--accelerate_config", "multi_cpu", "--num_processes", "2"], 2),
    ):
        (tmp_path / name).mkdir()
        done = train(tmp_path / name, tiny_folder, "--use_cpu", "true", "--save_steps", "2", *flags, batch=batch)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Saved to") == 1
        out = tmp_path / name / "out"
        state = json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())
        logs.append([entry["loss"] for entry in state["log_history"] if "loss" in entry])
        weights.append(load_file(out / "model.safetensors"))
        assert all(
            torch.equal(weights[-1][key], value)
            for key, value in load_file(out / "checkpoint-2" / "model.safetensors").items()
        )
        assert len(list((out / "checkpoint-2").glob("rng_state*"))) == (2 if flags else 1)
    assert len(logs[0]) == 2 and logs[0] == pytest.approx(logs[1], rel=2e-5)
    assert weights[0].keys() == weights[1].keys()
    assert max((weights[0][key] - weights[1][key]).abs().max().item() for key in weights[0]) < 2e-6


def test_what_a_process_refuses_ends_the_launch_with_its_exit_code(tmp_path):
    flags = ["--accelerate_config", "multi_cpu", "--num_processes", "2", "--use_cpu", "true"]
    done = train(tmp_path, "no/such-model", *flags)
    assert done.returncode == 2, done.stderr
    assert "`model` 'no/such-model' could not be loaded" in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="FSDP2 through accelerate needs two CUDA devices")
def test_fsdp2_through_accelerate_trains_and_saves_a_whole_model(tmp_path, tiny_folder):
    done = train(tmp_path, tiny_folder, "--accelerate_config", "fsdp2", "--num_processes", "2")
    assert done.returncode == 0, done.stderr
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert all(value.numel() for value in saved.values())
