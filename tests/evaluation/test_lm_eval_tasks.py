"""The YAML files for lm-eval: they parse, every function that they name is there, and the functions give the figures
of our own runners. With lm-eval installed its own loader reads them and runs them on a stub."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import yaml

from tuna_trl.errors import InputError
from tuna_trl.evaluation.lm_eval_tasks import functions, lm_eval_tasks_path
from tuna_trl.evaluation.lmentry.tasks import ALL


FOLDER = Path(lm_eval_tasks_path())
FILES = sorted(FOLDER.glob("*.yaml"))


class Loader(yaml.SafeLoader):
    """Resolves `!function module.name` as lm-eval does: a file beside the YAML."""


def _function(loader, node):
    module, name = loader.construct_scalar(node).split(".")
    assert (FOLDER / f"{module}.py").is_file()
    return getattr(functions, name)


Loader.add_constructor("!function", _function)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Three instances of Super-NI and one example of each template of every LMentry file, of our own."""
    (tmp_path / "tasks").mkdir()
    record = {
        "Definition": ["Say it."],
        "Categories": ["Word Analogy"],
        "Positive Examples": [{"input": "a", "output": "b"}] * 2,
        "Instances": [{"id": str(i), "input": f"in {i}", "output": ["yes", "yes sir"]} for i in range(3)],
    }
    (tmp_path / "tasks" / "task1.json").write_text(json.dumps(record))
    metadata = {
        "answer": "ab", "distractor": "cde", "query": "q", "category": "c", "word": "ab", "letter": "a",
        "sentence": "ab cde", "num_words": 5, "num_distractors": 4,
    }  # fmt: skip
    for task in ALL:
        own = metadata | ({"answer": 9, "distractor": 12} if "number" in task else {})
        examples = {
            str(t): {"input": f"{task} {t}", "metadata": own | {"template_id": t, "answer_index": t % 2}}
            for t in range(3)
        }
        (tmp_path / f"{task}.json").write_text(json.dumps({"examples": examples}))
    monkeypatch.setenv("TUNA_TRL_SUPER_NI", str(tmp_path))
    monkeypatch.setenv("TUNA_TRL_LMENTRY", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_task_file_names_functions_that_are_there_and_metrics_that_they_give(file, data):
    task = yaml.load(file.read_text(), Loader)
    assert task["task"] == file.stem
    rows = task["custom_dataset"]()[task["test_split"]]
    assert all(isinstance(rows[0][task[field]], str) for field in ("doc_to_text", "doc_to_target"))
    found = task["process_results"](rows[0], ["ab"])
    assert set(found) == {metric["metric"] for metric in task["metric_list"]}


def test_there_are_two_tasks():
    assert [file.stem for file in FILES] == ["tuna_lmentry", "tuna_super_ni"]


def test_the_results_are_those_of_our_runners(data):
    rows = functions.super_ni_dataset()["test"]
    assert len(rows) == 3 and rows[0]["prompt"].endswith("Input: in 0.\nOutput: ")
    assert functions.super_ni_results(rows[0], ["Yes"]) == {"rouge_l": 100.0, "exact_match": 100.0}
    outcomes = [functions.lmentry_results(row, ["..."])["accuracy"] for row in functions.lmentry_dataset()["test"]]
    assert len(outcomes) == 3 * len(ALL)
    assert functions.lmentry_accuracy(outcomes) == 0.0 == functions.lmentry_score(outcomes)
    assert functions.lmentry_robustness(outcomes) == 100.0
    assert math.isnan(functions.lmentry_accuracy(outcomes[:3]))  # one task of 25


def test_data_that_is_not_named_is_said(monkeypatch):
    monkeypatch.delenv("TUNA_TRL_LMENTRY", raising=False)
    with pytest.raises(InputError, match="TUNA_TRL_LMENTRY is not set"):
        functions.lmentry_dataset()


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_lm_eval_runs_both_tasks_on_a_stub(data):
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    class Stub(LM):
        def generate_until(self, requests, **kwargs):
            return ["yes" for _ in requests]

        def loglikelihood(self, requests, **kwargs):
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    manager = TaskManager(include_path=lm_eval_tasks_path(), include_defaults=False)
    found = simple_evaluate(Stub(), tasks=["tuna_super_ni", "tuna_lmentry"], task_manager=manager, bootstrap_iters=0)
    assert found["results"]["tuna_super_ni"]["rouge_l,none"] == 100.0
    assert 0 < found["results"]["tuna_lmentry"]["accuracy,none"] < 100
