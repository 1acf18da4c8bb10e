"""Heads on a trunk: CausalLM predicts tokens, ScalarModel scores them."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from components.models.attention.kv_cache import KVCache, Steps
from components.models.attention.layout import Layout
from components.models.config import GPTConfig
from components.models.gpt import GPT, initialize
from components.models.layer import DecoderLayer, for_reading
from components.models.lora import Adaptable, LayerAdapters
from components.models.prepacked import prepacked, product
from components.models.shards import in_shards


class Vocabulary(nn.Linear):
    """The output matrix: hidden states (…, D) → logits (…, V), −inf for the config's unused_ids.

    A vocabulary can be padded beyond the tokenizer's, or have holes. An id without a token is never sampled and is
    left out of every log-probability, so the distribution sampled from is the one trained, and the first ratio is 1.
    unused: (V,) bool, True on those ids, or None if every id has a token.
    """

    unused: Tensor | None

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config.hidden_size, config.vocab_size, bias=False)
        unused = None
        if config.unused_ids:  # a real tensor even when the weights are not yet (on the meta device)
            unused = torch.zeros(config.vocab_size, dtype=torch.bool, device="cpu")
            unused[torch.tensor(config.unused_ids, device="cpu")] = True
        self.register_buffer("unused", unused, persistent=False)

    def forward(self, hidden: Tensor, weight: Tensor | None = None) -> Tensor:
        """(…, D) → (…, V). weight: a copy of the matrix to use instead, as `prepacked` stores it."""
        logits = nn.functional.linear(hidden, self.weight) if weight is None else product(hidden, weight)
        return logits if self.unused is None else logits.masked_fill(self.unused, float("-inf"))


class CausalLM(Adaptable):
    """A decoder with a head over the vocabulary (Hugging Face: LlamaForCausalLM). trunk: another model's, shared."""

    head_name, trained_head = "lm_head", False
    compiles_loss = False  # whether losses, except distillation's, compile what they compute from logits
    model: GPT

    def __init__(self, config: GPTConfig, trunk: GPT | None = None) -> None:
        super().__init__(config, trunk or GPT(config))
        self.lm_head = Vocabulary(config)
        self.tie()

    def tie(self) -> None:
        """Makes the head's matrix the embedding's if they are tied; call it again after replacing weight tensors."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def hidden(self, input_ids: Tensor, layout: Layout | None = None, cache: KVCache | None = None) -> Tensor:
        """(B, T) ids → (B, T, D) hidden states, from which losses start that never need all logits at once."""
        return self.model(input_ids, layout, cache, self.adapters)

    def head(self, hidden: Tensor, weight: Tensor | None = None) -> Tensor:
        """(…, D) hidden states → (…, V) logits. weight: as Vocabulary.forward takes it."""
        return self.lm_head(hidden, weight)

    def new_cache(self, starts: Tensor, size: int, *, dtype: torch.dtype, rows: int | None = None) -> KVCache:
        """A cache of `size` tokens for each of the B texts in starts (B,) (see KVCache); products in `dtype`.

        Copies the weights in that dtype, so it does not see later training steps, in the layout that is fastest for
        steps of about `rows` texts (default: B).
        """
        rows = rows or len(starts)
        adapters = self.adapters.layers if self.adapters else [None] * len(self.model.layers)
        pairs = cast(Iterable[tuple[DecoderLayer, LayerAdapters | None]], zip(self.model.layers, adapters, strict=True))
        with torch.autocast(starts.device.type, enabled=False):  # weights as they are stored, not in autocast's dtype
            layers = [for_reading(layer.weights(own), dtype, rows) for layer, own in pairs]
        return KVCache(self.config, layers, prepacked(self.lm_head.weight, dtype, rows), starts, size)

    def next_logits(self, input_ids: Tensor, cache: KVCache | Steps) -> Tensor:
        """(B, V) logits after the tokens (B, T), which continue those in the cache and are added to it."""
        hidden = self.model(input_ids, cache=cache)[:, -1]
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.to(cache.head.dtype), cache.head)

    def through_head(self, function: Callable[..., Any], hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """function(hidden, the head's matrix (V, D), …, unused=…): for functions that never need all logits at once."""
        return function(hidden, self.lm_head.weight, *args, unused=self.lm_head.unused, **kwargs)

    def forward(self, input_ids: Tensor, layout: Layout | None = None, cache: KVCache | None = None) -> Tensor:
        """(B, T) ids → (B, T, V) logits."""
        return self.head(self.hidden(input_ids, layout, cache))


class Score(nn.Linear):
    """Hidden states (…, D) → one number each (…, 1), computed in fp32 at least, also under autocast: rounded to bf16,
    scores near 8 would be 1/32 apart."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.to(wide), self.weight.to(wide), self.bias.to(wide))


class ScalarModel(Adaptable):
    """A decoder with one number per token: a reward model's score or a value. trunk: another model's, shared.

    (Hugging Face: LlamaForSequenceClassification with one label, plus a bias that holds the score's shift.)
    """

    head_name, trained_head = "score", True
    model: GPT

    def __init__(self, config: GPTConfig, trunk: GPT | None = None) -> None:
        super().__init__(config, trunk or GPT(config))
        self.score = Score(config.hidden_size)

    def forward(self, input_ids: Tensor, layout: Layout | None = None) -> Tensor:
        """(B, T) ids → (B, T) fp32 scores."""
        scores = self.score(self.model(input_ids, layout, adapters=self.adapters)).squeeze(-1).float()
        return scores.clone()  # FSDP2 hooks forward's output, which must not be a view

    @torch.no_grad()
    def rescale_(self, *, scale: float, shift: float) -> None:
        """Replaces the score s by scale · s + shift; folded into the head, so it is saved with the weights."""
        with in_shards(self):
            self.score.weight.mul_(scale)
            self.score.bias.mul_(scale).add_(shift)


def new_causal_lm(config: GPTConfig) -> CausalLM:
    """A CausalLM with fresh weights from torch's global generator."""
    model = CausalLM(config)
    initialize(model, config)
    return model


def scalar_from_causal(causal: CausalLM) -> ScalarModel:
    """A ScalarModel on the trunk of `causal` (shared, not copied) with a fresh head.

    Head weights N(0, σ = 1/√(D+1)), bias 0. Source: Ziegler et al. 2019; Huang et al. 2024 (N+), detail 9.
    """
    with torch.device("meta"):  # no second trunk
        model = ScalarModel(causal.config, causal.model)
    model.score = Score(causal.config.hidden_size)
    nn.init.normal_(model.score.weight, std=(causal.config.hidden_size + 1) ** -0.5)
    nn.init.zeros_(model.score.bias)
    return model


def value_from_causal(causal: CausalLM) -> ScalarModel:
    """As scalar_from_causal, for a value model: its head is 0, so that at first it adds no noise to the advantages."""
    model = scalar_from_causal(causal)
    nn.init.zeros_(model.score.weight)
    return model
