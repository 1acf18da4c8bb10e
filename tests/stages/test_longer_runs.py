"""A run with a stable learning rate that is resumed with a later end is the longer run, to the bit."""

from functools import partial

import pytest

from components.callbacks.checkpoints import Checkpoints
from components.stages.sft import SFT
from components.training.schedules import schedule
from tests.kit.tiny_stages import ListLogger, adam, causal, quiet_fit, same_bits, trainer, weights

SHORT = {"limit_val_batches": 0}


def run_of(data, folder, *, resume=None, max_steps: int, **settings):
    """(the weights, the learning rate of each step) of an SFT run whose last `decay_share` of the steps decay."""
    module, logger = data("sft"), ListLogger()
    wsd = partial(schedule, "wsd", warmup_steps=2, final_fraction=0.1, **settings)
    stage = SFT(model=lambda: causal(0, module.tokenizer.vocab_size), optimizer=adam(3e-3), schedule=wsd)
    checkpoints = Checkpoints(folder, every_n_steps=3, keep=9)
    run = trainer(max_steps=max_steps, logger=logger, callbacks=[checkpoints], enable_checkpointing=True, **SHORT)
    quiet_fit(run, stage, datamodule=module, ckpt_path=resume, weights_only=True)
    return weights(stage), logger["train/lr"]


@pytest.mark.parametrize(("decay_share", "after"), [(0.25, 3), (0.0, 6)], ids=["before its decay", "without a decay"])
def test_a_finished_run_extended_from_its_stable_phase_is_the_longer_run(decay_share, after, data, tmp_path):
    whole, rates = run_of(data, tmp_path / "whole", max_steps=9, decay_share=0.25, decay_shape="sqrt")
    assert rates == pytest.approx([1.5e-3, *[3e-3] * 7, 3e-3 * (0.1 + 0.9 * (1 - 0.5**0.5))])
    run_of(data, tmp_path / "short", max_steps=6, decay_share=decay_share)
    extended, later = run_of(
        data,
        tmp_path / "extended",
        max_steps=9,
        decay_share=0.25,
        decay_shape="sqrt",
        resume=tmp_path / f"short/step={after:08d}.ckpt",
    )
    assert later == rates[after:] and same_bits(whole, extended)
