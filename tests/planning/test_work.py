"""A stage's parameters and FLOPs, against the built models and what a stage counts itself."""

import pytest
import torch

from components.generation.rollout import minibatches
from components.models.heads import new_causal_lm, scalar_from_causal
from components.models.lora import LoRA
from components.planning.work import Network, Rollouts, Work, operations_of
from tests.kit.tiny_models import countable_config
from tests.kit.tiny_stages import experience_of

SHAPE = countable_config(max_position_embeddings=5)
FORWARD = 2 * 300 + 2 * 4 * 4 * 5  # see test_flops
RANKS = {"q_proj": 1, "down_proj": 3}


def built(head: str, ranks: dict[str, int]):
    with torch.device("meta"):
        model = new_causal_lm(SHAPE)
        model = model if head == "lm_head" else scalar_from_causal(model)
        if ranks:
            model.adapt(LoRA(rank=2, alpha=1.0, dropout=0.0, targets=list(ranks)))
    return model


@pytest.mark.parametrize("head", ["lm_head", "score"])
@pytest.mark.parametrize("ranks", [{}, {"q_proj": 2, "down_proj": 2}])
def test_parameters_and_flops_are_those_of_the_built_model(head, ranks):
    model, network = built(head, ranks), Network("model", SHAPE, head, ranks=ranks)
    parameters = list(model.parameters())
    assert network.parameters == sum(p.numel() for p in parameters)
    assert network.trained_parameters == sum(p.numel() for p in parameters if p.requires_grad)
    assert network.flops(5) == model.flops_per_token
    assert Network("reward", SHAPE, head, trained=False).trained_parameters == 0


def test_a_shared_trunk_is_in_memory_once_and_a_quantized_one_smaller():
    projections = 2 * (16 + 8 + 8 + 16 + 24 + 24 + 24)
    whole = Network("policy", SHAPE, ranks=RANKS)
    assert whole.weight_bytes == 4 * whole.parameters
    assert whole._replace(base="nf4").weight_bytes == 4 * whole.parameters - 3.5 * projections
    assert Network("reference", SHAPE, trained=False, own_trunk=False).weight_bytes == 0
    assert Network("reward", SHAPE, trained=False, bytes_per_weight=2.0).weight_bytes == 2 * SHAPE.num_parameters()


def test_training_costs_both_passes_and_one_more_of_a_frozen_network_that_reads_along():
    policy, reference = Network("policy", SHAPE), Network("reference", SHAPE, trained=False, reads=True)
    alone = operations_of(Work("sft", (policy,), tokens=7.0, steps=1, at_once=5, batch=1))
    assert alone.training == alone.total == 7 * 3 * FORWARD
    assert alone.attention == 7 * 3 * 2 * 4 * 4 * 5
    assert alone.recomputation == 7 * (FORWARD - 2 * 10 * 4)  # the head is not recomputed
    both = operations_of(Work("dpo", (policy, reference), tokens=7.0, steps=1, at_once=5, batch=1))
    assert both.training == 7 * 4 * FORWARD


def test_minibatches_read_as_many_tokens_as_rollouts_say():
    """16 prompts of 10 tokens, 8 responses of 7 to each: the first epoch reads each prompt once, and the others nearly
    once in each of 4 minibatches. If one response to each is trained on, a prompt is read once an epoch."""
    prompts = [[prompt] * 10 for prompt in range(16) for _ in range(8)]
    mask = torch.ones(128, 7, dtype=torch.bool)
    rollout = experience_of(torch.zeros(128), mask)
    order = torch.Generator().manual_seed(0)
    parts = minibatches(prompts, rollout, epochs=9, count=4, row_length=96, pad_id=0, generator=order)
    sizes = [int(part.packed.layout.real.sum()) for part in parts]
    group = Rollouts(1, prompts=16, samples_per_prompt=8, prompt=10, response=7, epochs=9, minibatches=4)
    assert sum(sizes[:4]) == group._replace(epochs=1).trained_on == 16 * 10 + 128 * 7
    assert sum(sizes) == pytest.approx(group.trained_on, rel=0.01)
    assert sum(sizes[4:]) / 32 == pytest.approx(group.in_minibatch, rel=0.01)
    assert group._replace(kept=1).trained_on == 9 * (16 * 10 + 16 * 7)


def test_a_rollout_is_read_once_to_sample_and_once_by_every_network():
    """3 rollouts of 2 devices; each reads 4 prompts of 5 tokens once and 8 responses of 6."""
    rollouts = Rollouts(3, prompts=4, samples_per_prompt=2, prompt=5, response=6, epochs=1, minibatches=2)
    networks = (Network("policy", SHAPE), Network("reference", SHAPE, trained=False))
    done = operations_of(Work("grpo", networks, 100.0, 6, 34, 4, devices=2, rollouts=rollouts))
    read = 3 * 2 * (4 * 5 + 8 * 6)
    assert (done.sampling, done.assessing) == (read * FORWARD, 2 * read * FORWARD)
    assert done.training == 100 * 3 * FORWARD
    assert done.total == done.training + done.sampling + done.assessing
