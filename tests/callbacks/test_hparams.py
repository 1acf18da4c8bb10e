import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tiny_run import Stream, Tiny, Validated, trainer

from components.callbacks.hparams import HyperParameters


def fit(folder, callback, *loaders, module=Tiny, **settings):
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    run = trainer([callback], logger=logger, max_steps=4, **settings)
    run.fit(module(), Stream(), *loaders)
    return run, EventAccumulator(str(folder)).Reload()


def test_the_settings_and_the_final_value_stand_in_the_event_file(tmp_path):
    callback = HyperParameters("val/loss", {"lr": 0.01, "model": "tiny"})
    settings = {"val_check_interval": 2, "limit_val_batches": 2}
    run, events = fit(tmp_path, callback, Stream(), module=Validated, **settings)
    assert events.Scalars("val/loss")[-1].value == pytest.approx(float(run.callback_metrics["val/loss"]))
    assert events.Scalars("val/loss")[-1].step == 4
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    written = HParamsPluginData.FromString(content).session_start_info.hparams
    assert written["lr"].number_value == 0.01
    assert written["model"].string_value == "tiny"
    experiment = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = HParamsPluginData.FromString(experiment).experiment.metric_infos
    assert [metric.name.tag for metric in metrics] == ["val/loss"]


def test_a_metric_that_was_never_logged_is_named_with_those_that_were(tmp_path):
    with pytest.warns(UserWarning, match="no metric 'val/loss' was logged, but train/loss"):
        _, events = fit(tmp_path, HyperParameters("val/loss", {"lr": 0.01}))
    assert "_hparams_/experiment" not in events.Tags()["tensors"]


def test_without_settings_nothing_is_written(tmp_path):
    _, events = fit(tmp_path, HyperParameters("train/loss"))
    assert "_hparams_/experiment" not in events.Tags()["tensors"]
