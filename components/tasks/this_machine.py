"""This machine as hardware to plan for, measured: products, memory, and a few steps of the model in question."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from components.planning import hardware
from components.planning.hardware import Hardware
from components.planning.work import Work
from components.tasks.workload import Machine

if TYPE_CHECKING:
    import torch

SECONDS = 3.0  # of training, and of sampling, that are timed
COPIED = 2**28  # bytes
SHARE = 0.25  # of the memory, beyond which a model is not built but taken to run like others
MOST_TOKENS = 16  # sampled
UNTIMED = 0.4  # mfu and mbu of a model that is not built


def place_of(cfg: DictConfig) -> Machine:
    """What the config leaves to this machine."""
    import torch

    from components.tasks.placement import precision_of

    width = cfg.model.get("hidden_size") or 0
    gpu = cfg.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    devices = torch.cuda.device_count() if gpu else 1
    return Machine(devices, "16" in str(precision_of(cfg, width)), "cuda" if gpu else "cpu")


def measured(work: Work, kind: str, changes: dict[str, object]) -> Hardware:
    """This machine as hardware: mfu and mbu are what the stage's own model reaches, in training and in sampling.

    changes: values that are given, not measured. Raises ValueError for unknown ones.
    """
    import torch

    from components.callbacks.throughput import measured_peak
    from components.system.memory import available

    device = torch.device(kind)
    flops, flops_32 = (measured_peak(device, dtype, seconds=1.0) for dtype in (torch.bfloat16, torch.float32))
    copied = torch.empty(COPIED // 4, device=device)
    bandwidth = 2 * COPIED / _seconds(copied.clone, device, 0.5)
    memory = torch.cuda.get_device_properties(device).total_memory if kind == "cuda" else available()
    values: dict[str, object] = {
        "name": torch.cuda.get_device_name(device) if kind == "cuda" else "this machine",
        "flops": flops,
        "flops_32": flops_32,
        "bandwidth": bandwidth,
        "memory": float(memory),
        "interconnect": bandwidth / 2,  # through memory
        "network": 1.25e8,  # 1 Gb/s
        "devices_per_node": torch.cuda.device_count() if kind == "cuda" else 1,
        "mfu": UNTIMED,
        "mbu": UNTIMED,
        "price": 0.0,
    }
    if not {"mfu", "mbu"} <= changes.keys() and 4 * work.model.trained_parameters * 4 < SHARE * float(memory):
        values |= _shares_of(work, device, flops if work.mixed else flops_32, bandwidth)
    return hardware.of_values(values | changes, "hardware=here")


def _shares_of(work: Work, device: "torch.device", peak: float, bandwidth: float) -> dict[str, float]:
    """mfu and mbu of the model, with random weights and tokens."""
    import torch

    from components.functional.output_layer import linear_cross_entropy
    from components.generation.generate import Sampling, generate
    from components.models.heads import new_causal_lm
    from components.models.lora import LoRA
    from components.planning.estimate import bytes_of_step

    shape, network = work.model.config, work.model
    torch.manual_seed(0)
    with torch.device(device):
        model = new_causal_lm(shape)
    if network.ranks:
        rank = next(iter(network.ranks.values()))
        model.adapt(LoRA(rank=rank, alpha=float(rank), dropout=0.0, targets=list(network.ranks), base=None))
    length = min(shape.longest, work.at_once)
    ids = torch.randint(0, shape.vocab_size, (max(work.at_once // length, 1), length), device=device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=work.mixed)

    def step() -> None:
        with autocast:
            hidden = model.hidden(ids[:, :-1]).flatten(0, 1)
            loss, _ = model.through_head(linear_cross_entropy, hidden, ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    operations = ids.numel() * model.flops_per_token.training
    shares = {"mfu": min(operations / _seconds(step, device, SECONDS) / peak, 1.0)}
    if work.rollouts is None:
        return shares
    rollouts = work.rollouts
    count = min(rollouts.response, MOST_TOKENS)
    prompts = [[1] * rollouts.prompt for _ in range(rollouts.rows)]

    def sample() -> None:
        with autocast:
            generator = torch.Generator(device).manual_seed(0)
            generate(model.eval(), prompts, Sampling(count), stop_ids=(), pad_id=0, generator=generator)

    seconds = _seconds(sample, device, SECONDS) / count
    return shares | {"mbu": min(bytes_of_step(work) / seconds / bandwidth, 1.0)}


def _seconds(work: Callable[[], object], device: "torch.device", most: float) -> float:
    """Mean of the runs that fit in about `most` seconds, the first (warmup) not counted."""
    import torch

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    work()
    began, count = wait(), 0
    while count == 0 or time.perf_counter() - began < most:
        work()
        count += 1
    return (wait() - began) / count
