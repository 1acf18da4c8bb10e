"""What a command line gives: which limit of training rules, what is said of what a stage has no use for."""

import pytest
from omegaconf import OmegaConf

from components.tasks import given

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
def test_a_limit_of_the_command_line_takes_the_place_of_the_stages_own(stage, overrides, expected):
    trainer = OmegaConf.create(stage | overrides)
    given.settle_limits(trainer, {f"trainer.{name}" for name in overrides})
    assert (trainer.max_steps, trainer.max_epochs) == expected


def test_a_limit_in_a_recipe_is_none_of_the_command_line():
    trainer = OmegaConf.create(SFT | {"max_steps": 2})
    given.settle_limits(trainer, {"stage", "debug", "trainer"})
    assert (trainer.max_steps, trainer.max_epochs) == (2, 3)
