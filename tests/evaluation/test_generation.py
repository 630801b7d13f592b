"""Greedy answers: templates, resuming, servers; the results file; ranking accuracy on rows; the figure."""

from __future__ import annotations

import json
import weakref
import xml.etree.ElementTree as ET

import pytest
from doubles.openai_server import Habits, OpenAIServer
from doubles.samplers import SeedSampler
from hypothesis import given
from hypothesis import strategies as st

from tuna_trl.build.journal import Journal
from tuna_trl.clients.openai_compatible import OpenAICompatibleSampler
from tuna_trl.data.schema import normalise_row
from tuna_trl.errors import InputError
from tuna_trl.evaluation.candidates import Candidate, local_candidates, server_candidate
from tuna_trl.evaluation.figure import interval_figure, ticks
from tuna_trl.evaluation.generation import AnyServer, Task, greedy_answers, render, tokenizer_for
from tuna_trl.evaluation.ranked import RankedData, top_one
from tuna_trl.evaluation.ranking import Interval
from tuna_trl.evaluation.results import Evaluation, ModelScores, Scores, Table, file_name, write_results
from tuna_trl.evaluation.runner import run


def prompts(n):
    return [[{"role": "user", "content": f"question {i}" + " and more" * (i % 5)}] for i in range(n)]


def test_the_templates_put_the_texts_where_they_belong():
    task = Task("whole text ", "do it", "an input")
    assert render(task, "chat") == render(task, "raw") == [{"role": "user", "content": "whole text "}]
    (message,) = render(task, "alpaca")
    assert message["content"].startswith("Below is an instruction that describes a task, paired with an input")
    assert message["content"].endswith("### Instruction:\ndo it\n\n### Input:\nan input\n\n### Response:")
    assert "### Input" not in render(Task("x", "do it"), "alpaca")[0]["content"]
    with pytest.raises(InputError, match="Did you mean 'alpaca'"):
        render(task, "alpacca")


@given(st.text(min_size=1, max_size=40))
def test_the_raw_template_is_the_text_and_nothing_else(_tokenizer, text):
    text = text.encode("utf-8", "ignore").decode()
    plain = tokenizer_for(_tokenizer, "raw")
    message = [{"role": "user", "content": text}]
    assert plain.apply_chat_template(message, tokenize=False, add_generation_prompt=True) == text
    assert tokenizer_for(_tokenizer, "chat") is _tokenizer and _tokenizer.chat_template != plain.chat_template


def test_a_tokenizer_that_begins_with_a_token_does_so_in_the_raw_template():
    from tiny import llama3_tokenizer

    tokenizer = llama3_tokenizer()
    plain = tokenizer_for(tokenizer, "raw")
    ids = plain.apply_chat_template([{"role": "user", "content": "ab"}], return_dict=False)
    assert list(ids) == list(tokenizer("ab")["input_ids"])


def test_answers_come_in_the_order_of_the_prompts_and_a_rerun_generates_nothing(tmp_path):
    sampler = SeedSampler()
    with Journal(tmp_path / "j.sqlite") as journal:
        options = dict(max_new_tokens=8, journal=journal, bucket_size=4, show_progress=False)
        first = greedy_answers(prompts(11), sampler, **options)
        alone = [greedy_answers([p], SeedSampler(), **{**options, "journal": journal})[0] for p in prompts(11)]
        calls = len(sampler.calls)
        assert greedy_answers(prompts(11), sampler, **options) == first == alone
        assert len(sampler.calls) == calls == 3 and {call[2] for call in sampler.calls} == {0.0}
        assert greedy_answers([], sampler, **options) == []


def test_a_run_that_was_stopped_goes_on_with_the_next_bucket(tmp_path):
    def stop(call):
        if call == 1:
            raise KeyboardInterrupt

    stopped, later = SeedSampler(before=stop), SeedSampler()
    with Journal(tmp_path / "j.sqlite") as journal:
        options = dict(max_new_tokens=8, journal=journal, bucket_size=4, show_progress=False)
        with pytest.raises(KeyboardInterrupt):
            greedy_answers(prompts(8), stopped, **options)
        assert len(greedy_answers(prompts(8), later, **options)) == 8
    assert len(later.calls) == 1


def test_a_server_needs_no_log_probs_and_is_asked_once_a_prompt(tmp_path):
    with OpenAIServer(Habits(knows_logprobs=False)) as server, Journal(tmp_path / "j.sqlite") as journal:
        sampler = AnyServer(OpenAICompatibleSampler("m", server.url))
        options = dict(max_new_tokens=8, journal=journal, show_progress=False)
        answers = greedy_answers(prompts(5), sampler, **options)
        assert [a.text is not None for a in answers] == [True] * 5 and len(server.requests) == 5
        assert {body["temperature"] for body in server.bodies} == {0.0}
        assert greedy_answers(prompts(5), sampler, **options) == answers and len(server.requests) == 5


def test_a_server_renders_its_own_template_only():
    with pytest.raises(InputError, match="chat template"):
        server_candidate("m", lambda: None, template="raw")


def test_models_are_named_once_and_adapters_are_adapters(tmp_path):
    for models, adapters, message in (
        ([], [], "at least one model"), (["a", "a"], [], "named twice"), (["a"], [str(tmp_path)], "is no adapter"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            local_candidates(models, adapters)


def test_an_adapter_is_another_model_than_its_base(tiny_folder, tmp_path, _llama):
    import copy

    import torch
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(copy.deepcopy(_llama), LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    seen, models = [], []
    for candidate in local_candidates([str(tiny_folder)], [str(tmp_path / "adapter")]):
        assert candidate.local and not any(model() for model in models), "two models in memory"
        models.append(weakref.ref(candidate.model))
        seen.append((candidate.name, candidate.record))
    (name, base), (other_name, other) = seen
    assert other["adapter"] and other["model"] == str(tiny_folder) and other_name.startswith(name)
    assert base["fingerprint"]["weights"] != other["fingerprint"]["weights"]


class Constant:
    """A benchmark whose value is the candidate's."""

    name = "Constant"

    def settings(self):
        return {"a|b": [1, None]}

    def notes(self):
        return ["a note"]

    def baselines(self):
        return {"chance": {"value": 0.25}}

    def run(self, candidate, journal, max_cost, show_progress):
        values = candidate.extra["values"]
        mean = sum(values) / len(values)
        table = Table("More", ("x|y", "n"), (("a\nb|c", None),))
        return Scores({"value": Interval(mean, mean - 1, mean + 1, 3)}, {"value": values}, (table,), {}, [{"a": 1}])


def test_results_hold_every_model_and_the_paired_difference_to_the_first(tmp_path):
    candidates = [
        Candidate("base", None, {"model": "base"}, extra={"values": [0.0, 1.0, 2.0]}),
        Candidate("org/tuned", None, {"model": "org/tuned"}, extra={"values": [1.0, 2.0, 3.0]}),
        Candidate("org-tuned", None, {"model": "org-tuned"}, extra={"values": [1.0, 2.0, 3.0]}),
    ]
    evaluation = run(Constant(), candidates, tmp_path / "out", show_progress=False)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    difference = found["differences_to_first"]["org/tuned"]["value"]
    assert (difference["mean"], difference["low"], difference["high"]) == (1.0, 1.0, 1.0)
    assert [one["name"] for one in found["models"]] == ["base", "org/tuned", "org-tuned"] and found["tuna_trl"]
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| org/tuned | +1.000 [+1.000, +1.000] |" in text and "| chance (no model) | 0.250 |" in text
    assert "a b\\|c | –" in text and text == evaluation.to_markdown()
    names = {path.name for path in (tmp_path / "out" / "predictions").iterdir()}
    assert names == {"base.jsonl", "org-tuned.jsonl", "org-tuned+.jsonl"}


def test_a_figure_that_could_not_be_had_is_a_dash_and_null(tmp_path):
    none = Scores({"value": Interval(None, None, None, 0, 3)}, {"value": [None, None]})
    evaluation = Evaluation("b", {}, [ModelScores("m", {}, none), ModelScores("n", {}, none)])
    write_results(evaluation, tmp_path)
    assert "| m | – |" in (tmp_path / "results.md").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["models"][0]["figures"]["value"]["mean"] is None


@given(st.text(max_size=200))
def test_any_model_name_is_the_name_of_a_file(name):
    made = file_name(name)
    assert 0 < len(made) <= 120 and not set(made) & set("/\\\0 :") and made.strip(".")


def rows():
    rank = [[1, 2, 3], [1, 1, 3], [2, 1], [1, 1]]
    texts = [["long answer here", "mid one", "x"], ["aa bb", "cc", "d"], ["p", "q q q"], ["r", "s s"]]
    return [
        normalise_row(
            {"prompt": f"q{i}", "responses": [{"content": t, "rank": r} for t, r in zip(ts, rs, strict=True)]},
            f"row {i}",
        )
        for i, (ts, rs) in enumerate(zip(texts, rank, strict=True))
    ]


def test_a_model_that_scores_as_the_judge_ranks_has_every_pair_and_one_that_does_not_none():
    data = RankedData(rows())
    scores = [[-float(rank) for rank in own] for own in data.ranks]
    best = data.score(scores)
    assert {name: value.mean for name, value in best.figures.items()} == {
        "pair_accuracy": 1.0, "top_1": 1.0, "kendall_tau_b": 1.0
    }  # fmt: skip
    assert best.figures["pair_accuracy"].left_out == 1  # all equal: nothing to tell apart
    worst = data.score([[-s for s in row] for row in scores])
    assert worst.figures["pair_accuracy"].mean == 0.0 == worst.figures["top_1"].mean


def test_ranking_is_measured_next_to_the_length_baseline(tiny_folder, tmp_path):
    evaluation = run(RankedData(rows()), local_candidates([str(tiny_folder)]), tmp_path, show_progress=False)
    assert 0 <= evaluation.models[0].scores.figures["pair_accuracy"].mean <= 1
    assert evaluation.baselines["longer_wins"] == {"pair_accuracy": 1.0, "top_1": 1.0}
    assert evaluation.baselines["shorter_wins"]["pair_accuracy"] == 0.0


def test_a_server_cannot_be_measured_by_likelihood(tmp_path):
    with pytest.raises(InputError, match="in this process"):
        run(RankedData(rows()), [Candidate("m", None, {})], tmp_path, show_progress=False)


@given(st.lists(st.lists(st.tuples(st.integers(-2, 2), st.integers(1, 3)), min_size=1, max_size=5), max_size=5))
def test_top_one_is_the_chance_that_a_highest_score_is_a_best_rank(drawn):
    found = top_one([[s for s, _ in row] for row in drawn], [[r for _, r in row] for row in drawn])
    for row, value in zip(drawn, found, strict=True):
        ranks = [rank for score, rank in row if score == max(s for s, _ in row)]
        if len({rank for _, rank in row}) < 2:
            assert value is None
        else:
            best = min(rank for _, rank in row)
            assert value == pytest.approx(sum(rank == best for rank in ranks) / len(ranks))


figures = st.lists(
    st.tuples(st.text(max_size=50), st.floats(-1e6, 1e6), st.floats(0, 1e3), st.floats(0, 1e3)), min_size=1, max_size=6
)


@given(figures, st.none() | st.tuples(st.text(max_size=9), st.floats(-1e6, 1e6)))
def test_a_figure_is_well_formed_and_draws_every_model(drawn, reference):
    rows = [("".join(c for c in name if c.isprintable()), m, m - a, m + b) for name, m, a, b in drawn]
    if reference is not None:
        reference = ("".join(c for c in reference[0] if c.isprintable()), reference[1])
    root = ET.fromstring(interval_figure(rows, title="a < b & c", reference=reference))
    kinds = [element.tag.split("}")[1] for element in root.iter()]
    assert kinds.count("circle") == len(rows)
    for element in root.iter():
        assert not any("nan" in value or "inf" in value.split() for value in element.attrib.values())


@given(st.floats(-1e5, 1e5), st.floats(0.001, 1e5))
def test_ticks_are_few_and_inside(low, width):
    found = ticks(low, low + width)
    assert 1 <= len(found) <= 12 and found == sorted(found)
    assert low - 0.02 * width <= found[0] and found[-1] <= low + 1.02 * width
