"""Settings that every stage that trains accepts: which weights learn and how fast, their average, the schedule. Each is
checked before anything is read, and none is accepted without an effect."""

import functools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import get_class
from omegaconf import OmegaConf

from components.artifacts import store
from components.launch import settings
from components.launch.schema import check
from components.tasks import chosen_weights
from tests.kit.composed_configs import compose_config
from tests.kit.stage_runs import MAKERS
from tests.kit.tiny_models import random_model, random_scalar, small_config, small_tokenizer

CONF = Path(__file__).resolve().parents[2] / "conf"
STAGES = sorted(
    file.stem
    for file in CONF.glob("stage/*.yaml")
    if yaml.safe_load(file.read_text())["task"] == "components.tasks.fit.fit"
)
PATTERNS = ["stage.freeze=['model.embed_tokens','model.layers.[0-9].*']", "stage.learning_rates={model.norm: 0.1}"]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_that_trains_accepts_them_all_and_counts_them_among_its_inputs(stage):
    wsd = ["stage.schedule.kind=wsd", "stage.schedule.decay_share=0.3", "stage.schedule.decay_shape=sqrt"]
    cfg = compose_config([f"stage={stage}", "ema_decay=0.99", *PATTERNS, *wsd])
    check(cfg)
    inputs = settings.inputs_of(OmegaConf.to_container(cfg, resolve=True), {}, "")
    assert inputs["stage.freeze.1"] == "model.layers.[0-9].*"
    assert inputs["stage.learning_rates.model.norm"] == 0.1
    assert inputs["stage.schedule.decay_shape"] == "sqrt" and inputs["ema_decay"] == 0.99


@pytest.mark.parametrize("stage", STAGES)
def test_left_at_their_defaults_they_are_no_inputs_so_that_what_was_made_before_them_stays_up_to_date(stage):
    cfg = compose_config([f"stage={stage}", "model=small"])  # on the world, model=tiny has a factor of its own
    check(cfg)
    inputs = settings.inputs_of(OmegaConf.to_container(cfg, resolve=True), {}, "")
    mine = ("stage.freeze", "stage.learning_rates", "stage.schedule.decay", "ema_decay", "stage.neftune_alpha")
    assert {name: inputs[name] for name in inputs if name.startswith(mine) and inputs[name] is not None} == {}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_among_those_whose_weights_the_other_tests_watch(stage):
    """They train each of MAKERS with patterns, with an average, and with every optimizer."""
    assert get_class(compose_config([f"stage={stage}"]).stage._target_) in watched()


@functools.cache
def watched() -> set[type]:
    return {kind for make in MAKERS.values() for kind in type(make(1)[0]).__mro__[:3]}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    folder, tokenizer = tmp_path_factory.mktemp("made"), small_tokenizer()
    size = tokenizer.vocab_size
    models = {
        "pretrain": random_model(size),
        "sft": random_model(size, tie_word_embeddings=True),
        "rm": random_scalar(size),
    }
    for name, model in models.items():
        store.write_artifact(folder / name, card={"stage": name}, tokenizer=tokenizer, model=model)
    return {name: folder / name for name in models}


def composed(stage: str, made: dict[str, Path], *overrides: str) -> Any:
    parents = [f"artifacts.{name}={path}" for name, path in made.items() if name != stage]
    return compose_config([f"stage={stage}", *parents, *overrides])


@pytest.mark.parametrize("stage", STAGES)
def test_patterns_are_checked_against_the_names_of_every_networks_weights(stage, made):
    shape = small_config(300)
    chosen_weights.check(composed(stage, made, *PATTERNS), shape)
    for override, message in (
        ("stage.freeze=['model.embd_tokens']", r"stage.freeze: 'model.embd_tokens' matches no weight. Near it: model"),
        ("stage.freeze=['*']", "stage.freeze: '\\*' (would freeze all|matches value.score|matches score)"),
        ("stage.learning_rates={model.layers.9: 0.1}", "stage.learning_rates: 'model.layers.9' matches no weight"),
    ):
        with pytest.raises(ValueError, match=message):
            chosen_weights.check(composed(stage, made, override), shape)


def test_a_tied_matrix_is_named_with_both_its_names(made, caplog):
    with caplog.at_level("INFO"):
        chosen_weights.check(composed("grpo", made, "stage.freeze=['lm_head']"), small_config(300))
    assert "model.embed_tokens.weight and lm_head.weight of the policy are one frozen matrix" in caplog.text


def test_with_adapters_their_names_are_what_patterns_mean(made):
    shape = small_config(300)
    chosen_weights.check(composed("ppo", made, "lora=default", "stage.freeze=['*.q_proj.lora_A']"), shape)
    with pytest.raises(ValueError, match="only weights that are not trained, such as model.embed_tokens.weight"):
        chosen_weights.check(composed("ppo", made, "lora=default", "stage.freeze=['model.embed_tokens']"), shape)


def test_a_value_model_of_another_shape_has_patterns_of_its_own(made, tmp_path):
    tokenizer = small_tokenizer()
    deep = random_scalar(tokenizer.vocab_size, num_hidden_layers=3)
    store.write_artifact(tmp_path / "rm", card={"stage": "rm"}, tokenizer=tokenizer, model=deep)
    cfg = composed("ppo", made | {"rm": tmp_path / "rm"}, "stage.freeze=['value.model.layers.2']")
    chosen_weights.check(cfg, small_config(tokenizer.vocab_size))


@pytest.mark.parametrize(
    ("stage", "override", "reason"),
    [
        ("sft", "stage.schedule.decay_share=0.3", "only kind=wsd has it, and this one is cosine"),
        ("ppo", "stage.schedule.decay_shape=sqrt", "only kind=wsd has it, and this one is linear"),
        ("eval", "ema_decay=0.9", "nothing is trained here"),
        ("tokenizer", "ema_decay=0.9", "a tokenizer is trained without a model"),
    ],
)
def test_what_a_run_does_not_use_is_reported_with_the_reason(stage, override, reason):
    plain: Any = OmegaConf.to_container(compose_config([f"stage={stage}", override]), resolve=True)
    rule = settings.rule_of(override.partition("=")[0], settings.rules_of(plain))
    assert (rule.kind, rule.reason) == (settings.UNUSED, reason)


def test_a_schedule_without_a_decay_does_not_use_what_one_ends_with():
    for overrides in (["stage.schedule.kind=constant"], ["stage.schedule.kind=wsd", "stage.schedule.decay_share=0"]):
        plain: Any = OmegaConf.to_container(compose_config(["stage=sft", *overrides]), resolve=True)
        rule = settings.rule_of("stage.schedule.final_fraction", settings.rules_of(plain))
        assert (rule.kind, rule.reason) == (settings.UNUSED, "this schedule does not decay")
