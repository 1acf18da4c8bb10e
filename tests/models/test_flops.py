"""Floating-point operations of a token: two per parameter forward, and backward only what the trained weights need."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from components.models.config import GPTConfig
from components.models.flops import flops_per_token
from components.models.heads import new_causal_lm, scalar_from_causal
from components.models.lora import LoRA
from components.training.patterns import freeze_
from tests.kit.tiny_models import countable_config

SHAPE = countable_config(max_position_embeddings=5)
ATTENTION = 4 * 4 * 5  # of a layer, forward: twice 2 · width 4 · 5 tokens


def test_all_of_a_model_costs_six_per_parameter_and_twelve_of_attention():
    found = flops_per_token(SHAPE, 5)
    assert found.forward == 2 * 300 + 2 * ATTENTION
    assert found.backward == 2 * found.forward and found.training == 6 * 300 + 12 * 2 * 4 * 5


LAYER = 4 * 128 + 2 * ATTENTION  # backward of a layer that is trained and passes a gradient on
PASSING = 2 * 128 + 2 * ATTENTION  # of one that only passes it on


@pytest.mark.parametrize(
    ("patterns", "backward"),
    [
        (["model.embed_tokens"], 2 * LAYER - 2 * 4 + 4 * 44),  # the first norm's input needs none
        (["model.embed_tokens", "model.layers.0"], LAYER - 2 * 4 + 4 * 44),
        (["model.embed_tokens", "model.layers"], 2 * 4 + 4 * 40),  # the last norm and the head
        (["model"], 2 * 40),  # the head alone
        (["model.layers.0"], PASSING + LAYER + 4 * 44),  # a gradient still flows to the embeddings
        (["model.layers.1"], LAYER + PASSING + 4 * 44),
        (["lm_head"], 2 * LAYER + 4 * 4 + 2 * 40),
        (["model.layers.*.mlp.*"], 2 * LAYER - 2 * 2 * 72 + 4 * 44),
        (["model.embed_tokens", "model.layers.0.input_layernorm"], 2 * LAYER - 4 * 4 - 2 * 32 + 4 * 44),
    ],
)
def test_a_frozen_weight_costs_no_gradient_of_its_own_and_none_to_its_input_if_nothing_before_it_learns(
    patterns, backward
):
    model = new_causal_lm(SHAPE)
    freeze_("policy", model, patterns)
    assert model.flops_per_token == (2 * 300 + 2 * ATTENTION, backward)


def test_a_tied_head_passes_a_gradient_on_if_the_embedding_is_frozen():
    tied = new_causal_lm(GPTConfig(**{**vars(SHAPE), "tie_word_embeddings": True}))
    assert tied.flops_per_token == flops_per_token(SHAPE, 5)
    freeze_("policy", tied, ["model.embed_tokens"])
    assert tied.flops_per_token.backward == 2 * LAYER - 2 * 4 + 4 * 4 + 2 * 40


def test_adapters_cost_their_products_and_the_frozen_weights_only_what_passes_through_them():
    """q's adapters are 4 and 4. In the first layer the input of q, k and v needs no gradient, but that of B does."""
    model = new_causal_lm(SHAPE)
    model.adapt(LoRA(rank=1, alpha=1.0, dropout=0.0, targets=["q_proj"]))
    first = 2 * 4 + 4 * 4 + 2 * ATTENTION + 2 * (16 + 4 + 72)
    second = PASSING + 4 * 8
    assert model.flops_per_token == (2 * (300 + 2 * 8) + 2 * ATTENTION, first + second + 2 * 44)
    freeze_("policy", model, ["model.layers.0.*"])  # the first layer's adapters too
    assert model.flops_per_token.backward == second - 2 * 4 - 2 * 32 - 2 * 4 + 2 * 44


def test_a_model_of_scores_has_one_output_and_a_frozen_model_no_backward_pass():
    model = scalar_from_causal(new_causal_lm(SHAPE))
    assert model.flops_per_token == flops_per_token(SHAPE, 5, head="score")
    assert model.flops_per_token.forward == 2 * (300 - 40 + 5) + 2 * ATTENTION
    model.requires_grad_(False)
    assert model.flops_per_token.backward == 0


@pytest.mark.slow
@pytest.mark.parametrize("patterns", [[], ["model.embed_tokens", "model.layers.0"], ["model.layers.1", "lm_head"]])
@pytest.mark.parametrize("targets", [None, ["o_proj", "down_proj"]])
def test_matrix_products_are_those_that_torch_counts(patterns, targets):
    """Without attention; the weights of norms, which no matrix product reads, cost at most 6 a token."""
    shape = GPTConfig(**{**vars(SHAPE), "hidden_size": 32, "head_dim": 16, "intermediate_size": 48})
    model = new_causal_lm(shape)
    if targets is not None:
        model.adapt(LoRA(rank=2, alpha=1.0, dropout=0.0, targets=targets))
    freeze_("policy", model, patterns)
    trained, ranks = model.trained_names(), dict.fromkeys(targets or [], 2)
    expected = flops_per_token(shape, 0, trained=trained.__contains__, ranks=ranks).training
    ids = torch.randint(0, 10, (3, 5))
    with FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    products = sum(count for kind, count in counts.items() if str(kind) in ("aten.mm", "aten.addmm"))
    assert 0 <= expected - products / 15 <= 6 * 5 * 32


@pytest.mark.parametrize(
    "changes", [{"tie_word_embeddings": True}, {"norm": "layer", "positions": "learned", "mlp": "gelu"}]
)
def test_every_parameter_but_an_embedding_that_is_looked_up_costs_six(changes):
    shape = GPTConfig(**{**vars(SHAPE), "attention_bias": True, "qk_norm": True, **changes})
    looked_up = 40 * (not shape.tie_word_embeddings) + 20 * (shape.positions == "learned")
    assert flops_per_token(shape, 0).training == 6 * (shape.num_parameters() - looked_up)
    assert new_causal_lm(shape).flops_per_token == flops_per_token(shape, 5)
