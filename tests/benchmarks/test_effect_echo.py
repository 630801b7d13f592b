"""Laws of the look at echoes: repeating the instruction earns nothing by new words; every instruction is in a band."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import effect_echo


WORDS = st.lists(st.sampled_from("red green blue Red, one two three".split()), min_size=1, max_size=8).map(" ".join)


@given(WORDS, WORDS, st.integers(0, 5))
def test_words_of_the_instruction_earn_nothing(instruction, reference, some):
    echo = " ".join(instruction.split()[: some + 1])
    assert effect_echo.new_words(echo, reference, instruction) in (0.0, None)


@given(WORDS, WORDS)
def test_the_reference_earns_all_that_there_is(instruction, reference):
    assert effect_echo.new_words(reference, reference, instruction) in (1.0, None)


@given(WORDS, WORDS, WORDS)
def test_without_an_instruction_it_is_the_f1_of_sets(answer, reference, instruction):
    sets = [{word.strip(",").lower() for word in text.split()} for text in (answer, reference)]
    right = len(sets[0] & sets[1])
    precision, recall = right / len(sets[0]), right / len(sets[1])
    expected = 2 * precision * recall / (precision + recall) if right else 0.0
    assert effect_echo.new_words(answer, reference, "") == pytest.approx(expected)


@given(st.floats(0, 1))
def test_every_score_is_in_one_band(score):
    assert sum(low <= score < high for low, high in effect_echo.BANDS) == 1


def test_the_part_behind_the_blank_line_is_an_echo_too():
    assert effect_echo.echoes("Rewrite:\n\nA red hat.\n\nNow.") == (
        "Rewrite:\n\nA red hat.\n\nNow.",
        "A red hat.\n\nNow.",
    )
    assert effect_echo.echoes("Name a fruit.") == ("Name a fruit.", "Name a fruit.")


def test_an_arm_that_echoes_is_told_from_one_that_answers(tmp_path, capsys):
    instructions = [f"Say it again:\n\nthe hat number {i} is red" for i in range(4)]
    rows = [
        {
            "prompt": [{"role": "user", "content": text}],
            "reference": f"blue is the hat number {i}",
            "responses": ["a", "b"],
            "ranks": [1, 2],
        }
        for i, text in enumerate(instructions)
    ]
    (tmp_path / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = {
        "start": ["no"] * 4,
        "echo": [text.split("\n\n")[1] for text in instructions],
        "answer": [row["reference"] for row in rows],
    }
    for name, texts in answers.items():
        folder = tmp_path / "runs" / name / "seed_0"
        folder.mkdir(parents=True)
        (folder / "measured.json").write_text(json.dumps({"answers": texts}))
    (tmp_path / "results.json").write_text(json.dumps({"arms": dict.fromkeys(answers), "baselines": ["echo"]}))
    effect_echo.main(str(tmp_path), str(tmp_path / "heldout.jsonl"))
    said = capsys.readouterr().out
    closeness, new = said.split("\nROUGE-L of the answer and the closer echo\n")[1].split("\nF1 of words")
    assert "echo: 1.000 [1.000, 1.000]; - start +1.000" in closeness
    assert "echo: 0.000 [0.000, 0.000]" in new and "answer: 1.000 [1.000, 1.000]" in new
