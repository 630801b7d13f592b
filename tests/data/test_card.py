"""The card: every figure against a loop or scipy, every foreign text against a Markdown parser."""

from __future__ import annotations

import re

import pytest
import yaml
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from ranked_rows import dataset_of, rows, simple_row
from scipy.stats import spearmanr

import tuna_trl
from tuna_trl.data.card import _SIZES, code, fenced, plain, ranked_card
from tuna_trl.data.judgment_summary import summarise_judgments
from tuna_trl.data.schema import judgment_features
from tuna_trl.data.summary import Mean, spearman, summarise
from tuna_trl.errors import InputError


any_text = st.text(max_size=60) | st.text("`~|\n\r<>*_[]()#!&;\\ -=$\x00\u202e\ud800a", max_size=40)
hostile = "```\n</pre><script>alert(1)</script>\n---\n# Title\n| a | b |\n![x](http://a.b/c.png)\n~~~\n\u202e\x00 end"


def markdown():
    return MarkdownIt("commonmark", {"html": True}).enable("table")


def flat(tokens):
    for token in tokens:
        yield token
        yield from flat(token.children or [])


def parts(card: str) -> tuple[dict, str]:
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def judgment(scores, status="ok", cost=None, judge="a-judge"):
    known = {"prompt_id": "p", "occurrence": 0, "repeat": 0, "attempt": 0, "raw": "", "usage": {}}
    known |= {"permutation": [0], "labels": ["A"], "stop_reason": None, "request_id": None}
    return {**known, "judge": judge, "scores": scores, "status": status, "cost": cost}


def judgments(*some):
    return Dataset.from_list(list(some), features=judgment_features())


class TestEscaping:
    @given(any_text)
    def test_a_fenced_text_is_one_block_and_nothing_after_it_is_swallowed(self, text):
        tokens = markdown().parse(f"before\n\n{fenced(text)}\n\nafter\n")
        assert [t.type for t in tokens if t.nesting >= 0] == [
            "paragraph_open",
            "inline",
            "fence",
            "paragraph_open",
            "inline",
        ]
        shown = tokens[3].content.removesuffix("\n")
        if re.fullmatch(r"[ -~\n]*", text):
            assert shown == text

    @given(any_text)
    def test_a_name_in_a_table_is_one_code_span_in_one_cell(self, name):
        tokens = list(flat(markdown().parse(f"| a | b |\n|---|---|\n| {code(name)} | 1 |\n\nafter\n")))
        kinds = [t.type for t in tokens]
        assert kinds.count("td_open") == 2
        assert kinds.count("code_inline") == 1
        assert not [k for k in kinds if k.startswith(("html", "link", "image"))]

    @given(any_text)
    def test_a_plain_text_is_only_text(self, text):
        tokens = list(flat(markdown().parse(f"# {plain(text)} x\n")))
        assert {t.type for t in tokens} <= {"heading_open", "inline", "text", "text_special", "heading_close"}
        if re.fullmatch(r"[!-~]+", text):
            assert "".join(t.content for t in tokens if t.type.startswith("text")) == f"{text} x"

    def test_a_hostile_row_leaves_the_page_as_it_is(self):
        changes = {"ranker": hostile, "reference": hostile, "provenance": {hostile: hostile}}
        calm, wild = simple_row(), simple_row(**changes)
        wild["prompt"] = [{"role": hostile, "content": hostile}]
        for response in wild["responses"]:
            response |= {"content": hostile, "model": hostile}
        extra = {"pretty_name": hostile, "language": ["en"]}
        card = ranked_card(dataset_of([wild]), extra=extra, license=hostile.replace("\u202e\x00", ""))
        body = card[card.index("\n# ") :]
        tokens = list(flat(markdown().parse(body)))
        html = [t.content for t in tokens if t.type.startswith(("html", "image", "link"))]
        assert html and not [h for h in html if not re.fullmatch(r"(<!-- /?tuna-trl: [a-z]+ [0-9a-f]{16} -->\n)+", h)]
        headings = [t.content for t in tokens if t.type == "inline" and t.level == 1 and t.map]
        expected = ranked_card(dataset_of([{**calm, "reference": "r"}]))
        for heading in re.findall(r"^## (.*)$", expected, re.MULTILINE):
            assert heading in headings
        assert "\x00" not in card and "\u202e" not in body

    def test_a_long_text_is_cut_and_says_so(self):
        block = fenced("x" * 2_000_000)
        assert len(block) < 1000
        assert "2,000,000 characters in all" in block


class TestFrontMatter:
    def test_only_what_is_known_is_declared(self):
        front, body = parts(ranked_card(dataset_of([simple_row()])))
        assert "language" not in front and "license" not in front
        assert "No licence was given" in body
        assert front["size_categories"] == ["n<1K"]
        assert front["task_categories"] == ["text-generation"]
        assert front["tags"] == ["tuna-trl", "trl", "preference", "ranking", "rlaif", "arxiv:2310.13385"]

    def test_what_is_told_is_declared(self):
        extra = {"language": ["en"], "tags": ["mine", "trl"], "source_datasets": ["a/b"]}
        before = dict(extra)
        row = simple_row(ranking_method="human", ranker=None)
        front, body = parts(ranked_card(dataset_of([row]), license="mit", extra=extra))
        assert front["license"] == "mit" and "`mit`" in body
        assert front["language"] == ["en"]
        assert front["tags"] == ["tuna-trl", "trl", "preference", "ranking", "arxiv:2310.13385", "mine"]
        assert front["source_datasets"] == ["a/b"]
        assert "annotations_creators" not in front
        assert extra == before

    @pytest.mark.parametrize("extra", [{"license": "mit"}, ["a"]])
    def test_a_second_licence_is_refused(self, extra):
        with pytest.raises(InputError, match="without 'license'"):
            ranked_card(dataset_of([simple_row()]), extra=extra)

    @pytest.mark.parametrize(("rows", "name"), [(999, "n<1K"), (1000, "1K<n<10K"), (123456, "100K<n<1M")])
    def test_a_size_category_starts_at_its_number(self, rows, name):
        assert next(label for limit, label in _SIZES if rows < limit) == name


class TestFigures:
    @given(st.lists(rows(), min_size=1, max_size=5))
    def test_counts_are_those_of_a_loop(self, some):
        summary = summarise(dataset_of(some))
        responses = [r for row in some for r in row["responses"]]
        assert (summary.rows, summary.responses) == (len(some), len(responses))
        assert summary.prompts == len({row["prompt_id"] for row in some})
        assert summary.unranked == len([r for r in responses if r["rank"] is None])
        assert summary.cut == len([r for r in responses if r["finish_reason"] == "length"])
        for name in ("status", "num_responses", "num_ties"):
            histogram = getattr(summary, name)
            assert histogram == {value: sum(row[name] == value for row in some) for value in histogram}
            assert sum(histogram.values()) == len(some)
        given_w = [row["agreement_w"] for row in some if row["agreement_w"] is not None]
        assert summary.agreement_w.rows == len(given_w)
        if given_w:
            assert summary.agreement_w.value == pytest.approx(sum(given_w) / len(given_w))
        assert sorted(summary.scores) == sorted(r["score"] for r in responses if r["score"] is not None)

    @given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), min_size=1, max_size=9))
    def test_spearman_is_that_of_scipy(self, pairs):
        a, b = [x for x, _ in pairs], [y for _, y in pairs]
        if len(set(a)) < 2 or len(set(b)) < 2:
            assert spearman(a, b) is None
        else:
            assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)

    def test_length_correlates_with_quality_and_falls_back_to_characters_for_all(self):
        longest_best = dataset_of([simple_row(i) for i in range(3)])
        summary = summarise(longest_best)
        assert summary.length_rho == Mean(1.0, 3)
        lengths = {rank: list(some) for rank, some in summary.lengths.items()}
        assert (summary.length_unit, lengths) == ("tokens", {1: [30] * 3, 2: [20] * 3, 3: [10] * 3})
        bare = simple_row(9)
        bare["responses"][0]["num_tokens"] = None
        mixed = summarise(dataset_of([simple_row(0), bare]))
        assert mixed.length_unit == "characters"
        assert list(mixed.lengths[1]) == [len("answer 0 long long long"), len("answer 9 long long long")]

    def test_splits_are_taken_together(self):
        data = DatasetDict(train=dataset_of([simple_row(0), simple_row(1)]), test=dataset_of([simple_row(0)]))
        card = ranked_card(data)
        assert summarise(data.values()).rows == 3
        assert "3 instructions with 9 responses" in card
        assert "| `train` | 2 |" in card and "| `test` | 1 |" in card
        assert "1 of 3 rows repeat the prompt of an earlier one." in card

    def test_only_what_every_row_shares_counts_as_provenance(self):
        assert summarise(dataset_of([simple_row(0), simple_row(1)])).provenance == {"seed": 7}

    def test_the_card_prints_the_figures(self):
        tied = simple_row(1, status="partial", agreement_w=0.5, agreement_tau=-0.25)
        tied["responses"][1]["rank"] = 1
        tied["num_ties"] = 1
        card = ranked_card(dataset_of([simple_row(0), tied]))
        for line in (
            "| `ok` | 1 |",
            "| `partial` | 1 |",
            "| 3 | 2 |",
            "| 0 | 1 |",
            "| 1 | 1 |",
            "| `judge` | `a-judge` | 2 |",
            "| `student` | 6 |",
        ):
            assert f"\n{line}\n" in card
        assert "Kendall's W 0.50 (mean of 1 row)" in card
        assert "τ-b −0.25 (mean of 1 row)" in card
        assert re.search(r"\(in tokens\) and how well it ranks is 0\.\d\d on average\s+over 2 rows", card)

    def test_judge_replies_are_summed_by_place_and_cost(self):
        replies = judgments(
            judgment([3.0, 1.0], cost=0.5),
            judgment([2.0, 2.0], cost=0.25),
            judgment([1.0, 2.0, 0.0]),
            judgment([9.0, None]),
            judgment([9.0, 9.0], status="malformed"),
        )
        summary = summarise_judgments(replies)
        assert summary.replies == 5
        assert summary.status == {"ok": 4, "malformed": 1}
        assert summary.cost == 0.75
        assert summary.place_scores == [Mean(2.0, 3), Mean(pytest.approx(5 / 3), 3), Mean(0.0, 1)]
        assert summary.first_wins == Mean(pytest.approx((1 + 0.5 + 0) / 3), 3)
        assert summary.first_expected == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)
        card = ranked_card(dataset_of([simple_row()]), judgments=DatasetDict(train=replies))
        assert "holds 5 replies" in card and "0.75 USD" in card
        assert "scored best in 50.0 % of replies" in card and "44.4 %" in card

    def test_unread_replies_leave_no_table_by_place(self):
        card = ranked_card(dataset_of([simple_row()]), judgments=judgments(judgment([], status="refused")))
        assert "holds 1 reply" in card and "shown at place" not in card

    @pytest.mark.parametrize("method", ["teacher_logprob", "judge", "reward_model", "reference", "human", "import"])
    def test_every_method_is_explained(self, method):
        card = ranked_card(dataset_of([simple_row(ranking_method=method, ranker=None)]))
        assert f"- `{method}`: " in card

    @given(st.lists(rows(), min_size=1, max_size=3))
    def test_any_rows_have_a_card_that_parses(self, some):
        front, body = parts(ranked_card(dataset_of(some)))
        assert front["tags"][0] == "tuna-trl"
        assert (
            "arXiv:2310.13385" in body and "Haoran Li and Yiran Liu and Xingxing Zhang and Wei Lu and Furu Wei" in body
        )


def test_the_snippets_name_a_split_that_is_there():
    card = ranked_card(DatasetDict(validation=dataset_of([simple_row()])), name="me/data")
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(snippets) == 4
    assert 'load_dataset("me/data")' in snippets[0] and 'ranked = dataset["validation"]' in snippets[0]
    for snippet in snippets:
        compile(snippet, "card", "exec")
    names = re.findall(r"from tuna_trl import (.*)", card)
    assert sorted(name for line in names for name in line.split(", ")) == [
        "TunaTrainer",
        "to_kto",
        "to_preference",
        "to_sft",
    ]
    assert not [name for line in names for name in line.split(", ") if name not in tuna_trl.__all__]
