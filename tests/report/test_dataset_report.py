"""The report of a dataset: its figures are those of a loop, its rows worth a look, and a million rows take no more."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st
from ranked_rows import dataset_of, rows, simple_row
from scipy.stats import kendalltau

from tuna_trl.data.hub import save_ranked
from tuna_trl.data.judgment_summary import kendall, summarise_judgments
from tuna_trl.data.ranked_source import open_ranked
from tuna_trl.data.schema import judgment_features, make_row
from tuna_trl.data.summary import summarise
from tuna_trl.errors import InputError, SchemaError
from tuna_trl.report.dataset import read_run, report_page, write_dataset_report
from tuna_trl.report.examples import ExamplePicker
from tuna_trl.report.matrix import matrix_plot


def answers(*ranks: tuple[str, int | None]):
    """A row of responses by (model, rank)."""
    some = [{"content": f"by {model} {i}", "model": model, "rank": rank} for i, (model, rank) in enumerate(ranks)]
    return make_row("q", some, ranking_method="human", ranker=None)


class TestWins:
    @given(st.lists(rows(), min_size=1, max_size=4))
    def test_win_rates_are_those_of_a_loop_and_sum_to_one(self, some):
        points, number = defaultdict(float), defaultdict(int)
        for row in some:
            for one in row["responses"]:
                for other in row["responses"]:
                    known = None not in (one["model"], other["model"], one["rank"], other["rank"])
                    if known and one["model"] != other["model"]:
                        wins = (one["rank"] < other["rank"]) + 0.5 * (one["rank"] == other["rank"])
                        points[one["model"], other["model"]] += wins
                        number[one["model"], other["model"]] += 1
        found = summarise(dataset_of(some)).wins
        assert {pair: mean.rows for pair, mean in found.items()} == number
        for (a, b), mean in found.items():
            assert mean.value == pytest.approx(points[a, b] / number[a, b])
            assert mean.value + found[b, a].value == pytest.approx(1)

    def test_ties_count_half_and_unranked_ones_not_at_all(self):
        found = summarise(dataset_of([answers(("a", 1), ("b", 1), ("c", None)), answers(("a", 1), ("b", 2))])).wins
        assert found["a", "b"].value == 0.75 and found["a", "b"].rows == 2
        assert not [pair for pair in found if "c" in pair]

    def test_the_matrix_says_who_beats_whom(self, tmp_path):
        some = [answers(("a<b>", 1), ("z", 2)), answers(("a<b>", 1), ("z", 1))]
        folder = save_ranked(dataset_of(some), tmp_path / "d")
        page = report_page(open_ranked(folder))
        assert "a&lt;b&gt; above z: 75.0 % of 2" in page and "z above a&lt;b&gt;: 25.0 % of 2" in page

    def test_a_cell_is_the_stronger_coloured_the_further_it_is_from_a_half(self):
        shares = [0.0, 0.3, 0.5, 0.9]
        svg = matrix_plot(["x"] * 4, [[(share, "t") for share in shares]] * 4, label="m")
        found = [float(value) for value in re.findall(r'fill-opacity="([\d.]+)"', svg)][:4]
        assert sorted(range(4), key=lambda i: found[i]) == [2, 1, 3, 0]
        assert svg.count('"cell below"') == 8 and svg.count('"cell above"') == 8


class TestJudges:
    def reply(self, prompt, judge, scores, permutation, **more):
        known = {"occurrence": 0, "repeat": 0, "attempt": 0, "labels": [], "raw": "", "stop_reason": None}
        known |= {"request_id": None, "usage": {"input": 3, "output": 1}, "cost": None, "status": "ok"}
        return {**known, "prompt_id": prompt, "judge": judge, "scores": scores, "permutation": permutation, **more}

    def summary(self, *replies):
        return summarise_judgments(Dataset.from_list(list(replies), features=judgment_features()))

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=6))
    def test_kendall_is_that_of_scipy(self, pairs):
        a, b = [x for x, _ in pairs], [y for _, y in pairs]
        if len(set(a)) < 2 or len(set(b)) < 2:
            assert kendall(a, b) is None
        else:
            assert kendall(a, b) == pytest.approx(kendalltau(a, b).statistic)

    def test_agreement_is_between_responses_and_not_between_places(self):
        """Two judges that prefer the same response, shown at different places, agree."""
        found = self.summary(
            self.reply("p", "a", [2.0, 1.0, 0.0], [0, 1, 2]),
            self.reply("p", "b", [0.0, 1.0, 2.0], [2, 1, 0]),
            self.reply("p", "a", [0.0, 1.0, 2.0], [0, 1, 2], repeat=1),
            self.reply("other", "b", [2.0, 1.0, 0.0], [0, 1, 2]),
        ).agreement
        assert found["a", "b"].value == 0 and found["a", "b"].rows == 2  # +1 and -1
        assert found["a", "a"].value == -1 and found["a", "a"].rows == 1

    def test_what_no_preference_would_give_is_taken_off_each_place(self):
        replies = [self.reply(str(i), "a", [2.0, 1.0], [i % 2, 1 - i % 2]) for i in range(10)]
        found = self.summary(*replies, self.reply("x", "a", [], [], status="malformed"))
        first, second = found.all.places
        assert (first.excess.value, second.excess.value) == (0.5, -0.5)
        assert found.tokens == {"input": 33, "output": 11} and found.by_judge["a"].read == 10
        assert found.first_wins.value == 1.0 and found.first_expected == 0.5

    def test_judges_have_their_table_and_their_charts(self, tmp_path):
        replies = [self.reply(str(i), judge, [2.0, 1.0 + i % 3], [0, 1]) for i in range(12) for judge in ("a", "b<i>")]
        some = Dataset.from_list(replies, features=judgment_features())
        data = DatasetDict(train=dataset_of([simple_row()]), test=dataset_of([simple_row(1)]))
        folder = save_ranked(data, tmp_path / "d", judgments=some)
        page = report_page(open_ranked(folder))
        assert page.count("won by place shown</") == 2 and page.count(">Judges<") == 1
        assert "a and b&lt;i&gt;" in page and "place 2" in page


class TestExamples:
    def test_rows_worth_a_look_are_shown_each_once_with_the_reason(self):
        picker = ExamplePicker(24)
        for i in range(300):
            changes = {"status": "failed"} if i == 17 else {"agreement_w": 0.9}
            row = simple_row(i, n=3, **changes)
            row["score_gap"] = {40: 100.0, 41: 0.001}.get(i, 2.0)
            if i == 50:
                row["num_ties"] = 2
            if i == 60:
                row["agreement_w"] = 0.01
            if i == 70:
                row["responses"][0]["content"] = "long " * 5000
            picker.add(row)
        chosen = picker.chosen()
        reasons = {record["title"]: record["why"] for record in chosen}
        assert len(chosen) == len(reasons) == 24
        assert reasons["question 40"] == "largest score gap" and reasons["question 41"] == "smallest score gap"
        assert reasons["question 50"] == "most ties" and reasons["question 60"] == "least agreement"
        assert reasons["question 17"] == "status failed" and reasons["question 70"] == "longest response"

    @given(st.integers(0, 60), st.integers(1, 30))
    def test_a_small_dataset_is_shown_whole(self, number, limit):
        picker = ExamplePicker(limit)
        for i in range(number):
            picker.add(simple_row(i))
        assert len(picker.chosen()) == min(number, limit)

    def test_a_page_has_24_rows(self, tmp_path):
        folder = save_ranked(dataset_of([simple_row(i) for i in range(100)]), tmp_path / "d")
        assert report_page(open_ranked(folder)).count("<details") == 24


class TestTokenLengths:
    def test_the_share_over_a_limit_is_that_of_a_loop(self, tmp_path, tiny_tokenizer):
        some = [simple_row(i, n=2) for i in range(4)]
        for i, row in enumerate(some):
            row["responses"][0]["content"] = "x" * 300 * (i + 1)
        lengths = []
        for row in some:
            for response in row["responses"]:
                turn = [*row["prompt"], {"role": "assistant", "content": response["content"]}]
                encoded = tiny_tokenizer.apply_chat_template(turn, tokenize=True, return_dict=True)
                lengths.append(len(encoded["input_ids"]))
        page = report_page(open_ranked(save_ranked(dataset_of(some), tmp_path / "d")), tokenizer=tiny_tokenizer)
        for limit in (512, 1024):
            over = 100 * sum(n > limit for n in lengths) / len(lengths)
            assert re.search(rf">{limit:,}(?:<small>.*?</small>)?</th><td class=\"n\">{over:.1f}</td>", page)
        assert f"{max(lengths):,}</td>" in page and "Over all 4 rows." in page

    def test_without_a_chat_template_it_is_said_what_is_missing(self, tmp_path, tiny_tokenizer):
        tiny_tokenizer.chat_template = None
        source = open_ranked(save_ranked(dataset_of([simple_row()]), tmp_path / "d"))
        with pytest.raises(InputError, match="has no chat template"):
            report_page(source, tokenizer=tiny_tokenizer)


class TestSources:
    def test_a_folder_a_file_and_its_default_places(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        folder = save_ranked(dataset_of([simple_row()]), tmp_path / "d", card={"extra": {"pretty_name": "Mine <b>"}})
        assert write_dataset_report(folder) == folder / "report.html"
        assert "<h1>Mine &lt;b&gt;</h1>" in (folder / "report.html").read_text("utf-8")
        (tmp_path / "own.jsonl").write_text('{"prompt": "a", "responses": ["b", "c"], "scores": [1, 0]}\n')
        assert write_dataset_report("own.jsonl") == tmp_path / "report.html"
        save_ranked(dataset_of([simple_row()]), folder)
        assert (folder / "report.html").exists()  # a new save leaves it

    def test_a_wrong_row_of_a_file_is_named(self, tmp_path):
        (tmp_path / "own.jsonl").write_text('{"prompt": "a", "responses": ["b"]}\n{"prompt": "a"}\n')
        with pytest.raises(SchemaError, match=r"own.jsonl row 1 \(line 2\): column 'responses' is missing"):
            write_dataset_report(tmp_path / "own.jsonl", tmp_path / "r.html")
        assert not (tmp_path / "r.html").exists()

    def test_the_curves_are_those_of_the_last_checkpoint(self, tmp_path):
        for step in (2, 10, 9):
            (tmp_path / f"checkpoint-{step}").mkdir()
            log = {"log_history": [{"loss": 1.0, "step": step}]}
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(log))
        assert read_run(tmp_path)["runs"] == {tmp_path.name: [{"loss": 1.0, "step": 10}]}

    def test_a_run_has_curves_and_what_was_before_and_after(self, tmp_path):
        (tmp_path / "tuna").mkdir()
        (tmp_path / "tuna" / "trainer_state.json").write_text('{"log_history": [{"loss": 1.0, "step": 1}]}')
        (tmp_path / "summary.json").write_text('{"judge": "j", "rows": 3}')
        (tmp_path / "comparison.json").write_text('{"examples": [{"prompt": "p", "answers": {"start": "s"}}]}')
        source = open_ranked(save_ranked(dataset_of([simple_row()]), tmp_path / "d"))
        page = report_page(source, run=tmp_path)
        assert "Judge: j" in page and "Answers before and after" in page and "<h2>Training</h2>" in page

    @pytest.mark.parametrize(
        ("make", "words"), [(None, "no such folder"), ("{", "cannot be read"), ("[]", "expected an")]
    )
    def test_a_run_that_is_none_is_said(self, tmp_path, make, words):
        if make:
            (tmp_path / "summary.json").write_text(make)
        with pytest.raises(InputError, match=words):
            read_run(tmp_path if make else tmp_path / "absent")
        with pytest.raises(InputError, match="nothing of a training"):
            (tmp_path / "empty").mkdir()
            read_run(tmp_path / "empty")


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_little_more_memory_than_ten_thousand(tmp_path):
    """What grows is a few numbers a response: below 60 MB for 90,000 rows, so below 1 GB for a million."""
    worker = Path(__file__).with_name("memory_worker.py")
    peaks = {}
    for number in (10_000, 100_000):
        for step in (["make", str(tmp_path / "d"), str(number)], ["report", str(tmp_path / "d")]):
            done = subprocess.run([sys.executable, str(worker), *step], text=True, capture_output=True)
            assert done.returncode == 0, done.stderr
        peaks[number] = int(done.stdout.split()[-1]) / 1024
    assert peaks[100_000] - peaks[10_000] < 60
    assert peaks[100_000] < 700
