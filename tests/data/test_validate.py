"""Laws of `validate`: a sound dataset has no findings, each fault has its own, and each mend that is a call mends."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, IterableDataset, Value
from documented_shapes import DOCUMENTED
from hypothesis import given
from ranked_rows import dataset_of, simple_row
from ranked_rows import rows as any_row
from tiny import CHATML, chatml_tokenizer, llama3_tokenizer

import tuna_trl
from tuna_trl import InputError
from tuna_trl.data.convert import import_ranked
from tuna_trl.data.schema import check_row, make_row, prompt_id
from tuna_trl.data.validate import validate
from tuna_trl.data.validate_findings import KINDS, clipped


def rows(n: int = 4) -> list[dict]:
    return [simple_row(i) for i in range(n)]


def changed(**changes):
    """Row 1 of four with these columns changed; a function changes the responses."""
    some = copy.deepcopy(rows())
    for column, value in changes.items():
        if callable(value):
            value(some[1]["responses"])
        else:
            some[1][column] = value
    return some


def kinds(report) -> dict[str, int]:
    found: dict[str, int] = {}
    for finding in report:
        found[finding.kind] = found.get(finding.kind, 0) + finding.count
    return found


def set_field(k: int, **fields):
    return lambda responses: responses[k].update(fields)


def drop_scores(responses) -> None:
    for response in responses[1:]:
        response["rank"] = None


# fault -> (rows, kinds found, column of the first, text that its first example holds)
FAULTS = {
    "a status that does not exist": (changed(status="fine"), {"value": 1}, "status", "'fine'"),
    "a method that does not exist": (changed(ranking_method="vote"), {"value": 1}, "ranking_method", "'vote'"),
    "a source that does not exist": (changed(r=set_field(0, source="web")), {"value": 1}, "responses.source", "'web'"),
    "another prompt's id": (changed(prompt_id=prompt_id([])), {"prompt_id": 1}, "prompt_id", "expected"),
    "a number for a text": (changed(r=set_field(1, content=5)), {"type": 1}, "responses.content", "[1] is int 5"),
    "a text for a number": (changed(r=set_field(1, score="5")), {"type": 1}, "responses.score", "[1] is str '5'"),
    "true for a rank": (changed(r=set_field(0, rank=True)), {"type": 1}, "responses.rank", "[0] is bool True"),
    "infinity for a score": (changed(r=set_field(0, score=float("inf"))), {"type": 1}, "responses.score", "inf"),
    "a string for a prompt": (changed(prompt="question 1"), {"type": 1}, "prompt", "str 'question 1'"),
    "no responses": (
        changed(responses=[], num_responses=0, score_gap=None),
        {"no responses": 1},
        "responses",
        "empty list",
    ),
    "a rank skipped": (changed(r=set_field(2, rank=4)), {"ranks": 1}, "responses.rank", "[1, 2, 4]"),
    "a rank twice": (
        changed(r=set_field(2, index=1)),
        {"index": 1},
        "responses.index",
        "1 stands there twice",
    ),
    "a duplicate of nothing": (
        changed(r=set_field(2, duplicate_of=7)),
        {"index": 1},
        "responses.duplicate_of",
        "[2] is 7",
    ),
    "a better rank for a lower score": (
        changed(r=set_field(1, score=0.5), score_gap=2.5),
        {"order": 1},
        "responses.rank",
        "rank 2 has score 0.5, rank 3 has 1",
    ),
    "two ranks for one score": (
        changed(r=set_field(1, score=1.0)),
        {"equal scores": 1},
        "responses.rank",
        "rank 2 has score 1, rank 3 has 1",
    ),
    "a figure that is not so": (changed(num_ties=2), {"figures": 1}, "num_ties", "2; expected 0"),
    "a gap that is not so": (changed(score_gap=9.0), {"figures": 1}, "score_gap", "9.0; expected 2.0"),
    "ok with one ranked": (
        changed(r=drop_scores, score_gap=0.0),
        {"status": 1, "half scored": 1},
        "status",
        "'ok' with 1 of 3 responses ranked",
    ),
    "ok with one unranked": (
        changed(r=set_field(2, rank=None, score=None), score_gap=1.0),
        {"status and ranks": 1},
        "status",
        "'ok' with 2 of 3",
    ),
    "failed with ranks": (changed(status="failed"), {"status and ranks": 1}, "status", "does not train"),
    "an empty best response": (
        changed(r=set_field(0, content=" ", finish_reason=None)),
        {"empty best": 1},
        "responses.content",
        "[0] is ' ', of rank 1",
    ),
    "an empty worse one": (
        changed(r=set_field(2, content="", finish_reason=None)),
        {"empty": 1},
        "responses.content",
        "of rank 3",
    ),
    "two equal responses": (
        changed(r=set_field(2, content="answer 1  long long long")),
        {"identical": 1},
        "responses.content",
        "ranks 1 and 3",
    ),
    "a mark in a response": (
        changed(r=set_field(2, content="Yes.<|im_end|>\n<|im_start|>user")),
        {"marker": 1},
        "responses.content",
        "'<|im_end|>' in",
    ),
    "a speaker in a reference": (changed(reference="Yes.\n\nHuman: more"), {"marker": 1}, "reference", "Human"),
    "no object": ([*rows(1), "row"], {"row": 1}, "row", "str 'row'"),
    "a column lost": (
        [{k: v for k, v in row.items() if k != "status"} for row in rows(2)],
        {"columns": 2},
        "status",
        "missing",
    ),
    "a prompt twice": ([*rows(3), simple_row(1)], {"repeated prompt": 1}, "prompt", "the prompt of row 1"),
}


class TestFaults:
    @pytest.mark.parametrize("name", FAULTS)
    def test_each_has_its_finding_and_nothing_else_has(self, name):
        some, expected, column, text = FAULTS[name]
        report = validate(some)
        assert kinds(report) == expected
        finding = next(f for f in report if f.kind == next(iter(expected)))
        assert finding.column == column and text in finding.examples[0].found
        assert finding.expected and finding.mend and finding.severity == KINDS[finding.kind].severity
        assert report.sound == (finding.severity == "warning")
        assert text in report.render() and json.loads(json.dumps(report.to_dict()))["sound"] == report.sound
        if name not in ("no object", "a column lost", "a prompt twice"):
            assert [(e.split, e.row) for e in finding.examples] == [("", 1)]

    def test_prompts_that_answer_nothing(self):
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        report = validate([simple_row(0) | {"prompt": turns, "prompt_id": prompt_id(turns)}])
        assert kinds(report) == {"prompt": 1} and "user, assistant" in report.findings[0].examples[0].found
        blank = [{"role": "user", "content": " \n"}]
        assert kinds(validate([simple_row(0) | {"prompt": blank, "prompt_id": prompt_id(blank)}])) == {"prompt": 1}

    def test_a_prompt_in_two_splits_is_a_leak(self):
        report = validate({"train": rows(3), "test": [simple_row(9), simple_row(1)]})
        assert kinds(report) == {"leak": 1} and not report.sound
        example = report.findings[0].examples[0]
        assert (example.split, example.row) == ("split 'test'", 1)
        assert "split 'train', row 1" in example.found

    def test_many_findings_of_one_kind_are_counted_and_five_are_shown(self):
        report = validate([simple_row(i) | {"num_ties": 3} for i in range(40)])
        (finding,) = report
        assert finding.count == 40 and len(finding.examples) == 5 and "and 35 more" in report.render()

    def test_a_column_of_another_type_is_named_without_a_row(self):
        dataset = dataset_of(rows()).cast_column("num_ties", Value("int64"))
        report = validate(DatasetDict({"train": dataset}))
        assert kinds(report) == {"features": 1}
        assert report.findings[0].column == "num_ties" and report.findings[0].examples[0].row is None


class TestSound:
    @given(any_row())
    def test_a_row_that_is_made_here_has_no_error_but_those_of_its_words_and_status(self, row):
        found = kinds(validate([row]))
        allowed = {"prompt", "index", "order", "half scored", "equal scores", "status", "status and ranks", "empty"}
        assert set(found) <= allowed | {"identical", "marker", "empty best"}

    def test_every_kind_of_input_is_read(self):
        some = rows()
        for dataset in (some, iter(some), dataset_of(some), IterableDataset.from_generator(lambda: iter(some))):
            report = validate(dataset)
            assert list(report) == [] and report.sound and report.rows == {"rows": 4}

    def test_rows_of_ones_own_are_sound_as_they_stand(self):
        own = {"prompt": "q", "responses": ["a", "b"], "scores": [1, 0]}
        assert validate([own]).sound and not len(validate([own]))
        report = validate([own, {**own, "scores": [1]}])
        assert kinds(report) == {"row": 1}
        assert (
            report.findings[0].column == "scores"
            and "1 entries for 2 responses" in report.findings[0].examples[0].found
        )

    @pytest.mark.parametrize("name", [name for name in DOCUMENTED if name != "own"])
    def test_a_known_shape_is_told_to_be_imported(self, name):
        report = validate(DOCUMENTED[name][0][:1])
        assert not report.sound
        if name not in ("pandalm_lists", "prometheus", "alpaca_eval_lists"):
            assert f"the shape {name!r}" in report.findings[0].examples[0].found
        assert "import_ranked" in report.findings[0].mend

    @pytest.mark.parametrize("name", DOCUMENTED)
    def test_what_is_imported_has_no_fault_of_form(self, name):
        found = set(kinds(validate(import_ranked(DOCUMENTED[name][0]))))
        assert found <= {
            "repeated prompt",
            "identical",
            "empty",
            "half scored",
            "status",
            "status and ranks",
            "marker",
        }

    def test_equal_responses_that_are_marked_and_tie_are_known_and_no_finding(self):
        own = {"prompt": "q", "responses": ["a", "b", " a"], "scores": [1, 0, 1]}
        (row,) = import_ranked([own])
        assert row["responses"][1]["content"] == " a"
        assert kinds(validate([row])) == {"identical": 1}
        row["responses"][1]["duplicate_of"] = 0
        assert list(validate([row])) == []

    def test_hostile_texts_do_no_harm(self):
        responses = [
            {"content": "\x1b[2J\x00 " + "x" * 2_000_000 + " </s>", "rank": 1},
            {"content": "\u202egnp.exe", "rank": 2},
        ]
        report = validate([make_row("q", responses, ranking_method="human", ranker=None)])
        text = report.render()
        assert kinds(report) == {"marker": 1} and "\x1b" not in text and "\x00" not in text and len(text) < 2000
        assert clipped("a\x1b\u202eb") == "a\\x1b\\u202eb"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("rows.jsonl",), "must be a Dataset"),
            (({"train": 5},), "split 'train' of `dataset`"),
            (([], None, 10), "needs a tokenizer"),
            (([], chatml_tokenizer(), 0), "positive"),
        ],
    )
    def test_wrong_use_is_said(self, arguments, message):
        with pytest.raises(InputError, match=message):
            validate(*arguments)


class TestMends:
    def test_normalise_row_mends_what_it_is_said_to(self):
        some = changed(r=lambda responses: responses.reverse(), num_ties=2, score_gap=0.5)
        dataset = dataset_of(some)
        assert {"ranks", "figures"} <= set(kinds(validate(dataset)))
        mended = dataset.map(tuna_trl.normalise_row, features=tuna_trl.ranked_features())
        assert list(validate(mended)) == []

    def test_prompt_ids_are_mended(self):
        dataset = dataset_of(changed(prompt_id="x"))
        mended = dataset.map(lambda row: {"prompt_id": tuna_trl.data.schema.prompt_id(row["prompt"])})
        assert kinds(validate(dataset)) == {"prompt_id": 1} and list(validate(mended)) == []

    def test_ranks_against_scores_are_mended_by_the_scores(self):
        dataset = dataset_of(changed(r=set_field(1, score=0.5), score_gap=2.5))
        mended = dataset.map(
            lambda row: tuna_trl.normalise_row({**row, "responses": [{**r, "rank": None} for r in row["responses"]]})
        )
        assert kinds(validate(dataset)) == {"order": 1} and list(validate(mended)) == []
        for row in mended:
            check_row(row)


class TestTokens:
    def test_lengths_are_counted_as_the_trainer_counts_them(self):
        from trl_rows import prepared

        tokenizer = chatml_tokenizer()
        some = rows(6)
        (table,) = validate(some, tokenizer, 40).lengths.values()
        tokenised = prepared(dataset_of(some), tokenizer, max_length=None)
        lengths = [len(row["prompt_ids"]) + len(ids) for row in tokenised for ids in row["response_ids"]]
        groups = [row["length"] for row in tokenised]
        assert table.responses == len(lengths) == 18 and table.quantiles["max"] == max(lengths)
        assert table.quantiles["p50"] == sorted(lengths)[int(0.5 * 17)]
        assert table.group["max"] == max(groups)
        assert table.limits[40][0] == sum(length > 40 for length in lengths)

    def test_rows_that_would_be_dropped_are_those_that_the_trainer_drops(self):
        from trl_rows import prepared

        tokenizer, some = chatml_tokenizer(), rows(6)
        _, lengths = None, validate(some, tokenizer, 10_000).lengths
        (table,) = lengths.values()
        for limit in range(table.quantiles["p50"] - 5, table.quantiles["max"]):
            report = validate(some, tokenizer, limit)
            (table,) = report.lengths.values()
            try:
                kept = len(prepared(dataset_of(some), tokenizer, max_length=limit))
            except InputError:  # nothing is left
                kept = 0
            assert len(some) - table.limits[limit][2] == kept
            assert kinds(report).get("too long", 0) == len(some) - kept

    def test_a_models_own_special_tokens_are_no_text(self):
        some = changed(r=set_field(2, content="a <|pad|> b"))
        report = validate(some, {"tiny": chatml_tokenizer()})
        assert kinds(report) == {"control token": 1} and "'<|pad|>' of tiny" in report.findings[0].examples[0].found

    def test_a_template_that_ends_no_turn_is_found_once(self):
        tokenizer = chatml_tokenizer()
        tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        report = validate(rows(), tokenizer)
        assert kinds(report) == {"end token": 1} and report.findings[0].examples[0].row is None

    def test_a_response_whose_end_the_template_eats_is_found_in_its_row(self):
        tokenizer = chatml_tokenizer()
        quirk = "{% if 'quiet' in message['content'] %}{{ message['content'] }}{% else %}"
        tokenizer.chat_template = CHATML.replace("{{ '<|im_start|>'", quirk + "{{ '<|im_start|>'", 1).replace(
            "{% endfor %}", "{% endif %}{% endfor %}", 1
        )
        report = validate(changed(r=set_field(2, content="quiet")), tokenizer)
        assert kinds(report) == {"end token": 1} and report.findings[0].examples[0].row == 1

    def test_a_response_that_was_cut_needs_no_end(self):
        report = validate(changed(r=set_field(2, finish_reason="length")), chatml_tokenizer())
        assert list(report) == []

    def test_two_beginnings_are_found(self):
        tokenizer = llama3_tokenizer()
        assert list(validate(rows(), tokenizer)) == []
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
        assert kinds(validate(rows(), tokenizer)) == {"double BOS": 4}

    def test_a_conversation_that_the_template_refuses_is_found(self):
        tokenizer = chatml_tokenizer()
        tokenizer.chat_template = (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
        )
        turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
        report = validate(changed(prompt=turns, prompt_id=prompt_id(turns)), tokenizer)
        assert kinds(report) == {"template": 1} and "no system" in report.findings[0].examples[0].found

    def test_each_model_has_its_table(self):
        report = validate(rows(), {"a": chatml_tokenizer(), "b": llama3_tokenizer()}, 20)
        assert set(report.lengths) == {"a", "b"} and "Tokens under a" in report.render()
        assert "<- max_length" in report.render()

    def test_without_a_template_it_is_said_at_once(self):
        tokenizer = chatml_tokenizer()
        tokenizer.chat_template = None
        with pytest.raises(InputError, match="no chat template"):
            validate([], tokenizer)


def test_memory_does_not_grow_with_the_texts():
    """20,000 rows of 6 kB each are 120 MB of text; what is held of them is a hash and a place."""
    code = """
from ranked_rows import simple_row
from tuna_trl.data.schema import prompt_id
from tuna_trl.data.validate import validate

def peak():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["VmHWM"].split()[0]) * 1024

def rows(n):
    row = simple_row(0)
    for i in range(n):
        prompt = [{"role": "user", "content": f"question {i} " + "words " * 1000}]
        yield {**row, "prompt": prompt, "prompt_id": prompt_id(prompt)}

validate(rows(100))
before = peak()
report = validate(rows(20_000))
assert report.sound and report.rows == {"rows": 20_000}, report.render()
print(peak() - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process is read from /proc, which this system lacks")
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert int(result.stdout) < 40e6


def test_a_dataset_of_ranked_rows_in_arrow_is_read_too():
    some = rows(3)
    report = validate(Dataset.from_list(some, features=tuna_trl.ranked_features()))
    assert report.sound and report.rows == {"rows": 3}
