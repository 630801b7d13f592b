"""Laws of the shared prompt: value and gradient of the padded rows, for every family, or the rows and one line why."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import FAMILIES, chatml_tokenizer, random_llama, random_model
from training import config, gradients, losses, parameters, random_rows, ranked_dataset, tokenised_row
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from tuna_trl import InputError, RankedCollator, TunaTrainer, score_rows
from tuna_trl.attention import IMPLEMENTATIONS
from tuna_trl.layouts import choose_layout
from tuna_trl.scoring import install, response_logps


V = 101
COLLATOR = RankedCollator(pad_token_id=0, mle_target="all")
# what follows a plan by its attention, and what needs the block mask
PLANNED = ["llama", *FAMILIES, "qwen2", "phi3", "gpt2", "qwen3_moe"]
MASKED = ["stablelm", "gptj"]
SMALL = {
    "gpt2": dict(n_embd=32, n_head=4, n_layer=2, n_positions=512, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "gptj": dict(n_embd=32, n_head=4, n_layer=2, rotary_dim=8),
    "qwen3_moe": dict(head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
}


def made(family, **overrides):
    if family == "llama":
        return random_llama(V, **overrides)
    if family in FAMILIES:
        return random_model(family, V, **overrides)
    from tiny import SIZES

    torch.manual_seed(0)
    values = {**SIZES, **SMALL.get(family, {}), "vocab_size": V, **overrides}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values)).eval()


def objective(model, batch, layout):
    """A loss that every scored and every trained token of every response is in, each with a weight of its own."""
    result = response_logps(model, batch, layout=layout)
    g = torch.Generator().manual_seed(5)
    weights = torch.randn(2, *result.logps.shape, generator=g).to(result.logps)
    return result, (weights[0] * result.logps).sum() + (weights[1] * result.nll).sum()


def both(model, batch):
    """`(results, gradients)` of rows and of the shared prompt."""
    found = []
    for layout in ("rows", "shared_prompt"):
        model.zero_grad()
        result, loss = objective(model, batch, layout)
        loss.backward()
        found.append((result, gradients(model)))
    return found


def agree(model, batch, *, rtol):
    (rows, row_gradients), (shared, shared_gradients) = both(model, batch)
    for name in ("logps", "lengths", "nll", "nll_tokens"):
        torch.testing.assert_close(getattr(shared, name), getattr(rows, name), rtol=rtol, atol=rtol)
    assert row_gradients.keys() == shared_gradients.keys()
    largest = max(g.abs().max() for g in row_gradients.values())
    for name, gradient in row_gradients.items():
        # some gradients are zero but for rounding (a bias that a softmax cancels)
        scale = max(gradient.abs().max().item(), 1e-4 * largest.item())
        assert (shared_gradients[name] - gradient).abs().max() <= rtol * scale, name


def lora(model):
    targets = "all-linear" if not hasattr(model.config, "n_embd") else ["c_attn"]
    return get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "LoRA"])
@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("family", PLANNED)
def test_value_and_gradient_are_those_of_the_padded_rows(family, checkpointed, adapter):
    model = made(family)
    assert choose_layout(model) == "shared_prompt"
    assert model.config._attn_implementation in IMPLEMENTATIONS
    model = lora(model) if adapter else model
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    agree(model.train(), COLLATOR(random_rows(V)), rtol=1e-4)


@pytest.mark.parametrize("family", MASKED)
def test_a_model_that_hands_no_plan_on_gets_a_block_mask(family):
    model = made(family)
    own = model.config._attn_implementation
    assert choose_layout(model) == "shared_prompt" and model.config._attn_implementation == own
    agree(model, COLLATOR(random_rows(V)), rtol=1e-4)


@pytest.mark.parametrize("family", ["phi", "phi-tied"])
def test_in_float64_they_agree_to_1e_12(family):
    model = random_model(family, V).double()
    assert choose_layout(model) == "shared_prompt"
    agree(model, COLLATOR(random_rows(V)), rtol=1e-12)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "mistral"])
def test_in_bfloat16_the_error_is_not_worse_than_the_padded_rows(family):
    model, rows = made(family), [row for seed in range(8) for row in random_rows(V, seed=seed)]
    batch = COLLATOR(rows)
    for m in (exact := copy.deepcopy(model)), model.bfloat16():
        assert choose_layout(m) == "shared_prompt"
    truth = response_logps(exact, batch, layout="rows").logps
    errors = {
        layout: (response_logps(model, batch, layout=layout).logps - truth).abs().mean().item()
        for layout in ("rows", "shared_prompt")
    }
    assert 0 < errors["shared_prompt"] <= 1.25 * errors["rows"]  # the kernels differ, their rounding does not


def test_sft_rows_and_pairs_ride_the_same_path():
    model = made("llama")
    choose_layout(model)
    g = torch.Generator().manual_seed(0)
    rows = [
        tokenised_row(
            torch.randint(1, V, (p,), generator=g).tolist(),
            [torch.randint(1, V, (r,), generator=g).tolist() for r in lengths],
            list(range(1, len(lengths) + 1)),
        )
        for p, lengths in ((0, [9]), (4, [3]), (6, [2, 5]), (0, [4, 2]), (3, [1, 1]))
    ]
    agree(model, COLLATOR(rows), rtol=1e-4)


def test_a_batch_that_does_not_say_where_its_prompts_end_is_scored_in_rows():
    model, batch = made("llama"), COLLATOR(random_rows(V))
    choose_layout(model)
    expected = response_logps(model, batch, layout="shared_prompt").logps
    del batch["prompt_lengths"]
    torch.testing.assert_close(
        response_logps(model, batch, layout="shared_prompt").logps, expected, rtol=1e-5, atol=1e-4
    )


def test_one_packed_forward_reads_every_token_once(monkeypatch):
    model, rows = made("llama"), random_rows(V)
    choose_layout(model)
    seen = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    response_logps(model, COLLATOR(rows), layout="shared_prompt")
    unique = sum(len(row["prompt_ids"]) + sum(map(len, row["response_ids"])) for row in rows)
    assert seen == [(1, unique)]


# ---- Models that cannot ----


def test_a_model_outside_the_interface_is_scored_in_rows_with_one_line_why(caplog):
    bloom = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("bloom", vocab_size=V, hidden_size=32, n_head=4, n_layer=2)
    )
    assert choose_layout(bloom) == "rows"
    (record,) = [r for r in caplog.records if "padded rows" in r.message]
    assert "BloomForCausalLM does not use transformers' attention interface" in record.message
    with pytest.raises(InputError, match='`batch_layout="shared_prompt"` is not possible: BloomForCausalLM'):
        choose_layout(bloom, "shared_prompt")


def test_layers_that_are_no_attention_are_refused():
    torch.manual_seed(0)
    mamba = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("mamba", vocab_size=V, hidden_size=32, num_hidden_layers=2, state_size=4)
    )
    with pytest.raises(InputError, match="MambaForCausalLM has layers of kind"):
        choose_layout(mamba, "shared_prompt")


def test_a_window_that_the_config_names_and_the_attention_is_not_told_of_is_refused():
    model = made("llama")
    model.config.sliding_window = 4
    with pytest.raises(InputError, match="other sliding windows than its config names"):
        choose_layout(model, "shared_prompt")
    assert model.config._attn_implementation == "sdpa"


def test_a_backbone_that_mixes_its_positions_is_found_by_its_numbers():
    model = made("llama")

    def mixed(module, args, output):
        return output + output.cumsum(1)  # what a convolution or a recurrence does across responses

    model.model.layers[0].mlp.register_forward_hook(mixed)
    with pytest.raises(InputError, match="gives other hidden states behind a shared prompt"):
        choose_layout(model, "shared_prompt")
    assert model.config._attn_implementation == "sdpa"


def test_a_layer_that_stops_following_the_plan_stops_the_training():
    model, batch = made("llama"), COLLATOR(random_rows(V))
    assert choose_layout(model) == "shared_prompt"
    attention = model.model.layers[1].self_attn
    attention.config = copy.deepcopy(attention.config)
    attention.config._attn_implementation = "sdpa"
    with pytest.raises((RuntimeError, TypeError)):
        response_logps(model, batch, layout="shared_prompt")


def test_an_unknown_layout_is_named():
    with pytest.raises(InputError, match="`batch_layout` is 'packed', expected one of auto, shared_prompt, rows"):
        choose_layout(made("llama"), "packed")


# ---- Under the trainer ----

TOKENIZER = chatml_tokenizer()


def trainer(tmp_path, layout, model=None, peft_config=None, **fields):
    return TunaTrainer(
        model or random_llama(len(TOKENIZER)),
        config(tmp_path, batch_layout=layout, max_steps=6, per_device_train_batch_size=2, **fields),
        train_dataset=ranked_dataset(8),
        processing_class=TOKENIZER,
        peft_config=peft_config,
    )


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("way", ["full", "LoRA", "nf4"])
def test_a_training_is_the_one_of_the_padded_rows(way, checkpointing, tmp_path, tiny_folder):
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    curves, ends = [], []
    for layout in ("rows", "shared_prompt"):
        model = None
        if way == "nf4":
            quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
            model = AutoModelForCausalLM.from_pretrained(tiny_folder, quantization_config=quantised)
        run = trainer(
            tmp_path,
            layout,
            model,
            None if way == "full" else adapter,
            activation_checkpointing=checkpointing,
            gradient_accumulation_steps=2,
        )
        run.train()
        curves.append(losses(run))
        ends.append(parameters(run.model))
    assert curves[1] == pytest.approx(curves[0], rel=1e-5 if way != "nf4" else 1e-3)
    for name, end in ends[0].items():
        torch.testing.assert_close(ends[1][name], end, rtol=1e-3, atol=1e-4 if way != "nf4" else 1e-2)


def test_arguments_under_which_a_packed_row_would_differ_fall_to_rows(tmp_path, caplog):
    assert trainer(tmp_path, "auto", neftune_noise_alpha=5.0)._layout == "rows"
    assert "`neftune_noise_alpha` scales its noise by the length of a row" in caplog.text
    with pytest.raises(InputError, match="not possible: `neftune_noise_alpha`"):
        trainer(tmp_path, "shared_prompt", neftune_noise_alpha=5.0)


def test_a_saved_model_has_no_trace_of_the_layout(tmp_path):
    run = trainer(tmp_path, "auto")
    assert run._layout == "shared_prompt"
    run.train()
    run.save_model(str(tmp_path / "saved"))
    for file in (tmp_path / "saved").glob("*.json"):
        if not file.name.startswith("tokenizer"):
            assert "tuna_" not in file.read_text(), file.name
    assert "architectures" in json.loads((tmp_path / "saved" / "config.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert loaded.config._attn_implementation == "sdpa"


def test_given_responses_are_scored_alike_in_both_layouts(tiny_llama, tiny_tokenizer):
    rows = [
        {"prompt": [{"role": "user", "content": "the question"}], "responses": [{"content": "a"}, {"content": "the"}]}
    ]
    shared = score_rows(copy.deepcopy(tiny_llama), tiny_tokenizer, rows)
    padded = score_rows(tiny_llama, tiny_tokenizer, rows, batch_layout="rows")
    for a, b in zip(shared[0], padded[0], strict=True):
        assert a["num_tokens"] == b["num_tokens"] and a["logprob"] == pytest.approx(b["logprob"], rel=1e-5)


def test_a_second_choice_changes_nothing_and_a_copy_keeps_it():
    model, batch = made("qwen3"), COLLATOR(random_rows(V))
    install(model)
    assert choose_layout(model) == choose_layout(model) == "shared_prompt"
    twin = copy.deepcopy(model)
    assert torch.equal(
        response_logps(twin, batch, layout="shared_prompt").logps,
        response_logps(model, batch, layout="shared_prompt").logps,
    )
