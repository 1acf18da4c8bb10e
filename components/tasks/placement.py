"""Where a task's models run, in which precision and how much at once: the same for training and for the tasks that run
models without training one."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, TypeVar, cast

import lightning as L
import torch
from hydra.errors import InstantiationException
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from omegaconf import DictConfig, OmegaConf
from torch import nn

from components.artifacts import store
from components.artifacts.store import ArtifactError
from components.data.data_contract import DataContract
from components.system import processes
from components.system.memory import is_out_of_memory
from components.training import cluster

Model = TypeVar("Model", bound=nn.Module)
# Hidden size from which bf16 pays off on a CPU that has these instructions; the first that it has counts. At width 128,
# casting costs more than it saves on 2 cores with AMX (26k tokens/s against 29k), while with avx512_bf16 alone, whose
# float32 products are not as fast, one core trains at 7.0k tokens/s against 5.9k.
WIDE = {"amx_bf16": 256, "avx512_bf16": 128}
NEEDS_MEMORY = ("tokens_at_once", "data.batch_size", "comparisons.batch_size", "text.batch_size")  # less if lower
TRAINING_NEEDS = ("data.batch_size", "data.prompts_per_rollout")


class Place(NamedTuple):
    """A device, and the precision of a trainer on it."""

    device: torch.device
    precision: Precision

    @classmethod
    def of(cls, cfg: DictConfig, width: int) -> "Place":
        """Where a trainer of this config would train a model of this hidden size, or the first of several devices."""
        trainer = L.Trainer(
            accelerator=cfg.trainer.accelerator,
            devices=1,
            precision=precision_of(cfg, width),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=cluster.environment(),
        )
        return cls(trainer.strategy.root_device, trainer.precision_plugin)

    def to_device(self, model: Model) -> Model:
        """The model on the device, in eval mode, its weights in the precision's dtype."""
        return cast(Model, self.precision.convert_module(model.to(self.device)).eval())

    def running(self) -> AbstractContextManager:
        """Inside this context models compute in the precision; metrics computed from their outputs keep their own."""
        return self.precision.forward_context() if isinstance(self.precision, MixedPrecision) else nullcontext()


def precision_of(cfg: DictConfig, width: int) -> Any:
    """trainer.precision, with auto decided for this machine and models of this hidden size: bf16-mixed if it is
    fast, else 32-true.

    On a CPU it is fast if there are bf16 matrix instructions and the model is wide enough to gain from them.
    """
    accelerator = cfg.trainer.accelerator
    if cfg.trainer.precision != "auto":
        return cfg.trainer.precision
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        return "32-true"
    instructions = torch.cpu.get_capabilities()
    least = next((wide for name, wide in WIDE.items() if instructions.get(name)), math.inf)
    return "bf16-mixed" if width >= least else "32-true"


@contextmanager
def in_memory(cfg: DictConfig) -> Iterator[None]:
    """Turns running out of memory into a ValueError that names the settings that decide how much is needed."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if not is_out_of_memory(cause):
            raise
        trains = cfg.task == processes.TRAINS
        flat = {key: OmegaConf.select(cfg, key) for key in (TRAINING_NEEDS if trains else NEEDS_MEMORY)}
        smaller = ", ".join(f"{key} (now {value})" for key, value in flat.items() if value is not None)
        more = "; or set gradient_checkpointing=true, raise stage.minibatches, train adapters (lora=default)"
        raise ValueError(
            f"out of memory: lower {smaller}{more if trains else ''}, or use another trainer.accelerator. "
            f"({' '.join(str(cause).split())[:300]})"
        ) from error


def check_room(cfg: DictConfig, data: DataContract, key: str) -> None:
    """Raises ArtifactError if a reward model or a teacher that is read has fewer positions than a prompt and its
    response.

    data: the prompts, with their maximum length; key: the setting that limits a response, in full.
    """
    max_prompt, max_new_tokens = data.max_prompt, OmegaConf.select(cfg, key)
    if max_prompt is None:
        return
    readers = [("reward", "reward model", "artifacts.rm")] if "reward" in cfg.reads else []
    readers += [("teacher", "teacher", "artifacts.teacher")] if "teacher" in cfg.stage else []
    for name, what, other in readers:
        room = store.load_config(cfg.reads[name], context=cfg.context)[0].longest
        if max_prompt + max_new_tokens > room:
            shorter = f"data.max_prompt={room - max_new_tokens}" if room > max_new_tokens else f"a smaller {key}"
            raise ArtifactError(
                f"the {what} at {cfg.reads[name]} reads at most {room} tokens, but a prompt (data.max_prompt: "
                f"{max_prompt}) and its response ({key}: {max_new_tokens}) have up to {max_prompt + max_new_tokens}. "
                f"Set {shorter}, or read a {what} with more positions: {other}=<folder>"
            )
