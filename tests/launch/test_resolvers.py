"""What ${name:…} stands for in a config, besides other keys."""

import pytest

from tests.kit.composed_configs import compose_config


@pytest.mark.parametrize(
    "elsewhere",
    [[], ["data=preference", "data.path=mine.jsonl"], ["lora=default"], ["stage.freeze=[model.norm]"]],
)
def test_what_was_measured_on_the_world_holds_there_if_all_weights_are_trained(elsewhere):
    cfg = compose_config(["stage=rm", "model=tiny", *elsewhere])
    rates = (cfg.stage.optimizer.lr, cfg.stage.learning_rates)
    assert rates == ((6e-4, None) if elsewhere else (1e-3, {"model.embed_tokens": 3}))


def test_a_model_without_a_measured_setting_has_the_stages_own():
    cfg = compose_config(["stage=rm", "model=small"])
    assert (cfg.stage.optimizer.lr, cfg.stage.learning_rates) == (6e-4, None)
