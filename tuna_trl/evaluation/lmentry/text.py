"""How LMentry's scorers read text: a prediction made plain, and patterns for a word, a letter or a number in it."""

from __future__ import annotations

import re


_QUOTES = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "`": "'", "_": " "})
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
SEPARATOR = r"[\s.,;:]+"  # between repetitions of an answer
ONE_LETTER_WORDS = ("a", "i")


def plain(prediction: str, truncate: bool = False) -> str:
    """Lower case, straight quotes, no blanks at the ends, one blank between words (line breaks stay).

    Args:
        truncate: for models that go on after their answer: only what stands before the first line break and the first
            full stop.

    >>> plain("  The  Answer_is\\n“Yes”. No. ")
    'the answer is\\n"yes". no.'
    >>> plain("Yes. No.", truncate=True)
    'yes'
    """
    text = prediction.strip()
    if truncate:
        text = text.split("\n", 1)[0].split(".", 1)[0]
    text = re.sub(r"[^\S\n]+", " ", text.translate(_QUOTES).lower())
    return re.sub(r" ?\n\s*", "\n", text).strip()


def says_nothing(text: str) -> bool:
    """Whether a text has neither letter nor digit."""
    return not any(character.isalnum() for character in text)


def term(value: str | int, noun: str = "word") -> str:
    """A pattern for one argument as people write it: bare, quoted, after "the word"; numbers in digits or in words.

    >>> [bool(re.fullmatch(term("cat"), text)) for text in ("cat", '"cat"', "the word 'cat'", "cats")]
    [True, True, True, False]
    >>> bool(re.fullmatch(term(342, "number"), "three hundred and forty-two"))
    True
    """
    forms = number_forms(value) if noun == "number" else (str(value).lower().translate(_QUOTES),)
    written = "|".join(re.escape(form) for form in forms)
    # a decimal point or a thousands separator goes on with the number
    guard = r"(?![.,]?\d)" if noun == "number" else ""
    # the last quotation mark is not given back (?+), so that what follows the argument is looked at behind it
    return rf"(?:the {noun} )?[\"']?(?<!\w)(?:{written})(?!\w){guard}[\"']?+"


def alone(other: str | None) -> str:
    """What must not follow the last argument of a statement: "... or the other", "... and the other".

    Args:
        other: a pattern of the other arguments; None where there are none.
    """
    return r"(?!,? or )" if other is None else rf"(?!,? (?:or |and {other}))"


def number_forms(value: str | int) -> tuple[str, ...]:
    """A number below one million in digits and in words, with and without "and" and hyphens.

    >>> number_forms(120)
    ('120', 'one hundred and twenty', 'one hundred twenty')
    """
    number = int(value)
    words = _in_words(number)
    forms = [str(number), words, words.replace(" and ", " ")]
    forms += [form.replace("-", " ") for form in forms[1:]]
    if number >= 1000:
        forms.append(f"{number:,}")
    return tuple(dict.fromkeys(forms))


def _in_words(number: int) -> str:
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{_ONES[hundreds]} hundred" + (f" and {_in_words(rest)}" if rest else "")
    thousands, rest = divmod(number, 1000)
    joint = " and " if 0 < rest < 100 else " "
    return f"{_in_words(thousands)} thousand" + (f"{joint}{_in_words(rest)}" if rest else "")
