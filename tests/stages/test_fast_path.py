"""The loss curve of the fast path equals the slow path's."""

import pytest
import torch

from components.models.attention import attend, segments
from components.stages.sft import SFT
from components.training.contract import RunContext
from tests.kit.compiler import needs_compiler
from tests.kit.tiny_stages import CONSTANT, END, PAD, ListLogger, adam, causal, fit, lm_batch

STEPS = 20


def curve(compiled: bool = False, steps: int = STEPS, **trainer) -> torch.Tensor:
    """The losses of a short training on packed dialogues of many lengths."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(steps):
        lengths = torch.randint(1, 9, (12,), generator=generator).tolist()
        rows = [torch.randint(3, 16, (n + 1,), generator=generator).tolist() for n in lengths]
        batches.append(lm_batch([([1, row[0]], [*row[1:], END]) for row in rows], filler=PAD, row_length=20))
    logger = ListLogger()
    torch.manual_seed(0)
    stage = SFT(model=causal, optimizer=adam(1e-2), schedule=CONSTANT, run=RunContext(compile=compiled))
    fit(stage, batches, max_steps=steps, logger=logger, **trainer)
    return torch.tensor(logger["train/loss"])


def test_attention_by_segments_trains_as_a_dense_mask_does(monkeypatch):
    monkeypatch.setattr(segments, "PER_TOKEN", 1e9)
    dense = curve()
    monkeypatch.setattr(segments, "PER_TOKEN", -1e9)
    by_segments = curve()
    assert len(dense) == STEPS and dense[-1] < dense[0] - 0.1
    assert torch.allclose(by_segments, dense, atol=1e-4)
    assert not torch.equal(by_segments, dense)  # two ways indeed


def test_attention_in_blocks_trains_as_torchs_own_kernel_does_in_bf16(monkeypatch):
    in_blocks = curve(precision="bf16-mixed")
    monkeypatch.setattr(
        attend,
        "attend_blockwise",
        lambda q, k, v, mask: torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None
        ),
    )
    assert in_blocks.numpy() == pytest.approx(curve(precision="bf16-mixed").numpy(), rel=0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile warns of itself
@needs_compiler
def test_compiled_layers_train_as_plain_ones_do():
    plain, compiled = curve(steps=8), curve(steps=8, compiled=True)  # a graph for each new shape takes seconds
    assert torch.allclose(compiled, plain, atol=1e-4)
    assert not torch.equal(compiled, plain)  # two ways indeed
