"""Laws of scoring: a batch says of each response what the plain model says of it alone; the model stays as it was."""

from __future__ import annotations

import copy
import json

import pytest
import reference
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from ranked_rows import simple_row
from tiny import FAMILIES, SquashedLlama, random_llama, random_model
from training import gradients, random_rows, tokenised_row
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaModel

import tuna_trl.head
from tuna_trl import InputError, RankedCollator, score_rows
from tuna_trl.data.tokenize import tokenize_row
from tuna_trl.scoring import install, response_logps
from tuna_trl.tokens import Template


V = 101
COLLATOR = RankedCollator(pad_token_id=0)
FIELDS = ("logps", "lengths", "nll", "nll_tokens")


def squashed(vocab_size, **overrides):
    torch.manual_seed(0)
    return SquashedLlama(LlamaConfig(**{**random_llama(vocab_size).config.to_diff_dict(), **overrides})).eval()


MODELS = {family: lambda family=family: random_model(family, V) for family in [*FAMILIES, "phi-tied"]}
MODELS |= {"llama": lambda: random_llama(V), "unknown": lambda: squashed(V)}


def alone(model, rows):
    """`logps` and `nll` of every response by the oracle: one unpadded sequence at a time through the plain forward."""
    logps, nll = [], []
    for row in rows:
        first = max(len(row["prompt_ids"]), 1)
        for ids, labels, scored, rank in zip(
            row["response_ids"], row["response_labels"], row["score_lengths"], row["ranks"], strict=True
        ):
            skipped = first - len(row["prompt_ids"])
            whole = row["prompt_ids"] + ids
            tokens = reference.sequence_logps(model, whole, list(range(first, len(whole))))
            logps.append(sum(tokens[: scored - skipped]))
            trained = [t for t, label in zip(tokens, labels[skipped:], strict=True) if label != -100 and rank > 0]
            nll.append(-sum(trained))
    return torch.stack([torch.as_tensor(x) for x in logps]), torch.stack([torch.as_tensor(x).float() for x in nll])


def present(rows):
    """`(B, N)` bool: the slots that hold a response."""
    n = max(len(row["ranks"]) for row in rows)
    return torch.tensor([[k < len(row["ranks"]) for k in range(n)] for row in rows])


@pytest.mark.parametrize("name", MODELS)
def test_every_response_scores_as_it_does_alone(name, monkeypatch):
    monkeypatch.setattr(tuna_trl.head, "CHUNK_BYTES", 4 * V * 16)
    model, rows = MODELS[name](), random_rows(V)
    logps, nll = alone(model, rows)  # before anything is installed
    install(model)
    result = response_logps(model, COLLATOR(rows))
    slots = present(rows)
    torch.testing.assert_close(result.logps[slots], logps, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(result.nll[slots], nll, rtol=1e-5, atol=1e-4)
    assert result.lengths[slots].tolist() == [length for row in rows for length in row["score_lengths"]]
    assert (result.logps[~slots] == 0).all() and (result.lengths[~slots] == 0).all()
    assert (result.nll[~slots] == 0).all() and (result.nll_tokens[~slots] == 0).all()


def test_a_model_that_does_more_behind_its_head_is_named_and_scored_through_its_logits(caplog):
    install(squashed(V))
    assert "SquashedLlama does more behind its output embedding" in caplog.text
    caplog.clear()
    for name in FAMILIES:
        install(MODELS[name]())
    assert "does more behind" not in caplog.text


@pytest.mark.parametrize("extra_slots, extra_tokens, pad", [(0, 5, 0), (3, 0, 0), (2, 4, 77)])
def test_scores_do_not_see_the_padding(extra_slots, extra_tokens, pad):
    model, rows = random_llama(V), random_rows(V)
    install(model)
    batch = COLLATOR(rows)
    B, N, L = batch["input_ids"].shape
    padded = RankedCollator(pad_token_id=pad, pad_to_multiple_of=L + extra_tokens)(rows)
    fills = {"input_ids": pad, "attention_mask": 0, "labels": -100, "score_mask": False}
    for name, fill in fills.items():
        more = torch.full((B, extra_slots, L + extra_tokens), fill, dtype=padded[name].dtype)
        padded[name] = torch.cat([padded[name], more], 1)
    result, wider = response_logps(model, batch), response_logps(model, padded)
    for name in FIELDS:
        torch.testing.assert_close(getattr(wider, name)[:, :N], getattr(result, name), rtol=1e-5, atol=1e-4)
        assert (getattr(wider, name)[:, N:] == 0).all()


def test_scores_follow_their_responses_through_a_permutation():
    model, rows = random_llama(V), random_rows(V)
    install(model)
    batch = COLLATOR(rows)
    order, slots = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 4, 0, 2])
    moved = {name: value[order] if value.dim() == 1 else value[order][:, slots] for name, value in batch.items()}
    result, other = response_logps(model, batch), response_logps(model, moved)
    for name in FIELDS:
        torch.testing.assert_close(getattr(other, name), getattr(result, name)[order][:, slots], rtol=1e-5, atol=1e-4)


def test_dft_weighs_each_token_by_its_probability_without_a_gradient_through_the_weight():
    rows = random_rows(V)
    first, second = random_llama(V), random_llama(V)
    install(first)
    loss = response_logps(first, COLLATOR(rows), loss_type="dft").nll.sum()
    expected = 0.0
    for row in rows:
        for ids, rank in zip(row["response_ids"], row["ranks"], strict=True):
            if rank:
                whole = row["prompt_ids"] + ids
                for t in reference.sequence_logps(second, whole, list(range(len(row["prompt_ids"]), len(whole)))):
                    expected = expected - t * t.exp().detach()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    for name, gradient in gradients(second).items():
        torch.testing.assert_close(gradients(first)[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "LoRA"])
@pytest.mark.parametrize("name", ["llama", "unknown"])
@pytest.mark.parametrize(
    "rows",
    [
        [tokenised_row([], [[]], [0])],
        [tokenised_row([5, 6], [[], []], [1, 2])],
        [tokenised_row([], [[7]], [1]), tokenised_row([3], [[]], [1])],
    ],
    ids=["nothing at all", "prompts alone", "one token that nothing predicts"],
)
def test_a_batch_without_a_token_to_score_is_a_connected_zero(rows, name, adapter):
    model = MODELS[name]()
    if adapter:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    base, masks = install(model), []
    base.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    result = response_logps(model, COLLATOR(rows))
    assert len(masks) == 1 and masks[0].any(1).all()  # some attention kernels make NaN of a row that sees nothing
    assert (result.logps == 0).all() and (result.nll == 0).all() and (result.lengths == 0).all()
    (result.logps.sum() + result.nll.sum()).backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert gradients(model).keys() == trained  # every process reduces every parameter, or DDP waits for ever
    assert all((gradient == 0).all() for gradient in gradients(model).values())


def test_no_logits_of_the_whole_batch_are_kept_for_the_backward(monkeypatch):
    vocab_size = 5003
    monkeypatch.setattr(tuna_trl.head, "CHUNK_BYTES", 4 * vocab_size * 16)
    monkeypatch.setattr(tuna_trl.head, "KEPT_BYTES", 0)
    for adapter in (False, True):
        model = random_llama(vocab_size)
        if adapter:
            model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
        install(model)
        kept = []
        own = {p.data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            response_logps(model, COLLATOR(random_rows(V)))
        sizes = [t.numel() for t in kept if t.data_ptr() not in own]
        assert max(sizes) < 80 * vocab_size / 10  # 80 tokens are scored or trained


# ---- What install leaves behind ----


def test_the_plain_forward_and_generation_are_the_same_after_install():
    ids = torch.randint(1, V, (2, 9))
    for name in ("llama", "unknown", "gemma2"):
        model = MODELS[name]()
        logits = model(input_ids=ids).logits
        tokens = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
        assert install(model) is model
        assert torch.equal(model(input_ids=ids).logits, logits)
        assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0), tokens)
        with pytest.raises(ValueError, match="not_a_keyword"):  # generate() still checks keywords by our signature
            model.generate(ids, max_new_tokens=1, not_a_keyword=1)


def test_a_second_install_changes_nothing():
    model = random_llama(V)
    install(model)
    forward, state = model.forward, dict(model.__dict__)
    assert install(model) is model
    assert model.forward == forward and model.__dict__ == state
    peft = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    assert install(peft) is model and model.forward == forward


@pytest.mark.parametrize("name", ["llama", "unknown"])
def test_a_deep_copy_scores_and_runs_with_its_own_weights(name):
    model, batch, ids = MODELS[name](), COLLATOR(random_rows(V)), torch.randint(1, V, (1, 5))
    install(model)
    before, plain = response_logps(model, batch).logps, model(input_ids=ids).logits
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    fresh = MODELS[name]()
    fresh.load_state_dict(other.state_dict())
    install(fresh)
    assert torch.equal(response_logps(other, batch).logps, response_logps(fresh, batch).logps)
    assert torch.equal(other(input_ids=ids).logits, fresh(input_ids=ids).logits)
    assert torch.equal(response_logps(model, batch).logps, before)
    assert torch.equal(model(input_ids=ids).logits, plain)


def test_accelerates_unwrapping_of_mixed_precision_leaves_the_scoring_in_place():
    from accelerate.utils import convert_outputs_to_fp32, extract_model_from_parallel

    model, batch = random_llama(V), COLLATOR(random_rows(V))
    install(model)
    before = response_logps(model, batch).logps
    model._original_forward = model.forward  # what Accelerator.prepare_model does under bf16
    model.forward = type(model.forward)(convert_outputs_to_fp32(model.forward.__func__), model)
    extract_model_from_parallel(model, keep_fp32_wrapper=False)
    assert torch.equal(response_logps(model, batch).logps, before)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "LoRA"])
def test_what_is_saved_loads_without_us_and_has_no_trace_of_us(tmp_path, adapter):
    model, ids = random_llama(V), torch.randint(1, V, (1, 7))
    model.save_pretrained(tmp_path / "base")
    if adapter:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    install(model)
    model.save_pretrained(tmp_path / "saved")
    if adapter:
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "saved")
    else:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    for path in (tmp_path / "saved").glob("*.json"):
        assert "tuna" not in path.read_text().lower(), path.name
    assert not any("tuna" in name for name in model.state_dict())


def test_an_adapter_merged_after_install_scores_as_it_did():
    model = get_peft_model(random_llama(V), LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False))
    install(model)
    model.eval()
    batch = COLLATOR(random_rows(V))
    before = response_logps(model, batch).logps
    merged = model.merge_and_unload()
    torch.testing.assert_close(response_logps(merged, batch).logps, before, rtol=1e-4, atol=1e-4)


def test_a_model_without_a_head_is_named():
    body = LlamaModel(random_llama(V).config)
    with pytest.raises(InputError, match="`model`: LlamaModel has no output embedding.*AutoModelForCausalLM"):
        install(body)


# ---- score_rows ----


def rows_to_score():
    rows = [simple_row(i, n=1 + i % 3) for i in range(5)]
    rows[1]["responses"][1]["rank"] = None  # unranked responses are scored all the same
    rows[2]["responses"][0]["finish_reason"] = "length"
    return rows


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_given_responses_score_as_they_do_alone_whatever_the_batch(tiny_llama, tiny_tokenizer, batch_size):
    rows = rows_to_score()
    results = score_rows(tiny_llama, tiny_tokenizer, rows, batch_size=batch_size)
    for row, result in zip(rows, results, strict=True):
        tokenised = tokenize_row(row, Template(tiny_tokenizer))
        assert len(result) == len(row["responses"])
        for ids, length, found in zip(tokenised["response_ids"], tokenised["score_lengths"], result, strict=True):
            P = len(tokenised["prompt_ids"])
            expected = sum(
                reference.sequence_logps(tiny_llama, tokenised["prompt_ids"] + ids, list(range(P, P + length)))
            )
            assert found["num_tokens"] == length
            assert found["logprob"] == pytest.approx(expected.item(), rel=1e-5)


def test_the_end_token_counts_unless_the_sampler_cut_the_response(tiny_llama, tiny_tokenizer):
    row = simple_row(0, n=2)
    for response in row["responses"]:
        response["content"] = "same words"
    row["responses"][1]["finish_reason"] = "length"
    whole, cut = score_rows(tiny_llama, tiny_tokenizer, [row])[0]
    assert whole["num_tokens"] == cut["num_tokens"] + 1
    assert whole["logprob"] < cut["logprob"]


def test_a_response_that_does_not_fit_has_no_score_and_the_others_keep_theirs(tiny_llama, tiny_tokenizer):
    row = simple_row(0, n=3)
    lengths = [len(ids) for ids in tokenize_row(row, Template(tiny_tokenizer))["response_ids"]]
    P = len(tokenize_row(row, Template(tiny_tokenizer))["prompt_ids"])
    assert lengths[0] > lengths[1] > lengths[2]
    full = score_rows(tiny_llama, tiny_tokenizer, [row])[0]
    results = score_rows(tiny_llama, tiny_tokenizer, [row], max_length=P + lengths[1])[0]
    assert results[0] == {"logprob": None, "num_tokens": None}
    for found, expected in zip(results[1:], full[1:], strict=True):
        assert found == pytest.approx(expected, rel=1e-6)
    nothing = {"logprob": None, "num_tokens": None}
    assert score_rows(tiny_llama, tiny_tokenizer, [row], max_length=P) == [[nothing] * 3]


def test_scoring_leaves_model_mode_gradients_tokenizer_and_rows_alone(tiny_llama, tiny_tokenizer):
    rows = rows_to_score()
    before = json.dumps(rows), tiny_tokenizer.__getstate__().keys(), tiny_tokenizer.pad_token
    for mode in (True, False):
        tiny_llama.train(mode)
        score_rows(tiny_llama, tiny_tokenizer, rows)
        assert tiny_llama.training is mode
    assert gradients(tiny_llama) == {}
    assert (json.dumps(rows), tiny_tokenizer.__getstate__().keys(), tiny_tokenizer.pad_token) == before
    assert score_rows(tiny_llama, tiny_tokenizer, []) == []
