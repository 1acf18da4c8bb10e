"""Training: a tokenizer from texts, or one stage from the artifacts that it reads."""

import logging
import time
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ProgressBar
from omegaconf import DictConfig, open_dict

from components.artifacts import lineage, store
from components.callbacks.checkpoints import Checkpoints
from components.callbacks.diagnosis import Diagnosis
from components.callbacks.early_stopping import EarlyStopping
from components.callbacks.header import Header
from components.callbacks.hparams import HyperParameters
from components.callbacks.receipt import Receipt
from components.callbacks.signals import GracefulStop, seconds_of
from components.callbacks.small_data import SmallData
from components.callbacks.weight_average import WeightAverage
from components.launch import composing, settings, spawning
from components.planning.work import operations_of
from components.tasks import chosen_weights, command_line, common, reward_functions, reward_gate, staleness
from components.tasks.placement import check_room, precision_of
from components.tasks.workload import Machine, work_of
from components.tokenizer.tokenizer import Tokenizer
from components.tokenizer.train import measure
from components.training import cluster, resuming
from components.training.checkpoint_io import AtomicCheckpointIO
from components.training.contract import RunContext

log = logging.getLogger(__name__)
UNCUT = 2**30  # tokens: a tokenizer is trained on texts, which have no context to fit into


def train_tokenizer(cfg: DictConfig) -> None:
    """Trains a tokenizer on the texts of the data set and writes its artifact."""
    if "path" in cfg.model:
        raise ValueError(f"model=hf uses the tokenizer of {cfg.model.path}: there is none to train")
    data = instantiate(cfg.data, tokenizer=None, context=UNCUT, **common.surroundings(cfg))
    inputs = settings.inputs_of(composing.plain(cfg), {}, data.fingerprint())
    if common.is_up_to_date(cfg, inputs):
        return
    texts = list(data.texts())
    tokenizer = instantiate(cfg.tokenizer)(texts)
    metrics = measure(tokenizer, texts)
    metrics |= {"pieces": tokenizer.vocab_size, "characters": sum(map(len, texts)), "seconds": common.seconds()}
    card = common.card_of(cfg, inputs, {}, tokenizer, metrics)
    store.write_artifact(cfg.paths.export, card=card, tokenizer=tokenizer)
    common.report_made(cfg, metrics)


def fit(cfg: DictConfig) -> None:
    """Trains one stage from the artifacts it reads and writes its own."""
    parents = lineage.require(dict(cfg.reads), command_line.expected_artifacts(cfg), common.identity(cfg))
    tokenizer = common.common_tokenizer(cfg)
    shape = _shape(cfg, tokenizer)
    command_line.advise_rate(cfg, parents)
    chosen_weights.check(cfg, shape)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = instantiate(cfg.data, tokenizer=tokenizer, context=shape.longest, **common.surroundings(cfg))
    check_room(cfg, data, "stage.sampling.max_new_tokens")
    inputs = resuming.with_origin(settings.inputs_of(composing.plain(cfg), parents, data.fingerprint()), cfg.resume)
    if common.is_up_to_date(cfg, inputs):
        return
    reward_gate.check_reward_model(cfg)
    reward_functions.try_on(cfg, data)
    checkpoint = resuming.checkpoint_to_resume(cfg.paths.stage, inputs, resume=cfg.resume, force=cfg.force)
    inputs = resuming.with_origin(inputs, checkpoint)
    stage = _stage(cfg, tokenizer, parents)
    trainer = _trainer(cfg, shape.hidden_size, inputs)
    began = common.seconds()
    trainer.fit(stage, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    fit_seconds = common.seconds() - began  # without imports, reading data, examining
    _stop_if_unfinished(trainer, cfg)
    model = stage.exportable()
    weights = store.whole_weights(model)  # sharded ones are gathered by all processes
    ending = reward_gate.examined(cfg, trainer, model, weights, data, tokenizer) if trainer.is_global_zero else {}
    ending |= _ending(trainer)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    metrics |= {"steps": trainer.global_step, "seconds": common.seconds(), "fit_seconds": fit_seconds}
    metrics |= _data_counts(data)
    if trainer.is_global_zero:
        ending["ended_by"] = _ended_by(trainer)
        card = common.card_of(cfg, inputs, parents, tokenizer, metrics) | ending
        store.write_artifact(cfg.paths.export, card=card, tokenizer=tokenizer, model=model, weights=weights)
        common.report_made(cfg, metrics, ending)
    trainer.strategy.barrier("export")


def _shape(cfg: DictConfig, tokenizer: Tokenizer):
    """The shape of the artifact that the stage starts from, else of the model group with this tokenizer."""
    if path := command_line.starts_from(cfg):
        shape, _ = store.load_config(path, context=cfg.context)
        command_line.check_shape(cfg, path, shape)
        return shape.with_vocab(tokenizer.vocab_size)
    return staleness.set_vocabulary(cfg, tokenizer.vocab_size)


def _stage(cfg: DictConfig, tokenizer: Tokenizer, parents: dict[str, dict[str, str]]) -> Any:
    """The LightningModule of the run."""
    shape = cfg.stage.get("model", {}).get("config")
    if shape is not None and "vocab_size" in shape:  # a fresh model; one that is read comes with its tokenizer
        with open_dict(cfg):
            shape.unused_ids = list(tokenizer.unused_ids(shape.vocab_size))
    if cfg.lora and cfg.lora.base and cfg.gradient_checkpointing is not True:
        log.warning(
            "lora.base: a quantized matrix is kept dense from its forward to its backward pass; "
            "gradient_checkpointing=true keeps those of one layer at a time"
        )
    run = RunContext(
        seed=cfg.seed,
        lora=instantiate(cfg.lora),
        gradient_checkpointing=cfg.gradient_checkpointing,
        compile=cfg.compile,
        fresh=not cfg.stage.get("model", {}).get("path"),
        reward_is_adapter=bool(cfg.lora)
        and "reward" in cfg.reads
        and store.adapts(cfg.reads.reward, parents["model"]["content"]),
    )
    return common.built(cfg.stage, run=run, stop_ids=list(tokenizer.stop_ids), pad_id=tokenizer.pad_id)


def _trainer(cfg: DictConfig, width: int, inputs: dict[str, Any]) -> L.Trainer:
    chosen = HydraConfig.get().runtime.choices.get("callbacks")  # without the group, a stage's changes to it remain
    callbacks = [instantiate(c) for c in cfg.callbacks.values() if c is not None and (chosen or "_target_" in c)]
    saves = any(isinstance(callback, Checkpoints) for callback in callbacks)
    if cfg.export == "best" and not saves:
        raise ValueError("export=best needs the callback checkpoints, which was left out. Keep it, or add export=last")
    for callback in callbacks:
        if isinstance(callback, HyperParameters):
            callback.params = command_line.compared(cfg)
        if isinstance(callback, Checkpoints):
            callback.inputs = inputs
    _limit_time(callbacks, cfg.trainer.max_time)
    average = [] if cfg.ema_decay is None else [WeightAverage(cfg.ema_decay)]
    first = sum(isinstance(callback, GracefulStop) for callback in callbacks)  # it exits before the others' hooks
    callbacks[first:first] = [_header(cfg), *average]
    callbacks += [SmallData(**few)] if (few := settings.small_data_of(composing.plain(cfg))) else []
    callbacks.append(Receipt(_flops(cfg, width)))  # last: it reads what the others measure
    shortest = cfg.trainer.max_steps if cfg.trainer.max_steps > 0 else cfg.trainer.log_every_n_steps
    return instantiate(
        {key: value for key, value in cfg.trainer.items() if key != "dry_run"},
        callbacks=callbacks,
        logger=[instantiate(logger) for logger in (cfg.logger or {}).values() if logger],
        enable_checkpointing=saves,
        enable_progress_bar=cfg.trainer.enable_progress_bar and any(isinstance(c, ProgressBar) for c in callbacks),
        precision=precision_of(cfg, width),
        max_time=None,  # Lightning's own clock resumes from the checkpoint's, and would end a resumed run at once
        plugins=[AtomicCheckpointIO(), *cluster.environment()],
        log_every_n_steps=min(cfg.trainer.log_every_n_steps, shortest),  # so that a short run shows points too
    )


def _header(cfg: DictConfig) -> Header:
    model = command_line.starts_from(cfg)
    return Header(f"from {model}" if model else HydraConfig.get().runtime.choices["model"])


def _flops(cfg: DictConfig, width: int) -> float | None:
    """FLOPs of the whole run, by its settings; None if they do not say how much is trained on, or what."""
    machine = Machine(max(torch.cuda.device_count(), 1), "16" in str(precision_of(cfg, width)), "cpu")
    try:
        return operations_of(work_of(cfg, machine)).total
    except (ValueError, LookupError):
        return None


def _limit_time(callbacks: list[L.Callback], max_time: Any) -> None:
    """Sets the deadline of GracefulStop to max_time after the start of this process."""
    limit = seconds_of(composing.plain(max_time) if isinstance(max_time, DictConfig) else max_time)
    stops = [callback for callback in callbacks if isinstance(callback, GracefulStop)]
    if max_time is not None and not stops:
        raise ValueError("trainer.max_time needs the callback graceful_stop, which was left out")
    for stop in stops:
        stop.deadline = time.monotonic() + limit - common.seconds()


def _stop_if_unfinished(trainer: L.Trainer, cfg: DictConfig) -> None:
    """Ends the process if a signal or the time limit stopped training, which leaves the stage unfinished."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GracefulStop) and callback.reason:
            again = spawning.same_command(cfg, cfg.paths.export)
            kept = f"; a checkpoint is in {cfg.paths.stage}/checkpoints; {again} resumes from there"
            step = f"after step {trainer.global_step}{kept}" if trainer.global_step else "before the first step"
            log.error(f"stopped by {callback.reason} {step}")
            raise SystemExit(callback.exit_status)


def _ending(trainer: L.Trainer) -> dict[str, Any]:
    """For the card: which step's weights are exported and why, what stopped the run early, if anything, and whether it
    learned."""
    last = trainer.global_step
    ending: dict[str, Any] = {"exported": {"step": last, "of": last, "why": "export=last"}}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoints):
            ending["exported"] = callback.exported
        if isinstance(callback, EarlyStopping) and callback.reason:
            ending["stopped early"] = callback.reason
        if isinstance(callback, Receipt) and callback.figures:
            ending["receipt"] = {name: figure._asdict() for name, figure in callback.figures.items()}
        if isinstance(callback, Diagnosis) and trainer.is_global_zero:
            ending["learning"] = callback.conclude(trainer, _longer(trainer))
    for average in (c for c in trainer.callbacks if isinstance(c, WeightAverage)):  # type: ignore[attr-defined]
        why = f"{ending['exported']['why']}; the moving average of its weights, ema_decay={average.decay:g}"
        ending["exported"] = {**ending["exported"], "why": why}
    return ending


def _longer(trainer: L.Trainer) -> str:
    """The override that makes training twice as long."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, SmallData) and callback.note for callback in callbacks):
        return f"small_data.steps={2 * trainer.global_step}"
    steps, epochs = trainer.max_steps, trainer.max_epochs or 1
    return f"trainer.max_steps={2 * steps}" if steps > 0 else f"trainer.max_epochs={2 * epochs}"


def _ended_by(trainer: L.Trainer) -> str:
    """The limit that ended uninterrupted training, such as "trainer.max_steps=60"."""
    if trainer.global_step == trainer.max_steps:
        return f"trainer.max_steps={trainer.max_steps}"
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    stops = [callback for callback in callbacks if isinstance(callback, EarlyStopping)]
    early = [f"early stopping on {stop.metric}" for stop in stops if stop.reason]
    return early[0] if early else f"trainer.max_epochs={trainer.max_epochs}"


def _data_counts(data: Any) -> dict[str, float]:
    """How many records there were, were cut, dropped or malformed, and the mixture's realized token shares."""
    counts = {f"data/{name}": int(count) for name, count in data.counts.items()}
    shares = data.shares if len(data.shares) > 1 else {}
    return counts | {f"data/share_{name}": share.realized for name, share in shares.items()}
