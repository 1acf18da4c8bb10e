"""The evaluation of a run: its models side by side, as a report card."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from components import artifacts, lineage
from components.data.builtin import make_world
from components.evaluation import report
from components.evaluation.evaluate import evaluate_pipeline
from components.tasks import common


def evaluate(cfg: DictConfig) -> None:
    """Measures base, SFT and PPO models and the reward model on held-out prompts, and writes the report card."""
    parents = lineage.require(dict(cfg.reads), dict(cfg.artifacts), common.identity(cfg))
    tokenizer = common.common_tokenizer(cfg)
    shape, _ = artifacts.load_config(cfg.reads.sft)
    places = common.surroundings(cfg) | {"tokenizer": tokenizer, "context": shape.max_position_embeddings}
    data = instantiate(cfg.data, **places)
    rankings = instantiate(cfg.comparisons, **places)
    fingerprints = f"{data.fingerprint()} {rankings.fingerprint()}"
    inputs = lineage.inputs_of(common.plain(cfg), ["stage", "data", "comparisons", "seed"], parents, fingerprints)
    done = report.read(cfg.paths.stage)
    if done and done.get("inputs") == inputs and cfg.force is not True:
        report.show(done, Path(cfg.paths.stage), report.wide_console())
        return
    builtin = cfg.data.path is None and not cfg.data.mixture
    ranked = builtin or cfg.comparisons.path or cfg.comparisons.mixture  # the world's say nothing of other models
    for module in (data, rankings) if ranked else (data,):
        module.prepare_data()
        module.setup()
    results = evaluate_pipeline(
        {name: artifacts.load_causal_lm(cfg.reads[name]) for name in cfg.reads if name not in ("tokenizer", "reward")},
        tokenizer,
        reward=artifacts.load_scalar(cfg.reads.reward),
        world=make_world(dict(cfg.world)) if builtin else None,
        prompts=list(data.val_examples)[: cfg.stage.max_prompts],
        train_prompts=list(data.train_examples)[: cfg.stage.max_prompts],
        seen=rankings.train_batches() if builtin else None,
        heldout=(rankings.val_dataloader() or None) if ranked else None,
        samples_per_prompt=cfg.stage.samples_per_prompt,
        max_new_tokens=cfg.stage.max_new_tokens,
        seed=cfg.seed,
    )
    cards = {parent["stage"]: artifacts.read_card(parent["path"]) for parent in parents.values()}
    minutes = {stage: card["metrics"]["seconds"] / 60 for stage, card in cards.items() if "metrics" in card}
    results |= {
        "run": cfg.run, "commit": lineage.commit(), "hardware": lineage.hardware(), "versions": lineage.versions(),
        "minutes": {**minutes, "eval": common.seconds() / 60}, "inputs": inputs,
    }  # fmt: skip
    curves = {parent["stage"]: Path(parent["path"]).parent for parent in parents.values()}
    report.write(results, cfg.paths.stage, curves=curves)
