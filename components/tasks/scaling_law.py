"""A scaling law of the models that a folder contains, what it predicts of a larger one, and how right that was."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from components.artifacts import metadata
from components.artifacts.metadata import ArtifactError
from components.evaluation.report.output import wide_console
from components.planning.compute_optimal import Law
from components.planning.law_fit import FEWEST, Run, fit
from components.system import provenance
from components.system.disk import read_json_if_any
from components.tasks import law_card

SAME = 0.02  # how far the size of the larger run may be from the one that was predicted
MAKE = "python train.py experiment=scaling_law files.text=<file or folder>"
METRICS = {"budget/train_tokens": "tokens", "val/loss": "held-out loss"}
STARTS = ("stage.model.path", metadata.RESUMED)  # inputs of runs that did not start from random weights


class Trained(NamedTuple):
    """A run, the content of its artifact, and the settings that decide whether its loss can be compared."""

    run: Run
    content: str
    text: Mapping[str, Any]


def scaling_law(cfg: DictConfig) -> None:
    """Fits a law to the pretrained models in subfolders of stage.runs and predicts stage.larger, which is not among
    them; with stage.forecast, the scaling_law.json of such a prediction, compares it with the loss of that model.

    Writes scaling_law.json, scaling_law.md and scaling_law.png into the stage's folder. A prediction of the same runs
    is not made again. Raises ArtifactError for runs that no law can be fitted to, or that are not the forecast's.
    """
    folder, console = Path(cfg.paths.stage), wide_console()
    runs = runs_of(Path(cfg.stage.runs))
    larger = runs.pop(cfg.stage.larger, None)
    if cfg.stage.forecast is not None:
        law_card.write(compared(cfg, runs, larger), folder, console)
        return
    size = {name: _number(cfg, name) for name in ("parameters", "tokens")}
    asked = {"runs": _recorded(runs), "size": size, "resamples": cfg.stage.resamples, "seed": cfg.seed}
    done = read_json_if_any(folder / law_card.DATA)
    if done and all(done[key] == value for key, value in asked.items()) and cfg.force is not True:
        law_card.show(done, folder, console)
        return
    law_card.write(forecast(asked, runs, Path(cfg.stage.runs)), folder, console)


def forecast(asked: Mapping[str, Any], runs: Mapping[str, Trained], folder: Path) -> dict[str, Any]:
    """The law with its intervals, and what it predicts of a run of the size that is asked for."""
    parameters, tokens = asked["size"]["parameters"], asked["size"]["tokens"]
    for name, (run, *_) in runs.items():
        if run.parameters >= parameters and run.tokens >= tokens:
            raise ArtifactError(
                f"{folder / name} has {run.parameters:,.0f} parameters and read {run.tokens:,.0f} tokens, as many as "
                f"the run to be predicted. Expected smaller ones; if it is that run, set stage.larger={name}"
            )
    try:
        found = fit([one.run for one in runs.values()], resamples=asked["resamples"], seed=asked["seed"])
    except ValueError as error:
        more = f". Make runs with: {MAKE}" if len(runs) < FEWEST else ""
        raise ArtifactError(f"{folder}: {error}{more}") from None
    loss, *interval = found.predicted(parameters, tokens)
    return {
        **asked,
        "law": found.law._asdict(),
        "intervals": {name: list(found.interval(name)) for name in Law._fields},
        "error": found.error,
        "predicted": {"loss": loss, "interval": interval},
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
    }


def compared(cfg: DictConfig, runs: Mapping[str, Trained], larger: Trained | None) -> dict[str, Any]:
    """The forecast, with the larger run's measured loss and the relative error of the prediction."""
    made = read_json_if_any(Path(cfg.stage.forecast))
    if made is None:
        raise ArtifactError(f"stage.forecast={cfg.stage.forecast} does not exist. Make it with: {MAKE}")
    name = Path(cfg.stage.runs, cfg.stage.larger)
    if larger is None:
        raise ArtifactError(f"{name} is not there: expected the pretrained model that stage.forecast predicts")
    if made["runs"] != _recorded(runs):
        raise ArtifactError(
            f"{cfg.stage.forecast} was made of other runs than those in {cfg.stage.runs}. Make it again"
        )
    for what, wanted in made["size"].items():
        got = getattr(larger.run, what)
        if abs(got / wanted - 1) > SAME:
            raise ArtifactError(
                f"{name} has {got:,.0f} {what}, but the forecast is of {wanted:,.0f}. Train a run of that size, or "
                f"make a forecast of this one with stage.{what}={got:.0f}"
            )
    return made | {"measured": {"loss": larger.run.loss, "error": made["predicted"]["loss"] / larger.run.loss - 1}}


def runs_of(folder: Path) -> dict[str, Trained]:
    """{name: run} of the pretraining runs in the subfolders of `folder`.

    Raises ArtifactError for a run without a measured loss, one that ended early, read a part of its text twice or did
    not start from random weights, and for runs that were trained or measured on different text.
    """
    runs: dict[str, Trained] = {}
    for export in sorted(folder.glob("*/export")):
        card = metadata.read_card(export)
        if card.get("stage") == "pretrain":
            runs[export.parent.name] = _trained(export, card)
    first = next(iter(runs), "")
    for name, one in runs.items():
        differ = sorted(
            key for key in one.text.keys() | runs[first].text if one.text.get(key) != runs[first].text.get(key)
        )
        if differ:
            raise ArtifactError(
                f"{folder / name} and {folder / first} have different text ({', '.join(differ)}), so their losses "
                "cannot be compared. Train them on the same"
            )
    return runs


def _trained(export: Path, card: Mapping[str, Any]) -> Trained:
    metrics, inputs = card["metrics"], card["inputs"]
    again = "Make it again with force=true"
    for key, what in METRICS.items():
        if not (math.isfinite(metrics.get(key, math.nan)) and metrics[key] > 0):
            raise ArtifactError(
                f"{export}: expected its {what}, {key}, above 0 in card.json, got {metrics.get(key)}. {again}"
            )
    exported = card["exported"]
    if "stopped early" in card or exported["step"] != exported["of"]:
        raise ArtifactError(
            f"{export}: expected the weights of the end of training, got those of step {exported['step']} of "
            f"{exported['of']}. {again} export=last"
        )
    if metrics["budget/train_tokens"] > metrics["data/tokens"]:
        raise ArtifactError(
            f"{export}: expected every text to be read once, but {metrics['budget/train_tokens']:,.0f} tokens "
            f"were read of {metrics['data/tokens']:,}. Train on more text or for fewer steps"
        )
    started = [key for key in STARTS if inputs.get(key) is not None] + [
        key for key in inputs if key.startswith("lora.")
    ]
    if started:
        raise ArtifactError(f"{export}: expected a run from random weights, but it has {', '.join(started)}")
    read = {key: value for key, value in inputs.items() if key.startswith("data.") and key != "data.batch_size"}
    return Trained(
        Run(
            float(metadata.load_config(export)[0].num_parameters()), metrics["budget/train_tokens"], metrics["val/loss"]
        ),
        card["content"],
        read | {key: inputs.get(key) for key in ("context", "reads.tokenizer", "data (content)")},
    )


def _recorded(runs: Mapping[str, Trained]) -> dict[str, Any]:
    return {name: {**one.run._asdict(), "content": one.content} for name, one in runs.items()}


def _number(cfg: DictConfig, name: str) -> float:
    value = None if OmegaConf.is_missing(cfg.stage, name) else cfg.stage[name]
    if not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"stage.{name}={value}: expected how many {name} the larger run has, such as stage.{name}=8e5")
    return float(value)
