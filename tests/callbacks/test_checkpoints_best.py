"""Which weights are exported: of the best validation or of the last step, however often the run was killed."""

import pytest
import torch

from components.callbacks.checkpoints import Checkpoints
from components.callbacks.early_stopping import EarlyStopping
from components.training.checkpoint_io import BEST, CheckpointError, latest
from tests.kit.tiny_run import Stream, Tiny, trainer

LOSSES = {2: 0.9, 4: 0.5, 6: 0.7, 8: 0.6, 10: 0.8}  # by step; the best is that of step 4


class Scripted(Tiny):
    """Its validation loss is given by step; remembers its weights after every step."""

    def __init__(self, losses: dict[int, float] | None = None, dies: tuple[str, int] = ("", 0)) -> None:
        super().__init__()
        self.losses, self.dies = losses or LOSSES, dies
        self.weights: dict[int, torch.Tensor] = {}
        self.validated: list[int] = []

    def on_train_batch_start(self, *_):
        self.weights[self.global_step] = self.weight.detach().clone()

    def validation_step(self, batch, batch_idx):
        self.weights[self.global_step] = self.weight.detach().clone()
        if not self.trainer.sanity_checking:
            self.validated.append(self.global_step)
        self.die("validation")
        self.log("val/loss", torch.tensor(self.losses.get(self.global_step, 1.0)))

    def on_train_batch_end(self, *_):
        self.die("step")

    def die(self, moment: str) -> None:
        if self.dies == (moment, self.global_step):
            raise KeyboardInterrupt


def run(folder, *, resume=None, losses=None, dies=("", 0), stop=None, every=3, export="best", mode="min", **settings):
    module = Scripted(losses, dies)
    checkpoints = Checkpoints(folder, every_n_steps=every, keep=2, export=export, mode=mode)
    callbacks = [*([stop] if stop else []), checkpoints]
    usual = {"max_steps": 10, "val_check_interval": 2, "check_val_every_n_epoch": None, "enable_checkpointing": True}
    fitter = trainer(callbacks, **(usual | settings))
    with pytest.raises(SystemExit) if dies[0] else _nothing():
        fitter.fit(module, Stream(), settings.get("val_dataloaders", Stream(1)), ckpt_path=resume)
    return module, checkpoints, fitter


class _nothing:
    __enter__ = __exit__ = lambda *_: None


def test_the_weights_of_the_best_validation_are_restored_and_named(tmp_path):
    module, checkpoints, fitter = run(tmp_path)
    assert torch.equal(module.weight, module.weights[4]) and not torch.equal(module.weights[4], module.weights[9])
    assert checkpoints.exported == {
        "step": 4,
        "of": 10,
        "why": "the lowest val/loss, 0.5; after step 10 it was 0.8",
    }
    assert float(fitter.callback_metrics["val/loss"]) == 0.5


def test_in_mode_max_the_highest_is_the_best(tmp_path):
    module, checkpoints, _ = run(tmp_path, mode="max")
    assert checkpoints.exported["step"] == 2 and torch.equal(module.weight, module.weights[2])


def test_the_last_step_is_exported_if_export_is_last(tmp_path):
    module, checkpoints, fitter = run(tmp_path, export="last")
    assert checkpoints.exported == {"step": 10, "of": 10, "why": "export=last"}
    assert float(fitter.callback_metrics["val/loss"]) == pytest.approx(0.8)
    assert not (tmp_path / BEST).exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), None])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_without_a_finite_metric_the_last_step_is_exported_and_the_reason_is_given(tmp_path, value, mode):
    settings = {"limit_val_batches": 0} if value is None else {"losses": dict.fromkeys(LOSSES, value)}
    module, checkpoints, _ = run(tmp_path, mode=mode, **settings)
    assert checkpoints.exported["step"] == 10
    assert checkpoints.exported["why"] == "the last step, since no validation measured a finite val/loss"


def test_an_infinite_value_is_never_the_best(tmp_path):
    losses = {2: float("-inf"), 4: 0.5, 6: float("-inf"), 8: 0.6, 10: 0.7}
    stop = EarlyStopping(patience=2)
    _, checkpoints, fitter = run(tmp_path, stop=stop, losses=losses)
    assert checkpoints.exported["step"] == 4 and fitter.global_step == 8
    assert stop.reason == "val/loss has not improved for 2 validations; the best was 0.5 after step 4"


def test_one_best_file_of_trained_weights_is_kept_next_to_the_last_two_checkpoints(tmp_path):
    run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [BEST, "step=00000009.ckpt", "step=00000010.ckpt"]
    assert (tmp_path / BEST).stat().st_size < (tmp_path / "step=00000010.ckpt").stat().st_size


@pytest.mark.parametrize(
    ("every", "moment", "step"),
    [
        (1, "validation", 4),
        (1, "step", 5),
        (3, "step", 4),
        (3, "validation", 4),
        (3, "step", 5),
        (3, "validation", 6),
        (3, "step", 10),
        (3, "validation", 10),
        (100, "validation", 8),
    ],
)
def test_a_killed_and_resumed_run_exports_the_same_weights_and_metrics(tmp_path, every, moment, step):
    whole, checkpoints, fitter = run(tmp_path / "whole", every=every)
    run(tmp_path / "broken", every=every, dies=(moment, step))
    again, resumed, refitted = run(tmp_path / "broken", every=every, resume=latest(tmp_path / "broken"))
    assert torch.equal(again.weight, whole.weight)
    assert resumed.exported == checkpoints.exported
    assert refitted.callback_metrics["val/loss"] == fitter.callback_metrics["val/loss"]


@pytest.mark.parametrize("export", ["best", "last"])
def test_a_run_that_is_resumed_from_its_last_step_exports_the_same(tmp_path, export):
    whole, checkpoints, fitter = run(tmp_path, export=export)
    again, resumed, refitted = run(tmp_path, export=export, resume=latest(tmp_path))
    assert again.validated == [] and torch.equal(again.weight, whole.weight)
    assert resumed.exported == checkpoints.exported
    assert refitted.callback_metrics["val/loss"] == fitter.callback_metrics["val/loss"]


def test_a_validation_between_micro_batches_counts_for_the_step_before_it(tmp_path):
    settings = {"accumulate_grad_batches": 3, "val_check_interval": 5, "losses": {1: 0.4, 3: 0.9, 5: 0.8}}
    module, checkpoints, _ = run(tmp_path / "whole", every=1, max_steps=5, **settings)
    assert module.validated == [1, 3, 5] and checkpoints.exported["step"] == 1
    run(tmp_path / "broken", every=1, max_steps=5, dies=("step", 3), **settings)
    again, resumed, _ = run(tmp_path / "broken", every=1, max_steps=5, resume=latest(tmp_path / "broken"), **settings)
    assert torch.equal(again.weight, module.weight) and resumed.exported == checkpoints.exported


def test_a_best_file_from_a_later_step_than_the_one_resumed_from_is_not_exported(tmp_path):
    run(tmp_path, max_steps=6)
    with pytest.warns(UserWarning, match="is ahead of step 3"):
        module, checkpoints, _ = run(
            tmp_path, max_steps=8, resume=tmp_path / "step=00000003.ckpt", losses={4: 0.9, 6: 0.8, 8: 0.7}
        )
    assert checkpoints.exported["step"] == 8


def test_a_damaged_best_file_is_refused_by_name(tmp_path):
    run(tmp_path, max_steps=6)
    (tmp_path / BEST).write_bytes((tmp_path / BEST).read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="best.ckpt is damaged"):
        run(tmp_path, resume=latest(tmp_path))


def test_a_metric_that_no_validation_measures_is_refused_before_training(tmp_path):
    checkpoints = Checkpoints(tmp_path, export="best", metric="val/los")
    fitter = trainer([checkpoints], max_steps=4, num_sanity_val_steps=1, enable_checkpointing=True)
    with pytest.raises(ValueError, match="selection.metric=val/los is not measured .* val/loss"):
        fitter.fit(Scripted(), Stream(), Stream(1))


def test_a_run_stops_early_and_gives_the_reason(tmp_path):
    stop = EarlyStopping(patience=2)
    module, checkpoints, fitter = run(tmp_path, stop=stop)
    assert fitter.global_step == 8 and checkpoints.exported["step"] == 4
    assert stop.reason == "val/loss has not improved for 2 validations; the best was 0.5 after step 4"
    assert latest(tmp_path).name == "step=00000008.ckpt"


def test_a_gain_of_less_than_min_delta_does_not_count(tmp_path):
    stop = EarlyStopping(patience=1, min_delta=0.5)
    assert run(tmp_path, stop=stop)[2].global_step == 4


@pytest.mark.parametrize("moment", [("step", 7), ("validation", 8), ("step", 5)])
def test_a_run_that_stops_early_does_so_at_the_same_step_when_resumed(tmp_path, moment):
    run(tmp_path, dies=moment, stop=EarlyStopping(patience=2))
    stop = EarlyStopping(patience=2)
    module, checkpoints, fitter = run(tmp_path, stop=stop, resume=latest(tmp_path))
    assert fitter.global_step == 8 and checkpoints.exported["step"] == 4 and stop.reason


def test_a_run_that_stopped_early_does_not_train_further_when_resumed(tmp_path):
    whole = run(tmp_path, stop=EarlyStopping(patience=2))[0]
    stop = EarlyStopping(patience=2)
    again, checkpoints, fitter = run(tmp_path, stop=stop, resume=latest(tmp_path))
    assert fitter.global_step == 8 and again.seen == [] and stop.reason
    assert torch.equal(again.weight, whole.weight) and checkpoints.exported["step"] == 4


@pytest.mark.parametrize("patience", [4, None])
def test_a_run_that_stopped_early_trains_further_with_more_patience(tmp_path, patience):
    whole = run(tmp_path / "whole", stop=EarlyStopping(patience=patience), max_steps=9)[0]
    run(tmp_path / "stopped", stop=EarlyStopping(patience=2), max_steps=9)
    stop = EarlyStopping(patience=patience)
    again, _, fitter = run(tmp_path / "stopped", stop=stop, max_steps=9, resume=latest(tmp_path / "stopped"))
    assert fitter.global_step == 9 and not stop.reason
    assert torch.equal(again.weights[8], whole.weights[8]) and torch.equal(again.weight, whole.weight)


@pytest.mark.parametrize("change", [{"mode": "max"}, {"metric": "val/accuracy"}])
def test_early_stopping_ignores_values_of_another_metric_or_mode(change):
    before = EarlyStopping(patience=2)
    for before._step, value in enumerate([0.5, 0.7, 0.6]):
        before._update(value)
    assert before.reason
    after = EarlyStopping(patience=2, **change)
    after.load_state_dict(before.state_dict())
    after._update(0.1)
    assert not after.reason and after.state_dict()["waited"] == 0


def test_early_stopping_reads_older_files_that_do_not_name_the_metric():
    old = {"best": (2, 0.5), "waited": 1, "step": 4, "reason": ""}
    stop = EarlyStopping(patience=2)
    stop.load_state_dict(old)
    stop._update(0.6)
    assert stop.reason
