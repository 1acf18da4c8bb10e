"""A training step without contents: memory and collectives, worked out by hand and beside the plan."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.profiler import ProfilerActivity, profile

from components.functional.output_layer import CHUNK, linear_cross_entropy
from components.models.config import GPTConfig
from components.models.heads import CausalLM, new_causal_lm
from components.models.shards import shard
from components.planning.device_memory import memory_of
from components.planning.estimate import bytes_sent
from components.planning.traced_step import Traced, pretended_ranks, trace
from components.planning.work import Network, Work
from components.training.fsdp import new_mesh
from components.training.optimizers import adamw
from tests.kit.several import together

LAYERS, RANKS, TOKENS = 2, 8, 128
SHAPE = GPTConfig(
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=TOKENS,
)
WORK = Work("pretrain", (Network("model", SHAPE),), 1.0, 1, TOKENS, 1, recompute=False, mixed=False, lean=True)
COLLECTIVES = {  # by torch's names
    "c10d::_allgather_base_": "all-gather",
    "c10d::_reduce_scatter_base_": "reduce-scatter",
    "c10d::allreduce_": "all-reduce",
}
OF_A_LAYER = 4 * 256 * 256 + 3 * 256 * 512 + 2 * 256
PARAMETERS = 2 * 1024 * 256 + LAYERS * OF_A_LAYER + 256


def traced(work: Work) -> Traced:
    """A step of the model of SHAPE, with autocast as in mixed precision."""
    with torch.device("meta"):
        model = new_causal_lm(SHAPE)
    model.model.recompute = bool(work.recompute)
    loss, new_optimizer = partial(_loss, model, work), partial(_adamw, model)
    if work.devices == 1:
        return trace([model], loss, new_optimizer, clip=1.0, accumulation=work.accumulation)
    with pretended_ranks(work.devices):
        shard(model, new_mesh("cpu", work.devices, work.replicas))
        return trace([model], loss, new_optimizer, clip=1.0, accumulation=work.accumulation)


def counted(rank: int, work: Work) -> dict[str, int]:
    """The collectives of a real step of this rank's, after a first one."""
    dist.init_process_group("gloo", rank=rank, world_size=work.devices)
    model = new_causal_lm(SHAPE)
    shard(model, new_mesh("cpu", work.devices, work.replicas))
    optimizer = _adamw(model)
    for _ in range(2):
        with profile(activities=[ProfilerActivity.CPU]) as step:
            value = _loss(model, work)
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    dist.destroy_process_group()
    return {COLLECTIVES[event.key]: event.count for event in step.key_averages() if event.key in COLLECTIVES}


def _loss(model: CausalLM, work: Work) -> torch.Tensor:
    ids = torch.zeros(work.batch, work.at_once // work.batch, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16, enabled=work.mixed, cache_enabled=False):
        hidden = model.hidden(ids).flatten(0, 1)
        return model.through_head(linear_cross_entropy, hidden, ids.flatten())[0]


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return adamw(model.named_parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


@pytest.fixture(scope="module")
def sharded() -> Traced:
    return traced(WORK._replace(devices=RANKS, strategy="fsdp"))


def test_a_product_and_its_sum_take_what_they_say():
    """A matrix of 8 × 4 and 16 inputs of 4: 128 bytes of weights and of gradients, 16 · 8 outputs, and their sum."""
    with torch.device("meta"):
        matrix = nn.Linear(4, 8, bias=False)
    new_optimizer = partial(torch.optim.SGD, matrix.parameters(), 0.1)
    made = trace([matrix], lambda: matrix(torch.ones(16, 4)).sum(), new_optimizer, accumulation=2)
    assert made == Traced({"weights": 128, "gradients": 128, "activations": 4 * (16 * 4 + 16 * 8 + 1)}, {})
    assert made.memory == 128 + 128 + 772 and made.sent == 0


def test_a_rank_has_its_share_of_weights_gradients_and_moments(sharded):
    assert sharded.parts["weights"] == 4 * PARAMETERS / RANKS
    scalars = 4 * len(list(new_causal_lm(SHAPE).parameters()))  # AdamW counts steps for every weight
    assert sharded.parts["optimizer"] == 8 * PARAMETERS / RANKS + scalars


def test_weights_are_gathered_twice_and_gradients_reduced_once_by_layer(sharded):
    """And what is outside of layers, whose gradient comes in two parts, since the head is called by itself."""
    gather, reduce = sharded.collectives["all-gather"], sharded.collectives["reduce-scatter"]
    share = (RANKS - 1) / RANKS
    assert gather == (2 * (LAYERS + 1), 2 * share * 4 * PARAMETERS)
    assert reduce == (LAYERS + 2, share * 4 * PARAMETERS)
    assert sharded.collectives["all-reduce"].number == 1  # of the gradient's norm


def test_every_micro_batch_communicates_but_the_norm_is_of_their_sum(sharded):
    step = traced(WORK._replace(devices=RANKS, strategy="fsdp", accumulation=3))
    for kind in ("all-gather", "reduce-scatter"):
        assert step.collectives[kind] == tuple(3 * figure for figure in sharded.collectives[kind])
    assert step.collectives["all-reduce"] == sharded.collectives["all-reduce"]


def test_replicas_gather_among_their_shards_and_reduce_shards_between_them(sharded):
    work = WORK._replace(devices=RANKS, strategy="fsdp", replicas=2)
    hybrid = traced(work)
    assert hybrid.parts["weights"] == 4 * PARAMETERS / 4
    assert hybrid.collectives["all-gather"] == (2 * (LAYERS + 1), 2 * 3 / 4 * 4 * PARAMETERS)
    assert hybrid.collectives["all-reduce"].number == 1 + hybrid.collectives["reduce-scatter"].number
    assert hybrid.sent == pytest.approx(bytes_sent(work), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 3])
def test_processes_communicate_as_often_as_the_trace_says(replicas, tmp_path):
    """Six, which no other test pretends to have: DTensor keeps the meshes that it saw, and would take their groups."""
    work = WORK._replace(devices=6, strategy="fsdp", replicas=replicas)
    of_ranks = together(partial(counted, work=work), tmp_path / "ranks", work.devices)
    said = {kind: made.number for kind, made in traced(work).collectives.items()}
    assert of_ranks == [said] * work.devices


@pytest.mark.parametrize(
    ("devices", "mixed", "recompute"), [(1, True, True), (RANKS, True, False), (RANKS, False, True)]
)
def test_the_plan_is_near_and_rather_too_high_than_too_low(devices, mixed, recompute):
    strategy = "fsdp" if devices > 1 else "one"
    work = WORK._replace(devices=devices, strategy=strategy, mixed=mixed, recompute=recompute)
    made = traced(work)
    assert 0.95 < memory_of(work, float("inf"), chunk=CHUNK["cpu"]).total / made.memory < 1.2
    assert bytes_sent(work) == pytest.approx(made.sent, rel=1e-3)
