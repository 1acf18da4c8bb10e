"""True quality: the built-in world's judgments of answers, and how a base model responds to questions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from components.evaluation.measure.intervals import mean_interval
from components.evaluation.measure.policy import Responses, SamplePlan, respond
from components.models.heads import CausalLM
from components.tokenizer.tokenizer import Tokenizer
from components.world.gold import Judgment
from components.world.world import World

SHOTS = 4  # solved examples in a few-shot prompt
CROWD = 1000  # demonstrations that the crowd is judged by


class Quality(NamedTuple):
    """Means over all responses; shares are of responses.

    gold               worth according to the judge, at most 1.25
    gold_ci            95% interval of gold by Student's t over question means; None if questions do not differ
    correct            share that states the true value of the name asked about, and no other (gold.judge)
    wrong_name         share that names someone else
    polite             share with a polite phrase; correct_polite: correct as well
    rude, hedge, filler   share with such a phrase
    words              per answer, including punctuation marks
    """

    gold: float
    gold_ci: list[float] | None
    correct: float
    wrong_name: float
    polite: float
    correct_polite: float
    rude: float
    hedge: float
    filler: float
    words: float


class Crowd(NamedTuple):
    """Demonstrations: the number of answers, and the shares of them that are correct and that name someone else."""

    answers: int
    correct: float
    wrong_name: float


class BareBehavior(NamedTuple):
    """Continuations of bare questions: the share that answers, and the share that asks again."""

    answers_bare: float
    asks_another: float


class FewShot(NamedTuple):
    """The share of correct continuations, at temperature 1, of prompts that first show `shots` solved questions.

    Both are None if not even the question fits in the model's context.
    """

    few_shot: float | None
    shots: int | None


def judgments(world: World, questions: Sequence[str], responses: Responses) -> list[Judgment]:
    """The judgment of every response; questions: one per prompt."""
    return [
        world.judge(questions[number], text, finished)
        for number, text, finished in zip(responses.prompt_index, responses.texts, responses.finished, strict=True)
    ]


def quality(judgments: Sequence[Judgment], responses: Responses) -> Quality:
    """The quality of judged responses."""
    gold = torch.tensor([j.gold for j in judgments], dtype=torch.float64)

    def share(*flags: bool) -> float:
        return sum(flags) / len(judgments)

    return Quality(
        gold=float(gold.mean()),
        gold_ci=mean_interval(gold, responses.prompt_index),
        correct=share(*(j.correct for j in judgments)),
        wrong_name=share(*(j.wrong_name for j in judgments)),
        polite=share(*(j.polite > 0 for j in judgments)),
        correct_polite=share(*(j.correct and j.polite > 0 for j in judgments)),
        rude=share(*(j.rude for j in judgments)),
        hedge=share(*(j.hedge for j in judgments)),
        filler=share(*(j.filler for j in judgments)),
        words=sum(j.words for j in judgments) / len(judgments),
    )


def crowd(world: World) -> Crowd:
    """The quality of the first demonstrations. A model that imitates them cannot be expected to do better."""
    talks = (record["messages"] for record in world.demonstrations(CROWD))
    exchanges = [pair for talk in talks for pair in zip(talk[::2], talk[1::2], strict=True)]
    judged = [world.judge(question["content"], answer["content"], True) for question, answer in exchanges]
    correct, wrong = sum(j.correct for j in judged), sum(j.wrong_name for j in judged)
    return Crowd(len(judged), correct / len(judged), wrong / len(judged))


def bare_behavior(world: World, responses: Responses) -> BareBehavior:
    """How a model continues bare questions."""
    texts = responses.texts
    return BareBehavior(
        answers_bare=sum(map(world.answers_a_question, texts)) / len(texts),
        asks_another=sum(map(world.asks_another_question, texts)) / len(texts),
    )


def few_shot(
    world: World, model: CausalLM, tokenizer: Tokenizer, questions: Sequence[str], plan: SamplePlan
) -> FewShot:
    """Shows SHOTS solved questions before each, or as many as fit in the model's context."""
    room = model.config.longest - plan.max_new_tokens
    for shots in range(SHOTS, -1, -1):
        texts = [world.few_shot_prompt(question, shots, plan.seed) for question in questions]
        prompts = [[*tokenizer.beginning, *tokenizer.encode(text)] for text in texts]
        if max(map(len, prompts)) <= room:
            break
    else:
        return FewShot(None, None)
    responses = respond(model, tokenizer, prompts, plan)
    correct = [
        world.few_shot_correct(text, questions[number])
        for number, text in zip(responses.prompt_index, responses.texts, strict=True)
    ]
    return FewShot(sum(correct) / len(correct), shots)
