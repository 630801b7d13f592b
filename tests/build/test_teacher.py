"""Probabilistic ranking against the formula written as loops, and end to end with a tiny model."""

from __future__ import annotations

import json
import math

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from doubles.samplers import SeedSampler
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_trl._version import __version__
from tuna_trl.build.teacher import TeacherBuildConfig, build_teacher_ranked
from tuna_trl.clients.base import Sample
from tuna_trl.clients.local import TransformersSampler
from tuna_trl.data.schema import ranked_features
from tuna_trl.errors import InputError, SchemaError


logprob = st.floats(-20, 0) | st.sampled_from([math.nan, -math.inf, math.inf, -9999.0, -10_000.0])
samples = st.builds(
    Sample,
    text=st.sampled_from(["a", "b", " a ", "c", ""]),
    token_logprobs=st.lists(st.floats(-20, 0), min_size=1, max_size=5).map(tuple)
    | st.lists(logprob, max_size=4).map(tuple),
    finish_reason=st.sampled_from(["stop", "stop", "length"]),
)


def build(sets, **overrides):
    """Rows of prompts `0`, `1`, ... whose responses are `sets[0]`, `sets[1]`, ..."""
    sampler = SeedSampler(lambda text, temperature, seed, place: sets[int(text)][place])
    config = TeacherBuildConfig(**({"num_responses": len(sets[0]), "show_progress": False} | overrides))
    rows = [{"prompt": str(i)} for i in range(len(sets))]
    return list(build_teacher_ranked(rows, sampler, config)["train"])


def expected_row(responses, length_exponent, rank_truncated, tie_delta):
    """Scores, ranks and status of one row, from the words of the docstring."""
    scores, by_text = [], {}
    for sample in responses:
        values, score = sample.token_logprobs, None
        sound = len(values) > 0 and all(math.isfinite(v) and v > -9999 for v in values)
        if sound and (rank_truncated or sample.finish_reason == "stop"):
            score = math.fsum(values) / len(values) ** length_exponent
            score = by_text.setdefault(" ".join(sample.text.split()), score)
        scores.append(score)
    ranked = sorted((score for score in scores if score is not None), reverse=True)
    heads = []  # the first score of each group of ties
    for score in ranked:
        if not heads or heads[-1] - score > tie_delta:
            heads.append(score)
    ranks = []
    for score in scores:
        if score is None:
            ranks.append(None)
            continue
        head = min(h for h in heads if h >= score)
        ranks.append(1 + sum(other > head for other in ranked))
    if len(ranked) == len(responses):
        status = "ok"
    elif len(ranked) >= 2:
        status = "partial"
    else:
        status = "truncated" if any(s.finish_reason == "length" for s in responses) else "failed"
    return scores, ranks, status


@settings(max_examples=60, deadline=None)
@given(
    sets=st.lists(st.lists(samples, min_size=4, max_size=4), min_size=1, max_size=4),
    length_exponent=st.sampled_from([0.0, 0.6, 1.0, 1.3]),
    rank_truncated=st.booleans(),
    tie_delta=st.sampled_from([0.0, 2.5]),
)
def test_scores_ranks_and_status_are_the_formulas(sets, length_exponent, rank_truncated, tie_delta):
    rule = dict(length_exponent=length_exponent, rank_truncated=rank_truncated, tie_delta=tie_delta)
    for row, responses in zip(build(sets, **rule), sets, strict=True):
        scores, ranks, status = expected_row(responses, **rule)
        found = sorted(row["responses"], key=lambda response: response["index"])
        assert [r["score"] for r in found] == pytest.approx(scores, abs=1e-9)
        assert [r["rank"] for r in found] == ranks
        assert row["status"] == status
        for response, sample in zip(found, responses, strict=True):
            assert response["content"] == sample.text and response["finish_reason"] == sample.finish_reason
            total = sum(sample.token_logprobs)
            sound = sample.token_logprobs and min(sample.token_logprobs) > -9999 and math.isfinite(total)
            assert response["logprob"] == (pytest.approx(total, abs=1e-9) if sound else None)
            assert response["num_tokens"] == (len(sample.token_logprobs) or None)
            assert (response["source"], response["model"]) == ("teacher", "seed-sampler")
        stored = [response["rank"] for response in row["responses"]]
        assert stored == sorted(stored, key=lambda rank: (rank is None, rank))


def test_the_score_is_the_mean_log_prob_so_that_length_alone_decides_nothing():
    sets = [[Sample("short", (-1.0,), "stop"), Sample("long but sure", (-0.5,) * 6, "stop")]]
    assert build(sets)[0]["responses"][0]["content"] == "long but sure"
    assert build(sets, length_exponent=0.0)[0]["responses"][0]["content"] == "short"


def test_a_bad_log_prob_never_makes_a_response_better():
    sets = [[Sample("bad", (-9999.0, -0.1), "stop"), Sample("good", (-3.0,), "stop"), Sample("ok", (-4.0,), "stop")]]
    (row,) = build(sets)
    assert [(r["content"], r["rank"]) for r in row["responses"]] == [("good", 1), ("ok", 2), ("bad", None)]
    assert row["status"] == "partial"


def test_an_equal_text_takes_score_and_rank_of_the_first_that_has_any():
    sets = [
        [
            Sample("same", (-5.0,), "length"),
            Sample("same", (-1.0,), "stop"),
            Sample(" same", (-2.0,), "stop"),
            Sample("other", (-1.5,), "stop"),
        ]
    ]
    (row,) = build(sets)
    found = sorted(row["responses"], key=lambda response: response["index"])
    assert [(r["score"], r["rank"], r["duplicate_of"]) for r in found] == [
        (None, None, None), (-1.0, 1, 0), (-1.0, 1, 0), (-1.5, 3, None),
    ]  # fmt: skip
    assert row["num_ties"] == 1 and row["score_gap"] == 0.5


def test_rows_are_full_and_keep_what_came_with_the_prompt():
    rows = [
        {
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
            "reference": "r",
            "source": "x",
        },
        {"prompt": "q", "reference": None, "extra": 3},
        {"prompt": "q"},
    ]
    config = TeacherBuildConfig(seed=3, top_p=0.9, show_progress=False)
    dataset = build_teacher_ranked(rows, SeedSampler(), config)["train"]
    assert dataset.features == ranked_features()
    assert [row["reference"] for row in dataset] == ["r", None, None]
    assert [row["source"] for row in dataset] == ["x", None, None]
    assert dataset[0]["prompt"] == rows[0]["prompt"] and dataset[1]["prompt"] == [{"role": "user", "content": "q"}]
    assert {row["ranking_method"] for row in dataset} == {"teacher_logprob"}
    assert {row["ranker"] for row in dataset} == {"seed-sampler"}
    assert [row["provenance"]["occurrence"] for row in dataset] == [0, 0, 1]
    assert dataset[1]["responses"] != dataset[2]["responses"]
    assert dataset[0]["provenance"] == {
        "builder": f"tuna_trl {__version__} teacher",
        "generator": {"sampler": "seed", "version": 1},
        "sampling": {"temperature": 1.0, "top_p": 0.9, "top_k": 0, "max_new_tokens": 256},
        "seed": 3,
        "bucket_size": 16,
        "window_size": 4096,
        "length_exponent": 1.0,
        "include_eos": True,
        "rank_truncated": False,
        "tie_delta": 0.0,
        "occurrence": 0,
    }


def test_a_sampler_that_leaves_the_end_token_out_is_recorded_as_such():
    class Without(SeedSampler):
        def fingerprint(self):
            return {"sampler": "seed", "include_eos": False}

    config = TeacherBuildConfig(show_progress=False)
    (row,) = build_teacher_ranked([{"prompt": "q"}], Without(), config)["train"]
    assert row["provenance"]["include_eos"] is False


def test_splits_come_back_by_name_and_the_limit_holds_in_each():
    rows = [{"prompt": f"question {i}"} for i in range(5)]
    prompts = DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows[:2]))
    built = build_teacher_ranked(prompts, SeedSampler(), TeacherBuildConfig(limit=3, show_progress=False))
    assert isinstance(built, DatasetDict)
    assert {name: len(split) for name, split in built.items()} == {"train": 3, "test": 2}
    streamed = IterableDataset.from_generator(lambda: iter(rows))
    again = build_teacher_ranked(streamed, SeedSampler(), TeacherBuildConfig(limit=3, show_progress=False))
    assert again["train"].to_list() == built["train"].to_list()


def test_a_second_build_asks_nothing_and_without_a_journal_everything(tmp_path):
    rows, path = [{"prompt": f"question {i}"} for i in range(5)], tmp_path / "runs" / "journal.sqlite"
    builds = []
    for journal in (path, str(path), None):
        sampler = SeedSampler()
        config = TeacherBuildConfig(journal=journal, bucket_size=2, show_progress=False)
        builds.append((len(sampler.calls), build_teacher_ranked(rows, sampler, config)["train"].to_list(), sampler))
    assert [len(sampler.calls) for _, _, sampler in builds] == [3, 0, 3]
    assert builds[0][1] == builds[1][1] == builds[2][1]


def test_a_failed_row_is_drawn_again_only_on_request(tmp_path):
    good = Sample("fine", (-1.0,), "stop")
    options = dict(num_responses=2, journal=tmp_path / "j", show_progress=False)
    statuses, calls = [], []
    for answer, retry in [(Sample("odd", (), "stop"), False), (good, False), (good, True), (good, False)]:
        sampler = SeedSampler(lambda text, t, seed, place, answer=answer: answer if text == "b" else good)
        config = TeacherBuildConfig(retry_failed=retry, **options)
        rows = build_teacher_ranked([{"prompt": "a"}, {"prompt": "b"}], sampler, config)["train"]
        statuses.append([row["status"] for row in rows])
        calls.append([call[0] for call in sampler.calls])
    assert statuses == [["ok", "failed"], ["ok", "failed"], ["ok", "ok"], ["ok", "ok"]]
    assert calls == [[("a", "b")], [], [("b",)], []]


def test_a_bad_row_stops_the_build_before_anything_is_drawn():
    sampler = SeedSampler()
    with pytest.raises(SchemaError, match="row 1: column 'prompt' is missing"):
        build_teacher_ranked([{"prompt": "a"}, {"question": "b"}], sampler, TeacherBuildConfig(show_progress=False))
    assert not sampler.calls


def test_a_tiny_model_ranks_by_its_own_teacher_forced_log_likelihood(tiny_llama, tiny_tokenizer):
    end = tiny_tokenizer.convert_tokens_to_ids("e")
    tiny_llama.generation_config.eos_token_id = end
    teacher = TransformersSampler(tiny_llama, tiny_tokenizer, name="tiny")
    ids = {}
    finished = teacher._finished

    def recording(branch, first):
        sample = finished(branch, first)
        ids[sample.token_logprobs] = (branch.prompt, list(branch.ids))
        return sample

    teacher._finished = recording
    prompts = ["Hi there", "Why is the sea salt, and the rain not?"]
    # any response may be cut here: a random model rarely ends
    config = TeacherBuildConfig(max_new_tokens=40, rank_truncated=True, show_progress=False)
    built = build_teacher_ranked([{"prompt": text} for text in prompts], teacher, config)["train"]
    by_sum = {math.fsum(logprobs): value for logprobs, value in ids.items()}
    encoded = teacher._encode([row["prompt"] for row in built])
    for row, prompt_ids in zip(built, encoded, strict=True):
        assert [response["rank"] for response in row["responses"]] == [1, 2, 3, 4]
        scores = [response["score"] for response in row["responses"]]
        assert scores == sorted(scores, reverse=True)
        for response in row["responses"]:
            _, response_ids = by_sum[response["logprob"]]
            whole = torch.tensor([prompt_ids + response_ids])
            with torch.no_grad():
                logits = tiny_llama(whole).logits[0, len(prompt_ids) - 1 : -1].double()
            forced = logits.log_softmax(-1).gather(-1, torch.tensor(response_ids)[:, None]).mean()
            assert response["score"] == pytest.approx(float(forced), abs=1e-4)
            assert response["num_tokens"] == len(response_ids)
            assert (response["finish_reason"] == "stop") == (response_ids[-1] in {end, tiny_tokenizer.eos_token_id})


def test_the_same_build_writes_the_same_bytes(tmp_path, tiny_llama, tiny_tokenizer):
    rows, files = [{"prompt": text} for text in ("Hi", "Why?", "the sea", "a")], []
    for name in ("one", "two"):
        teacher = TransformersSampler(tiny_llama, tiny_tokenizer, name="tiny")
        config = TeacherBuildConfig(max_new_tokens=8, bucket_size=3, show_progress=False)
        build_teacher_ranked(rows, teacher, config)["train"].to_parquet(tmp_path / name)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    assert str(tmp_path) not in json.dumps(build_teacher_ranked(rows, teacher, config)["train"].to_list())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_responses": 0}, "`num_responses` is 0"),
        ({"temperature": -1.0}, "`temperature` is -1.0"),
        ({"temperature": math.nan}, "`temperature` is nan"),
        ({"temperature": 0.0}, "all 4 responses to a prompt would be the same"),
        ({"top_p": 0.0}, "`top_p` is 0.0"),
        ({"top_p": 1.5}, "`top_p` is 1.5"),
        ({"top_k": -1}, "`top_k` is -1"),
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0"),
        ({"length_exponent": -0.5}, "`length_exponent` is -0.5"),
        ({"length_exponent": math.inf}, "`length_exponent` is inf"),
        ({"tie_delta": -0.1}, "`tie_delta` is -0.1"),
        ({"bucket_size": 0}, "`bucket_size` is 0"),
        ({"limit": 0}, "`limit` is 0"),
        ({"window_size": 0}, "`window_size` is 0"),
        ({"max_cost": -1.0}, "`max_cost` is -1.0"),
        ({"max_cost": math.nan}, "`max_cost` is nan"),
    ],
)
def test_values_out_of_range_are_refused_by_name(values, message):
    with pytest.raises(InputError, match=message):
        TeacherBuildConfig(**values)
