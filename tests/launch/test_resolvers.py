"""What ${name:…} stands for in a config, besides other keys."""

import pytest

from tests.kit.composed_configs import compose_config


@pytest.mark.parametrize(
    ("elsewhere", "rate", "factors"),
    [
        ([], 1e-3, {"model.embed_tokens": 3}),
        (["data=preference", "data.path=mine.jsonl"], 6e-4, None),
        (["lora=default"], 1e-3, None),  # a factor for weights that are not trained would be an error
        (["stage.freeze=[model.embed_tokens]"], 1e-3, None),
    ],
)
def test_what_was_measured_on_the_world_holds_there_alone(elsewhere, rate, factors):
    cfg = compose_config(["stage=rm", "model=tiny", *elsewhere])
    assert (cfg.stage.optimizer.lr, cfg.stage.learning_rates) == (rate, factors)


def test_a_model_without_a_measured_setting_has_the_stages_own():
    cfg = compose_config(["stage=rm", "model=small"])
    assert (cfg.stage.optimizer.lr, cfg.stage.learning_rates) == (6e-4, None)


def test_the_report_holds_out_what_training_held_out_unless_the_world_answers_anew():
    own = ["data=prompts", "data.path=c.jsonl", "comparisons.path=c.jsonl", "text.path=a.txt"]
    world, files, wider = (
        compose_config(["stage=eval", "model=tiny", *more]) for more in ([], own, [*own, "data.val_fraction=0.2"])
    )
    assert [(cfg.comparisons.val_fraction, cfg.text.val_fraction) for cfg in (world, files, wider)] == [
        (0.5, 0.05),
        (0.05, 0.05),
        (0.2, 0.2),
    ]
