"""LMentry: laws of the scorers on data of our own, the aggregation against loops; both against the official figures
where the benchmark's data is at hand."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuna_trl.errors import InputError
from tuna_trl.evaluation.generation import GreedyAnswer
from tuna_trl.evaluation.lmentry.aggregate import Counts, Outcome, aggregate, bootstrap
from tuna_trl.evaluation.lmentry.data import Example, load_lmentry
from tuna_trl.evaluation.lmentry.runner import LMentry
from tuna_trl.evaluation.lmentry.scorers import is_right
from tuna_trl.evaluation.lmentry.tasks import ADJACENT, ALL, ARGUMENT_CONTENT, ARGUMENT_ORDER, CORE, core_task
from tuna_trl.evaluation.lmentry.text import number_forms, plain


WORDS = {"answer": "harbour", "distractor": "sun"}
SENTENCE = {"sentence": "Mary sold the old boat", "query": "the"}
CHOICES = {
    "more_letters": WORDS,
    "less_letters": {"answer": "sun", "distractor": "harbour"},
    "first_alphabetically": WORDS,
    "rhyming_word": {"query": "fun", "answer": "sun", "distractor": "harbour"},
    "homophones": {"query": "son", "answer": "sun", "distractor": "harbour"},
    "bigger_number": {"answer": 342, "distractor": 57},
    "smaller_number": {"answer": 57, "distractor": 342},
    "most_associated_word": {"category": "tools", "answer": "saw", "distractors": ["plum", "goose"]},
    "least_associated_word": {"category": "fruit", "answer": "saw", "distractors": ["plum", "fig"]},
    "word_after": SENTENCE | {"answer": "old"},
    "word_before": SENTENCE | {"answer": "sold"},
    "first_word": SENTENCE | {"answer": "Mary"},
    "last_word": SENTENCE | {"answer": "boat"},
    "first_letter": {"word": "lamp", "answer": "l"},
    "last_letter": {"word": "lamp", "answer": "p"},
}
METADATA = CHOICES | {
    "any_words_from_category": {"num_words": 5, "num_distractors": 4},
    "all_words_from_category": {"num_words": 5, "num_distractors": 1},
    "sentence_containing": {"word": "cold"},
    "sentence_not_containing": {"word": "cold"},
    "starts_with_word": {"word": "Winters"},
    "ends_with_word": {"word": "winters"},
    "starts_with_letter": {"letter": "k"},
    "ends_with_letter": {"letter": "k"},
    "word_containing": {"letter": "k"},
    "word_not_containing": {"letter": "k"},
}


def test_every_core_task_has_metadata_here():
    assert set(METADATA) == set(CORE) and len(ALL) == 25 + 16


@pytest.mark.parametrize("task", CHOICES)
def test_the_answer_alone_is_right_however_it_is_dressed(task):
    answer = str(CHOICES[task]["answer"])
    for text in (
        answer,
        f" {answer}\n",
        f'"{answer}"',
        f"{answer}.",
        answer.upper(),
        f"{answer} {answer}",
        f"“{answer}”",
    ):
        assert is_right(task, CHOICES[task], text), text
    assert not is_right(task, CHOICES[task], f"{answer}s") and not is_right(task, CHOICES[task], f"x{answer}")


@pytest.mark.parametrize("task", CHOICES)
def test_another_answer_or_both_of_them_are_wrong(task):
    metadata = CHOICES[task]
    answer = metadata["answer"]
    for other in metadata.get("distractors", [metadata.get("distractor", "window")]):
        for text in (
            f"{other}", f"The answer is {other}.", f"{answer} or {other}", f"{other} and {answer}",
            f"The answer is {answer} or {other}", f"I think it is {answer}, not {other}.",
        ):  # fmt: skip
            assert not is_right(task, metadata, text), text


@pytest.mark.parametrize("task", METADATA)
@given(st.text(alphabet=" \n\t.,!?\"'-_…()*", max_size=12))
def test_what_has_no_letter_is_wrong(task, text):
    assert not is_right(task, METADATA[task], text)


@pytest.mark.parametrize("task", METADATA)
@given(st.text(max_size=60))
def test_any_text_is_read_and_cutting_what_follows_the_answer_changes_nothing(task, text):
    assert isinstance(is_right(task, METADATA[task], text), bool)
    first_line = text.split("\n")[0].split(".")[0]
    if first_line.strip() == first_line:
        cut = is_right(task, METADATA[task], text.strip(), truncate=True)
        assert cut == is_right(task, METADATA[task], text.strip().split("\n", 1)[0].split(".", 1)[0])


RIGHT = {
    "more_letters": ["harbour has more letters than sun.", "sun is shorter", "Harbour has 4 more letters than sun"],
    "less_letters": ["sun has fewer letters", "harbour is longer than sun", "sun has four fewer letters"],
    "first_alphabetically": ["harbour comes first", "sun comes after harbour", "harbour does"],
    "rhyming_word": ["sun rhymes with fun.", "fun and sun rhyme", "The word that rhymes with fun is sun."],
    "homophones": ["son sounds like sun", "sun is a homophone of son", "son sounds more like sun than harbour"],
    "bigger_number": ["Three hundred and forty-two is bigger", "57 is smaller than 342", "The number 342", "342 > 57"],
    "smaller_number": ["The smaller number is fifty seven.", "342 is larger than 57"],
    "most_associated_word": ["tools - saw", "The word most associated with tools is saw.", "Answer: saw"],
    "least_associated_word": ["saw is the least related to fruit"],
    "word_after": ["old comes after the", 'The word that comes after "the" is "old".', "the is followed by old"],
    "word_before": ["sold comes before the", "The word right before the is sold"],
    "first_word": ["The first word of the sentence is Mary", "Mary is the first word"],
    "last_word": ["The sentence ends with boat", "the last word is boat"],
    "first_letter": ["lamp starts with l", 'The letter "L"', "The first letter of lamp is l"],
    "last_letter": ["The last letter is p", "lamp ends with p."],
    "any_words_from_category": ["Yes, one of them is.", "The answer is yes."],
    "all_words_from_category": ["no, not all", "Answer: no"],
    "sentence_containing": ["It is cold.", '"cold"'],
    "sentence_not_containing": ["It is warm.", "It is colder."],
    "starts_with_word": ["Winters are long here.", '"Winters are long."'],
    "ends_with_word": ["We like long winters.", "I hate the winters!"],
    "starts_with_letter": ["kiwi", "Kiwi.", "k is for kiwi", "kiwi starts with k", "kiwi, kiwi"],
    "ends_with_letter": ["book", "The answer is book.", "book ends with k"],
    "word_containing": ["joker", "joker contains k"],
    "word_not_containing": ["tree", "A word that does not contain k is tree.", 'tree is a word without "k"'],
}
WRONG = {
    "more_letters": ["sun has more letters", "harbour has 9 more letters than sun", "harbour is shorter than sun"],
    "first_alphabetically": ["sun comes first", 'The answer is "harbour" and "sun"'],
    "rhyming_word": ["fun rhymes with harbour", "sun does not rhyme with fun", "harbour rhymes with fun"],
    "bigger_number": ["57 is bigger than 342", "342.5", "3420"],
    "smaller_number": ["The smaller number is 57 and 342."],
    "word_after": ["the comes after old", "sold"],
    "any_words_from_category": ["no", "I would say yes", "yes or no"],
    "all_words_from_category": ["yes", "none"],
    "sentence_containing": ["cold", "It is colder."],
    "sentence_not_containing": ["warm", "Cold days"],
    "starts_with_word": ["Winters", "Winters come", "In winters we ski", "Winterses are long"],
    "ends_with_word": ["winters", "Winters are long"],
    "starts_with_letter": ["k", "tree", "kiwi ends with k", "k-i-w-i"],
    "ends_with_letter": ["kiwi", "book starts with k"],
    "word_containing": ["tree", "k", "A word that does not contain k is joker."],
    "word_not_containing": ["joker", "joker is a word without k", "two trees"],
}  # fmt: skip


@pytest.mark.parametrize(("task", "text"), [(task, text) for task, texts in RIGHT.items() for text in texts])
def test_statements_that_name_the_answer_are_right(task, text):
    assert is_right(task, METADATA[task], text)


@pytest.mark.parametrize(("task", "text"), [(task, text) for task, texts in WRONG.items() for text in texts])
def test_statements_that_do_not_are_wrong(task, text):
    assert not is_right(task, METADATA[task], text)


def test_truncation_saves_the_answer_of_a_model_that_goes_on():
    text = "harbour\nQ: Which word is longer, sun or rain?\nA: rain"
    assert not is_right("more_letters", WORDS, text) and is_right("more_letters", WORDS, text, truncate=True)


def test_a_subset_is_scored_by_the_rules_of_its_task_and_an_unknown_name_is_refused():
    assert core_task("first_alphabetically_far_first_letter") == "first_alphabetically"
    assert is_right("more_letters_length_diff_1", WORDS, "harbour")
    with pytest.raises(InputError, match="Did you mean 'more_letters'"):
        is_right("more_leters", WORDS, "x")
    with pytest.raises(InputError, match="metadata has no field 'answer'"):
        is_right("more_letters", {}, "x")


@given(st.integers(0, 999_999))
def test_a_number_in_words_says_the_number(number):
    values = {"hundred": 100, "thousand": 1000} | {
        word: value
        for value, word in enumerate(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
            "seventeen eighteen nineteen".split()
        )
    }
    values |= {w: 10 * k for k, w in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
    for form in number_forms(number)[1:]:
        if form[0].isdigit():
            assert int(form.replace(",", "")) == number
            continue
        total = part = 0
        for word in form.replace("-", " ").split():
            if word == "hundred":
                part *= 100
            elif word == "thousand":
                total, part = part * 1000, 0
            elif word != "and":
                part += values[word]
        assert total + part == number


@given(st.text())
def test_making_a_prediction_plain_twice_changes_nothing(text):
    assert plain(plain(text)) == plain(text)


cells = st.fixed_dictionaries(
    {
        task: st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=6, max_size=6)
        for task in ALL
    }
)  # fmt: skip


@given(cells)
def test_the_figures_are_those_of_loops_over_the_predictions(drawn):
    counts, by = Counts(), defaultdict(list)
    for task, six in drawn.items():
        for (template, index), (n, right) in zip(itertools.product(range(3), (0, 1)), six, strict=True):
            right = min(n, right)
            counts.add(task, template, index, n, right)
            rows = [1] * right + [0] * (n - right)
            for key in (task, (task, "t", template), (task, "i", index)):
                by[key] += rows
    report = aggregate(counts)

    def share(key, digits):
        return round(100 * sum(by[key]) / len(by[key]), digits)

    def off(groups):
        return 100 - sum(max(group) - min(group) for group in groups) / len(groups)

    parts = [
        off([[share((task, "i", k), 2) for k in (0, 1)] for task in ARGUMENT_ORDER]),
        off([[share(f"{task}_{end}", 2) for end in ends] for task, ends in ARGUMENT_CONTENT.items()]),
        off([[share((task, "t", t), 1) for t in range(3)] for task in CORE]),
        off([[share(a, 2), share(b, 2)] for a, b in ADJACENT]),
    ]
    accuracy = sum(share(task, 2) for task in CORE) / 25
    assert report.accuracy == pytest.approx(accuracy)
    assert list(report.parts.values()) == pytest.approx(parts)
    assert report.robustness == pytest.approx(sum(parts) / 4, abs=0.0501)
    assert report.score == pytest.approx(report.accuracy * report.robustness / 100)


def all_outcomes(right):
    return [Outcome(task, t, k, right(task, t, k)) for task in ALL for t in range(3) for k in (0, 1) for _ in range(4)]


def test_a_model_that_is_always_wrong_is_robust_and_scores_nothing():
    report = aggregate(all_outcomes(lambda *where: False))
    assert (report.accuracy, report.robustness, report.score) == (0.0, 100.0, 0.0)
    assert aggregate(all_outcomes(lambda *where: True)).score == 100.0


def test_a_model_that_takes_the_first_option_has_no_robustness_to_order():
    report = aggregate(all_outcomes(lambda task, template, index: index == 0))
    assert report.parts == {
        "argument_order": 0.0, "argument_content": 100.0, "template": 100.0, "adjacent_tasks": 100.0
    }  # fmt: skip
    assert report.robustness == 75.0 and report.score == 37.5


def test_a_part_that_lacks_tasks_is_left_out_and_not_guessed():
    report = aggregate([Outcome("first_word", t, None, True) for t in range(3)])
    assert report.accuracy is None and report.score is None and report.tasks == {"first_word": 100.0}
    assert bootstrap(Counts([Outcome("first_word", 0, None, True)])) == {}


def test_the_interval_holds_the_figure_and_narrows_with_more_examples():
    def width(times):
        outcomes = [Outcome(task, i % 3, i % 2, i % 5 < 2) for task in ALL for i in range(30 * times)]
        found = bootstrap(Counts(outcomes), draws=60)
        assert all(value.low <= value.mean <= value.high for value in found.values())
        return found["accuracy"].high - found["accuracy"].low

    assert width(16) < width(1) / 2


def test_missing_answers_are_left_out_and_counted():
    examples = [Example("first_word", str(i), "p", CHOICES["first_word"] | {"template_id": i}) for i in range(3)]
    scores = LMentry(examples).score([GreedyAnswer("Mary"), GreedyAnswer(None, failure="down"), GreedyAnswer("boat")])
    assert [record["right"] for record in scores.records] == [True, None, False]
    assert scores.figures["accuracy"].left_out == 1 and scores.records[1]["failure"] == "down"


def test_files_are_read_up_to_a_limit_of_each_template(tmp_path):
    examples = {
        str(i): {"input": f"Q{i}", "metadata": {"template_id": i % 3, "answer": "a", "word": "a"}} for i in range(9)
    }
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "first_letter.json").write_text(json.dumps({"settings": {}, "examples": examples}))
    assert len(load_lmentry(tmp_path)) == 9
    assert [example.template for example in load_lmentry(tmp_path, limit=1)] == [0, 1, 2]
    (tmp_path / "data" / "last_letter.json").write_text("[]")
    with pytest.raises(InputError, match="last_letter.json is no LMentry task"):
        load_lmentry(tmp_path)
    with pytest.raises(InputError, match="aviaefrat/lmentry"):
        load_lmentry(tmp_path / "nowhere")


@pytest.fixture(scope="session")
def official(shared_data) -> Path:
    return shared_data / "lmentry"


@pytest.mark.shared
def test_the_scorers_agree_with_the_official_ones(official):
    """At least 98 % of all predictions and 93 % of each task."""
    examples = {}
    for line in (official / "oracle_examples.jsonl").read_text().splitlines():
        row = json.loads(line)
        examples[row["task"], row["id"]] = row["metadata"]
    agreed = defaultdict(list)
    for line in (official / "oracle_scores.jsonl").read_text().splitlines():
        row = json.loads(line)
        ours = is_right(row["task"], examples[row["task"], row["id"]], row["prediction"], truncate=row["truncate"])
        agreed[row["task"]].append(ours == bool(row["score"]))
    everything = [one for of in agreed.values() for one in of]
    assert sum(everything) / len(everything) >= 0.98
    assert {task: sum(of) / len(of) for task, of in agreed.items() if sum(of) / len(of) < 0.93} == {}


@pytest.mark.shared
def test_the_aggregation_is_the_official_one(official):
    for model in json.loads((official / "oracle_lmentry_score.json").read_text())["models"].values():
        counts = Counts()
        for task, of in model["cells"].items():
            for key, (n, right) in of.items():
                template, index = key.split("|")
                counts.add(task, int(template), None if index == "None" else int(index), n, right)
        report = aggregate(counts)
        assert report.tasks == model["task_accuracy"]
        assert {t: list(of.values()) for t, of in report.templates.items()} == model["template_accuracy"]
        assert report.accuracy == pytest.approx(model["accuracy"], abs=1e-9)
        assert report.parts == pytest.approx(model["components"], abs=1e-9)
        assert report.robustness == model["robustness"]
        assert report.score == pytest.approx(model["lmentry_score"], abs=1e-9)
