"""What a command line means: which limit of training applies, and what is reported as unused."""

import logging
from dataclasses import replace

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from components.artifacts.store import ArtifactError
from components.launch import settings, spawning, sweeps
from components.launch.overrides import written
from components.models.config import GPTConfig
from components.tasks import command_line
from tests.kit.composed_configs import compose_config

SFT, PRETRAIN = {"max_steps": -1, "max_epochs": 3}, {"max_steps": 500, "max_epochs": None}


@pytest.mark.parametrize(
    ("stage", "overrides", "expected"),
    [
        (SFT, {}, (-1, 3)),
        (PRETRAIN, {}, (500, None)),
        (SFT, {"max_steps": 60}, (60, None)),
        (PRETRAIN, {"max_epochs": 2}, (-1, 2)),
        (SFT, {"max_steps": 60, "max_epochs": 2}, (60, 2)),  # whichever comes first
        (SFT, {"max_steps": -1}, (-1, 3)),  # no limit, so the other one stays
        (PRETRAIN, {"max_epochs": None}, (500, None)),
        (PRETRAIN, {"max_epochs": -1}, (500, -1)),
    ],
)
def test_a_limit_on_the_command_line_replaces_the_stages_own(stage, overrides, expected):
    trainer = OmegaConf.create(stage | overrides)
    command_line.resolve_limits(trainer, {f"trainer.{name}" for name in overrides})
    assert (trainer.max_steps, trainer.max_epochs) == expected


def test_a_limit_in_a_recipe_is_not_one_of_the_command_line():
    trainer = OmegaConf.create(SFT | {"max_steps": 2})
    command_line.resolve_limits(trainer, {"stage", "debug", "trainer"})
    assert (trainer.max_steps, trainer.max_epochs) == (2, 3)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], (300, 16, 3)),
        (["trainer.max_epochs=3"], (None, 16, 3)),
        (["trainer.max_steps=60"], (None, 16, 3)),
        (["data.batch_size=8"], (300, None, 3)),
        (["trainer.accumulate_grad_batches=2"], (300, None, 3)),
        (["callbacks.early_stopping.patience=null"], (300, 16, None)),
    ],
)
def test_few_records_change_nothing_that_the_command_line_sets(overrides, expected):
    cfg = compose_config(["stage=sft", "data.path=mine.jsonl", *overrides])
    command_line.give_precedence(cfg)
    assert (cfg.small_data.steps, cfg.small_data.batch, cfg.small_data.patience) == expected


@pytest.mark.parametrize("recipe", ["vicuna_13b", "koala_13b", "instructgpt_sft", "instructgpt_rm"])
def test_few_records_change_nothing_in_a_published_recipe(recipe):
    assert not settings.small_data_of(compose_config([f"experiment={recipe}", "data.path=mine.jsonl"]))


def unused(*overrides: str) -> set[str]:
    return {line.lstrip("+~").partition("=")[0] for line in command_line.unused(compose_config(overrides))}


def test_an_override_of_what_a_stage_does_not_use_is_found():
    not_used = ["tokenizer.vocab_size=500", "world.num_names=8", "data.root=x", "artifacts.rm=y", "overrides.ppo=[a]"]
    not_used += ["gate.enabled=false", "stages=[sft]", "data.demonstrations=60", "+files={text: a.txt}"]
    used = ["data.path=a.jsonl", "trainer=cpu", "~callbacks.samples", "model=small", "paths.logs=x", "lora=default"]
    used += ["force=true", "artifacts.pretrain=x", "context=64", "callbacks.spike_guard.action=skip"]
    found = unused("stage=sft", *used, *not_used)
    assert found == {line.lstrip("+~").partition("=")[0] for line in not_used}


def test_what_validations_are_compared_by_is_not_used_if_nothing_depends_on_it():
    compared = ["selection.metric=val/gold", "selection.mode=max", "callbacks.early_stopping.min_delta=0.1"]
    by = {line.partition("=")[0] for line in compared}
    assert unused("stage=ppo", *compared) == by
    assert unused("stage=ppo", "export=best", *compared) == {"callbacks.early_stopping.min_delta"}
    assert unused("stage=ppo", "callbacks.early_stopping.patience=3", *compared) == set()
    assert unused("stage=ppo", "~callbacks.early_stopping") == set()


def test_an_override_that_another_setting_refers_to_is_used():
    assert unused("stage=sft", "world.num_names=8", "seed=3") == set()  # data.world is the world


def test_a_group_that_a_stage_does_not_use_is_found():
    given_to_both = ["lora=default", "trainer=ddp", "callbacks=default", "model=small"]
    assert unused("stage=tokenizer", *given_to_both) == {"lora", "trainer", "callbacks"}
    assert unused("stage=eval", *given_to_both, "trainer.precision=32-true") == {"lora", "callbacks"}


def test_what_is_not_used_is_reported_with_the_reason(caplog):
    command_line.warn_of_unused(compose_config(["stage=sft", "tokenizer.vocab_size=500"]))
    assert "stage=sft does not use:\n  tokenizer.vocab_size=500 (only stage=tokenizer trains a tok" in caplog.text
    caplog.clear()
    with spawning.overrides_checked():
        command_line.warn_of_unused(compose_config(["stage=sft", "tokenizer.vocab_size=500"]))
    assert not caplog.text


def test_one_stage_that_uses_an_override_is_enough(caplog):
    shared = ["tokenizer.vocab_size=500", "after_sweep=[]", "+exact.beta=1", "+files.text=x"]
    own = "overrides.sft=['stage.model.dropout=0.1','+rollouts.prompts=3','data.root=r','data.path=${files.text}']"
    cfg = compose_config(["stage=all", *shared, own])
    running = GlobalHydra.instance().hydra = object()  # as train.py's own, which must be there afterwards
    own = written(sweeps.HydraConfig.get())
    stages = {stage: [f"stage={stage}", *own[1:], *cfg.overrides[stage]] for stage in ("tokenizer", "sft")}
    command_line.warn_of_unused_by_all(cfg, stages)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    reason = "(a recipe's own: other settings refer to it)"
    assert (
        caplog.messages[0]
        == f"stage=sft does not use:\n  +rollouts.prompts=3 {reason}\n  data.root='r' (data.path is what is read)"
    )
    assert caplog.messages[1] == f"no stage of tokenizer, sft uses:\n  +exact.beta=1 {reason}"
    assert written(sweeps.HydraConfig.get()) == own
    assert GlobalHydra.instance().hydra is running
    GlobalHydra.instance().clear()


def test_arguments_that_do_not_compose_end_the_pipeline_before_its_first_stage():
    cfg = compose_config(["stage=all"])
    with pytest.raises(ValueError, match=r"stage=sft data.comparisons=3: .*comparisons"):
        command_line.warn_of_unused_by_all(
            cfg, {"tokenizer": ["stage=tokenizer"], "sft": ["stage=sft", "data.comparisons=3"]}
        )


SHAPE = GPTConfig(
    vocab_size=400,
    hidden_size=112,
    intermediate_size=304,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=128,
    tie_word_embeddings=True,
)  # conf/model/tiny.yaml


@pytest.fixture
def reads(monkeypatch):
    """A function that checks a shape that stage=rm reads, with the overrides of a command line."""
    cfg = compose_config(["stage=rm"])

    def check(shape: GPTConfig, *lines: str, **changes: int | float | str) -> None:
        monkeypatch.setattr(command_line, "overrides", lambda: OverridesParser.create().parse_overrides(list(lines)))
        command_line.check_shape(OmegaConf.merge(cfg, changes), "logs/x", shape)

    OmegaConf.set_struct(cfg, False)
    return check


def test_a_model_named_on_the_command_line_must_be_the_one_that_is_read(reads):
    reads(replace(SHAPE, context=64, model_type="llama"), "model=tiny")
    with pytest.raises(ArtifactError, match=r"has num_hidden_layers 5, but .* has num_hidden_layers 9\. Leave out"):
        reads(replace(SHAPE, num_hidden_layers=9), "model=tiny")
    with pytest.raises(
        ArtifactError, match="has vocab_size 500, but this stage reads the model at logs/x, which has vocab_size 400"
    ):
        reads(SHAPE, "model.vocab_size=500", model={"vocab_size": 500})
    with pytest.raises(ArtifactError, match="has dropout 0.5, but .* has dropout 0.0"):
        reads(SHAPE, "+model.dropout=0.5", model={"dropout": 0.5})


def test_a_run_with_the_name_of_another_model_gets_a_warning(reads, caplog):
    reads(replace(SHAPE, num_hidden_layers=9), run="mine")
    assert not caplog.text
    reads(replace(SHAPE, num_hidden_layers=9))
    assert "num_hidden_layers 5" in caplog.text and "num_hidden_layers 9" in caplog.text
    assert "although the run is called tiny; run=<name> names it" in caplog.text


@pytest.mark.parametrize(
    ("given", "source", "warned"),
    [
        (["stage=sft"], "?", True),
        (["stage=grpo"], "?", True),
        (["stage=sft", "stage.optimizer.lr=2e-5"], "?", False),
        (["stage=sft", "lora=default"], "?", False),
        (["stage=sft"], "pretrain", False),
    ],
)
def test_the_rate_of_small_models_is_warned_of_before_a_published_one_is_trained(
    given, source, warned, monkeypatch, caplog
):
    monkeypatch.setattr(command_line, "overrides", lambda: OverridesParser.create().parse_overrides(given))
    parents = {"tokenizer": {"stage": source}, "model": {"stage": source}}
    command_line.advise_rate(compose_config([*given, "artifacts.sft=theirs", "artifacts.pretrain=theirs"]), parents)
    assert ("is for small models" in caplog.text) == warned


def test_a_model_from_random_weights_gets_no_advice_on_its_rate(monkeypatch, caplog):
    monkeypatch.setattr(command_line, "overrides", list)
    command_line.advise_rate(compose_config(["stage=pretrain"]), {"tokenizer": {"stage": "?"}})
    assert not caplog.text
    continued = compose_config(["stage=pretrain", "model=hf", "model.path=theirs"])
    command_line.advise_rate(continued, {"tokenizer": {"stage": "?"}})
    assert "the default, 0.003," in caplog.text


@pytest.mark.parametrize("unit", ["steps", "epochs"])
def test_a_minimum_above_the_limit_is_rejected(unit):
    """Training would end at the limit, without the validation of its last step."""
    trainer = OmegaConf.create(SFT | {f"max_{unit}": 4, f"min_{unit}": 5})
    with pytest.raises(ValueError, match=rf"trainer.min_{unit}=5 is above trainer.max_{unit}=4"):
        command_line.resolve_limits(trainer, {f"trainer.max_{unit}"})
    trainer[f"min_{unit}"] = 4
    command_line.resolve_limits(trainer, {f"trainer.max_{unit}"})


def test_a_metric_set_alone_whose_mode_would_export_the_worst_is_rejected():
    with pytest.raises(ValueError, match="takes the lowest val/accuracy for the best. Set selection.mode=max"):
        command_line.check_selection(compose_config(["stage=rm", "selection.metric=val/accuracy"]))
    command_line.check_selection(compose_config(["stage=rm", "selection={metric: val/accuracy, mode: max}"]))


def selecting(metric: str, mode: str, *, export: str = "best", patience: int | None = None, task: str = "fit"):
    by = {"metric": f"val/{metric}", "mode": mode}
    callbacks = {"checkpoints": {"export": export, **by}, "early_stopping": {"patience": patience, **by}}
    return OmegaConf.create({"task": f"components.tasks.{task}.{task}", "callbacks": callbacks})


@pytest.mark.parametrize(
    ("cfg", "right"),
    [
        (selecting("score", "min"), "max"),
        (selecting("bits_per_byte", "max"), "min"),
        (selecting("wrong_name", "max", export="last", patience=2), "min"),
    ],
)
def test_a_mode_that_takes_the_worst_for_the_best_is_rejected(cfg, right):
    with pytest.raises(ValueError, match=f"for the best. Set selection.mode={right}"):
        command_line.check_selection(cfg)


@pytest.mark.parametrize(
    "cfg",
    [
        selecting("score", "max"),
        selecting("accuracy", "min", export="last"),  # which nothing depends on
        selecting("longer_wins", "min"),  # neither way is better
        selecting("mine", "max"),
        selecting("accuracy", "min", task="evaluate"),
        OmegaConf.create({"task": "components.tasks.fit.fit", "callbacks": {"checkpoints": None}}),
        OmegaConf.create({"task": "components.tasks.fit.fit", "callbacks": None}),
    ],
)
def test_other_selections_are_not_rejected(cfg):
    command_line.check_selection(cfg)
