"""Discrimination against generation: a question's true statement among those with every other value or name."""

from collections.abc import Sequence
from typing import NamedTuple

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


class Choice(NamedTuple):
    """How often the reward model scores the true statement highest.

    reward_model, reward_model_ci  share of questions, 95% interval over them (Wilson)
    chance                         share expected from a random choice: 1/8 if a relation has eight values
    questions                      number of questions
    """

    reward_model: float
    reward_model_ci: list[float]
    chance: float
    questions: int


class NameAccuracy(NamedTuple):
    """Whether the reward model notices whom an answer is about.

    name_accuracy, name_accuracy_ci  share of pairs in which a question's true statement scores higher than the same
                                     words about another name, for every other name of the world; ties count as
                                     half; 95% interval over questions
    """

    name_accuracy: float
    name_accuracy_ci: list[float]


def statements(world: World, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> tuple[Responses, list[int]]:
    """Every plain statement that could answer each prompt, one per value of its relation, and the index of the true
    one among those of its prompt."""
    asked = [world.find(question_of(prompt)) for prompt in prompts]
    values = [world.vocabulary.relations[question.relation].values for question in asked]
    texts = [[world.statement(question, v) for v in offered] for question, offered in zip(asked, values, strict=True)]
    truths = [offered.index(question.answer) for question, offered in zip(asked, values, strict=True)]
    return as_answers(tokenizer, asked, texts), truths


def as_answers(tokenizer: Tokenizer, asked: Sequence[Question], texts: Sequence[Sequence[str]]) -> Responses:
    """Texts, several per question, as finished answers."""
    ids, prompt_index = [], []
    for number, (question, offered) in enumerate(zip(asked, texts, strict=True)):
        for text in offered:
            dialogue = [{"role": "user", "content": question.text}, {"role": "assistant", "content": text}]
            rendered = tokenizer.render(dialogue)
            ids.append([token for token, is_answer in zip(rendered.ids, rendered.mask, strict=True) if is_answer])
            prompt_index.append(number)
    return Responses(ids, [text for offered in texts for text in offered], [True] * len(ids), prompt_index)


def choice_credit(given: Tensor, truth: int) -> float:
    """1 if the true option alone scores highest, 1/t if it ties with others (t in all), else 0.  given: (options,)."""
    best = given == given.max()
    return float(best[truth]) / int(best.sum())


def choice(
    world: World,
    reward: ScalarModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Choice:
    """Scores every statement that could answer each prompt."""
    offered, truths = statements(world, tokenizer, prompts)
    parts = _scored(reward, tokenizer, prompts, offered, tokens_at_once)
    credits = torch.tensor([choice_credit(part, truth) for part, truth in zip(parts, truths, strict=True)])
    return Choice(
        reward_model=float(credits.mean()),
        reward_model_ci=share_interval(credits, range(len(credits))),
        chance=sum(1 / len(part) for part in parts) / len(parts),
        questions=len(prompts),
    )


def by_name(
    world: World,
    reward: ScalarModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> NameAccuracy:
    """Scores the true statement about each prompt's name, and about every other name."""
    asked = [world.find(question_of(prompt)) for prompt in prompts]
    truths = [world.statement(question) for question in asked]
    texts = [
        [truth, *(world.renamed(truth, question.name, other) for other in world.names if other != question.name)]
        for question, truth in zip(asked, truths, strict=True)
    ]
    offered = as_answers(tokenizer, asked, texts)
    given = torch.stack(_scored(reward, tokenizer, prompts, offered, tokens_at_once))
    credits = ranking_credit(given[:, :1] - given[:, 1:]).flatten()
    interval = share_interval(credits, [number for number in range(len(asked)) for _ in world.names[1:]])
    return NameAccuracy(float(credits.mean()), interval)


def _scored(
    reward: ScalarModel, tokenizer: Tokenizer, prompts: Sequence[Prompt], offered: Responses, tokens_at_once: int
) -> list[Tensor]:
    """The scores of the answers offered for each prompt, one tensor per prompt."""
    ids = [list(prompt["ids"]) for prompt in prompts]
    given = scores(reward, ids, offered, pad_id=tokenizer.pad_id, tokens_at_once=tokens_at_once)
    return list(given.split(torch.tensor(offered.prompt_index).bincount().tolist()))
