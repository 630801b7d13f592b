"""Laws of the effect experiment's instructions: what is reported was neither trained on nor looked at before."""

from __future__ import annotations

import json

import pytest

from benchmarks import effect_prompts


def rows(count: int, name: str, answer: str = "A short answer.") -> list[dict]:
    return [{"instruction": f"{name} {i}?", "input": "" if i % 2 else "this", "output": answer} for i in range(count)]


@pytest.fixture
def written(tmp_path, monkeypatch):
    known, broken = rows(5, "tuned"), rows(2, "two lines", "one line\nand two")
    sources = {
        "llms_from_scratch_1100.jsonl": rows(300, "tuned") + rows(3, "long", "word " * 31),
        "alpaca_subset.jsonl": known + rows(1010, "fresh") + rows(4, "fresh") + broken,
    }
    for name, lines in sources.items():
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["effect_prompts", "--data", str(tmp_path), "--output", str(tmp_path / "out")])
    effect_prompts.main()
    names = ("tune", "tune_dev", "train", "heldout")
    return {
        name: [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in names
    }


def test_no_instruction_stands_in_two_files_or_twice_in_one(written):
    asked = {name: [row["prompt"][-1]["content"] for row in part] for name, part in written.items()}
    assert {name: len(part) for name, part in asked.items() if name in ("train", "heldout")} == {
        "train": 600,
        "heldout": 400,
    }
    everything = [text for part in asked.values() for text in part]
    assert len(set(everything)) == len(everything)


def test_long_answers_and_answers_of_several_lines_are_left_out(written):
    assert len(written["tune"]) + len(written["tune_dev"]) == 300
    assert all(row["reference"] == "A short answer." for part in written.values() for row in part)


def test_an_input_stands_below_its_instruction_and_the_split_is_the_same_every_time(written):
    assert {row["prompt"][0]["role"] for part in written.values() for row in part} == {"system"}
    assert any(row["prompt"][1]["content"].endswith("?\n\nthis") for row in written["heldout"])
    held = {row["prompt"][1]["content"].split("?")[0] for row in written["tune_dev"]}
    assert held == {f"tuned {i}" for i in range(300) if effect_prompts.TUNE_DEV >> i & 1}
