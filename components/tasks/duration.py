"""Estimates how long stages on the built-in world take on this machine's CPUs, before torch is imported."""

import glob
import math
import time
from collections.abc import Sequence

from omegaconf import DictConfig

from components.launch import composing, forking
from components.launch.resolvers import is_builtin
from components.models.config import GPTConfig
from components.models.flops import flops_per_token

# by stage: the settings whose product is the number of the world's records, and the tokens of a record, which is all
# that attention sees; the rollouts of the other stages are not estimated
TOKENS = {
    "pretrain": (("num_documents",), 26),
    "sft": (("demonstrations",), 26),
    **dict.fromkeys(("rm", "dpo", "simpo", "orpo"), (("comparisons",), 41)),
    "kto": (("comparisons", "completions"), 25),
}
REFERRING = ("dpo", "kto")  # a frozen reference reads all that is trained on
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
    """Floating-point operations of the training steps of a stage in TOKENS on the built-in world; None for any other
    stage or data."""
    if stage == "tokenizer":
        return 0.0
    plain = composing.plain(cfg)
    data, model = plain.get("data"), plain.get("model") or {}
    if stage not in TOKENS or not data or not is_builtin(data) or "hidden_size" not in model:
        return None
    shape = GPTConfig(**{name: value for name, value in model.items() if name != "_target_"})
    trainer = plain["trainer"]
    steps, epochs = trainer["max_steps"], trainer["max_epochs"]
    per_step = data["batch_size"] * trainer["accumulate_grad_batches"]
    sizes, each = TOKENS[stage]
    packed = (plain["context"] or shape.max_position_embeddings) / each if stage == "pretrain" else 1
    limits = [epochs * math.prod(data[size] for size in sizes)] if epochs else []
    limits += [steps * per_step * packed] if steps > 0 else []
    shape = shape.with_vocab(plain["tokenizer"]["vocab_size"])
    lora = plain.get("lora") or {}
    cost = flops_per_token(
        shape,
        each,
        trained=(lambda name: "lora_" in name) if lora else (lambda name: True),
        ranks=dict.fromkeys(lora.get("targets", ()), lora.get("rank", 0)),
        head="score" if stage == "rm" else "lm_head",
    )
    return min(limits, default=0) * each * (cost.training + cost.forward * (stage in REFERRING))


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
