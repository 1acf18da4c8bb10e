"""What follows from a model's depth."""

import pytest

from components.planning.dial import CONTEXT, ROWS, dial, optimal
from components.tasks.workload import Machine, work_of
from tests.kit.composed_configs import compose_config

DEPTHS = range(2, 25)
VOCABULARY = 1024


@pytest.mark.parametrize(
    ("flops_per_token", "rate", "batch"), [(4.2e10, 4.2e-4, 2304 * 4096), (4.3e11, 3.2e-4, 4608 * 4096)]
)
def test_rate_and_batch_are_those_of_deepseeks_models(flops_per_token, rate, batch):
    """7B and 67B on 2T tokens: Bi et al. 2024, table 2. FLOPs of a token: 6 for each weight in layers, and 12·L·D·T."""
    assert optimal(flops_per_token * 2e12) == pytest.approx((rate, batch), rel=0.05)


def test_the_shape_of_two_layers_by_hand():
    """Width 128; an MLP of 8/3 · 128 = 341.3, rounded up to 384; two layers of 4 · 128² + 3 · 128 · 384 weights and two
    norms, a last norm, and the embedding, which is also the head."""
    made = dial(2, VOCABULARY)
    assert (made.hidden_size, made.intermediate_size) == (128, 384)
    assert made.parameters == 2 * (4 * 128**2 + 3 * 128 * 384 + 2 * 128) + 128 + VOCABULARY * 128
    assert 20 * made.parameters <= made.tokens < 20 * made.parameters + made.tokens / made.steps


def test_all_depths_can_be_built_and_each_is_larger_and_reads_more_at_a_lower_rate():
    dials = [dial(depth, VOCABULARY) for depth in DEPTHS]
    for depth, made in zip(DEPTHS, dials, strict=True):
        assert made.hidden_size == 64 * depth and made.intermediate_size % 64 == 0
        assert 1 <= made.batch_size <= ROWS
        assert made.tokens == made.steps * made.batch_size * made.accumulate_grad_batches * CONTEXT
    for small, large in zip(dials, dials[1:], strict=False):
        assert small.parameters < large.parameters and small.tokens < large.tokens and small.lr >= large.lr


@pytest.mark.parametrize("wrong", [0, 2.5, "six"])
def test_a_depth_is_a_whole_number(wrong):
    with pytest.raises(ValueError, match="expected a whole number of layers"):
        dial(wrong, VOCABULARY)


@pytest.mark.parametrize("data", [[], ["data=text", "data.path=mine"]])
def test_a_config_has_all_of_it_on_any_data(data):
    cfg = compose_config(["stage=pretrain", "model=depth", "depth=20", *data])
    made = dial(20, cfg.tokenizer.vocab_size)
    assert (cfg.run, cfg.model.hidden_size, cfg.model.num_attention_heads) == ("depth_20", 1280, 20)
    assert (cfg.stage.optimizer.lr, cfg.trainer.max_steps) == (made.lr, made.steps)
    assert cfg.trainer.accumulate_grad_batches == made.accumulate_grad_batches > 1
    assert cfg.data.batch_size == made.batch_size
    work = work_of(cfg, Machine(1, True, "cpu"))
    assert (work.tokens, work.model.parameters) == (made.tokens, made.parameters)


def test_explicit_settings_win():
    own = ["model.hidden_size=160", "stage.optimizer.lr=0.1", "trainer.max_steps=7", "data.batch_size=3"]
    cfg = compose_config(["stage=pretrain", "model=depth", "depth=5", *own])
    assert (cfg.model.hidden_size, cfg.stage.optimizer.lr, cfg.trainer.max_steps) == (160, 0.1, 7)
    assert cfg.data.batch_size == 3 and cfg.model.intermediate_size == dial(5, 1024).intermediate_size
