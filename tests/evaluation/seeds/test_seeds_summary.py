"""Metrics over seeds, and the summary of a sweep as tables."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.evaluation.measure.over_seeds import half_width, is_spread, number, over_seeds, paired, spread
from components.evaluation.report.card import Table, percent
from components.evaluation.seeds import seeds_plots
from components.evaluation.seeds.seeds_summary import Job, summarize
from components.evaluation.seeds.seeds_tables import cell, count, fitting, power, tables


def test_a_spread_is_the_mean_with_students_interval():
    """For 1, 2 and 6: mean 3, deviation √7, t with 2 degrees of freedom 4.303, so ± 4.303·√(7/3) = 6.573."""
    found = spread([1, 2, 6])
    assert (found["mean"], found["n"], found["values"]) == (3, 3, [1, 2, 6])
    assert found["interval"] == pytest.approx([3 - 6.573, 3 + 6.573], abs=1e-3)
    assert half_width(found) == pytest.approx(6.573, abs=1e-3)


def test_one_seed_has_a_mean_and_no_interval():
    assert spread([2.5]) == {"mean": 2.5, "interval": None, "n": 1, "values": [2.5]}
    assert half_width(spread([2.5])) is None


def test_seeds_that_lack_a_metric_are_not_counted():
    found = spread([1.0, None, 3.0])
    assert (found["mean"], found["n"], found["values"]) == (2.0, 2, [1.0, None, 3.0])
    assert spread([None, None]) is None


def test_nested_results_are_joined_by_key_and_lists_by_index():
    found = over_seeds([{"a": {"b": 1}, "curve": [1, 10]}, {"a": {"b": 3}, "curve": [3, 20, 30]}])
    assert found["a"]["b"]["mean"] == 2
    assert [one["mean"] for one in found["curve"]] == [2, 15, 30]
    assert [one["n"] for one in found["curve"]] == [2, 2, 1]
    assert found["curve"][2]["values"] == [None, 30]


def test_what_only_some_seeds_have_is_kept_with_the_seeds_that_have_it():
    found = over_seeds([{"a": 1}, None, {"a": 5, "b": {"c": 7}}])
    assert found["a"]["values"] == [1, None, 5]
    assert found["b"]["c"] == {"mean": 7, "interval": None, "n": 1, "values": [None, None, 7]}


def test_what_has_no_mean_is_left_out():
    assert over_seeds([{"text": "x", "flag": True, "none": None, "nan": math.nan}] * 2) is None
    assert set(over_seeds([{"text": "x", "n": 1}] * 2)) == {"n"}


def test_a_paired_difference_is_narrower_than_the_two_spreads_where_seeds_vary_alike():
    """Gains of about 1 for every seed, no matter how far apart the seeds are."""
    first, second = spread([1, 5, 9.3, None]), spread([0, 4, 8, 2])
    gain = paired(first, second)
    assert gain["values"] == pytest.approx([1, 1, 1.3, None]) and gain["n"] == 3
    assert half_width(gain) == pytest.approx(4.303 * 0.1, rel=1e-3)  # deviation 0.1732, over √3
    assert half_width(gain) < half_width(first) / 20
    assert paired(first, None) is None and paired(None, second) is None


@pytest.mark.parametrize("values", [[1.0] * 5, [0.0] * 3, [0.1] * 3, [1e6 / 3] * 7, [7, 7]], ids=str)
def test_seeds_that_agree_exactly_have_no_interval(values):
    """Five of five passing seeds do not make it certain that the sixth passes: no ± 0."""
    found = spread([*values, None])
    assert found["mean"] == pytest.approx(values[0]) and found["interval"] is None and found["n"] == len(values)
    assert paired(found, found)["interval"] is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12).filter(lambda values: max(values) - min(values) > 1e-3))
def test_a_mean_is_in_the_middle_of_its_interval_and_moves_with_the_values(values):
    found, moved = spread(values), spread([value + 3 for value in values])
    low, high = found["interval"]
    assert low <= found["mean"] + 1e-6 and found["mean"] <= high + 1e-6
    assert moved["mean"] == pytest.approx(found["mean"] + 3, abs=1e-6)
    assert half_width(moved) == pytest.approx(half_width(found), abs=1e-3)


def test_a_metric_of_one_seed_and_one_over_seeds_are_distinguished():
    assert is_spread(spread([1])) and not is_spread(1.0) and not is_spread({"mean": 1})
    assert (number(0.5), number(spread([1, 2]))) == (0.5, 1.5)


@pytest.mark.parametrize(
    ("values", "show", "text"),
    [
        ([0.9, 1.1], None, "1.00 ± 1.27"),  # 12.706 · 0.1414 / √2
        ([-0.5], None, "−0.50"),
        ([0.9, 0.9, 0.9], percent, "90%"),
        ([0.9], percent, "90%"),
    ],
)
def test_a_cell_shows_mean_and_half_width_in_one_unit(values, show, text):
    assert cell(spread(values), *([show] if show else [])) == text


def test_a_cell_without_a_value_is_a_dash():
    assert cell(None) == count(None) == power(None) == "–"


def test_large_numbers_are_readable():
    assert (count(71234.4), power(1.234e13), power(0)) == ("71,234", "1.2·10¹³", "0")


def report(gold: dict[str, float]) -> dict:
    models = {
        name: {
            "gold": value,
            "gold_ci": [0, 99],
            "correct": 0.5,
            "kl": None if name == "sft" else 2.0,
            "entropy_per_token": 0.4,
            "win_rate": 0.6,
            "samples": [{"greedy_gold": 7}],
        }
        for name, value in gold.items()
    }
    return {
        "seed": 3,
        "models": models,
        "base": {"answers_bare": 0.0, "asks_another": 1.0},
        "reward_model": {"accuracy": 0.9, "accuracy_ci": [0, 99]},
        "best_of_n": {"n": [1, 2], "kl": [0, 0.193], "score": [0, 1], "gold": [0.1, 0.3]},
        "majority": {"k": [1, 3], "correct": [0.4, 0.6]},
        "budget": {
            "reward": {"minutes": 0.5},
            "ppo": {"minutes": 0.75, "generated_tokens": 40000, "flops": 3e12, "commit": "abc"},
        },
        "inputs": {"seed": 3},
    }


@pytest.fixture
def found():
    golds = ({"sft": 0.0, "ppo": 1.0, "dpo": 0.5}, {"sft": 0.2, "ppo": 1.2, "dpo": 0.9})
    return summarize([Job(str(seed), report(gold)) for seed, gold in zip((3, 4), golds, strict=True)])


def test_methods_are_compared_seed_by_seed(found):
    assert found["gains"]["ppo"]["sft"]["values"] == [1.0, 1.0]
    assert found["gains"]["ppo"]["sft"]["interval"] is None  # the two agree
    assert found["gains"]["dpo"]["ppo"]["values"] == pytest.approx([-0.5, -0.3])
    assert set(found["gains"]["sft"]) == {"ppo"} and set(found["gains"]["ppo"]) == {"sft"}


def test_intervals_of_one_seed_and_sampled_answers_are_not_averaged(found):
    metrics = found["report"]["models"]["ppo"]
    assert "gold_ci" not in metrics and "samples" not in metrics
    assert "inputs" not in found["report"] and "seed" not in found["report"]


def test_the_tables_show_what_is_there_and_no_other(found):
    shown = {table.title: table for table in tables(found)}
    assert list(shown) == [
        "Models over seeds",
        "Bake-off",
        "Base and reward model over seeds",
        "Best of n of sft",
        "Majority vote of sft",
    ]
    bake = shown["Bake-off"]
    assert [row[0] for row in bake.rows] == ["sft", "ppo", "dpo"]
    ppo = dict(zip(bake.columns, bake.rows[1], strict=True))
    assert ppo["gold"] == "1.10 ± 1.27" and ppo["− sft"] == "1.00" and ppo["− ppo"] == "–"
    assert (ppo["sampled tokens"], ppo["FLOPs"], ppo["minutes"]) == ("40,000", "3.0·10¹²", "0.8")
    assert "took another 0.5 minutes" in bake.note
    assert shown["Majority vote of sft"].rows == [["1", "40%"], ["3", "60%"]]
    assert all("over 2 seeds" in table.note for table in shown.values())


def scored(before: float, after: float) -> dict:
    def model(mean: float, kl: float | None) -> dict:
        parts = {"strict": {"mean": mean, "ci": [0, 1], "count": 8}}
        described = {"parts": parts, "score": mean, "score_ci": [0, 1], "finished": 1.0, "length": 3.0}
        return {"sampled": described, "greedy": described, "behavior": {"entropy": 0.5, "kl": kl}, "samples": 4}

    curve = {"rollout/score": {"steps": [0, 2], "values": [before, after]}}
    models = {"sft": model(before, None), "grpo": model(after, 2.0)}
    return {"models": models, "curves": {"grpo": curve}, "minutes": {"grpo": 40.0}, "inputs": {"seed": 1}}


def test_a_seed_without_results_is_not_among_the_seeds():
    found = summarize([Job("1"), Job("2", rewards=scored(0.3, 0.62)), Job("3", scaling={})])
    assert found["seeds"] == ["2"] and summarize([Job("1")]) == {"seeds": []}


def test_what_a_verifier_taught_is_compared_seed_by_seed():
    """0.2 → 0.5 and 0.3 → 0.62: gains of 0.30 and 0.32, mean 0.31 ± 12.706 · 0.01."""
    found = summarize([Job("1", rewards=scored(0.2, 0.5)), Job("2", rewards=scored(0.3, 0.62))])
    assert found["rewards"]["gains"]["grpo"]["strict"]["values"] == pytest.approx([0.3, 0.32])
    [table] = tables(found)
    grpo = dict(zip(table.columns, table.rows[1], strict=True))
    assert (grpo["strict − sft"], grpo["strict, greedy"], grpo["KL"]) == ("31 ± 13%", "56 ± 76%", "2.00")
    assert (grpo["tokens"], grpo["minutes"]) == ("3.0", "40.0")
    assert found["rewards"]["curves"]["grpo"]["rollout/score"]["values"][1]["mean"] == pytest.approx(0.56)
    assert "samples" in found["rewards"]["models"]["grpo"] and "ci" not in str(found)


def with_techniques(score: float) -> dict:
    """Votes gain 0.2 on facts and nothing on sums."""

    def figures(score: float, **gain: float) -> dict:
        return {"score": score, "score_ci": [0, 1], "read": 8.0, "sampled": 20.0, **gain}

    alone = figures(score, tasks={"sums": figures(score), "facts": figures(score)})
    votes = figures(score, tasks={"sums": figures(score, gain=0.0), "facts": figures(score + 0.2, gain=0.2)})
    made = scored(score, score)
    made["models"]["sft"]["techniques"] = {"one sample": alone, "votes": votes}
    return made


def test_techniques_are_shown_by_task_with_their_gains_over_seeds(tmp_path):
    """0.1 and 0.3: mean 0.2 ± 12.706 · 0.1, both gains 0.2."""
    found = summarize([Job("1", rewards=with_techniques(0.1)), Job("2", rewards=with_techniques(0.3))])
    _, table = tables(found)
    assert table.columns == ["", "task", "technique", "score", "gain", "tokens read", "sampled"]
    assert table.rows[0] == ["sft", "sums", "one sample", "20 ± 127%", "–", "8", "20"]
    assert table.rows[3] == ["sft", "facts", "votes", "40 ± 127%", "20%", "8", "20"]
    assert "techniques.png" in seeds_plots.draw(found, tmp_path)


def test_a_wide_table_is_shown_in_parts_that_fit():
    table = Table("name", ["", "abc", "defg", "hi"], [["row", "1", "2", "3"]], "note")
    assert list(fitting(table, 100)) == [table]  # 7 + 6 + 7 + 5 characters
    first, second = fitting(table, 20)
    assert first == Table("name", ["", "abc", "defg"], [["row", "1", "2"]])
    assert second == Table("name", ["", "hi"], [["row", "3"]], "note")
    assert [part.columns for part in fitting(table, 3)] == [["", "abc"], ["", "defg"], ["", "hi"]]


def test_two_models_are_not_a_bake_off():
    summary = summarize([Job("3", report({"base": -1, "sft": 0.0, "ppo": 1.0}))])
    assert "Bake-off" not in {table.title for table in tables(summary)}


def test_for_one_seed_the_tables_have_means_and_say_so():
    for table in tables(summarize([Job("3", report({"sft": 0.0, "ppo": 1.0, "dpo": 0.5}))])):
        assert "One seed: no intervals." in table.note
        assert not any("±" in cell for row in table.rows for cell in row)


def test_reward_models_are_shown_by_their_number_of_comparisons():
    cards = [{40: 0.55, 2500: 0.75}, {2500: 0.79, 40: 0.61}]
    jobs = [
        Job(str(seed), scaling={size: {"metrics": {"val/accuracy": value}} for size, value in sizes.items()})
        for seed, sizes in enumerate(cards)
    ]
    (table,) = tables(summarize(jobs))
    assert [row[:2] for row in table.rows] == [["40", "58 ± 38%"], ["2,500", "77 ± 25%"]]


def test_the_exact_optimum_is_shown_by_method():
    methods = {"ppo": {"fraction_of_optimum": 0.97, "objective": 0.5}, "best_of_n": {"fraction_of_optimum": 0.6}}
    measured = {"methods": methods, "optimum": {"objective": 0.52}}
    (table,) = tables(summarize([Job(str(seed), optimum=measured) for seed in (0, 1)]))
    assert [row[:3] for row in table.rows] == [
        ["ppo", "0.970", "0.500"],
        ["best_of_n", "0.600", "–"],
        ["optimum", "–", "0.520"],
    ]


def test_models_are_shown_head_to_head_over_seeds():
    def job(seed, rate):
        row = {"win_rate": rate, "win_rate_ci": [0, 1], "length_controlled": 0.5, "length_matched": None, "length": 9.0}
        report = {"models": {}, "against": {"sft": {"greedy": {"ppo": row | {"other_length": 7, "finished": 1.0}}}}}
        return Job(seed, report=report)

    [table] = [one for one in tables(summarize([job("1", 0.6), job("2", 0.8)])) if "Head" in one.title]
    # mean 0.7, deviation 0.141, over √2 and times 12.706: ± 1.27
    assert table.rows == [["ppo against sft, greedy", "70 ± 127%", "50%", "–", "9.0", "7.0", "100%"]]
