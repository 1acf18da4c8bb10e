"""Checks the patterns of a stage's settings against the names of its weights, before any data is read."""

import logging
from dataclasses import replace
from typing import Any

import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig

from components.artifacts import store
from components.launch import composing
from components.models.config import GPTConfig
from components.training import patterns

log = logging.getLogger(__name__)


def check(cfg: DictConfig, shape: GPTConfig) -> None:
    """Raises ValueError for a pattern in stage.freeze or stage.learning_rates that changes nothing, or leaves nothing
    to train; logs which tied matrices are frozen as one.

    shape: of a network that the stage does not read from a folder.
    """
    settings = composing.plain(cfg.stage)
    freeze, factors = settings.get("freeze") or [], settings.get("learning_rates") or {}
    if not (freeze or factors):
        return
    lora = instantiate(cfg.lora)
    networks: dict[str, Any] = {}
    used: set[str] = set()
    stage: Any = get_class(settings["_target_"])
    for name, kind in stage.trained_networks().items():
        path = settings.get(name, {}).get("path")
        config = store.load_config(path, context=cfg.context)[0] if path else shape
        with torch.device("meta"):
            networks[name] = kind(config)
            if lora:
                networks[name].adapt(replace(lora, base=None))
        frozen = patterns.freeze_(name, networks[name], freeze)
        used |= frozen.patterns
        if config.tie_word_embeddings and "lm_head.weight" in frozen.names:
            log.info(f"stage.freeze: model.embed_tokens.weight and lm_head.weight of the {name} are one frozen matrix")
    if networks:  # else a stage of the user's, which checks the patterns itself once its networks are built
        patterns.check_used("stage.freeze", freeze, used, networks)
        patterns.rates_of(networks, factors)
