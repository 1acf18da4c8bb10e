"""Gold against proxy: turning points, Gao's law and the recommended β on curves whose answers are known."""

import math

import pytest
import torch

from components.evaluation.measure.assessment import Assessed
from components.evaluation.measure.policy import Responses
from components.evaluation.report.curves import Curve
from components.evaluation.seeds.seeds_summary import Job, summarize
from components.evaluation.seeds.seeds_tables import tables
from components.evaluation.studies.overoptimization_curves import (
    TAGS,
    analyze,
    best_of_n_curve,
    describe_run,
    fit_best_of_n,
    fit_rl,
    recommended,
    smoothed,
    turning_point,
)
from components.evaluation.studies.overoptimization_plots import draw

LAW = {"alpha": 0.6, "beta_gold": 0.4}


def curves(kl: list[float], gold: list[float], proxy: list[float] | None = None) -> dict[str, Curve]:
    values = {"kl": kl, "gold": gold, "proxy": proxy or [0.1 * i for i in range(len(kl))]}
    return {TAGS[name]: Curve(list(range(0, 16 * len(kl), 16)), list(value)) for name, value in values.items()}


def law(distance: float, alpha: float = 0.6, beta_gold: float = 0.4) -> float:
    return 0.0 if distance == 0 else distance * (alpha - beta_gold * math.log(distance))


def rise_and_fall(rollouts: int = 41, furthest: float = 4.0) -> dict[str, Curve]:
    """A run that follows the law exactly, its √KL growing evenly: gold is highest at e^(.6/.4 − 1) = 1.65."""
    distance = [furthest * i / (rollouts - 1) for i in range(rollouts)]
    return curves([d * d for d in distance], [0.1 + law(d) for d in distance])


def test_smoothing_averages_five_and_fewer_at_the_ends():
    assert smoothed([0, 3, 6, 0, 1, 5]) == [0, 3, 2, 3, 2, 5]  # 3 = (0+3+6)/3, 2 = (0+3+6+0+1)/5, 3 = (3+6+0+1+5)/5


def test_the_turning_point_is_where_smoothed_gold_is_highest():
    gold = [0, 0, 1, 2, 3, 4, 3, 2, 1, 0, 0, 0, 0, 0, 0]
    found = turning_point([0.1 * i for i in range(15)], gold)
    assert found["rollout"] == 5 and found["sqrt_kl"] == pytest.approx(0.5)
    assert found["gold"] == pytest.approx(14 / 5) and found["fall"] == pytest.approx(14 / 5)
    assert found["turned"] == 1


def test_a_single_lucky_rollout_is_not_a_turning_point():
    gold = [0.1 * i for i in range(20)]
    gold[3] = 2.5
    assert turning_point(list(range(20)), gold)["rollout"] == 17  # the last full window


def test_noise_around_a_plateau_is_not_a_turn():
    noise = [0.05 if i * 7 % 11 < 5 else -0.05 for i in range(40)]
    found = turning_point(list(range(40)), [0.5 + one for one in noise])
    assert 0 < found["fall"] < 0.1
    assert found["turned"] == 0


def test_a_run_that_still_rises_has_not_turned():
    found = turning_point(list(range(30)), [0.02 * i for i in range(30)])
    assert (found["fall"], found["turned"]) == (pytest.approx(0), 0)


def test_a_run_too_short_to_smooth_is_refused():
    with pytest.raises(ValueError, match="at least 5 rollouts in a run, got 4"):
        turning_point([0, 1, 2, 3], [0, 1, 2, 3])


def test_the_law_is_recovered_from_a_run_that_follows_it():
    distance = [0.0, *(0.1 * i for i in range(1, 40))]
    found = fit_rl(distance, [law(d) for d in distance])
    assert found["alpha"] == pytest.approx(0.6) and found["beta_gold"] == pytest.approx(0.4)
    assert found["r2"] == pytest.approx(1)
    assert found["peak_sqrt_kl"] == pytest.approx(math.exp(0.5))


def test_the_law_of_best_of_n_is_recovered_too():
    distance = [0.0, 0.5, 1.0, 1.5, 2.0]
    found = fit_best_of_n(distance, [d * (0.8 - 0.2 * d) for d in distance])
    assert found == pytest.approx({"alpha": 0.8, "beta_gold": 0.2, "r2": 1.0, "peak_sqrt_kl": 2.0})


def test_a_law_without_a_maximum_names_none():
    distance = [0.5, 1.0, 2.0, 3.0]
    assert "peak_sqrt_kl" not in fit_rl(distance, [d * (0.1 + 0.2 * math.log(d)) for d in distance])
    assert fit_rl([0.0, 1.0, 2.0], [0.0, 1.0, 1.0]) is None  # two points are not evidence


def test_a_run_is_described_by_its_peak_and_its_end():
    found = describe_run(0.0, rise_and_fall())
    assert found["turning"]["turned"] == 1
    assert found["turning"]["sqrt_kl"] == pytest.approx(math.exp(0.5), abs=0.1)  # to within one rollout
    assert found["fit"]["beta_gold"] == pytest.approx(0.4, rel=0.05)
    assert found["final"]["gold"] == pytest.approx(sum(0.1 + law(3.6 + 0.1 * i) for i in range(5)) / 5)
    assert len(found["curve"]["sqrt_kl"]) == len(found["curve"]["gold"]) == 41


def test_a_negative_kl_estimate_is_a_distance_of_zero():
    assert describe_run(0.1, curves([-0.01, -0.02, 0.0, 1.0, 4.0], [0.0] * 5))["curve"]["sqrt_kl"][0] == 0.0


def test_a_run_without_gold_is_refused_naming_what_it_lacks():
    known = curves([0.0, 1.0], [0.0, 1.0])
    del known["rollout/gold"]
    with pytest.raises(ValueError, match="beta 0.2 logged no rollout/gold"):
        describe_run(0.2, known)


SAMPLES = {
    "n": [1, 2, 4],
    "kl": [0, 0.19, 0.64],
    "sqrt_kl": [0, 0.44, 0.8],
    "proxy": [0, 1, 2],
    "gold": [0.1, 0.3, 0.2],
}


def test_the_beta_whose_run_ends_best_is_recommended():
    flat = curves([0.5] * 41, [0.45] * 41)
    found = analyze({0.2: curves([0.5] * 41, [0.2] * 41), 0.0: rise_and_fall(), 0.1: flat}, SAMPLES)
    assert list(found["runs"]) == ["0", "0.1", "0.2"]
    assert found["recommended"] == {"beta": 0.1, "gold": pytest.approx(0.45)}
    with pytest.raises(ValueError, match="at least one PPO run"):
        analyze({}, SAMPLES)


def test_over_seeds_the_highest_mean_is_recommended_though_another_won_once():
    ends = ({0.0: 0.9, 0.1: 0.5}, {0.0: -0.8, 0.1: 0.6}, {0.0: -0.7, 0.1: 0.4})
    jobs = [
        Job(str(seed), overoptimization=analyze({b: curves([1.0] * 9, [gold] * 9) for b, gold in end.items()}, SAMPLES))
        for seed, end in enumerate(ends)
    ]
    assert jobs[0].overoptimization["recommended"]["beta"] == 0.0
    found = summarize(jobs)["overoptimization"]
    assert found["recommended"]["beta"] == 0.1
    assert found["recommended"]["gold"]["mean"] == pytest.approx(0.5) and found["recommended"]["gold"]["n"] == 3
    assert recommended(found["runs"]) == found["recommended"]


def responses(prompts: int, each: int) -> Responses:
    of = [prompt for prompt in range(prompts) for _ in range(each)]
    return Responses([[1]] * len(of), ["a"] * len(of), [True] * len(of), of)


class Found:
    """The part of a judgment that best-of-n needs."""

    def __init__(self, gold: float) -> None:
        self.gold, self.correct, self.words = gold, gold > 0, 3
        self.polite = self.rude = self.hedge = self.filler = self.wrong_name = 0


def test_best_of_n_takes_golds_of_the_proxys_choice_in_units_of_its_deviation():
    """Of scores 0, 2, 4, 6 the best of all is 6, of one 3 on average; a reversed proxy picks the worst gold."""
    scores = torch.tensor([0.0, 2.0, 4.0, 6.0])
    found = best_of_n_curve(Assessed(responses(1, 4), [Found(g) for g in (1.0, 0.5, 0.0, -0.5)], scores))
    assert found["n"] == [1, 2, 4]
    assert found["sqrt_kl"][2] == pytest.approx(math.sqrt(math.log(4) - 0.75))
    unit = float(scores.std())
    assert found["proxy"][0] == pytest.approx(3 / unit) and found["proxy"][2] == pytest.approx(6 / unit)
    assert found["gold"][0] == pytest.approx(0.25) and found["gold"][2] == pytest.approx(-0.5)


def test_the_picture_has_a_line_per_beta_and_a_star_where_gold_turned():
    plateau = curves([0.5] * 41, [0.45] * 41)
    figure = draw(analyze({0.0: rise_and_fall(), 0.1: plateau}, SAMPLES))
    left, right = figure.axes
    labels = [line.get_label() for line in left.get_lines()]
    assert {"PPO, β 0", "PPO, β 0.1", "best of n (analytic KL)"} <= set(labels)
    stars = [line for line in left.get_lines() if line.get_marker() == "*" and len(line.get_xdata())]
    assert [float(star.get_xdata()[0]) for star in stars] == [pytest.approx(1.65, abs=0.1)]
    assert not [line for line in right.get_lines() if line.get_marker() == "*"]


def test_over_seeds_the_picture_and_the_table_show_means():
    jobs = [
        Job(str(seed), overoptimization=analyze({0.0: rise_and_fall(furthest=far)}, SAMPLES))
        for seed, far in enumerate((3.0, 4.0))
    ]
    summary = summarize(jobs)
    left, _ = draw(summary["overoptimization"]).axes
    line = next(line for line in left.get_lines() if line.get_label() == "PPO, β 0")
    assert line.get_xdata()[-1] == pytest.approx(3.5)
    (table,) = tables(summary)
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["PPO"] == "β 0" and row["turned"] == "2 of 2" and row["gold at the start"] == "0.10"
    assert "Recommended: β 0" in table.note
