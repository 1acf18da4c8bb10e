"""Self-consistency: sample several answers to a question and take the value that most of them give."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from components.evaluation.measure.assessment import Assessed
from components.evaluation.measure.intervals import interval_of_shares
from components.functional.estimators import majority_credit
from components.functional.seeding import seeded
from components.world.world import World

VOTES = (1, 3, 5, 9, 17, 33)  # answers that vote
SUBSETS = 200  # random subsets of the samples, over which a question's result is averaged


class MajorityCurve(NamedTuple):
    """A curve over the number of answers that vote, up to the samples per question; each a list:

    k                    answers that vote
    correct, correct_ci  share of questions on which the majority is correct, 95% interval over questions
    """

    k: list[int]
    correct: list[float]
    correct_ci: list[list[float]]


def vote(answers: Tensor, correct: Tensor, k: int, *, seed: int) -> Tensor:
    """(P,) fp64: probability that the majority of k of N answers to each question is correct, ties broken fairly.

    answers: (P, N) int64, equal numbers for equal answers. correct: (P,). The mean over SUBSETS random subsets of k
    answers, exact for k = 1 and k = N; unbiased for k fresh answers.
    """
    questions, total = answers.shape
    if k in (1, total):
        return torch.stack([majority_credit(part.T, correct).double() for part in answers.T.split(k)]).mean(0)
    generator = seeded("cpu", seed, k)
    chosen = torch.stack([torch.randperm(total, generator=generator)[:k] for _ in range(SUBSETS)])
    credits = [majority_credit(row[chosen], truth.expand(SUBSETS)) for row, truth in zip(answers, correct, strict=True)]
    return torch.stack(credits).double().mean(1)


def majority(world: World, questions: Sequence[str], assessed: Assessed, *, seed: int) -> MajorityCurve:
    """Votes of judged answers, equally many per question. An answer that does not state a single value for the name
    asked about agrees with no other."""
    assert assessed.judgments is not None  # only called with a world's questions
    answers, correct = [], []
    per_question = len(assessed.judgments) // len(questions)
    for number, text in enumerate(questions):
        question = world.find(text)
        values = world.vocabulary.relations[question.relation].values
        given = [j.value for j in assessed.judgments[number * per_question : (number + 1) * per_question]]
        answers.append([values.index(value) if value else -1 - i for i, value in enumerate(given)])
        correct.append(values.index(question.answer))
    counts = [k for k in VOTES if k <= per_question]
    shares = [vote(torch.tensor(answers), torch.tensor(correct), k, seed=seed) for k in counts]
    return MajorityCurve(
        k=counts,
        correct=[float(share.mean()) for share in shares],
        correct_ci=[interval_of_shares(share) for share in shares],
    )
