"""A reward model that is a table: an automaton reads the tokens, and the state that it ends in has a score."""

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
    """ScalarModel's interface without a network: the tokens read so far lead to a state, and every state has a score.

    transitions: (N, V) int64, the next state by state and token. scores: (N,) float, of the states.
    Both are buffers; nothing here has a gradient. Raises ValueError if shapes differ or a next state is not one of N.
    """

    transitions: Tensor
    scores: Tensor

    def __init__(self, transitions: Tensor, scores: Tensor) -> None:
        super().__init__()
        states = len(scores)
        if transitions.dim() != 2 or len(transitions) != states:
            raise ValueError(f"TableReward: expected transitions ({states}, V), got {tuple(transitions.shape)}")
        if transitions.min() < 0 or transitions.max() >= states:
            raise ValueError(f"TableReward: expected transitions to states 0 to {states - 1}, got one outside")
        self.register_buffer("transitions", transitions)
        self.register_buffer("scores", scores.float())

    def forward(self, input_ids: Tensor, layout: Layout | None = None) -> Tensor:
        """(B, T) ids → (B, T) fp32: the score of each token's own text up to that token, its trunk included.

        layout None: every row is a single text from its first token on.
        """
        batch, length = input_ids.shape
        no_segment = length  # a column after the real segments', for filler and for segments without a parent
        segments, parents = torch.zeros_like(input_ids), torch.full_like(input_ids, -1)
        if layout is not None:
            segments, parents = layout.segments, layout.parents
        segments, parents = (torch.where(x < 0, no_segment, x) for x in (segments, parents))
        reached = input_ids.new_full((batch, length + 1), START)  # the state of every segment so far
        begun = torch.zeros_like(reached, dtype=torch.bool)
        rows = torch.arange(batch, device=input_ids.device)
        states = []
        for t in range(length):
            own = segments[:, t]
            before = torch.where(begun[rows, own], own, parents[:, t])
            states.append(self.transitions[reached[rows, before], input_ids[:, t]])
            reached[rows, own] = torch.where(own == no_segment, START, states[-1])
            begun[rows, own] = True
        return self.scores[torch.stack(states, dim=1)]


ELSEWHERE = 1  # the state after anything that is neither a prompt of the world nor an answer in its table


def table_reward(tokenizer: str, world: dict[str, Any]) -> TableReward:
    """The reward model whose score is exactly the world's reward of the response so far.

    tokenizer: folder of an artifact. world: fields of a world of kind "table". An answer's reward depends on its text
    alone, however it is split into tokens; special tokens add no text. Raises SourceError for another kind of world.
    """
    table_world, vocabulary = builtin.make_world(world), Tokenizer.load(tokenizer)
    if not isinstance(table_world, TableWorld):
        raise SourceError(f"reward=table: got world.kind {world.get('kind')!r}, expected 'table'. Add world=table")
    prompts = [vocabulary.render_prompt([{"role": "user", "content": question}]) for question in table_world.rewards]
    tables = list(table_world.rewards.values())
    return reward_automaton(prompts, tables, vocabulary.codec.spelling, other=table_world.other)


def reward_automaton(
    prompts: Sequence[Sequence[int]], tables: Sequence[Mapping[str, float]], spellings: Sequence[bytes], *, other: float
) -> TableReward:
    """One state for every prefix of a prompt, one for every prefix of an answer to it, and one for everything else.

    prompts: token ids, at least one prompt, none a prefix of another. tables: of each prompt, answer → reward.
    spellings: the bytes that each id of the vocabulary adds to a text, empty for a special token. other: the score of
    every text that is not in the table. Raises ValueError for no prompt, or a prompt that is a prefix of another.
    """
    if any(a != b and list(a) == list(b[: len(a)]) for a in prompts for b in prompts) or not prompts:
        raise ValueError("reward_automaton: expected at least one prompt, and none that is a prefix of another")
    moves, scores = [[ELSEWHERE] * len(spellings) for _ in (START, ELSEWHERE)], [other, other]

    def add_state(score: float) -> int:
        moves.append([ELSEWHERE] * len(spellings))
        scores.append(score)
        return len(scores) - 1

    for ids, table in zip(prompts, tables, strict=True):
        state = START
        for token in ids:
            if moves[state][token] == ELSEWHERE:
                moves[state][token] = add_state(other)
            state = moves[state][token]
        scores[state] = table.get("", other)
        states = {b"": state}
        prefixes = {answer.encode()[:end] for answer in table for end in range(1, len(answer.encode()) + 1)}
        states |= {text: add_state(table.get(text.decode(errors="replace"), other)) for text in sorted(prefixes)}
        for text, state in states.items():
            moves[state] = [states.get(text + spelling, ELSEWHERE) for spelling in spellings]
    return TableReward(torch.tensor(moves), torch.tensor(scores))
