"""A scaling law of the models that a folder contains, and what it predicts of a larger one."""

from pathlib import Path

from omegaconf import DictConfig

from components.artifacts import metadata
from components.artifacts.metadata import ArtifactError
from components.evaluation.report.output import wide_console
from components.planning import law_card
from components.planning.scaling_law import Run, fit

SAME = 0.02  # how far a run's size may be from the one that was predicted


def scaling_law(cfg: DictConfig) -> None:
    """Fits a law to the pretrained models in subfolders of stage.runs, without stage.larger, and predicts that one.

    Once the larger model is there, its loss is compared with the prediction, which it has no part in. Writes
    scaling_law.json, scaling_law.md and scaling_law.png into the stage's folder.
    Raises ArtifactError if the runs read different text or have another tokenizer, or if the larger one is not of the
    size that stage.parameters and stage.tokens say; ValueError for too few runs.
    """
    runs = runs_of(Path(cfg.stage.runs))
    larger = runs.pop(cfg.stage.larger, None)
    size = (float(cfg.stage.parameters), float(cfg.stage.tokens))
    if larger is not None:
        for name, wanted, got in zip(("parameters", "tokens"), size, larger, strict=False):
            if abs(got / wanted - 1) > SAME:
                raise ArtifactError(
                    f"{cfg.stage.runs}/{cfg.stage.larger} has {got:,.0f} {name}, but stage.{name}={wanted:,.0f} was "
                    f"predicted. Set stage.{name}={got:.0f}"
                )
    try:
        found = fit(list(runs.values()), resamples=cfg.stage.resamples, seed=cfg.seed)
    except ValueError as error:
        raise ArtifactError(
            f"{cfg.stage.runs}: {error}. Make them with: python train.py experiment=scaling_law"
        ) from None
    law_card.write(law_card.results_of(found, runs, larger, *size), Path(cfg.paths.stage), wide_console())


def runs_of(folder: Path) -> dict[str, Run]:
    """{name: run} of the finished pretraining runs in the subfolders of `folder`."""
    cards = {export.parent.name: metadata.read_card(export) for export in sorted(folder.glob("*/export"))}
    cards = {name: card for name, card in cards.items() if card.get("stage") == "pretrain"}
    for key, what in (("data", "text"), ("tokenizer", "tokenizer")):
        if len({card[key] for card in cards.values()}) > 1:
            raise ArtifactError(f"the runs in {folder} have more than one {what}; losses of different ones say nothing")
    return {
        name: Run(
            float(metadata.load_config(folder / name / "export")[0].num_parameters()),
            card["metrics"]["budget/train_tokens"],
            card["metrics"]["val/loss"],
        )
        for name, card in cards.items()
    }
