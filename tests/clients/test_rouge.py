"""ROUGE-L equals rouge_score, whose slow implementation is the oracle."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tuna_trl.clients.rouge import RougeL, unicode_tokens
from tuna_trl.errors import InputError


ORACLE = RougeScorer(["rougeL"], use_stemmer=True)
ROUGE = RougeL()

words = st.sampled_from(
    "the a cat cats sleeping sleeps slept running run happily happiness 42 3.14 it's re-run Ünïcode 漢字 \n ! ..."
    " don't generously skies dying news inning".split(" ")
)
texts = st.one_of(st.lists(words, max_size=20).map(" ".join), st.text(max_size=40))


@given(texts, texts)
@example("", "")
@example("", "cat")
@example("漢字", "漢字")
@example("A", "a")
@example("the cat", "CAT, the")
@settings(max_examples=400, deadline=None)
def test_f_measure_is_exactly_that_of_rouge_score(a, b):
    assert ROUGE.f_measure(a, b) == ORACLE.score(a, b)["rougeL"].fmeasure


@given(texts, texts)
@settings(deadline=None)
def test_f_measure_is_symmetric_and_one_only_for_equal_tokens(a, b):
    value = ROUGE.f_measure(a, b)
    assert value == ROUGE.f_measure(b, a)
    assert 0.0 <= value <= 1.0
    assert (value == 1.0) == (ROUGE.tokens(a) == ROUGE.tokens(b) != ())


@given(texts)
@settings(deadline=None)
def test_tokens_are_those_of_rouge_score(text):
    assert list(ROUGE.tokens(text)) == ORACLE._tokenizer.tokenize(text)


@given(st.lists(texts, max_size=5))
@settings(deadline=None)
def test_pairwise_statistics_equal_a_loop_over_all_pairs(several):
    pairs = [
        ORACLE.score(several[i], several[j])["rougeL"].fmeasure
        for i in range(len(several))
        for j in range(i + 1, len(several))
    ]
    largest, mean = ROUGE.pairwise_max_mean(several)
    assert largest == (max(pairs) if pairs else 0.0)
    assert mean == pytest.approx(sum(pairs) / len(pairs) if pairs else 0.0)


def test_each_text_is_tokenised_once(monkeypatch):
    rouge = RougeL()
    from rouge_score import tokenize

    seen = []
    original = tokenize.tokenize
    monkeypatch.setattr(tokenize, "tokenize", lambda text, stemmer: seen.append(text) or original(text, stemmer))
    rouge.pairwise_max_mean(["one cat", "two cats", "three cats", "four cats"])
    assert sorted(seen) == ["four cats", "one cat", "three cats", "two cats"]


class TestUnicode:
    @pytest.mark.parametrize(
        ("text", "tokens"),
        [
            ("The cats' sleeping-bags", ["the", "cats", "sleeping", "bags"]),
            ("你好,世界", ["你", "好", "世", "界"]),
            ("ひらがなとカタカナ々", list("ひらがなとカタカナ々")),
            ("ｶﾞｯｺｳ Ｔｏｏｌ", ["ガ", "ッ", "コ", "ウ", "tool"]),  # half and full width are one
            ("안녕하세요 세계", ["안녕하세요", "세계"]),  # Hangul has spaces
            ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),  # vowel signs are marks, no letters
            ("ที่นี่", ["ที่", "นี่"]),  # Thai: a consonant with its vowel and tone
            ("می‌خواهم", ["می‌خواهم"]),  # one Persian word with a joiner in it
            ("Straße STRASSE", ["strasse", "strasse"]),
            ("iPhone15说明书v2", ["iphone15", "说", "明", "书", "v2"]),
            ("👍 \u0301 ...", []),  # a mark without a letter belongs to nothing
        ],
    )
    def test_words_where_there_are_spaces_and_characters_where_there_are_none(self, text, tokens):
        assert list(unicode_tokens(text)) == tokens

    @given(st.text(max_size=60))
    @settings(deadline=None)
    def test_every_letter_and_digit_is_in_a_token_once_and_nothing_else_is(self, text):
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        letters = [c for c in folded if unicodedata.category(c)[0] in "LN"]
        tokens = unicode_tokens(text)
        assert [c for token in tokens for c in token if unicodedata.category(c)[0] in "LN"] == letters
        assert all(unicodedata.category(token[0])[0] in "LN" for token in tokens)

    @given(st.text(max_size=30), st.text(max_size=30))
    @settings(deadline=None)
    def test_the_spelling_of_a_character_does_not_matter(self, a, b):
        rouge = RougeL(tokenizer="unicode")
        for form in ("NFC", "NFD"):
            assert rouge.f_measure(unicodedata.normalize(form, a), b) == rouge.f_measure(a, b)

    @given(
        st.text(st.sampled_from("ab 你好世界,"), max_size=12), st.text(st.sampled_from("ab 你好世界,"), max_size=12)
    )
    @settings(deadline=None)
    def test_f_measure_is_that_of_the_longest_common_subsequence(self, a, b):
        x, y = unicode_tokens(a), unicode_tokens(b)
        table = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
        for i, left in enumerate(x):
            for j, right in enumerate(y):
                table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
        expected = 2 * table[-1][-1] / (len(x) + len(y)) if x and y else 0.0
        assert RougeL(tokenizer="unicode").f_measure(a, b) == pytest.approx(expected, abs=1e-12)

    def test_ascii_words_too_short_for_the_stemmer_score_as_in_rouge_score(self):
        a, b = "the cat sat on a mat at 3", "a cat and the mat: 3"
        assert RougeL(tokenizer="unicode").f_measure(a, b) == ORACLE.score(a, b)["rougeL"].fmeasure


def test_an_unknown_tokenizer_is_refused_by_name():
    with pytest.raises(InputError, match="`tokenizer` is 'unicod', expected one of rouge, unicode. Did you mean"):
        RougeL(tokenizer="unicod")
