"""One of two gloo processes that hold a model sharded by `fully_shard` to the unsharded model's numbers.

Usage: fsdp_worker.py FOLDER, with keyword arguments of `compare` in FOLDER/cases.json. Ranks come from the
environment; rank 0 writes FOLDER/out.json: for every case and rank the largest relative differences of log-probs, loss
and gathered gradients, or the error that was raised.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard


sys.path.insert(0, str(Path(__file__).parent))

from tiny import random_llama, random_model  # noqa: E402
from training import random_rows, tokenised_row  # noqa: E402

import tuna_trl.head  # noqa: E402
from tuna_trl.collator import RankedCollator  # noqa: E402
from tuna_trl.layouts import choose_layout  # noqa: E402
from tuna_trl.losses import bind  # noqa: E402
from tuna_trl.scoring import install, response_logps  # noqa: E402


V = 97
LOSSES = {"tuna": {}, "simpo": {}, "listmle": {}}


def model_of(family: str, *, frozen: bool = False, lora: str = ""):
    """The same model on every call and rank; `lora`: target modules, comma-separated."""
    name, _, tied = family.partition("-")
    made = random_llama(V, tie_word_embeddings=bool(tied)) if name == "llama" else random_model(family, V)
    if lora:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(3)
        made = get_peft_model(made, LoraConfig(r=4, target_modules=lora.split(","), init_lora_weights=False))
    if frozen:
        made.get_output_embeddings().weight.requires_grad_(False)
    return made.train()


def shard(model, layout: str, *, reshard: bool = True, policy: MixedPrecisionPolicy | None = None) -> None:
    """`root`: the head in the group of the whole model. `own`: in one of its own. `accelerate`: as accelerate shards.
    `inside`: what is inside the head."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    options = dict(mesh=mesh, reshard_after_forward=reshard, mp_policy=policy or MixedPrecisionPolicy())
    if layout == "accelerate":
        return shard_as_accelerate(model, options)
    for layer in base.model.layers:
        fully_shard(layer, **options)
    if layout == "own":
        fully_shard(base.get_output_embeddings(), **options)
    if layout == "inside":
        fully_shard(base.get_output_embeddings().base_layer, **options)
    fully_shard(model, **{**options, "reshard_after_forward": None})


def shard_as_accelerate(model, options: dict) -> None:
    """accelerate's own function, with as much of an Accelerator as it looks at: it cannot be made on a CPU."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=options["reshard_after_forward"],
        cpu_ram_efficient_loading=False,
    )
    plugin.mixed_precision_policy = options["mp_policy"]
    stub = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no",
        is_main_process=dist.get_rank() == 0,
        device=torch.device("cpu"),
    )
    fsdp2_prepare_model(stub, model)


def batch_of(which: str) -> list[list[dict]]:
    """The rows of each rank: the same three on both, others on each (so that they work through 1 and 5 chunks), or
    none that has a token to score on the second."""
    rows = random_rows(V)
    if which == "same":
        return [rows] * dist.get_world_size()
    short = tokenised_row([5, 6, 7], [[8, 9], [10]], [1, 2])
    if which == "other":
        return [rows, [short]]
    return [rows, [tokenised_row([5, 6], [[], []], [1, 2])]]


def total(model, rows: list[dict], name: str, batch_layout: str = "rows"):
    """(log-probs, loss) of one rank's rows, the loss summed over them."""
    batch = RankedCollator(pad_token_id=0, mle_target="all")(rows)
    result = response_logps(model, batch, layout=batch_layout)
    loss = bind(name, LOSSES[name], {})(result.logps, result.lengths, batch["ranks"], batch["rank_mask"])
    return result.logps.detach(), loss.sum() + result.nll.sum() / 10


def relative(a, b) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))


def gradients(model) -> dict[str, torch.Tensor]:
    """By name, gathered: every rank must call it."""
    whole = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in whole.items()}


def compare(
    family: str,
    layout: str,
    batches: str,
    *,
    frozen: bool = False,
    lora: str = "",
    loss: str = "tuna",
    installed: str = "before",
    reshard: bool = True,
    steps: int = 2,
    output_dtype: str | None = None,
    extra_hook: bool = False,
    batch_layout: str = "rows",
) -> dict[str, float]:
    """Sharded in `batch_layout` against unsharded in padded rows.

    FSDP averages gradients over ranks: the unsharded model's are of the mean.
    """
    one, two = (model_of(family, frozen=frozen, lora=lora) for _ in range(2))
    install(one)
    if installed == "before":
        install(two)
        assert choose_layout(two, batch_layout) == batch_layout
    policy = MixedPrecisionPolicy(output_dtype=getattr(torch, output_dtype)) if output_dtype else None
    shard(two, layout, reshard=reshard, policy=policy)
    if installed == "after":
        assert choose_layout(two, batch_layout) == batch_layout  # sharded: taken at its word, watched at each step
        install(two)
    if extra_hook:
        two.get_output_embeddings().register_forward_hook(lambda module, args, output: output + 1)
    ranks = batch_of(batches)
    worst = dict(logps=0.0, loss=0.0, gradient=0.0)
    for _ in range(steps):  # gradients of the second come on top: what a step leaves behind must not change the next
        expected = [total(one, rows, loss) for rows in ranks]
        (sum(value for _, value in expected) / len(ranks)).backward()
        logps, value = total(two, ranks[dist.get_rank()], loss, batch_layout)
        value.backward()
        mine = expected[dist.get_rank()]
        worst["logps"] = max(worst["logps"], relative(logps, mine[0]))
        worst["loss"] = max(worst["loss"], relative(value.detach(), mine[1].detach()))
    found, wanted = gradients(two), {name: p.grad for name, p in one.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    worst["gradient"] = max(relative(found[name], wanted[name]) for name in wanted)
    with torch.no_grad():
        for _ in range(2):
            logps, _ = total(two, ranks[dist.get_rank()], loss, batch_layout)
            worst["logps"] = max(worst["logps"], relative(logps, mine[0]))
    return worst


def main(folder: str, cases: list[dict]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    tuna_trl.head.CHUNK_BYTES = 4 * V * 16  # 16 tokens a chunk
    out = []
    for case in cases:
        try:
            found: dict = compare(**case)
        except Exception as error:  # written down: the test says which error it wants
            found = {"error": type(error).__name__, "message": str(error)}
        everyone: list = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, found)
        out.append(everyone)
    if dist.get_rank() == 0:
        (Path(folder) / "out.json").write_text(json.dumps(out))
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo may deadlock when the interpreter takes it apart (two_process_worker.py)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[1], "cases.json").read_text()))
