"""Laws of the exporters: ties make no pair, nothing unranked gets out, and TRL's trainers train on what they write."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from hypothesis import given
from hypothesis import strategies as st
from ranked_rows import dataset_of, simple_row
from ranked_rows import rows as any_row

from tuna_trl import InputError, SchemaError
from tuna_trl.data.convert import import_ranked, to_kto, to_lmops, to_preference, to_sft, to_source
from tuna_trl.data.convert.kto import kto_features
from tuna_trl.data.convert.lmops import lmops_features
from tuna_trl.data.convert.preference_export import preference_features
from tuna_trl.data.convert.sft import sft_features
from tuna_trl.data.schema import STATUSES, make_row


def words(text: str) -> list[str]:
    return text.split()


def ranked_of(row) -> list:
    return [r for r in row["responses"] if r["rank"] is not None]


def scored(*scores, status: str = "ok"):
    row = {"prompt": "q", "responses": [f"answer {i}" for i in range(len(scores))], "scores": list(scores)}
    return {**row, "status": status}


def pairs_of(row, **options) -> list[tuple[str, str]]:
    found = to_preference([row], **options)
    return [(p["chosen"][0]["content"][-1], p["rejected"][0]["content"][-1]) for p in found]


class TestPreference:
    @given(any_row(), st.sampled_from(["best-worst", "adjacent", "all"]), st.none() | st.floats(0, 3))
    def test_a_pair_is_two_ranked_texts_of_which_the_first_is_better(self, row, pairs, gap):
        ranked = ranked_of(row)
        for pair in to_preference([row], pairs=pairs, min_gap=gap, statuses=STATUSES):
            chosen, rejected = pair["chosen"][0]["content"], pair["rejected"][0]["content"]
            assert words(chosen) != words(rejected)
            candidates = [
                (a, b)
                for a in ranked
                for b in ranked
                if (a["content"], b["content"], a["score"], b["score"])
                == (chosen, rejected, pair["score_chosen"], pair["score_rejected"])
            ]
            assert any(a["rank"] < b["rank"] for a, b in candidates)
            assert gap is None or pair["score_chosen"] - pair["score_rejected"] >= gap
            assert pair["prompt"] == row["prompt"] and pair["prompt_id"] == row["prompt_id"]

    @given(any_row())
    def test_all_pairs_are_counted_by_the_slow_way(self, row):
        ranked = ranked_of(row)
        expected = sum(
            a["rank"] < b["rank"] and words(a["content"]) != words(b["content"]) for a in ranked for b in ranked
        )
        assert len(list(to_preference([row], pairs="all", statuses=STATUSES))) == expected

    def test_the_three_choices(self):
        row = scored(4, 2, 2, 1)
        assert pairs_of(row) == [("0", "3")]
        assert pairs_of(row, pairs="adjacent") == [("0", "1"), ("0", "2"), ("1", "3"), ("2", "3")]
        assert pairs_of(row, pairs="all") == [("0", "1"), ("0", "2"), ("0", "3"), ("1", "3"), ("2", "3")]
        assert pairs_of(row, pairs="all", min_gap=2) == [("0", "1"), ("0", "2"), ("0", "3")]
        assert pairs_of(scored(1, 1, 1), pairs="all") == []

    def test_pairs_without_scores_have_no_gap(self):
        row = {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2]}
        assert len(list(to_preference([row]))) == 1 and not list(to_preference([row], min_gap=0))

    def test_equal_words_are_not_preferred_to_each_other(self):
        row = {"prompt": "q", "responses": ["a  b", "a b"], "ranks": [1, 2]}
        tally = Counter()
        assert not list(to_preference([row], tally=tally)) and tally["no pair"] == 1

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"pairs": "best-wurst"}, "Did you mean 'best-worst'"),
            ({"min_gap": -1}, "`min_gap` is -1"),
            ({"min_gap": float("nan")}, "`min_gap` is nan"),
            ({"statuses": ["okay"]}, "'okay'.*expected some of ok"),
        ],
    )
    def test_wrong_options_are_named(self, options, message):
        with pytest.raises(InputError, match=message):
            list(to_preference([scored(1, 0)], **options))


class TestStatuses:
    @given(any_row())
    def test_only_ok_and_partial_rows_get_out_and_the_others_are_counted(self, row):
        for export in (to_sft, to_preference, to_kto):
            tally = Counter()
            made = list(export([row], tally=tally))
            if row["status"] not in ("ok", "partial"):
                assert not made and tally == {f"status {row['status']}": 1}

    def test_unless_asked_for(self):
        row = make_row(
            "q",
            [{"content": "a", "rank": 1}, {"content": "b"}],
            ranking_method="judge",
            ranker="j",
            status="truncated",
        )
        assert not list(to_sft([row])) and len(list(to_sft([row], statuses=["truncated"]))) == 1


class TestSft:
    @given(any_row())
    def test_the_completion_is_the_first_of_the_best(self, row):
        made = list(to_sft([row], statuses=STATUSES))
        ranked = ranked_of(row)
        assert [m["completion"][0]["content"] for m in made] == [r["content"] for r in ranked[:1]]


class TestKto:
    def test_without_a_threshold_the_best_are_good_and_the_worst_are_not(self):
        made = list(to_kto([scored(3, 2, 3, 1)]))
        assert [(m["completion"][0]["content"][-1], m["label"]) for m in made] == [
            ("0", True),
            ("2", True),
            ("3", False),
        ]
        tally = Counter()
        assert not list(to_kto([scored(1, 1)], tally=tally)) and tally["neither good nor bad"] == 2

    @given(any_row(), st.floats(-3, 3))
    def test_with_one_the_score_decides(self, row, threshold):
        made = list(to_kto([row], threshold=threshold, statuses=STATUSES))
        expected = [r["score"] >= threshold for r in ranked_of(row) if r["score"] is not None]
        assert [m["label"] for m in made] == expected

    def test_a_threshold_is_a_number(self):
        with pytest.raises(InputError, match="`threshold` is nan"):
            to_kto([], threshold=float("nan"))


class TestLmops:
    def test_an_export_is_read_again_as_the_same_ranking(self):
        rows = [scored(3, 1, 2), scored(-1, -2, -0.5)]
        exported = list(to_lmops(rows))
        assert json.loads(json.dumps(exported)) == exported
        back = list(import_ranked(exported))
        assert [[r["rank"] for r in row["responses"]] for row in back] == [[1, 2, 3]] * 2
        assert [row["prompt"][0]["content"] for row in back] == ["q", "q"]
        assert [r["score"] for r in back[0]["responses"]] == [3, 2, 1]
        assert list(to_source(back)) == exported

    def test_ranks_stand_in_where_scores_do_not_say_the_same(self):
        row = {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [1, 2, 2], "scores": [1.0, 0.4, 0.5]}
        tally = Counter()
        assert next(to_lmops([row], tally=tally))["score"] == [-1, -2, -2]
        assert tally["rows with ties"] == 1

    def test_another_number_of_responses_is_named(self):
        with pytest.raises(SchemaError, match="row 1: 2 ranked responses, where the first row has 3.*num_responses=2"):
            list(to_lmops([scored(3, 2, 1), scored(2, 1)]))
        tally = Counter()
        made = list(to_lmops([scored(3, 2, 1), scored(2, 1), scored(1)], num_responses=2, tally=tally))
        assert [len(m["output"]) for m in made] == [2, 2] and tally["too few ranked responses"] == 1

    def test_several_turns_need_a_format(self):
        turns = [{"role": r, "content": r} for r in ("user", "assistant", "user")]
        row = {**scored(1, 0), "prompt": turns}
        with pytest.raises(SchemaError, match="user, assistant, user.*prompt_format"):
            list(to_lmops([row]))
        made = next(to_lmops([row], prompt_format=lambda messages: "|".join(m["content"] for m in messages)))
        assert made["instruction"] == "user|assistant|user"


@pytest.mark.parametrize(
    ("export", "features"),
    [(to_sft, sft_features), (to_preference, preference_features), (to_kto, kto_features), (to_lmops, lmops_features)],
)
def test_what_comes_in_goes_out_with_explicit_features(export, features):
    rows = [simple_row(i) for i in range(1200)]
    dataset = dataset_of(rows)
    made = export(dataset)
    assert isinstance(made, Dataset) and made.features == features() and len(made) >= 1200
    stream = export(IterableDataset.from_generator(lambda: iter(rows)))
    assert isinstance(stream, IterableDataset) and stream.features == features()
    assert list(stream) == made.to_list() == list(export(rows))
    splits = export(DatasetDict({"train": dataset, "test": dataset.select([0])}))
    assert isinstance(splits, DatasetDict) and splits["test"].to_list() == made.to_list()[: len(splits["test"])]
    with pytest.raises(InputError, match="must be a Dataset"):
        export("nowhere.jsonl")


class TestTrainers:
    """One step of each trainer on the export it is for: it takes the columns, and its weights move."""

    @pytest.fixture
    def rows(self):
        return dataset_of([simple_row(i) for i in range(4)])

    def step(self, trainer_class, config_class, dataset, model, tokenizer, folder, **options):
        arguments = config_class(
            output_dir=str(folder),
            max_steps=1,
            per_device_train_batch_size=4,
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            learning_rate=0.1,
            **options,
        )
        trainer = trainer_class(model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer)
        before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
        trainer.train()
        assert any(not weight.equal(before[name]) for name, weight in trainer.model.named_parameters())

    def test_sft(self, rows, tiny_folder, tiny_tokenizer, tmp_path):
        from trl import SFTConfig, SFTTrainer

        self.step(SFTTrainer, SFTConfig, to_sft(rows), str(tiny_folder), tiny_tokenizer, tmp_path)

    def test_dpo(self, rows, tiny_folder, tiny_tokenizer, tmp_path):
        from trl import DPOConfig, DPOTrainer

        self.step(DPOTrainer, DPOConfig, to_preference(rows), str(tiny_folder), tiny_tokenizer, tmp_path)

    def test_kto(self, rows, tiny_folder, tiny_tokenizer, tmp_path):
        from trl import KTOConfig, KTOTrainer

        self.step(KTOTrainer, KTOConfig, to_kto(rows), str(tiny_folder), tiny_tokenizer, tmp_path)

    def test_reward(self, rows, tiny_tokenizer, tmp_path):
        from tiny import SIZES
        from transformers import LlamaConfig, LlamaForSequenceClassification
        from trl import RewardConfig, RewardTrainer

        sizes = {**SIZES, "vocab_size": len(tiny_tokenizer), "pad_token_id": tiny_tokenizer.pad_token_id}
        model = LlamaForSequenceClassification(LlamaConfig(**sizes, num_labels=1))
        self.step(RewardTrainer, RewardConfig, to_preference(rows, pairs="all"), model, tiny_tokenizer, tmp_path)
