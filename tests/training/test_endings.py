"""The verdict on a training: learned, still falling, no better than before, or not measured."""

from math import nan

import pytest

from components.callbacks.checkpoints import Checkpoints
from components.callbacks.diagnosis import Diagnosis
from components.training.endings import ENDINGS, FALLING, LEARNED, NO_BETTER, UNKNOWN, verdict
from tests.kit.tiny_run import Stream, Tiny, Validated, trainer

# val/loss of runs that went well, of the built-in world and of text of one's own, and the steps of these validations
WELL = {
    "tiny sft": ([0.879, 0.793, 0.770], [62, 124, 186]),
    "small sft": ([0.855, 0.784], [247, 494]),
    "tiny pretrain": ([0.614, 0.622], [360, 500]),
    "tiny rm": ([0.571, 0.757], [157, 314]),
    "own sft": ([2.122, 2.120, 2.118], [100, 200, 300]),
    "own text": ([2.167, 2.145, 2.134, 2.113, 2.113], [133, 152, 171, 190, 209]),
}
SHORT = {"before": [8.2], "val/loss": [7.1, 5.9, 5.06], "validated": [6.0, 12.0, 18.0], "after": [5.06]}


@pytest.mark.parametrize("run", WELL)
def test_a_run_that_went_well_has_learned(run):
    losses, steps = WELL[run]
    assert verdict({"before": [8.0], "val/loss": losses, "validated": steps, "after": [min(losses)]}) == {
        "verdict": LEARNED,
        "metric": "val/loss",
        "before": 8.0,
        "after": min(losses),
        "found": "",
    }


def test_a_loss_that_is_still_falling_is_found_with_its_rate():
    found = verdict(SHORT)
    assert found["verdict"] == FALLING
    assert found["found"] == "val/loss went from 5.900 to 5.060 in the last 33% of training"


@pytest.mark.parametrize(
    ("last", "falls"),
    [(5.81, True), (5.82, False)],  # 5.9 − .25 / 3 = 5.817
)
def test_a_quarter_of_a_nat_in_the_same_number_of_steps_is_a_fall(last, falls):
    assert (ENDINGS[FALLING].check(SHORT | {"val/loss": [7.1, 5.9, last]}) is not None) == falls


def test_the_rate_is_measured_over_at_least_a_tenth_of_training():
    """Between the last two of 101 validations the loss falls by 0.01: over a hundredth, but not over a tenth."""
    steps, flat = [10.0 * n for n in range(100, 201)], [2.5] * 100
    assert ENDINGS[FALLING].check({"before": [8.0], "val/loss": [*flat, 2.49], "validated": steps}) is None


def test_a_loss_that_fluctuates_is_not_falling():
    wavering = {"validated": [6.0, 12.0, 18.0, 24.0], "val/loss": [5.1, 5.8, 5.9, 5.06]}
    assert ENDINGS[FALLING].check(SHORT | wavering) is None


def test_without_validations_the_training_losses_decide_unless_they_are_noise():
    falling = [8 - 0.2 * n for n in range(30)]
    assert verdict({"train/loss": falling})["verdict"] == FALLING
    noisy = [one + (2 if n % 2 else -2) for n, one in enumerate(falling)]
    assert verdict({"train/loss": noisy})["verdict"] == UNKNOWN
    assert verdict({"train/loss": falling[:15]})["verdict"] == UNKNOWN  # a sixth of them are two


@pytest.mark.parametrize(("after", "expected"), [(0.55, LEARNED), (0.56, NO_BETTER), (5.06, NO_BETTER)])
def test_a_stage_that_ends_no_better_than_its_parent_is_found(after, expected):
    history = {"before": [0.56], "val/loss": [6.0, 0.58, 0.58], "validated": [6.0, 12.0, 18.0], "after": [after]}
    assert verdict(history)["verdict"] == expected


@pytest.mark.parametrize(("ranked", "expected"), [(0.55, LEARNED), (0.539, NO_BETTER), (0.4, NO_BETTER)])
def test_a_reward_model_is_judged_by_the_pairs_it_ranks_correctly(ranked, expected):
    """By two standard errors more than before, here 0.04; its loss also counts how certain it is."""
    losses = {"before": [0.731], "after": [0.884]}
    ranking = {"before/accuracy": [0.5], "after/accuracy": [ranked], "after/accuracy_stderr": [0.02]}
    found = verdict(losses | ranking)
    assert (found["verdict"], found["metric"], found["before"], found["after"]) == (
        expected,
        "val/accuracy",
        0.5,
        ranked,
    )
    if expected == LEARNED:
        assert found["found"].startswith("val/loss rose from 0.731 to 0.884 although more pairs are ranked correctly")
        assert verdict(losses | ranking | {"after": [0.6]})["found"] == ""
    else:
        assert found["found"].startswith(f"val/accuracy was 0.500 before the first step and is {ranked:.3f} now")


def test_a_policy_is_judged_by_its_score():
    rising = verdict({"rollout/score": [0.1] * 5 + [0.5] * 5})
    assert (rising["verdict"], rising["metric"], rising["after"]) == (LEARNED, "rollout/score", pytest.approx(0.5))
    assert verdict({"rollout/score": [0.1] * 10})["verdict"] == NO_BETTER


def test_distillation_is_judged_by_its_distance_to_the_teacher():
    falling = verdict({"rollout/reverse_kl": [0.4] * 5 + [0.1] * 5})
    assert (falling["verdict"], falling["metric"], falling["after"]) == (LEARNED, "rollout/reverse_kl", 0.1)
    assert verdict({"rollout/reverse_kl": [0.1] * 5 + [0.4] * 5})["verdict"] == NO_BETTER
    assert verdict({"rollout/reverse_kl": [0.1] * 10})["verdict"] == NO_BETTER


def test_without_measurements_the_verdict_is_not_measured():
    blank = {"verdict": UNKNOWN, "metric": "val/loss", "before": None, "after": None, "found": ""}
    assert verdict({}) == verdict({"before": [nan], "val/loss": [nan] * 3, "after": [nan]}) == blank


def fitted(callback: Diagnosis, stage: Validated | None = None, **settings) -> dict:
    run = trainer([callback], max_steps=6, val_check_interval=2, check_val_every_n_epoch=None, **settings)
    run.fit(stage or Validated(), Stream(), Stream(3))
    return callback.conclude(run, "trainer.max_steps=12")


def test_training_is_compared_with_a_full_validation_before_the_first_step(caplog):
    callback = Diagnosis()
    found = fitted(callback, num_sanity_val_steps=-1)
    assert callback.history["validated"] == [2.0, 4.0, 6.0]
    # weights (1, −1), x of places 1, 2, 3: (.2, .2), (.4, .4), (.6, 0), so products 0, 0 and .6
    assert found["before"] == pytest.approx((1 + 1 + 0.16) / 3)
    assert found["after"] == callback.history["val/loss"][-1] < found["before"]


class Ranks(Validated):
    """Ranks more pairs correctly at each validation, as a reward model logs it."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log_dict({"val/accuracy": 0.5 + 0.1 * self.global_step, "val/accuracy_stderr": 0.05})


def test_a_reward_models_ranking_is_measured_before_the_first_step_and_after_the_last(caplog):
    found = fitted(Diagnosis(), num_sanity_val_steps=-1, stage=Ranks())
    assert (found["verdict"], found["metric"]) == (LEARNED, "val/accuracy")
    assert (found["before"], found["after"]) == (pytest.approx(0.5), pytest.approx(1.1))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_training_is_not_compared_with_a_partial_validation():
    assert fitted(Diagnosis(), num_sanity_val_steps=1)["before"] is None


def test_the_loss_before_the_first_step_is_restored_when_resuming(tmp_path):
    first, saving = Diagnosis(), {"enable_checkpointing": True, "num_sanity_val_steps": -1}
    trainer([first, Checkpoints(tmp_path, 3)], max_steps=3, **saving).fit(Validated(), Stream(), Stream(3))
    second = Diagnosis()
    run = trainer([second, Checkpoints(tmp_path, 3)], max_steps=6, **saving)
    run.fit(Validated(), Stream(), Stream(3), ckpt_path=tmp_path / "step=00000003.ckpt", weights_only=True)
    assert second.history["before"] == first.history["before"]


def test_a_bad_ending_is_warned_of_with_a_remedy(caplog):
    callback = Diagnosis()
    callback.history |= SHORT
    run = trainer([callback], max_steps=1)
    run.fit(Tiny(), Stream())
    run.callback_metrics["val/loss"] = 5.06
    assert callback.conclude(run, "trainer.max_epochs=6")["verdict"] == FALLING
    assert caplog.messages[-1] == (
        "step 1, still falling: val/loss went from 5.900 to 5.060 in the last 33% of training. Likely cause: training "
        "ended before the model had learned what these records can teach. Train longer: trainer.max_epochs=6"
    )
