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
OLDEST, NEWEST = 50, 250  # values of a metric that are kept in a long run
QUIET = 20  # checks without a finding after which a rule can warn again


class Diagnosis(Callback):
    """Checks all logged metrics by the rules in `health_rules.RULES`, and warns when a rule finds something.

    Each rule warns once, and again if it finds something after QUIET checks without: a log line, and the text
    "diagnosis" in the loggers. The state is saved in checkpoints, so a resumed run neither misses nor repeats a
    warning. `conclude` returns the verdict on the training, by the rules in `endings.ENDINGS`.
    """

    def __init__(self) -> None:
        self.history: History = {}
        self.silent: dict[str, int] = {}  # of each rule that has warned: checks since it last found something
        self._rollout_began = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            self._trainer = trainer
            attach(trainer, self.receive)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._total = trainer.estimated_stepping_batches  # by the limit that is reached first
        self._step = trainer.global_step
        if pl_module.max_new_tokens is not None:
            self.history["max_new_tokens"] = [float(pl_module.max_new_tokens)]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Records the ratio of a rollout's first minibatch, which must be 1, regardless of log_every_n_steps."""
        if trainer.global_step == self._step:
            return  # gradients are still being accumulated, and the metrics are those of the step before
        self._step = trainer.global_step
        if self._rollout_began:
            self._rollout_began = False
            if "train/ratio_max" in trainer.callback_metrics:
                self._note({"first/ratio_max": float(trainer.callback_metrics["train/ratio_max"])})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records what training is compared with, before the first step, if the full validation runs there."""
        if trainer.sanity_checking and trainer.num_sanity_val_steps == math.inf:
            self.history |= _judged(trainer, "before")

    def conclude(self, trainer: Trainer, more: str) -> dict[str, Any]:
        """The verdict on a finished training, for its card; warns if the training could have done better.

        more: the overrides that make it longer.
        """
        result = verdict(self.history | _judged(trainer, "after"))  # "after": of the exported weights
        rule = ENDINGS.get(result["verdict"])
        if rule and result["found"]:
            if result["verdict"] == FALLING:
                rule = rule._replace(remedy=f"{rule.remedy.rstrip('.')}: {more}")
            log.warning(f"step {trainer.global_step}, {result['verdict']}: {rule.warning(result['found'])}")
        return result

    def receive(self, metrics: dict[str, float], step: int) -> None:
        """Records logged metrics and checks the rules."""
        watched = {name: float(value) for name, value in metrics.items() if name.startswith(WATCHED)}
        if not watched:
            return
        self._rollout_began |= any(name.startswith("rollout/") for name in watched)
        if "val/loss" in watched:
            watched["validated"] = float(step + 1)  # Lightning counts from 0
        self._note(watched)
        self.history["progress"] = [step / self._total]
        self._check_rules(step)

    def state_dict(self) -> dict[str, Any]:
        return {"history": {name: list(values) for name, values in self.history.items()}, "silent": dict(self.silent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history, self.silent = state["history"], state["silent"]

    def _note(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            values = self.history.setdefault(name, [])
            values.append(value)
            del values[OLDEST:-NEWEST]

    def _check_rules(self, step: int) -> None:
        for name, rule in RULES.items():
            finding = rule.check(self.history)
            if finding is None:
                if name in self.silent:
                    self.silent[name] += 1
                continue
            if self.silent.get(name, QUIET) >= QUIET:
                self._warn(name, rule.warning(finding), step)
            self.silent[name] = 0

    def _warn(self, name: str, text: str, step: int) -> None:
        log.warning(f"step {step}, {name}: {text}")
        for recorder in recorders(self._trainer):
            recorder.record_text("diagnosis", f"**{name}**: {text}", step)


def _judged(trainer: Trainer, when: str) -> History:
    """The latest values of the metrics by which `endings.verdict` judges, under the names that it reads."""
    measured = trainer.callback_metrics
    names = {"val/loss": when}
    if "val/accuracy_stderr" in measured:  # a reward model's
        names |= {f"val/{name}": f"{when}/{name}" for name in ("accuracy", "accuracy_stderr")}
    return {kept: [float(measured[name])] for name, kept in names.items() if name in measured}
