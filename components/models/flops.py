"""Floating-point operations of a model on one token, by its shape and by which of its weights are trained."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from components.models.config import GPTConfig

NO_RANKS: Mapping[str, int] = {}
NO_ADAPTERS: Mapping[str, tuple[int, int, int]] = {}


class Flops(NamedTuple):
    """FLOPs per token: of a forward pass, and of the backward pass of a training step."""

    forward: int
    backward: int

    @property
    def training(self) -> int:
        return self.forward + self.backward


def flops_per_token(
    config: GPTConfig,
    context: int,
    *,
    trained: Callable[[str], bool] = lambda name: True,
    ranks: Mapping[str, int] = NO_RANKS,
    head: str = "lm_head",
) -> Flops:
    """FLOPs of one token that attends to T = context tokens.

    Forward: 2 per parameter used in a matmul, and 4·d·T in each layer for attention; d: heads · head_dim. Backward: 2
    per parameter that is trained, for its gradient; 2 per parameter whose input depends on a trained one, to pass the
    gradient on; and twice attention's own if its input does. So 6 per parameter and 12·L·d·T in L layers if all of the
    model is trained. Embeddings are lookups and are not counted; a tied output matrix is.
    trained: by a weight's name, as in training.patterns. ranks: of adapters, by the projection's name. head: lm_head,
    or score for a model with one number per token.
    Source: Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022 (PaLM), appendix B.
    """
    walk = _Walk(trained, trained("model.embed_tokens.weight") or trained("model.embed_positions.weight"))
    shapes, d = config.projections(), config.hidden_size
    attention = 4 * config.num_attention_heads * config.head_dim * context
    for number in range(config.num_hidden_layers):
        for step in config.layer_weights():
            layer = f"model.layers.{number}."
            adapted = {name: name.split(".")[1] for name in step if name.endswith("_proj.weight")}
            adapters = {layer + name: (ranks[own], *shapes[own]) for name, own in adapted.items() if own in ranks}
            walk.step({layer + name: size for name, size in step.items()}, adapters)
            if "self_attn.q_proj.weight" in step:
                walk.add(attention, 2 * attention * walk.flowing)
    walk.step(config.norm_weights("model.norm"))
    walk.step({"lm_head.weight": config.vocab_size * d} if head == "lm_head" else {"score.weight": d, "score.bias": 1})
    return walk.total


class _Walk:
    """Adds up a forward pass step by step. flowing: whether the input of the next step needs a gradient."""

    def __init__(self, trained: Callable[[str], bool], flowing: bool) -> None:
        self.trained, self.flowing, self.total = trained, flowing, Flops(0, 0)

    def add(self, forward: int, backward: int) -> None:
        self.total = Flops(self.total.forward + forward, self.total.backward + backward)

    def step(self, sizes: Mapping[str, int], adapters: Mapping[str, tuple[int, int, int]] = NO_ADAPTERS) -> None:
        """Weights that read the same input, by name. adapters: (rank, outputs, inputs) by the name of their weight."""
        learned = [self._product(size, self.trained(name), self.flowing) for name, size in sizes.items()]
        for name, (rank, outputs, inputs) in adapters.items():
            down, up = (self.trained(name.removesuffix("weight") + f"lora_{part}.weight") for part in "AB")
            learned += [
                self._product(rank * inputs, down, self.flowing),
                self._product(outputs * rank, up, self.flowing or down),
            ]
        self.flowing = self.flowing or any(learned)

    def _product(self, size: int, learned: bool, flowing: bool) -> bool:
        self.add(2 * size, 2 * size * (learned + flowing))
        return learned
