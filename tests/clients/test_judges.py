"""A judge by name: every kind, its options, and what is said of a wrong name or an option of another judge."""

from __future__ import annotations

import pytest
import torch
from tiny import SIZES, chatml_tokenizer, random_llama
from transformers import LlamaConfig, LlamaForSequenceClassification

from tuna_trl.clients.anthropic_messages import AnthropicJudge
from tuna_trl.clients.judges import judge_by_name, judge_options
from tuna_trl.clients.local_judge import TransformersJudge
from tuna_trl.clients.openai_judge import OpenAICompatibleJudge
from tuna_trl.clients.pairwise import PairwiseProtocol
from tuna_trl.clients.pointwise import PointwiseProtocol
from tuna_trl.clients.reference import ExactMatchJudge, ReferenceJudge
from tuna_trl.clients.reward_model import RewardModelJudge
from tuna_trl.errors import InputError


TOKENIZER = chatml_tokenizer()


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-test")


@pytest.mark.parametrize(
    ("name", "kind", "called"),
    [
        ("reference", ReferenceJudge, "reference:rouge-l"),
        ("reference:rouge-l", ReferenceJudge, "reference:rouge-l"),
        ("exact-match", ExactMatchJudge, "reference:exact-match"),
        ("reference:exact-match", ExactMatchJudge, "reference:exact-match"),
        ("claude", AnthropicJudge, "claude-opus-5-5"),
        ("claude-haiku-5-5", AnthropicJudge, "claude-haiku-5-5"),
    ],
)
def test_a_name_gives_its_judge(name, kind, called):
    judge = judge_by_name(name, effort=None, base_url=None, protocol=None)  # None: not given
    assert type(judge) is kind and judge.name == called


def test_a_judge_behind_a_server_takes_its_options(server):
    judge = judge_by_name(
        "openai:org/model:7b", base_url=server.url, effort="low", max_tokens=70, concurrency=3, schema="prompt"
    )
    assert type(judge) is OpenAICompatibleJudge and (judge.name, judge.concurrency) == ("org/model:7b", 3)
    assert (judge.fingerprint()["effort"], judge.fingerprint()["max_tokens"]) == ("low", 70)


def test_a_protocol_may_be_named_or_described(server):
    named = judge_by_name("openai:m", base_url=server.url, protocol="pairwise")
    described = judge_by_name("claude", protocol={"name": "pointwise", "scale": [0, 10]})
    given = judge_by_name("claude", protocol=PairwiseProtocol(show_reference=True))
    assert isinstance(named.protocol, PairwiseProtocol) and isinstance(described.protocol, PointwiseProtocol)
    assert given.protocol.show_reference
    with pytest.raises(InputError, match="pairwise"):
        judge_by_name("claude", protocol="pairwis")


def test_models_in_this_process_are_loaded_by_folder(tmp_path):
    model = random_llama(len(TOKENIZER))
    model.save_pretrained(tmp_path / "talker")
    TOKENIZER.save_pretrained(tmp_path / "talker")
    judge = judge_by_name(f"local:{tmp_path / 'talker'}", dtype="bfloat16", batch_size=3, grammar=False, device="cpu")
    assert type(judge) is TransformersJudge and (judge.name, judge.max_batch) == ("talker", 3)
    assert judge.model.dtype == torch.bfloat16 and judge.model.device.type == "cpu"
    scorer = LlamaForSequenceClassification(LlamaConfig(**SIZES, vocab_size=len(TOKENIZER), num_labels=1))
    scorer.save_pretrained(tmp_path / "scorer")
    TOKENIZER.save_pretrained(tmp_path / "scorer")
    judge = judge_by_name(f"reward:{tmp_path / 'scorer'}", dtype="bfloat16", max_length=99, device="cpu")
    assert type(judge) is RewardModelJudge and (judge.name, judge.max_length) == ("scorer", 99)
    assert judge.model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("refrence", "Did you mean 'reference'"),
        ("exactmatch", "Did you mean 'exact-match'"),
        ("Claude", "Did you mean 'claude'"),
        ("opnai:gpt-5", "Did you mean 'openai'"),
        ("gpt-5", "openai:<model>"),
        ("openai:", "names no model"),
        ("local: ", "names no model"),
        ("", "expected a Claude model id"),
    ],
)
def test_a_name_that_is_not_known_says_what_is(name, words):
    with pytest.raises(InputError, match=words):
        judge_by_name(name)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("reference", {"effort": "low"}, "'reference' has no option 'effort'; it takes none"),
        ("exact-match", {"protocol": "pairwise"}, "'exact-match' has no option 'protocol'"),
        ("claude", {"dtype": "float32"}, "'claude' has no option 'dtype'.*effort"),
        ("claude", {"efort": "low"}, "Did you mean 'effort'"),
        ("openai:m", {"batch_size": 3}, "'openai:m' has no option 'batch_size'"),
        ("local:nowhere", {"effort": "low"}, "'local:nowhere' has no option 'effort'"),
        ("reward:nowhere", {"protocol": "pairwise"}, "'reward:nowhere' has no option 'protocol'"),
        ("claude", {"model": "x"}, "no option 'model'"),
    ],
)
def test_an_option_of_another_judge_is_refused_before_anything_is_loaded(name, options, words):
    with pytest.raises(InputError, match=words):
        judge_by_name(name, **options)


def test_the_options_of_a_judge_can_be_listed():
    assert judge_options("reference") == ()
    assert {"effort", "max_tokens", "prices", "protocol"} <= set(judge_options("claude-haiku-5-5"))
    assert {"base_url", "endpoints", "schema", "temperature"} <= set(judge_options("openai:m"))
    assert {"dtype", "device", "grammar", "max_new_tokens"} <= set(judge_options("local:m"))
    assert {"dtype", "max_length", "label"} <= set(judge_options("reward:m"))
    assert not {"model", "tokenizer", "self"} & set(judge_options("local:m"))
