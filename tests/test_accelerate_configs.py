"""The accelerate configurations that come with the package: accelerate reads them, and each says what it promises."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin
from peft import LoraConfig
from tiny import random_llama
from torch import nn
from training import config

from tuna_trl.adapters import wrap_with_adapter
from tuna_trl.cli.launch import shipped_configs
from tuna_trl.errors import InputError
from tuna_trl.head import LogitTransform, token_logps
from tuna_trl.sharding import keep_scores_exact


KINDS = {
    "single_gpu": "NO",
    "multi_gpu": "MULTI_GPU",
    "multi_cpu": "MULTI_GPU",  # the only type for which accelerate starts several processes without mpirun
    "fsdp2": "FSDP",
    "zero2": "DEEPSPEED",
    "zero3": "DEEPSPEED",
}


def test_every_shipped_configuration_is_known_here():
    assert shipped_configs().keys() == KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_it(name):
    read = load_config_from_file(str(shipped_configs()[name]))
    assert read.distributed_type.value == KINDS[name]
    assert read.use_cpu is (name == "multi_cpu")
    assert read.mixed_precision == ("no" if name == "multi_cpu" else "bf16")
    # left open: a number that is not the machine's would be worse than a question
    assert read.num_processes == (1 if name == "single_gpu" else -1)


def test_fsdp_is_version_2_by_layer_with_sharded_checkpoints_and_leaves_checkpointing_to_the_trainer():
    options = load_config_from_file(str(shipped_configs()["fsdp2"])).fsdp_config
    assert options.pop("fsdp_version") == 2 and options.pop("fsdp_offload_params") is False
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, **{name.removeprefix("fsdp_"): value for name, value in options.items()}
    )
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert "transformer_auto_wrap_policy" in str(plugin.auto_wrap_policy)
    assert "SHARDED_STATE_DICT" in str(plugin.state_dict_type)
    assert not plugin.activation_checkpointing and not plugin.cpu_ram_efficient_loading


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_says_its_stage(stage):
    options = load_config_from_file(str(shipped_configs()[f"zero{stage}"])).deepspeed_config
    assert options["zero_stage"] == stage and options["zero3_init_flag"] is (stage == 3)
    assert options.get("zero3_save_16bit_model", False) is (stage == 3)


def test_mixed_precision_of_fsdp_does_not_round_scores():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision("bf16")
    before = plugin.mixed_precision_policy
    assert before.output_dtype == torch.bfloat16  # what accelerate does, and why the function is there
    keep_scores_exact(plugin)
    after = plugin.mixed_precision_policy
    assert after.output_dtype is None
    assert (after.param_dtype, after.reduce_dtype) == (before.param_dtype, before.reduce_dtype)


# ---- ZeRO-3, through doubles: DeepSpeed needs a GPU ----


def zero3_arguments(tmp_path, stage=3, **changes):
    args = config(tmp_path, activation_checkpointing=True, **changes)
    args.deepspeed_plugin = SimpleNamespace(zero_stage=stage)
    return args


@pytest.mark.parametrize("stage", [2, 3])
def test_adapters_take_the_base_dtype_and_checkpoint_reentrantly_under_zero3_only(tmp_path, stage):
    args = zero3_arguments(tmp_path, stage, activation_checkpointing_kwargs={"preserve_rng_state": True})
    given = args.activation_checkpointing_kwargs
    model = wrap_with_adapter(random_llama(97).bfloat16(), LoraConfig(target_modules=["q_proj"]), args)
    dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
    assert dtypes == {torch.bfloat16 if stage == 3 else torch.float32}
    assert args.activation_checkpointing_kwargs.get("use_reentrant") is (True if stage == 3 else None)
    assert args.activation_checkpointing_kwargs["preserve_rng_state"] is True
    assert given == {"preserve_rng_state": True}  # the user's dict


def test_non_reentrant_checkpointing_is_overruled_aloud_under_zero3(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("transformers.utils.logging.get_logger", lambda name: SimpleNamespace(warning=said.append))
    args = zero3_arguments(tmp_path, activation_checkpointing_kwargs={"use_reentrant": False})
    wrap_with_adapter(random_llama(97), LoraConfig(target_modules=["q_proj"]), args)
    assert args.activation_checkpointing_kwargs == {"use_reentrant": True} and "ZeRO-3" in said[0]


def test_without_checkpointing_or_an_adapter_zero3_changes_nothing(tmp_path):
    args = zero3_arguments(tmp_path)
    wrap_with_adapter(random_llama(97), None, args)
    assert args.activation_checkpointing_kwargs is None
    args.activation_checkpointing = False
    wrap_with_adapter(random_llama(97), LoraConfig(target_modules=["q_proj"]), args)
    assert args.activation_checkpointing_kwargs is None


class Partitioned:
    """As DeepSpeed's engine: weights are there from a module's call to its end, and again for its backward."""

    def __init__(self, head: nn.Module):
        self.head, self.gathers = head, 0
        self.whole = {name: p.data for name, p in head.named_parameters()}
        for parameter in head.parameters():
            parameter.ds_id, parameter.ds_shape = 0, parameter.shape
        for hook in (self.before, self.after):
            hook.__func__.__module__ = "deepspeed.double"
        head.register_forward_pre_hook(self.before)
        head.register_forward_hook(self.after)
        self.free()

    def free(self):
        for parameter in self.head.parameters():
            parameter.data = parameter.data.new_empty(0)

    def gather(self):
        self.gathers += 1
        for name, parameter in self.head.named_parameters():
            parameter.data = self.whole[name]

    def before(self, module, inputs):
        self.gather()

    def after(self, module, inputs, output):
        self.free()
        if output.requires_grad:
            output.register_hook(lambda gradient: self.gather())
        return output


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_a_partitioned_head_is_gathered_once_a_pass_whatever_the_chunks(frozen, monkeypatch):
    monkeypatch.setattr("tuna_trl.head.CHUNK_BYTES", 4 * 97 * 16)
    hidden = torch.randn(53, 16, requires_grad=True)
    targets = torch.randint(0, 97, (53,))
    head = nn.Linear(16, 97).requires_grad_(not frozen)
    expected = torch.log_softmax(head(hidden), 1)[torch.arange(53), targets]
    weights = torch.randn(53)
    wanted = torch.autograd.grad((expected * weights).sum(), [hidden, *([] if frozen else head.parameters())])
    engine = Partitioned(head)
    found = token_logps(hidden, targets, head, LogitTransform())
    assert engine.gathers == 1 and head.weight.numel() == 0
    assert "forward" not in head.__dict__  # what was put there for the call is gone
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    (found * weights).sum().backward()
    assert engine.gathers == 2
    for a, b in zip([hidden.grad, *([] if frozen else [p.grad for p in head.parameters()])], wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_partition_inside_the_head_is_refused():
    head = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 97))
    for parameter in head.parameters():
        parameter.ds_id = 0
    with pytest.raises(InputError, match=r"\(Sequential\) is sharded inside \(Linear\).*ZeRO-2"):
        token_logps(torch.randn(5, 16), torch.zeros(5, dtype=torch.long), head, LogitTransform())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="DeepSpeed ZeRO-3 needs a CUDA device")
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_deepspeed_trains_one_step(name, tmp_path, tiny_folder):
    pytest.importorskip("deepspeed")
    from test_launch import train

    done = train(tmp_path, tiny_folder, "--accelerate_config", name, "--num_processes", "1")
    assert done.returncode == 0, done.stderr
