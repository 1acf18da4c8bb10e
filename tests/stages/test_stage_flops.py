"""What a stage's optimizer steps cost: of every network only what is trained, and one pass of a frozen one that they
read."""

import pytest

from components.models.flops import flops_per_token
from components.models.lora import LoRA
from components.training.contract import RunContext
from tests.kit.tiny_stages import attached, causal, config, dpo, grpo, kto, orpo, ppo, rejection, simpo

READING, SCORING = (flops_per_token(config(), 96, head=head) for head in ("lm_head", "score"))
LORA = RunContext(lora=LoRA(rank=2, alpha=2.0, dropout=0.0, targets=["q_proj"]))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (dpo, READING.training + READING.forward),
        (kto, READING.training + READING.forward),
        (simpo, READING.training),
        (orpo, READING.training),
        (grpo, READING.training),  # the reference and the reward read rollouts
        (rejection, READING.training),
        (ppo, READING.training + SCORING.training),
    ],
)
def test_a_step_trains_its_networks_and_reads_the_reference_that_its_loss_is_of(make, expected):
    assert attached(make()).flops_per_token() == expected


@pytest.mark.parametrize("make", [dpo, simpo, grpo])
def test_frozen_layers_below_the_first_trained_weight_cost_their_forward_pass_alone(make):
    stage = attached(make(freeze=["model.embed_tokens", "model.layers.0"]))
    layer, attention = 4 * 32 * 32 + 3 * 32 * 64 + 2 * 32, 4 * 32 * 96
    saved = 4 * layer + 2 * attention + 2 * 32  # and the input of the second layer's norm needs no gradient
    assert stage.flops_per_token() == attached(make()).flops_per_token() - saved


def test_a_pattern_of_one_network_spares_that_one():
    whole, policy = attached(ppo()).flops_per_token(), attached(ppo(freeze=["policy.lm_head"])).flops_per_token()
    assert whole - policy == 2 * 32 * 16
    value = attached(ppo(freeze=["value.model.embed_tokens"])).flops_per_token()
    assert whole - value == 2 * 32


def test_with_adapters_frozen_weights_are_passed_through_and_a_rollout_costs_as_much_as_without_but_their_products():
    stage = attached(grpo(policy=causal, run=LORA))
    products = 2 * 2 * (32 + 32)  # in two layers of A and B of rank 2
    assert stage.policy.flops_per_token.forward == READING.forward + 2 * products
    assert stage.reference.flops_per_token == (READING.forward, 0)
    assert stage.flops_per_token() < READING.training
    passing = READING.forward  # of weights and attention, whose backward pass costs twice its forward one
    attention = 2 * 4 * 32 * 96
    first = 2 * (32 + 3 * 32 * 32)  # the first norm and projections pass nothing on
    assert stage.policy.flops_per_token.backward == passing + attention - first + 2 * 2 * products - 2 * 2 * 32
