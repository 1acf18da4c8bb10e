"""The model and the tokens that reach the lowest loss for a given compute."""

import math
from dataclasses import replace
from typing import NamedTuple

from components.models.config import GPTConfig

MULTIPLE = 256  # of the MLP's width, as in LLaMA
HEAD = 128  # width of a head, and of the model for each layer: LLaMA-7B has 32 layers of width 4,096


class Law(NamedTuple):
    """loss = E + A/N^alpha + B/D^beta, nats per token, of a model with N parameters trained on D tokens once.
    Source: Hoffmann et al. 2022 (Chinchilla), eq. 2."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """The loss by the law, nats per token."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    def optimal(self, flops: float) -> tuple[float, float]:
        """(parameters, tokens) of the lowest loss among those that cost 6·N·D = flops.

        Raises ValueError unless flops is above 0.  Source: Hoffmann et al. 2022, eq. 4.
        """
        if flops <= 0:
            raise ValueError(f"budget: expected FLOPs above 0, got {flops:g}")
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        parameters = ratio * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return parameters, flops / 6 / parameters


# Refitted to Chinchilla's runs by Besiroglu et al. 2024, whose optimum agrees with Chinchilla itself, unlike the first
# fit of eq. 2, which asks for 40B parameters where Hoffmann et al. trained 70B.
CHINCHILLA = Law(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)


def shape_for(parameters: float, like: GPTConfig) -> GPTConfig:
    """The shape closest to this number of parameters among those with LLaMA's proportions: L layers of L heads of width
    128, an MLP 8/3 as wide as the model, rounded up. The rest is as in `like`."""

    def of_depth(depth: int) -> GPTConfig:
        width = HEAD * depth
        return replace(
            like,
            hidden_size=width,
            intermediate_size=MULTIPLE * math.ceil(8 * width / 3 / MULTIPLE),
            num_hidden_layers=depth,
            num_attention_heads=depth,
            num_key_value_heads=depth,
            head_dim=HEAD,
        )

    return min(map(of_depth, range(1, 200)), key=lambda shape: abs(math.log(shape.num_parameters() / parameters)))
