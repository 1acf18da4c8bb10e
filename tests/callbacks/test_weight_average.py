"""The moving average of weights: worked by hand, measured by validations, exported, without an effect on training."""

import lightning as L
import pytest
import torch

from components.callbacks.checkpoints import Checkpoints
from components.callbacks.guards import SpikeGuard
from components.callbacks.weight_average import WeightAverage, holding
from components.training.checkpoint_io import BEST
from tests.kit.tiny_run import Stream, Tiny, trainer

DECAY = 0.5


class Exported(Tiny):
    """A validated module that is exported whole; measured: its weights in every validation, by step."""

    def __init__(self, poison: dict[int, float] | None = None) -> None:
        super().__init__(poison)
        self.measured: dict[int, torch.Tensor] = {}

    def validation_step(self, batch, batch_idx):
        self.measured[self.global_step] = self.weight.detach().clone()
        self.log("val/loss", -float(self.global_step))  # the latest is the best

    def exportable(self):
        return self


class Trace(L.Callback):
    """The weights after every step."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.weights.append(pl_module.weight.detach().clone())

    def on_train_end(self, trainer, pl_module):
        self.weights.append(pl_module.weight.detach().clone())


def fit(folder, *, average=True, steps=4, resume=None, callbacks=(), poison=None, **settings):
    """(module, its average if it has one, trace) of a training that validates after every second step."""
    module, trace = Exported(poison), Trace()
    averages = [WeightAverage(DECAY)] if average else []
    every = {"val_check_interval": 2, "check_val_every_n_epoch": None, "limit_val_batches": 1}
    run = trainer([trace, *averages, *callbacks], folder=folder, max_steps=steps, **every | settings)
    run.fit(module, Stream(), Stream(), ckpt_path=resume, weights_only=True)
    return module, (averages or [None])[0], trace


def by_hand(weights: list[torch.Tensor]) -> torch.Tensor:
    """Of the weights after each step."""
    shares = [DECAY ** (len(weights) - 1 - i) for i in range(len(weights))]
    return sum(share * weight for share, weight in zip(shares, weights)) / sum(shares)


def test_the_average_weighs_each_step_half_as_much_as_the_next_and_the_start_not_at_all(tmp_path):
    module, average, trace = fit(tmp_path)
    start, *steps = trace.weights
    assert len(steps) == average.steps == 4
    # 8/15 of the last, 4/15, 2/15 and 1/15 of the first
    expected = (8 * steps[3] + 4 * steps[2] + 2 * steps[1] + steps[0]) / 15
    torch.testing.assert_close(module.weight.detach(), expected)
    torch.testing.assert_close(by_hand(steps), expected)
    assert not torch.equal(module.weight.detach(), steps[3])


def test_validations_measure_the_average_and_training_takes_the_same_steps_as_without_it(tmp_path):
    module, _, trace = fit(tmp_path)
    plain, _, alone = fit(tmp_path, average=False)
    assert all(torch.equal(one, other) for one, other in zip(trace.weights, alone.weights, strict=True))
    assert torch.equal(plain.measured[2], alone.weights[2])
    assert list(module.measured) == [2, 4]
    for step, measured in module.measured.items():
        torch.testing.assert_close(measured, by_hand(trace.weights[1 : step + 1]))


def test_the_first_validation_of_an_untrained_module_measures_its_weights(tmp_path):
    module, _, trace = fit(tmp_path, num_sanity_val_steps=1)
    assert torch.equal(module.measured[0], trace.weights[0])


@pytest.mark.parametrize("export", ["last", "best"])
def test_a_checkpoint_contains_the_weights_and_their_average_and_the_best_file_the_average(export, tmp_path):
    checkpoints = Checkpoints(tmp_path, every_n_steps=1, keep=9, export=export)
    module, _, trace = fit(tmp_path, callbacks=[checkpoints], enable_checkpointing=True, steps=5)
    for step in range(1, 6):
        saved = torch.load(tmp_path / f"step={step:08d}.ckpt", weights_only=True)
        assert torch.equal(saved["state_dict"]["weight"], trace.weights[step])
        average = saved["callbacks"]["WeightAverage"]
        assert average["steps"] == step
        torch.testing.assert_close(average["averages"]["weight"], by_hand(trace.weights[1 : step + 1]))
    if export == "best":
        best = torch.load(tmp_path / BEST, weights_only=True)
        assert best["validation"][0] == checkpoints.exported["step"] == 5  # a last validation follows the last step
        assert torch.equal(best["state_dict"]["weight"], module.measured[5])
    assert torch.equal(module.weight.detach(), module.measured[5])


def test_the_best_average_is_exported_even_if_a_later_one_is_worse(tmp_path):
    checkpoints = Checkpoints(tmp_path, every_n_steps=9, export="best", mode="max")
    module, _, trace = fit(tmp_path, callbacks=[checkpoints], enable_checkpointing=True)
    assert checkpoints.exported["step"] == 2
    torch.testing.assert_close(module.weight.detach(), by_hand(trace.weights[1:3]))


def test_a_resumed_run_ends_with_the_same_average_to_the_bit(tmp_path):
    saving = lambda name: {"callbacks": [Checkpoints(tmp_path / name, 1, keep=9)], "enable_checkpointing": True}
    whole, _, _ = fit(tmp_path, **saving("whole"), steps=6)
    for step in range(1, 7):  # after the last, only what follows training is repeated
        resume = tmp_path / f"whole/step={step:08d}.ckpt"
        resumed, average, _ = fit(tmp_path, **saving(f"from-{step}"), steps=6, resume=resume)
        assert torch.equal(resumed.weight, whole.weight) and average.steps == 6
        assert all(torch.equal(whole.measured[s], measured) for s, measured in resumed.measured.items())


def test_a_checkpoint_from_the_middle_of_a_validation_contains_the_weights_themselves(tmp_path):
    class Saves(L.Callback):
        def on_validation_batch_start(self, trainer, pl_module, *_):
            checkpoints.save_unvalidated(trainer)

    checkpoints = Checkpoints(tmp_path, every_n_steps=9, keep=9)
    module, _, trace = fit(tmp_path, callbacks=[Saves(), checkpoints], enable_checkpointing=True, steps=3)
    saved = torch.load(tmp_path / "step=00000002.ckpt", weights_only=True)
    assert torch.equal(saved["state_dict"]["weight"], trace.weights[2])
    torch.testing.assert_close(module.measured[2], by_hand(trace.weights[1:3]))  # also after that save


def test_a_step_that_a_guard_skips_does_not_count(tmp_path):
    guard = SpikeGuard("skip", window=4, deviations=6.0, max_skips=3)
    _, average, trace = fit(tmp_path, callbacks=[guard], poison={4: float("inf")}, steps=6)
    assert torch.equal(trace.weights[4], trace.weights[5])
    assert average.steps == 5


def test_resuming_from_a_checkpoint_without_an_average_is_refused(tmp_path):
    saving = lambda: {"callbacks": [Checkpoints(tmp_path, every_n_steps=2)], "enable_checkpointing": True}
    fit(tmp_path, average=False, **saving())
    with pytest.raises(ValueError, match="ema_decay: the checkpoint to resume from has no average"):
        fit(tmp_path, resume=tmp_path / "step=00000002.ckpt", steps=6, **saving())


def test_without_the_callback_nothing_is_swapped(tmp_path):
    run = trainer([], folder=tmp_path, max_steps=1)
    with holding(run, average=True), holding(run, average=False):
        pass
