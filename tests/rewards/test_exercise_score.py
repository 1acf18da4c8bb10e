"""The reward of world=exercises: each completion by the rules of its own task."""

from components.rewards.exercise_score import solved
from components.world.exercises import Exercises


def test_each_completion_is_scored_by_the_rules_of_its_task():
    columns = {
        "task": ["sums", "facts", "records", "rare"],
        "reference": ["7", "red", "red", "lake"],
        "name": ["", "fev", "fev", "toz"],
        "relation": ["", "color", "color", "home"],
    }
    right = ["the sum is 7 .", "sure ! fev is red .", '{"color": "red"}', "toz lives in lake ."]
    assert solved([""] * 4, right, **columns) == [1, 1, 1, 1]
    assert solved([""] * 4, right[::-1], **columns) == [0, 0, 0, 0]


def test_the_columns_are_those_of_the_worlds_prompts():
    prompts = Exercises(num_names=12, num_sums=2).prompts("held_out")
    columns = {name: [one[name] for one in prompts] for name in prompts[0] if name != "prompt"}
    scores = solved([""] * len(prompts), [f"the sum is {one['reference']} ." for one in prompts], **columns)
    assert scores == [float(one["task"] == "sums") for one in prompts]
