import time
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from components.callbacks.throughput import Throughput, compute_dtype, measured_peak
from components.data.batches import LMBatch, WithText
from components.data.loading.token_count import real_tokens
from components.generation.rollout import Minibatch, PackedResponses
from components.models.attention.layout import pack
from tests.kit.tiny_run import Stream, Tiny, trainer

CPU = torch.device("cpu")


class Clock:
    """A clock that advances only when a test spends time, so no test depends on the machine's load."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("components.callbacks.throughput.time", made)
    monkeypatch.setattr("components.callbacks.throughput.measured_peak", lambda device, dtype: 1e4)
    return made


class Timed(Tiny):
    """10 ms in the training step, of which a batch's 5 tokens are worth 10 FLOPs each."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def training_step(self, batch, batch_idx):
        self.clock.spend(0.01)
        return super().training_step(batch, batch_idx)

    def flops_per_token(self):
        return 10.0


class SlowStream(Stream):
    """30 ms between two batches."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def __iter__(self):
        for batch in super().__iter__():
            self.clock.spend(0.03)
            yield batch


@pytest.fixture
def logged(tmp_path):
    """A function that trains and returns name -> [(step, value), …] as read from the event file."""

    def run(module, loader, val=None, **settings):
        logger = TensorBoardLogger(tmp_path, name="", version="")
        trainer([Throughput(warmup_steps=2)], logger=logger, **settings).fit(module, loader, val)
        events = EventAccumulator(str(tmp_path)).Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    return run


def test_tokens_seconds_and_waiting_are_those_of_the_clock(logged, clock):
    metrics = logged(Timed(clock), SlowStream(clock), max_steps=12, log_every_n_steps=4)
    seconds = dict(metrics["train/step_seconds"])
    assert list(seconds) == [3, 7, 11]  # steps 4, 8, 12
    assert seconds[7] == pytest.approx(0.04)
    assert dict(metrics["train/data_wait_share"])[7] == pytest.approx(0.75)  # 30 ms of 40
    assert dict(metrics["train/tokens_per_second"])[7] == pytest.approx(5 / 0.04, rel=1e-4)


def test_micro_batches_add_up_to_a_step(logged, clock):
    metrics = logged(Timed(clock), Stream(), max_steps=6, log_every_n_steps=3, accumulate_grad_batches=4)
    assert dict(metrics["train/step_seconds"])[5] == pytest.approx(0.04)
    assert dict(metrics["train/tokens_per_second"])[5] == pytest.approx(20 / 0.04, rel=1e-4)


def test_warmup_and_validation_are_not_counted(logged, clock):
    class SlowStart(Timed):
        def training_step(self, batch, batch_idx):
            self.clock.spend(0.2 if batch_idx < 2 else 0.0)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            self.clock.spend(0.2)

    settings = {"val_check_interval": 3, "limit_val_batches": 1, "log_every_n_steps": 4}
    metrics = logged(SlowStart(clock), Stream(), Stream(), max_steps=8, **settings)
    assert [seconds for _, seconds in metrics["train/step_seconds"]] == [pytest.approx(0.01)] * 2
    assert [share for _, share in metrics["train/data_wait_share"]] == [pytest.approx(0.0)] * 2


def test_mfu_is_achieved_flops_over_the_measured_peak(logged, clock):
    metrics = logged(Timed(clock), Stream(), max_steps=8, log_every_n_steps=8)
    assert metrics["train/mfu"][0][1] == pytest.approx(5 / 0.01 * 10 / 1e4, rel=1e-4)


def test_of_two_processes_tokens_are_the_sum_and_seconds_the_mean(clock):
    """The other has three times this one's numbers."""
    logged: dict[str, float] = {}
    strategy = SimpleNamespace(root_device=CPU, reduce=lambda mine, reduce_op: mine + 3 * mine)
    callback = Throughput()
    run = SimpleNamespace(strategy=strategy, world_size=2, global_step=0, precision="32-true")
    module = Tiny()
    module.log_dict = lambda metrics, **_: logged.update(metrics)
    callback.on_train_start(run, module)
    clock.spend(0.5)
    callback.on_train_batch_start(run, module)
    clock.spend(0.5)
    callback._tokens, callback._steps = torch.tensor(100), 2
    callback._log(run, module)
    # 1 s and 3 s, of which 0.5 s and 1.5 s waiting; 100 and 300 tokens
    assert logged["train/step_seconds"] == pytest.approx(2.0 / 2)
    assert logged["train/data_wait_share"] == pytest.approx(0.5)
    assert logged["train/tokens_per_second"] == pytest.approx(400 / 2.0)


def test_a_module_that_does_not_know_its_flops_has_no_mfu(logged, clock):
    metrics = logged(Tiny(), SlowStream(clock), max_steps=8, log_every_n_steps=8)
    assert "train/tokens_per_second" in metrics and "train/mfu" not in metrics


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
    [
        ("32-true", torch.float32),
        ("bf16-mixed", torch.bfloat16),
        ("bf16-true", torch.bfloat16),
        ("64-true", torch.float64),
        ("16-true", torch.float16),
        ("16-mixed", torch.bfloat16),
    ],
)
def test_the_dtype_of_the_peak_follows_the_precision_of_the_run(precision, dtype):
    assert compute_dtype(precision, CPU) == dtype


def test_tokens_are_counted_without_filler_in_every_kind_of_batch():
    packed = pack([[[1, 2, 3]], [[4, 5], [6]]], row_length=4, filler=0)  # 6 tokens in two rows
    ids = packed.input_ids
    batch = LMBatch.of(ids, ids, ids > 0, packed.layout, torch.tensor(6))
    assert int(real_tokens(batch)) == 6
    mask = ids[:, :2] > 0
    responses = PackedResponses(ids, packed.layout, ids[:, :2], mask, torch.zeros_like(ids[:, :2]), ids[:, 0], ids[0])
    minibatch = Minibatch(responses, mask.float(), mask.float())
    assert int(real_tokens(minibatch)) == 6
    assert int(real_tokens(WithText(minibatch, batch))) == 12
    assert real_tokens([{"ids": [1, 2]}]) is None
