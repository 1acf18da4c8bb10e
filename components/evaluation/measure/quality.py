"""True quality: what the built-in world's judge finds in answers, and what a base model makes of questions."""

from collections.abc import Sequence
from typing import Any

import torch

from components.evaluation.measure.intervals import mean_interval
from components.evaluation.measure.policy import Responses, SamplePlan, respond
from components.models.heads import CausalLM
from components.tokenizer.tokenizer import Tokenizer
from components.world.gold import Judgement
from components.world.world import World

SHOTS = 4  # solved examples in a few-shot prompt
CROWD = 1000  # demonstrations that the crowd is known by


def judgements(world: World, questions: Sequence[str], responses: Responses) -> list[Judgement]:
    """The judge's finding on every response; questions: one per prompt."""
    return [
        world.judge(questions[number], text, finished)
        for number, text, finished in zip(responses.of, responses.texts, responses.finished, strict=True)
    ]


def quality(found: Sequence[Judgement], responses: Responses) -> dict[str, Any]:
    """Means over all responses; shares are of responses.

    gold               the judge's worth, at most 1.25
    gold_ci            95 % interval of gold by Student's t over question means; None where questions do not differ
    correct            share that states the true value, and no other, of the name asked about (world.judge)
    wrong_name         share that names somebody else
    polite             share with a polite phrase; correct_polite: right as well
    rude, hedge, filler   share with such a phrase
    words              per answer, punctuation marks included
    """
    gold = torch.tensor([one.gold for one in found], dtype=torch.float64)

    def share(*flags: bool) -> float:
        return sum(flags) / len(found)

    return {
        "gold": float(gold.mean()),
        "gold_ci": mean_interval(gold, responses.of),
        "correct": share(*(one.correct for one in found)),
        "wrong_name": share(*(one.wrong_name for one in found)),
        "polite": share(*(one.polite > 0 for one in found)),
        "correct_polite": share(*(one.correct and one.polite > 0 for one in found)),
        "rude": share(*(one.rude for one in found)),
        "hedge": share(*(one.hedge for one in found)),
        "filler": share(*(one.filler for one in found)),
        "words": sum(one.words for one in found) / len(found),
    }


def crowd(world: World) -> dict[str, Any]:
    """What the judge finds in the first demonstrations: answers, their number; shares correct and wrong_name.

    A model that imitates them cannot be asked for more.
    """
    talks = (record["messages"] for record in world.demonstrations(CROWD))
    exchanges = [pair for talk in talks for pair in zip(talk[::2], talk[1::2], strict=True)]
    found = [world.judge(asked["content"], said["content"], True) for asked, said in exchanges]
    shares = {name: sum(getattr(one, name) for one in found) / len(found) for name in ("correct", "wrong_name")}
    return {"answers": len(found), **shares}


def bare_behaviour(world: World, responses: Responses) -> dict[str, float]:
    """Of continuations of bare questions: answers_bare, share that answers; asks_another, share that asks on."""
    texts = responses.texts
    return {
        "answers_bare": sum(map(world.answers_a_question, texts)) / len(texts),
        "asks_another": sum(map(world.asks_another_question, texts)) / len(texts),
    }


def few_shot(
    world: World, model: CausalLM, tokenizer: Tokenizer, questions: Sequence[str], plan: SamplePlan
) -> dict[str, Any]:
    """few_shot: share of right continuations, at temperature 1, of prompts that show `shots` solved questions first.

    shots is SHOTS, or as many as fit in the model's context. Both are None where not even the question fits.
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
    right = [
        world.few_shot_correct(text, questions[number])
        for number, text in zip(responses.of, responses.texts, strict=True)
    ]
    return {"few_shot": sum(right) / len(right), "shots": shots}
