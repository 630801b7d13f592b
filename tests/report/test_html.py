"""The report: what it says follows from the intervals, what it draws from the numbers, and no text can get out."""

from __future__ import annotations

import math
import os
import re
import resource
from html.parser import HTMLParser

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ranked_rows import dataset_of, rows, simple_row

from tuna_trl.errors import BuildError, InputError
from tuna_trl.report.html import write_report
from tuna_trl.report.sections import curves, model_table
from tuna_trl.report.text import SHOWN_CHARACTERS, number
from tuna_trl.report.verdict import compare, statements


HOSTILE = [
    "<script>alert(1)</script>",
    "</style></script></pre></textarea></title>--><svg onload=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "{{ 7 * 7 }}{% raw %}",
    "]]><![CDATA[ &lt; &#0; &",
    "مرحبا \u202e reversed \u2067 שלום",
    "nul \x00 bell \x07 escape \x1b[31m",
    "\U0001f389\U0001f469\u200d\U0001f469\u200d\U0001f467 e\u0301\u0302\u0303",
    "lone \ud800 surrogate",
    "javascript:alert(1) data:text/html,x http://example.com/x.png",
]
VOID = {"meta"}  # the other elements without content are SVG and close themselves


def span(mean, low, high):
    return {"mean": mean, "low": low, "high": high}


def full_summary():
    return {
        "models": {
            "start": {"rank_accuracy": span(0.51, 0.47, 0.55), "judge_score": span(0.2, 0.1, 0.3)},
            "tuna_p": {"rank_accuracy": span(0.53, 0.49, 0.57), "judge_score": span(0.2, 0.1, 0.3)},
            "tuna": {"rank_accuracy": span(0.7, 0.66, 0.74), "judge_score": span(0.2, 0.1, 0.3)},
        },
        "differences": {
            "tuna_p": {"rank_accuracy": span(0.02, -0.01, 0.05), "judge_score": span(-0.1, -0.2, -0.05)},
            "tuna": {"rank_accuracy": span(0.19, 0.14, 0.24), "judge_score": span(0.0, -0.1, 0.1)},
        },
        "length_baseline": {"longer_wins": span(0.6, 0.56, 0.64), "shorter_wins": span(0.4, 0.36, 0.44)},
        "seconds": {"teacher_build": 65.0, "train": 3.2},
        "judge": "a judge",
        "rows": 118,
    }


def history(n=60):
    log = [{"loss": 2.0 / i, "rank/accuracy": 0.5, "logps/best": -1.0, "step": i} for i in range(1, n + 1)]
    return [*log, {"eval_loss": 1.0, "eval_rank/accuracy": 0.6, "step": n}, {"train_loss": 1.0, "step": n}]


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails on a tag that is not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.attributes, self.texts = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def report(folder, **parts) -> Page:
    return Page(write_report(folder / "report.html", **{"title": "A run", **parts}).read_text("utf-8"))


class TestVerdict:
    @given(st.lists(st.floats(-1, 1), min_size=3, max_size=3).map(sorted))
    def test_a_model_is_better_or_worse_only_where_the_interval_leaves_out_nought(self, ends):
        low, mean, high = ends
        summary = {"differences": {"tuna": {"rank_accuracy": span(mean, low, high)}}}
        (statement,) = statements(summary)
        assert statement.kind == ("better" if low > 0 else "worse" if high < 0 else "none")
        assert ("no difference beyond the 95 % interval" in statement.text) == (low <= 0 <= high)
        assert ("better than" in statement.text) == (low > 0)
        assert ("worse than" in statement.text) == (high < 0)

    @pytest.mark.parametrize(
        ("own", "kind"), [((0.6, 0.56, 0.7), "better"), ((0.5, 0.4, 0.55), "none"), ((0.3, 0.2, 0.44), "worse")]
    )
    def test_without_paired_differences_the_intervals_must_not_overlap(self, own, kind):
        models = {"start": {"kendall_tau": span(0.5, 0.45, 0.55)}, "tuna": {"kendall_tau": span(*own)}}
        assert compare({"models": models}, "tuna", "kendall_tau")[0] == kind

    def test_a_paired_difference_outranks_overlapping_intervals(self):
        assert compare(full_summary(), "tuna_p", "judge_score")[0] == "worse"

    def test_each_model_gets_a_sentence_and_one_against_the_length_rule(self):
        texts = [(s.kind, s.subject, s.text.replace("\u00a0", " ")) for s in statements(full_summary())]
        assert [(kind, subject) for kind, subject, _ in texts] == [
            ("worse", "Tunaₚ"),
            ("better", "Tuna"),
            ("none", "Tunaₚ"),
            ("better", "Tuna"),
        ]
        assert texts[0][2] == (
            "worse than the start model in judge score (−0.100 [−0.200, −0.050]); "
            "no difference beyond the 95 % interval in rank accuracy (+0.020 [−0.010, +0.050])."
        )
        assert "lies above that of always preferring the longer response (0.600 [0.560, 0.640])" in texts[3][2]
        assert "is not told apart by the 95 % intervals from" in texts[2][2]

    @pytest.mark.parametrize(
        ("copy", "words"),
        [((0.5, 0.4, 0.6), "lies below"), ((0.25, 0.2, 0.4), "is not told apart"), ((0.0, 0.0, 0.05), "lies above")],
    )
    def test_a_judge_score_is_set_against_that_of_the_prompt_itself(self, copy, words):
        summary = {"models": {"tuna": {"judge_score": span(0.2, 0.1, 0.3)}}, "copy_baseline": span(*copy)}
        (statement,) = statements(summary)
        assert words in statement.text and "that of copying the prompt" in statement.text
        assert [row["name"] for row in model_table(summary)["rows"]] == ["Tuna", "Copy the prompt"]

    @pytest.mark.parametrize("missing", [None, {}, {"mean": None, "low": None, "high": None}, span(math.nan, 0, 1)])
    def test_what_was_not_measured_is_not_spoken_of(self, missing):
        summary = {"models": {"start": {"judge_score": missing}, "tuna": {"judge_score": missing}}}
        assert statements(summary) == []
        assert compare(summary, "tuna", "judge_score") == ("unknown", "")
        assert model_table(summary) is None


class TestPage:
    @pytest.fixture
    def parts(self):
        return {
            "summary": full_summary(),
            "datasets": {"judge": dataset_of([simple_row(i) for i in range(4)])},
            "runs": {"tuna": history()},
            "examples": [{"prompt": "q", "reference": "r", "answers": {"start": "a", "tuna": "b"}}],
        }

    def test_every_part_has_its_section(self, tmp_path, parts):
        page = report(tmp_path, **parts)
        for words in (
            "Comparison",
            "Difference in rank accuracy",
            "Answers before and after",
            "Training",
            "Ranked data",
            "Time",
            "Judge: a judge",
            "118 evaluation rows",
            "1 min 05 s",
            "Prefer the longer response",
            "4 rows",
            "ranked by a-judge (judge)",
            "Spearman’s ρ of length and rank quality is +1.00",
            "score 3.00",
            "log-prob −0.05 nats/token",
            "largest score gap",
        ):
            assert words in page.text, words
        assert page.elements.count("svg") == 2 + 3 + 3  # differences, curves, data

    @pytest.mark.parametrize("left", ["summary", "datasets", "runs", "examples", None])
    def test_a_missing_part_is_a_missing_section_and_no_error(self, tmp_path, parts, left):
        page = report(tmp_path, **({left: parts[left]} if left else {}))
        headings = {
            "summary": ["Comparison", "Time"],
            "datasets": ["Ranked data"],
            "runs": ["Training"],
            "examples": ["Answers before and after"],
        }
        for name, words in headings.items():
            for word in words:
                assert (word in page.text) == (name == left)

    @pytest.mark.parametrize(
        "summary",
        [
            {"models": None, "differences": None, "length_baseline": None, "seconds": None, "judge": None},
            {"models": {"start": None, "tuna": {}}},
            {"models": {"tuna": {"my_metric": span(1, 0, 2)}}},
            {"differences": {"tuna": None}},
            {"seconds": {"a": None, "b": math.nan}},
            {"length_baseline": {"longer_wins": {"mean": None, "low": None, "high": None}}},
        ],
    )
    def test_a_summary_with_holes_is_a_shorter_page(self, tmp_path, summary):
        assert "A run" in report(tmp_path, summary=summary).text

    def test_the_page_asks_for_nothing_and_runs_nothing(self, tmp_path, parts):
        page = report(tmp_path, **parts)
        assert not {"script", "link", "img", "iframe", "object", "form", "base"} & set(page.elements)
        names = {name for _, name, _ in page.attributes}
        assert not names & {"src", "href", "srcset", "action", "style"} - {"style"}
        assert not [name for name in names if name.startswith("on")]
        source = (tmp_path / "report.html").read_text("utf-8")
        assert "url(" not in source and "@import" not in source
        assert "default-src 'none'" in source

    def test_figures_of_a_metric_stand_in_the_table_with_their_interval(self, tmp_path, parts):
        text = report(tmp_path, **parts).text.replace("\u00a0", " ")
        assert "0.700 [0.660, 0.740]" in text
        assert f"{number(-0.1)} [−0.200, −0.050]" in text

    def test_the_number_of_rows_is_said_where_all_models_agree_on_it(self, tmp_path):
        models = {
            name: {"kendall_tau": {**span(0, -1, 1), "rows": 120}, "judge_score": {**span(0, -1, 1), "rows": rows}}
            for name, rows in (("start", 3), ("tuna", 4))
        }
        assert model_table({"models": models})["metrics"] == [("Kendall’s τ", "120 rows"), ("judge score", "")]
        assert "Kendall’s τ 120 rows" in report(tmp_path, summary={"models": models}).text

    def test_equal_input_gives_an_equal_file(self, tmp_path, parts):
        files = [write_report(tmp_path / name, title="t", **parts).read_bytes() for name in ("a.html", "b/b.html")]
        assert files[0] == files[1]

    @settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(rows(), min_size=1, max_size=3))
    def test_any_ranked_rows_have_a_page(self, tmp_path, some):
        report(tmp_path, datasets={"d": dataset_of(some)})


class TestHostileTexts:
    def parts(self, text: str) -> dict:
        # Arrow cannot hold a lone surrogate; the other parts come from JSON, which can
        stored = text.encode("utf-8", "replace").decode()
        row = simple_row(ranker=stored, reference=stored)
        row["prompt"] = [{"role": stored, "content": stored}]
        for response in row["responses"]:
            response |= {"content": stored, "model": stored}
        summary = {
            "models": {text: {text: span(1, 0, 2)}, "start": {text: span(1, 0, 2)}},
            "differences": {text: {text: span(1, 0, 2)}},
            "length_baseline": {text: span(1, 0, 2)},
            "seconds": {text: 1.0},
            "judge": text,
        }
        answers = {text: text, "tuna": {"content": text, "score": 1.0}}
        return {
            "title": text,
            "summary": summary,
            "datasets": {text: dataset_of([row])},
            "runs": {text: [*history(5), {f"eval_{text}_loss": 1.0, "step": 3}]},
            "examples": [{"prompt": text, "reference": text, "answers": answers, "responses": row["responses"]}],
        }

    @pytest.mark.parametrize("text", HOSTILE)
    def test_a_text_is_shown_and_changes_nothing_else(self, tmp_path, text):
        wild, calm = report(tmp_path, **self.parts(text)), report(tmp_path, **self.parts("harmless"))
        assert wild.elements == calm.elements
        assert [(t, n) for t, n, _ in wild.attributes] == [(t, n) for t, n, _ in calm.attributes]
        if re.fullmatch(r"[ -~]*", text):
            assert wild.text.count(" ".join(text.split())) >= 8

    @settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.text(min_size=1, max_size=30) | st.text("<>&\"'/-={}%#[]!\x00 a", min_size=1, max_size=30))
    def test_whatever_the_text_the_page_has_the_same_elements(self, tmp_path, text):
        page = report(tmp_path, title=text, examples=[{"prompt": "p", "answers": {"start": text}}])
        calm = report(tmp_path, title="t", examples=[{"prompt": "p", "answers": {"start": "a"}}])
        assert page.elements == calm.elements
        assert "\x00" not in (tmp_path / "report.html").read_text("utf-8")

    def test_a_huge_text_is_cut_with_a_note_and_the_page_stays_small(self, tmp_path):
        huge = "ab " * 700_000
        row = simple_row(reference=huge)
        row["responses"][0]["content"] = huge
        answers = [{"prompt": huge, "answers": {"start": huge}}] * 30
        page = report(tmp_path, datasets={"d": dataset_of([row])}, examples=answers)
        assert f"cut here; {len(huge):,} characters in all" in page.text
        assert "6 more not shown" in page.text
        assert (tmp_path / "report.html").stat().st_size < 24 * 3 * SHOWN_CHARACTERS


class TestCurves:
    def test_each_evaluation_set_is_a_line_of_its_own(self):
        log = [{"loss": 1.0, "step": 1}, {"eval_loss": 1.0, "step": 1}, {"eval_test_loss": 2.0, "step": 1}]
        (run,) = curves({"r": log})
        assert run["charts"][0].legend == ["training", "evaluation", "eval test"]

    def test_parts_of_the_loss_are_not_taken_for_an_evaluation_of_it(self):
        (run,) = curves({"r": [{"loss": 1.0, "eval_rank/loss": 3.0, "loss/rank": 2.0, "step": 1}]})
        assert [chart.legend for chart in run["charts"]] == [[]]

    def test_values_that_are_not_finite_are_counted_and_not_drawn(self, tmp_path):
        log = [{"loss": v, "step": i} for i, v in enumerate([1.0, math.nan, math.inf, 2.0])]
        assert curves({"r": log})[0]["charts"][0].broken == 2
        assert "2 logged values not finite, not drawn" in report(tmp_path, runs={"r": log}).text

    def test_a_run_that_logged_nothing_has_no_section(self, tmp_path):
        assert curves({"r": [], "s": [{"epoch": 1.0}]}) == []
        assert "Training" not in report(tmp_path, runs={"r": []}).text


class TestWriting:
    def test_splits_of_a_dataset_are_shown_one_by_one(self, tmp_path):
        data = DatasetDict(train=dataset_of([simple_row(0)]), test=dataset_of([simple_row(1)]))
        text = report(tmp_path, datasets={"mine": data}).text
        assert "mine train" in text and "mine test" in text

    def test_a_dataset_that_is_not_ranked_is_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"datasets\['d'\].*no ranked dataset.*load_ranked"):
            write_report(tmp_path / "r.html", title="t", datasets={"d": Dataset.from_dict({"text": ["a"]})})

    def test_a_folder_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="is a folder; name the file"):
            write_report(tmp_path, title="t")

    def test_a_full_disk_leaves_the_old_report(self, tmp_path):
        path = write_report(tmp_path / "r.html", title="old")
        before = path.read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the kernel then refuses to write on
        try:
            with pytest.raises(BuildError, match="could not be written"):
                write_report(path, title="new")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["r.html"]
