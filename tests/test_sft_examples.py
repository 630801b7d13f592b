"""TRL's own examples of SFTTrainer run with the import swapped, training included.

They are read from the installed trl when the tests run: the code blocks of its docstrings, and its script
`trl/scripts/sft.py` with the command lines that the script's docstring gives. Names on the Hub are stood in for by
folders of the same relative name, so that not a character but the import is changed.
"""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch
import trl
from datasets import Dataset
from training import parameters
from transformers import Trainer
from trl_rows import turns

from tuna_trl import TunaConfig, TunaTrainer
from tuna_trl.errors import InputError


ROOT = Path(trl.__file__).parent
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SWAPS = {"SFTTrainer": "from tuna_trl import TunaTrainer as SFTTrainer"}
BOTH = {**SWAPS, "SFTConfig": "from tuna_trl import TunaConfig as SFTConfig"}
swapping = pytest.mark.parametrize("swaps", [SWAPS, BOTH], ids=["trainer swapped", "trainer and config swapped"])


def code_blocks(text: str) -> Iterator[str]:
    """The Python blocks of a docstring without their prompts; what they print is left out."""
    for indent, block in BLOCK.findall(text):
        lines = [line.removeprefix(indent) for line in block.splitlines()]
        if any(line.startswith(">>> ") for line in lines):
            lines = [line[4:] for line in lines if line.startswith((">>> ", "... "))]
        yield "\n".join(lines) + "\n"


def sft_examples() -> dict[str, str]:
    """Every code block of the installed trl that makes an SFTTrainer."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        blocks = [b for b in code_blocks(path.read_text(encoding="utf-8")) if re.search(r"\bSFTTrainer\(", b)]
        for i, block in enumerate(blocks):
            found[f"{path.relative_to(ROOT)} {i}"] = block
    return found


def swapped(code: str, swaps: dict[str, str]) -> str:
    """`code` with some names imported from tuna_trl instead of trl; its other imports stay."""

    def one(match: re.Match) -> str:
        names = [name.strip() for name in match["names"].split(",")]
        lines = [swaps[name] for name in names if name in swaps]
        if others := [name for name in names if name not in swaps]:
            lines.append(f"from trl import {', '.join(others)}")
        return "\n".join(match["indent"] + line for line in lines)

    return re.sub(r"^(?P<indent> *)from trl import (?P<names>[\w, ]+)$", one, code, flags=re.MULTILINE)


EXAMPLES = sft_examples()
SCRIPT = (ROOT / "scripts" / "sft.py").read_text(encoding="utf-8")
# the command lines of the script's docstring, without the interpreter and the script's name
COMMANDS = [
    shlex.split(block.replace("\\\n", " "))[2:] for block in re.findall(r"```bash\n(.*?)```", SCRIPT, flags=re.DOTALL)
]


@pytest.fixture(autouse=True)
def _stand_ins(tmp_path, monkeypatch, tiny_llama, tiny_tokenizer):
    """In an own working folder, folders named like what the examples load from the Hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    stories = Dataset.from_list([{"text": f"In the river {i} there is a stone."} for i in range(400)])
    chats = Dataset.from_list([{"messages": turns(i % 4), "source": "a"} for i in range(20)])
    for name, rows in (("roneneldan/TinyStories", stories), ("trl-lib/Capybara", chats)):
        (tmp_path / name).mkdir(parents=True)
        rows.to_parquet(tmp_path / name / "train.parquet")
        rows.select(range(4)).to_parquet(tmp_path / name / "test.parquet")
    for name in MODELS:
        tiny_llama.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)


MODELS = sorted(set(re.findall(r"\bQwen/[\w.-]+", SCRIPT + "".join(EXAMPLES.values()))))


@pytest.fixture
def finished(monkeypatch) -> list[Trainer]:
    """The trainers whose training came to its end, filled as they do."""
    trainers: list[Trainer] = []
    train = Trainer.train

    def recording(self, *args, **kwargs):
        result = train(self, *args, **kwargs)
        trainers.append(self)
        return result

    monkeypatch.setattr(Trainer, "train", recording)
    return trainers


def test_trl_has_examples_to_run():
    assert EXAMPLES and all("SFTTrainer(" in code for code in EXAMPLES.values())
    assert any("SFTTrainer(" in code for code in code_blocks(inspect.cleandoc(trl.SFTTrainer.__doc__)))
    assert len(COMMANDS) >= 2 and all("--model_name_or_path" in command for command in COMMANDS)
    assert MODELS


@pytest.mark.parametrize("swaps", [SWAPS, BOTH], ids=len)
def test_swapping_changes_the_imports_and_nothing_else(swaps):
    code = (
        "import a\nfrom trl import SFTConfig, SFTTrainer, get_dataset\nSFTTrainer(1)\n    from trl import SFTTrainer\n"
    )
    result = swapped(code, swaps)
    assert swaps["SFTTrainer"] in result and "    " + swaps["SFTTrainer"] in result
    assert ("from trl import SFTConfig, get_dataset" in result) == ("SFTConfig" not in swaps)
    kept = [line for line in result.splitlines() if "import SFT" not in line and "tuna_trl" not in line]
    assert kept[0] == "import a" and "SFTTrainer(1)" in kept


@swapping
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_a_docstring_trains(name, swaps, finished):
    code = swapped(EXAMPLES[name], swaps)
    namespace: dict = {}
    exec(compile(code, name, "exec"), namespace)
    (trainer,) = finished
    assert trainer is namespace["trainer"] and type(trainer) is TunaTrainer and type(trainer.args) is TunaConfig
    assert trainer.state.global_step == trainer.state.max_steps > 0
    assert trainer.state.log_history[-1]["train_loss"] > 0


def run_script(monkeypatch, flags: list[str], swaps: dict[str, str]) -> None:
    """TRL's script with the imports swapped, as `python trl/scripts/sft.py flags` runs it."""
    monkeypatch.setattr(sys, "argv", ["sft.py", *flags])
    exec(compile(swapped(SCRIPT, swaps), "sft.py", "exec"), {"__name__": "__main__"})


def without(flags: list[str], *names: str) -> list[str]:
    return [flag for flag in flags if flag not in names]


@swapping
@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: "LoRA" if "--use_peft" in c else "full")
def test_trls_script_trains_the_weights_that_it_trains_unswapped(command, swaps, finished, monkeypatch, tmp_path):
    """By its own command line but for packing, which is refused, pushing, which no test does, and LoRA's dropout,
    which draws other masks where a batch has no padding."""
    flags = [*without(command, "--packing", "--push_to_hub"), "--use_cpu", "true", "--lora_dropout", "0"]
    explicit = [*flags, "--bf16", "false"]  # SFTConfig raises on a CPU without it, TunaConfig sees to it itself
    run_script(monkeypatch, explicit, {})
    run_script(monkeypatch, flags if "SFTConfig" in swaps else explicit, swaps)
    theirs, ours = finished
    assert type(theirs) is trl.SFTTrainer and type(ours) is TunaTrainer
    assert ours.state.global_step == theirs.state.global_step == ours.state.max_steps > 0
    assert ours.state.log_history[-1]["train_loss"] == pytest.approx(theirs.state.log_history[-1]["train_loss"], 1e-5)
    expected, found = parameters(theirs.model), parameters(ours.model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
    output = tmp_path / command[command.index("--output_dir") + 1]
    weights = "adapter_model.safetensors" if "--use_peft" in command else "model.safetensors"
    assert (output / weights).is_file()


@swapping
def test_packing_in_trls_command_line_is_refused_by_name(swaps, monkeypatch):
    flags = [*without(COMMANDS[0], "--push_to_hub"), "--bf16", "false"]
    assert "--packing" in flags
    with pytest.raises(InputError, match=r"`packing` = True is not supported by TunaTrainer: a row already holds"):
        run_script(monkeypatch, flags, swaps)
