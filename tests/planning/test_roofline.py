"""A step's parts add up to the model's FLOPs, and each kernel takes as long as its arithmetic or its memory."""

import pytest
import torch

from components.functional.output_layer import linear_cross_entropy
from components.models.config import GPTConfig
from components.models.flops import flops_per_token
from components.planning import roofline
from components.planning.roofline import (
    BYTES_PER_LOGIT,
    DEVICES,
    Device,
    Kernel,
    Part,
    parts_of_step,
    predicted_mfu,
    seconds_of,
)
from tests.kit.compiler import needs_compiler
from tests.kit.tiny_models import countable_config

GPT2 = dict(norm="layer", positions="learned", mlp="gelu", attention_bias=True, attention_output_bias=True)
SMALL = GPTConfig(
    vocab_size=50304,
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=12,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
)


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True}, {"qk_norm": True}, {"head_dim": 4}, GPT2]
)
def test_the_parts_have_all_flops_of_the_model(changes):
    config = countable_config(**changes)
    parts = parts_of_step(config, rows=3, context=8)
    assert sum(part.flops for part in parts) == 3 * 8 * flops_per_token(config, 8).training


def test_the_bytes_of_parts_are_those_worked_out_by_hand():
    parts = {part.name: part for part in parts_of_step(countable_config(), rows=1, context=8)}
    # 8 tokens, width 4. q, k and v: 4 → 8 in a matrix of 32; output: 4 → 4, of 16; twice, since there are two layers.
    # Each of three products moves in bf16 its tokens' inputs and outputs and the matrix; casts take 12 bytes a weight.
    projections = 2 * (3 * 2 * (8 * 12 + 32) + 12 * 32 + 3 * 2 * (8 * 8 + 16) + 12 * 16)
    assert parts["attention projections"].bytes == projections
    # queries 8 · 4, keys and values 8 · 2 each: q, k, v, output; backward those, three gradients in and out; rotation
    assert parts["attention"].bytes == 2 * (2 * (64 + 32) + 2 * (128 + 64) + 8 * (32 + 16))
    assert parts["norms and residuals"].bytes == 5 * 28 * 8 * 4
    # lookup of 8 · 4 float32, their gradients added to 10 · 4 zeros
    assert parts["embedding"].bytes == 8 * 32 + 12 * 32 + 4 * 40
    weights = countable_config().num_parameters()
    assert parts["clipping and AdamW"].bytes == (12 + 28) * weights  # moments, weights and gradients of 4 bytes each
    # three products of 4 → 10, casts, 10 bytes for each of 8 · 10 logits, and one chunk's gradient of 40
    assert parts["head and loss"].bytes == 3 * 2 * (8 * 14 + 40) + 12 * 40 + 10 * 80 + 10 * 40


def test_a_kernel_takes_as_long_as_its_arithmetic_or_its_memory():
    device = Device("slow", flops=10.0, bandwidth=2.0)
    assert Kernel(flops=100, bytes=2).seconds(device) == 10.0
    assert Kernel(flops=100, bytes=40).seconds(device) == 20.0
    part = Part("both", 50, (Kernel(100, 2), Kernel(100, 40)))
    assert part.seconds(device) == 30.0 and part.bytes == 42
    assert seconds_of([part, part], device) == 60.0
    assert predicted_mfu([part], device) == 50 / (30 * 10)


def test_what_causal_attention_executes_is_less_than_what_is_counted():
    part = next(p for p in parts_of_step(countable_config(), rows=1, context=8) if p.name == "attention")
    assert sum(kernel.flops for kernel in part.kernels) * 12 == part.flops * 7  # 2 + 5 of 4 + 8


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_fewer_passes_over_the_logits_and_faster_memory_raise_the_predicted_utilization(device, monkeypatch):
    as_it_is = predicted_mfu(parts_of_step(SMALL, rows=32, context=1024), device)
    faster = predicted_mfu(parts_of_step(SMALL, rows=32, context=1024), device._replace(bandwidth=2 * device.bandwidth))
    monkeypatch.setattr(roofline, "BYTES_PER_LOGIT", 44)
    uncompiled = predicted_mfu(parts_of_step(SMALL, rows=32, context=1024), device)
    assert 0 < uncompiled < as_it_is < faster < 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile warns of itself
@needs_compiler
def test_the_compiled_loss_is_that_of_separate_operations_and_moves_no_more_bytes_than_assumed():
    from torch._inductor import metrics
    from torch._inductor.utils import fresh_cache

    tokens, vocabulary, width = 64, 200, 16

    def loss_and_gradients(**settings):
        torch.manual_seed(0)
        hidden = torch.randn(tokens, width, requires_grad=True)
        weight = torch.randn(vocabulary, width, requires_grad=True)
        targets = torch.randint(vocabulary, (tokens,))
        with torch.autocast("cpu", torch.bfloat16):
            total, correct = linear_cross_entropy(hidden, weight, targets, **settings)
        total.backward()
        return [total.detach(), correct, hidden.grad, weight.grad]

    metrics.reset()
    torch._logging.set_logs(inductor_metrics=True)  # bytes are counted only if they are logged
    try:
        with fresh_cache():
            found = loss_and_gradients(compiled=True)
    finally:
        torch._logging.set_logs()
    assert 4 * tokens * vocabulary <= metrics.num_bytes_accessed <= BYTES_PER_LOGIT * tokens * vocabulary
    for ours, theirs in zip(found, loss_and_gradients(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=2**-8 * float(theirs.abs().max()))  # slopes are in bf16
