"""What one can say to name the answer of an LMentry question: patterns of whole statements, by task.

Each function gets the question's metadata and two arguments, and gives the patterns of statements that name the first
and not the second. Called with the two swapped it gives the statements that name the wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from .text import alone, number_forms, term


Metadata = Mapping[str, Any]
Statements = Callable[[Metadata, Any, Any], list[str]]

_NOW = "(?:right|immediately|directly|just) "
_NOT = "(?:does not|doesn't|do not|don't)"


def answer_phrases(a: str, others: str | None = None) -> list[str]:
    """The phrases that name the answer to any question.

    Args:
        a, others: patterns ([`tuna_trl.evaluation.lmentry.text.term`]) of the answer and of what it is chosen from.
    """
    return [
        rf"the (?:correct |right )?answer is:? {a}{alone(others)}",
        rf"{a} is the (?:correct |right )?answer",
        rf"answer: {a}{alone(others)}",
    ]


def more_letters(metadata: Metadata, longer: str, shorter: str) -> list[str]:
    more = abs(len(longer) - len(shorter))
    count = "(?:" + "|".join(number_forms(more)) + ") " if more else ""
    x, y = term(longer), term(shorter)
    said = [
        *_comparison(x, y, "(?:longer|longest)", "(?:shorter|shortest)", "word"),
        rf"{x} (?:has|contains) (?:the )?(?:{count})?(?:more|most) letters",
        rf"{y} (?:has|contains) (?:the )?(?:{count})?(?:fewer|less|fewest|least) letters",
        rf"the word (?:with|that has|which has) (?:the )?(?:more|most) letters is:? {x}{alone(y)}",
        rf"the word (?:with|that has|which has) (?:the )?(?:fewer|less|fewest|least) letters is:? {y}{alone(x)}",
    ]
    return said


def less_letters(metadata: Metadata, shorter: str, longer: str) -> list[str]:
    return more_letters(metadata, longer, shorter)


def bigger_number(metadata: Metadata, bigger: int, smaller: int) -> list[str]:
    x, y = term(bigger, "number"), term(smaller, "number")
    up = "(?:bigger|biggest|larger|largest|greater|greatest|higher|highest)"
    down = "(?:smaller|smallest|lower|lowest|less|lesser)"
    return [*_comparison(x, y, up, down, "number"), rf"{x} ?> ?{y}", rf"{y} ?< ?{x}", rf"{x} is more than {y}"]


def smaller_number(metadata: Metadata, smaller: int, bigger: int) -> list[str]:
    return bigger_number(metadata, bigger, smaller)


def first_alphabetically(metadata: Metadata, first: str, second: str) -> list[str]:
    x, y = term(first), term(second)
    goes = "(?:comes|goes|is|appears|would come)"
    return [
        rf"{x} {goes} (?:the )?first",
        rf"{x} {goes} (?:alphabetically )?before {y}",
        rf"{x} precedes {y}",
        rf"{x} does",
        rf"{y} {goes} (?:alphabetically )?after {x}",
        rf"{y} {goes} (?:the )?(?:second|last|later)",
        rf"the (?:first word|word that comes first)(?: alphabetically|,? in (?:an )?alphabetical order)? "
        rf"is:? {x}{alone(y)}",
    ]


def rhyming_word(metadata: Metadata, a: str, b: str) -> list[str]:
    q, x, y = term(metadata["query"]), term(a), term(b)
    return [
        *_both_ways(q, x, "rhymes with"),
        *_both_ways(q, x, "and", " (?:do )?rhyme"),
        *_both_ways(q, x, "is a rhyme (?:of|for)"),
        *_both_ways(q, y, rf"{_NOT} rhyme with"),
        rf"(?:the|a) (?:word that rhymes with|rhyme (?:of|for)) {q} is:? {x}",
    ]


def homophones(metadata: Metadata, a: str, b: str) -> list[str]:
    q, x, y = term(metadata["query"]), term(a), term(b)
    than = f"(?: than {y})?"
    return [
        *_both_ways(q, x, "sounds (?:more |most |just |exactly )?like", than),
        *_both_ways(q, x, "sounds the same as", than),
        *_both_ways(q, x, "and", " (?:sound (?:alike|the same)|are homophones)"),
        *_both_ways(q, x, "is (?:a|the) homophone (?:of|for)"),
        *_both_ways(q, y, rf"{_NOT} sound like"),
        rf"(?:the|a) (?:homophone (?:of|for)|word that sounds (?:more |most )?like) {q} is:? {x}",
    ]


def most_associated_word(metadata: Metadata, a: str, b: str) -> list[str]:
    return _associated("most", metadata, a)


def least_associated_word(metadata: Metadata, a: str, b: str) -> list[str]:
    return _associated("least", metadata, a)


def word_after(metadata: Metadata, a: str, b: None) -> list[str]:
    q, x = term(metadata["query"]), term(a)
    return [
        *_neighbours(q, x),
        rf"{q} is (?:immediately |directly )?followed by {x}",
        rf"the word (?:that |which )?(?:(?:comes|is) )?(?:{_NOW})?after {q}{_where(metadata)} is:? {x}",
        rf"the (?:next|following) word is:? {x}",
    ]


def word_before(metadata: Metadata, a: str, b: None) -> list[str]:
    q, x = term(metadata["query"]), term(a)
    return [
        *_neighbours(x, q),
        rf"the word (?:that |which )?(?:(?:comes|is) )?(?:{_NOW})?before {q}{_where(metadata)} is:? {x}",
        rf"the (?:previous|preceding) word is:? {x}",
    ]


def first_word(metadata: Metadata, a: str, b: None) -> list[str]:
    return _place_in_sentence("first", "(?:starts|begins)", metadata, a)


def last_word(metadata: Metadata, a: str, b: None) -> list[str]:
    return _place_in_sentence("last", "(?:ends|finishes)", metadata, a)


def first_letter(metadata: Metadata, a: str, b: None) -> list[str]:
    return _place_in_word("first", "(?:starts|begins)", metadata, a)


def last_letter(metadata: Metadata, a: str, b: None) -> list[str]:
    return _place_in_word("last", "(?:ends|finishes)", metadata, a)


def _comparison(x: str, y: str, up: str, down: str, noun: str) -> list[str]:
    """x is `up`, y is `down`, said in one of the usual ways."""
    return [
        rf"{x} is (?:the )?{up}(?: {noun}| one)?",
        rf"{y} is (?:the )?{down}(?: {noun}| one)?",
        rf"the (?:{up} (?:{noun}|one)|{noun} that is {up}) is:? {x}{alone(y)}",
        rf"the (?:{down} (?:{noun}|one)|{noun} that is {down}) is:? {y}{alone(x)}",
    ]


def _both_ways(x: str, y: str, verb: str, end: str = "") -> list[str]:
    return [rf"{x} {verb} {y}{end}", rf"{y} {verb} {x}{end}"]


def _neighbours(x: str, y: str) -> list[str]:
    """y stands right after x."""
    return [
        rf"{y} (?:comes|is) (?:{_NOW})?after {x}",
        rf"{x} (?:comes|is) (?:{_NOW})?before {y}",
        rf"{y} (?:immediately |directly )?(?:follows|succeeds) {x}",
        rf"{x} (?:immediately |directly )?precedes {y}",
    ]


def _associated(how: str, metadata: Metadata, a: str) -> list[str]:
    c, x = term(metadata["category"]), term(a)
    link = rf"{how} (?:commonly |closely )?(?:associated|related) (?:with|to)"
    return [
        rf"{x} is (?:the )?(?:word )?(?:that is )?{link} {c}",
        rf"{c} is {link} {x}",
        rf"the word (?:that is )?{link} {c} is:? {x}{alone(None)}",
    ]


def _where(metadata: Metadata) -> str:
    sentence = re.escape(str(metadata["sentence"]).lower())
    return rf"(?: in the sentence(?: [\"']?{sentence}[\"']?)?)?"


def _place_in_sentence(place: str, begins: str, metadata: Metadata, a: str) -> list[str]:
    sentence = rf"(?:the sentence(?: [\"']?{re.escape(str(metadata['sentence']).lower())}[\"']?)?)"
    return [
        rf"the {place} word(?: (?:of|in) {sentence})? is:? {term(a)}{alone(None)}",
        rf"{term(a)} is the {place} word",
        rf"{sentence} {begins} with {term(a)}",
    ]


def _place_in_word(place: str, begins: str, metadata: Metadata, a: str) -> list[str]:
    word, x = term(metadata["word"]), term(a, "letter")
    return [
        rf"the {place} letter(?: (?:of|in) (?:{word}|the word))? is:? {x}{alone(None)}",
        rf"{x} is the {place} letter",
        rf"(?:{word}|the word) {begins} with {x}",
    ]


STATEMENTS: dict[str, Statements] = {
    function.__name__: function
    for function in (
        more_letters, less_letters, bigger_number, smaller_number, first_alphabetically, rhyming_word, homophones,
        most_associated_word, least_associated_word, word_after, word_before, first_word, last_word, first_letter,
        last_letter,
    )
}  # fmt: skip
