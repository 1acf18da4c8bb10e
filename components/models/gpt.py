"""The decoder: tokens → hidden states. Module names are those of Hugging Face's Llama family."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.models.attention import Mask, attend, mask_of, rotary_tables, rotate
from components.models.cache import KVCache
from components.models.config import GPTConfig
from components.models.layout import Layout
from components.models.segments import Segments, back_in_rows


class LayerWeights(NamedTuple):
    """One layer's weights as they are multiplied: projections that read the same input joined into one matrix."""

    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


class Attention(nn.Module):
    """The weights of causal self-attention with rotary positions and grouped key/value heads (Ainslie et al. 2023)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        d, head = config.hidden_size, config.head_dim
        queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
        self.q_proj = nn.Linear(d, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(d, keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(d, keys, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, d, bias=config.attention_output_bias)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(head, eps=config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(head, eps=config.rms_norm_eps)


class MLP(nn.Module):
    """The weights of SwiGLU: down(silu(gate(x)) · up(x)) (Shazeer 2020, eq. 6)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        d, width = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(d, width, bias=False)
        self.up_proj = nn.Linear(d, width, bias=False)
        self.down_proj = nn.Linear(width, d, bias=False)


class DecoderLayer(nn.Module):
    """Pre-norm residual block: attention, then MLP."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def weights(self) -> LayerWeights:
        """Joined anew at every call: a copy of the projections, little beside a training batch."""
        attention, mlp = self.self_attn, self.mlp
        inward = (attention.q_proj, attention.k_proj, attention.v_proj)
        return LayerWeights(
            attention_norm=self.input_layernorm.weight,
            qkv=torch.cat([projection.weight for projection in inward]),
            qkv_bias=torch.cat([projection.bias for projection in inward]) if self.config.attention_bias else None,
            q_norm=attention.q_norm.weight if self.config.qk_norm else None,
            k_norm=attention.k_norm.weight if self.config.qk_norm else None,
            out=attention.o_proj.weight,
            out_bias=attention.o_proj.bias,
            mlp_norm=self.post_attention_layernorm.weight,
            gate_up=torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)),
            down=mlp.down_proj.weight,
        )

    def forward(self, x_btd: Tensor, rotary: tuple[Tensor, Tensor], mask: Mask) -> Tensor:
        return decode(x_btd, self.weights(), self.config, rotary, partial(attend, mask=mask), self.dropout)


def decode(
    x_btd: Tensor,
    weights: LayerWeights,
    config: GPTConfig,
    rotary: tuple[Tensor, Tensor],
    attention: Callable[[Tensor, Tensor, Tensor], Tensor],
    dropout: Callable[[Tensor], Tensor],
) -> Tensor:
    """One layer: x + attention(norm(x)), then + mlp(norm(that)); attention: of q, k, v, each (B, heads, T, D)."""
    queries, keys = config.num_attention_heads, config.num_key_value_heads
    normed = _norm(x_btd, weights.attention_norm, config).to(weights.qkv.dtype)
    heads_bthd = F.linear(normed, weights.qkv, weights.qkv_bias).unflatten(-1, (-1, config.head_dim))
    if weights.q_norm is not None:
        q, k, v = heads_bthd.split((queries, keys, keys), dim=2)
        qk = torch.cat((_norm(q, weights.q_norm, config), _norm(k, weights.k_norm, config)), dim=2)
    else:
        qk, v = heads_bthd.split((queries + keys, keys), dim=2)
    q, k = rotate(qk.transpose(1, 2), *rotary).to(v.dtype).split((queries, keys), dim=1)
    out_bhtd = attention(q, k, v.transpose(1, 2))
    x_btd = x_btd + dropout(F.linear(out_bhtd.transpose(1, 2).flatten(2), weights.out, weights.out_bias))
    normed = _norm(x_btd, weights.mlp_norm, config).to(weights.gate_up.dtype)
    gate, up = F.linear(normed, weights.gate_up).chunk(2, dim=-1)
    return x_btd + dropout(F.linear(F.silu(gate) * up, weights.down))


def for_reading(weights: LayerWeights, dtype: torch.dtype) -> LayerWeights:
    """Copies in `dtype` for generation."""
    return LayerWeights(*(None if weight is None else stored_by_columns(weight, dtype) for weight in weights))


def stored_by_columns(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy; of a matrix by columns, which the product with a few rows reads three times as fast on a processor."""
    weight = weight.detach().to(dtype)
    return weight.t().contiguous().t() if weight.dim() == 2 else weight


def _norm(x: Tensor, weight: Tensor, config: GPTConfig) -> Tensor:
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), config.rms_norm_eps)


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
        if cache is not None:
            return self.norm(self._continued(input_ids, cache))
        count = input_ids.shape[1]
        if layout is not None:
            positions, mask = layout.positions, mask_of(layout)
        else:
            positions, mask = torch.arange(count, device=input_ids.device)[None], None
        if isinstance(mask, Segments):  # filler is not computed at all
            whole, input_ids, positions = input_ids, *(x.flatten()[None, mask.tokens] for x in (input_ids, positions))
        rotary = rotary_tables(positions, head_dim=self.config.head_dim, theta=self.config.rope_theta)
        x_btd = self.dropout(self.embed_tokens(input_ids))
        for layer in self.layers:
            x_btd = layer(x_btd, rotary, mask)
        x_btd = self.norm(x_btd)
        return back_in_rows(x_btd, mask, whole.shape) if isinstance(mask, Segments) else x_btd

    def _continued(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        rotary = cache.open(input_ids.shape[1])
        x_btd = self.embed_tokens(input_ids)
        with torch.autocast(x_btd.device.type, enabled=False):  # the cache's weights are in the type of the products
            for number, weights in enumerate(cache.weights):
                x_btd = decode(x_btd, weights, self.config, rotary, partial(cache.attend, number), nn.Identity())
        cache.close(input_ids.shape[1])
        return x_btd


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
