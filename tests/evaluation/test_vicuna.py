"""Vicuna QA: both protocols, the rules of two games, the blinded export and its way back; the stored reviews of GPT-4
where they are at hand."""

from __future__ import annotations

import html
import json
import re

import pytest
from doubles.anthropic_server import AnthropicServer
from hypothesis import given
from hypothesis import strategies as st

from tuna_trl.build.cost import Budget
from tuna_trl.build.journal import Journal
from tuna_trl.clients.anthropic_messages import AnthropicJudge
from tuna_trl.clients.base import Judge, JudgeProtocol, JudgeRequest, Reply
from tuna_trl.errors import InputError
from tuna_trl.evaluation.candidates import stored_candidate
from tuna_trl.evaluation.runner import run
from tuna_trl.evaluation.vicuna.data import (
    PromptText,
    VicunaQuestion,
    load_answers,
    load_prompts_v1,
    load_prompts_v2,
    load_questions,
    read_jsonl,
)
from tuna_trl.evaluation.vicuna.games import balanced_scores, summarise, summarise_reviews, two_games
from tuna_trl.evaluation.vicuna.human import export_blinded, import_verdicts
from tuna_trl.evaluation.vicuna.protocols import PairV2, ScoresV1, read_scores
from tuna_trl.evaluation.vicuna.runner import CompletionJudge, VicunaQA, play


V2 = PairV2(
    {
        "general": PromptText("Judge.", "Q {question}\nA<{answer_a}>\nB<{answer_b}>"),
        "math": PromptText("Judge maths.", "Q {question}\nR<{ref_answer_1}>\nA<{answer_a}>\nB<{answer_b}>"),
    }
)
V1 = ScoresV1(
    {
        "general": PromptText("Check.", "Q {question}\n1<{answer_1}>\n2<{answer_2}>\nrate"),
        "coding": PromptText("Check.", "Q {question}\n1<{answer_1}>\n2<{answer_2}>\nrate the code"),
    },
    {"Write code.": "coding"},
)
QUESTIONS = [
    VicunaQuestion(1, "Why?", "generic", "unused"), VicunaQuestion(2, "2 + 2?", "math", "4"),
    VicunaQuestion(3, "Write code.", "coding"),
]  # fmt: skip
results = st.sampled_from([0.0, 0.5, 1.0, None])


def judge_of(complete, protocol=V2):
    return CompletionJudge(complete, protocol, name="rule")


def longer(system, user):
    a, b = re.search(r"A<(.*?)>\nB<(.*?)>", user, re.DOTALL).groups()
    return f"Because. [[{'C' if len(a) == len(b) else 'A' if len(a) > len(b) else 'B'}]]"


def games(questions, ours, theirs, judge, **options):
    with Journal(":memory:") as journal:
        return play(questions, ours, theirs, judge, journal=journal, budget=Budget(), show_progress=False, **options)


def test_the_protocols_and_the_judge_are_what_judges_take():
    assert isinstance(V2, JudgeProtocol) and isinstance(V1, JudgeProtocol) and isinstance(judge_of(longer), Judge)
    assert V2.orders((0, 1)) == [(0, 1), (1, 0)]
    assert V2.fingerprint() != PairV2(dict(V2.prompts) | {"general": PromptText("x", "y")}).fingerprint()


@pytest.mark.parametrize(
    ("raw", "scores"),
    [
        ("A is fine. [[A]]", (1.0, 0.0)), ("[[B]]", (0.0, 1.0)), ("[[C]] it is", (0.5, 0.5)),
        ("[[B]] rather than [[A]]", (1.0, 0.0)),  # FastChat looks for [[A]] first
        ('{"explanation": "not [[A]]", "verdict": "[[B]]"}', (0.0, 1.0)),
        ("A is better", None), ("", None), ("[A]", None),
    ],
)  # fmt: skip
def test_a_verdict_of_the_new_protocol_is_read_as_fastchat_reads_it(raw, scores):
    verdict = V2.parse(JudgeRequest([], ("a", "b")), Reply(raw, "stop"))
    assert (verdict.status, verdict.scores) == (("ok", scores) if scores else ("malformed", (None, None)))


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("8 9\nwhy", (8.0, 9.0)), ("8.5, 7\n", (8.5, 7.0)), ("10 10", (10.0, 10.0)), ("8\n9", None), ("8 9 7", None),
        ("Scores: 8 9", None), ("", None), ("(8, 9)", None), ("nan 3", None),
    ],
)  # fmt: skip
def test_a_review_of_2023_has_two_numbers_in_its_first_line(text, scores):
    assert read_scores(text) == scores
    verdict = V1.parse(JudgeRequest([], ("a", "b")), Reply(text, "stop"))
    assert verdict.scores == (scores or (None, None))


def test_a_reply_held_to_the_schema_is_read_too_and_one_that_was_cut_is_not():
    reply = json.dumps({"score_1": 8, "score_2": 6.5, "explanation": "x"})
    assert V1.parse(JudgeRequest([], ("a", "b")), Reply(reply, "stop")).scores == (8.0, 6.5)
    assert V2.parse(JudgeRequest([], ("a", "b")), Reply("[[A]]", "length")).status == "truncated"
    assert V2.parse(JudgeRequest([], ("a", "b")), Reply("[[A]]", "refusal")).status == "refused"


def test_maths_and_code_are_shown_with_a_reference_and_by_their_own_prompts():
    asked = []
    games(QUESTIONS, ["a"] * 3, ["bb"] * 3, judge_of(lambda s, u: asked.append((s, u)) or longer(s, u)))
    assert asked[0] == ("Judge.", "Q Why?\nA<a>\nB<bb>") and asked[1][1] == "Q Why?\nA<bb>\nB<a>"
    assert asked[2] == ("Judge maths.", "Q 2 + 2?\nR<4>\nA<a>\nB<bb>")
    assert asked[4][0] == "Judge."  # coding without a reference
    asked.clear()
    games(QUESTIONS, ["a"] * 3, ["bb"] * 3, judge_of(lambda s, u: asked.append(u) or "1 2", V1), use_scores=True)
    assert [user.rsplit("\n", 1)[1] for user in asked[::2]] == ["rate", "rate", "rate the code"]


def test_the_longer_answer_wins_both_games_wherever_it_stands():
    pairs = games(QUESTIONS, ["long one", "x", "same"], ["short", "longer", "emas"], judge_of(longer))
    assert [(pair.result, pair.consistent) for pair in pairs] == [(1.0, True), (0.0, True), (0.5, True)]


def test_a_judge_that_likes_the_first_place_gives_ties_and_no_consistency():
    summary = summarise(games(QUESTIONS, ["a"] * 3, ["b"] * 3, judge_of(lambda s, u: "[[A]]")))
    assert (summary.win, summary.tie, summary.lose) == (0, 3, 0)
    assert summary.position_consistency.mean == 0.0 and summary.adjusted_win_rate.mean == 0.5


@pytest.mark.parametrize("protocol", [V2, V1], ids=["v2", "v1"])
def test_claude_plays_both_protocols_within_a_budget(protocol):
    """Through the real SDK: a judge that is held to a schema says the same in JSON, and pays."""
    fields = {"verdict": "[[A]]"} if protocol is V2 else {"score_1": 9, "score_2": 4}

    def answer(body):
        assert set(fields) < set(body["output_config"]["format"]["schema"]["properties"])
        ours_first = body["messages"][0]["content"].index("mine") < body["messages"][0]["content"].index("their")
        swapped = {"verdict": "[[B]]"} if protocol is V2 else {"score_1": 4, "score_2": 9}
        return json.dumps((fields if ours_first else swapped) | {"explanation": "x"})

    with AnthropicServer(answer) as server, Journal(":memory:") as journal:
        judge = AnthropicJudge(protocol=protocol, base_url=server.url, api_key="k")
        budget = Budget(5.0)
        options = dict(journal=journal, budget=budget, show_progress=False, use_scores=protocol is V1)
        pairs = play(QUESTIONS, ["mine"] * 3, ["their"] * 3, judge, **options)
        assert len(server.requests) == 6
    assert [(pair.result, pair.consistent) for pair in pairs] == [(1.0, True)] * 3
    assert 0 < budget.spent < 5


def test_what_cannot_be_read_drops_its_pair_and_is_counted_and_not_asked_again():
    asked = []
    judge = judge_of(lambda s, u: asked.append(u) or ("no idea" if "Why" in u else longer(s, u)))
    pairs = games(QUESTIONS, ["long one"] * 2 + [None], ["x"] * 3, judge)
    summary = summarise(pairs)
    assert (summary.win, summary.dropped, summary.parse_errors, summary.games) == (1, 2, 4, 6) and len(asked) == 4


@given(results, results)
def test_swapping_the_models_mirrors_the_result(first, second):
    def mirrored(value):
        return None if value is None else 1 - value

    pair, other = two_games(1, first, second), two_games(1, mirrored(first), mirrored(second))
    assert other.result == mirrored(pair.result) and other.consistent == pair.consistent
    if pair.result in (0.0, 1.0):
        assert first == second == pair.result


@given(st.lists(st.tuples(results, results), max_size=30))
def test_counts_and_rates_add_up(drawn):
    summary = summarise([two_games(i, a, b) for i, (a, b) in enumerate(drawn)])
    kept = summary.win + summary.tie + summary.lose
    assert kept + summary.dropped == len(drawn)
    assert summary.parse_errors == sum(g is None for both in drawn for g in both)
    if kept:
        assert summary.win_rate == summary.win / kept
        assert summary.adjusted_win_rate.mean == pytest.approx((summary.win + summary.tie / 2) / kept)
    else:
        assert summary.win_rate is None and summary.adjusted_win_rate.mean is None


def test_scores_are_averaged_over_both_orders_before_they_are_compared():
    assert balanced_scores(1, (9, 7), (7, 8)).result == 1.0 and balanced_scores(1, (9, 7), (7, 8)).consistent is False
    assert balanced_scores(1, (9, 7), (7, 9)).result == 0.5 and balanced_scores(1, None, (7, 9)).result is None


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_both_layouts_of_files_are_read(tmp_path):
    write(tmp_path / "old" / "question.jsonl", [{"question_id": 7, "text": "Why?", "category": "math"}])
    write(
        tmp_path / "new" / "vicuna_bench" / "question.jsonl",
        [{"question_id": 7, "category": "math", "turns": ["Why?"]}],
    )
    write(
        tmp_path / "new" / "vicuna_bench" / "reference_answer" / "gpt-4.jsonl",
        [{"question_id": 7, "choices": [{"turns": ["So."]}]}],
    )
    assert load_questions(tmp_path / "old") == [VicunaQuestion(7, "Why?", "math")]
    assert load_questions(tmp_path / "new" / "vicuna_bench") == [VicunaQuestion(7, "Why?", "math", "So.")]
    names = ("pair-v2", "pair-math-v1", "single-v1")
    prompts = [{"name": name, "system_prompt": name, "prompt_template": "{question}"} for name in names]
    write(tmp_path / "new" / "judge_prompts.jsonl", prompts)
    assert load_prompts_v2(tmp_path / "new" / "vicuna_bench")["math"].system == "pair-math-v1"
    old = {"category": "general", "system_prompt": "s", "prompt_template": "{question} {prompt}"}
    write(tmp_path / "old" / "prompt.jsonl", [old | {"defaults": {"prompt": "use {braces}"}}])
    assert load_prompts_v1(tmp_path / "old")["general"].template.format(question="q") == "q use {braces}"


def test_files_that_are_something_else_are_named(tmp_path):
    for load in (load_questions, load_prompts_v2, load_prompts_v1):
        with pytest.raises(InputError, match=str(tmp_path)):
            load(tmp_path)
    path = write(tmp_path / "a.jsonl", [{"question_id": 1}])
    with pytest.raises(InputError, match="neither `text`"):
        load_answers(path)
    path.write_text("{torn")
    with pytest.raises(InputError, match="line 1: no JSON"):
        load_answers(path)


def test_stored_answers_play_against_each_other_and_a_rerun_asks_nothing(tmp_path):
    asked = []
    judge = judge_of(lambda s, u: asked.append(u) or longer(s, u))
    for _ in range(2):
        candidates = [
            stored_candidate("short.jsonl", dict.fromkeys((1, 2, 3), "x")),
            stored_candidate("long.jsonl", {1: "longer", 2: "longer", 3: "x"}),
        ]
        evaluation = run(VicunaQA(QUESTIONS, judge), candidates, tmp_path / "out", show_progress=False)
        first, second = evaluation.models
        assert first.scores.figures == {} and second.scores.details["games"]["win"] == 2
        assert second.scores.figures["adjusted_win_rate"].mean == pytest.approx(2.5 / 3)
    assert len(asked) == 6
    rows = read_jsonl(tmp_path / "out" / "predictions" / "long.jsonl")
    assert [row["result"] for row in rows] == [1.0, 1.0, 0.5] and load_answers(
        tmp_path / "out" / "predictions" / "long.jsonl"
    ) == {1: "longer", 2: "longer", 3: "x"}


def test_an_opponent_that_lacks_answers_is_refused():
    with pytest.raises(InputError, match="lack the questions"):
        VicunaQA(QUESTIONS, judge_of(longer), against=("them", {1: "x"}))


MODELS = (
    ("model-one", {1: "one's <b>answer</b>", 2: "</script><script>x", 3: "c"}),
    ("model-two", {1: "t1", 2: "t2", 3: "t3"}),
)


def test_the_export_names_no_model_and_its_page_holds_every_text(tmp_path):
    export_blinded(QUESTIONS, *MODELS, tmp_path, seed=3)
    shown = (tmp_path / "pairs.jsonl").read_text() + (tmp_path / "pairs.html").read_text()
    assert "model-one" not in shown and "model-two" not in shown and "question_id" not in shown
    page = (tmp_path / "pairs.html").read_text()
    inside = re.search(r'<script type="application/json" id="pairs">(.*?)</script>', page, re.DOTALL).group(1)
    assert json.loads(html.unescape(inside)) == read_jsonl(tmp_path / "pairs.jsonl")
    assert "http" not in page.replace("http-equiv", "")  # needs no network


@given(st.integers(0, 10_000))
def test_verdicts_find_their_way_back_through_any_shuffle(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("blind")
    export_blinded(QUESTIONS, *MODELS, folder, seed=seed)
    wanted = {"Why?": 1.0, "2 + 2?": 0.0, "Write code.": 0.5}  # from the side of the first model
    answers = {q.text: MODELS[0][1][q.id] for q in QUESTIONS}
    rows = []
    for pair in read_jsonl(folder / "pairs.jsonl"):
        ours_left = pair["left"] == answers[pair["question"]]
        result = wanted[pair["question"]]
        verdict = "tie" if result == 0.5 else "left" if (result == 1.0) == ours_left else "right"
        rows.append({"id": pair["id"], "verdict": verdict})
    found = import_verdicts(folder / "key.json", [write(folder / "v.jsonl", rows)])
    assert (found.summary.win, found.summary.tie, found.summary.lose) == (1, 1, 1)
    assert found.models == ("model-one", "model-two") and found.missing == 0 and found.agreement is None


def test_the_sides_are_shuffled():
    import tempfile
    from pathlib import Path

    many = [VicunaQuestion(i, f"q{i}", "x") for i in range(200)]
    both = [(name, {q.id: f"{name} {q.id}" for q in many}) for name in ("a", "b")]
    with tempfile.TemporaryDirectory() as folder:
        export_blinded(many, *both, folder)
        key = json.loads((Path(folder) / "key.json").read_text())
        order = [pair["question"] for pair in read_jsonl(Path(folder) / "pairs.jsonl")]
    left = sum(pair["left"] for pair in key["pairs"].values())
    assert 60 < left < 140 and order != [q.text for q in many]


def test_annotators_are_counted_by_majority_and_their_agreement_is_told(tmp_path):
    export_blinded(QUESTIONS[:1], *MODELS, tmp_path)
    (pair,) = read_jsonl(tmp_path / "pairs.jsonl")
    said = ["left", "left", "right"]
    files = [write(tmp_path / f"{i}.jsonl", [{"id": pair["id"], "verdict": v}]) for i, v in enumerate(said)]
    found = import_verdicts(tmp_path / "key.json", files)
    assert found.agreement == pytest.approx(1 / 3) and found.summary.tie == 0
    assert import_verdicts(tmp_path / "key.json", [files[0], files[2]]).summary.tie == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "x", "verdict": "left"}], "does not know the pair"),
        ([{"id": None, "verdict": "left"}], "does not know the pair"),
        ([{"verdict": "A"}, {}], "expected left, right or tie"),
        ([{"verdict": "tie"}, {"verdict": "tie"}], "judged twice"),
    ],
)
def test_verdicts_that_fit_no_key_are_refused(tmp_path, rows, message):
    export_blinded(QUESTIONS[:1], *MODELS, tmp_path)
    (pair,) = read_jsonl(tmp_path / "pairs.jsonl")
    path = write(tmp_path / "v.jsonl", [{"id": pair["id"]} | row for row in rows])
    with pytest.raises(InputError, match=message):
        import_verdicts(tmp_path / "key.json", [path])


def test_reviews_count_by_their_stored_scores_else_by_their_text():
    reviews = [
        {"text": "9 7\n"}, {"text": "First, I solve it.", "score": [1, 6]}, {"text": "5 5", "score": [5.0, 5.0]},
        {"text": "hm", "score": [-1, -1]}, {"text": "no numbers"},
    ]  # fmt: skip
    summary = summarise_reviews(reviews)
    assert (summary.win, summary.tie, summary.lose, summary.totals) == (1, 1, 1, (15.0, 18.0))
    assert (summary.parse_errors, summary.by_hand) == (2, 1)
    with pytest.raises(InputError, match="Review 0 has neither"):
        summarise_reviews([{}])


@pytest.mark.shared
def test_the_stored_reviews_give_their_counts_and_totals(shared_data):
    """13 files, counted by a loop over the stored scores. The texts are parsed anew: all but question 69, whose
    scores FastChat's authors read by hand, say in their first line what is stored."""
    files = sorted((shared_data / "vicuna_qa" / "review").glob("*.jsonl"))
    assert len(files) == 13
    for file in files:
        reviews = read_jsonl(file)
        odd = [r["question_id"] for r in reviews if read_scores(r["text"]) != tuple(r["score"])]
        assert set(odd) <= {69}, file.name
        summary = summarise_reviews(reviews)
        stored = [review["score"] for review in reviews]
        assert summary.win == sum(a > b for a, b in stored) and summary.lose == sum(a < b for a, b in stored)
        assert summary.tie == len(stored) - summary.win - summary.lose
        assert (summary.parse_errors, summary.by_hand) == (0, len(odd))
        assert summary.totals == (sum(a for a, _ in stored), sum(b for _, b in stored))


@pytest.mark.shared
def test_the_real_prompts_and_questions_fit_the_protocols(shared_data):
    folder = shared_data / "vicuna_qa"
    questions = load_questions(folder)
    new = PairV2(load_prompts_v2(folder))
    old = ScoresV1(load_prompts_v1(folder), {q.text: q.category for q in questions})
    answers = load_answers(folder / "answer" / "answer_gpt35.jsonl")
    for question in questions:
        texts = (answers[question.id], "other {answer}")
        request = JudgeRequest([{"role": "user", "content": question.text}], texts, question.reference)
        for protocol in (new, old):
            _, user = protocol.render(request)
            assert question.text in user and all(text in user for text in texts)
