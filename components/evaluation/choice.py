"""Discriminating against generating: a question's true statement among those with every other value."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from components.evaluation.assessment import Prompt, question_of
from components.evaluation.intervals import share_interval
from components.evaluation.policy import Responses, scores
from components.models.heads import ScalarModel
from components.tokenizer.tokenizer import Tokenizer
from components.world.world import World


def statements(world: World, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> tuple[Responses, list[int]]:
    """Every plain statement that could answer each prompt, one per value of its relation, and the place of the true
    one among those of its prompt."""
    texts, ids, of, truths = [], [], [], []
    for number, prompt in enumerate(prompts):
        question = world.find(question_of(prompt))
        values = world.vocabulary.relations[question.relation].values
        asked = [{"role": "user", "content": question.text}]
        for value in values:
            text = world.statement(question, value)
            said = tokenizer.render([*asked, {"role": "assistant", "content": text}])
            texts.append(text)
            ids.append([token for token, spoken in zip(said.ids, said.mask, strict=True) if spoken])
        of += [number] * len(values)
        truths.append(values.index(question.answer))
    return Responses(ids, texts, [True] * len(ids), of), truths


def choice_credit(given: Tensor, truth: int) -> float:
    """1 if the true option alone is scored highest, 1/t if t options tie for it, else 0.  given: (options,)."""
    best = given == given.max()
    return float(best[truth]) / int(best.sum())


def choice(
    world: World, reward: ScalarModel, tokenizer: Tokenizer, prompts: Sequence[Prompt], ending: str = ""
) -> dict[str, Any]:
    """How often the reward model scores the true statement highest; all keys with the ending.

    reward_model, reward_model_ci  share of questions, 95 % interval over them (Wilson)
    chance                         share that a random choice would get: 1/8 where a relation has eight values
    questions                      what the figures rest on
    """
    offered, truths = statements(world, tokenizer, prompts)
    given = scores(reward, [list(prompt["ids"]) for prompt in prompts], offered, pad_id=tokenizer.pad_id)
    of = torch.tensor(offered.of)
    parts = [given[of == number] for number in range(len(prompts))]
    right = torch.tensor([choice_credit(part, truth) for part, truth in zip(parts, truths, strict=True)])
    found = {
        "reward_model": float(right.mean()),
        "reward_model_ci": share_interval(right, range(len(right))),
        "chance": sum(1 / len(part) for part in parts) / len(parts),
        "questions": len(prompts),
    }
    return {f"{name}{ending}": value for name, value in found.items()}
