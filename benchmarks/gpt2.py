"""The peer called nanoGPT: GPT-2's decoder and AdamW, in plain PyTorch, as nanoGPT's README describes them.

Written from the descriptions, not from its code: pre-norm blocks (Radford et al. 2019, section 2.3), learned positions,
LayerNorm without biases, GELU, no dropout, torch's attention kernel, an output matrix tied to the embedding, weight
decay on matrices alone, fused AdamW.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x_btd: Tensor) -> Tensor:
        heads = self.qkv(self.before_attention(x_btd)).unflatten(-1, (3, self.heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_btd = x_btd + self.out(mixed.transpose(1, 2).flatten(2))
        return x_btd + self.down(F.gelu(self.up(self.before_mlp(x_btd))))


class GPT2(nn.Module):
    """(B, T) ids → (B, T, V) logits, or with targets (B, T) the mean loss in nats."""

    def __init__(self, *, vocabulary: int, context: int, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:  # the two that end a residual branch are smaller, by the number of branches
                nn.init.normal_(
                    weight, std=0.02 / ((2 * layers) ** 0.5 if name.endswith(("out.weight", "down.weight")) else 1)
                )

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        x_btd = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x_btd = block(x_btd)
        logits = F.linear(self.norm(x_btd), self.tokens.weight)
        return logits if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def adamw(model: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float = 0.1) -> torch.optim.AdamW:
    matrices = [weight for weight in model.parameters() if weight.dim() >= 2]
    others = [weight for weight in model.parameters() if weight.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
