"""trainer.dry_run=N: a training step of N ranks, composed as it would be and traced on this machine without weights."""

import json
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.plugins.precision import MixedPrecision
from omegaconf import DictConfig
from torch import nn

from components.data.batches import LMBatch, PreferenceBatch, packed_answers
from components.functional.output_layer import CHUNK
from components.launch import settings
from components.models.attention.attend import mask_of
from components.models.attention.layout import Layout
from components.models.heads import CausalLM, ScalarModel
from components.planning import traced_report
from components.planning.device_memory import memory_of
from components.planning.estimate import bytes_sent
from components.planning.traced_step import Traced, pretended_ranks, trace
from components.planning.work import Network, Work
from components.tasks import common
from components.tasks.placement import precision_of
from components.tasks.workload import Machine, work_of
from components.training.contract import RunContext
from components.training.fsdp import new_mesh

PRECISIONS = ("32-true", "bf16-mixed")
TRACED = ("TextData", "ChatData", "PreferenceData")  # data modules whose batches can be made without records


def show(cfg: DictConfig, *, as_json: bool = False) -> None:
    """Prints what torch would do next to what the plan says, and the difference."""
    work, traced = traced_step(cfg)
    planned = memory_of(work, float("inf"), chunk=CHUNK["cpu"])
    if as_json:
        print(json.dumps(traced_report.as_json(work, traced, planned, bytes_sent(work)), indent=2))
        return
    from components.evaluation.report import output  # rich is slow to import
    from components.evaluation.report.card import Table

    console = output.wide_console()
    for sheet in (
        traced_report.memory_table(work, traced, planned),
        traced_report.collectives_table(work, traced, bytes_sent(work)),
    ):
        console.print(output.rich_table(Table(*sheet)), "")


def traced_step(cfg: DictConfig) -> tuple[Work, Traced]:
    """The work of the stage on trainer.dry_run ranks, and what one of them does in a step.

    Raises ValueError for a stage, a strategy or a precision that cannot be traced.
    """
    entry, ranks = HydraConfig.get().runtime.choices["stage"], cfg.trainer.dry_run
    if settings.last_name(cfg.task) != "fit":
        raise ValueError(f"trainer.dry_run: stage={entry} trains no model, so there is no step to trace")
    if settings.last_name(cfg.data._target_) not in TRACED:
        raise ValueError(
            f"trainer.dry_run: the batches of stage={entry} depend on what its models say, which a model without "
            f"weights does not. Estimate it: gradus plan stage={entry} devices={ranks}"
        )
    if cfg.lora and cfg.lora.base:
        raise ValueError("trainer.dry_run: lora.base quantizes weights, and there are none here. Add lora.base=null")
    precision = precision_of(cfg, cfg.model.get("hidden_size") or 0)
    if precision not in PRECISIONS:
        raise ValueError(f"trainer.dry_run: expected trainer.precision={'|'.join(PRECISIONS)}, got {precision}")
    machine = Machine(1, precision != "32-true", "cpu")
    work = work_of(cfg, machine, devices=ranks, tokens=1.0)  # how many there are to train on does not change a step
    if work.strategy == "ddp":
        raise ValueError(
            f"trainer.dry_run={ranks}: several ranks are traced with trainer=fsdp, since DDP communicates unseen. "
            f"Add trainer=fsdp, or estimate it: gradus plan stage={entry} devices={ranks}"
        )
    if ranks == 1 and any(network.ranks or not network.trained for network in work.networks):
        raise ValueError(
            f"trainer.dry_run=1: on one device frozen weights are joined in place, and there are none here. Trace "
            f"trainer=fsdp trainer.dry_run=2, or estimate it: gradus plan stage={entry}"
        )
    work = work._replace(recompute=work.recompute is True)  # auto depends on memory that is not here
    if ranks == 1:
        return work, _traced(cfg, work, None, precision)
    with pretended_ranks(ranks):
        return work, _traced(cfg, work, new_mesh("cpu", ranks, work.replicas), precision)


def _traced(cfg: DictConfig, work: Work, mesh: Any, precision: Any) -> Traced:
    stage = _stage(cfg, work, mesh)
    batch = batch_of(settings.last_name(cfg.data._target_), work)
    for network in work.networks:
        mask_of(batch.layout, network.config.head_dim)  # reads the layout, which cannot be read among fake tensors

    def loss() -> torch.Tensor:
        with MixedPrecision(precision, "cpu").forward_context() if work.mixed else nullcontext():
            return stage.compute_loss(batch).loss

    networks = list(stage.networks().values())
    clip, accumulation = cfg.trainer.gradient_clip_val, cfg.trainer.accumulate_grad_batches
    return trace(networks, loss, stage.build_optimizer, clip=clip, accumulation=accumulation)


def _stage(cfg: DictConfig, work: Work, mesh: Any) -> Any:
    """The stage with its models on the meta device, sharded over the mesh by the stage itself."""
    run = RunContext(cfg.seed, instantiate(cfg.lora), gradient_checkpointing=bool(work.recompute))
    builders = {network.name: partial(_on_meta, network) for network in work.networks if network.name in cfg.stage}
    stage = common.built(cfg.stage, run=run, stop_ids=[], pad_id=0, **builders)
    stage._device_mesh = mesh  # as Lightning's strategy sets it; holds for Lightning 2.6
    stage.configure_model()
    return stage


def _on_meta(network: Network) -> nn.Module:
    with torch.device("meta"):
        return (CausalLM if network.head == "lm_head" else ScalarModel)(network.config)


def batch_of(data: str, work: Work) -> LMBatch | PreferenceBatch:
    """A micro-batch of a data module, each of its records as long as the plan takes them to be."""
    length = work.at_once // work.batch
    if data != "PreferenceData":
        ids = torch.zeros(work.batch, length, dtype=torch.int64)
        layout = Layout(torch.arange(length).expand_as(ids), ids, ids - 1)
        return LMBatch.of(ids, ids, torch.ones_like(ids, dtype=torch.bool), layout, torch.zeros(()))
    answer = length // 3
    document = [[0] * (length - 2 * answer), [0] * answer, [0] * answer]
    fields = packed_answers([document] * work.batch, context=work.model.config.longest, filler=0)
    return PreferenceBatch.of(
        **fields,
        groups=torch.arange(work.batch).repeat_interleave(2),
        ranks=torch.tensor([0.0, 1.0]).repeat(work.batch),
        finished=torch.ones(2 * work.batch, dtype=torch.bool),
    )
