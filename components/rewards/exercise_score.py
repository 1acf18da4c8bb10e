"""The reward of world=exercises: the world's own rules check the answer."""

from collections.abc import Sequence
from typing import Any

from components.rewards.answers import Completion, Scores, texts_of
from components.world.exercises import Exercise


def solved(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    *,
    task: Sequence[Any],
    reference: Sequence[str],
    name: Sequence[str],
    relation: Sequence[str],
) -> Scores:
    """1 if the completion is a correct answer to the exercise, see Exercise.is_solved, else 0."""
    exercises = [Exercise(one[0], "", *one[1:]) for one in zip(task, reference, name, relation, strict=True)]
    answers = zip(exercises, texts_of(completions), strict=True)
    return [float(exercise.is_solved(answer)) for exercise, answer in answers]
