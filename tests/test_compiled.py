"""Compiled layers: no graph break, one graph for all layers, and no other one because documents differ.

Counted by dynamo, whose graphs run as they are here (backend "eager"), with the masks that a GPU has.
"""

import random
from collections.abc import Callable

import pytest
import torch
from torch._dynamo.utils import counters

from components.data.batches import LMBatch
from components.models import gpt
from components.models.attention import attend
from components.models.attention.layout import Layout
from tests.kit.stage_runs import document, ranking
from tests.kit.tiny_stages import PROMPTS, attached, causal, grpo, lm_batch, ppo, preference_batch

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # torch.compile warns of itself


@pytest.fixture(autouse=True)
def dense_masks(monkeypatch):
    """As those of narrow heads on a GPU."""
    monkeypatch.setattr(attend, "segments_of", lambda layout: None)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled(model):
    for layer in model.model.layers:
        layer.compile(backend="eager", fullgraph=True)  # a graph break is an error
    return model


@pytest.fixture
def model():
    return compiled(causal())


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def of_one_shape(rng: random.Random) -> LMBatch:
    """Four rows full of documents, as pretraining has them."""
    whole = lm_batch([document(rng) for _ in range(60)], row_length=48)
    rows = (whole.input_ids, whole.targets, whole.mask, *whole.layout)
    ids, targets, mask, *layout = (field[:4] for field in rows)
    return LMBatch.of(ids, targets, mask, Layout(*layout), whole.num_bytes)


def test_all_layers_share_one_graph_for_rows_of_one_shape_and_any_documents(model):
    rng = random.Random(3)
    for _ in range(5):
        batch = of_one_shape(rng)
        model.hidden(batch.input_ids, batch.layout).sum().backward()
    assert graphs() == 1


def test_a_block_mask_of_other_documents_needs_no_other_graph(model, monkeypatch):
    """Forward alone: FlexAttention has no backward on a processor."""
    monkeypatch.setattr(gpt, "mask_of", lambda layout, head_dim: attend._block_mask(layout))
    rng = random.Random(3)
    for _ in range(4):
        batch = of_one_shape(rng)
        with torch.no_grad():
            model.hidden(batch.input_ids, batch.layout)
    assert graphs() == 1


@pytest.mark.parametrize(
    "batch",
    [
        lambda rng, n: lm_batch([document(rng) for _ in range(n)], row_length=48),
        lambda rng, n: preference_batch([ranking(rng) for _ in range(n)], row_length=48),
    ],
    ids=["dialogues", "rankings"],
)
def test_rows_of_many_shapes_share_three_graphs_at_most(batch: Callable, model):
    rng = random.Random(3)
    shapes = set()
    for _ in range(10):
        made = batch(rng, rng.randint(5, 14))
        shapes.add(made.input_ids.shape)
        model.hidden(made.input_ids, made.layout).sum().backward()
    assert len(shapes) > 3 and graphs() <= 3  # of the first shape, and for others what can differ: rows, length


@pytest.mark.parametrize("make", [ppo, grpo])
def test_updates_on_rollouts_of_many_shapes_share_three_graphs_at_most(make: Callable):
    """The policy's layers and the value model's alike: of rows of one shape, and of others."""
    stage = attached(make(epochs=1, minibatches=1))
    batches = [batch for rollout in range(5) for batch in stage.collect(PROMPTS[: 8 - rollout], rollout)]
    for network in [network for name, network in stage.networks().items() if name not in stage.frozen]:
        compiled(network)
    for batch in batches:
        stage.compute_loss(batch).loss.backward()
    assert len({batch.packed.input_ids.shape for batch in batches}) > 2 and graphs() <= 3
