import pytest
import torch
from tiny_run import Stream, Tiny, trainer

from components.callbacks.checkpoints import Checkpoints
from components.callbacks.guards import NanGuard, TrainingDiverged


def fit(folder, module, every=2, **settings):
    callbacks = [NanGuard(), Checkpoints(folder, every)]
    run = trainer(callbacks, enable_checkpointing=True, max_steps=9, **settings)
    run.fit(module, Stream())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_with_step_batch_checkpoint_and_a_hint(tmp_path, value):
    with pytest.raises(TrainingDiverged) as error:
        fit(tmp_path, Tiny(poison={5: value}))
    message = str(error.value)
    assert f"the loss became {value} in step 6 (batch 5, rank 0)" in message
    assert f"The last checkpoint, {tmp_path / 'step=00000004.ckpt'}, is from before" in message
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


def test_an_infinite_buffer_is_nobodys_mistake(tmp_path):
    fit(tmp_path, WithMask())
    assert (tmp_path / "step=00000009.ckpt").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_no_checkpoint_sees_the_nan_either(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"in step 6 \(batch 5"):
        fit(tmp_path, Tiny(poison={5: float("nan")}), every=1, accelerator="cuda")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=00000004.ckpt", "step=00000005.ckpt"]
