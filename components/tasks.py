"""The composition root: every task as a straight list of calls. The only file, beside train.py, that sees a config."""

import logging
import time

STARTED = time.perf_counter()  # before the heavy imports below, which belong to a stage's time

from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import lightning as L  # noqa: E402
import torch  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.utils import get_class, get_method, instantiate  # noqa: E402
from omegaconf import DictConfig, OmegaConf, open_dict  # noqa: E402

from components import artifacts, hydra_hooks, lineage  # noqa: E402
from components.callbacks.checkpoint_io import AtomicCheckpointIO  # noqa: E402
from components.callbacks.hparams import HyperParameters  # noqa: E402
from components.callbacks.signals import GracefulStop  # noqa: E402
from components.checking import schema_of  # noqa: E402
from components.evaluation import report  # noqa: E402
from components.evaluation.evaluate import evaluate_pipeline  # noqa: E402
from components.tokenizer.tokenizer import Tokenizer  # noqa: E402
from components.tokenizer.train import measure  # noqa: E402
from components.world.world import World  # noqa: E402

log = logging.getLogger(__name__)
WIDE = 256  # hidden size from which on bf16 pays on a processor


def run(cfg: DictConfig) -> None:
    """Runs the task that the stage names."""
    get_method(cfg.task)(cfg)


def train_tokenizer(cfg: DictConfig) -> None:
    """Trains a tokenizer on the texts of the data set and writes its artifact."""
    data = instantiate(cfg.data, tokenizer=None, context=cfg.model.max_position_embeddings, **_surroundings(cfg))
    inputs = lineage.inputs_of(_plain(cfg), ["data", "tokenizer"], {}, data.fingerprint())
    if _is_made(cfg, inputs):
        return
    texts = list(data.texts())
    tokenizer = instantiate(cfg.tokenizer)(texts)
    metrics = measure(tokenizer, texts)
    metrics |= {"pieces": tokenizer.vocab_size, "characters": sum(map(len, texts)), "seconds": _seconds()}
    artifacts.write_artifact(cfg.paths.export, card=_card(cfg, inputs, {}, tokenizer, metrics), tokenizer=tokenizer)
    _say_made(cfg, metrics)


def fit(cfg: DictConfig) -> None:
    """Trains one stage from the artifacts it reads and writes its own."""
    parents = lineage.require(dict(cfg.reads), dict(cfg.artifacts), _identity(cfg))
    tokenizer = _common_tokenizer(cfg)
    shape = _shape(cfg, tokenizer)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = instantiate(cfg.data, tokenizer=tokenizer, context=shape.max_position_embeddings, **_surroundings(cfg))
    groups = ["stage", "data", "trainer", "seed"] + ([] if "model" in cfg.reads else ["model"])
    inputs = lineage.inputs_of(_plain(cfg), groups, parents, data.fingerprint())
    if _is_made(cfg, inputs):
        return
    checkpoint = lineage.checkpoint_to_resume(cfg.paths.stage, inputs, resume=cfg.resume, force=cfg.force)
    stage = _stage(cfg, tokenizer)
    trainer = _trainer(cfg, shape.hidden_size)
    trainer.fit(stage, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    _stop_if_signalled(trainer, cfg)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    metrics |= {"steps": trainer.global_step, "seconds": _seconds(), **_data_counts(data)}
    _export(trainer, cfg, stage.exportable(), _card(cfg, inputs, parents, tokenizer, metrics), tokenizer)
    if trainer.is_global_zero:
        _say_made(cfg, metrics)


def evaluate(cfg: DictConfig) -> None:
    """Measures base, SFT and PPO models and the reward model on held-out prompts, and writes the report card."""
    parents = lineage.require(dict(cfg.reads), dict(cfg.artifacts), _identity(cfg))
    tokenizer = _common_tokenizer(cfg)
    shape, _ = artifacts.load_config(cfg.reads.sft)
    places = _surroundings(cfg) | {"tokenizer": tokenizer, "context": shape.max_position_embeddings}
    data = instantiate(cfg.data, **places)
    rankings = instantiate(cfg.comparisons, **places)
    fingerprints = f"{data.fingerprint()} {rankings.fingerprint()}"
    inputs = lineage.inputs_of(_plain(cfg), ["stage", "data", "comparisons", "seed"], parents, fingerprints)
    done = report.read(cfg.paths.stage)
    if done and done.get("inputs") == inputs and cfg.force is not True:
        report.show(done, Path(cfg.paths.stage), report.wide_console())
        return
    builtin = cfg.data.path is None and not cfg.data.mixture
    ranked = builtin or cfg.comparisons.path or cfg.comparisons.mixture  # the world's say nothing of other models
    for module in (data, rankings) if ranked else (data,):
        module.prepare_data()
        module.setup()
    world = {name: value for name, value in cfg.world.items() if name != "noise"}
    results = evaluate_pipeline(
        {name: artifacts.load_causal_lm(cfg.reads[name]) for name in cfg.reads if name not in ("tokenizer", "reward")},
        tokenizer,
        reward=artifacts.load_scalar(cfg.reads.reward),
        world=World(**world) if builtin else None,
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
        "minutes": {**minutes, "eval": _seconds() / 60}, "inputs": inputs,
    }  # fmt: skip
    curves = {parent["stage"]: Path(parent["path"]).parent for parent in parents.values()}
    report.write(results, cfg.paths.stage, curves=curves)


def pipeline(cfg: DictConfig) -> None:
    """Runs the stages in order, each in a process of its own; stops at the first failure."""
    force = [] if cfg.force else ["force=changed"]  # a run of all may replace what its changed settings make stale
    for number, stage in enumerate(cfg.stage.stages, start=1):
        print(f"\n[{number}/{len(cfg.stage.stages)}] {stage}", flush=True)
        arguments = [*hydra_hooks.stage_arguments(cfg, stage), *force, *cfg.overrides.get(stage, [])]
        code = hydra_hooks.launch(arguments)
        if code:
            log.error(f"stage={stage} failed with exit status {code}; the stages before it are kept. "
                      "Mend it and run the same command: it goes on from there")  # fmt: skip
            raise SystemExit(code)


def _plain(cfg: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True)


def _surroundings(cfg: DictConfig) -> dict[str, Any]:
    return {"cache_dir": cfg.paths.cache, "seed": cfg.seed}


def _identity(cfg: DictConfig) -> str:
    """The overrides that name this run's folder, for commands that are suggested."""
    model = HydraConfig.get().runtime.choices["model"]
    parts = [f"model={model}"]
    parts += [f"run={cfg.run}"] if cfg.run != model else []
    parts += [f"paths.logs={cfg.paths.logs}"] if cfg.paths.logs != "logs" else []
    return " ".join(parts)


def _common_tokenizer(cfg: DictConfig) -> Tokenizer:
    """The tokenizer of all artifacts read; raises ArtifactError if they differ."""
    tokenizers = {path: artifacts.load_tokenizer(path) for path in cfg.reads.values()}
    lineage.same_tokenizer({path: tokenizer.fingerprint for path, tokenizer in tokenizers.items()})
    return tokenizers[cfg.reads.tokenizer]


def _shape(cfg: DictConfig, tokenizer: Tokenizer):
    """The model's shape: of the artifact that the stage starts from, else of the model group for this tokenizer."""
    if "model" in cfg.reads:
        return artifacts.load_config(cfg.reads.model)[0]
    shape = instantiate(cfg.model).with_vocab(tokenizer.vocab_size)
    with open_dict(cfg):
        cfg.stage.model.config.vocab_size = shape.vocab_size
    return shape


def _stage(cfg: DictConfig, tokenizer: Tokenizer) -> L.LightningModule:
    """The LightningModule, with what only the run knows given to constructors that ask for it."""
    known = {"stop_ids": list(tokenizer.stop_ids), "pad_id": tokenizer.pad_id}
    asked = schema_of(get_class(cfg.stage._target_)).types
    stage = instantiate(cfg.stage, **{name: value for name, value in known.items() if name in asked})
    stage.seed = cfg.seed
    return stage


def _trainer(cfg: DictConfig, width: int) -> L.Trainer:
    callbacks = [instantiate(c) for c in cfg.callbacks.values() if c is not None]
    logger = instantiate(cfg.logger)
    for callback in callbacks:
        if isinstance(callback, HyperParameters):
            callback.params = _compared(cfg)
    precision = cfg.trainer.precision
    if precision == "auto":
        precision = _precision(cfg.trainer.accelerator, width)
    shortest = cfg.trainer.max_steps if cfg.trainer.max_steps > 0 else cfg.trainer.log_every_n_steps
    return instantiate(
        cfg.trainer,
        callbacks=callbacks,
        logger=logger,
        precision=precision,
        plugins=[AtomicCheckpointIO()],
        log_every_n_steps=min(cfg.trainer.log_every_n_steps, shortest),  # a short run shows points too
    )


def _compared(cfg: DictConfig) -> dict[str, Any]:
    """What sweeps are compared by: the model, the seed, the learning rate and every value set on the command line.

    Not all settings: TensorBoard shows the first few columns, and those that nobody varied would hide the others.
    """
    given = {override.split("=", 1)[0].lstrip("+~") for override in HydraConfig.get().overrides.task}
    flat = lineage.flatten(_plain(cfg))
    keys = sorted(given | {"seed", "stage.optimizer.lr"})
    shown = {key: flat[key] for key in keys if not key.startswith(("paths.", "artifacts.", "callbacks.", "run"))
             and isinstance(flat.get(key), int | float | str)}  # fmt: skip
    return {"model": HydraConfig.get().runtime.choices["model"], **shown}


def _precision(accelerator: str, width: int) -> str:
    """bf16-mixed where it is fast, else 32-true.

    On a processor that is where it has bf16 matrix instructions and the model is wide enough to gain by them: at
    width 128 casting costs more than it saves (26k against 29k tokens/s on 2 cores with AMX).
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        return "32-true"
    instructions = torch.cpu.get_capabilities()
    fast = any(instructions.get(name) for name in ("amx_bf16", "avx512_bf16"))
    return "bf16-mixed" if fast and width >= WIDE else "32-true"


def _is_made(cfg: DictConfig, inputs: dict[str, Any]) -> bool:
    made = lineage.is_made(cfg.paths.export, inputs, cfg.force)
    if made:
        print(f"{cfg.paths.export} is up to date (same settings, data and parents); force=true makes it again")
    return made


def _stop_if_signalled(trainer: L.Trainer, cfg: DictConfig) -> None:
    """Ends the process after a signal: training stopped in order, but the stage is not finished."""
    for callback in trainer.callbacks:
        if isinstance(callback, GracefulStop) and callback.stopped_by is not None:
            log.error(f"stopped by {callback.stopped_by.name} after step {trainer.global_step}; a checkpoint is in "
                      f"{cfg.paths.stage}/checkpoints. The same command goes on from there")  # fmt: skip
            raise SystemExit(callback.exit_status)


def _data_counts(data: L.LightningDataModule) -> dict[str, float]:
    """How many records there were, were cut, dropped or malformed, and the mixture's realised token shares."""
    counts = {f"data/{name}": int(count) for name, count in data.counts.items()}
    shares = data.shares if len(data.shares) > 1 else {}
    return counts | {f"data/share_{name}": share.realised for name, share in shares.items()}


def _card(cfg, inputs, parents, tokenizer: Tokenizer, metrics: dict[str, float]) -> dict[str, Any]:
    return {
        "stage": HydraConfig.get().runtime.choices["stage"],
        "run": cfg.run,
        "parents": parents,
        "tokenizer": tokenizer.fingerprint,
        "data": inputs["data (content)"],
        "seed": cfg.seed,
        "commit": lineage.commit(),
        "hardware": lineage.hardware(),
        "versions": lineage.versions(),
        "metrics": metrics,
        "inputs": inputs,
    }


def _export(trainer: L.Trainer, cfg: DictConfig, model: torch.nn.Module, card: dict, tokenizer: Tokenizer) -> None:
    """Writes the artifact from the first process; sharded weights are gathered by all."""
    weights = artifacts.whole_weights(model)
    if trainer.is_global_zero:
        artifacts.write_artifact(cfg.paths.export, card=card, tokenizer=tokenizer, model=model, weights=weights)
    trainer.strategy.barrier("export")


def _seconds() -> float:
    return round(time.perf_counter() - STARTED, 1)


def _say_made(cfg: DictConfig, metrics: dict[str, float]) -> None:
    """One line: where the artifact lies, how long it took, what it scored."""
    shown = {k: v for k, v in metrics.items() if k.startswith(("val/", "bytes_per", "pieces")) or k == "train/loss"}
    figures = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
    print(f"made {cfg.paths.export} in {metrics['seconds']:.0f} s: {figures}", flush=True)
