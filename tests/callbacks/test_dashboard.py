"""The Custom Scalars page, as TensorBoard reads it."""

import re
from typing import NamedTuple

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from components.callbacks.dashboard import Dashboard
from components.loggers.recorder import named
from components.loggers.tensorboard_log import TensorBoard
from tests.kit.tiny_run import Stream, Tiny, Validated, trainer


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
    logger = TensorBoard(str(folder), f"tests.{type(module).__name__}")
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
    assert list(curves.chart[0].multiline.tag) == [
        "Charted\\ train/loss$",
        "Charted\\ val/loss$",
    ]  # so that train/loss_2 is not shown
    assert [chart.title for chart in bands.chart] == ["loss of validation", "loss while training"]  # shown in reverse
    [series] = bands.chart[0].margin.series
    assert (series.value, series.lower, series.upper) == (
        "Charted val/loss",
        "_/healthy/Charted val/loss/low",
        "_/healthy/Charted val/loss/high",
    )


@pytest.mark.parametrize(("name", "low", "high"), [("train/loss", 0.0, 0.7), ("val/loss", 0.1, 0.9)])
def test_a_range_has_a_point_wherever_its_metric_has_one(written, name, low, high):
    metric = f"Charted {name}"
    assert steps(written, metric) == {"train/loss": [2, 5, 8, 11], "val/loss": [4, 9]}[name]
    for side, value in (("low", low), ("high", high)):
        assert steps(written, f"_/healthy/{metric}/{side}") == steps(written, metric)
        assert all(event.value == pytest.approx(value) for event in written.Scalars(f"_/healthy/{metric}/{side}"))


def test_a_page_shows_the_runs_of_its_own_stage_only():
    """TensorBoard shows in a chart every run that has a tag which the chart's pattern matches from its beginning."""
    pages = {name: TensorBoard("unused", name).layout(Charted.charts)[name] for name in ("SFT", "RewardModel")}
    for page, other in (("SFT", "RewardModel"), ("RewardModel", "SFT")):
        patterns = [pattern for _, tags in pages[page].values() for pattern in tags]
        assert all(any(re.match(p, named(tag, page)) for p in patterns) for tag in ("train/loss", "val/loss"))
        assert not any(re.match(p, named(tag, other)) for p in patterns for tag in ("train/loss", "val/loss"))


def test_a_module_without_charts_is_left_alone(tmp_path):
    tags = events(tmp_path, Tiny(), max_steps=2).Tags()
    assert tags["tensors"] == [] and set(tags["scalars"]) == {"_/epoch", "Tiny train/loss"}


def test_a_run_without_loggers_is_left_alone():
    run = trainer([Dashboard()], max_steps=2)
    run.fit(Charted(), Stream(), Stream(2))
    assert run.loggers == []


def test_a_second_fit_does_not_write_twice(tmp_path):
    run = trainer([Dashboard()], logger=TensorBoard(str(tmp_path), "Charted"), max_steps=2)
    for max_steps in (2, 4):
        run.fit_loop.epoch_loop.max_steps = max_steps
        run.fit(Charted(), Stream(), Stream(2))
    written = EventAccumulator(str(tmp_path)).Reload()
    assert steps(written, "_/healthy/Charted train/loss/low") == steps(written, "Charted train/loss") == [0, 1, 2, 3]
