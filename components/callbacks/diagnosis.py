"""Warnings that name the likely cause, while a run can still be saved."""

import logging
import math
from typing import Any

from lightning import Callback, LightningModule, Trainer

from components.loggers.recorder import recorders
from components.loggers.tap import attach
from components.training.endings import ENDINGS, FALLING, verdict
from components.training.health_rules import RULES, History

log = logging.getLogger(__name__)
WATCHED = ("train/", "val/", "rollout/")
OLDEST, NEWEST = 50, 250  # values of a metric that are kept of a long run
QUIET = 20  # looks without a finding after which a rule may warn again


class Diagnosis(Callback):
    """Looks at all that is logged with the rules of `health_rules.RULES`, and warns where one finds something.

    Each warns once (and again if it came back after QUIET looks without): a log line, and the text
    "diagnosis" in the loggers. What was seen goes into checkpoints, so a resumed run neither forgets nor repeats.
    `conclude` says what the training came to, by the rules of `endings.ENDINGS`.
    """

    def __init__(self) -> None:
        self.history: History = {}
        self.silent: dict[str, int] = {}  # looks since a rule that has warned last found something
        self._rollout_began = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            self._trainer = trainer
            attach(trainer, self.receive)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._total = trainer.estimated_stepping_batches  # by the limit that comes first
        if hasattr(pl_module, "sampling"):
            self.history["max_new_tokens"] = [float(pl_module.sampling.max_new_tokens)]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """The first minibatch of a rollout, whatever log_every_n_steps: its ratio must be 1."""
        if self._rollout_began:
            self._rollout_began = False
            if "train/ratio_max" in trainer.callback_metrics:
                self._note({"first/ratio_max": float(trainer.callback_metrics["train/ratio_max"])})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first step, where all of validation is asked for: what training is compared with."""
        if trainer.sanity_checking and trainer.num_sanity_val_steps == math.inf:
            measured = trainer.callback_metrics.get("val/loss")
            self.history |= {"before": [float(measured)]} if measured is not None else {}

    def conclude(self, trainer: Trainer, more: str) -> dict[str, Any]:
        """What a training that has ended came to, for its card; warns where that is less than it could be.

        more: the overrides that make it longer.
        """
        after = trainer.callback_metrics.get("val/loss")  # of the exported weights
        found = verdict(self.history | ({"after": [float(after)]} if after is not None else {}))
        if found["found"]:
            rule = ENDINGS[found["verdict"]]
            remedy = f"{rule.remedy.rstrip('.')}: {more}" if found["verdict"] == FALLING else rule.remedy
            told = f"{found['found']}. Likely cause: {rule.cause} {remedy}"
            log.warning(f"step {trainer.global_step}, {found['verdict']}: {told}")
        return found

    def receive(self, metrics: dict[str, float], step: int) -> None:
        """Notes what was logged and looks."""
        seen = {name: float(value) for name, value in metrics.items() if name.startswith(WATCHED)}
        if not seen:
            return
        self._rollout_began |= any(name.startswith("rollout/") for name in seen)
        if "val/loss" in seen:
            seen["validated"] = float(step + 1)  # Lightning counts from 0
        self._note(seen)
        self.history["progress"] = [step / self._total]
        self._look(step)

    def state_dict(self) -> dict[str, Any]:
        return {"history": {name: list(values) for name, values in self.history.items()}, "silent": dict(self.silent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history, self.silent = state["history"], state["silent"]

    def _note(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            values = self.history.setdefault(name, [])
            values.append(value)
            del values[OLDEST:-NEWEST]

    def _look(self, step: int) -> None:
        for name, rule in RULES.items():
            finding = rule.look(self.history)
            if finding is None:
                if name in self.silent:
                    self.silent[name] += 1
                continue
            if self.silent.get(name, QUIET) >= QUIET:
                self._warn(name, f"{finding}. Likely cause: {rule.cause} {rule.remedy}", step)
            self.silent[name] = 0

    def _warn(self, name: str, text: str, step: int) -> None:
        log.warning(f"step {step}, {name}: {text}")
        for recorder in recorders(self._trainer):
            recorder.record_text("diagnosis", f"**{name}**: {text}", step)
