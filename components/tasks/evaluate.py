"""The evaluation of a run: its models side by side, as a report card."""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from components.artifacts import store
from components.data.sources.builtin import make_world
from components.evaluation.measure.all_models import Material, evaluate_pipeline
from components.evaluation.measure.policy import SamplePlan
from components.evaluation.report import output
from components.evaluation.report.learning import learned
from components.functional.evenly import evenly
from components.launch import composing, settings
from components.system import provenance
from components.tasks import common
from components.tasks.placement import Place, check_room

NO_MODELS = ("tokenizer", "reward", "proxy")  # among the artifacts that are read


def evaluate(cfg: DictConfig) -> None:
    """Measures the models that the stage reads and the reward model on held-out prompts, and writes the report card."""
    parents, tokenizer, shape, for_data = common.read(cfg, cfg.reads.sft)
    data, rankings, text = (instantiate(cfg[name], **for_data) for name in ("data", "comparisons", "text"))
    check_room(cfg, data, "stage.max_new_tokens")
    fingerprints = " ".join(module.fingerprint() for module in (data, rankings, text))
    inputs = settings.inputs_of(composing.plain(cfg), parents, fingerprints)
    done = output.read(cfg.paths.stage)
    names = stage_names(parents)
    curves = {names[name]: Path(parent["path"]).parent for name, parent in parents.items()}
    if done and done.get("inputs") == inputs and cfg.force is not True:
        if output.is_whole(cfg.paths.stage):
            output.show(done, Path(cfg.paths.stage), output.wide_console())
        else:
            output.write(done, cfg.paths.stage, curves=curves)
        return
    builtin = data.is_builtin
    # the built-in world's rankings and text say nothing about models of other data
    ranked = "reward" in cfg.reads and (builtin or not rankings.is_builtin)
    read = builtin or not text.is_builtin
    for module, wanted in ((data, True), (rankings, ranked), (text, read)):
        if wanted:
            module.prepare_data()
            module.setup()
    place = Place.of(cfg, shape.hidden_size)
    models = loaded(cfg, place, store.load_causal_lm, [name for name in cfg.reads if name not in NO_MODELS])
    scorers = loaded(cfg, place, store.load_scalar, [name for name in ("reward", "proxy") if name in cfg.reads])
    with place.running():
        results = evaluate_pipeline(
            models,
            tokenizer,
            reward=scorers.get("reward"),
            proxy=scorers.get("proxy"),
            world=make_world(dict(cfg.world)) if builtin else None,
            material=material_of(cfg, data, rankings if ranked else None, text if read else None),
            plan=SamplePlan(cfg.stage.samples_per_prompt, cfg.stage.max_new_tokens, cfg.seed, cfg.tokens_at_once),
            best_of=cfg.stage.best_of,
        )
    cards = {name: store.read_card(parent["path"]) for name, parent in parents.items()}
    spent = {name: minutes_of(card) for name, card in cards.items() if minutes_of(card) is not None}
    results |= {
        "run": cfg.run,
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
        "minutes": {**{names[name]: minutes for name, minutes in spent.items()}, "eval": common.seconds() / 60},
        "learning": learned({names[name]: card for name, card in cards.items()}),
        "receipts": {names[name]: card["receipt"] for name, card in cards.items() if card.get("receipt")},
        "budget": {name: budget_of(card) for name, card in cards.items() if name != "tokenizer"},
        "inputs": inputs,
    }
    output.write(results, cfg.paths.stage, curves=curves)


def loaded(cfg: DictConfig, place: Place, load: Callable[..., Any], names: Sequence[str]) -> dict[str, Any]:
    """The models that are read under these names, where they run."""
    return {name: place.to_device(load(cfg.reads[name], context=cfg.context)) for name in names}


def material_of(cfg: DictConfig, data: Any, rankings: Any | None, text: Any | None) -> Material:
    """What models are measured on, from data modules after their setup; rankings and text are optional."""
    return Material(
        prompts=evenly(data.val_examples, cfg.stage.max_prompts),
        train_prompts=evenly(data.train_examples, cfg.stage.max_prompts),
        seen=rankings.train_batches() if rankings and data.is_builtin else None,
        heldout=(rankings.val_dataloader() or None) if rankings else None,
        text=list(islice(text.val_dataloader(), cfg.stage.text_batches)) if text else (),
    )


def stage_names(parents: dict[str, dict[str, str]]) -> dict[str, str]:
    """The report's name of each artifact that is read: its stage, or for a second one of the same stage its name in
    `reads`: {"ppo": "ppo", "low": "low"}."""
    names: dict[str, str] = {}
    for name, parent in parents.items():
        names[name] = name if parent["stage"] in names.values() else parent["stage"]
    return names


def minutes_of(card: dict[str, Any]) -> float | None:
    """The minutes that making an artifact took, by its card; None if that does not say."""
    seconds = card.get("metrics", {}).get("seconds")
    return None if seconds is None else seconds / 60


def budget_of(card: dict[str, Any]) -> dict[str, Any]:
    """What making an artifact took: minutes, tokens generated, floating-point operations, and the commit; None if its
    card does not say."""
    metrics = card.get("metrics", {})
    return {
        "minutes": minutes_of(card),
        "generated_tokens": metrics.get("budget/generated_tokens"),
        "flops": metrics.get("budget/flops"),
        "commit": card.get("commit"),
    }
