"""Discriminating against generating: a question's true statement among those with every other value or name."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from components.evaluation.measure.assessment import Prompt, question_of
from components.evaluation.measure.intervals import share_interval
from components.evaluation.measure.policy import TOKENS_AT_ONCE, Responses, scores
from components.functional.estimators import ranking_credit
from components.models.heads import ScalarModel
from components.tokenizer.tokenizer import Tokenizer
from components.world.facts import Question
from components.world.world import World


def statements(world: World, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> tuple[Responses, list[int]]:
    """Every plain statement that could answer each prompt, one per value of its relation, and the place of the true
    one among those of its prompt."""
    asked = [world.find(question_of(prompt)) for prompt in prompts]
    values = [world.vocabulary.relations[question.relation].values for question in asked]
    texts = [[world.statement(one, value) for value in offered] for one, offered in zip(asked, values, strict=True)]
    truths = [offered.index(one.answer) for one, offered in zip(asked, values, strict=True)]
    return as_answers(tokenizer, asked, texts), truths


def as_answers(tokenizer: Tokenizer, asked: Sequence[Question], texts: Sequence[Sequence[str]]) -> Responses:
    """Texts, several for each question, as answers that end."""
    ids, of = [], []
    for number, (question, offered) in enumerate(zip(asked, texts, strict=True)):
        for text in offered:
            dialogue = [{"role": "user", "content": question.text}, {"role": "assistant", "content": text}]
            said = tokenizer.render(dialogue)
            ids.append([token for token, spoken in zip(said.ids, said.mask, strict=True) if spoken])
            of.append(number)
    return Responses(ids, [text for offered in texts for text in offered], [True] * len(ids), of)


def choice_credit(given: Tensor, truth: int) -> float:
    """1 if the true option alone is scored highest, 1/t if t options tie for it, else 0.  given: (options,)."""
    best = given == given.max()
    return float(best[truth]) / int(best.sum())


def choice(
    world: World,
    reward: ScalarModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    ending: str = "",
    *,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> dict[str, Any]:
    """How often the reward model scores the true statement highest; all keys with the ending.

    reward_model, reward_model_ci  share of questions, 95 % interval over them (Wilson)
    chance                         share that a random choice would get: 1/8 where a relation has eight values
    questions                      what the figures rest on
    """
    offered, truths = statements(world, tokenizer, prompts)
    parts = _scored(reward, tokenizer, prompts, offered, tokens_at_once)
    right = torch.tensor([choice_credit(part, truth) for part, truth in zip(parts, truths, strict=True)])
    found = {
        "reward_model": float(right.mean()),
        "reward_model_ci": share_interval(right, range(len(right))),
        "chance": sum(1 / len(part) for part in parts) / len(parts),
        "questions": len(prompts),
    }
    return {f"{name}{ending}": value for name, value in found.items()}


def by_name(
    world: World,
    reward: ScalarModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    ending: str = "",
    *,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> dict[str, Any]:
    """Whether the reward model sees whom an answer speaks of; all keys with the ending.

    name_accuracy, name_accuracy_ci  share of pairs of a question's true statement and the same words about another
                                     name of the world, every other one, whose former scores higher, ties half;
                                     95 % interval over questions
    """
    asked = [world.find(question_of(prompt)) for prompt in prompts]
    truths = [world.statement(question) for question in asked]
    texts = [
        [truth, *(world.renamed(truth, one.name, other) for other in world.names if other != one.name)]
        for one, truth in zip(asked, truths, strict=True)
    ]
    offered = as_answers(tokenizer, asked, texts)
    given = torch.stack(_scored(reward, tokenizer, prompts, offered, tokens_at_once))
    right = ranking_credit(given[:, :1] - given[:, 1:]).flatten()
    interval = share_interval(right, [number for number in range(len(asked)) for _ in world.names[1:]])
    return {f"name_accuracy{ending}": float(right.mean()), f"name_accuracy_ci{ending}": interval}


def _scored(
    reward: ScalarModel, tokenizer: Tokenizer, prompts: Sequence[Prompt], offered: Responses, tokens_at_once: int
) -> list[Tensor]:
    """The scores of the answers that are offered to each prompt, one tensor per prompt."""
    ids = [list(prompt["ids"]) for prompt in prompts]
    given = scores(reward, ids, offered, pad_id=tokenizer.pad_id, tokens_at_once=tokens_at_once)
    return list(given.split(torch.tensor(offered.of).bincount().tolist()))
