"""What every stage is: a LightningModule whose loss is a pure step from a batch."""

import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from components.models.heads import CausalLM, ScalarModel
from components.models.lora import Adaptable, LoRA
from components.models.shards import in_shards
from components.training.averages import Averages
from components.training.contract import Chart, LossOutput, Term
from components.training.self_checks import FirstStep, check_frozen, check_no_dropout, check_separate, local_part, tell


class Stage(L.LightningModule):
    """Base of all stages. A subclass gives configure_model, compute_loss and exportable.

    Builders come in, never weights: `optimizer` makes an Optimizer from named parameters, `schedule` gives the
    learning rate's multiplier from (step=, total_steps=). Frozen networks are named in `frozen`: they take no
    gradient, stay in eval mode and are left out of checkpoints (their artifact holds them).

    Every gradient is the mean over all tokens (pairs, prompts) of the optimizer step, whatever the number of
    micro-batches and processes they came in. Metrics: train/<name> of every step, val/<name> weighted means,
    train/grad_norm before clipping (train/grad_norm_<network> where several networks learn), train/lr; in 16-mixed
    train/loss_scale too, which is halved by a step that is left out because its gradient overflowed.
    """

    frozen: tuple[str, ...] = ()
    seed = 0  # of whatever is drawn while training
    lora: LoRA | None = None  # adapters instead of all weights
    gradient_checkpointing = False  # activations within layers are computed anew going back, not kept
    compiled = False  # layers go through torch.compile
    charts: tuple[Chart, ...] = ()  # in reading order; ranges are those of the docstring

    def __init__(self, optimizer: Callable[..., Optimizer], schedule: Callable[..., float]) -> None:
        super().__init__()
        self.optimizer_builder = optimizer
        self.schedule = schedule
        self.strict_loading = not self.frozen
        self._window: list[Tensor] = []  # weights of the micro-batches since the last optimizer step
        self._unit = torch.ones(())
        self.micro_batch: tuple[Tensor, Tensor | int] | None = None  # the latest one's loss, unscaled, and weight
        self._training, self._validation = Averages(), Averages()
        self._stepped = False

    def compute_loss(self, batch: Any) -> LossOutput:
        """One batch's mean loss; neither logs nor steps."""
        raise NotImplementedError

    def exportable(self) -> CausalLM | ScalarModel:
        """The model that the next stage receives."""
        raise NotImplementedError

    @property
    def data(self) -> Any:
        """The LightningDataModule of this run; None where the trainer was given loaders alone."""
        return getattr(self.trainer, "datamodule", None)

    def flops_per_token(self) -> float:
        """Of training on one token, forward and backward, at the model's full context."""
        config = self.exportable().config
        return config.flops_per_token(config.longest, frozen=self.lora is not None)

    def adopt(self, name: str, model: Any) -> None:
        """Takes a freshly built model under `name`: frozen where it is named so, adapted where the run has adapters,
        sharded where the strategy shards."""
        frozen, mesh = name in self.frozen, getattr(self, "device_mesh", None)
        model.requires_grad_(not frozen).train(not frozen)
        if self.lora is not None and not frozen:
            self.strict_loading = False
            model.adapt(self.lora)
        if mesh is None and (frozen or self.lora is not None) and isinstance(model, Adaptable):
            model.model.freeze_()
        if self.gradient_checkpointing and not frozen:
            model.model.recompute = True
        if self.compiled:
            for layer in model.model.layers:  # one graph serves all layers, which would be a large one as a whole
                layer.compile()
        if mesh is not None:
            self._shard(model, mesh["data_parallel"])
        setattr(self, name, model)
        for name in self.frozen:  # whose trunk may be this one's too
            if hasattr(self, name):
                getattr(self, name).eval()

    def _shard(self, model: Any, mesh: DeviceMesh) -> None:
        if self.lora is not None and self.frozen:
            raise ValueError(
                "lora: the models of this stage share one trunk, which cannot be sharded (trainer=fsdp). "
                "Use trainer=ddp, or train all weights with lora=null"
            )
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        for method in ("hidden", "head", "through_head"):
            if hasattr(model, method):
                register_fsdp_forward_method(model, method)

    def as_before_training(self, model: Any, build: Callable[[], Any]) -> Any:
        """`model` as it was at first, to be kept so: without its adapters where it has any, else built once more."""
        return model.bare() if self.lora is not None else build()

    def on_train_start(self) -> None:
        """Every process has as many batches, the optimizer all that is trained; where a loss compares networks, each
        is what it should be.

        Raises ValueError, SelfCheckError.
        """
        self._check_even("training", float(self.trainer.num_training_batches))
        if self.frozen:
            networks = dict(self.named_children())
            self.tell(
                check_frozen({name: networks[name] for name in self.frozen}),
                check_separate(networks),
                check_no_dropout(networks),
            )
        with in_shards(self):  # the optimizer holds shards, and a validation before training leaves whole copies
            self._first_step = FirstStep(dict(self.named_groups()), self.trainer.optimizers[0], self.tell)

    def on_validation_start(self) -> None:
        self._check_even("validation", float(sum(self.trainer.num_val_batches)))

    def _check_even(self, what: str, batches: float) -> None:
        """Processes wait for each other in every batch: one that has fewer would be waited for for ever."""
        together, count = float(self.all_reduced(batches)), self.trainer.world_size
        most = float(self.trainer.strategy.reduce(torch.tensor(batches, device=self.device), reduce_op="max"))
        if together != most * count:
            raise ValueError(
                f"{what} data: process {self.global_rank} has {batches:g} batches, the {count} processes {together:g} "
                f"together, expected {most:g} for each. Let the loader deal out equal shares, as "
                "components.data.loading.sampler does"
            )

    def tell(self, *lines: str) -> None:
        """What self-checks found, from the first process alone."""
        for line in lines if self.global_rank == 0 else ():
            tell(line)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Whatever is drawn in a step (dropout) depends on (seed, rank, step) alone: resuming needs no RNG state."""
        torch.manual_seed((self.seed * 100_003 + self.global_rank) * 1_000_003 + self.trainer.fit_loop.total_batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Asks to stop at max_steps, which Lightning does anyway, but then without a last validation."""
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
            self.check_first_loss(float(output.loss.detach()))
        return self._scaled(output.terms)

    def check_first_loss(self, loss: float) -> None:
        """Looks at the very first micro-batch's loss, before any update."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.note(self._validation, self.compute_loss(batch))

    def on_validation_epoch_end(self) -> None:
        figures = self.finished(self._validation.read(self.reduced))
        self._validation.clear()
        # the same on all processes already
        self.log_dict({f"val/{name}": value.float() for name, value in figures.items()}, sync_dist=True)

    def note(self, averages: Averages, output: LossOutput) -> None:
        """Adds a batch's loss and metrics, each with its own weight."""
        for number, term in enumerate(output.terms):
            averages.add(f"loss {number}", term.mean, term.weight)
        for name, value in output.metrics.items():
            averages.add(name, value, output.weights.get(name, output.weight))

    def finished(self, figures: dict[str, Tensor]) -> dict[str, Tensor]:
        """`figures` to be logged: the loss as the sum of its terms' means, and what follows from means alone.

        What there was nothing of is left out.
        """
        terms = [name for name in figures if name.startswith("loss ")]
        loss = {}
        if terms and not figures[terms[0]].isnan():
            loss["loss"] = torch.stack([figures[name].nan_to_num() for name in terms]).sum()
        rest = {name: value for name, value in figures.items() if name not in terms}
        return loss | {name: value for name, value in rest.items() if not value.isnan()}

    def _log_step(self) -> None:
        """Logs the figures of the optimizer step, of all its micro-batches and of all processes."""
        if self._training:
            figures = self.finished(self._training.read(self.reduced))
            self.log_dict({f"train/{name}": value.float() for name, value in figures.items()})
            self._training.clear()

    def _due(self) -> bool:
        """Whether this optimizer step's figures are wanted: of several processes only where they are written."""
        return self.trainer.world_size == 1 or self.trainer._logger_connector.should_update_logs

    def log_now(self, metrics: dict[str, float]) -> None:
        """Writes scalars at the present step, whatever log_every_n_steps."""
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.global_step)

    def named_groups(self) -> list[tuple[str, nn.Parameter]]:
        """The trainable parameters by name."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    def build_optimizer(self) -> Optimizer:
        return self.optimizer_builder(self.named_groups())

    def configure_optimizers(self) -> Any:
        optimizer: Any = self.build_optimizer()
        if self.trainer.precision == "16-mixed":  # a fused step would unscale after our clipping, not before
            for group in optimizer.param_groups:
                group["fused"] = False
            optimizer._step_supports_amp_scaling = False
            # a scaler leaves out the steps it begins too high for; the schedule counts them all the same
            warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler.step\(\)` before")
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError("trainer: give max_steps or max_epochs, so that the learning-rate schedule has an end")
        scheduler = LambdaLR(optimizer, lambda step: self.schedule(step=step, total_steps=int(total)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Turns summed shares into the global mean, then clips every network's gradient by its own norm.

        Networks of one stage (policy, value) share an optimizer but not a norm: a loud value loss must not
        shrink the policy's step.
        """
        self._average_gradients()
        networks: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.named_groups():
            if parameter.grad is not None:
                networks.setdefault(name.split(".")[0], []).append(parameter)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        for network, parameters in networks.items():
            norm = nn.utils.clip_grad_norm_(parameters, gradient_clip_val or float("inf"))
            if scaler is None or norm.isfinite():  # else the scaler leaves the step out
                self.log(f"train/grad_norm{'' if len(networks) == 1 else f'_{network}'}", norm)
        if scaler is not None:
            self.log("train/loss_scale", scaler.get_scale())
        self.log("train/lr", optimizer.param_groups[0]["lr"])
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
        """Leaves out what is not trained: artifacts hold it."""
        state = checkpoint["state_dict"]
        fixed = {name for name, p in self.named_parameters(remove_duplicate=False) if not p.requires_grad}
        for name in [n for n in state if n in fixed or n.split(".")[0] in self.frozen]:
            del state[name]

    def _scaled(self, terms: tuple[Term, ...]) -> Tensor:
        """The sum of the terms, each so that its gradients add up to its mean over the whole optimizer step."""
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        if len(terms) == 1:
            mean, weight, _ = terms[0]
            return mean if parts == 1 else mean * self._share(weight).to(mean.dtype)
        weights = [term.weight if self.trainer.accumulate_grad_batches == 1 else term.step_weight for term in terms]
        if any(weight is None for weight in weights):
            raise ValueError(
                f"trainer.accumulate_grad_batches: got {self.trainer.accumulate_grad_batches} with a loss of "
                f"{len(terms)} terms, whose weights in the whole step the batches do not tell. Use 1, or a loader "
                "that tells them, as components.data.loading.experience does"
            )
        if parts == 1:
            return torch.stack([term.mean for term in terms]).sum()
        totals = self.all_reduced(torch.stack([torch.as_tensor(w, device=self.device).float() for w in weights]))
        # parts is what Lightning and the strategy divide by
        shares = [
            term.mean * (parts * torch.as_tensor(term.weight, device=self.device) / total.clamp_min(1)).float()
            for term, total in zip(terms, totals, strict=True)
        ]
        return torch.stack(shares).sum()

    def _share(self, weight: Tensor | int) -> Tensor:
        """This micro-batch's factor, so that gradients add up to a weighted sum; `_average_gradients` divides it.

        Factors are relative to the first micro-batch's mean weight over ranks, which keeps the scaled loss of fp16 near
        its usual size.
        """
        here = torch.as_tensor(weight, device=self.device)
        if not self._window:
            self._unit = (self.all_reduced(here) / self.trainer.world_size).clamp_min(1)
        self._window.append(here)
        return here / self._unit

    def _average_gradients(self) -> None:
        if not self._window:
            return
        total = self.all_reduced(torch.stack(self._window).sum())
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size  # what Lightning and DDP divided by
        factor = (parts * self._unit / total.clamp_min(1)).reshape(1)  # with a dimension its type counts: bf16 rounds
        for gradient in (local_part(p.grad) for p in self.parameters() if p.grad is not None):
            wide = torch.promote_types(gradient.dtype, torch.float32)
            torch.mul(gradient, factor.to(wide), out=gradient)
        self._window.clear()

    def all_reduced(self, value: float | Tensor) -> Tensor:
        """The sum of `value` over all processes."""
        tensor = torch.as_tensor(value, dtype=torch.float64 if self.device.type == "cpu" else torch.float32)
        return self.trainer.strategy.reduce(tensor.to(self.device), reduce_op="sum")

    def reduced(self, numbers: Tensor, how: str) -> Tensor:
        """The sum or the maximum ("sum", "max") of numbers over all processes."""
        return self.trainer.strategy.reduce(numbers.to(self.device), reduce_op=how)

    def gathered(self, numbers: Tensor) -> Tensor:
        """(M,) on the CPU: the numbers (N,) of all processes, in the order of these; N may differ between them."""
        parts = [numbers.detach().cpu()]
        if self.trainer.world_size > 1:
            everyones: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(everyones, parts[0])
            parts = everyones
        return torch.cat(parts)
