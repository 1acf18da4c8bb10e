"""A reward model that is a table: it reads tokens as an automaton does and scores the state it is in."""

import torch
from torch import Tensor, nn

from components.models.layout import Layout

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
