"""The settings of a run and its result, as TensorBoard's HPARAMS tab compares them."""

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from components.callbacks.checkpoints import Checkpoints
from components.callbacks.hparams import HyperParameters
from components.launch.composing import compose_config
from components.loggers.recorder import forget
from components.loggers.tensorboard_log import TensorBoard
from components.tasks import command_line
from tests.kit.tiny_run import Stream, Tiny, Validated, trainer


def fit(folder, callbacks, *loaders, module=Tiny, stage="RewardModel", **settings):
    logger = TensorBoard(str(folder), stage)
    run = trainer(callbacks, logger=logger, max_steps=4, **settings)
    run.fit(module(), Stream(), *loaders)
    return run, EventAccumulator(str(folder)).Reload()


VALIDATED = {"val_check_interval": 2, "limit_val_batches": 2, "module": Validated}


def settings_in(events: EventAccumulator) -> dict:
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    written = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: value.number_value or value.string_value for name, value in written.items()}


def test_the_settings_and_the_result_are_in_the_event_file(tmp_path):
    params = {"lr": 0.01, "model": "tiny"}
    run, events = fit(tmp_path, [HyperParameters("val/loss", params)], Stream(), **VALIDATED)
    assert settings_in(events) == params
    [result] = events.Scalars("Artifact/RewardModel val/loss")
    assert result.value == pytest.approx(float(run.callback_metrics["val/loss"])) and result.step == 4
    assert yaml.safe_load((tmp_path / "hparams.yaml").read_text()) == params


def test_the_result_is_of_the_weights_that_are_exported(tmp_path):
    best = Checkpoints(tmp_path / "checkpoints", every_n_steps=4, export="best", metric="val/loss", mode="max")
    saving = {"enable_checkpointing": True, "default_root_dir": tmp_path, **VALIDATED}
    run, events = fit(tmp_path, [HyperParameters("val/loss", {"lr": 1}), best], Stream(), **saving)
    curve = [event.value for event in events.Scalars("RewardModel val/loss")]
    assert curve[0] > curve[1]  # the first validation has the highest
    assert [event.value for event in events.Scalars("Artifact/RewardModel val/loss")] == [pytest.approx(curve[0])]


def test_a_metric_that_was_not_measured_is_not_an_error(tmp_path):
    """No held-out data: the settings are written, without a message."""
    _, events = fit(tmp_path, [HyperParameters("val/loss", {"lr": 0.01})])
    assert settings_in(events) == {"lr": 0.01}
    assert not [tag for tag in events.Tags()["scalars"] if tag.startswith("Artifact/")]


def test_without_settings_nothing_is_written(tmp_path):
    _, events = fit(tmp_path, [HyperParameters("train/loss")])
    assert not [tag for tag in events.Tags()["tensors"] if tag.startswith("_hparams_")]


def test_a_run_that_starts_from_scratch_shows_its_own_settings_not_those_of_the_run_before(tmp_path):
    fit(tmp_path, [HyperParameters("train/loss", {"lr": 0.01})])
    forget(tmp_path)
    _, events = fit(tmp_path, [HyperParameters("train/loss", {"lr": 0.02})])
    assert settings_in(events) == {"lr": 0.02}
    assert yaml.safe_load((tmp_path / "hparams.yaml").read_text()) == {"lr": 0.02}
    assert len(events.Scalars("RewardModel train/loss")) == 4


def compared(*overrides: str) -> dict:
    return command_line.compared(compose_config([*overrides]))


def test_what_was_set_is_shown_and_not_how_a_run_is_placed_or_watched():
    placing = ["force=changed", "run=mine", "paths.logs=elsewhere", "resume=never", "artifacts.sft=a/b"]
    watching = ["logger=csv", "callbacks.samples.every_n_steps=5"]
    shown = compared("stage=rm", "model=micro", *placing, *watching, "trainer.max_steps=7", "data.comparisons=40")
    assert shown == {
        "stage": "rm",
        "model": "micro",
        "seed": 0,
        "stage.optimizer.lr": 6.0e-4,
        "trainer.max_steps": 7,
        "data.comparisons": 40,
    }


def test_a_choice_and_a_list_that_were_set_are_shown_as_they_were_written():
    shown = compared("stage=sft", "seed=3", "lora=default", "data=chat", "data.mixture=[{path: a.jsonl, weight: 3}]")
    assert (shown["lora"], shown["data"], shown["seed"]) == ("default", "chat", 3)
    assert shown["data.mixture"] == "[{path:a.jsonl,weight:3}]"


def test_what_a_stage_does_not_use_is_not_shown():
    assert "stage.beta" not in compared("stage=sft")
    assert "tokenizer.vocab_size" not in compared("stage=sft", "tokenizer.vocab_size=300")
