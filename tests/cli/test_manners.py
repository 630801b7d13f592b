"""Every verb keeps the same manners: help at once, exit codes, one message, JSON on request, no colours in a pipe,
and an interruption that says what it keeps."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from ranked_rows import dataset_of, simple_row

from tuna_trl.cli.run import options_of_verbs
from tuna_trl.data.hub import save_ranked


VERBS = sorted(verb for verb in options_of_verbs() if verb)
HEAVY = {"torch", "transformers", "datasets", "trl", "anthropic", "openai", "numpy", "pyarrow", "rich.console"}
HEAVY.add("huggingface_hub")


@pytest.fixture
def folder(tmp_path):
    return save_ranked(dataset_of([simple_row(i) for i in range(3)]), tmp_path / "ds")


def test_the_help_of_every_verb_loads_nothing_heavy():
    """One interpreter for all: what one of them loads, the last line shows."""
    code = (
        "import sys\nfrom tuna_trl.cli import main\n"
        f"for verb in {['', *VERBS]!r}:\n"
        "    sys.argv = ['tuna-trl', *verb.split(), '--help']\n"
        "    try:\n        main()\n    except SystemExit as stop:\n        assert not stop.code, verb\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert {"init", "build teacher", "rank", "evaluate ranking", "env"} <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_flag_is_exit_code_2_in_every_verb(call, verb):
    required = {"train": ["--outptu_dir", "x"], "estimate": ["--outptu_dir", "x"]}
    code, _, err = call(*verb.split(), *required.get(verb, ["--no-such-flag"]))
    assert code == 2 and "Traceback" not in err and err.strip()
    if verb in required:
        assert "Did you mean 'output_dir'?" in err


def test_an_unknown_verb_is_named_with_the_nearest(call):
    code, _, err = call("biuld")
    assert code == 2 and "build" in err.partition("biuld")[2]


@pytest.mark.parametrize(
    "args",
    [
        ["build", "teacher", "--prompts", "nowhere.jsonl", "--model", "embedded", "--output", "o"],
        ["build", "judge", "--prompts", "nowhere.jsonl", "--model", "embedded", "--output", "o"],
        ["rank", "--data", "nowhere.jsonl", "--judge", "reference", "--output", "o"],
        ["rank", "--data", "nowhere.jsonl", "--model", "embedded", "--output", "o"],
        ["import", "nowhere.jsonl", "o"],
        ["import", "nowhere.jsonl", "--output", "o"],
        ["convert", "nowhere.jsonl", "o", "--to", "sft"],
        ["validate", "nowhere.jsonl"],
        ["preview", "nowhere.jsonl"],
        ["report", "nowhere.jsonl"],
        ["estimate", "--config", "nowhere.yaml"],
        ["train", "--config", "nowhere.yaml"],
        ["run", "nowhere.yaml"],
        ["ablate", "nowhere.yaml"],
        ["merge", "./nowhere", "--output", "o"],
        ["generate", "--model", "embedded", "--prompts", "nowhere.jsonl"],
        ["generate", "--model", "./nowhere", "--prompt", "a"],
        ["push", "nowhere", "owner/name"],
        ["init", "x.yaml", "--prompts", "nowhere.jsonl", "--yes"],
        ["evaluate", "super-ni", "--model", "embedded", "--data", "nowhere", "--output", "o"],
        ["evaluate", "lmentry", "--model", "embedded", "--data", "nowhere", "--output", "o"],
        ["evaluate", "ranking", "--model", "embedded", "--data", "nowhere.jsonl", "--output", "o"],
        [
            "evaluate",
            "vicuna-qa",
            "--model",
            "a",
            "--model",
            "b",
            "--data",
            "nowhere",
            "--judge",
            "x",
            "--output",
            "o",
        ],
        ["evaluate", "vicuna-export", "--data", "d", "--first", "nowhere", "--second", "b", "--output", "o"],
        ["evaluate", "vicuna-import", "--key", "nowhere", "--verdicts", "v"],
        ["demo", "--model", "./nowhere", "--train-rows", "2", "--heldout-rows", "2", "--output", "o"],
    ],
    ids=lambda args: "-".join(args[:3]),
)
def test_a_wrong_file_is_exit_code_2_and_names_it(call, tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*args)
    assert code == 2 and "nowhere" in err and "Traceback" not in out + err, err
    assert "This is a bug" not in err


@pytest.mark.parametrize("spelling", ["--max-length", "--max_length"])
def test_flags_are_read_in_both_spellings(call, folder, spelling):
    code, _, err = call("validate", folder, spelling, "5")
    assert code == 2 and "--max-length needs --model" in err


def test_import_and_convert_are_told_where_to_write_once(call, folder, tmp_path):
    code, _, err = call("import", folder, tmp_path / "a", "--output", tmp_path / "b")
    assert code == 2 and "both were" in err
    code, _, err = call("convert", folder, "--to", "sft")
    assert code == 2 and "neither was" in err
    assert call("import", folder, "--output", tmp_path / "a")[0] == 0
    assert call("convert", tmp_path / "a", "--output", tmp_path / "b", "--to", "preference")[0] == 0


def test_json_is_all_that_stdout_holds(folder, tmp_path, tiny_folder, call):
    lengths = ["--num_responses", "2", "--prompt_length", "8", "--response_length", "8"]
    given = ["--model_name_or_path", tiny_folder, "--dataset_name", folder, "--output_dir", tmp_path / "o"]
    ranking = ["evaluate", "ranking", "--model", tiny_folder, "--data", folder, "--split", "train"]
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "say", "reference": "it is"}) + "\n")
    (tmp_path / "r.jsonl").write_text(json.dumps({"prompt": "say", "reference": "a", "responses": ["a", "b"]}) + "\n")
    drawn = ["--prompts", tmp_path / "p.jsonl", "--model", tiny_folder, "--max-new-tokens", 4]
    given_rows = ["rank", "--data", tmp_path / "r.jsonl"]
    for args, key in [
        (["build", "teacher", *drawn, "--rank-truncated", "--output", tmp_path / "t"], "rows"),
        (["build", "teacher", *drawn, "--output", tmp_path / "t2", "--dry-run"], "output_tokens"),
        (["build", "judge", *drawn, "--output", tmp_path / "j"], "judgments"),
        (["build", "judge", *drawn, "--output", tmp_path / "j2", "--dry-run"], "questions"),
        ([*given_rows, "--judge", "reference", "--output", tmp_path / "g"], "judgments"),
        ([*given_rows, "--teacher", tiny_folder, "--output", tmp_path / "g2"], "status"),
        (["rank", "--from-judgments", tmp_path / "g", "--output", tmp_path / "g3"], "rows"),
        (["generate", "--model", tiny_folder, "--prompt", "say", "--max-new-tokens", 4], "answers"),
        (["validate", folder], "findings"),
        (["env"], "torch"),
        (["estimate", *given, *lengths], "verdict"),
        ([*ranking, "--output", tmp_path / "r"], "models"),
    ]:
        code, out, err = call(*args, "--json")
        assert code == 0, err
        assert key in json.loads(out), args


def test_commands_end_with_the_next_one(call, folder, tmp_path, tiny_folder):
    for args in (
        ["preview", folder],
        ["report", folder],
        ["validate", folder],
        ["env"],
        ["import", folder, tmp_path / "a"],
        ["convert", folder, tmp_path / "b", "--to", "sft"],
        ["init", tmp_path / "x.yaml", "--card", "0"],
        ["run", tmp_path / "x.yaml", "--dry-run"],
        [
            "build",
            "teacher",
            "--prompts",
            "demo:train",
            "--model",
            tiny_folder,
            "--output",
            tmp_path / "o",
            "--dry-run",
        ],
    ):
        code, out, err = call(*args)
        assert code == 0 and out.rstrip().splitlines()[-1].startswith("Next"), (args, out, err)


def test_a_dry_run_shows_what_the_files_will_hold_that_it_names(call, tmp_path):
    recipe = {"output": str(tmp_path / "run"), "model": "embedded", "defaults": {"train": {"use_peft": True}}}
    stages = [{"train": {"learning_rate": 1e-4, "data": "me/rows"}}]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe | {"stages": stages}))
    code, out, err = call("run", tmp_path / "r.yaml", "--dry-run")
    assert code == 0 and "train_1.yaml is written when the stage starts, and holds:" in out, err
    shown = out.partition("and holds:\n")[2].partition("Next: ")[0]
    held = yaml.safe_load(shown)
    assert held["learning_rate"] == 1e-4 and held["use_peft"] is True and held["dataset_name"] == "me/rows"
    assert not (tmp_path / "run").exists()


def test_merge_asks_by_name_for_a_quantised_base(call, monkeypatch, tmp_path):
    from tuna_trl.adapters import MergeReport

    forced = []

    def merge_adapter(adapter, output, *, dtype, force):
        forced.append(force)
        return MergeReport(output, 8, 0.0, 0.0)

    monkeypatch.setattr("tuna_trl.adapters.merge_adapter", merge_adapter)
    for flags in ([], ["--allow-quantised"], ["--force"]):
        code, out, err = call("merge", "adapter", "--output", tmp_path / "m", *flags)
        assert code == 0 and f"tuna-trl generate --model {tmp_path / 'm'} --prompt" in out
        assert ("--force is deprecated" in err) == (flags == ["--force"])
    assert forced == [False, True, True]


COLOUR = re.compile(r"\x1b\[[0-9;]*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[0-9;]*m")


@pytest.mark.parametrize("where", ["pipe", "terminal with NO_COLOR"])
def test_there_are_no_colours_in_a_pipe_and_none_with_no_color(folder, tiny_folder, where):
    command = [sys.executable, "-m", "tuna_trl", "preview", str(folder), "--model", str(tiny_folder)]
    env = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "NO_COLOR")}
    env |= {"HF_HUB_OFFLINE": "1", "TERM": "xterm-256color"}
    if where == "pipe":
        out = subprocess.run(command, capture_output=True, env=env, check=True).stdout
        assert b"\x1b" not in out and b"Next: " in out
        return
    assert COLOUR.search(on_terminal(command, env))  # so that there is something to be switched off
    plain = on_terminal(command, env | {"NO_COLOR": "1"})
    assert "Next: " in plain and not COLOUR.search(plain)


def on_terminal(command, env):
    import pty

    reading, writing = pty.openpty()
    process = subprocess.Popen(command, stdout=writing, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=env)
    os.close(writing)
    seen = b""
    while True:
        try:
            chunk = os.read(reading, 65536)
        except OSError:  # Linux' end of file of a terminal
            break
        if not chunk:
            break
        seen += chunk
    os.close(reading)
    assert process.wait() == 0
    return seen.decode()


def interrupted(command, ready, tmp_path):
    """Start a command, and once `ready()` do what Ctrl-C does: SIGINT to it and the processes that it started.
    Returns (exit code, stdout + stderr)."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tuna_trl", *map(str, command)],
            stdout=file,
            stderr=file,
            env=env,
            start_new_session=True,
        )
        while not ready():
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait(120)
    return code, log.read_text()


def prompts_file(tmp_path, n):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {i}", "reference": f"it is {i}"}) + "\n" for i in range(n)))
    return path


def test_an_interrupted_build_says_what_it_keeps_and_goes_on(tmp_path, tiny_folder, call):
    given = ["--prompts", prompts_file(tmp_path, 400), "--model", tiny_folder, "--rank-truncated"]
    given += ["--max-new-tokens", 4, "--output", tmp_path / "o"]
    journal = tmp_path / "o.journal.sqlite"
    code, said = interrupted(["build", "teacher", *given], journal.exists, tmp_path)
    assert code == 130 and "run the same command again to go on" in said and "Traceback" not in said
    code, out, err = call("build", "teacher", *given, "--limit", 8)
    assert code == 0 and "Next: tuna-trl train" in out, err


def test_an_interrupted_training_goes_on_from_its_checkpoint(tmp_path, tiny_folder, folder):
    given = ["--model_name_or_path", tiny_folder, "--dataset_name", folder, "--output_dir", tmp_path / "o"]
    given += ["--report_to", "none", "--save_steps", 1, "--save_total_limit", 2, "--learning_rate", "1e-4"]
    done = (tmp_path / "o" / "checkpoint-2" / "trainer_state.json").exists
    code, said = interrupted(["train", *given, "--max_steps", 5000], done, tmp_path)
    assert code == 130 and "Checkpoints in output_dir are kept" in said and "Traceback" not in said
    last = max(int(path.name.partition("-")[2]) for path in (tmp_path / "o").glob("checkpoint-*"))
    command = [sys.executable, "-m", "tuna_trl", "train", *map(str, given), "--max_steps", str(last + 1)]
    again = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert again.returncode == 0 and "Going on from" in again.stdout, again.stderr
    assert "Next, ask it: tuna-trl generate" in again.stdout
    assert again.stdout.rstrip().splitlines()[-1].startswith("Next, did it help: tuna-trl evaluate ranking")


def test_an_interrupted_run_lets_its_stage_end_and_goes_on(tmp_path, tiny_folder):
    build = {"teacher": str(tiny_folder), "max_new_tokens": 4, "rank_truncated": True, "num_responses": 2}
    recipe = {"output": str(tmp_path / "run"), "prompts": str(prompts_file(tmp_path, 400))}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe | {"stages": [{"build teacher": build}]}))
    journal = tmp_path / "run" / "build_teacher_1.journal.sqlite"
    code, said = interrupted(["run", tmp_path / "r.yaml"], journal.exists, tmp_path)
    assert code == 130 and "What was received is journalled" in said and "Finished stages are kept" in said
    assert "Traceback" not in said
    command = [sys.executable, "-m", "tuna_trl", "run", str(tmp_path / "r.yaml")]
    again = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert again.returncode == 0 and "All 1 stages are done" in again.stdout, again.stderr
    assert again.stdout.rstrip().splitlines()[-1].startswith("Next: tuna-trl train")
