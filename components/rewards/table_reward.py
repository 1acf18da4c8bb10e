"""A reward model that is a table: it reads tokens as an automaton and scores the state that it ends in."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from components.data.records.errors import SourceError
from components.data.sources import builtin
from components.models.attention.layout import Layout
from components.tokenizer.tokenizer import Tokenizer
from components.world.table_world import TableWorld

START = 0  # the state before the first token of a text


class TableReward(nn.Module):
    """ScalarModel's interface without a network: what has been read of a text is a state, and every state has a score.

    transitions: (N, V) int64, the state after each token in each state. scores: (N,) float, of the states.
    Neither is a parameter; nothing here takes a gradient. Raises ValueError if shapes differ or a state is unknown.
    """

    transitions: Tensor
    scores: Tensor

    def __init__(self, transitions: Tensor, scores: Tensor) -> None:
        super().__init__()
        states = len(scores)
        if transitions.dim() != 2 or len(transitions) != states:
            raise ValueError(f"TableReward: expected transitions ({states}, V), got {tuple(transitions.shape)}")
        if transitions.min() < 0 or transitions.max() >= states:
            raise ValueError(f"TableReward: transitions lead outside the {states} states")
        self.register_buffer("transitions", transitions)
        self.register_buffer("scores", scores.float())

    def forward(self, input_ids: Tensor, layout: Layout | None = None) -> Tensor:
        """(B, T) ids → (B, T) fp32: the score of each token's own text up to it, read through the trunk it continues.

        layout None: every row is one text from its first token on.
        """
        batch, length = input_ids.shape
        nowhere = length  # a column past the real segments', for filler and for what continues nothing
        segments, parents = torch.zeros_like(input_ids), torch.full_like(input_ids, -1)
        if layout is not None:
            segments, parents = layout.segments, layout.parents
        segments, parents = (torch.where(x < 0, nowhere, x) for x in (segments, parents))
        reached = input_ids.new_full((batch, length + 1), START)  # by every segment so far
        begun = torch.zeros_like(reached, dtype=torch.bool)
        rows = torch.arange(batch, device=input_ids.device)
        states = []
        for t in range(length):
            own = segments[:, t]
            before = torch.where(begun[rows, own], own, parents[:, t])
            states.append(self.transitions[reached[rows, before], input_ids[:, t]])
            reached[rows, own] = torch.where(own == nowhere, START, states[-1])
            begun[rows, own] = True
        return self.scores[torch.stack(states, dim=1)]


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
