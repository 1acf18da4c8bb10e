import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from components.callbacks.checkpoints import Checkpoints
from components.callbacks.guards import NanGuard, SpikeGuard, TrainingDiverged
from components.training.checkpoint_io import AtomicCheckpointIO, latest
from tests.kit.tiny_run import Stream, Tiny, trainer


def fit(folder, module, every=2, **settings):
    callbacks = [NanGuard(), Checkpoints(folder, every)]
    run = trainer(callbacks, enable_checkpointing=True, max_steps=9, **settings)
    run.fit(module, Stream())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_step_batch_checkpoint_and_a_hint(tmp_path, value):
    with pytest.raises(TrainingDiverged) as error:
        fit(tmp_path, Tiny(poison={5: value}))
    message = str(error.value)
    assert f"the loss became {value} in step 6 (batch 5, rank 0)" in message
    assert f"The last checkpoint, {tmp_path / 'step=00000004.ckpt'}, predates" in message
    assert "lower learning rate" in message


def test_the_step_is_counted_in_updates_and_the_batch_in_micro_batches(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"in step 3 \(batch 5"):
        fit(tmp_path, Tiny(poison={5: float("nan")}), accumulate_grad_batches=2)


def test_no_weight_and_no_checkpoint_sees_the_nan(tmp_path):
    module = Tiny(poison={5: float("nan")})
    with pytest.raises(TrainingDiverged):
        fit(tmp_path, module, every=1)
    assert module.weight.isfinite().all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=00000004.ckpt", "step=00000005.ckpt"]


def test_without_a_checkpoint_the_message_says_so(tmp_path):
    with pytest.raises(TrainingDiverged, match="No checkpoint had been written yet"):
        fit(tmp_path, Tiny(poison={0: float("nan")}))


class BadGradient(Tiny):
    """The loss stays finite, but its gradient at zero does not: d/dx sqrt(x) = inf."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss + ((self.weight * 0).sum().sqrt() if batch_idx == 3 else 0)


def test_weights_spoiled_by_a_gradient_are_not_saved(tmp_path):
    with pytest.raises(TrainingDiverged, match="the weight weight is not finite after step 4"):
        fit(tmp_path, BadGradient())
    assert [path.name for path in tmp_path.iterdir()] == ["step=00000002.ckpt"]


class WithMask(Tiny):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.full((2,), float("-inf")))


def test_an_infinite_buffer_is_not_an_error(tmp_path):
    fit(tmp_path, WithMask())
    assert (tmp_path / "step=00000009.ckpt").exists()


@pytest.mark.gpu
def test_on_a_gpu_no_checkpoint_sees_the_nan_either(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"in step 6 \(batch 5"):
        fit(tmp_path, Tiny(poison={5: float("nan")}), every=1, accelerator="cuda")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=00000004.ckpt", "step=00000005.ckpt"]


def guarded(folder, poison, action, *, steps=20, resume=None, every=100, **settings):
    module = Tiny(poison=poison)
    guard = SpikeGuard(action, window=8, deviations=6.0, **settings)
    run = trainer([NanGuard(), guard, Checkpoints(folder, every)], enable_checkpointing=True, max_steps=steps)
    run.fit(module, Stream(), ckpt_path=resume)
    return run, module


@pytest.mark.parametrize("factor", [1e4, float("nan"), float("inf")])
def test_a_step_with_a_loss_spike_is_skipped_and_reported(tmp_path, caplog, factor):
    """Skipped: no weight and no momentum changes."""
    run, module = guarded(tmp_path / "a", {12: factor}, "skip", steps=13)
    _, before = guarded(tmp_path / "b", {}, "skip", steps=12)
    assert run.global_step == 13
    assert torch.equal(module.weight, before.weight)
    assert "step 13: the loss jumped to" in caplog.text
    assert "gradients are dropped (1 of at most 10 in a row)" in caplog.text
    after, _ = guarded(tmp_path / "c", {12: factor}, "skip")
    assert after.global_step == 20 and after.lightning_module.weight.isfinite().all()


def test_a_spike_ends_the_run_if_the_action_is_stop(tmp_path):
    told = r"step 13: the loss jumped to .*, expected at most .* lower learning rate"
    with pytest.raises(TrainingDiverged, match=told):
        guarded(tmp_path, {12: 1e4}, "stop")


def test_too_many_spikes_in_a_row_end_the_run(tmp_path):
    with pytest.raises(TrainingDiverged, match="step 15: .*after 2 skipped steps in a row"):
        guarded(tmp_path, {n: 1e4 for n in range(12, 20)}, "skip", max_skips=2)


def test_off_ignores_a_spike(tmp_path):
    run, _ = guarded(tmp_path, {12: 1e4}, "off")
    assert run.global_step == 20


def test_a_resumed_run_restores_its_losses(tmp_path):
    """A guard without its losses would only record for four steps, and miss the spike of step 13."""
    whole, _ = guarded(tmp_path / "a", {12: 1e4}, "skip", steps=16)
    guarded(tmp_path / "b", {12: 1e4}, "skip", steps=11)
    resumed, _ = guarded(tmp_path / "b", {12: 1e4}, "skip", steps=16, resume=latest(tmp_path / "b"))
    assert torch.equal(whole.lightning_module.weight, resumed.lightning_module.weight)


# Beside a gradient scaler, which multiplies a loss before its backward pass


def scaled(guards, module, *, steps=20, scale=2.0**16, every=10**6, batches=None, **settings):
    """A run whose gradients are scaled by `scale`, doubled every `every` steps and halved where they overflow."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=every)
    plugins = [AtomicCheckpointIO(), MixedPrecision("16-mixed", "cpu", scaler)]
    run = trainer(guards, max_steps=steps, plugins=plugins, **settings)
    run.fit(module, batches or Stream())
    return run, scaler


class Steady(Tiny):
    """A loss of about 10."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + 10


@pytest.mark.parametrize("action", ["skip", "stop"])
def test_a_scale_that_doubles_is_not_a_loss_spike(action, caplog):
    run, scaler = scaled([NanGuard(), SpikeGuard(action, window=8)], Steady(), every=7)
    assert run.global_step == 20 and scaler.get_scale() == 2.0**18
    assert "jumped" not in caplog.text


@pytest.mark.parametrize("action", ["off", "skip", "stop"])
def test_a_finite_loss_that_the_scale_alone_makes_infinite_is_left_to_the_scaler(action):
    """3.4e38 is the largest number of the type: the scaler halves until the loss and its gradient fit."""
    module = Steady()
    run, scaler = scaled([NanGuard(), SpikeGuard(action, window=8)], module, steps=30, scale=2.0**127)
    assert run.global_step == 30 and 1 < scaler.get_scale() < 2.0**127
    assert not torch.equal(module.weight, Tiny().weight)


def test_a_spike_is_reported_in_units_of_the_loss_regardless_of_scaling():
    with pytest.raises(TrainingDiverged) as plain:
        trainer([SpikeGuard("stop", window=8)], max_steps=20).fit(Tiny(poison={12: 1e4}), Stream())
    with pytest.raises(TrainingDiverged) as error:
        scaled([SpikeGuard("stop", window=8)], Tiny(poison={12: 1e4}))
    assert str(error.value) == str(plain.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_a_scaled_run_too(tmp_path, value):
    guards = [NanGuard(), Checkpoints(tmp_path, 1)]
    with pytest.raises(TrainingDiverged, match=rf"the loss became {value} in step 6 \(batch 5, rank 0\)"):
        scaled(guards, Tiny(poison={5: value}), enable_checkpointing=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=00000004.ckpt", "step=00000005.ckpt"]


class Overflows(Tiny):
    """The gradient of every batch from the given one to the other is infinite; its loss is finite."""

    def __init__(self, first: int, last: float) -> None:
        super().__init__()
        self.first, self.last = first, last

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss + ((self.weight * 0).sum().sqrt() if self.first <= batch_idx <= self.last else 0)


def test_a_step_that_the_scaler_skips_is_not_a_divergence(tmp_path):
    guards = [NanGuard(), SpikeGuard("stop", window=8), Checkpoints(tmp_path, 1)]
    run, scaler = scaled(guards, Overflows(5, 7), enable_checkpointing=True)
    assert run.global_step == 20 and scaler.get_scale() == 2.0**13


def test_a_scale_that_falls_to_almost_zero_ends_the_run():
    """From step 6 on every step is skipped, and the run would end as if it had trained: 41 halvings of 2^16."""
    told = r"step 47: the gradient scaler's scale fell to .*: the gradient is not finite at any scale"
    with pytest.raises(TrainingDiverged, match=told):
        scaled([NanGuard()], Overflows(5, 1e9), steps=100)
