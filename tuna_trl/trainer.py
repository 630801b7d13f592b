"""`TunaTrainer`: wiring only. Data in, one forward, a ranking loss and a likelihood term, normalised exactly, logged.

What it wires lives elsewhere: `data.prepare` (rows to tokens), `collator` (tokens to a batch), `scoring` (a batch to
log-probs), `losses` (log-probs to a loss), `batch_metrics` (a batch to sums), `setup` (what SFTTrainer's arguments
mean), `model_card`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, PredictionOutput

from .adapters import wrap_with_adapter
from .argument_checks import check_arguments, check_collator, check_datasets, check_hooks, check_tokenised
from .batch_metrics import BatchSums
from .callbacks import CollapseAlarm
from .collator import RankedCollator
from .config import TunaConfig
from .data.prepare import TOKENISED_COLUMNS, Preparation, prepare_dataset
from .layouts import argument_against, choose_layout
from .losses import bind, takes
from .losses.pairs import length_normalised
from .memory_error import explaining_step
from .reference_model import COLUMN as REF_LOGPS
from .reference_model import reference_of
from .sampler import GroupedByLength
from .scoring import install, response_logps
from .setup_arguments import (
    as_dict,
    copied_config,
    limit_length,
    load_if_named,
    settle_tokenizer,
    training_template,
)
from .sharding import keep_scores_exact
from .tokens import Template


class TunaTrainer(Trainer):
    """
    Trains a causal language model on ranked responses (Tuna, arXiv 2310.13385); drop-in for [`trl.SFTTrainer`].

        total = ranking_weight * sum of L_rank / (all instructions of the accumulated batch on all processes)
              + mle_weight * sum of NLL / (all its likelihood tokens),

    so that 1 x 8, 8 x 1, 2 x 4 and two processes agree in loss and gradient. An SFT dataset is the case N = 1: no
    pairs, the likelihood term alone.

    Args:
        model: a model, a PEFT model, or a name ([`tuna_trl.loading.load_model`]).
        args: [`TunaConfig`]; `SFTConfig` and `TrainingArguments` are upgraded. Not changed.
        data_collator: replaces [`RankedCollator`]; must return the same tensors.
        train_dataset: ranked rows, or any dataset that SFTTrainer or DPOTrainer takes (not unpaired KTO rows).
        eval_dataset: the same, or a dict of named sets; their metrics keep their names.
        processing_class: the tokenizer; by default the model's own. Not changed.
        compute_loss_func: refused; the loss is chosen by `TunaConfig(ranking_loss=...)`, which takes a callable.
        compute_metrics: gets `EvalPrediction(predictions=s, label_ids=ranks)`, both `(rows, N)`, -100 = no response.
        callbacks, optimizers, optimizer_cls_and_kwargs: as in transformers.
        preprocess_logits_for_metrics: refused; there are no logits.
        quantization_config: for a model given by name.
        peft_config: an adapter to train instead of all weights.
        formatting_func: row -> text, for language modelling.

    Example:
        >>> trainer = TunaTrainer("Qwen/Qwen3-0.6B", train_dataset=ranked, peft_config=LoraConfig())  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    _tag_names = ["trl", "tuna", "tuna-trl", "ranking"]
    _name = "Tuna"
    # compute_loss normalises over the whole accumulated batch itself (transformers/trainer.py, training_step)
    loss_is_scaled_for_ga = True
    args: TunaConfig
    model: Any

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        args: TrainingArguments | None = None,
        data_collator: Callable[..., Any] | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_loss_func: Callable[..., Any] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        quantization_config: Any | None = None,
        peft_config: Any | None = None,
        formatting_func: Callable[[dict[str, Any]], str] | None = None,
    ) -> None:
        check_arguments(compute_loss_func, preprocess_logits_for_metrics, formatting_func, args)
        check_hooks(data_collator, compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs, eval_dataset)
        args = copied_config(args, model, train_dataset)
        check_datasets(args, train_dataset)
        self._ranking_loss = bind(
            args.ranking_loss,
            as_dict(args.loss_kwargs),
            {
                "margin": args.margin,
                "pair_reduction": args.pair_reduction,
                "length_exponent": args.length_exponent,
            },
        )
        model = load_if_named(model, args, quantization_config)
        limit_length(model, args)
        model, tokenizer, added_tokens = settle_tokenizer(model, processing_class, args)
        model = wrap_with_adapter(model, peft_config, args, added_tokens)
        install(model)
        self._layout = choose_layout(model, args.batch_layout, against=argument_against(args))

        self._template = Template(tokenizer, training_template(tokenizer, args))
        self._preparation = Preparation.of(args)
        self._formatting_func = formatting_func
        train_dataset = self._prepared(train_dataset, args, "train")
        if data_collator is not None:
            check_collator(data_collator, train_dataset)
        else:
            data_collator = RankedCollator(
                pad_token_id=self._template.pad_token_id,
                mle_target=args.mle_target if args.mle_weight else "none",
                pad_to_multiple_of=cast("int | None", args.pad_to_multiple_of),  # "auto" is settled by SFTConfig
            )
        self._sums = BatchSums()
        self._eval_sums = BatchSums()
        if args.shuffle_dataset:
            train_dataset = train_dataset.shuffle(seed=args.seed)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=self._prepared(eval_dataset, args, "eval"),
            processing_class=tokenizer,
            compute_metrics=compute_metrics,
            callbacks=[CollapseAlarm(), *(callbacks or [])],
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        if self.is_fsdp_enabled:
            keep_scores_exact(self.accelerator.state.fsdp_plugin)
        self._reference = reference_of(self, self._layout)
        if hasattr(self.model, "add_model_tags"):
            self.model.add_model_tags(self._tag_names)

    # ---- Data ----

    def _prepared(self, dataset: Any, args: TunaConfig, name: str) -> Any:
        """A dataset, or a dict of them, tokenised; already tokenised ones and names of eval sets pass through."""
        if dataset is None or isinstance(dataset, str):
            return dataset
        if isinstance(dataset, dict):
            return {key: self._prepared(value, args, key) for key, value in dataset.items()}
        if as_dict(args.dataset_kwargs).get("skip_prepare_dataset"):
            check_tokenised(dataset, name)
            return dataset
        # tokenised rows are past formatting, as for TRL
        if self._formatting_func is not None and not {"prompt_ids", "input_ids"} & set(dataset.column_names or ()):
            field = self._preparation.dataset_text_field
            formatting_func = self._formatting_func
            columns = dataset.column_names
            dataset = dataset.map(lambda row: {field: formatting_func(row)}, remove_columns=columns)
        # the main process of a node tokenises, the others read its cache
        with args.main_process_first(desc=f"tokenising {name}"):
            return prepare_dataset(dataset, self._template, self._preparation, name=name)

    def _set_signature_columns_if_needed(self) -> None:
        # By default every column that the model's forward does not name is dropped before the collator sees it.
        if self._signature_columns is None:
            columns: Any = [*TOKENISED_COLUMNS, REF_LOGPS, "input_ids", "labels"]
            self._signature_columns = columns

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        name = self.args.length_column_name
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(dataset, Dataset):
            return super()._get_train_sampler(train_dataset)
        if name not in dataset.column_names:  # rows whose preparation was skipped
            return RandomSampler(dataset)
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return GroupedByLength(dataset[name], step, seed)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """As in transformers: the micro-batches of one optimiser step; the second value is [instructions, likelihood
        tokens] of it, over all processes."""
        batches: list[dict[str, Tensor]] = []
        counts = torch.zeros(2, dtype=torch.float64)
        for _ in range(num_batches):
            try:
                batch = next(epoch_iterator)
            except StopIteration:
                break
            weights = self._instruction_weights(len(batch["input_ids"]))
            batch = {**batch, "instruction_weights": weights.to(batch["input_ids"].device)}
            tokens = (batch["labels"][..., 1:] != -100).sum((1, 2)).cpu()
            counts += torch.stack([weights.sum(), (tokens * weights).sum()])
            batches.append(batch)
        counts = counts.to(device=device, dtype=torch.float32)  # exact up to 2**24 tokens a step; MPS has no float64
        return batches, self.accelerator.gather(counts).reshape(-1, 2).sum(0)

    def _instruction_weights(self, rows: int) -> Tensor:
        """`(rows,)`: 0 for rows that accelerate repeats to even out the last batch between processes, else 1."""
        weights = torch.ones(rows)
        state = self.accelerator.gradient_state
        if self.accelerator.num_processes > 1 and state.end_of_dataloader and state.remainder > 0:
            real = state.remainder - self.accelerator.process_index * rows
            weights[max(real, 0) :] = 0.0
        return weights

    # ---- Loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """The loss of one micro-batch.

        Args:
            model: the model, wrapped as the trainer does.
            inputs: a batch of [`RankedCollator`].
            return_outputs: also return `{"scores", "ranks"}`, both `(B, N)`.
            num_items_in_batch: as counted by [`TunaTrainer.get_batch_samples`]; the loss is then this micro-batch's
                share of the accumulated batch's, with None its own mean.
        """
        result = response_logps(model, inputs, loss_type=self.args.loss_type, layout=self._layout)
        ranks, mask = inputs["ranks"], inputs["rank_mask"]
        extra = {"groups": inputs["groups"]} if takes(self._ranking_loss, "groups") else {}
        ref_logps = None
        if self._reference is not None:
            ref_logps = self._reference.logps(self.accelerator.unwrap_model(model), inputs)
        rank_losses = self._ranking_loss(
            result.logps, result.lengths, ranks, mask, targets=inputs["scores"], ref_logps=ref_logps, **extra
        )
        weights = inputs.get("instruction_weights")
        if rank_losses.shape != ranks.shape[:1]:
            raise TypeError(
                f"`ranking_loss` returned the shape {tuple(rank_losses.shape)}, expected one loss an instruction, "
                f"{tuple(ranks.shape[:1])}: the trainer averages them over the accumulated batch."
            )
        weights = torch.ones_like(rank_losses) if weights is None else weights.to(rank_losses)
        nll = (result.nll.sum(1) * weights).sum()
        if num_items_in_batch is None:
            tokens = (result.nll_tokens.sum(1) * weights).sum()
            instructions, scale = weights.sum(), 1
        else:
            instructions, tokens = num_items_in_batch.to(rank_losses)
            scale = self.accelerator.num_processes  # DDP averages gradients over processes, the counts are sums
        loss = self.args.ranking_weight * (rank_losses * weights).sum() / instructions.clamp(min=1)
        if self.args.mle_weight:
            loss = loss + self.args.mle_weight * nll / tokens.clamp(min=1)
        scores = length_normalised(result.logps.detach(), result.lengths, self.args.length_exponent)
        sums = self._sums if self.model.training else self._eval_sums
        sums.add(rank_losses.detach(), nll.detach(), result, scores, inputs, weights)
        loss = loss * scale
        return (loss, {"scores": scores, "ranks": ranks}) if return_outputs else loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; running out of memory anywhere is explained."""
        with explaining_step(self, None):
            return super().train(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        with self._offloading(), explaining_step(self, inputs):
            return super().training_step(model, inputs, *args, **kwargs)

    def _offloading(self) -> AbstractContextManager[Any]:
        if not self.args.activation_offloading:
            return nullcontext()
        from trl.models import get_act_offloading_ctx_manager

        return get_act_offloading_ctx_manager(model=self.model)

    # ---- Evaluation ----

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As in transformers; a dataset given here is prepared like the ones given to the constructor."""
        eval_dataset = self._prepared(eval_dataset, self.args, metric_key_prefix)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """As in transformers; the dataset is prepared like the ones given to the constructor."""
        return super().predict(self._prepared(test_dataset, self.args, "test"), ignore_keys, metric_key_prefix)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs = self._prepare_inputs(inputs)
        weights = self._instruction_weights(len(inputs["input_ids"])).to(inputs["input_ids"].device)
        inputs = {**inputs, "instruction_weights": weights}
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach(), None, None
        mask = inputs["rank_mask"]
        scores = torch.where(mask, outputs["scores"].float(), -100.0)
        return loss.detach(), scores, torch.where(mask, outputs["ranks"], -100)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As in transformers: the metrics of one eval set, under its own prefix; its loss is exact whatever the batch
        size (a mean of per-batch means would weigh the tokens of a short batch more)."""
        self._eval_sums = BatchSums()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        metrics = self._eval_sums.reduce(self.accelerator)
        parts = (("loss/rank", self.args.ranking_weight), ("loss/mle", self.args.mle_weight))
        metrics["loss"] = sum(weight * metrics.get(name, 0.0) for name, weight in parts)
        own = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return output._replace(metrics={**(output.metrics or {}), **own})

    # ---- Logging, saving ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # evaluate() logs too, in the middle of an interval: what is summed so far is training's, and waits
        if self.model.training and self._sums.count:
            self._count_tokens()
            logs.update(self._sums.reduce(self.accelerator))
            logs["num_tokens"] = self.state.num_input_tokens_seen
            self._sums = BatchSums()
        super().log(logs, start_time)

    def _count_tokens(self) -> None:
        """Move the tokens seen since the last call into the trainer's state, which checkpoints carry."""
        tokens = self._sums.take_tokens(self.accelerator)
        if self.args.include_num_input_tokens_seen == "no":  # else transformers counts them itself
            self.state.num_input_tokens_seen += tokens

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._count_tokens()
        # every checkpoint carries its card, as TRL's do
        folder = Path(self.args.output_dir or "")
        name = self.args.hub_model_id.split("/")[-1] if self.args.hub_model_id else folder.name
        self.create_model_card(model_name=name)
        super()._save_checkpoint(model, trial)

    def create_model_card(  # type: ignore[override]  # TRL's signature, not transformers'
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """Write `README.md` into `output_dir`, with TRL's signature, so that `push_to_hub(dataset_name=...)` works.

        Args:
            model_name: the card's title; by default the name of `output_dir`.
            dataset_name: Hub id of what was trained on, for the card's metadata.
            tags: more tags, beside ours.
        """
        if self.is_world_process_zero():
            from .model_card import write_model_card

            write_model_card(self, model_name=model_name, dataset_name=dataset_name, tags=tags)
