"""The Custom Scalars page, as TensorBoard reads it."""

from typing import NamedTuple

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tiny_run import Stream, Tiny, Validated, trainer

from components.callbacks.dashboard import Dashboard
from components.callbacks.tap import Tap


class Shown(NamedTuple):
    title: str
    tags: tuple[str, ...]
    low: float | None = None
    high: float | None = None


class Charted(Validated):
    charts = (
        Shown("loss", ("train/loss", "val/loss")),
        Shown("loss while training", ("train/loss",), 0.0, 0.7),
        Shown("rate", ("train/lr",)),
        Shown("loss of validation", ("val/loss",), 0.1, 0.9),
    )


def events(folder, module, *val, **settings) -> EventAccumulator:
    logger = TensorBoardLogger(folder, name="", version="")
    trainer([Dashboard()], logger=logger, **settings).fit(module, Stream(), *val)
    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> EventAccumulator:
    settings = {"max_steps": 12, "log_every_n_steps": 3, "val_check_interval": 5}
    return events(tmp_path_factory.mktemp("run"), Charted(), Stream(2), **settings)


def steps(written: EventAccumulator, tag: str) -> list[int]:
    return [event.step for event in written.Scalars(tag)]


def test_charts_without_a_range_come_in_order_and_those_with_one_in_a_section_of_their_own(written):
    [event] = written.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    curves, bands = layout.category
    assert curves.title == "Charted" and bands.title == "Charted, healthy within the band"
    assert [chart.title for chart in curves.chart] == ["loss", "rate"]
    assert list(curves.chart[0].multiline.tag) == ["train/loss$", "val/loss$"]  # so that train/loss_2 is not shown
    assert [chart.title for chart in bands.chart] == ["loss of validation", "loss while training"]  # shown in reverse
    [series] = bands.chart[0].margin.series
    assert (series.value, series.lower, series.upper) == (
        "val/loss",
        "healthy/val_loss/low",
        "healthy/val_loss/high",
    )


@pytest.mark.parametrize(("tag", "low", "high"), [("train_loss", 0.0, 0.7), ("val_loss", 0.1, 0.9)])
def test_a_range_has_a_point_wherever_its_metric_has_one(written, tag, low, high):
    metric = tag.replace("_", "/")
    assert steps(written, metric) == {"train_loss": [2, 5, 8, 11], "val_loss": [4, 9]}[tag]
    for side, value in (("low", low), ("high", high)):
        assert steps(written, f"healthy/{tag}/{side}") == steps(written, metric)
        assert all(event.value == pytest.approx(value) for event in written.Scalars(f"healthy/{tag}/{side}"))


def test_a_module_without_charts_is_left_alone(tmp_path):
    tags = events(tmp_path, Tiny(), max_steps=2).Tags()
    assert tags["tensors"] == [] and set(tags["scalars"]) == {"epoch", "train/loss"}


def test_a_run_without_tensorboard_is_left_alone():
    run = trainer([Dashboard()], max_steps=2)
    run.fit(Charted(), Stream(), Stream(2))
    assert run.loggers == []


def test_a_second_fit_does_not_write_twice(tmp_path):
    callback, logger = Dashboard(), TensorBoardLogger(tmp_path, name="", version="")
    run = trainer([callback], logger=logger, max_steps=2)
    for max_steps in (2, 4):
        run.fit_loop.epoch_loop.max_steps = max_steps
        run.fit(Charted(), Stream(), Stream(2))
    assert sum(isinstance(one, Tap) for one in run.loggers) == 1
    assert run.logger is logger  # the first one stays the one that modules ask for
