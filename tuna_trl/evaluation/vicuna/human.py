"""Human evaluation: blinded pairs out, verdicts in. Who wrote which answer stands in a key file apart.

`pairs.jsonl` and `pairs.html` go to the annotators, `key.json` does not. Order of the pairs and sides are shuffled by
a seed; ids are hashes that tell nothing. The page works from a file, without a network, and saves verdicts as JSONL.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ...data.schema import digest
from ...errors import InputError
from ..results import write_jsonl, write_text
from .data import VicunaQuestion, read_jsonl
from .games import GameSummary, Pair, summarise


CHOICES = {"left": 1.0, "tie": 0.5, "right": 0.0}


@dataclass(frozen=True)
class HumanResult:
    """What annotators say of the first model against the second.

    `summary`: one pair a question, its result the side of the majority (0.5 where there is none). `agreement`: share
    of pairs of verdicts on the same question that agree; None with one annotator. `annotators`: how many files.
    """

    models: tuple[str, str]
    summary: GameSummary
    agreement: float | None
    annotators: int
    missing: int  # questions that nobody judged


def export_blinded(
    questions: Sequence[VicunaQuestion],
    first: tuple[str, Mapping[Any, str]],
    second: tuple[str, Mapping[Any, str]],
    folder: str | Path,
    *,
    seed: int = 0,
) -> Path:
    """Write `pairs.jsonl`, `pairs.html` and `key.json`.

    Args:
        first, second: a model's name and its answers by question id; questions that either lacks are left out.

    Returns:
        the folder.

    Raises:
        InputError: no question has both answers.
    """
    rng = random.Random(seed)
    pairs, key = [], {}
    for question in questions:
        if question.id not in first[1] or question.id not in second[1]:
            continue
        number = digest(["blind", seed, question.id, first[1][question.id], second[1][question.id]])[:12]
        sides = [0, 1]
        rng.shuffle(sides)
        answers = [(first, second)[side][1][question.id] for side in sides]
        pairs.append({"id": number, "question": question.text, "left": answers[0], "right": answers[1]})
        key[number] = {"question_id": question.id, "left": sides[0]}
    if not pairs:
        raise InputError(f"No question has an answer of both {first[0]} and {second[0]}.")
    rng.shuffle(pairs)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    write_jsonl(target / "pairs.jsonl", pairs)
    write_text(target / "pairs.html", _page(pairs))
    # sorted, or the order of the questions would give away the order of the pairs to who sees both
    record = {"models": [first[0], second[0]], "seed": seed, "pairs": dict(sorted(key.items()))}
    write_text(target / "key.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return target


def import_verdicts(key: str | Path, files: Sequence[str | Path]) -> HumanResult:
    """Read verdicts (`{"id", "verdict": "left" | "right" | "tie"}`, one file an annotator) and put names to them.

    Raises:
        InputError: no file, a key that is none, an id that it lacks, a verdict of another kind, or one given twice.
    """
    if not files:
        raise InputError("`files` is empty: name at least one file of verdicts.")
    models, pairs = _read_key(key)
    said: dict[str, list[float]] = {number: [] for number in pairs}
    for file in files:
        seen = set()
        for row in read_jsonl(file):
            number, verdict = row.get("id"), row.get("verdict")
            if number not in pairs:
                raise InputError(f"{file}: the key does not know the pair {number!r}; is it the key of this export?")
            if verdict not in CHOICES:
                raise InputError(f"{file}: the verdict on {number} is {verdict!r}, expected left, right or tie.")
            if number in seen:
                raise InputError(f"{file}: the pair {number} is judged twice.")
            seen.add(number)
            left_wins = CHOICES[verdict]
            said[number].append(left_wins if pairs[number]["left"] == 0 else 1.0 - left_wins)
    judged = [
        Pair(pairs[number]["question_id"], _majority(results), None, tuple(results))
        for number, results in said.items()
        if results
    ]
    return HumanResult(
        (models[0], models[1]), summarise(judged), _agreement(said.values()), len(files), len(pairs) - len(judged)
    )


def _majority(results: Sequence[float]) -> float:
    """1, 0.5 or 0: what more than half of the annotators say, else a tie."""
    return next((choice for choice in (1.0, 0.0) if 2 * results.count(choice) > len(results)), 0.5)


def _agreement(said: Iterable[Sequence[float]]) -> float | None:
    same = total = 0
    for results in said:
        for i in range(len(results)):
            for j in range(i):
                same += results[i] == results[j]
                total += 1
    return same / total if total else None


def _read_key(path: str | Path) -> tuple[list[str], dict[str, dict[str, Any]]]:
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        models, pairs = list(record["models"]), dict(record["pairs"])
        if len(models) != 2 or not all(pair["left"] in (0, 1) and "question_id" in pair for pair in pairs.values()):
            raise ValueError("its pairs are not what an export writes")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no key of a blinded export: {type(error).__name__}: {error}.") from None
    return models, pairs


def _page(pairs: Sequence[Mapping[str, str]]) -> str:
    """The page with the pairs as JSON inside; `<` is escaped, so that no answer can end the script element."""
    text = json.dumps(list(pairs), ensure_ascii=False).replace("<", "\\u003c")
    for separator in ("\u2028", "\u2029"):
        text = text.replace(separator, f"\\u{ord(separator):04x}")
    page = resources.files(__package__).joinpath("pairs.html").read_text(encoding="utf-8")
    return page.replace("__PAIRS__", text)
