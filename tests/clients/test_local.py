"""The local sampler against one plain forward pass per response, transformers' own generation, and statistics."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from scipy.stats import chisquare
from transformers import GenerationConfig

from tuna_trl.clients import local
from tuna_trl.clients.base import Sampling
from tuna_trl.clients.local import TransformersSampler
from tuna_trl.errors import InputError


class RecordingSampler(TransformersSampler):
    """Keeps the token ids of every response (`ids`, in the order of the samples) and each forward's batch shape."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.ids, self.shapes = [], []

    def _finished(self, branch, first):
        self.ids.append(list(branch.ids))
        return super()._finished(branch, first)

    def _forward(self, ids, mask, positions, cache):
        self.shapes.append(tuple(ids.shape))
        return super()._forward(ids, mask, positions, cache)


def user(text):
    return [{"role": "user", "content": text}]


PROMPTS = [user("Hi"), user("the weather in the north, then in the south"), user("a"), user("Why is the sea salt?")]


def seeds_for(prompts, n, start=0):
    return [[start + 1000 * i + k for k in range(n)] for i in range(len(prompts))]


def random_model(name, vocab_size, **overrides):
    """A small random model of another family, with weights large enough for whole nats of difference."""
    shape = dict(vocab_size=vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    shape |= dict(num_key_value_heads=2, intermediate_size=48, max_position_embeddings=256)
    shape |= dict(initializer_range=0.2, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(**(shape | overrides))
    return transformers.AutoModelForCausalLM.from_config(config).eval()


FAMILIES = {
    "sliding window in every layer": ("Mistral", {"sliding_window": 6, "head_dim": 8}),
    "sliding and full layers": (
        "Gemma3Text",
        {"sliding_window": 6, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "normalised queries": ("Qwen3", {"head_dim": 8}),
    "learned positions": ("GPT2", {}),
    "no position argument": ("Bloom", {}),
    "recurrent state beside attention": ("Lfm2", {"layer_types": ["conv", "full_attention"]}),
}


def forced_logprobs(model, prompt_ids, ids):
    """Log-probs of `ids` after `prompt_ids` by one forward pass over both, without padding or cache."""
    whole = torch.tensor([prompt_ids + ids])
    with torch.no_grad():
        logits = model(input_ids=whole, use_cache=False).logits[0, len(prompt_ids) - 1 : -1]
    return logits.double().log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]


def assert_forced(sampler, prompts, n, drawn, tolerance=1e-4):
    prompt_ids = sampler._encode(prompts)
    for k, ids in enumerate(sampler.ids):
        expected = forced_logprobs(sampler.model, prompt_ids[k // n], ids)
        found = torch.tensor(drawn[k // n][k % n].token_logprobs, dtype=torch.float64)
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.fixture
def sampler(tiny_llama, tiny_tokenizer):
    return RecordingSampler(tiny_llama, tiny_tokenizer)


class TestLogProbs:
    @pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, 0.8, 20), Sampling(0.0)], ids=str)
    def test_they_equal_one_plain_forward_pass_whatever_was_drawn_from(self, sampler, sampling):
        # 40 end tokens, so that responses end at different times and the batch is compacted more than once
        sampler.model.generation_config.eos_token_id = list(range(40, 80))
        drawn = sampler.sample(PROMPTS, 3, sampling, seeds=seeds_for(PROMPTS, 3))
        assert len({len(ids) for ids in sampler.ids}) > 2 or sampling.temperature == 0
        assert_forced(sampler, PROMPTS, 3, drawn)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_they_equal_one_plain_forward_pass_in_every_kind_of_model(self, family, tiny_tokenizer):
        name, overrides = FAMILIES[family]
        model = random_model(name, len(tiny_tokenizer), **overrides)
        model.generation_config.eos_token_id = list(range(40, 60))
        sampler = RecordingSampler(model, tiny_tokenizer)
        for n in (1, 3):
            sampler.ids.clear()
            drawn = sampler.sample(PROMPTS, n, Sampling(max_new_tokens=24), seeds=seeds_for(PROMPTS, n))
            assert_forced(sampler, PROMPTS, n, drawn)

    def test_they_equal_one_plain_forward_pass_with_an_adapter(self, tiny_llama, tiny_tokenizer):
        model = get_peft_model(tiny_llama, LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear"))
        sampler = RecordingSampler(model, tiny_tokenizer)
        drawn = sampler.sample(PROMPTS, 2, Sampling(max_new_tokens=12), seeds=seeds_for(PROMPTS, 2))
        assert_forced(sampler, PROMPTS, 2, drawn)

    def test_they_are_float32_or_better_in_a_bfloat16_model(self, tiny_llama, tiny_tokenizer):
        logits = torch.randn(3, 300).bfloat16()
        tokens, logprobs = local.draw_tokens(logits, torch.full((3,), 0.5).double(), Sampling())
        expected = logits.double().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        assert logprobs.dtype == torch.float32
        torch.testing.assert_close(logprobs.double(), expected, atol=1e-5, rtol=0)

    def test_a_nan_ends_its_response_and_no_other(self, sampler, monkeypatch):
        forward = RecordingSampler._forward

        def poisoned(self, ids, mask, positions, cache):
            logits, cache = forward(self, ids, mask, positions, cache)
            if cache is not None and len(self.shapes) == 3:
                logits[1] = torch.nan
            return logits, cache

        monkeypatch.setattr(RecordingSampler, "_forward", poisoned)
        ((first, second, third),) = sampler.sample(PROMPTS[:1], 3, Sampling(max_new_tokens=6), seeds=[[1, 2, 3]])
        assert len(second.token_logprobs) == 3 and second.token_logprobs[-1] != second.token_logprobs[-1]
        assert second.finish_reason == "length"
        assert all(value < 0 for sample in (first, third) for value in sample.token_logprobs)


class TestIndependence:
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_a_sample_does_not_depend_on_what_else_is_in_the_call(self, data, tiny_llama, tiny_tokenizer):
        model = tiny_llama.double()
        model.generation_config.eos_token_id = list(range(40, 60))
        n = data.draw(st.integers(1, 3), label="n")
        chosen = data.draw(st.lists(st.sampled_from(range(len(PROMPTS))), min_size=1, max_size=4, unique=True))
        limit = data.draw(st.sampled_from([1, 150, 32_768]), label="max_batch_tokens")
        sampling = data.draw(st.sampled_from([Sampling(max_new_tokens=12), Sampling(1.3, 0.9, 50, 12)]))
        together = TransformersSampler(model, tiny_tokenizer, max_batch_tokens=limit)
        found = together.sample(
            [PROMPTS[i] for i in chosen], n, sampling, seeds=[[9 * i + k for k in range(n)] for i in chosen]
        )
        alone = TransformersSampler(model, tiny_tokenizer)
        for i, samples in zip(chosen, found, strict=True):
            for k, sample in enumerate(samples):
                ((expected,),) = alone.sample([PROMPTS[i]], 1, sampling, seeds=[[9 * i + k]])
                assert (sample.text, sample.finish_reason) == (expected.text, expected.finish_reason)
                assert sample.token_logprobs == pytest.approx(expected.token_logprobs, abs=1e-10)

    def test_the_same_call_returns_the_same_floats(self, sampler):
        calls = [
            sampler.sample(PROMPTS, 3, Sampling(max_new_tokens=10), seeds=seeds_for(PROMPTS, 3)) for _ in range(2)
        ]
        assert calls[0] == calls[1]

    def test_another_seed_is_another_sample(self, sampler):
        seeds = [list(range(20))]
        (samples,) = sampler.sample(PROMPTS[:1], 20, Sampling(max_new_tokens=10), seeds=seeds)
        assert len({sample.token_logprobs for sample in samples}) == 20

    def test_a_longer_limit_only_continues_a_cut_response(self, sampler):
        for limit in (5, 9):
            sampler.sample(PROMPTS, 2, Sampling(max_new_tokens=limit), seeds=seeds_for(PROMPTS, 2))
        short, long = sampler.ids[:8], sampler.ids[8:]
        assert [ids[:5] for ids in long] == short


class TestBatches:
    def test_the_prompts_are_prefilled_once_for_all_their_samples(self, sampler):
        sampler.sample(PROMPTS, 5, Sampling(max_new_tokens=4), seeds=seeds_for(PROMPTS, 5))
        assert sampler.shapes[0][0] == len(PROMPTS)
        assert sampler.shapes[1:] == [(5 * len(PROMPTS), 1)] * 3

    def test_finished_rows_leave_the_batch(self, sampler):
        sampler.model.generation_config.eos_token_id = list(range(0, 100))
        sampler.sample(PROMPTS, 8, Sampling(max_new_tokens=30), seeds=seeds_for(PROMPTS, 8))
        rows = [rows for rows, _ in sampler.shapes[1:]]
        assert rows == sorted(rows, reverse=True) and rows[-1] < rows[0] / 2

    def test_a_model_with_recurrent_state_is_prefilled_per_sample(self, tiny_tokenizer):
        name, overrides = FAMILIES["recurrent state beside attention"]
        sampler = RecordingSampler(random_model(name, len(tiny_tokenizer), **overrides), tiny_tokenizer)
        sampler.sample(PROMPTS, 3, Sampling(max_new_tokens=2), seeds=seeds_for(PROMPTS, 3))
        sampler.sample(PROMPTS, 3, Sampling(max_new_tokens=2), seeds=seeds_for(PROMPTS, 3))
        assert [rows for rows, width in sampler.shapes if width > 1] == [4, 12, 12]

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(n=st.integers(1, 7), limit=st.integers(1, 1500))
    def test_no_forward_pass_exceeds_max_batch_tokens(self, n, limit, tiny_llama, tiny_tokenizer):
        sampler = RecordingSampler(tiny_llama, tiny_tokenizer, max_batch_tokens=limit)
        drawn = sampler.sample(PROMPTS, n, Sampling(max_new_tokens=2), seeds=seeds_for(PROMPTS, n))
        assert [len(samples) for samples in drawn] == [n] * len(PROMPTS)
        longest = max(sampler.prompt_lengths(PROMPTS)) + 2
        assert all(rows == 1 or rows * longest <= limit for rows, _ in sampler.shapes)


class TestEnds:
    def test_the_end_token_is_counted_and_not_shown(self, sampler):
        end = sampler.tokenizer.convert_tokens_to_ids("e")
        sampler.model.generation_config.eos_token_id = [end, 300]
        drawn = sampler.sample(PROMPTS, 8, Sampling(max_new_tokens=200), seeds=seeds_for(PROMPTS, 8))
        ends = {end, sampler.tokenizer.eos_token_id}
        stopped = 0
        for ids, sample in zip(sampler.ids, sum(drawn, []), strict=True):
            assert len(sample.token_logprobs) == len(ids) == sample.usage.output
            assert not ends & set(ids[:-1])
            assert (sample.finish_reason == "stop") == (ids[-1] in ends)
            shown = ids[:-1] if sample.finish_reason == "stop" else ids
            assert sample.text == sampler.tokenizer.decode(shown, skip_special_tokens=True)
            stopped += sample.finish_reason == "stop"
        assert stopped > 8

    def test_the_tokenizers_end_token_ends_without_any_configuration(self, sampler):
        sampler.model.generation_config = GenerationConfig()
        assert sampler._end_tokens() == {sampler.tokenizer.eos_token_id}

    def test_white_space_is_kept(self, sampler):
        ids = sampler.tokenizer("  a \n", add_special_tokens=False)["input_ids"]
        branch = local._Branch(0, 0, 3, 9, ids=ids, logprobs=[-1.0] * len(ids), finish_reason="length")
        assert sampler._finished(branch, first=True).text == "  a \n"

    @pytest.mark.parametrize("family", ["learned positions", "normalised queries"])
    def test_a_response_stops_where_the_context_ends(self, family, tiny_tokenizer):
        name, overrides = FAMILIES[family]
        lengths = TransformersSampler(random_model("Qwen3", len(tiny_tokenizer)), tiny_tokenizer).prompt_lengths(
            PROMPTS
        )
        context = max(lengths) + 3
        size = {"max_position_embeddings": context}
        sampler = TransformersSampler(random_model(name, len(tiny_tokenizer), **overrides | size), tiny_tokenizer)
        drawn = sampler.sample(PROMPTS, 2, Sampling(max_new_tokens=50), seeds=seeds_for(PROMPTS, 2))
        for length, samples in zip(lengths, drawn, strict=True):
            for sample in samples:
                room = min(50, context - length)
                assert sample.finish_reason == "stop" or len(sample.token_logprobs) == room
        with pytest.raises(InputError, match=r"`prompts\[1\]` has \d+ tokens, the model's context is"):
            sampler.prompt_lengths([PROMPTS[0], user("long " * 50)])

    def test_usage_counts_a_prompt_once(self, sampler):
        drawn = sampler.sample(PROMPTS, 3, Sampling(max_new_tokens=2), seeds=seeds_for(PROMPTS, 3))
        lengths = sampler.prompt_lengths(PROMPTS)
        assert [[sample.usage.input for sample in samples] for samples in drawn] == [[p, 0, 0] for p in lengths]


class TestDistribution:
    def test_first_tokens_are_as_frequent_as_the_softmax_says(self, sampler):
        n = 6000
        (samples,) = sampler.sample(PROMPTS[:1], n, Sampling(max_new_tokens=1), seeds=seeds_for(PROMPTS[:1], n))
        prompt = torch.tensor(sampler._encode(PROMPTS[:1]))
        with torch.no_grad():
            probs = sampler.model(prompt).logits[0, -1].double().softmax(-1)
        counts = torch.bincount(torch.tensor([ids[0] for ids in sampler.ids]), minlength=len(probs))
        common = probs * n >= 5  # the chi-square approximation needs a handful in every cell
        observed = torch.cat([counts[common], counts[~common].sum()[None]]).double()
        expected = torch.cat([probs[common], probs[~common].sum()[None]]) * n
        assert common.sum() > 10
        assert chisquare(observed, expected).pvalue > 1e-3

    def test_greedy_is_what_generate_finds(self, sampler):
        expected = []
        for prompt in PROMPTS:
            ids = torch.tensor(sampler._encode([prompt]))
            whole = sampler.model.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=-1, pad_token_id=0)
            expected.append(whole[0, ids.shape[1] :].tolist())
        sampler.greedy(PROMPTS, 20)
        ends = sampler._end_tokens()
        for found, whole in zip(sampler.ids, expected, strict=True):
            assert found == whole[: len(found)] and (len(found) == 20 or found[-1] in ends)


class TestModelIsLeftAlone:
    def test_modes_gradients_and_configuration_are_as_before(self, sampler):
        model = sampler.model
        model.train()
        model.model.layers[0].eval()
        modes = [module.training for module in model.modules()]
        config, generation = copy.deepcopy(model.config), model.generation_config.to_dict()
        before = {name: p.clone() for name, p in model.named_parameters()}
        sampler.sample(PROMPTS, 2, Sampling(max_new_tokens=4), seeds=seeds_for(PROMPTS, 2))
        assert [module.training for module in model.modules()] == modes
        assert model.config.to_dict() == config.to_dict() and model.generation_config.to_dict() == generation
        assert all(
            p.requires_grad and p.grad is None and p.equal(before[name]) for name, p in model.named_parameters()
        )
        model(torch.tensor([[1, 2, 3]])).logits.sum().backward()  # nothing inside was made an inference tensor

    def test_modes_are_restored_after_an_error(self, sampler, monkeypatch):
        sampler.model.train()
        monkeypatch.setattr(local, "draw_tokens", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sampler.sample(PROMPTS, 1, Sampling(), seeds=seeds_for(PROMPTS, 1))
        assert sampler.model.training

    def test_dropout_is_off_while_sampling(self, tiny_tokenizer):
        model = random_model("GPT2", len(tiny_tokenizer), resid_pdrop=0.5, embd_pdrop=0.5)
        sampler = RecordingSampler(model.train(), tiny_tokenizer)
        drawn = sampler.sample(PROMPTS, 2, Sampling(max_new_tokens=6), seeds=seeds_for(PROMPTS, 2))
        model.eval()
        assert_forced(sampler, PROMPTS, 2, drawn)


class TestRefusals:
    def test_a_tokenizer_without_a_template(self, tiny_llama, tiny_tokenizer):
        tiny_tokenizer.chat_template = None
        with pytest.raises(InputError, match="`tokenizer` has no chat template"):
            TransformersSampler(tiny_llama, tiny_tokenizer)

    def test_a_prompt_learning_adapter(self, tiny_llama, tiny_tokenizer):
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        with pytest.raises(InputError, match="prompt-learning adapter"):
            TransformersSampler(get_peft_model(tiny_llama, config), tiny_tokenizer)

    def test_a_model_without_a_cache(self, sampler, monkeypatch):
        forward = type(sampler.model).forward

        def cacheless(self, *args, **kwargs):
            output = forward(self, *args, **kwargs)
            output.past_key_values = None
            return output

        monkeypatch.setattr(type(sampler.model), "forward", cacheless)
        with pytest.raises(InputError, match="returns no `past_key_values`"):
            sampler.sample(PROMPTS, 1, Sampling(), seeds=seeds_for(PROMPTS, 1))

    @pytest.mark.parametrize(
        ("sampling", "message"),
        [
            (Sampling(temperature=-0.1), "temperature` must be 0"),
            (Sampling(temperature=float("nan")), "temperature` must be 0"),
            (Sampling(top_p=0.0), "top_p` must be in"),
            (Sampling(top_p=1.1), "top_p` must be in"),
            (Sampling(top_k=-1), "top_k` must be 0"),
            (Sampling(max_new_tokens=0), "max_new_tokens` must be at least 1"),
        ],
    )
    def test_sampling_values_out_of_range(self, sampler, sampling, message):
        with pytest.raises(InputError, match=message):
            sampler.sample(PROMPTS, 1, sampling, seeds=seeds_for(PROMPTS, 1))

    def test_seeds_that_are_not_one_for_each_sample(self, sampler):
        with pytest.raises(InputError, match="`seeds` must hold 2 seeds for each of the 4 prompts"):
            sampler.sample(PROMPTS, 2, Sampling(), seeds=seeds_for(PROMPTS, 1))
        with pytest.raises(InputError, match="`n` must be at least 1"):
            sampler.sample(PROMPTS, 0, Sampling(), seeds=seeds_for(PROMPTS, 0))

    def test_nothing_asked_is_nothing_drawn(self, sampler):
        assert sampler.sample([], 2, Sampling(), seeds=[]) == []
