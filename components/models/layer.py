"""One decoder layer: its weights as stored and as multiplied, and the computation with them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.functional.shapes import dtype_of_products
from components.models.attention.attend import Mask, attend
from components.models.attention.rotary import rotate
from components.models.config import GPTConfig
from components.models.lora import LayerAdapters
from components.models.prepacked import prepacked
from components.models.projection import Projection, project, project_gated, project_normed, recomputes


class LayerWeights(NamedTuple):
    """One layer's weights as they are multiplied: projections that read the same input joined into one matrix."""

    attention_norm: Tensor
    qkv: Projection
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Projection
    mlp_norm: Tensor
    gate_up: Projection  # only up in an MLP without a gate
    down: Projection
    attention_norm_bias: Tensor | None = None
    mlp_norm_bias: Tensor | None = None


class Attention(nn.Module):
    """The weights of causal self-attention with rotary positions and grouped key/value heads (Ainslie et al. 2023)."""

    frozen: bool = False  # see GPT.freeze_

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
    """The weights of SwiGLU: down(silu(gate(x)) · up(x)) (Shazeer 2020, eq. 6); or down(gelu(up(x))) with biases."""

    frozen: bool = False  # see GPT.freeze_

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        d, width = config.hidden_size, config.intermediate_size
        gated = config.mlp == "swiglu"
        if gated:
            self.gate_proj = nn.Linear(d, width, bias=False)
        self.up_proj = nn.Linear(d, width, bias=not gated)
        self.down_proj = nn.Linear(width, d, bias=not gated)


class DecoderLayer(nn.Module):
    """Pre-norm residual block: attention, then MLP."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = new_norm(config)
        self.post_attention_layernorm = new_norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def weights(self, adapters: LayerAdapters | None = None) -> LayerWeights:
        """The weights as they are multiplied. Every call copies the projections to join them, which is cheap compared
        with a training batch. Under autocast the copies are in its dtype, so that neither pass casts them again."""
        attention, mlp = self.self_attn, self.mlp
        norms = (self.input_layernorm, self.post_attention_layernorm)
        return LayerWeights(
            attention_norm=norms[0].weight,
            qkv=_joined(attention, ("q_proj", "k_proj", "v_proj"), adapters),
            q_norm=attention.q_norm.weight if self.config.qk_norm else None,
            k_norm=attention.k_norm.weight if self.config.qk_norm else None,
            out=_joined(attention, ("o_proj",), adapters),
            mlp_norm=norms[1].weight,
            gate_up=_joined(mlp, ("gate_proj", "up_proj") if self.config.mlp == "swiglu" else ("up_proj",), adapters),
            down=_joined(mlp, ("down_proj",), adapters),
            attention_norm_bias=norms[0].bias if isinstance(norms[0], nn.LayerNorm) else None,
            mlp_norm_bias=norms[1].bias if isinstance(norms[1], nn.LayerNorm) else None,
        )

    def forward(
        self,
        x_btd: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Mask,
        adapters: LayerAdapters | None = None,
    ) -> Tensor:
        """(B, T, D) → (B, T, D). rotary: cos and sin by position; None if positions are learned. mask: see `attend`."""
        weights = self.weights(adapters)
        return decode(x_btd, weights, self.config, rotary, partial(attend, mask=mask), self.dropout)


def _joined(module: Attention | MLP, names: Sequence[str], adapters: LayerAdapters | None) -> Projection:
    parts = [getattr(module, name) for name in names]
    biases = [part.bias for part in parts]
    return Projection(
        _matrix([part.weight for part in parts], in_place=module.frozen),
        None if biases[0] is None else biases[0] if len(parts) == 1 else torch.cat(biases),
        adapters.joined(names) if adapters else None,
        adapters.dropout if adapters else 0.0,
    )


def _matrix(weights: Sequence[Tensor], *, in_place: bool) -> Tensor:
    """The weights stacked by rows; in place: they become views of the joined matrix, which is made only once."""
    if len(weights) == 1:
        return weights[0]
    if not in_place or not all(isinstance(weight, nn.Parameter) for weight in weights):
        return torch.cat([weight.to(dtype_of_products(weight)) for weight in weights])
    rows = [len(weight) for weight in weights]
    width, item = weights[0].shape[1], weights[0].element_size()
    ends = [weight.data_ptr() + weight.numel() * item for weight in weights]
    shared = len({weight.untyped_storage().data_ptr() for weight in weights}) == 1  # adjacent by chance is not enough
    if not shared or ends[:-1] != [weight.data_ptr() for weight in weights[1:]]:
        joined = torch.cat([weight.detach() for weight in weights])
        for weight, part in zip(weights, joined.split(rows), strict=True):
            weight.data = part
    return weights[0].detach().as_strided((sum(rows), width), (width, 1))


def decode(
    x_btd: Tensor,
    weights: LayerWeights,
    config: GPTConfig,
    rotary: tuple[Tensor, Tensor] | None,
    attention: Callable[[Tensor, Tensor, Tensor], Tensor],
    dropout: Callable[[Tensor], Tensor],
    rms_norm: Callable[[Tensor, Tensor, float], Tensor] | None = None,
) -> Tensor:
    """One layer: y = x + attention(norm(x)), then y + mlp(norm(y)).

    x_btd: (B, T, D). attention: a function of q (B, H, T, head_dim), k and v (B, Hkv, T, head_dim).
    rms_norm: in place of torch's; a function of x, the weight and epsilon. Returns (B, T, D).
    """
    eps, norm = config.rms_norm_eps, partial(_norm, config=config, rms_norm=rms_norm)
    queries, keys = config.num_attention_heads, config.num_key_value_heads
    joined = _project_normed(x_btd, weights.attention_norm, weights.attention_norm_bias, weights.qkv, eps, norm)
    heads_bthd = joined.unflatten(-1, (-1, config.head_dim))
    if weights.q_norm is not None and weights.k_norm is not None:
        q, k, v = heads_bthd.split((queries, keys, keys), dim=2)
        qk = torch.cat((norm(q, weights.q_norm), norm(k, weights.k_norm)), dim=2)
    else:
        qk, v = heads_bthd.split((queries + keys, keys), dim=2)
    qk = qk.transpose(1, 2) if rotary is None else rotate(qk.transpose(1, 2), *rotary)
    q, k = qk.to(v.dtype).split((queries, keys), dim=1)
    out_bhtd = attention(q, k, v.transpose(1, 2))
    x_btd = x_btd + dropout(project(out_bhtd.transpose(1, 2).flatten(2), weights.out))
    inner = _project_normed(x_btd, weights.mlp_norm, weights.mlp_norm_bias, weights.gate_up, eps, norm)
    if config.mlp == "swiglu":
        return x_btd + dropout(project_gated(inner, weights.down))
    return x_btd + dropout(project(F.gelu(inner, approximate="tanh"), weights.down))


def for_reading(weights: LayerWeights, dtype: torch.dtype, rows: int) -> LayerWeights:
    """Copies in `dtype` for generation in steps of about `rows` rows, with adapters merged into what they adapt."""

    def copied(part: Tensor | Projection | None) -> Any:
        if not isinstance(part, Projection):
            return None if part is None else prepacked(part, dtype, rows)
        weight = part.weight
        if part.low_rank is not None:
            down, up = part.low_rank
            weight = weight.detach().float() + up.detach().float() @ down.detach().float()
        bias = None if part.bias is None else part.bias.detach().to(dtype)
        return Projection(prepacked(weight, dtype, rows), bias, prepacked=True)

    return LayerWeights(*map(copied, weights))


def new_norm(config: GPTConfig) -> nn.LayerNorm | nn.RMSNorm:
    """A norm over the hidden width, of the config's kind."""
    kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return kind(config.hidden_size, eps=config.rms_norm_eps)


def _norm(
    x: Tensor,
    weight: Tensor,
    *,
    config: GPTConfig,
    rms_norm: Callable[[Tensor, Tensor, float], Tensor] | None,
    bias: Tensor | None = None,
) -> Tensor:
    weight, epsilon = weight.to(x.dtype), config.rms_norm_eps
    if bias is not None:
        return F.layer_norm(x, weight.shape, weight, bias.to(x.dtype), epsilon)
    return rms_norm(x, weight, epsilon) if rms_norm else F.rms_norm(x, weight.shape, weight, epsilon)


def _project_normed(
    x: Tensor, weight: Tensor, bias: Tensor | None, projection: Projection, eps: float, norm: Callable[..., Tensor]
) -> Tensor:
    """The projection of norm(x); weight, bias: the norm's, an RMSNorm if there is no bias."""
    if bias is None and recomputes(x, projection):
        return project_normed(x, weight, eps, projection)
    return project(norm(x, weight, bias=bias).to(projection.weight.dtype), projection)
