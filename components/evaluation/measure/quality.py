"""True quality: the built-in world's judgments of answers, and how a base model responds to questions."""

from collections.abc import Sequence
from typing import Any

import torch

from components.evaluation.measure.intervals import mean_interval
from components.evaluation.measure.policy import Responses, SamplePlan, respond
from components.models.heads import CausalLM
from components.tokenizer.tokenizer import Tokenizer
from components.world.gold import Judgment
from components.world.world import World

SHOTS = 4  # solved examples in a few-shot prompt
CROWD = 1000  # demonstrations that the crowd is judged by


def judgments(world: World, questions: Sequence[str], responses: Responses) -> list[Judgment]:
    """The judgment of every response; questions: one per prompt."""
    return [
        world.judge(questions[number], text, finished)
        for number, text, finished in zip(responses.prompt_index, responses.texts, responses.finished, strict=True)
    ]


def quality(judgments: Sequence[Judgment], responses: Responses) -> dict[str, Any]:
    """Means over all responses; shares are of responses.

    gold               worth according to the judge, at most 1.25
    gold_ci            95% interval of gold by Student's t over question means; None if questions do not differ
    correct            share that states the true value of the name asked about, and no other (world.judge)
    wrong_name         share that names someone else
    polite             share with a polite phrase; correct_polite: correct as well
    rude, hedge, filler   share with such a phrase
    words              per answer, including punctuation marks
    """
    gold = torch.tensor([j.gold for j in judgments], dtype=torch.float64)

    def share(*flags: bool) -> float:
        return sum(flags) / len(judgments)

    return {
        "gold": float(gold.mean()),
        "gold_ci": mean_interval(gold, responses.prompt_index),
        "correct": share(*(j.correct for j in judgments)),
        "wrong_name": share(*(j.wrong_name for j in judgments)),
        "polite": share(*(j.polite > 0 for j in judgments)),
        "correct_polite": share(*(j.correct and j.polite > 0 for j in judgments)),
        "rude": share(*(j.rude for j in judgments)),
        "hedge": share(*(j.hedge for j in judgments)),
        "filler": share(*(j.filler for j in judgments)),
        "words": sum(j.words for j in judgments) / len(judgments),
    }


def crowd(world: World) -> dict[str, Any]:
    """The quality of the first demonstrations: answers, their number; the shares correct and wrong_name.

    A model that imitates them cannot be expected to do better.
    """
    talks = (record["messages"] for record in world.demonstrations(CROWD))
    exchanges = [pair for talk in talks for pair in zip(talk[::2], talk[1::2], strict=True)]
    judged = [world.judge(question["content"], answer["content"], True) for question, answer in exchanges]
    shares = {name: sum(getattr(j, name) for j in judged) / len(judged) for name in ("correct", "wrong_name")}
    return {"answers": len(judged), **shares}


def bare_behavior(world: World, responses: Responses) -> dict[str, float]:
    """For continuations of bare questions: answers_bare, share that answers; asks_another, share that asks again."""
    texts = responses.texts
    return {
        "answers_bare": sum(map(world.answers_a_question, texts)) / len(texts),
        "asks_another": sum(map(world.asks_another_question, texts)) / len(texts),
    }


def few_shot(
    world: World, model: CausalLM, tokenizer: Tokenizer, questions: Sequence[str], plan: SamplePlan
) -> dict[str, Any]:
    """few_shot: share of correct continuations, at temperature 1, of prompts that first show `shots` solved questions.

    shots is SHOTS, or as many as fit in the model's context. Both are None if not even the question fits.
    """
    room = model.config.longest - plan.max_new_tokens
    for shots in range(SHOTS, -1, -1):
        texts = [world.few_shot_prompt(question, shots, plan.seed) for question in questions]
        prompts = [[*tokenizer.beginning, *tokenizer.encode(text)] for text in texts]
        if max(map(len, prompts)) <= room:
            break
    else:
        return {"few_shot": None, "shots": None}
    responses = respond(model, tokenizer, prompts, plan)
    correct = [
        world.few_shot_correct(text, questions[number])
        for number, text in zip(responses.prompt_index, responses.texts, strict=True)
    ]
    return {"few_shot": sum(correct) / len(correct), "shots": shots}
