"""Ranking given responses: against one plain forward pass a response, and against a build's own log-probs."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from datasets import Dataset, DatasetDict
from doubles.vllm_server import VllmLike
from hypothesis import given, settings
from ranked_rows import rows as any_ranked_row
from scipy.stats import rankdata
from tiny import CHATML, random_llama, random_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tuna_trl import scoring
from tuna_trl.build import rank
from tuna_trl.build.given import given_rows
from tuna_trl.build.rank import (
    RankConfig,
    count_unranked,
    describe_unranked,
    rank_by_teacher,
    rank_given,
    refuse_anthropic,
)
from tuna_trl.build.teacher import TeacherBuildConfig, build_teacher_ranked
from tuna_trl.clients.local import TransformersSampler
from tuna_trl.clients.openai_compatible import OpenAICompatibleSampler
from tuna_trl.clients.prompt_logprobs import PromptScorer
from tuna_trl.data.schema import check_row
from tuna_trl.errors import BuildError, InputError, SchemaError


ROWS = [
    {"instruction": "Name a sea.", "input": "", "outputs": ["The Baltic.", "Water", "The Baltic."]},
    {
        "instruction": "Translate.",
        "input": "Haus",
        "outputs": [{"output": "house", "generator": "m"}, {"text": "home"}],
    },
    {"prompt": "Why?", "responses": ["Because.", "", "  \n"]},
    {
        "prompt": [{"role": "user", "content": "Hi"}],
        "responses": [{"content": "Hello", "finish_reason": "length"}, "Yo"],
    },
]


def quiet(**values):
    return RankConfig(**{"show_progress": False, **values})


def expected(model, tokenizer, messages, text, cut=False):
    """(sum of log-probs, tokens) of one response, the end token included, by one plain forward pass in float64."""
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    full = tokenizer(prompt + text + ("" if cut else "<|im_end|>"), add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([full])).logits[0, len(ids) - 1 : -1].double()
    logprobs = logits.log_softmax(-1).gather(-1, torch.tensor(full[len(ids) :])[:, None])
    return float(logprobs.sum()), len(logprobs)


def by_index(row):
    return sorted(row["responses"], key=lambda response: response["index"])


@pytest.fixture
def word_teacher():
    """A model and a tokenizer whose samples are tokenised as they were drawn: whole words, and no special token but
    the end is ever drawn."""
    words = [f"{a}{b}" for a in "bdfgklmnprst" for b in "aeiou"]
    special = ["<|im_start|>", "<|im_end|>", "<|pad|>", "<unk>"]
    vocab = {word: i for i, word in enumerate([*special, "user", "assistant", *words])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = CHATML
    model = random_model("phi", len(tokenizer))
    bias = model.get_output_embeddings().bias
    with torch.no_grad():
        bias[torch.tensor([0, 2, 3, 4, 5])] = -1e4
        bias[1] += 2.5  # so that some end before they are cut
    return model, tokenizer


class TestScores:
    @pytest.mark.parametrize("beta", [1.0, 0.0, 0.5])
    def test_they_are_those_of_one_plain_forward_pass(self, beta, tiny_llama, tiny_tokenizer):
        plain = copy.deepcopy(tiny_llama)
        config = quiet(length_exponent=beta, rank_truncated=True, batch_size=2)
        ranked = rank_by_teacher(ROWS, tiny_llama, tiny_tokenizer, config, name="tiny")["train"]
        prompts = ["Name a sea.", "Translate.\n\nHaus", "Why?", "Hi"]
        assert [row["prompt"] for row in ranked] == [[{"role": "user", "content": p}] for p in prompts]
        for row in ranked:
            for response in row["responses"]:
                cut = response["finish_reason"] == "length"
                total, length = expected(plain, tiny_tokenizer, row["prompt"], response["content"], cut)
                if response["content"].strip():
                    assert response["num_tokens"] == length
                    assert response["logprob"] == pytest.approx(total, abs=1e-4)
                    assert response["score"] == pytest.approx(total / length**beta, abs=1e-4)
                else:
                    assert (response["logprob"], response["score"], response["rank"]) == (None, None, None)
            scored = [r for r in row["responses"] if r["score"] is not None]
            assert [r["rank"] for r in scored] == rankdata([-r["score"] for r in scored], "min").tolist()

    def test_a_builds_own_output_keeps_its_log_probs_and_ranks(self, word_teacher):
        model, tokenizer = word_teacher
        teacher = TransformersSampler(model, tokenizer, name="words")
        prompts = [{"prompt": text} for text in ("ba da", "fa", "ga ke li mo", "nu", "pa re si to", "ta")]
        build = TeacherBuildConfig(max_new_tokens=20, num_responses=5, show_progress=False)
        built = build_teacher_ranked(prompts, teacher, build)
        again = rank_by_teacher(built, model, tokenizer, quiet(batch_size=3), name="words")
        statuses, compared = set(), 0
        for old, new in zip(built["train"], again["train"], strict=True):
            statuses.add(old["status"])
            kept = ("prompt", "ranking_method", "ranker", "status", "num_responses", "num_ties")
            assert {name: new[name] for name in kept} == {name: old[name] for name in kept}
            for was, now in zip(old["responses"], new["responses"], strict=True):
                assert now["logprob"] == pytest.approx(was["logprob"], abs=1e-4)
                assert {**now, "logprob": 0, "score": 0} == {**was, "logprob": 0, "score": 0}
                compared += now["rank"] is not None
            assert new["provenance"]["responses"] == old["provenance"]
        assert "ok" in statuses and "partial" in statuses and compared > 10

    def test_the_batch_does_not_change_a_rank(self, tiny_llama, tiny_tokenizer):
        results = [
            rank_by_teacher(
                ROWS, tiny_llama, tiny_tokenizer, quiet(batch_size=batch, bucket_size=bucket), name="tiny"
            )["train"]
            for batch, bucket in ((1, 1), (3, 2), (8, 64))
        ]
        for rows in zip(*results, strict=True):
            for responses in zip(*(row["responses"] for row in rows), strict=True):
                assert len({(r["rank"], r["content"], r["num_tokens"]) for r in responses}) == 1

    def test_scores_within_tie_delta_share_a_rank(self, tiny_llama, tiny_tokenizer):
        row = rank_by_teacher(ROWS[1:2], tiny_llama, tiny_tokenizer, quiet(tie_delta=1e6), name="t")["train"][0]
        assert [r["rank"] for r in row["responses"]] == [1, 1] and row["num_ties"] == 1


def test_a_server_that_scores_its_prompt_ranks_as_the_same_weights_here_do(word_teacher):
    model, tokenizer = word_teacher
    texts = ["ba da ke", "fa", "ga ke li mo pa", "ba da ke", "re si"]
    rows = [{"prompt": f"{word} nu", "responses": texts[k % 3 :]} for k, word in enumerate(("ta", "ko", "mi", "so"))]
    rows[1]["responses"] = [{"content": text, "finish_reason": "length"} for text in texts]
    with VllmLike(model, tokenizer) as server:
        for include_eos in (True, False):
            scorer = PromptScorer(OpenAICompatibleSampler("m", server.url, include_eos=include_eos))
            remote = rank_given(rows, scorer, quiet(rank_truncated=True))["train"]
            if include_eos:
                kept = remote.to_list()
    local = rank_by_teacher(rows, model, tokenizer, quiet(rank_truncated=True), name="m")["train"]
    for here, there in zip(local, kept, strict=True):
        for mine, theirs in zip(here["responses"], there["responses"], strict=True):
            assert theirs["logprob"] == pytest.approx(mine["logprob"], abs=1e-4)
            assert {**theirs, "logprob": 0, "score": 0} == {**mine, "logprob": 0, "score": 0}
    assert by_index(remote[0])[1]["num_tokens"] == by_index(kept[0])[1]["num_tokens"] - 1
    with VllmLike(model, tokenizer, shift=0.4) as server:
        with pytest.raises(BuildError, match="are wrong"):
            rank_given(rows, PromptScorer(OpenAICompatibleSampler("m", server.url)), quiet())


class TestUnranked:
    def test_each_reason_is_counted_and_said(self, tiny_llama, tiny_tokenizer, capsys):
        rows = [*ROWS, {"prompt": "Long?", "responses": ["a b c d e " * 200, "short", "shorter"]}]
        ranked = rank_by_teacher(rows, tiny_llama, tiny_tokenizer, RankConfig(), name="tiny")
        assert count_unranked(ranked) == {"empty": 2, "cut": 1, "too_long": 1}
        line = describe_unranked(ranked)
        assert line.startswith("4 of 13 responses have no rank: 2 empty, 1 too long") and "1 cut by" in line
        assert line in capsys.readouterr().err
        assert [row["status"] for row in ranked["train"]] == ["ok", "ok", "failed", "truncated", "partial"]
        for row in ranked["train"]:
            check_row(row)
        cut = by_index(ranked["train"][3])[0]
        assert cut["logprob"] < 0 and cut["score"] is None and cut["rank"] is None

    def test_max_length_counts_prompt_and_response(self, tiny_llama, tiny_tokenizer):
        whole = rank_by_teacher(ROWS[:1], tiny_llama, tiny_tokenizer, quiet(), name="tiny")["train"][0]
        prompt = len(tiny_tokenizer.apply_chat_template(whole["prompt"], add_generation_prompt=True)["input_ids"])
        most = prompt + by_index(whole)[1]["num_tokens"] + 1  # and the newline behind the end token
        for limit, fits in ((most, True), (most - 1, False)):
            ranked = rank_by_teacher(ROWS[:1], tiny_llama, tiny_tokenizer, quiet(max_length=limit), name="tiny")
            assert (by_index(ranked["train"][0])[1]["rank"] is not None) == fits

    def test_an_empty_response_is_ranked_only_where_its_model_ended_it(self, tiny_llama, tiny_tokenizer):
        empty = [{"content": "", "finish_reason": reason} for reason in ("stop", None)]
        row = rank_by_teacher([{"prompt": "a", "responses": [*empty, "b"]}], tiny_llama, tiny_tokenizer, quiet())
        ended, absent, _ = by_index(row["train"][0])
        assert ended["num_tokens"] == 1 and ended["rank"] is not None
        assert absent["num_tokens"] is None and absent["rank"] is None

    def test_nothing_is_said_when_all_have_a_rank(self, tiny_llama, tiny_tokenizer):
        assert describe_unranked(rank_by_teacher(ROWS[:2], tiny_llama, tiny_tokenizer, quiet(), name="tiny")) == ""

    def test_equal_texts_share_score_and_rank(self, tiny_llama, tiny_tokenizer):
        row = rank_by_teacher(ROWS[:1], tiny_llama, tiny_tokenizer, quiet(), name="tiny")["train"][0]
        first, _, third = by_index(row)
        assert (first["rank"], first["score"]) == (third["rank"], third["score"])
        assert third["duplicate_of"] == 0 and first["duplicate_of"] is None

    def test_a_log_prob_that_is_not_finite_is_never_a_score(self, tiny_llama, tiny_tokenizer):
        with torch.no_grad():
            tiny_llama.lm_head.weight[tiny_tokenizer.convert_tokens_to_ids("H")] = math.nan
        ranked = rank_by_teacher(ROWS, tiny_llama, tiny_tokenizer, quiet(), name="tiny")
        assert {r["score"] for row in ranked["train"] for r in row["responses"]} == {None}
        assert count_unranked(ranked) == {"not_finite": 8, "empty": 2}


class TestOtherTeachers:
    @pytest.fixture
    def ranked(self, tiny_llama, tiny_tokenizer):
        return rank_by_teacher(ROWS[:2], tiny_llama, tiny_tokenizer, quiet(), name="tiny")

    def test_the_same_teacher_may_rank_its_rows_again(self, ranked, tiny_llama, tiny_tokenizer):
        again = rank_by_teacher(ranked, tiny_llama, tiny_tokenizer, quiet(), name="tiny")
        assert again["train"].to_list() == ranked["train"].to_list()

    @pytest.mark.parametrize("name", ["other", "tiny"])
    def test_another_one_is_refused_unless_ranks_are_overwritten(self, name, ranked, tiny_tokenizer):
        other = random_llama(len(tiny_tokenizer), seed=5)
        with pytest.raises(InputError, match=r"2 by 'tiny'.*--overwrite-ranks"):
            rank_by_teacher(ranked, other, tiny_tokenizer, quiet(), name=name)
        new = rank_by_teacher(ranked, other, tiny_tokenizer, quiet(overwrite_ranks=True), name=name)
        fresh = rank_by_teacher(ROWS[:2], other, tiny_tokenizer, quiet(), name=name)
        assert new["train"].to_list() == fresh["train"].to_list()

    def test_other_ways_of_ranking_are_no_teachers(self, ranked, tiny_tokenizer):
        judged = ranked["train"].map(lambda row: {"ranking_method": "judge", "ranker": "reference"})
        other = random_llama(len(tiny_tokenizer), seed=5)
        new = rank_by_teacher(judged, other, tiny_tokenizer, quiet(), name="other")["train"]
        assert set(new["ranker"]) == {"other"} and set(new["ranking_method"]) == {"teacher_logprob"}

    @pytest.mark.parametrize("name", ["claude", "claude-opus-5-5", "anthropic/claude-sonnet-5-5"])
    def test_anthropic_as_a_teacher_is_an_error_that_says_why(self, name):
        with pytest.raises(InputError, match="returns no log-probabilities.*build judge --judge claude"):
            refuse_anthropic(name)

    def test_local_names_are_no_anthropic_models(self):
        refuse_anthropic("embedded")
        refuse_anthropic("someone/claudette-7b")


class TestJournal:
    def test_a_run_that_was_killed_goes_on_and_ends_as_one_that_was_not(
        self, tmp_path, monkeypatch, tiny_llama, tiny_tokenizer
    ):
        whole = rank_by_teacher(ROWS, tiny_llama, tiny_tokenizer, quiet(bucket_size=1), name="tiny")
        calls, real = [], scoring.score_rows

        def dying(model, tokenizer, rows, **kwargs):
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(rows[0]["prompt"])
            return real(model, tokenizer, rows, **kwargs)

        config = quiet(bucket_size=1, journal=tmp_path / "j.sqlite")
        monkeypatch.setattr(scoring, "score_rows", dying)
        with pytest.raises(KeyboardInterrupt):
            rank_by_teacher(ROWS, tiny_llama, tiny_tokenizer, config, name="tiny")
        before = list(calls)
        monkeypatch.setattr(
            scoring, "score_rows", lambda m, t, rows, **k: calls.append(rows[0]["prompt"]) or real(m, t, rows, **k)
        )
        resumed = rank_by_teacher(ROWS, tiny_llama, tiny_tokenizer, config, name="tiny")
        assert len(before) == 2 and len(calls) == 4 and len({str(call) for call in calls}) == 4
        assert resumed["train"].to_list() == whole["train"].to_list()
        rank_by_teacher(ROWS, tiny_llama, tiny_tokenizer, config, name="tiny")
        assert len(calls) == 4

    @pytest.mark.parametrize("change", ["length_exponent", "tie_delta", "rank_truncated"])
    def test_what_only_ranks_is_free(self, change, tmp_path, monkeypatch, tiny_llama, tiny_tokenizer):
        journal = tmp_path / "j.sqlite"
        rank_by_teacher(ROWS, tiny_llama, tiny_tokenizer, quiet(journal=journal), name="tiny")
        monkeypatch.setattr(scoring, "score_rows", lambda *args, **kwargs: pytest.fail("scored again"))
        value = True if change == "rank_truncated" else 0.5
        ranked = rank_by_teacher(
            ROWS, tiny_llama, tiny_tokenizer, quiet(journal=journal, **{change: value}), name="tiny"
        )
        assert ranked["train"][0]["provenance"][change] == value

    def test_another_teacher_or_text_or_limit_is_scored_anew(self, tmp_path, monkeypatch, tiny_llama, tiny_tokenizer):
        asked, real = [], scoring.score_rows
        monkeypatch.setattr(scoring, "score_rows", lambda *args, **k: asked.append(1) or real(*args, **k))
        journal = tmp_path / "j.sqlite"
        changed = [{**ROWS[0], "outputs": ["The Baltic.", "Water", "The North Sea."]}]
        for rows, seed, more in (
            (ROWS[:1], 0, {}),
            (changed, 0, {}),
            (ROWS[:1], 5, {}),
            (ROWS[:1], 0, {"max_length": 40}),
        ):
            model = random_llama(len(tiny_tokenizer), seed=seed)
            rank_by_teacher(rows, model, tiny_tokenizer, quiet(journal=journal, **more), name="tiny")
        assert len(asked) == 4


class TestRows:
    def test_splits_and_limit(self, tiny_llama, tiny_tokenizer):
        data = DatasetDict({"a": Dataset.from_list(ROWS[:1] * 3), "b": Dataset.from_list(ROWS[1:2])})
        ranked = rank_by_teacher(data, tiny_llama, tiny_tokenizer, quiet(limit=2), name="tiny")
        assert {name: len(part) for name, part in ranked.items()} == {"a": 2, "b": 1}

    def test_the_rows_are_left_alone_and_nothing_of_this_machine_is_kept(self, tiny_llama, tiny_tokenizer, tmp_path):
        rows = copy.deepcopy(ROWS)
        config = quiet(journal=tmp_path / "j.sqlite")
        ranked = rank_by_teacher(rows, tiny_llama, tiny_tokenizer, config, name="tiny")
        assert rows == ROWS
        assert str(tmp_path) not in json.dumps(ranked["train"].to_list())

    def test_who_wrote_a_response_is_kept(self, tiny_llama, tiny_tokenizer):
        row = rank_by_teacher(ROWS[1:2], tiny_llama, tiny_tokenizer, quiet(), name="tiny")["train"][0]
        assert [(r["content"], r["model"], r["source"]) for r in by_index(row)] == [
            ("house", "m", "dataset"),
            ("home", None, "dataset"),
        ]

    @settings(max_examples=40, deadline=None)
    @given(row=any_ranked_row())
    def test_a_ranked_row_is_read_in_the_order_it_was_sampled_in(self, row):
        if not any(m["content"].strip() for m in row["prompt"]) or row["prompt"][-1]["role"] == "assistant":
            with pytest.raises(SchemaError):
                given_rows([row])
            return
        (found,) = given_rows([row])
        assert [r["content"] for r in found.responses] == [r["content"] for r in by_index(row)]
        assert (found.teacher is None) == (row["ranking_method"] != "teacher_logprob")
        assert (found.prompt, found.reference, found.source) == (row["prompt"], row["reference"], row["source"])

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("text", "row 0: expected a dict"),
            ({"promt": "a", "responses": ["b"]}, "neither 'prompt' nor 'instruction'.*Did you mean 'promt'"),
            ({"prompt": "a", "answers": ["b"]}, "neither 'responses' nor 'outputs'"),
            ({"prompt": "a", "responses": []}, "column 'responses' is an empty list"),
            ({"prompt": "a", "responses": "b"}, "must be a list of strings or dicts, got str. A file with one"),
            ({"prompt": "a", "outputs": ["b", 3]}, r"column 'outputs\[1\]' must be a string or a dict, got int"),
            ({"prompt": "a", "responses": [{"rank": 1}]}, "has none of content, text, output"),
            ({"prompt": "a", "responses": [{"text": 3}]}, "'content' must be a string, got int"),
            ({"prompt": "a", "responses": [{"text": "b", "index": 1}, "c"]}, "the same 'index'"),
            ({"prompt": "  ", "responses": ["b"]}, "column 'prompt' is empty"),
            ({"instruction": "a", "input": 3, "responses": ["b"]}, "'instruction' and 'input' must be strings"),
            ({"prompt": [{"role": "assistant", "content": "a"}], "responses": ["b"]}, "ends with an assistant"),
            ({"prompt": "a", "responses": ["b"], "reference": 3}, "column 'reference' must be a string or None"),
        ],
    )
    def test_a_bad_row_is_named(self, row, message):
        with pytest.raises(SchemaError, match=message):
            given_rows([row])

    @pytest.mark.parametrize("dataset", ["text", {"prompt": "a", "responses": ["b"]}, {}, 3, [], {"train": []}])
    def test_what_is_no_dataset_is_refused(self, dataset, tiny_llama, tiny_tokenizer):
        with pytest.raises(InputError, match="`dataset`"):
            rank_by_teacher(dataset, tiny_llama, tiny_tokenizer, quiet(), name="tiny")

    @pytest.mark.parametrize(
        "values",
        [{"length_exponent": -1}, {"tie_delta": math.nan}, {"batch_size": 0}, {"bucket_size": 0}, {"limit": 0}],
    )
    def test_values_out_of_range_are_refused_by_name(self, values):
        with pytest.raises(InputError, match=f"`{next(iter(values))}` is"):
            RankConfig(**values)

    def test_every_reason_can_be_said(self):
        assert set(rank.REASONS) == {"empty", "too_long", "cut", "not_finite", "rewritten", "unanswered"}
