"""Whether a stage has anything left to do, decided without torch: its inputs against those of its artifact."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from components.artifacts import lineage
from components.artifacts.metadata import differing, load_config, load_tokenizer, read_card
from components.data.sources.origin import fingerprint_of
from components.launch import composing, settings
from components.models.config import GPTConfig
from components.system import hub, processes
from components.system.disk import present
from components.tasks import command_line
from components.training import resuming

DATA = {"fit": ("data",), "train_tokenizer": ("data",), "evaluate": ("data", "comparisons", "text")}  # by task
SHAPE = {"fit": "model", "evaluate": "sft"}  # by task, the artifact whose shape the config is compared with


def is_up_to_date(cfg: DictConfig) -> bool:
    """Whether the stage's artifact was made from exactly these settings, parents and data; if so, prints a line.

    Also False if only the task itself can tell, for a data module, a model or a task of another kind. Raises what the
    task would: ArtifactError for a missing parent, and for an artifact made from other inputs.
    """
    inputs = inputs_of(cfg)
    if inputs is None or cfg.force is True:
        return False
    if settings.last_name(cfg.task) == "evaluate":
        from components.evaluation.report import output

        done = output.read(cfg.paths.stage)
        if not done or done.get("inputs") != inputs or not output.is_whole(cfg.paths.stage):
            return False
        _check_shape(cfg)
        output.show(done, Path(cfg.paths.stage), output.wide_console())
        return True
    before = read_card(cfg.paths.export).get("inputs", {}) if present(cfg.paths.export) else None
    if before is None or (cfg.force == "changed" and differing(before, inputs)):
        return False  # the task says why
    lineage.is_up_to_date(cfg.paths.export, inputs, cfg.force, command_line.in_another_run(cfg))
    _check_shape(cfg)
    report_up_to_date(cfg)
    return True


def report_up_to_date(cfg: DictConfig) -> None:
    """Prints, on the first process, that the export is kept and how to make it again."""
    if processes.rank() == 0:
        print(f"{cfg.paths.export} is up to date (same settings, data and parents); force=true makes it again")


def inputs_of(cfg: DictConfig) -> dict[str, Any] | None:
    """Everything that decides what the stage makes, see `settings.inputs_of`; None if only the task can tell."""
    task = settings.last_name(cfg.task)
    has_tokenizer = task == "train_tokenizer" and "path" in cfg.model
    if task not in DATA or has_tokenizer or any(map(_is_on_the_hub, cfg.reads.values())):
        return None
    command_line.give_precedence(cfg)
    parents = lineage.require(dict(cfg.reads), command_line.expected_artifacts(cfg), command_line.identity(cfg))
    if task == "fit" and not command_line.starts_from(cfg):
        cfg = deepcopy(cfg)
        set_vocabulary(cfg, load_tokenizer(cfg.reads.tokenizer).vocab_size)
    plain = composing.plain(cfg)
    try:
        data = " ".join(fingerprint_of(plain[name]) for name in DATA[task])
    except LookupError:
        return None
    inputs = settings.inputs_of(plain, parents, data)
    return resuming.with_origin(inputs, cfg.resume) if task == "fit" else inputs


def set_vocabulary(cfg: DictConfig, vocab_size: int) -> GPTConfig:
    """The shape of a fresh model for a tokenizer of this size, which is set in the stage's config."""
    shape: GPTConfig = instantiate(cfg.model, context=cfg.context or 0).with_vocab(vocab_size)
    with open_dict(cfg):
        cfg.stage.model.config.vocab_size = shape.vocab_size
    return shape


def _check_shape(cfg: DictConfig) -> None:
    path = cfg.reads.get(SHAPE.get(settings.last_name(cfg.task), ""))
    if path is not None:
        command_line.check_shape(cfg, path, load_config(path, context=cfg.context)[0])


def _is_on_the_hub(path: str) -> bool:
    return bool(hub.MODEL.fullmatch(path)) and not present(path)
