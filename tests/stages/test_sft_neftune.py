"""Noise on the embeddings in SFT: its size by hand, of packed dialogues as of each alone, and only in training."""

from typing import Any

import pytest
import torch

from components.functional.seeding import seeded
from components.generation.generate import Sampling, stream
from components.models.attention.attend import mask_of
from components.models.attention.layout import pack
from components.models.attention.segments import Segments
from components.models.gpt import noisy
from components.stages.pretrain import Pretrain
from components.stages.sft import SFT
from tests.kit.tiny_stages import CONSTANT, Batches, adam, attached, causal, fit, lm_batch, quiet_fit, trainer, weights

ALPHA = 5.0
LONG = (list(range(3, 12)) * 4, [12, 13, 2])  # 39 tokens


def sft(alpha: float | None = ALPHA, **model: Any) -> SFT:
    return SFT(model=lambda: causal(**model), optimizer=adam(1e-3), schedule=CONSTANT, neftune_alpha=alpha)


def test_the_noise_of_a_text_is_uniform_within_alpha_over_the_root_of_its_length_times_the_width():
    """Texts of 4 and of 100 tokens, 16 wide, alpha 2: within ±2/√64 = 0.25 and ±2/√1600 = 0.05."""
    torch.manual_seed(0)
    noise = noisy(torch.zeros(2, 500, 16), torch.tensor([[4] * 500, [100] * 500]), alpha=2.0)
    for row, bound in zip(noise, (0.25, 0.05)):
        assert 0.999 * bound < row.abs().max() <= bound
        assert abs(float(row.mean())) < 0.02 * bound
        assert float(row.std()) == pytest.approx(bound / 3**0.5, rel=0.02)  # of a uniform distribution


def test_lengths_are_those_of_each_tokens_own_segment():
    """A prompt of 2 tokens with two answers of 3 and 1, and a text of 4; 2 tokens of filler in the second row."""
    layout = pack([[[5, 6], [7, 8, 9], [7]], [[3, 3, 3, 3]]], row_length=6, filler=0).layout
    assert layout.lengths().tolist() == [[2, 2, 3, 3, 3, 1], [4, 4, 4, 4, 2, 2]]


@pytest.fixture
def bounds(monkeypatch) -> list[torch.Tensor]:
    """The largest noise of each token, in the order of the calls, of noise that is always its largest."""
    seen: list[torch.Tensor] = []

    def largest(x: torch.Tensor, lengths: torch.Tensor, *, alpha: float) -> torch.Tensor:
        seen.append(alpha / (lengths * x.shape[-1]).sqrt())
        return x + seen[-1][..., None]

    monkeypatch.setattr("components.models.gpt.noisy", largest)
    return seen


@pytest.mark.parametrize("row_length", [96, 2000], ids=["a dense mask", "segments"])
def test_a_packed_dialogue_has_the_noise_that_it_has_alone(row_length, bounds):
    shape = {"max_position_embeddings": row_length}
    dialogues = [([1, 3], [4, 5, 2]), LONG] * (1 if row_length == 96 else 40)
    packed = lm_batch(dialogues, row_length=row_length)
    assert isinstance(mask_of(packed.layout, 16), Segments) == (row_length == 2000)
    stage = attached(sft(**shape)).train()
    together = stage.compute_loss(packed)
    (of_packed,) = bounds
    assert {round(float(b), 6) for b in of_packed[of_packed.isfinite()].unique()} >= {
        round(ALPHA / (length * 32) ** 0.5, 6) for length in (5, 39)
    }
    alone = [stage.compute_loss(lm_batch([dialogue], row_length=row_length)) for dialogue in dialogues[:2]]
    loss = sum(one.loss * one.weight for one in alone) / sum(one.weight for one in alone)
    torch.testing.assert_close(together.loss, loss, rtol=1e-5, atol=1e-5)


def test_there_is_noise_in_training_and_none_in_validation():
    torch.manual_seed(0)
    noisy_stage, plain = attached(sft()).train(), attached(sft(None)).train()
    batch = lm_batch([LONG])
    losses = [float(noisy_stage.compute_loss(batch).loss.detach()) for _ in range(2)]
    without = float(plain.compute_loss(batch).loss.detach())
    assert len({*losses, without}) == 3
    assert float(noisy_stage.eval().compute_loss(batch).loss.detach()) == without


def test_what_is_sampled_in_training_mode_has_no_noise():
    stage = attached(sft(50.0)).train()
    texts = [
        list(stream(stage.model, [1, 3, 4], Sampling(8, temperature=0.0), stop_ids=(2,), generator=seeded("cpu", 0)))
        for _ in range(3)
    ]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("alpha", [None, 0.5, 8.0])
def test_the_same_seed_has_the_same_noise_and_every_step_another(alpha):
    def losses() -> list[float]:
        stage = sft(alpha)
        kept, compute = [], stage.compute_loss
        stage.compute_loss = lambda batch: kept.append(compute(batch)) or kept[-1]
        torch.manual_seed(torch.seed() % 2**31)
        fit(stage, [lm_batch([LONG])] * 3, max_steps=3)
        return [float(output.loss.detach()) for output in kept]

    first = losses()
    assert first == losses() and len(set(first)) == 3


def test_processes_have_noise_of_their_own(monkeypatch):
    """The seed of a step contains the rank."""
    noise = []
    for rank in (0, 1):
        stage = attached(sft())
        monkeypatch.setattr(SFT, "global_rank", rank)
        stage.on_train_batch_start(None, 0)
        noise.append(stage.train().compute_loss(lm_batch([LONG])).loss.detach())
    assert noise[0] != noise[1]


def test_without_it_nothing_changes_to_the_bit():
    ends = []
    for kind in (SFT, Pretrain):
        stage = kind(model=lambda: causal(dropout=0.1), optimizer=adam(1e-3), schedule=CONSTANT)
        quiet_fit(trainer(max_steps=2, limit_val_batches=0), stage, Batches([lm_batch([LONG])] * 2), Batches([]))
        ends.append(weights(stage.model))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
