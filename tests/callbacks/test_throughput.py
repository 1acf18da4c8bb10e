import time

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import Stream, Tiny, trainer

from components.callbacks.throughput import Throughput, compute_dtype, measured_peak
from components.callbacks.tokens import real_tokens
from components.data.batches import LMBatch
from components.models.layout import pack

CPU = torch.device("cpu")


class Timed(Tiny):
    """10 ms in the training step, of which a batch's 5 tokens are worth 10 FLOPs each."""

    def training_step(self, batch, batch_idx):
        time.sleep(0.01)
        return super().training_step(batch, batch_idx)

    def flops_per_token(self):
        return 10.0


class SlowStream(Stream):
    def __iter__(self):
        for batch in super().__iter__():
            time.sleep(0.03)
            yield batch


def logged(folder, module, loader, val=None, **settings):
    """name -> [(step, value), …] as read from the event file."""
    logger = TensorBoardLogger(folder, name="", version="")
    run = trainer([Throughput(warmup_steps=2)], logger=logger, **settings)
    run.fit(module, loader, val)
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tokens_seconds_and_waiting_are_those_of_the_clock(tmp_path):
    figures = logged(tmp_path, Timed(), SlowStream(), max_steps=12, log_every_n_steps=4)
    seconds = dict(figures["train/step_seconds"])
    assert list(seconds) == [3, 7, 11]  # steps 4, 8, 12
    assert 0.040 < seconds[7] < 0.080
    assert 0.55 < dict(figures["train/data_wait_share"])[7] < 0.85  # 30 ms of 40
    assert dict(figures["train/tokens_per_second"])[7] == pytest.approx(5 / seconds[7], rel=1e-4)


def test_micro_batches_add_up_to_a_step(tmp_path):
    figures = logged(tmp_path, Timed(), Stream(), max_steps=6, log_every_n_steps=3, accumulate_grad_batches=4)
    seconds, tokens = dict(figures["train/step_seconds"])[5], dict(figures["train/tokens_per_second"])[5]
    assert 0.040 < seconds < 0.080
    assert tokens == pytest.approx(20 / seconds, rel=1e-4)


def test_warm_up_and_validation_are_not_counted(tmp_path):
    class SlowStart(Timed):
        def training_step(self, batch, batch_idx):
            time.sleep(0.2 if batch_idx < 2 else 0)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            time.sleep(0.2)

    settings = {"val_check_interval": 3, "limit_val_batches": 1, "log_every_n_steps": 4}
    figures = logged(tmp_path, SlowStart(), Stream(), Stream(), max_steps=8, **settings)
    assert all(seconds < 0.05 for _, seconds in figures["train/step_seconds"])
    assert all(share < 0.5 for _, share in figures["train/data_wait_share"])


def test_mfu_is_achieved_flops_over_the_measured_peak(tmp_path, monkeypatch):
    monkeypatch.setattr("components.callbacks.throughput.measured_peak", lambda device, dtype: 1e4)
    figures = logged(tmp_path, Timed(), Stream(), max_steps=8, log_every_n_steps=8)
    tokens = figures["train/tokens_per_second"][0][1]
    assert figures["train/mfu"][0][1] == pytest.approx(tokens * 10 / 1e4, rel=1e-4)


def test_a_module_that_does_not_know_its_flops_has_no_mfu(tmp_path):
    figures = logged(tmp_path, Tiny(), Stream(), max_steps=8, log_every_n_steps=8)
    assert "train/tokens_per_second" in figures and "train/mfu" not in figures


def test_the_peak_is_at_least_what_a_plain_product_reaches_and_takes_a_moment():
    start = time.perf_counter()
    peak = measured_peak(CPU, torch.float32)
    assert time.perf_counter() - start < 1.0  # 0.2 s, and room for a busy machine
    left = torch.ones(512, 512)
    start = time.perf_counter()
    left @ left @ left
    assert peak > 0.2 * 4 * 512**3 / (time.perf_counter() - start)


@pytest.mark.parametrize(
    "precision, dtype",
    [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), ("bf16-true", torch.bfloat16),
     ("64-true", torch.float64), ("16-true", torch.float16), ("16-mixed", torch.bfloat16)],
)
def test_the_type_of_the_peak_follows_the_precision_of_the_run(precision, dtype):
    assert compute_dtype(precision, CPU) == dtype


def test_tokens_are_counted_without_filler_in_every_kind_of_batch():
    packed = pack([[[1, 2, 3]], [[4, 5], [6]]], row_length=4, filler=0)  # 6 tokens in two rows
    ids = packed.input_ids
    batch = LMBatch(ids, ids, ids > 0, packed.layout, torch.tensor(6))
    assert int(real_tokens(batch)) == 6
    assert int(real_tokens({"segments": torch.tensor([[0, 0, -1]])})) == 2
    assert int(real_tokens({"rollout": batch, "text": batch})) == 12
    assert real_tokens([{"ids": [1, 2]}]) is None
