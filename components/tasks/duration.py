"""Estimates how long stages on the built-in world take on this machine's CPUs, before torch is imported."""

import glob
import time
from collections.abc import Sequence
from dataclasses import replace

from omegaconf import DictConfig

from components.launch import composing, forking
from components.launch.resolvers import is_builtin
from components.planning.work import operations_of
from components.tasks.workload import TOKENS, Machine, work_of

START = 8.0  # seconds of a stage besides its steps: reading, validating, exporting
SHARE = 0.55  # of the rate of large matrix products, reached by training
VALIDATION = 1.15  # times the steps' own seconds


def minutes(operations: Sequence[float | None]) -> float | None:
    """Minutes of stages with these `operations`; None if any are unknown, or if there is an accelerator."""
    counts = [count for count in operations if count is not None]
    if not counts or len(counts) < len(operations) or any(map(glob.glob, forking.ACCELERATORS)):
        return None
    return (START * len(counts) + VALIDATION * sum(counts) / (SHARE * _rate())) / 60


def operations(stage: str, cfg: DictConfig) -> float | None:
    """Floating-point operations of the training steps of a stage in TOKENS on the built-in world, whose records are
    all that attention sees; None for any other stage or data, and for a model that is not here.

    cfg: the one that is composed.
    """
    if stage == "tokenizer":
        return 0.0
    if stage not in TOKENS or not is_builtin(composing.plain(cfg).get("data") or {}):
        return None
    try:
        work = work_of(cfg, Machine(per_node=1, mixed=False, kind="cpu"))
    except ValueError:
        return None
    seen = TOKENS[stage].of_record
    networks = (network._replace(config=replace(network.config, context=seen)) for network in work.networks)
    return operations_of(work._replace(networks=tuple(networks))).training


def _rate(size: int = 512, seconds: float = 0.1) -> float:
    """Floating-point operations per second of float32 matrix products on all CPUs."""
    import numpy as np  # only a plan pays for it

    matrix = np.ones((size, size), dtype=np.float32)
    matrix @ matrix
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        matrix @ matrix
        count += 1
    return 2.0 * size**3 * count / (time.perf_counter() - start)
