"""Is a prediction right? One rule a kind of task: choose an answer, say yes or no, write a word, write a sentence.

Pure functions of a task's name, an example's metadata and the prediction. Written from the tasks' description; where
people would differ, the rules side with the official scores (agreement: `docs/evaluation.md`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...errors import InputError
from .statements import STATEMENTS, answer_phrases
from .tasks import core_task
from .text import ONE_LETTER_WORDS, SEPARATOR, plain, says_nothing, term


Metadata = Mapping[str, Any]

# Their official scorers take whole statements of their own and no "The answer is ...".
_EXACT = frozenset({"rhyming_word", "homophones"})
_NOUNS = {"bigger_number": "number", "smaller_number": "number", "first_letter": "letter", "last_letter": "letter"}
# a word of parts is one (mother-in-law), letters that are spelt out are not (m-o-m)
_WORD = r"[\"']?(?P<word>\w+(?:'\w+|-\w\w+)*)[\"']?"


def is_right(task: str, metadata: Metadata, prediction: str, *, truncate: bool = False) -> bool:
    """Whether `prediction` answers an LMentry example.

    Args:
        task: the name of a core task or of one of its argument-content subsets.
        metadata: the example's own (`answer`, `distractor`, `word`, ... as the task needs).
        truncate: read only up to the first line break and full stop, for models that never stop.

    Raises:
        InputError: no such task, or the metadata lacks a field of the task.
    """
    name = core_task(task)
    text = plain(prediction, truncate)
    if says_nothing(text):
        return False
    try:
        if name in STATEMENTS:
            return _names_the_answer(name, metadata, text)
        return _RULES[name](metadata, text)
    except KeyError as error:
        raise InputError(f"LMentry task {task}: the example's metadata has no field {error}.") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"LMentry task {task}: the example's metadata is not what it should be: {error}.") from None


def _names_the_answer(name: str, metadata: Metadata, text: str) -> bool:
    """Choice of one answer: it stands alone, or a statement names it and none names another."""
    answer, noun = metadata["answer"], _NOUNS.get(name, "word")
    a = term(answer, noun)
    if re.fullmatch(rf"{a}(?:{SEPARATOR}{a})*[\"']?\.?[\"']?", text):
        return True
    others = metadata.get("distractors", [metadata["distractor"]] if "distractor" in metadata else [])
    statements = STATEMENTS[name]
    wrong = [pattern for other in others for pattern in statements(metadata, other, answer)]
    right = [pattern for other in others or [None] for pattern in statements(metadata, answer, other)]
    if name in _EXACT:
        return _matches(right, text, whole=True)
    if _matches(wrong, text):
        return False
    if "category" in metadata and re.fullmatch(rf"{term(metadata['category'])} - {a}\.?", text):
        return True
    choices = "(?:" + "|".join(term(other, noun) for other in others) + ")" if others else None
    return _matches([*right, *answer_phrases(a, choices)], text)


def _matches(patterns: list[str], text: str, whole: bool = False) -> bool:
    one = "|".join(f"(?:{pattern})" for pattern in dict.fromkeys(patterns))
    if not one:
        return False
    if whole:
        return re.fullmatch(rf"(?:{one})\.?", text) is not None
    return re.search(rf"(?<!\w)(?:{one})(?!\w)", text) is not None


def _any_words_from_category(metadata: Metadata, text: str) -> bool:
    return _yes_or_no(metadata["num_words"] > metadata["num_distractors"], text)


def _all_words_from_category(metadata: Metadata, text: str) -> bool:
    return _yes_or_no(metadata["num_distractors"] == 0, text)


def _yes_or_no(yes: bool, text: str) -> bool:
    """The answer begins with the right word, and does not go on to offer the other one."""
    right, wrong = ("yes", "no") if yes else ("no", "yes")
    lead = r"(?:the (?:correct |right )?answer is:? |answer: )?[\"']?"
    return re.match(rf"{lead}{right}(?!\w)(?![\"']? ?(?:or|and|/) ?[\"']?{wrong}\b)", text) is not None


def _starts_with_word(metadata: Metadata, text: str) -> bool:
    """At least three words, the first of them the one asked for."""
    return re.match(rf"\W*{_bounded(metadata['word'])}\W+\w+\W+\w+", text) is not None


def _ends_with_word(metadata: Metadata, text: str) -> bool:
    found = re.search(rf"{_bounded(metadata['word'])}\W*$", text)
    return found is not None and len(re.findall(r"\w+", text[: found.start()])) >= 2


def _sentence_containing(metadata: Metadata, text: str) -> bool:
    """The word with something beside it, be it a quotation mark."""
    word = _bounded(metadata["word"])
    return re.search(word, text) is not None and re.fullmatch(word, text) is None


def _sentence_not_containing(metadata: Metadata, text: str) -> bool:
    """At least two words, and not this one."""
    return len(re.findall(r"\w+", text)) >= 2 and re.search(_bounded(metadata["word"]), text) is None


def _starts_with_letter(metadata: Metadata, text: str) -> bool:
    letter = metadata["letter"].lower()
    said = [
        rf"{_WORD} (?:starts|begins) with {term(letter, 'letter')}",
        rf"{term(letter, 'letter')} is for {_WORD}",
        rf"a word (?:that (?:starts|begins)|starting|beginning) with {term(letter, 'letter')} is:? {_WORD}",
        rf"a word whose first letter is {term(letter, 'letter')} is:? {_WORD}",
    ]
    return _writes_a_word(text, said, lambda word: word.startswith(letter))


def _ends_with_letter(metadata: Metadata, text: str) -> bool:
    letter = metadata["letter"].lower()
    said = [
        rf"{_WORD} ends with {term(letter, 'letter')}",
        rf"a word (?:that ends|ending) with {term(letter, 'letter')} is:? {_WORD}",
        rf"a word whose last letter is {term(letter, 'letter')} is:? {_WORD}",
    ]
    return _writes_a_word(text, said, lambda word: word.endswith(letter))


def _word_containing(metadata: Metadata, text: str) -> bool:
    letter = metadata["letter"].lower()
    said = [
        rf"{_WORD} contains {term(letter, 'letter')}",
        rf"a word (?:that contains|containing|using|with) {term(letter, 'letter')} is:? {_WORD}",
    ]
    return _writes_a_word(text, said, lambda word: letter in word)


def _word_not_containing(metadata: Metadata, text: str) -> bool:
    """One word without the letter. The official scorer takes no repetition and no "The answer is ..." here."""
    letter = term(metadata["letter"], "letter")
    lacks = r"(?:does not|doesn't) contain"
    without = rf"(?:that {lacks}|not containing|without(?: using| containing)?) {letter}"
    said = [rf"a word {without} is:? {_WORD}", rf"{_WORD} is a word {without}", rf"{_WORD} {lacks} {letter}"]
    for pattern in (*said, _WORD):
        if found := re.fullmatch(rf"(?:the word )?{pattern}\.?", text):
            return metadata["letter"].lower() not in found["word"]
    return False


def _writes_a_word(text: str, said: list[str], fits: Any) -> bool:
    """A bare word, repeated or not, or a statement about one; and it fits."""
    again = rf"(?:{SEPARATOR}[\"']?(?P=word)[\"']?)*\.?"
    found = re.fullmatch(rf"(?:the word )?{_WORD}{again}", text)
    if found is None:
        for pattern in (*said, *answer_phrases(_WORD)):
            if found := re.search(rf"(?<!\w){pattern}(?!\w)", text):
                break
    if found is None:
        return False
    word = found["word"]
    return (len(word) > 1 or word in ONE_LETTER_WORDS) and fits(word)


def _bounded(word: str) -> str:
    return rf"(?<!\w){re.escape(str(word).lower())}(?!\w)"


_RULES = {
    "any_words_from_category": _any_words_from_category,
    "all_words_from_category": _all_words_from_category,
    "starts_with_word": _starts_with_word,
    "ends_with_word": _ends_with_word,
    "sentence_containing": _sentence_containing,
    "sentence_not_containing": _sentence_not_containing,
    "starts_with_letter": _starts_with_letter,
    "ends_with_letter": _ends_with_letter,
    "word_containing": _word_containing,
    "word_not_containing": _word_not_containing,
}
