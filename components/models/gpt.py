"""The decoder: tokens → hidden states. Module names are those of Hugging Face's Llama family."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from components.functional.shapes import dtype_of_products, rows_of_product
from components.models.attention.attend import mask_of
from components.models.attention.kv_cache import KVCache, Steps
from components.models.attention.layout import Layout
from components.models.attention.rotary import rotary_tables
from components.models.attention.segments import Segments, back_in_rows
from components.models.config import GPTConfig
from components.models.layer import MLP, Attention, DecoderLayer, decode, new_norm
from components.models.lora import Adapters
from components.models.prepacked import rms_norm


class GPT(nn.Module):
    """Embedding, decoder layers, final norm: (B, T) token ids → (B, T, D) hidden states."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = new_norm(config)
        self.dropout = nn.Dropout(config.dropout)
        self.embedding_noise = 0.0  # in training: alpha of `noisy`
        self.recompute = False  # in training: save only each layer's input, recompute the layer in the backward pass

    def forward(
        self,
        input_ids: Tensor,
        layout: Layout | None = None,
        cache: KVCache | Steps | None = None,
        adapters: Adapters | None = None,
    ) -> Tensor:
        """input_ids (B, T) → hidden states (B, T, D).

        layout: of packed rows; None: every row is a single text from its first token on.
        cache: the tokens continue those in it, and their keys and values are added to it; it has its own weights.
        adapters: of the model that uses this trunk.
        """
        if cache is not None:
            return self.norm(self._continued(input_ids, cache))
        count = input_ids.shape[1]
        if layout is not None:
            positions, mask = layout.positions, mask_of(layout, self.config.head_dim)
        else:
            positions, mask = torch.arange(count, device=input_ids.device)[None], None
        if isinstance(mask, Segments):  # nothing is computed for filler
            weight = self.embed_tokens.weight
            mask = mask.padded(rows_of_product(mask.real, weight.device, dtype_of_products(weight)))
            whole, input_ids, positions = input_ids, *(x.flatten()[None, mask.tokens] for x in (input_ids, positions))
        rotary, config = None, self.config
        if config.positions == "rotary":
            rotary = rotary_tables(
                positions, head_dim=config.head_dim, theta=config.rope_theta, scaling=config.rope_scaling
            )
        x_btd = self._embedded(input_ids, positions)
        if self.embedding_noise and self.training:
            lengths = torch.full_like(positions, count) if layout is None else layout.lengths()
            if isinstance(mask, Segments):
                lengths = lengths.flatten()[None, mask.tokens]
            x_btd = noisy(x_btd, lengths, alpha=self.embedding_noise)
        x_btd = self.dropout(x_btd)
        for number, layer in enumerate(self.layers):
            arguments = (rotary, mask, adapters.layers[number] if adapters else None)
            if self.recompute and torch.is_grad_enabled():
                x_btd = checkpoint(layer, x_btd, *arguments, use_reentrant=False)
            else:
                x_btd = layer(x_btd, *arguments)
        x_btd = self.norm(x_btd)
        return back_in_rows(x_btd, mask, whole.shape) if isinstance(mask, Segments) else x_btd

    def freeze_(self) -> None:
        """Turns off all gradients; projections that are multiplied as one matrix are then stored as one, not copied."""
        self.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, Attention | MLP):
                module.frozen = True

    def _embedded(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        x_btd = self.embed_tokens(input_ids)
        return x_btd + self.embed_positions(positions) if self.config.positions == "learned" else x_btd

    def _continued(self, input_ids: Tensor, cache: KVCache | Steps) -> Tensor:
        positions, rotary = cache.open(input_ids.shape[1])
        x_btd = self._embedded(input_ids, positions)
        with torch.autocast(x_btd.device.type, enabled=False):  # the cache's weights are in the dtype of the products
            for number, weights in enumerate(cache.weights):
                attention = partial(cache.attend, number)
                x_btd = decode(x_btd, weights, self.config, rotary, attention, nn.Identity(), rms_norm)
        cache.close(input_ids.shape[1])
        return x_btd


def noisy(x_btd: Tensor, lengths: Tensor, *, alpha: float) -> Tensor:
    """Embeddings (B, T, D) plus uniform noise in ±alpha/√(L·D), from torch's global generator.

    lengths (B, T): L, the number of tokens in each token's own text: a text in a packed row has as much noise as
    alone. Source: Jain et al. 2023 (NEFTune), algorithm 1.
    """
    bounds = alpha * (lengths * x_btd.shape[-1]).to(x_btd.dtype).rsqrt()
    return x_btd + torch.empty_like(x_btd).uniform_(-1, 1) * bounds[..., None]


def initialize(module: nn.Module, config: GPTConfig) -> None:
    """Fills every weight: N(0, initializer_range), outputs of residual branches scaled by 1/√(2L); biases 0, norms 1.

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
