"""Super-NaturalInstructions: the prompt to the letter, the length rule, the scores; Copy-Demo and Copy-Input against
the figures of rouge-score where the real tasks are at hand."""

from __future__ import annotations

import json
import statistics
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuna_trl.errors import InputError
from tuna_trl.evaluation.generation import GreedyAnswer
from tuna_trl.evaluation.super_ni import (
    NiInstance,
    NiScorer,
    NiTask,
    copy_baselines,
    load_super_ni,
    normalise_answer,
    tk_prompt,
)
from tuna_trl.evaluation.super_ni_runner import SuperNi, task_interval


TASK = NiTask(
    "task1", "Textual Entailment", " Say whether it follows ", (("A?", "yes"), ("B", "no."), ("C", "no")),
    (NiInstance("1", "It rains", ("yes", "Yes.")), NiInstance("2", "It snows!", ("no",))),
)  # fmt: skip


def write_task(folder, name, category="Title Generation", n=3):
    record = {
        "Definition": ["Give a title"],
        "Categories": [category],
        "Positive Examples": [{"input": "a cat", "output": "Cat"}],
        "Instances": [{"id": f"{name}-{i}", "input": f"text {i}", "output": [f"title {i}"]} for i in range(n)],
    }
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks" / f"{name}.json").write_text(json.dumps(record))


def test_the_prompt_is_that_of_tk_instruct_to_the_letter():
    assert tk_prompt(TASK, TASK.instances[0], shots=2).text == (
        "Definition: Say whether it follows.\n\n"
        " Positive Example 1 -\nInput: A?\n Output: yes.\n\n"
        " Positive Example 2 -\nInput: B.\n Output: no.\n\n"
        "Now complete the following example -\nInput: It rains.\nOutput: "
    )
    assert tk_prompt(TASK, TASK.instances[1], shots=0).text == (
        "Definition: Say whether it follows.\n\nNow complete the following example -\nInput: It snows!\nOutput: "
    )


@given(st.integers(1, 400), st.integers(0, 3))
def test_a_prompt_never_passes_the_limit_and_keeps_as_many_examples_as_fit(limit, shots):
    text = tk_prompt(
        TASK, TASK.instances[0], shots=shots, count_tokens=list, decode="".join, max_source_length=limit
    ).text  # a token a character
    assert len(text) <= limit
    whole = [tk_prompt(TASK, TASK.instances[0], shots=k).text for k in range(shots + 1)]
    # one blank more between two examples is counted than is written
    fits = [full for k, full in enumerate(whole) if len(full) + max(0, k - 1) * 0 + (k > 1) <= limit]
    assert text == (fits[-1] if fits else whole[0][:limit])


def test_the_parts_for_other_templates_are_the_definition_and_the_input():
    prompt = tk_prompt(TASK, TASK.instances[0], shots=0)
    assert prompt.instruction == "Say whether it follows." and prompt.input == "It rains"


def test_rouge_takes_the_best_reference_and_exact_match_ignores_case_and_punctuation():
    scorer = NiScorer()
    assert scorer.rouge_l("the running dogs", ("a cat", "the run dog")) == 100.0  # stemmed
    assert scorer.scores("", ("a",)) == (0.0, 0.0)
    assert scorer.exact_match(' "YES" ', ("no", "yes.")) == 100.0
    assert scorer.exact_match("the yes", ("yes",)) == 0.0  # articles stay


@given(st.text(alphabet=string.ascii_letters + string.punctuation + " \n", max_size=30))
def test_normalising_twice_changes_nothing(text):
    once = normalise_answer(text)
    assert normalise_answer(once) == once and not set(once) & set(string.punctuation)


@given(st.lists(st.text(alphabet="abc xyz", max_size=12), min_size=3, max_size=3))
def test_rouge_is_that_of_rouge_score(texts):
    from rouge_score.rouge_scorer import RougeScorer

    prediction, *references = texts
    oracle = RougeScorer(["rougeL"], use_stemmer=True)
    expected = max(100 * oracle.score(reference, prediction)["rougeL"].fmeasure for reference in references)
    assert NiScorer().rouge_l(prediction, references) == pytest.approx(expected, abs=1e-9)


def test_tasks_of_the_split_are_read_and_what_is_absent_is_named(tmp_path):
    write_task(tmp_path, "task2", n=150)
    write_task(tmp_path, "task9")
    (tmp_path / "splits" / "default").mkdir(parents=True)
    (tmp_path / "splits" / "default" / "test_tasks.txt").write_text("task1\ntask2\n")
    data = load_super_ni(tmp_path)
    assert [task.name for task in data.tasks] == ["task2"] and data.absent == ("task1",)
    assert len(data.rows()) == 100 and len(load_super_ni(tmp_path, limit=2).rows()) == 2
    assert "1 of the split's 2 tasks" in " ".join(SuperNi(data).notes())


def test_without_a_split_every_task_counts_and_rubbish_is_named(tmp_path):
    write_task(tmp_path, "task2")
    write_task(tmp_path, "task3")
    assert len(load_super_ni(tmp_path).tasks) == 2
    (tmp_path / "tasks" / "task4.json").write_text('{"Instances": 3}')
    with pytest.raises(InputError, match="task4.json is no Super-NaturalInstructions task"):
        load_super_ni(tmp_path)
    with pytest.raises(InputError, match="allenai/natural-instructions"):
        load_super_ni(tmp_path / "nowhere")


def test_the_tables_show_each_category_by_its_own_metric(tmp_path):
    write_task(tmp_path, "task2", "Title Generation")
    write_task(tmp_path, "task3", "Word Analogy")
    benchmark = SuperNi(load_super_ni(tmp_path))
    scores = benchmark.score([GreedyAnswer("title 0")] * 5 + [GreedyAnswer(None, failure="down")])
    by_category, by_task = scores.tables
    assert [row[:4] for row in by_category.rows] == [
        ("Title Generation", 1, 3, "rouge_l"), ("Word Analogy", 1, 3, "exact_match"),
    ]  # fmt: skip
    assert by_category.rows[1][4] == 50.0  # one of two; the third is missing
    assert scores.figures["rouge_l"].left_out == 1 and len(by_task.rows) == 2
    assert scores.figures["rouge_l"].mean == pytest.approx(
        statistics.mean(row["rouge_l"] for row in scores.records if row["rouge_l"] is not None)
    )


def test_intervals_over_tasks_are_wider_where_instances_of_a_task_are_alike():
    from tuna_trl.evaluation.ranking import bootstrap_interval

    records = [{"task": f"t{i // 50}", "rouge_l": float(i // 50 % 2) * 100} for i in range(1000)]
    whole = task_interval(records, "rouge_l")
    each = bootstrap_interval([row["rouge_l"] for row in records])
    assert whole.mean == pytest.approx(each.mean) == 50.0 and whole.rows == 20
    assert whole.high - whole.low > 3 * (each.high - each.low)


@pytest.mark.shared
def test_copying_scores_what_it_scores_with_rouge_score(shared_data):
    folder = shared_data / "superni"
    data, scorer = load_super_ni(folder), NiScorer()
    wanted = json.loads((folder / "heuristic_scores.json").read_text())
    for name, texts in copy_baselines(data).items():
        key = name.lower().replace("-", "_")
        found = [scorer.scores(t, instance.outputs) for t, (_, instance) in zip(texts, data.rows(), strict=True)]
        assert len(found) == wanted["n_instances"]
        for place, metric in enumerate(("rougeL", "exact_match")):
            mean = statistics.fmean(pair[place] for pair in found)
            assert round(mean, 4) == round(wanted["overall"][key][metric], 4)
            by_task = {}
            for (task, _), pair in zip(data.rows(), found, strict=True):
                by_task.setdefault(task.name, []).append(pair[place])
            for task, values in by_task.items():
                assert statistics.fmean(values) == pytest.approx(wanted["tasks"][task][key][metric], abs=1e-4), task
