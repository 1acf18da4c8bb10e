"""What a command line gives: which limit of training rules, what is said of what a stage has no use for."""

import pytest

from components.hydra_hooks import compose_config
from components.tasks import given


def limits(*overrides: str) -> tuple[int, int | None]:
    cfg = compose_config(overrides)
    given.settle_limits(cfg)
    return cfg.trainer.max_steps, cfg.trainer.max_epochs


def test_without_a_limit_of_ones_own_the_stages_rules():
    assert limits("stage=sft") == (-1, 3)
    assert limits("stage=pretrain") == (500, None)


@pytest.mark.parametrize("stage", ["sft", "dpo", "rm"])
def test_steps_given_take_the_place_of_the_stages_epochs(stage):
    assert limits(f"stage={stage}", "trainer.max_steps=60") == (60, None)


def test_epochs_given_take_the_place_of_the_stages_steps():
    assert limits("stage=pretrain", "trainer.max_epochs=2") == (-1, 2)


def test_of_two_limits_given_both_hold():
    assert limits("stage=sft", "trainer.max_steps=60", "trainer.max_epochs=2") == (60, 2)


@pytest.mark.parametrize("nothing", ["trainer.max_steps=-1", "trainer.max_epochs=null", "trainer.max_epochs=-1"])
def test_taking_one_limit_away_leaves_the_other(nothing):
    cfg = compose_config(["stage=sft", nothing])
    before = dict(cfg.trainer)
    given.settle_limits(cfg)
    assert dict(cfg.trainer) == before


def test_a_limit_in_a_recipe_is_no_limit_of_the_command_line():
    assert limits("stage=sft", "debug=smoke") == (2, 3)
    assert limits("stage=sft", "debug=smoke", "trainer.max_steps=5") == (5, None)
