"""FastChat's files: questions, answers, reference answers, judge prompts, old reviews, in old and new layouts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError


@dataclass(frozen=True)
class VicunaQuestion:
    """`reference`: GPT-4's answer, which the new protocol shows for math and coding; None elsewhere."""

    id: int
    text: str
    category: str
    reference: str | None = None


@dataclass(frozen=True)
class PromptText:
    """A judge prompt.

    Args:
        system: the system prompt.
        template: the user turn, as a format string.
    """

    system: str
    template: str


_QUESTIONS = ("question.jsonl", "questions.jsonl")
_REFERENCES = ("reference_answer/gpt-4.jsonl", "reference_answer_gpt4.jsonl", "reference_answer.jsonl")
_PROMPTS_V2 = ("judge_prompts.jsonl", "judge_prompts_v2.jsonl", "../judge_prompts.jsonl")
_PROMPTS_V1 = ("prompt.jsonl", "prompts.jsonl")


def load_questions(folder: str | Path, *, limit: int | None = None) -> list[VicunaQuestion]:
    """The questions of a folder, with the reference answers if they are there.

    Args:
        folder: holds `question.jsonl` (FastChat: `llm_judge/data/vicuna_bench`, or `eval/table` of old).

    Raises:
        InputError: no such file, or a line that is no question.
    """
    root = Path(folder)
    path = _first(root, _QUESTIONS)
    if path is None:
        raise InputError(
            f"No question.jsonl in {root}. Give the folder of FastChat's Vicuna questions "
            "(fastchat/llm_judge/data/vicuna_bench of https://github.com/lm-sys/FastChat)."
        )
    references_path = _first(root, _REFERENCES)
    references = {} if references_path is None else load_answers(references_path)
    questions = [
        VicunaQuestion(
            _field(row, "question_id", path),
            row["text"] if "text" in row else _turn(row, path),
            str(_field(row, "category", path)),
            references.get(row["question_id"]),
        )
        for row in read_jsonl(path)
    ]
    return questions[:limit]


def load_answers(path: str | Path) -> dict[int, str]:
    """Question id -> answer, from `{"question_id", "text"}` or FastChat's `choices[0].turns[0]`.

    Raises:
        InputError: no such file, or a line that is no answer.
    """
    path = Path(path)
    answers: dict[int, str] = {}
    for row in read_jsonl(path):
        text = row["text"] if "text" in row else _turn(row, path)
        if text is None:  # as a run writes what failed
            continue
        if not isinstance(text, str):
            raise InputError(f"{path}: the answer to question {row.get('question_id')} is no text.")
        answers[_field(row, "question_id", path)] = text
    return answers


def load_prompts_v2(folder: str | Path) -> dict[str, PromptText]:
    """`general` (pair-v2) and `math` (pair-math-v1), which shows a reference answer."""
    path = _first(Path(folder), _PROMPTS_V2)
    wanted = {"pair-v2": "general", "pair-math-v1": "math"}
    rows = {} if path is None else {row.get("name"): row for row in read_jsonl(path)}
    if missing := set(wanted) - set(rows):
        raise InputError(
            f"{folder} lacks the judge prompts {', '.join(sorted(missing))}: expected judge_prompts.jsonl, as in "
            "fastchat/llm_judge/data."
        )
    return {
        use: PromptText(rows[name]["system_prompt"], rows[name]["prompt_template"]) for name, use in wanted.items()
    }


def load_prompts_v1(folder: str | Path) -> dict[str, PromptText]:
    """The prompts of 2023 by category: `general`, `coding`, `math`."""
    path = _first(Path(folder), _PROMPTS_V1)
    rows = [] if path is None else [row for row in read_jsonl(path) if "prompt_template" in row]
    found = {
        str(_field(row, "category", path)): PromptText(
            row["system_prompt"],
            row["prompt_template"].replace(
                "{prompt}", row["defaults"]["prompt"].replace("{", "{{").replace("}", "}}")
            ),
        )
        for row in rows
    }
    if "general" not in found:
        raise InputError(
            f"{folder} lacks prompt.jsonl with the prompts of 2023 (FastChat, eval/table, before July 2023)."
        )
    return found


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file.

    Raises:
        InputError: the file cannot be read, or a line is no JSON object.
    """
    rows = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} could not be read: {error}.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: no JSON ({error}).") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected an object, got {type(row).__name__}.")
        rows.append(row)
    return rows


def _first(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_file()), None)


def _field(row: Mapping[str, Any], name: str, path: Path | None) -> Any:
    if name not in row:
        raise InputError(f"{path}: a line has no {name!r} (it has {', '.join(map(repr, row)) or 'nothing'}).")
    return row[name]


def _turn(row: Mapping[str, Any], path: Path) -> str:
    try:
        return row["turns"][0] if "turns" in row else row["choices"][0]["turns"][0]
    except (KeyError, IndexError, TypeError):
        raise InputError(f"{path}: a line has neither `text` nor `turns` nor `choices[0].turns[0]`.") from None
