"""The table world's rewards as a reward model that reads a tokenizer's ids."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from components.data import builtin
from components.data.errors import SourceError
from components.models.table import START, TableReward
from components.tokenizer.tokenizer import Tokenizer
from components.world.table import TableWorld

ELSEWHERE = 1  # the state after anything that is neither a prompt of the world nor an answer in its table


def table_reward(tokenizer: str, world: dict[str, Any]) -> TableReward:
    """The reward model whose score is exactly the world's reward of the response so far.

    tokenizer: folder of an artifact. world: fields of a world of kind "table". What an answer is worth goes by its
    text, however it is cut into tokens; special tokens spell nothing. Raises SourceError for another kind of world.
    """
    made, known = builtin.make_world(world), Tokenizer.load(tokenizer)
    if not isinstance(made, TableWorld):
        raise SourceError(f"reward=table: got world.kind {world.get('kind')!r}, expected 'table'. Add world=table")
    prompts = [known.render_prompt([{"role": "user", "content": question}]) for question in made.rewards]
    return reward_automaton(prompts, list(made.rewards.values()), known.codec.spelling, other=made.other)


def reward_automaton(
    prompts: Sequence[Sequence[int]], tables: Sequence[Mapping[str, float]], spellings: Sequence[bytes], *, other: float
) -> TableReward:
    """States for every place within a prompt and every text that begins an answer to it; all else is one state.

    prompts: ids, none of which begins another. tables: of each prompt, answer → reward. spellings: the bytes that each
    id of the vocabulary adds to a text, none for a special one. other: the score of what is not in the table.
    """
    if any(a != b and list(a) == list(b[: len(a)]) for a in prompts for b in prompts) or not prompts:
        raise ValueError("reward_automaton: expected prompts none of which is the beginning of another")
    moves, scores = [[ELSEWHERE] * len(spellings) for _ in (START, ELSEWHERE)], [other, other]

    def added(score: float) -> int:
        moves.append([ELSEWHERE] * len(spellings))
        scores.append(score)
        return len(scores) - 1

    for ids, table in zip(prompts, tables, strict=True):
        state = START
        for token in ids:
            if moves[state][token] == ELSEWHERE:
                moves[state][token] = added(other)
            state = moves[state][token]
        scores[state] = table.get("", other)
        states = {b"": state}
        begun = {answer.encode()[:end] for answer in table for end in range(1, len(answer.encode()) + 1)}
        states |= {text: added(table.get(text.decode(errors="replace"), other)) for text in sorted(begun)}
        for text, state in states.items():
            moves[state] = [states.get(text + spelling, ELSEWHERE) for spelling in spellings]
    return TableReward(torch.tensor(moves), torch.tensor(scores))
