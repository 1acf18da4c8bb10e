"""The decoder: tokens → hidden states. Module names are those of Hugging Face's Llama family."""

import torch
from torch import Tensor, nn

from components.models.attention import Mask, attend, mask_of, rotary_tables, rotate
from components.models.cache import KVCache
from components.models.config import GPTConfig
from components.models.layout import Layout


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped key/value heads (Ainslie et al. 2023)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        d, head = config.hidden_size, config.head_dim
        queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
        self.head_dim = head
        self.q_proj = nn.Linear(d, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(d, keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(d, keys, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, d, bias=config.attention_output_bias)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(head, eps=config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(head, eps=config.rms_norm_eps)
        self.qk_norm = config.qk_norm

    def forward(self, x_btd: Tensor, rotary: tuple[Tensor, Tensor], mask: Mask, cache: KVCache | None, layer: int):
        split = (*x_btd.shape[:2], -1, self.head_dim)
        q = self.q_proj(x_btd).view(split)
        k = self.k_proj(x_btd).view(split)
        v = self.v_proj(x_btd).view(split).transpose(1, 2)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q = rotate(q.transpose(1, 2), *rotary).to(v.dtype)
        k = rotate(k.transpose(1, 2), *rotary).to(v.dtype)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        out_bhtd = attend(q, k, v, mask)
        return self.o_proj(out_bhtd.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)) (Shazeer 2020, eq. 6)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        d, width = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(d, width, bias=False)
        self.up_proj = nn.Linear(d, width, bias=False)
        self.down_proj = nn.Linear(width, d, bias=False)

    def forward(self, x_btd: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x_btd)) * self.up_proj(x_btd))


class DecoderLayer(nn.Module):
    """Pre-norm residual block: attention, then MLP."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_btd: Tensor, rotary: tuple[Tensor, Tensor], mask: Mask, cache: KVCache | None, layer: int):
        x_btd = x_btd + self.dropout(self.self_attn(self.input_layernorm(x_btd), rotary, mask, cache, layer))
        return x_btd + self.dropout(self.mlp(self.post_attention_layernorm(x_btd)))


class GPT(nn.Module):
    """Embedding, decoder layers, final norm: (B, T) token ids → (B, T, D) hidden states."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids: Tensor, layout: Layout | None = None, cache: KVCache | None = None) -> Tensor:
        """input_ids (B, T) → hidden states (B, T, D).

        layout: packed rows; None: every row is one text from its first token on.
        cache: the tokens continue those it holds, and their keys and values are added to it.
        """
        count = input_ids.shape[1]
        if cache is not None:
            positions, mask = cache.positions(count), cache.allowed(count)[:, None]
        elif layout is not None:
            positions, mask = layout.positions, mask_of(layout)
        else:
            positions, mask = torch.arange(count, device=input_ids.device)[None], None
        rotary = rotary_tables(positions, head_dim=self.config.head_dim, theta=self.config.rope_theta)
        x_btd = self.dropout(self.embed_tokens(input_ids))
        for number, layer in enumerate(self.layers):
            x_btd = layer(x_btd, rotary, mask, cache, number)
        if cache is not None:
            cache.advance(count)
        return self.norm(x_btd)


def initialise(module: nn.Module, config: GPTConfig) -> None:
    """Fills every weight: N(0, initializer_range), projections back into the residual stream × 1/√(2L), biases 0.

    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """
    for name, parameter in module.named_parameters():
        if parameter.ndim < 2:
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.ones_(parameter)
            continue
        std = config.initializer_range
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std /= (2 * config.num_hidden_layers) ** 0.5
        nn.init.normal_(parameter, std=std)
