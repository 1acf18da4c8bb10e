"""The gate before RL: a reward model is examined before it is written, and the result is read before it is used."""

import logging
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Trainer
from omegaconf import DictConfig

from components.artifacts import store
from components.artifacts.store import ArtifactError
from components.data.data_contract import DataContract
from components.evaluation.reward_exam import gate
from components.launch import composing
from components.models.heads import ScalarModel
from components.models.lora import merged
from components.tasks import common
from components.tasks.placement import Place
from components.tokenizer.tokenizer import Tokenizer

log = logging.getLogger(__name__)
SHARE = 0.1  # of training's FLOPs that an examination can add; reading an answer is a third of training on it
PICTURE = "examination.png"


def examined(
    cfg: DictConfig,
    trainer: Trainer,
    model: torch.nn.Module,
    weights: dict[str, torch.Tensor],
    data: DataContract,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """{"examination": the results of the config's examination}, for the card; also makes a table and a picture of it.

    weights: all of the model's, since only the process that calls this examines. {} if the stage has no examination or
    nothing is held out.
    """
    if cfg.get("examination") is None or not isinstance(model, ScalarModel):
        return {}
    from components.evaluation.report.output import wide_console
    from components.evaluation.reward_exam import examination_plot  # imports matplotlib, which other stages do not need
    from components.evaluation.reward_exam.examination import Reading

    whole = ScalarModel(model.config)
    whole.load_state_dict(merged(weights, model.adapters.lora) if model.adapters else weights)
    place = Place(trainer.strategy.root_device, trainer.precision_plugin)
    max_answers = int(3 * SHARE * _answers_trained(trainer, data))
    reading = Reading(max_answers, trainer.progress_bar_callback is not None)
    with place.running():
        examination = instantiate(cfg.examination)(place.to_device(whole), tokenizer, data, reading)
    if not examination:
        log.warning("no comparison is held out, so the reward model is not examined; raise data.val_fraction")
        return {}
    limits = _limits(cfg)
    results = gate.verdicts(examination["figures"], limits["refuse"], limits["warn"], gate.support(examination))
    gate.show(examination, results, wide_console())
    examination_plot.draw(examination, Path(cfg.paths.stage) / PICTURE)
    return {"examination": examination}


def _answers_trained(trainer: Trainer, data: DataContract) -> float:
    """How many answers training has read so far, by the mean of the first records."""
    first = [record for index in range(min(100, len(data.train_examples))) for record in data.train_examples[index]]
    mean = sum(len(record["completions"]) for record in first) / len(first)
    return trainer.global_step * data.batch_size * trainer.accumulate_grad_batches * trainer.world_size * mean


def check_reward_model(cfg: DictConfig) -> None:
    """Checks the examination in the card of the reward model that a stage reads; warns about metrics beyond a limit.

    Raises ArtifactError naming every metric beyond a limit under gate.refuse, unless gate.enabled is false, and
    ValueError for a limit on an unknown metric, in every stage: a reward model's training ends with the gate.
    """
    limits = _limits(cfg)
    gate.verdicts({}, limits["refuse"], limits["warn"])
    path = cfg.reads.get("reward")
    if path is None:
        return
    examination = store.read_card(path).get("examination")
    if examination is None:
        log.warning(
            f"the reward model at {path} was not examined (made elsewhere, or nothing was held out): "
            "how far it can be trusted is not known"
        )
        return
    results = gate.verdicts(examination["figures"], limits["refuse"], limits["warn"], gate.support(examination))
    doubtful, failed = ([item for item in results if item.verdict == kind] for kind in (gate.WARNED, gate.REFUSED))
    if failed and limits["enabled"]:
        again = f"python train.py stage=rm {common.identity(cfg)} force=true"
        remedies = {
            "Train it on more or better comparisons": f"{again} data.path=<file>, or data.comparisons=<number> of the "
            "built-in world",
            "or train against it regardless": "gate.enabled=false",
            "or move a limit": f"gate.refuse.{failed[0].key}=<number>, or null for none",
        }
        raise ArtifactError(gate.refusal(path, examination, failed, remedies))
    if short := [item for item in results if item.shortage]:
        listed = "".join(f"\n  {item}" for item in short)
        log.warning(f"the examination of the reward model at {path} rests on too little data to judge by:{listed}")
    if failed or doubtful:
        beyond = [*failed, *doubtful]
        listed = "".join(f"\n  {item}" for item in [*beyond, *(f"→ {one}" for one in gate.remedies(beyond))])
        log.warning(f"the reward model at {path} is doubtful; watch for over-optimization:{listed}")


def _limits(cfg: DictConfig) -> dict[str, Any]:
    """The gate's limits; with gate=null there are none, and nothing is refused."""
    return {"enabled": False, "refuse": {}, "warn": {}} | (composing.plain(cfg)["gate"] or {})
