"""The names of LMentry's tasks, and which of them are compared to see how robust a model is. Tables, nothing else."""

from __future__ import annotations

from ...errors import InputError, did_you_mean


CORE = (
    "sentence_containing", "sentence_not_containing", "word_containing", "word_not_containing",
    "most_associated_word", "least_associated_word", "any_words_from_category", "all_words_from_category",
    "first_alphabetically", "more_letters", "less_letters", "bigger_number", "smaller_number", "rhyming_word",
    "homophones", "word_after", "word_before", "starts_with_word", "ends_with_word", "starts_with_letter",
    "ends_with_letter", "first_word", "last_word", "first_letter", "last_letter",
)  # fmt: skip

# tasks whose answer is the first or the second of two arguments (`answer_index` in the metadata)
ARGUMENT_ORDER = (
    "more_letters", "less_letters", "first_alphabetically", "rhyming_word", "homophones", "bigger_number",
    "smaller_number",
)  # fmt: skip

# the same task on arguments of another kind, from easy to hard; each is a file `<task>_<suffix>.json`
ARGUMENT_CONTENT = {
    "first_alphabetically": (
        "far_first_letter", "different_first_letter", "consecutive_first_letter", "same_first_letter",
    ),
    "all_words_from_category": ("0_distractors", "1_distractors", "2_distractors"),
    "any_words_from_category": ("5_distractors", "4_distractors", "3_distractors"),
    "rhyming_word": ("orthographically_similar", "orthographically_different"),
    "more_letters": ("length_diff_3plus", "length_diff_1"),
    "less_letters": ("length_diff_3plus", "length_diff_1"),
}  # fmt: skip

# pairs of tasks that ask almost the same
ADJACENT = (
    # by definition
    ("bigger_number", "smaller_number"),
    ("more_letters", "less_letters"),
    ("word_after", "word_before"),
    ("most_associated_word", "least_associated_word"),
    ("any_words_from_category", "all_words_from_category"),
    # negation
    ("sentence_containing", "sentence_not_containing"),
    ("word_containing", "word_not_containing"),
    # whole words against the letters of a word
    ("starts_with_word", "starts_with_letter"),
    ("ends_with_word", "ends_with_letter"),
    ("sentence_containing", "word_containing"),
    ("sentence_not_containing", "word_not_containing"),
    ("first_word", "first_letter"),
    ("last_word", "last_letter"),
    # first against last
    ("starts_with_word", "ends_with_word"),
    ("starts_with_letter", "ends_with_letter"),
    ("first_word", "last_word"),
    ("first_letter", "last_letter"),
)

SUBSETS = tuple(f"{task}_{suffix}" for task, suffixes in ARGUMENT_CONTENT.items() for suffix in suffixes)
ALL = CORE + SUBSETS


def core_task(name: str) -> str:
    """The core task whose rules score `name`: itself, or the one that it is a subset of.

    >>> core_task("more_letters_length_diff_1")
    'more_letters'

    Raises:
        InputError: no task has this name.
    """
    if name in CORE:
        return name
    for task, suffixes in ARGUMENT_CONTENT.items():
        if name.removeprefix(f"{task}_") in suffixes:
            return task
    raise InputError(f"`task` is {name!r}, which is no task of LMentry.{did_you_mean(str(name), ALL)}")
