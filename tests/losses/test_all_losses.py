"""Laws that every registered ranking loss keeps, each against its loop oracle; and the identities between them."""

from __future__ import annotations

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from tuna_trl.errors import InputError
from tuna_trl.losses import _LOSSES, bind, ranking_loss
from tuna_trl.losses.tuna import tuna_loss


# name -> keyword arguments beyond the defaults that are worth a case of their own
CASES = [
    ("tuna", {}),
    ("rrhf", {}),
    ("brio", {}),
    ("brio", {"length_exponent": 2.0, "pair_reduction": "sum"}),
    ("slic", {}),
    ("slic", {"delta": 0.25}),
    ("pro", {}),
    ("listmle", {}),
    ("listmle", {"tau": 0.5, "top_k": 2}),
    ("listnet", {}),
    ("listnet", {"tau": 2.0, "target_temperature": 0.7}),
    ("simpo", {}),
    ("simpo", {"beta": 0.3, "gamma": 1.1, "rank_scaled": True}),
    ("dpo_pl", {}),
    ("lipo", {}),
    ("lipo", {"beta": 0.5}),
]
IDS = [f"{name}-{'-'.join(f'{k}={v}' for k, v in kwargs.items()) or 'default'}" for name, kwargs in CASES]
NAMES = sorted({name for name, _ in CASES})
ORACLES = {
    "tuna": reference.tuna,
    "rrhf": reference.rrhf,
    "brio": lambda *a, **k: reference.tuna(*a, **{"margin": 0.001, **k}),
    "slic": reference.slic,
    "pro": reference.pro,
    "listmle": reference.listmle,
    "listnet": reference.listnet,
    "simpo": reference.simpo,
    "dpo_pl": reference.dpo_pl,
    "lipo": reference.lipo,
}


def batch(seed: int, B: int = 3, N: int = 5, dtype=torch.float64) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    targets = torch.randn(B, N, generator=g, dtype=dtype)
    if seed % 3 == 0:
        targets[0, 0] = torch.nan  # a response without a score
    return {
        "logps": -15 * torch.rand(B, N, generator=g, dtype=dtype),
        "lengths": torch.randint(1, 9, (B, N), generator=g),
        "ranks": torch.randint(1, N + 1, (B, N), generator=g),
        "mask": torch.rand(B, N, generator=g) < 0.8,
        "targets": targets,
        "ref_logps": -15 * torch.rand(B, N, generator=g, dtype=dtype),
        "groups": torch.arange(N).repeat(B, 1) if seed % 2 else torch.randint(0, N, (B, N), generator=g),
    }


def value(name: str, data: dict[str, torch.Tensor], **kwargs) -> torch.Tensor:
    tensors = [data[key] for key in ("logps", "lengths", "ranks", "mask")]
    extra = {key: data[key] for key in ("targets", "ref_logps", "groups")}
    return ranking_loss(name)(*tensors, **extra, **kwargs)


def test_every_registered_loss_is_tested_here():
    assert set(NAMES) == {name for name in _LOSSES if not name.startswith("test-")}


@pytest.mark.parametrize("name, kwargs", CASES, ids=IDS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_value_and_gradient_equal_the_loop_oracle(name, kwargs, seed):
    data = batch(seed)
    fast = data["logps"].clone().requires_grad_()
    slow = data["logps"].clone().requires_grad_()
    ours = value(name, {**data, "logps": fast}, **kwargs)
    own = {"groups": data["groups"]}
    if name in ("dpo_pl", "lipo"):
        own["ref_logps"] = data["ref_logps"]
    if name == "listnet":
        own["targets"] = data["targets"]
    oracle = torch.stack(ORACLES[name](slow, data["lengths"], data["ranks"], data["mask"], **own, **kwargs))
    torch.testing.assert_close(ours, oracle, rtol=1e-9, atol=1e-11)
    ours.sum().backward()
    oracle.sum().backward()
    torch.testing.assert_close(fast.grad, slow.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), extra=st.integers(1, 3), garbage=st.sampled_from([0.0, 1e4, float("nan")]))
def test_padding_changes_nothing_whatever_it_holds(name, seed, extra, garbage):
    data = batch(seed)
    B = len(data["logps"])
    fill = {"logps": garbage, "lengths": 0, "ranks": 1, "mask": False, "targets": garbage, "ref_logps": garbage}
    padded = {
        key: torch.cat([tensor, torch.full((B, extra), fill.get(key, 0)).to(tensor.dtype)], 1)
        for key, tensor in data.items()
    }
    padded["logps"].requires_grad_()
    ours = value(name, padded)
    torch.testing.assert_close(ours, value(name, data))
    ours.sum().backward()
    assert torch.isfinite(padded["logps"].grad).all()
    assert (padded["logps"].grad[:, -extra:] == 0).all()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_order_of_the_responses_changes_nothing(name, seed):
    data = batch(seed)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(value(name, {k: v[:, order] for k, v in data.items()}), value(name, data))


@pytest.mark.parametrize("name", NAMES)
def test_no_pair_is_a_graph_connected_zero(name):
    for ranks, mask in (([1, 1, 1], [True] * 3), ([1, 2, 3], [True, False, False]), ([1, 2, 3], [False] * 3)):
        data = batch(1, B=1, N=3) | {"ranks": torch.tensor([ranks]), "mask": torch.tensor([mask])}
        data["logps"].requires_grad_()
        loss = value(name, data)
        assert loss.tolist() == [0.0]
        loss.sum().backward()
        assert (data["logps"].grad == 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_1e4_stay_finite(name, dtype):
    scores = torch.tensor([[-1e4, 1e4, 0.0, 3.0]], dtype=dtype, requires_grad=True)
    data = {
        "logps": scores,
        "lengths": torch.ones(1, 4, dtype=torch.long),
        "ranks": torch.tensor([[1, 2, 3, 3]]),
        "mask": torch.ones(1, 4, dtype=torch.bool),
        "targets": torch.tensor([[1e4, 0.0, -1e4, -1e4]], dtype=dtype),
        "ref_logps": torch.zeros(1, 4, dtype=dtype),
        "groups": torch.arange(4).unsqueeze(0),
    }
    loss = value(name, data)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_bf16_log_probs_are_computed_with_in_float32(name):
    data = batch(5, dtype=torch.float32)
    half = {**data, "logps": data["logps"].bfloat16()}
    assert value(name, half).dtype == torch.float32
    exact = value(name, {**data, "logps": half["logps"].float()})
    torch.testing.assert_close(value(name, half), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_better_best_response_never_costs_more(name):
    data = batch(7, B=1, N=4) | {"ranks": torch.tensor([[1, 2, 3, 4]]), "mask": torch.ones(1, 4, dtype=torch.bool)}
    data["groups"] = torch.arange(4).unsqueeze(0)
    if name == "listnet":
        return  # a cross-entropy: overshooting the ranker's distribution costs
    if name in ("lipo", "pro"):
        # the weights of lipo depend on the model's own order, and pro scales s_k by its distance: compare at the top
        data["logps"] = torch.tensor([[-1.0, -8.0, -9.0, -10.0]], dtype=torch.float64)
        data["lengths"] = torch.ones(1, 4, dtype=torch.long)
    raised = {**data, "logps": data["logps"] + torch.tensor([[0.5, 0.0, 0.0, 0.0]], dtype=torch.float64)}
    assert value(name, raised).item() <= value(name, data).item()


# ---- identities ----


def pair(seed: int) -> dict[str, torch.Tensor]:
    data = batch(2 * seed + 1, B=4, N=2)
    return data | {"ranks": torch.tensor([[1, 2]]).repeat(4, 1), "mask": torch.ones(4, 2, dtype=torch.bool)}


def means(data):
    return data["logps"] / data["lengths"]


def test_rrhf_is_tuna_without_margin_summed():
    data = batch(11)
    tensors = [data[key] for key in ("logps", "lengths", "ranks", "mask")]
    expected = tuna_loss(*tensors, groups=data["groups"], margin=0.0, pair_reduction="sum")
    torch.testing.assert_close(value("rrhf", data), expected)


def test_listmle_of_a_pair_is_simpo_without_a_margin():
    data = pair(3)
    torch.testing.assert_close(value("listmle", data, tau=1.7), value("simpo", data, beta=1.7, gamma=0.0))


def test_dpo_pl_of_a_pair_is_dpos_sigmoid_loss():
    data = pair(4)
    ratio = data["logps"] - data["ref_logps"]
    expected = -logsigmoid(0.3 * (ratio[:, 0] - ratio[:, 1]))
    torch.testing.assert_close(value("dpo_pl", data, beta=0.3), expected)


def test_tuna_of_a_pair_is_slic_on_averaged_log_probs():
    data = pair(5)
    averaged = {**data, "logps": means(data), "lengths": torch.ones_like(data["lengths"])}
    torch.testing.assert_close(value("tuna", data, margin=0.4), value("slic", averaged, delta=0.4))


def test_pro_of_a_pair_is_listmle():
    data = pair(6)
    torch.testing.assert_close(value("pro", data), value("listmle", data))


def test_listmle_without_ties_is_the_plackett_luce_likelihood():
    data = batch(13, B=2, N=4) | {
        "ranks": torch.tensor([[1, 2, 3, 4], [3, 1, 4, 2]]),
        "mask": torch.ones(2, 4, dtype=torch.bool),
    }
    for b, order in enumerate(([0, 1, 2, 3], [1, 3, 0, 2])):
        s = means(data)[b][order]
        likelihood = sum(s[k] - torch.logsumexp(s[k:], 0) for k in range(4))
        assert value("listmle", data)[b].item() == pytest.approx(-likelihood.item(), rel=1e-12)


def test_listnet_is_least_where_the_model_has_the_rankers_distribution():
    scores = torch.tensor([[0.3, -0.2, -1.1]], dtype=torch.float64)
    data = {
        "logps": (scores - torch.logsumexp(scores, 1, keepdim=True)).requires_grad_(),
        "lengths": torch.ones(1, 3, dtype=torch.long),
        "ranks": torch.tensor([[1, 2, 3]]),
        "mask": torch.ones(1, 3, dtype=torch.bool),
        "targets": scores,
        "ref_logps": scores,
        "groups": torch.arange(3).unsqueeze(0),
    }
    value("listnet", data).sum().backward()
    torch.testing.assert_close(data["logps"].grad, torch.zeros(1, 3, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["dpo_pl", "lipo"])
def test_a_loss_that_needs_a_reference_says_so(name):
    data = batch(1)
    with pytest.raises(InputError, match="needs `ref_logps`"):
        ranking_loss(name)(data["logps"], data["lengths"], data["ranks"], data["mask"])


def test_a_callable_that_takes_less_than_the_trainer_gives_is_named_at_once():
    def narrow(logps, lengths, ranks, mask):
        return logps.sum(1)

    with pytest.raises(InputError, match="`ranking_loss`: 'narrow' takes no 'targets'.*\\*\\*kwargs"):
        bind(narrow, {}, {})
    assert bind(lambda logps, lengths, ranks, mask, targets=None, ref_logps=None: logps.sum(1), {}, {})


def test_a_setting_in_two_places_is_named():
    with pytest.raises(InputError, match="`margin` is 0.3 and `loss_kwargs` has 0.2; set the field `margin` alone"):
        bind("tuna", {"margin": 0.2}, {"margin": 0.3})
    assert bind("tuna", {"margin": 0.2}, {"margin": 0.2}).keywords["margin"] == 0.2
