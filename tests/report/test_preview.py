"""What `preview` prints: the row as it is ranked, the tokens as the collator trains them, no foreign escape code."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ranked_rows import dataset_of, rows, simple_row
from rich.console import Console

from tuna_trl.collator import RankedCollator
from tuna_trl.data.hub import save_ranked
from tuna_trl.data.tokenize import tokenize_row
from tuna_trl.errors import InputError
from tuna_trl.report.preview import KINDS, preview, print_tokens
from tuna_trl.tokens import Template


def printed(show, *, colours: bool = False) -> str:
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=colours, color_system="standard" if colours else None, width=120, highlight=False
    )
    show(console)
    return out.getvalue()


def token_lines(text: str) -> list[tuple[str, int]]:
    return [(kind, int(n)) for kind, n in re.findall(r"^\[([a-z ]+), (\d+)\] ", text, re.MULTILINE)]


class TestRow:
    def test_prompt_and_responses_best_first_with_what_is_known_of_them(self, tmp_path):
        folder = save_ranked(dataset_of([simple_row(i) for i in range(3)]), tmp_path / "d")
        text = printed(lambda console: preview(folder, console, row=2))
        assert "split train, row 2" in text and "judge by a-judge" in text
        places = [text.index(words) for words in ("question 2", "rank 1; score 3.00", "rank 2; score 2.00", "rank 3;")]
        assert places == sorted(places)
        assert "log-prob −0.05 nats/token; 30 tokens; student" in text

    def test_what_is_not_there_is_said(self, tmp_path):
        folder = save_ranked(dataset_of([simple_row()]), tmp_path / "d")
        for kwargs, words in (
            ({"row": 1}, "has 1 rows"),
            ({"row": -1}, "counted from 0"),
            ({"split": "trian"}, "has no split 'trian'; it has 'train'. Did you mean 'train'"),
        ):
            with pytest.raises(InputError, match=words):
                preview(folder, Console(file=io.StringIO()), **kwargs)

    @settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.booleans())
    def test_a_foreign_text_is_no_markup_and_no_escape_code(self, tmp_path, text, colours):
        row = simple_row(reference=text, ranker=text)
        row["prompt"] = [{"role": text, "content": text + "[red]x[/red] \x1b[31m \x9b31m \x07 \u202e"}]
        row["responses"][0] |= {"content": text, "model": text}
        folder = save_ranked(dataset_of([row]), tmp_path / "d")
        found = printed(lambda console: preview(folder, console), colours=colours)
        assert "[red]x[/red]" in found
        if colours:
            found = re.sub(r"\x1b\[[\d;]*m", "", found.replace("\x1b[31m", "!"))
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", found)

    def test_a_response_of_two_megabytes_is_cut_with_a_note(self, tmp_path):
        row = simple_row()
        row["responses"][0]["content"] = "ab " * 700_000
        folder = save_ranked(dataset_of([row]), tmp_path / "d")
        text = printed(lambda console: preview(folder, console))
        assert len(text) < 10_000 and "cut here; 2,100,000 characters in all" in text

    @settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(rows())
    def test_any_row_can_be_looked_at(self, tmp_path, row):
        folder = save_ranked(dataset_of([row]), tmp_path / "d")
        assert "row 0" in printed(lambda console: preview(folder, console))


class TestTokens:
    @pytest.mark.parametrize("mle_target", ["all", "best", "none", "reference"])
    def test_kinds_are_those_of_the_collator_token_by_token(self, tiny_tokenizer, mle_target):
        row = simple_row(reference="It is so.")
        row["responses"][2] |= {"finish_reason": "length"}
        text = printed(lambda console: print_tokens(console, row, tiny_tokenizer, mle_target))
        tokenised = tokenize_row(row, Template(tiny_tokenizer))
        batch = RankedCollator(0, mle_target)([tokenised])
        prompt = len(tokenised["prompt_ids"])
        expected = [("masked", prompt)]
        for k in range(batch["labels"].shape[1]):
            kinds = []
            for i in range(prompt, int(batch["attention_mask"][0, k].sum())):
                scored, trained = bool(batch["score_mask"][0, k, i]), bool(batch["labels"][0, k, i] != -100)
                words = [word for word, is_so in (("scored", scored), ("trained", trained)) if is_so]
                kind = " and ".join(words) or "masked"
                if kinds and kinds[-1][0] == kind:
                    kinds[-1] = (kind, kinds[-1][1] + 1)
                else:
                    kinds.append((kind, 1))
            expected += kinds
        assert token_lines(text) == expected
        assert "<|im_end|>" in text and ("reference (mle_target)" in text) == (mle_target == "reference")

    def test_of_a_row_that_does_not_train_nothing_is_trained(self, tiny_tokenizer):
        row = simple_row(status="refused")
        text = printed(lambda console: print_tokens(console, row, tiny_tokenizer))
        assert {kind for kind, _ in token_lines(text)} == {"masked"}

    def test_colours_on_a_terminal_and_words_in_a_pipe(self, tiny_tokenizer):
        def show(console):
            print_tokens(console, simple_row(), tiny_tokenizer)

        coloured, piped = printed(show, colours=True), printed(show)
        assert "\x1b[32m" in coloured and token_lines(coloured) == []
        assert all(kind in coloured for kind in KINDS)  # the legend
        assert "\x1b" not in piped and token_lines(piped)
