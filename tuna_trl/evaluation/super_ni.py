"""Super-NaturalInstructions (arXiv 2204.07705): its tasks, the Tk-Instruct prompt, ROUGE-L and exact match.

The tasks are read from the user's own copy (allenai/natural-instructions: `tasks/` and `splits/`). Nothing here runs a
model; instances and scores only.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..clients.rouge import RougeL
from ..errors import InputError
from .generation import Task


INSTANCES = 100  # of a test task: the balanced ones stand first in its file
# the metric of each of the twelve categories of the English test split (Tk-Instruct, compute_metrics)
EXACT_MATCH = (
    "Textual Entailment", "Cause Effect Classification", "Coreference Resolution", "Dialogue Act Recognition",
    "Answerability Classification", "Word Analogy",
)  # fmt: skip


@dataclass(frozen=True)
class NiTask:
    """One task file. `examples`: its positive examples as (input, output)."""

    name: str
    category: str
    definition: str
    examples: tuple[tuple[str, str], ...]
    instances: tuple[NiInstance, ...]


@dataclass(frozen=True)
class NiInstance:
    """`outputs`: every reference answer."""

    id: str
    input: str
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class NiData:
    """The tasks there are, and the names of those of the split whose file is not."""

    tasks: tuple[NiTask, ...]
    absent: tuple[str, ...]

    def rows(self) -> list[tuple[NiTask, NiInstance]]:
        return [(task, instance) for task in self.tasks for instance in task.instances]


def load_super_ni(folder: str | Path, *, split: str = "default", limit: int | None = None) -> NiData:
    """The English test tasks of a copy of the repository.

    Args:
        folder: holds `tasks/*.json` and `splits/<split>/test_tasks.txt`; without the latter every file of `tasks` (or
            of the folder itself) is a task.
        limit: instances a task, the first ones; at most 100, as Tk-Instruct takes.

    Raises:
        InputError: no task there, or a file that is no task.
    """
    root = Path(folder)
    tasks = root / "tasks" if (root / "tasks").is_dir() else root
    listed = root / "splits" / split / "test_tasks.txt"
    if listed.is_file():
        names = listed.read_text(encoding="utf-8").split()
    else:
        names = sorted(path.stem for path in tasks.glob("*.json"))
    found = [name for name in names if (tasks / f"{name}.json").is_file()]
    if not found:
        raise InputError(
            f"No Super-NaturalInstructions task in {root}: expected tasks/*.json and splits/{split}/test_tasks.txt, "
            "as in a clone of https://github.com/allenai/natural-instructions."
        )
    count = INSTANCES if limit is None else min(limit, INSTANCES)
    loaded = tuple(_read_task(tasks / f"{name}.json", count) for name in found)
    return NiData(loaded, tuple(name for name in names if name not in set(found)))


def tk_prompt(
    task: NiTask,
    instance: NiInstance,
    *,
    shots: int = 2,
    count_tokens: Callable[[str], Sequence[int]] | None = None,
    decode: Callable[[Sequence[int]], str] | None = None,
    max_source_length: int = 1024,
) -> Task:
    """The prompt of Tk-Instruct: definition, `shots` positive examples, the instance.

    An example is added only while the prompt stays within `max_source_length` tokens; a prompt that is too long
    without any is cut at its end, which loses "Output:", as in Tk-Instruct.

    Args:
        count_tokens: token ids of a text, special tokens included; None: no limit on the length.
        decode: text of token ids, without special ones.
    """
    definition = f"Definition: {_stopped(task.definition.strip())}\n\n"
    question = f"Now complete the following example -\nInput: {_stopped(instance.input.strip())}\nOutput: "
    shown = ""
    for number, (given, wanted) in enumerate(task.examples[:shots], 1):
        example = (
            f" Positive Example {number} -\nInput: {_stopped(given.strip())}\n Output: {_stopped(wanted.strip())}\n\n"
        )
        # joined by a blank when it is measured, as Tk-Instruct does, and without one in the prompt
        measured = definition + " ".join(filter(None, (shown, example))) + question
        if count_tokens is not None and len(count_tokens(measured)) > max_source_length:
            break
        shown += example
    text = definition + shown + question
    if count_tokens is not None and decode is not None:
        ids = count_tokens(text)
        if len(ids) > max_source_length:
            text = decode(ids[:max_source_length])
    return Task(text, instruction=(definition.removeprefix("Definition: ") + shown).strip(), input=instance.input)


def copy_baselines(data: NiData) -> dict[str, list[str]]:
    """What a model must beat: the first positive example's output, and the input itself, as predictions."""
    rows = data.rows()
    return {
        "Copy-Demo": [task.examples[0][1] if task.examples else "" for task, _ in rows],
        "Copy-Input": [instance.input for _, instance in rows],
    }


class NiScorer:
    """ROUGE-L (rouge_score, stemmed) and exact match, in %, the best over the references."""

    def __init__(self) -> None:
        self._rouge = RougeL(max_texts=65_536)

    def rouge_l(self, prediction: str, references: Sequence[str]) -> float:
        return 100 * max(self._rouge.f_measure(reference, prediction) for reference in references)

    def exact_match(self, prediction: str, references: Sequence[str]) -> float:
        said = normalise_answer(prediction)
        return 100.0 * any(said == normalise_answer(reference) for reference in references)

    def scores(self, prediction: str, references: Sequence[str]) -> tuple[float, float]:
        """ROUGE-L and exact match."""
        return self.rouge_l(prediction, references), self.exact_match(prediction, references)


def normalise_answer(text: str) -> str:
    """Lower case, no punctuation, one blank between words; articles stay.

    >>> normalise_answer(" The  Answer: YES. ")
    'the answer yes'
    """
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _stopped(text: str) -> str:
    """With a full stop, unless it ends with punctuation."""
    return text if text and text[-1] in string.punctuation else f"{text}."


def _read_task(path: Path, count: int) -> NiTask:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        instances = tuple(
            NiInstance(str(one["id"]), one["input"], _texts(one["output"])) for one in record["Instances"][:count]
        )
        examples = tuple((one["input"], one["output"]) for one in record["Positive Examples"])
        definition, categories = record["Definition"], record["Categories"]
        definition = definition if isinstance(definition, str) else definition[0]
        return NiTask(path.stem, categories[0], definition, examples, instances)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"{path} is no Super-NaturalInstructions task: {type(error).__name__}: {error}.") from None


def _texts(output: Any) -> tuple[str, ...]:
    texts = (output,) if isinstance(output, str) else tuple(output)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("an instance has no reference output")
    return texts


def category_metric(category: str) -> str:
    """ "exact_match" or "rouge_l": what the category table shows."""
    return "exact_match" if category in EXACT_MATCH else "rouge_l"


def grouped(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[Mapping[str, Any]]]:
    """Scored rows by a column, in the order of first sight."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups
