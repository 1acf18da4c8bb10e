"""Base of all stages: a LightningModule whose loss is a pure function of a batch."""

import inspect
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from components.data.data_contract import DataContract, data_of
from components.functional.seeding import step_seed
from components.models.heads import CausalLM, ScalarModel
from components.models.lora import Adaptable
from components.models.shards import in_shards, shard
from components.training import patterns, recomputing
from components.training.averages import Averages
from components.training.compiling import COMPILE_FROM, compiles
from components.training.contract import ALONE, LossOutput, Reporting, RunContext
from components.training.gradient_mean import GradientMean
from components.training.optimizers import base_rate, scaled
from components.training.recomputing import need_of
from components.training.schedules import schedule
from components.training.self_checks import (
    FirstStep,
    check_even,
    check_frozen,
    check_no_dropout,
    check_separate,
    log_check,
)

log = logging.getLogger(__name__)
CONSTANT = partial(schedule, "constant", warmup_steps=0, final_fraction=1.0)  # the peak learning rate at every step


def compile_layers(model: CausalLM | ScalarModel) -> None:
    """Compiles layer by layer: all layers share a graph; one of the whole model would be large. What a loss computes
    from logits has another."""
    for layer in model.model.layers:
        layer.compile()
    if isinstance(model, CausalLM):
        model.compiles_loss = True


class Stage(Reporting, L.LightningModule):
    """Base of all stages. A subclass defines configure_model, compute_loss and exportable.

    The arguments are builders, never weights: `optimizer` makes an Optimizer from named parameters, `schedule` returns
    the learning rate's multiplier from (step=, total_steps=). `frozen` names the frozen networks: they have no
    gradient, stay in eval mode and are left out of checkpoints (their artifact contains them). freeze: patterns of
    weights of the other networks that are not trained; learning_rates: factors of the learning rate by pattern (see
    training.patterns).

    Every gradient is the mean over all tokens (pairs, prompts) of the optimizer step, regardless of the number of
    micro-batches and processes. Metrics: train/<name> of every step, val/<name> weighted means, train/grad_norm before
    clipping (train/grad_norm_<network> if several networks are trained), train/lr without learning_rates' factors; in
    16-mixed also train/loss_scale, which is halved when a step is skipped because its gradient overflowed.
    """

    frozen: tuple[str, ...] = ()
    shares_trunk = True  # with adapters, whether the frozen networks have the trunk of the one that is trained

    def __init__(
        self,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., float] = CONSTANT,
        run: RunContext = ALONE,
        freeze: Sequence[str] = (),
        learning_rates: dict[str, patterns.Factor] | None = None,
    ) -> None:
        super().__init__()
        self.run = run
        self.freeze_patterns, self.learning_rates = freeze, learning_rates or {}
        self._kept_frozen = patterns.Frozen(set(), set())  # by name in this module
        self.optimizer_builder = optimizer
        self.schedule = schedule
        self.strict_loading = not self.frozen
        self.gradient_mean = GradientMean()
        self._training, self._validation = Averages(), Averages()
        self._stepped = False

    def compute_loss(self, batch: Any) -> LossOutput:
        """The mean loss of a batch, and its metrics; neither logs nor steps."""
        raise NotImplementedError

    def exportable(self) -> CausalLM | ScalarModel:
        """The model that the next stage receives."""
        raise NotImplementedError

    @property
    def data(self) -> DataContract:
        """The data module of this run; NO_DATA if the trainer has loaders only."""
        return data_of(self.trainer)

    def flops_per_token(self) -> float:
        """FLOPs of training on one token, forward and backward, at the model's full context: the sum over the trained
        networks, given which of their weights are trained."""
        networks = self.networks()
        return float(sum(networks[name].flops_per_token.training for name in networks.keys() - {*self.frozen}))

    def networks(self) -> dict[str, CausalLM | ScalarModel]:
        """The models by name, frozen ones included."""
        return {name: part for name, part in self.named_children() if isinstance(part, CausalLM | ScalarModel)}

    def adopt(self, name: str, model: Any) -> None:
        """Registers a newly built model as `name`: frozen if it is in `frozen`, adapted if the run has adapters,
        sharded if the strategy shards."""
        frozen, mesh = name in self.frozen, getattr(self, "device_mesh", None)
        model.requires_grad_(not frozen).train(not frozen)
        if self.run.lora is not None and not frozen:
            self.strict_loading = False
            model.adapt(self.run.lora)
        has_layers = isinstance(model, Adaptable)  # a table that scores has none
        if mesh is None and (frozen or self.run.lora is not None) and has_layers:
            model.model.freeze_()
        if self.freeze_patterns and not frozen:
            kept = patterns.freeze_(name, model, self.freeze_patterns)
            self._kept_frozen.names.update(f"{name}.{inner}" for inner in kept.names)
            self._kept_frozen.patterns.update(kept.patterns)
        if self.run.gradient_checkpointing is True and not frozen:
            model.model.recompute = True
        if self.run.compile is True and has_layers:  # before it is sharded; `auto` is decided when the steps are known
            compile_layers(model)
        if mesh is not None:
            if self.run.lora is not None and self.frozen and self.shares_trunk:
                raise ValueError(
                    "lora: the models of this stage share one trunk, which cannot be sharded (trainer=fsdp). "
                    "Use trainer=ddp, or train all weights with lora=null"
                )
            if has_layers:
                shard(model, mesh)
        setattr(self, name, model)
        for name in self.frozen:  # they can share this model's trunk
            if hasattr(self, name):
                getattr(self, name).eval()

    def as_before_training(self, model: Any, build: Callable[[], Any]) -> Any:
        """`model` as it is before training: `model` without its adapters if the run has any, else a second build."""
        return model.bare() if self.run.lora is not None else build()

    def on_fit_start(self) -> None:
        """With gradient_checkpointing="auto", decides by the free memory whether layers are recomputed: the same on all
        processes. Results do not depend on it."""
        if self.run.gradient_checkpointing != "auto":
            return
        trained = [network for name, network in self.networks().items() if name not in self.frozen]
        compiled = self._compiles()
        need = need_of(
            trained,
            self.largest_batch(),
            width=self.width_of_products(),
            lean=self.device.type == "cpu" or compiled,
            mixed="mixed" in str(self.trainer.precision),
            compiled=compiled,
            on_cpu=self.device.type == "cpu",
            sampling=self.bytes_to_sample(),
        )
        free = recomputing.free_memory(self.device) / (self.trainer.world_size if self.device.type == "cpu" else 1)
        self.memory = need.note(free)
        recompute = bool(self.reduced(torch.tensor(float(not need.fits(free))), "max"))
        self.step_bytes = need.taken(recompute)
        if recompute:
            for network in trained:
                network.model.recompute = True

    def _compiles(self) -> bool:
        """Whether layers are compiled; known once the steps are."""
        return compiles(self.run.compile, self.device.type, self.trainer.estimated_stepping_batches)

    def largest_batch(self) -> int:
        """The most tokens that a network reads at once in training; 0 if the data does not say."""
        return self.data.largest_batch()

    def mean_batch(self) -> float | None:
        return self.data.mean_batch()

    def bytes_to_sample(self) -> float:
        """Bytes that sampling takes between updates; 0 if this stage does not sample."""
        return 0.0

    def width_of_products(self) -> int:
        """Bytes of a number that a product reads, by the trainer's precision."""
        precision = str(self.trainer.precision)
        return 2 if "16" in precision else 8 if "64" in precision else 4

    def on_train_start(self) -> None:
        """Checks that all processes have the same number of batches and, if there are frozen networks, that they are
        frozen, share no weights and have no dropout; then watches the first step.

        Raises ValueError, SelfCheckError.
        """
        check_even("training", float(self.trainer.num_training_batches), self)
        if self.run.compile == "auto" and self._compiles():
            for network in self.networks().values():
                compile_layers(network)
            if self.global_rank == 0:
                log.info(
                    f"compile=auto: layers are compiled, since a run of {COMPILE_FROM:,} steps or more gains by it"
                )
        if self.frozen:
            networks = dict(self.named_children())
            self.log_checks(
                check_frozen({name: networks[name] for name in self.frozen}),
                check_separate(networks),
                check_no_dropout(networks),
            )
        with in_shards(self):  # the optimizer holds shards, and a validation before training leaves unsharded copies
            self._first_step = FirstStep(dict(self.named_groups()), self.trainer.optimizers[0], self.log_checks)

    def on_validation_start(self) -> None:
        check_even("validation", float(sum(self.trainer.num_val_batches)), self)

    def log_checks(self, *lines: str) -> None:
        """Prints the results of self-checks, on the first process only."""
        for line in lines if self.global_rank == 0 else ():
            log_check(line)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds the step, so its random numbers (dropout) depend on (seed, rank, step) alone: resuming needs no RNG
        state."""
        torch.manual_seed(step_seed(self.run.seed, self.global_rank, self.trainer.fit_loop.total_batch_idx))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Requests a stop at max_steps: Lightning stops there anyway, but without a last validation."""
        if self.global_step == self.trainer.max_steps:
            self.trainer.should_stop = True
        if self.trainer.should_stop and self._stepped:
            self._log_step()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        output = self.compute_loss(batch)
        if self._stepped:
            self._training.clear()
            self._stepped = False
        self.note(self._training, output)
        self.micro_batch = output.loss.detach(), sum(term.weight for term in output.terms)
        if self.trainer.fit_loop.total_batch_idx == 0 and output.weight:
            self.check_first_loss(output)
        return self.gradient_mean.scaled(output.terms, self)

    def check_first_loss(self, output: LossOutput) -> None:
        """Checks the loss of the very first micro-batch, before any update."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.note(self._validation, self.compute_loss(batch))

    def on_validation_epoch_end(self) -> None:
        metrics = self.metrics_to_log(self._validation.read(self.reduced))
        self._validation.clear()
        # already the same on all processes
        self.log_dict({f"val/{name}": value.float() for name, value in metrics.items()}, sync_dist=True)

    def note(self, averages: Averages, output: LossOutput) -> None:
        """Adds a batch's loss and metrics, each with its own weight."""
        for number, term in enumerate(output.terms):
            averages.add(f"loss {number}", term.mean, term.weight)
        for name, value in output.metrics.items():
            averages.add(name, value, output.weights.get(name, output.weight), maximum=name.endswith("_max"))

    def metrics_to_log(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """The metrics to log: the loss, the sum of its terms' means, and the other `means`; means of nothing, which
        are NaN, are left out. A subclass adds what follows from means."""
        terms = [name for name in means if name.startswith("loss ")]
        loss = {}
        if terms and not means[terms[0]].isnan():
            loss["loss"] = torch.stack([means[name].nan_to_num() for name in terms]).sum()
        rest = {name: value for name, value in means.items() if name not in terms}
        return loss | {name: value for name, value in rest.items() if not value.isnan()}

    def _log_step(self) -> None:
        """Logs the metrics of the optimizer step, over all its micro-batches and all processes."""
        if self._training:
            metrics = self.metrics_to_log(self._training.read(self.reduced))
            self.log_dict({f"train/{name}": value.float() for name, value in metrics.items()})
            self._training.clear()

    def _due(self) -> bool:
        """Whether to compute this optimizer step's metrics: on one CPU process always, for the progress line; else only
        if they will be logged, since computing them waits for other processes and for the device."""
        if self.trainer.world_size == 1 and self.device.type == "cpu":
            return True
        return self.trainer._logger_connector.should_update_logs  # holds for Lightning 2.6

    def log_now(self, metrics: dict[str, float]) -> None:
        """Logs scalars at the current step, regardless of log_every_n_steps."""
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.global_step)

    def named_groups(self) -> list[tuple[str, nn.Parameter]]:
        """The trainable parameters by name."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    @classmethod
    def trained_networks(cls) -> dict[str, type]:
        """The kinds of the networks that are not frozen, by name, as the class annotates them."""
        kinds = {name: kind for base in cls.__mro__[::-1] for name, kind in inspect.get_annotations(base).items()}
        return {n: kind for n, kind in kinds.items() if kind in (CausalLM, ScalarModel) and n not in cls.frozen}

    def build_optimizer(self) -> Optimizer:
        """The optimizer of all trainable parameters."""
        return self.optimizer_builder(self.named_groups())

    def configure_optimizers(self) -> Any:
        trained = {name: network for name, network in self.named_children() if name not in self.frozen}
        patterns.check_used("stage.freeze", self.freeze_patterns, self._kept_frozen.patterns, trained)
        optimizer: Any = scaled(self.build_optimizer(), patterns.rates_of(trained, self.learning_rates))
        if self.trainer.precision == "16-mixed":  # a fused step would unscale after clipping, not before
            for group in optimizer.param_groups:
                group["fused"] = False
            optimizer._step_supports_amp_scaling = False  # holds for torch 2.13
            # a scaler that starts too high skips the first steps; the schedule still counts them
            warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler.step\(\)` before")
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError("trainer: set max_steps or max_epochs; the learning-rate schedule needs an end")
        scheduler = LambdaLR(optimizer, lambda step: self.schedule(step=step, total_steps=int(total)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Averages the gradients over the whole step, then clips each network's gradient by its own norm.

        Networks of a stage (policy, value) share an optimizer but not a norm: a large value loss must not shrink the
        policy's step.
        """
        self.gradient_mean.finish(self)
        networks: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.named_groups():
            if parameter.grad is not None:
                networks.setdefault(name.split(".")[0], []).append(parameter)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        for network, parameters in networks.items():
            norm = nn.utils.clip_grad_norm_(parameters, gradient_clip_val or float("inf"))
            if scaler is None or norm.isfinite():  # else the scaler skips the step
                self.log(f"train/grad_norm{'' if len(networks) == 1 else f'_{network}'}", norm)
        if scaler is not None:
            self.log("train/loss_scale", scaler.get_scale())
        rate = torch.full((), base_rate(optimizer), device=self.device)
        self.log("train/lr", rate)  # copying a plain number to the device would wait
        self._stepped = True
        if self._due():
            self._log_step()
        self._first_step.note()

    def train(self, mode: bool = True) -> "Stage":
        super().train(mode)
        for name in self.frozen:
            if hasattr(self, name):
                getattr(self, name).eval()
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out weights that are not trained, since artifacts contain them; not those that `freeze` names, which
        can be new."""
        state = checkpoint["state_dict"]
        untrained = {name for name, p in self.named_parameters(remove_duplicate=False) if not p.requires_grad}
        untrained -= self._kept_frozen.names
        for name in [n for n in state if n in untrained or n.split(".")[0] in self.frozen]:
            del state[name]

    def all_reduced(self, value: float | Tensor) -> Tensor:
        """The sum of `value` over all processes, in fp64 on a CPU or if `value` is, else in fp32; `value` itself does
        not change."""
        dtype = torch.float64 if self.device.type == "cpu" else torch.float32
        if not isinstance(value, Tensor):  # not copied from the host, which would wait
            value = torch.full((), value, dtype=dtype, device=self.device)
        return self.reduced(value.to(torch.promote_types(value.dtype, dtype)), "sum")

    def reduced(self, numbers: Tensor, how: str) -> Tensor:
        """The sum or the maximum ("sum", "max") of numbers over all processes; `numbers` itself does not change."""
        own = numbers.to(self.device, copy=True)  # a collective writes into the tensor that it gets
        return self.trainer.strategy.reduce(own, reduce_op=how)

    def gathered(self, numbers: Tensor) -> Tensor:
        """(M,) on the CPU: the numbers (N,) of all processes, in rank order; N can differ between processes."""
        parts = [numbers.detach().cpu()]
        if self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, parts[0])
            parts = gathered
        return torch.cat(parts)
