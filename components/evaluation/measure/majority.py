"""Self-consistency: several answers to a question are drawn, and the value that most of them give is taken."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from components.evaluation.measure.assessment import Assessed
from components.evaluation.measure.intervals import interval_of_shares
from components.functional.estimators import majority_credit
from components.generation.generate import seeded
from components.world.world import World

VOTES = (1, 3, 5, 9, 17, 33)  # answers that vote
SUBSETS = 200  # of the answers drawn, that a question's figure is the mean of


def vote(answers: Tensor, correct: Tensor, k: int, *, seed: int) -> Tensor:
    """(P,) fp64: probability that the majority of k of N answers to each question is right, ties drawn fairly.

    answers: (P, N) int64, equal numbers for equal answers. correct: (P,). The mean over SUBSETS random choices of k
    different answers, exact for k = 1 and k = N; unbiased for k fresh answers.
    """
    questions, total = answers.shape
    if k in (1, total):
        return torch.stack([majority_credit(part.T, correct).double() for part in answers.T.split(k)]).mean(0)
    generator = seeded("cpu", seed, k)
    chosen = torch.stack([torch.randperm(total, generator=generator)[:k] for _ in range(SUBSETS)])
    found = [majority_credit(row[chosen], right.expand(SUBSETS)) for row, right in zip(answers, correct, strict=True)]
    return torch.stack(found).double().mean(1)


def majority(world: World, questions: Sequence[str], assessed: Assessed, *, seed: int) -> dict[str, Any]:
    """The curve over how many answers vote, as far as they go; a list each:

    k                    answers that vote
    correct, correct_ci  share of questions on which the majority is right, 95 % interval over questions
    An answer that states no single value of the name asked about agrees with no other.
    """
    assert assessed.found is not None  # a world's questions
    answers, correct = [], []
    per_question = len(assessed.found) // len(questions)
    for number, text in enumerate(questions):
        question = world.find(text)
        values = world.vocabulary.relations[question.relation].values
        given = [one.value for one in assessed.found[number * per_question : (number + 1) * per_question]]
        answers.append([values.index(value) if value else -1 - place for place, value in enumerate(given)])
        correct.append(values.index(question.answer))
    counts = [k for k in VOTES if k <= per_question]
    found = [vote(torch.tensor(answers), torch.tensor(correct), k, seed=seed) for k in counts]
    return {
        "k": counts,
        "correct": [float(one.mean()) for one in found],
        "correct_ci": [interval_of_shares(one) for one in found],
    }
