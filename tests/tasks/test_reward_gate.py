"""The gate at a stage's start and end: what is read from a reward model's card, and what is written into it."""

import logging
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.precision import Precision

from components.artifacts import store
from components.artifacts.store import ArtifactError
from components.launch.schema import ConfigError, check
from components.tasks import reward_gate
from tests.kit.composed_configs import compose_config
from tests.kit.tiny_models import random_model, random_scalar

HEALTHY = {"accuracy_low": 0.64, "gold_accuracy_low": 0.64, "ece": 0.2, "against_length": 0.36, "over_length": 0.11}
RANKING = {"pairs": 1415, "prompts": 12, "accuracy": 0.7, "accuracy_ci": [0.64, 0.75]}


def config(tmp_path, *more, stage="ppo", figures=None, ranking=RANKING):
    """A stage's config that reads a reward model with these metrics in its card; None: without an examination."""
    examination = {} if figures is None else {"examination": {"figures": figures, "ranking": ranking}}
    store.write_artifact(tmp_path / "rm", card={"stage": "rm", **examination})
    return compose_config([f"stage={stage}", "run=mine", f"artifacts.rm={tmp_path}/rm", *more])


def test_a_healthy_reward_model_is_trained_against_without_a_warning(tmp_path, caplog):
    reward_gate.check_reward_model(config(tmp_path, figures=HEALTHY))
    assert caplog.text == ""


@pytest.mark.parametrize("stage", ["ppo", "grpo", "rloo", "rejection"])
def test_a_failing_reward_model_is_rejected_with_reasons_and_commands(stage, tmp_path):
    cfg = config(tmp_path, stage=stage, figures={**HEALTHY, "accuracy_low": 0.41, "ece": 0.5})
    with pytest.raises(ArtifactError) as refused:
        reward_gate.check_reward_model(cfg)
    told = str(refused.value)
    assert f"{tmp_path}/rm failed its examination (1,415 held-out pairs on 12 prompts)" in told
    assert "accuracy, low end: got 41%, limit at least 52%" in told
    assert "calibration error (ECE): got 0.50, limit at most 0.35" in told
    assert "accuracy by the world's judge" not in told
    assert "python train.py stage=rm model=tiny run=mine force=true" in told
    assert "gate.enabled=false" in told and "gate.refuse.min_accuracy_low=<number>" in told


def test_the_override_trains_regardless_and_a_limit_can_be_moved(tmp_path, caplog):
    poor = {**HEALTHY, "accuracy_low": 0.41}
    reward_gate.check_reward_model(config(tmp_path, "gate.enabled=false", figures=poor))
    assert "is doubtful" in caplog.text and "got 41%, limit at least 52%" in caplog.text
    reward_gate.check_reward_model(config(tmp_path, "gate.refuse.min_accuracy_low=0.4", figures=poor))
    reward_gate.check_reward_model(config(tmp_path, "gate.refuse.min_accuracy_low=null", figures=poor))


def test_a_doubtful_reward_model_is_trained_against_with_a_warning(tmp_path, caplog):
    reward_gate.check_reward_model(config(tmp_path, figures={**HEALTHY, "over_length": -0.005, "probe_empty": 0.36}))
    assert "accuracy beyond length alone: got −0.5%, limit at least 0%" in caplog.text
    assert "best answer above: an empty answer: got 36%, limit at least 50%" in caplog.text
    assert "\n  → length: balance the lengths of chosen and rejected answers" in caplog.text


def test_a_reward_model_that_was_not_examined_is_trained_against_with_a_warning(tmp_path, caplog):
    reward_gate.check_reward_model(config(tmp_path))
    assert f"the reward model at {tmp_path}/rm was not examined" in caplog.text


def test_a_reward_model_that_was_correct_on_both_of_two_pairs_is_trained_against_with_a_warning(tmp_path, caplog):
    perfect = {**HEALTHY, "accuracy_low": 0.342, "gold_accuracy_low": None, "ece": 0.4}
    ranking = {"pairs": 2, "prompts": 2, "accuracy": 1.0, "accuracy_ci": [0.342, 1.0]}
    reward_gate.check_reward_model(config(tmp_path, figures=perfect, ranking=ranking))
    assert f"the examination of the reward model at {tmp_path}/rm rests on too little data" in caplog.text
    for figure in ("accuracy, low end", "calibration error (ECE)"):
        assert f"{figure}: got" in caplog.text
    assert "2 pairs on 2 prompts are too few to tell, about 16 prompts are needed" in caplog.text


def test_a_stage_that_reads_no_reward_model_has_no_gate(caplog):
    reward_gate.check_reward_model(compose_config(["stage=dpo"]))
    assert caplog.text == ""


def test_a_limit_on_an_unknown_metric_stops_every_stage_before_any_work():
    expected = "'min_acuracy' is not a limit; expected min_ or max_ followed by one of: accuracy"
    with pytest.raises(ValueError, match=expected):
        reward_gate.check_reward_model(compose_config(["stage=rm", "+gate.warn.min_acuracy=0.5"]))


def test_a_limit_that_is_not_a_number_is_named_in_full():
    with pytest.raises(ConfigError, match="gate: expected .*'min_accuracy_low': 'high'"):
        check(compose_config(["stage=rm", "gate.refuse.min_accuracy_low=high"]))


def test_only_a_reward_model_with_an_examination_is_examined():
    nothing = {"trainer": None, "weights": {}, "data": None, "tokenizer": None}
    assert reward_gate.examined(compose_config(["stage=sft"]), model=random_model(300), **nothing) == {}
    unexamined = compose_config(["stage=rm", "examination=null"])
    assert reward_gate.examined(unexamined, model=random_scalar(300), **nothing) == {}


def test_whole_weights_are_examined_and_not_those_of_the_module(tmp_path, monkeypatch, capsys, caplog):
    """As with sharded ones: the module itself is never called, and if nothing is held out, nothing is written."""
    model, other = random_scalar(300), random_scalar(300, seed=1)
    seen = []
    monkeypatch.setattr(reward_gate, "instantiate", lambda made: lambda *given: seen.append(given) or {})
    trainer = SimpleNamespace(
        precision_plugin=Precision(),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        progress_bar_callback=None,
        global_step=50,
        accumulate_grad_batches=2,
        world_size=1,
    )
    data = SimpleNamespace(train_examples=[[{"completions": [[1], [2]]}, {"completions": [[1]] * 4}]], batch_size=10)
    cfg = compose_config(["stage=rm", f"paths.logs={tmp_path}"])
    with caplog.at_level(logging.WARNING):
        assert reward_gate.examined(cfg, trainer, model, other.state_dict(), data, "tokenizer") == {}
    [(examined, tokenizer, read, reading)] = seen
    assert (tokenizer, read) == ("tokenizer", data) and examined is not model and not examined.training
    assert not reading.shown
    assert (
        reading.answers == 900
    )  # a tenth of 50 steps · 2 batches · 10 records · 3 answers, each trained on for 3 reads
    assert torch.equal(examined.score.weight, other.score.weight)
    assert "no comparison is held out" in caplog.text
