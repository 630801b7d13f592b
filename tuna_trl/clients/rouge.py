"""ROUGE-L (Lin 2004) between texts, fast enough for every pair of a build: each text is tokenised once.

With the tokenizer "rouge" equal to `rouge_score`'s `rougeL` F-measure with `use_stemmer=True`, number for number: its
tokenizer and stemmer, the longest common subsequence by rapidfuzz. Text outside a-z and 0-9 has no tokens there, so
two answers in Chinese score 0, however alike they are; "unicode" reads every script ([`unicode_tokens`]). Heavy
imports happen on first use.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cached_property, lru_cache

from ..errors import InputError, did_you_mean


TOKENIZERS = ("rouge", "unicode")
# Scripts written without spaces between words, as first and last code points (Unicode 16, Blocks.txt): Thai, Lao,
# Tibetan; Myanmar; Khmer; Tai Le, New Tai Lue; Tai Tham; CJK radicals; iteration marks to Bopomofo (the Hangul letters
# behind it are not); Bopomofo extended; Katakana extensions; Han and its extension A; Yi; Myanmar extended;
# Tai Viet; compatibility Han; kana supplements; Han in planes 2 and 3
_UNSPACED = (
    (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF), (0x2E80, 0x2FDF),
    (0x3005, 0x312F), (0x31A0, 0x31BF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA000, 0xA48F),
    (0xA9E0, 0xA9FF), (0xAA60, 0xAADF), (0xF900, 0xFAFF), (0x1AFF0, 0x1B16F), (0x20000, 0x3FFFD),
)  # fmt: skip


class RougeL:
    """ROUGE-L F-measures. One instance may be shared between threads.

    Args:
        max_texts: how many texts keep their tokens in memory (the least recently used go first).
        tokenizer: "rouge" (rouge_score's own, for English) or "unicode" ([`unicode_tokens`], for any script).

    Raises:
        InputError: another tokenizer.
    """

    def __init__(self, max_texts: int = 4096, tokenizer: str = "rouge") -> None:
        if tokenizer not in TOKENIZERS:
            raise InputError(
                f"`tokenizer` is {tokenizer!r}, expected one of {', '.join(TOKENIZERS)}."
                f"{did_you_mean(str(tokenizer), TOKENIZERS)}"
            )
        self.tokenizer = tokenizer
        self._cached_tokens = lru_cache(maxsize=max_texts)(self._tokenise if tokenizer == "rouge" else unicode_tokens)

    def tokens(self, text: str) -> tuple[str, ...]:
        """The tokens of `text`. Those of "rouge" are runs of a-z and 0-9 in lower case, stemmed when longer than three
        characters.

        Args:
            text: any text.

        >>> RougeL().tokens("The cats' sleeping-bags")
        ('the', 'cat', 'sleep', 'bag')
        """
        return self._cached_tokens(text)

    def f_measure(self, a: str, b: str) -> float:
        """`2 p r / (p + r)` with p = LCS / tokens of b, r = LCS / tokens of a: in [0, 1], the same for (b, a).

        0.0 where either text has no tokens, as in `rouge_score`.

        Args:
            a: a text.
            b: another.

        >>> RougeL().f_measure("the cat sat", "the cat lay")
        0.6666666666666666
        """
        from rapidfuzz.distance import LCSseq

        tokens_a, tokens_b = self.tokens(a), self.tokens(b)
        if not tokens_a or not tokens_b:
            return 0.0
        common = LCSseq.similarity(tokens_a, tokens_b)
        precision, recall = common / len(tokens_b), common / len(tokens_a)
        # Written in this order, which is rouge_score's, so that the floats are equal to the last bit.
        return 2 * precision * recall / (precision + recall) if common else 0.0

    def pairwise_max_mean(self, texts: Sequence[str]) -> tuple[float, float]:
        """Largest and mean F-measure over all pairs of `texts`; (0.0, 0.0) for fewer than two.

        Args:
            texts: the texts.
        """
        values = [self.f_measure(texts[i], texts[j]) for i in range(len(texts)) for j in range(i)]
        return (max(values), sum(values) / len(values)) if values else (0.0, 0.0)

    @cached_property
    def _stemmer(self) -> _MemoisedStemmer:
        return _MemoisedStemmer()

    def _tokenise(self, text: str) -> tuple[str, ...]:
        from rouge_score.tokenize import tokenize

        return tuple(tokenize(text, self._stemmer))


def unicode_tokens(text: str) -> tuple[str, ...]:
    """The words of `text` in any script, case folded, compatibility forms made one (NFKC), not stemmed.

    A word is a run of letters and digits with their combining marks; in scripts without spaces between words (Han,
    kana, Thai, Khmer, ...) every character with its marks is a token of its own. All else parts words and is dropped.

    >>> unicode_tokens("Ein Tool für 你好,世界!")
    ('ein', 'tool', 'für', '你', '好', '世', '界')
    """
    tokens: list[str] = []
    extend = attach = False  # whether the next letter, and whether the next mark, belongs to the last token
    for character in unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()):
        kind = unicodedata.category(character)[0]
        if kind == "M" or character in "\u200c\u200d":  # the joiners of Persian and of Indic scripts
            if attach:
                tokens[-1] += character
        elif kind in "LN":
            alone = _is_unspaced(ord(character))
            if extend and not alone:
                tokens[-1] += character
            else:
                tokens.append(character)
            extend, attach = not alone, True
        else:
            extend = attach = False
    return tuple(tokens)


def _is_unspaced(point: int) -> bool:
    return point >= 0x0E00 and any(first <= point <= last for first, last in _UNSPACED)


class _MemoisedStemmer:
    """nltk's Porter stemmer, most of ROUGE's time without a memory (measured: 12 times faster with one)."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = lru_cache(maxsize=1 << 17)(PorterStemmer().stem)
