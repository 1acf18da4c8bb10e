"""What the command line gives: which limit of training rules."""

from collections.abc import Collection

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from omegaconf import DictConfig

LIMITS = {"max_steps": -1, "max_epochs": None}  # of the trainer, with the value that means none


def overrides() -> list[Override]:
    """This job's overrides, Hydra's own left out."""
    return OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))


def settle_limits(trainer: DictConfig, keys: Collection[str]) -> None:
    """A limit of training given on the command line takes the place of the stage's own: steps of its epochs, and the
    other way around. Where both are given, training ends at whichever comes first.

    trainer: its config, changed in place; keys: those of the command line.
    """
    limits = {name for name in LIMITS if f"trainer.{name}" in keys and (trainer[name] or -1) > 0}
    for name in LIMITS if len(limits) == 1 else ():
        if name not in limits:
            trainer[name] = LIMITS[name]


def ended_by(trainer: Trainer) -> str:
    """The limit that ended a training which nothing interrupted, such as "trainer.max_steps=60"."""
    if trainer.global_step == trainer.max_steps:
        return f"trainer.max_steps={trainer.max_steps}"
    stops = [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]
    early = [f"early stopping on {stop.monitor}" for stop in stops if stop.stopping_reason_message]
    return early[0] if early else f"trainer.max_epochs={trainer.max_epochs}"
